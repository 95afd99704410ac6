"""Traces, events and turns, in the words of the document."""

from repowire.chats import ID_CHARS, TOOL_CALLS_MOST
from repowire.openapi.words import (
    COUNT,
    FLAG,
    LIMIT,
    METADATA,
    MOMENT,
    OK,
    PANE,
    SHOWN,
    Route,
    Schema,
    free,
    line,
    listed,
    loose,
    maybe,
    record,
    shape,
    takes,
    whole,
    word,
)
from repowire.protocol import MAX_TEXT_CHARS
from repowire.traces import REPLAY_MOST

ID = line(ID_CHARS)
NAMED = line(ID_CHARS, least=1)
NOT_YOURS = {403: "an agent speaks for another"}

SHAPES: dict[str, Schema] = {
    "Stage": record(
        seq=COUNT,
        stage=SHOWN,
        status=word("ok", "fail"),
        peer_id=maybe(SHOWN),
        from_peer_id=maybe(SHOWN),
        ts=MOMENT,
        detail=loose(),
    ),
    "Event": {
        **record(id=SHOWN, type=SHOWN, timestamp=MOMENT, kind=SHOWN),
        "additionalProperties": True,
        "description": "what else an event says stands beside these",
    },
}

ROUTES = [
    Route(
        "GET", "/traces/{trace_id}", "trace", "The stages of an ask or a message, in order.",
        answer=record(
            trace_id=SHOWN, kind=word("ask", "notify", "broadcast", "fanout", "question"), stages=listed(shape("Stage"))
        ),
        refuses={404: "nothing is recorded of it"},
    ),
    Route(
        "GET", "/events", "events", "The newest events, oldest first.",
        query={"since": free("an event's id"), "limit": LIMIT}, answer=listed(shape("Event")),
    ),
    Route(
        "GET", "/events/stream", "stream", "Server-sent events; Last-Event-ID or `since` goes on after it.",
        query={"since": free("an event's id"), "replay": whole(0, REPLAY_MOST)}, media="text/event-stream",
    ),
    Route(
        "POST", "/events/chat", "ingest_chat_turn", "A runtime says a turn of its own.",
        takes(
            {"peer": NAMED, "role": word("user", "assistant"), "text": line(MAX_TEXT_CHARS)},
            peer_id=ID,
            pane_id=PANE,
            session_id=ID,
            turn_id=ID,
            tool_calls=listed(loose(), most=TOOL_CALLS_MOST),
        ),
        answer=OK, refuses=NOT_YOURS,
    ),
    Route(
        "POST", "/events/chat_delta", "ingest_chat_delta", "A piece of a turn while it is made.",
        takes(
            {"peer": NAMED, "turn_id": NAMED, "chunk_index": whole()},
            role=word("user", "assistant"),
            kind=word("text", "tool_use"),
            text=line(MAX_TEXT_CHARS),
            tool_call=METADATA,
            is_final=FLAG,
            session_id=ID,
            peer_id=ID,
            pane_id=PANE,
        ),
        answer=OK, refuses=NOT_YOURS,
    ),
]  # fmt: skip
