"""Agents that are started, ended and woken here."""

from typing import Literal, TypedDict

from repowire.shapes.words import Json


class SpawnConfig(TypedDict):
    enabled: bool
    commands: Json
    profiles: Json
    allowed_commands: list[str]
    allowed_paths: list[str]


class Spawned(TypedDict):
    ok: bool
    display_name: str
    tmux_session: str
    peer_id: str | None
    registration_state: Literal["pending_hook", "cli_fallback"]
    warnings: list[str]
    pane_id: str
    command: str


class Restarted(TypedDict):
    ok: bool
    status: Literal["restart_available", "restarted"]
    restarted: bool
    peer_id: str
    display_name: str
    backend: str
    path: str | None
    circle: str
    tmux_session: str | None
    resume_mode: Literal["resumed"]
    resume_warning: str | None
    unsupported_reason: str | None
    command: str | None


class Switched(TypedDict):
    ok: bool
    display_name: str
    tmux_session: str | None
    old_backend: str
    new_backend: str
    command: str


class SessionNotified(TypedDict):
    ok: bool
    repowire_session_id: str
    session_status: Literal["active"]
    capability: str
    executor_peer_id: str
    executor_peer_name: str
    delivery_state: Literal["delivered", "queued"]
    delivered: bool
    queued: bool
    state: str
    reason: str
    hook_delivery: Json | None
    delivery_id: str


class ResumeCapability(TypedDict):
    supported: bool
    arguments: list[str]


class SessionResumed(TypedDict):
    ok: bool
    repowire_session_id: str
    session_status: Literal["active", "ended"]
    status: Literal["active_executor", "resume_available", "unsupported", "binding_unavailable"]
    capability: str
    message: str
    backend: str
    runtime_session_id: str | None
    runtime_source_uri: str | None
    executor_peer_id: str | None
    executor_peer_name: str | None
    resume_capability: ResumeCapability
    action: Literal["inspect", "spawned"]
    spawned_display_name: str | None
    tmux_session: str | None
    pane_id: str | None


class Killed(TypedDict):
    ok: bool
    tmux_killed: bool | None
