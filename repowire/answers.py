"""What the daemon's answers are to the clients outside it: results as frozen records, refusals as exceptions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from repowire.errors import Refusal

T = TypeVar("T")
Json = dict[str, Any]


# -- errors --------------------------------------------------------------------
class RepowireError(Exception):
    """Whatever this client raises."""


class DaemonError(RepowireError):
    """A call to the daemon failed."""


class DaemonConnectionError(DaemonError, ConnectionError):
    """No daemon answers, or it hung up."""


class DaemonTimeoutError(DaemonError, TimeoutError):
    """The daemon took too long."""


class DaemonHTTPError(DaemonError, Refusal):
    """The daemon refused: status, error, hint and facts as in `Refusal`."""


class PeerDisconnectedError(RepowireError):
    """A connected peer was ended by the daemon; connecting again would end the same way."""

    def __init__(self, peer_name: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{peer_name}: {reason or 'disconnected'}")
        self.peer_name, self.code, self.reason = peer_name, code, reason


# -- what comes back -----------------------------------------------------------
@dataclass(frozen=True)
class Health:
    """GET /health."""

    status: str
    version: str | None = None
    relay_mode: bool = False
    channel: Json = field(default_factory=dict)
    acp_broker: Json = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)


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


@dataclass(frozen=True)
class AskResult:
    """POST /ask; `state` is the delivery's."""

    correlation_id: str
    error: str | None = None
    to_peer: str | None = None
    to_peer_id: str | None = None
    delivery_id: str | None = None
    delivery_state: str | None = None
    delivered: bool = False
    queued: bool = False
    state: str | None = None


@dataclass(frozen=True)
class AskManyChild:
    """Who was asked by POST /ask-many, by which ask, or why not."""

    peer: str
    correlation_id: str | None = None
    delivered: bool = False
    state: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class AskManyResult:
    """POST /ask-many."""

    parent_id: str
    children: list[AskManyChild]


@dataclass(frozen=True)
class AskManyAnswer:
    """What one peer made of it; `status` is acked, replied, pending or failed."""

    peer: str
    status: str
    peer_id: str | None = None
    correlation_id: str | None = None
    reply: str | None = None
    close_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class AskManyStatus:
    """GET /ask-many/{id}; `state` is pending, partial or complete, `rollup` counts the children by status."""

    parent_id: str
    from_peer: str
    text: str
    created_at: str
    deadline: str
    state: str
    timed_out: bool
    rollup: dict[str, int]
    children: list[AskManyAnswer]


@dataclass(frozen=True)
class Acked:
    """POST /ack, /decline and /response; where the reply waits in a mailbox, the rest says how it stands."""

    ok: bool
    delivery_state: str | None = None
    delivered: bool | None = None
    queued: bool | None = None
    state: str | None = None


@dataclass(frozen=True)
class WaitResult:
    """POST /asks/{id}/wait; `status` is resolved or pending."""

    correlation_id: str
    status: str
    reply: str | None = None
    outcome: str | None = None
    option_id: str | None = None
    message: str | None = None
    close_reason: str | None = None
    responder: str | None = None
    attachments: list[Json] | None = None


@dataclass(frozen=True)
class BroadcastResult:
    """POST /broadcast; `sent_to` are names, each of `failed` has a `peer` and an `error`."""

    ok: bool
    sent_to: list[str]
    failed: list[Json]
    broadcast_id: str | None = None
    deliveries: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class QueryResult:
    """POST /query; `status` is the peer's where it was not asked."""

    text: str | None = None
    error: str | None = None
    status: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True)
class PendingAsk:
    """A row of GET /asks/pending."""

    correlation_id: str
    from_peer: str
    to_peer: str
    text: str
    created_at: str
    direction: str | None = None


@dataclass(frozen=True)
class Ask:
    """An ask, open or closed."""

    correlation_id: str
    from_peer: str
    to_peer: str
    text: str
    created_at: str
    state: str
    from_peer_id: str | None = None
    to_peer_id: str | None = None
    reply_to: str | None = None
    parent_id: str | None = None
    closed_at: str | None = None
    close_reason: str | None = None
    reply: str | None = None
    replied_by: str | None = None
    question: Json | None = None
    outcome: str | None = None
    option_id: str | None = None
    delivery_state: str | None = None
    delivery_reason: str | None = None


@dataclass(frozen=True)
class Blocked:
    """POST /questions/ask-blocking; of a tool permission `decision` is allow, deny or none (nobody need be asked)."""

    correlation_id: str
    outcome: str
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    decision: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Question:
    """A question to the human, open or closed; `metadata` holds the whole call of a tool permission."""

    correlation_id: str
    from_peer: str
    prompt: str
    kind: str
    state: str
    created_at: str
    expires_at: str
    options: list[Json] = field(default_factory=list)
    metadata: Json = field(default_factory=dict)
    from_peer_id: str | None = None
    scope: str | None = None
    origin: str | None = None
    digest: str | None = None
    dialog: bool = False
    closed_at: str | None = None
    outcome: str | None = None
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    reason: str | None = None
    answered_by: str | None = None
    surface: str | None = None
    decision: str | None = None


