"""What the daemon answers of notifies, broadcasts, deliveries and traces."""

from dataclasses import dataclass, field

from repowire.answers.records import Json


@dataclass(frozen=True)
class BroadcastResult:
    """POST /broadcast; `sent_to` are names, each of `failed` has a `peer` and an `error`."""

    ok: bool
    sent_to: list[str]
    failed: list[Json]
    broadcast_id: str | None = None
    deliveries: list[Json] = field(default_factory=list)


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
