"""What was said."""

from typing import Literal, TypedDict

from repowire.shapes.words import Backend, Json


class Turn(TypedDict):
    role: Literal["user", "assistant"]
    text: str
    timestamp: str | None
    session_id: str | None
    turn_id: str | None
    tool_calls: list[Json]


class TimelineItem(TypedDict):
    id: str
    kind: Literal["turn", "delta_group"]
    source: Literal["history", "realtime"]
    timestamp: str | None
    session_id: str | None
    turn_id: str | None
    role: Literal["user", "assistant"] | None
    text: str | None
    tool_calls: list[Json]
    peer_id: str | None
    peer: str | None
    event_ids: list[str]


class Match(TypedDict):
    start: int
    end: int
    snippet: str


class TimelineMatch(TypedDict):
    cursor: str
    target_id: str
    item: TimelineItem
    match: Match


class History(TypedDict):
    history_status: Literal["available", "unavailable", "unsupported"]
    history_backend: Backend
    history_message: str | None
    history_source: Literal["peer_path", "session_binding"] | None
    repowire_session_id: str | None
    binding_status: Literal["bound", "unbound"]
    runtime_session_id: str | None


class Transcript(History):
    turns: list[Turn]
    next_before: str | None


class Timeline(History):
    peer_id: str
    peer_name: str
    session_id: str | None
    items: list[TimelineItem]


class TimelineSearch(History):
    peer_id: str
    peer_name: str
    session_id: str | None
    query: str
    degraded: bool
    degradation_message: str | None
    results: list[TimelineMatch]
