"""What the daemon answers of agents that it starts, ends and wakes."""

from dataclasses import dataclass, field

from repowire.answers.records import Json


@dataclass(frozen=True)
class SpawnConfigInfo:
    """GET /spawn/config."""

    enabled: bool
    commands: Json = field(default_factory=dict)
    profiles: Json = field(default_factory=dict)
    allowed_commands: list[str] = field(default_factory=list)
    allowed_paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SpawnResult:
    """POST /spawn; `registration_state` is `pending_hook` until the agent's hooks speak."""

    ok: bool
    display_name: str
    tmux_session: str
    peer_id: str | None = None
    registration_state: str | None = None
    warnings: list[str] = field(default_factory=list)
    pane_id: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class KillPeerResult:
    """POST /kill-peer; `tmux_killed` is None where the peer was only taken off the list."""

    ok: bool
    tmux_killed: bool | None = None


@dataclass(frozen=True)
class RestartPeerResult:
    """POST /peers/{name}/restart."""

    ok: bool
    status: str
    restarted: bool
    peer_id: str
    display_name: str
    backend: str
    path: str | None = None
    circle: str | None = None
    tmux_session: str | None = None
    resume_mode: str | None = None
    resume_warning: str | None = None
    unsupported_reason: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class SessionNotifyResult:
    """POST /sessions/{id}/controls/notify."""

    ok: bool
    repowire_session_id: str
    session_status: str
    capability: str
    executor_peer_id: str
    executor_peer_name: str
    delivery_state: str
    delivered: bool
    queued: bool
    state: str
    reason: str
    delivery_id: str
    hook_delivery: Json | None = None


@dataclass(frozen=True)
class SessionResumeResult:
    """POST /sessions/{id}/controls/resume."""

    ok: bool
    repowire_session_id: str
    session_status: str
    status: str
    capability: str
    message: str
    backend: str
    runtime_session_id: str | None = None
    runtime_source_uri: str | None = None
    executor_peer_id: str | None = None
    executor_peer_name: str | None = None
    resume_capability: Json = field(default_factory=dict)
    action: str | None = None
    spawned_display_name: str | None = None
    tmux_session: str | None = None
    pane_id: str | None = None