@dataclass(frozen=True)
class QuestionPage:
    """GET /questions; `next` is the cursor of the next page."""

    questions: list[Question]
    next: str | None = None


@dataclass(frozen=True)
class Withdrawn:
    """POST /questions/withdraw: the ids of what was still open."""

    ok: bool
    withdrawn: list[str]


@dataclass(frozen=True)
class AskPage:
    """GET /asks/history; `next` is the cursor of the next page."""

    asks: list[Ask]
    next: str | None = None


@dataclass(frozen=True)
class NotifyResult:
    """POST /notify; `delivered` is written to a live connection, `state` what is proven."""

    ok: bool
    status: str | None = None
    delivery_id: str | None = None
    delivery_state: str | None = None
    delivered: bool = False
    queued: bool = False
    state: str | None = None
    reason: str | None = None
    to_peer_id: str | None = None
    to_peer_name: str | None = None
    from_peer_name: str | None = None
    from_peer_id: str | None = None
    repowire_session_id: str | None = None
    from_repowire_session_id: str | None = None
    to_repowire_session_id: str | None = None
    hook_delivery: Json | None = None


@dataclass(frozen=True)
class Stage:
    """A step of a trace."""

    seq: int
    stage: str
    status: str
    ts: str
    peer_id: str | None = None
    from_peer_id: str | None = None
    detail: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """GET /traces/{id}."""

    trace_id: str
    kind: str
    stages: list[Stage]


@dataclass(frozen=True)
class SaidMessage:
    """A message of GET /messages: an ask, a notify, a reply or a copy of a broadcast. Only asks have the last three."""

    id: str
    kind: str
    state: str
    created_at: str
    delivery_id: str
    trace_id: str
    to_peer_id: str
    from_peer: str | None = None
    from_peer_id: str | None = None
    to_peer: str | None = None
    text: str | None = None
    attachments: list[Json] = field(default_factory=list)
    reason: str | None = None
    ask_state: str | None = None
    close_reason: str | None = None
    reply: str | None = None


@dataclass(frozen=True)
class TracedMessage(SaidMessage):
    """GET /messages/{id}: a message, and the steps it took."""

    trace: list[Stage] = field(default_factory=list)


@dataclass(frozen=True)
class MessagePage:
    """GET /messages; `next` is the cursor of the next page."""

    messages: list[SaidMessage]
    next: str | None = None


@dataclass(frozen=True)
class Delivery:
    """One thing in front of one peer, and what is proven of it."""

    delivery_id: str
    kind: str
    trace: str
    peer_id: str
    state: str
    attempts: int
    created_at: str
    from_peer: str | None = None
    from_peer_id: str | None = None
    to_peer: str | None = None
    reason: str | None = None
    expires_at: str | None = None
    leased_at: str | None = None
    handed_at: str | None = None
    seen_at: str | None = None
    closed_at: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class DeliveryPage:
    """GET /deliveries; `next` is the cursor of the next page."""

    deliveries: list[Delivery]
    next: str | None = None


@dataclass(frozen=True)
class DeliveryStanding:
    """What became of a delivery that was retried or dropped."""

    ok: bool
    delivery_id: str
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class PickedUp:
    """A message that was fetched; with more than one of `attempts` it was given out before."""

    delivery_id: str
    kind: str
    created_at: str
    from_peer: str | None = None
    to_peer: str | None = None
    text: str | None = None
    expires_at: str | None = None
    correlation_id: str | None = None
    attachments: list[Json] = field(default_factory=list)
    attempts: int = 1


@dataclass(frozen=True)
class PickUp:
    """GET /deliveries/pending; `lease` is the token of `confirm`, until `lease_expires_at`."""

    deliveries: list[PickedUp]
    lease: str | None = None
    lease_expires_at: str | None = None


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


@dataclass(frozen=True)
class MeshEvent:
    """A line of the event stream; `extras` is everything else that it says."""

    id: str
    type: str
    timestamp: str
    extras: Json


def made(kind: type[T], answer: Mapping[str, Any], **inner: Any) -> T:
    """The fields that `kind` knows; a newer daemon may say more. `inner` are fields that are made already."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in {**answer, **inner}.items() if name in known})
    except TypeError as exc:
        raise DaemonError(f"the daemon's answer lacks a field: {exc}") from None


def all_made(kind: type[T], answers: Iterable[Mapping[str, Any]]) -> list[T]:
    """The same of a list."""
    return [made(kind, one) for one in answers]


def given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}


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


@dataclass(frozen=True)
class Turn:
    """What was said, and by whom; the moment is the runtime's own."""

    role: str
    text: str
    timestamp: str | None = None
    session_id: str | None = None
    turn_id: str | None = None
    tool_calls: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class Transcript:
    """GET /peers/{name}/transcript: a page, the newest turn first."""

    turns: list[Turn]
    next_before: str | None = None
    history_status: str | None = None
    history_backend: str | None = None
    history_message: str | None = None
    history_source: str | None = None
    repowire_session_id: str | None = None
    binding_status: str | None = None
    runtime_session_id: str | None = None
