"""What a peer and its user said to each other, in the words of the document."""

from repowire.openapi.peers import CIRCLE, NO_PEER, TWO_PEERS
from repowire.openapi.words import (
    COUNT,
    FLAG,
    SHOWN,
    Route,
    Schema,
    both,
    free,
    listed,
    loose,
    maybe,
    record,
    shape,
    whole,
    word,
)
from repowire.protocol import BACKENDS

SESSION = {"session_id": free("of the runtime, or `rw-session-…`; default: all of the peer's, the newest first")}
REFUSES = {403: "another agent's", 404: NO_PEER, 409: TWO_PEERS}

_HISTORY = record(
    history_status=word("available", "unavailable", "unsupported"),
    history_backend=word(*BACKENDS),
    history_message=maybe(SHOWN),
    history_source=maybe(word("peer_path", "session_binding")),
    repowire_session_id=maybe(SHOWN),
    binding_status=word("bound", "unbound"),
    runtime_session_id=maybe(SHOWN),
)
_WHOSE = record(peer_id=SHOWN, peer_name=SHOWN, session_id=maybe(SHOWN))
_CALLS = listed(loose("name and input"))

SHAPES: dict[str, Schema] = {
    "Turn": record(
        role=word("user", "assistant"),
        text=SHOWN,
        timestamp=maybe(SHOWN),
        session_id=maybe(SHOWN),
        turn_id=maybe(SHOWN),
        tool_calls=_CALLS,
    ),
    "TimelineItem": record(
        id=SHOWN,
        kind=word("turn", "delta_group"),
        source=word("history", "realtime"),
        timestamp=maybe(SHOWN),
        session_id=maybe(SHOWN),
        turn_id=maybe(SHOWN),
        role=maybe(word("user", "assistant")),
        text=maybe(SHOWN),
        tool_calls=_CALLS,
        peer_id=maybe(SHOWN),
        peer=maybe(SHOWN),
        event_ids=listed(SHOWN),
    ),
    "TimelineMatch": record(
        cursor=SHOWN,
        target_id=SHOWN,
        item=shape("TimelineItem"),
        match=record(start=COUNT, end=COUNT, snippet=SHOWN),
    ),
    "Transcript": both(record(turns=listed(shape("Turn")), next_before=maybe(SHOWN)), _HISTORY),
    "Timeline": both(both(_WHOSE, _HISTORY), record(items=listed(shape("TimelineItem")))),
    "TimelineSearch": both(
        both(_WHOSE, _HISTORY),
        record(
            query=SHOWN,
            degraded=FLAG,
            degradation_message=maybe(SHOWN),
            results=listed(shape("TimelineMatch")),
        ),
    ),
}

ROUTES = [
    Route(
        "GET", "/peers/{name}/transcript", "transcript", "What a peer and its user said, the newest turn first.",
        query={
            **CIRCLE, **SESSION, "limit": whole(1, 500, "how many turns at most"),
            "before": free("the `next_before` of an earlier page"),
        },
        answer=shape("Transcript"), refuses=REFUSES,
    ),
    Route(
        "GET", "/peers/{name}/timeline", "timeline", "The same with what is heard just now, in order of time.",
        query={**CIRCLE, **SESSION, "limit": whole(1, 500, "how many items at most")},
        answer=shape("Timeline"), refuses=REFUSES,
    ),
    Route(
        "GET", "/peers/{name}/timeline/search", "search_timeline", "Find words in it, in capitals or not.",
        query={
            **CIRCLE, **SESSION, "q": free("1 to 200 characters; required"),
            "limit": whole(1, 100, "how many results at most"),
        },
        answer=shape("TimelineSearch"), refuses=REFUSES,
    ),
]  # fmt: skip
