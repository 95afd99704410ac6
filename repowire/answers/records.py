"""How an answer becomes a record, and the records that every noun needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from repowire.answers.errors import DaemonError

T = TypeVar("T")
Json = dict[str, Any]


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
