"""What the daemon answers of panes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OrphanPane:
    """A pane that no peer has; what seems to run in it is a guess for display."""

    pane_id: str
    pid: int
    command: str
    cwd: str
    session: str
    window: str
    detected_backend: str
    confidence: str
    tmux: str
    agent_pid: int | None = None


@dataclass(frozen=True)
class LinkedPane:
    """POST /panes/{pane_id}/link: `reason` says why it was not linked, `repair_hint` what may help."""

    linked: bool
    pane_id: str
    transport_connected: bool
    reason: str
    peer_id: str | None = None
    display_name: str | None = None
    repair_hint: str | None = None


@dataclass(frozen=True)
class Rehooked:
    """POST /peers/{name}/rehook: `reason` says what was done, `detail` what was found; `ping_ok` None: no socket."""

    ok: bool
    acted: bool
    peer_id: str
    display_name: str
    pane_id: str
    ws_was_connected: bool
    pane_verified: bool
    ws_hook_respawned: bool
    reason: str
    detail: str
    ping_ok: bool | None = None
