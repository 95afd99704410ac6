"""What the daemon answers of peers."""

from dataclasses import dataclass, field

from repowire.answers.records import Json


@dataclass(frozen=True)
class ClientPeer:
    """A peer as its client sees it."""

    peer_id: str
    name: str
    display_name: str
    status: str
    path: str | None = None
    machine: str | None = None
    tmux_session: str | None = None
    backend: str | None = None
    model: str | None = None
    circle: str | None = None
    role: str | None = None
    turn_state: str | None = None
    last_seen: str | None = None
    metadata: Json = field(default_factory=dict)
    description: str | None = None
    ws_connected: bool = False
    hook_supports_receipts: bool = False
    last_successful_injection_at: str | None = None
    last_injection_failure_at: str | None = None
    pending_ask_count: int = 0
    oldest_pending_age_seconds: float | None = None
    pane_safe: bool | None = None
    inbound_status: str | None = None


@dataclass(frozen=True)
class OrchestratorStatus:
    """GET /circles/{name}/orchestrator."""

    circle: str
    present: bool
    peer_id: str | None = None
    peer_name: str | None = None
    last_seen: str | None = None
    stale_after_seconds: float | None = None


@dataclass(frozen=True)
class RegisterPeerResult:
    """POST /peers."""

    ok: bool
    peer_id: str
    display_name: str
    pane_assigned: bool = False
    birth_certificate: Json | None = None
