"""Panes that are nobody's, and the way into one."""

from typing import Literal, TypedDict

from repowire.shapes.words import SeemingBackend


class OrphanPane(TypedDict):
    pane_id: str
    pid: int
    command: str
    cwd: str
    session: str
    window: str
    detected_backend: SeemingBackend
    confidence: Literal["hint", "unknown"]
    agent_pid: int | None
    tmux: str


class OrphanPanes(TypedDict):
    panes: list[OrphanPane]
    silent: list[str]


class LinkedPane(TypedDict):
    linked: bool
    pane_id: str
    peer_id: str | None
    display_name: str | None
    transport_connected: bool
    reason: Literal[
        "linked", "pane_gone", "agent_gone", "ws_hook_spawn_failed", "transport_unestablished", "daemon_stopped"
    ]
    repair_hint: str | None


class Rehooked(TypedDict):
    ok: bool
    acted: bool
    peer_id: str
    display_name: str
    pane_id: str
    ws_was_connected: bool
    ping_ok: bool | None
    pane_verified: bool
    ws_hook_respawned: bool
    reason: Literal["already_healthy", "dry_run", "respawned", "respawn_skipped_pid_alive_or_contested"]
    detail: str
