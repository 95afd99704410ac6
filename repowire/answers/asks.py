"""What the daemon answers of asks, of one peer or of several."""

from dataclasses import dataclass

from repowire.answers.records import Json


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
class AskPage:
    """GET /asks/history; `next` is the cursor of the next page."""

    asks: list[Ask]
    next: str | None = None
