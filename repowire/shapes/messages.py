"""Messages, their deliveries and traces."""

from typing import Literal, NotRequired, TypedDict

from repowire.shapes.words import Json, State


class Notified(TypedDict):
    ok: bool
    status: Literal["sent", "queued"]
    delivery_state: Literal["queued", "delivered"]
    delivered: bool
    queued: bool
    state: State
    reason: Literal["transport_delivered", "queued_delivery"]
    from_peer_id: str | None
    from_peer_name: str
    to_peer_id: str
    to_peer_name: str
    repowire_session_id: str | None
    from_repowire_session_id: str | None
    to_repowire_session_id: str | None
    hook_delivery: Json | None
    delivery_id: str


class Failed(TypedDict):
    peer: str
    error: str


class Copy(TypedDict):
    peer_id: str
    delivery_id: str
    state: State


class Spread(TypedDict):
    ok: bool
    sent_to: list[str]
    failed: list[Failed]
    broadcast_id: str
    deliveries: list[Copy]


class Stage(TypedDict):
    seq: int
    stage: str
    status: Literal["ok", "fail"]
    peer_id: str | None
    from_peer_id: str | None
    ts: str
    detail: Json


class Trace(TypedDict):
    trace_id: str
    kind: Literal["ask", "notify", "broadcast", "fanout", "question"]
    stages: list[Stage]


class Message(TypedDict):
    id: str
    kind: Literal["ask", "notify", "broadcast", "reply"]
    from_peer: str | None
    from_peer_id: str | None
    to_peer: str | None
    to_peer_id: str
    text: str | None
    attachments: list[Json]
    state: State
    reason: str | None
    created_at: str
    delivery_id: str
    trace_id: str
    ask_state: NotRequired[Literal["open", "closed"]]
    close_reason: NotRequired[str | None]
    reply: NotRequired[str | None]


class TracedMessage(Message):
    trace: list[Stage]


class MessagePage(TypedDict):
    messages: list[Message]
    next: str | None


class Delivery(TypedDict):
    delivery_id: str
    kind: str
    trace: str
    from_peer: str | None
    from_peer_id: str | None
    to_peer: str | None
    peer_id: str
    state: State
    reason: str | None
    attempts: int
    created_at: str
    expires_at: str | None
    leased_at: str | None
    handed_at: str | None
    seen_at: str | None
    closed_at: str | None
    text: str | None


class DeliveryPage(TypedDict):
    deliveries: list[Delivery]
    next: str | None


class Standing(TypedDict):
    ok: bool
    delivery_id: str
    state: State
    reason: str | None


class PickedUp(TypedDict):
    delivery_id: str
    kind: str
    from_peer: str | None
    to_peer: str | None
    text: str | None
    created_at: str
    expires_at: str | None
    correlation_id: str | None
    attachments: list[Json]
    attempts: NotRequired[int]


class PickUp(TypedDict):
    deliveries: list[PickedUp]
    lease: NotRequired[str | None]
    lease_expires_at: NotRequired[str | None]


class Confirmed(TypedDict):
    ok: bool
    confirmed: list[str]
