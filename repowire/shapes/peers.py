"""Peers, and who claims to be one."""

from typing import Literal, TypedDict

from repowire.shapes.words import Backend, Json, Role, TurnState


class Peer(TypedDict):
    peer_id: str
    name: str
    display_name: str
    path: str | None
    machine: str | None
    tmux_session: str | None
    backend: Backend
    model: str | None
    circle: str
    role: Role
    status: Literal["online", "busy", "offline"]
    turn_state: TurnState | None
    last_seen: str | None
    metadata: Json
    description: str
    ws_connected: bool
    hook_supports_receipts: bool
    last_successful_injection_at: str | None
    last_injection_failure_at: str | None
    pending_ask_count: int
    oldest_pending_age_seconds: float | None
    pane_safe: bool | None
    inbound_status: Literal["offline", "pane_unsafe", "no_hook", "legacy_unverified", "inbound_degraded", "online"]


class BirthCertificate(TypedDict):
    nonce: str
    peer_id: str
    display_name: str
    backend: Backend
    project_path: str
    runtime_session_id: str | None
    pane_id: str | None
    agent_pid: int | None
    parent_pid: int | None
    metadata: Json
    issued_at: str
    expires_at: str


class Registered(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    pane_assigned: bool
    birth_certificate: BirthCertificate | None


class Caller(TypedDict):
    kind: Literal["agent", "human"]
    peer: Peer | None


class PreviousHolder(TypedDict):
    peer_id: str
    display_name: str
    status: Literal["online", "busy", "offline"]
    last_seen: str | None


class RoleClaimed(TypedDict):
    ok: bool
    peer_id: str
    peer_name: str
    role: Role
    circle: str
    already_held: bool
    previous_holders: list[PreviousHolder]


class Orchestrator(TypedDict):
    circle: str
    present: bool
    peer_id: str | None
    peer_name: str | None
    last_seen: str | None
    stale_after_seconds: float


class Validated(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    peer: Peer


class PrunedPeer(TypedDict):
    peer_id: str
    display_name: str
    circle: str
    path: str | None
    last_seen: str | None
    waiting: bool


class Pruned(TypedDict):
    ok: bool
    dry_run: bool
    pruned: list[PrunedPeer]


class WentOffline(TypedDict):
    ok: bool
    cancelled_queries: int
