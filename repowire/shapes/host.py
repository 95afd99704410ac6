"""The daemon itself."""

from typing import Literal, TypedDict

from repowire.shapes.words import Json


class Channel(TypedDict):
    status: str
    configured: bool
    runtime_available: bool
    stop_hook_fallback: bool
    last_error: str | None


class Health(TypedDict):
    status: Literal["ok"]
    version: str
    relay_mode: bool
    channel: Channel
    acp_broker: Json
    degraded: list[str]


class Stopping(TypedDict):
    status: Literal["shutting_down"]


class Rotated(TypedDict):
    ok: bool
    token_file: str


class Ok(TypedDict):
    ok: bool
