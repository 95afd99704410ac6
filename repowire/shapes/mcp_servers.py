"""MCP servers of a peer's own configuration."""

from typing import Literal, TypedDict


class McpServer(TypedDict):
    name: str
    scope: Literal["user", "project", "local"]
    type: str
    command: str | None
    args: list[str]
    url: str | None
    env_keys: list[str]


class McpScope(TypedDict):
    backend: str
    owner: Literal["user", "project"]
    effective_scope: Literal["user", "project", "local"]
    label: str
    description: str
    supported_scopes: list[str]
    default_scope: str
    is_global: bool
    peer_id: str
    peer_name: str
    project_path: str | None
    peer_machine: str | None
    self_machine: str
    same_host: bool


class McpServers(TypedDict):
    servers: list[McpServer]
    config_scope: McpScope


class McpChanged(TypedDict):
    ok: bool
    config_scope: McpScope
