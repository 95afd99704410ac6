"""What the daemon's answers are to the clients outside it: results as frozen records, refusals as exceptions."""

from collections.abc import Mapping
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
    last_seen: str | None = None
    metadata: Json = field(default_factory=dict)
    description: str | None = None


@dataclass(frozen=True)
class RegisterPeerResult:
    """POST /peers."""

    ok: bool
    peer_id: str
    display_name: str
    birth_certificate: Json | None = None


@dataclass(frozen=True)
class AskResult:
    """POST /ask; `state` is the delivery's."""

    correlation_id: str
    error: str | None = None
    delivery_id: str | None = None
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
class MeshEvent:
    """A line of the event stream; `extras` is everything else that it says."""

    id: str
    type: str
    timestamp: str
    extras: Json


def made(kind: type[T], answer: Mapping[str, Any]) -> T:
    """The fields that `kind` knows; a newer daemon may say more."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in answer.items() if name in known})
    except TypeError as exc:
        raise DaemonError(f"the daemon's answer lacks a field: {exc}") from None


def given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}
