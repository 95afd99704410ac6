"""Asks, of one peer or of several."""

from typing import Literal, NotRequired, TypedDict

from repowire.shapes.questions import Outcome
from repowire.shapes.words import Json, State


class Asked(TypedDict):
    correlation_id: str
    error: str | None
    to_peer: str
    to_peer_id: str
    delivery_id: str
    delivery_state: Literal["queued", "delivered"]
    delivered: bool
    queued: bool
    state: State


class Acked(TypedDict):
    ok: bool
    delivery_state: NotRequired[Literal["queued", "delivered"]]
    delivered: NotRequired[bool]
    queued: NotRequired[bool]
    state: NotRequired[State]


class Waited(TypedDict):
    correlation_id: str
    status: Literal["resolved", "pending"]
    reply: str | None
    outcome: str | None
    option_id: str | None
    message: str | None
    close_reason: str | None
    responder: str | None
    attachments: list[Json]


class OpenAsk(TypedDict):
    correlation_id: str
    from_peer: str
    to_peer: str
    text: str
    created_at: str
    direction: Literal["inbound", "outbound"]


class Ask(TypedDict):
    correlation_id: str
    from_peer: str
    to_peer: str
    from_peer_id: str | None
    to_peer_id: str
    text: str
    reply_to: str | None
    parent_id: str | None
    created_at: str
    state: Literal["open", "closed"]
    closed_at: str | None
    close_reason: str | None
    reply: str | None
    replied_by: str | None
    question: Json | None
    outcome: Outcome | None
    option_id: str | None
    delivery_state: State | None
    delivery_reason: str | None


class AskPage(TypedDict):
    asks: list[Ask]
    next: str | None


class AskManyChild(TypedDict):
    peer: str
    correlation_id: str | None
    delivered: bool
    state: State | None
    error: str | None


class AskedMany(TypedDict):
    parent_id: str
    children: list[AskManyChild]


class AskManyAnswer(TypedDict):
    peer: str
    peer_id: str | None
    correlation_id: str | None
    status: Literal["acked", "replied", "pending", "failed"]
    reply: str | None
    close_reason: str | None
    error: str | None


class Counts(TypedDict):
    total: int
    acked: int
    replied: int
    pending: int
    failed: int


class Rollup(TypedDict):
    parent_id: str
    from_peer: str
    text: str
    created_at: str
    deadline: str
    state: Literal["pending", "partial", "complete"]
    timed_out: bool
    rollup: Counts
    children: list[AskManyAnswer]


class Queried(TypedDict):
    text: str | None
    error: str | None
    status: Literal["busy", "offline"] | None
    correlation_id: NotRequired[str]
