"""What holds a peer up, and what is wrong with one or with the host."""

from typing import Literal, TypedDict

from repowire.shapes.words import Backend, Json, Role, TurnState

Code = Literal[
    "ONLINE_BUT_NO_WS",
    "PANE_MISSING",
    "AGENT_PID_DEAD",
    "HOOK_PEERID_MISMATCH",
    "WS_PANE_MISMATCH",
    "STALE_PENDING_ASK",
    "DEAD_BUT_BUSY",
    "HELD_MAIL",
    "HOOKS_MISSING",
    "HOOKS_STALE",
    "INBOX_HELD",
    "TMUX_SERVER_CHANGED",
    "VERSION_SKEW",
]


class Contradiction(TypedDict):
    code: Code
    severity: Literal["error", "warning"]
    detail: str
    repair: str
    evidence: Json
    fix: Literal["rehook"] | None


class PaneEvidence(TypedDict):
    tmux_session: str
    current_path: str
    pane_pid: int


class HeldDelivery(TypedDict):
    delivery_id: str
    reason: str | None
    since: str


class Hold(TypedDict):
    reason: str | None
    since: str
    until: str | None


class HeldPeer(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    hold: Hold | None
    waiting: int


class PeerReport(TypedDict):
    peer_id: str
    display_name: str
    status: Literal["online", "busy", "offline"]
    turn_state: TurnState | None
    last_seen: str | None
    machine: str | None
    backend: Backend
    circle: str
    role: Role
    pane_id: str | None
    is_local_machine: bool
    ws_connected: bool
    ws_pane_id: str | None
    tmux_pane_exists: bool | None
    tmux_evidence: PaneEvidence | None
    hook_meta_available: bool
    hook_meta_peer_id: str | None
    hook_meta_display_name: str | None
    agent_pid: int | None
    agent_pid_alive: bool | None
    pending_inbound_count: int
    oldest_pending_age_seconds: float | None
    oldest_pending_cid: str | None
    contradictions: list[Contradiction]
    way_in: Literal["socket", "pane", "channel"] | None
    waiting: int
    held: list[HeldDelivery]
    hold: Hold | None
    says: str | None
    hook_version: str | None
    daemon_version: str


class HostCheck(TypedDict):
    check: str
    ok: bool
    severity: Literal["error", "warning"]
    detail: str
    repair: str | None


class TroubledPeer(TypedDict):
    peer_id: str
    display_name: str
    contradictions: list[Contradiction]


class HostReport(TypedDict):
    ok: bool
    version: str
    machine: str
    checks: list[HostCheck]
    peers_looked_at: int
    peers: list[TroubledPeer]
