"""Asks, in the words of the document."""

from repowire.ask_many import CHILDREN_MOST, TIMEOUT_MOST_SECONDS
from repowire.choices import OUTCOMES
from repowire.deliveries import STATES
from repowire.openapi.peers import TWO_PEERS
from repowire.openapi.words import (
    ATTACHMENTS,
    COUNT,
    CURSOR,
    FLAG,
    IDENTIFIER_TEXT,
    LIMIT,
    MOMENT,
    NEXT,
    OK,
    PANE,
    SHOWN,
    TEXT,
    Route,
    Schema,
    both,
    free,
    line,
    listed,
    loose,
    maybe,
    record,
    seconds,
    shape,
    takes,
    word,
)
from repowire.queries import TIMEOUT_CAP_SECONDS
from repowire.replies import WAIT_CAP_SECONDS

TO: Schema = {"to_peer": line(about="a peer's id or name", least=1), "text": TEXT}
SENDER: Schema = {
    "from_peer": line(128, "default: the agent that calls, else the human"),
    "circle": IDENTIFIER_TEXT,
    "bypass_circle": FLAG,
}
IF_OFFLINE = word("queue", "refuse")
QUESTION = loose("kind (acknowledge, choice, text), options, prompt, timeout_seconds, default_answer, …: see /answer")
CORRELATION_ID = line(64, least=1)
NO_ASK, NOT_ASKED = "no such ask", "an agent that was not asked"
UNREACHED = {
    403: "it is in another circle, or `from_peer` is somebody else",
    404: "no such peer",
    409: f"{TWO_PEERS}; or the Idempotency-Key was used for something else",
    429: "the mailbox is full; nothing was taken",
}
STANDING = record(delivery_state=word("queued", "delivered"), delivered=FLAG, queued=FLAG, state=word(*STATES))
ONE_OF_TWO = {"peer_id": free("a peer's id or name"), "pane_id": free("a tmux pane, such as %42")}
DIRECTION = word("inbound", "outbound", "both")

SHAPES: dict[str, Schema] = {
    "Asked": both(
        record(
            correlation_id=SHOWN,
            error=maybe(SHOWN),
            to_peer=SHOWN,
            to_peer_id=SHOWN,
            delivery_id=SHOWN,
        ),
        STANDING,
    ),
    "Acked": record(STANDING["properties"], ok=FLAG),
    "Waited": record(
        correlation_id=SHOWN,
        status=word("resolved", "pending"),
        reply=maybe(SHOWN),
        outcome=maybe(SHOWN),
        option_id=maybe(SHOWN),
        message=maybe(SHOWN),
        close_reason=maybe(SHOWN),
        responder=maybe(SHOWN),
        attachments=listed(loose()),
    ),
    "OpenAsk": record(
        correlation_id=SHOWN,
        from_peer=SHOWN,
        to_peer=SHOWN,
        text=SHOWN,
        created_at=MOMENT,
        direction=word("inbound", "outbound"),
    ),
    "Ask": record(
        correlation_id=SHOWN,
        from_peer=SHOWN,
        to_peer=SHOWN,
        from_peer_id=maybe(SHOWN),
        to_peer_id=SHOWN,
        text=SHOWN,
        reply_to=maybe(SHOWN),
        parent_id=maybe(SHOWN),
        created_at=MOMENT,
        state=word("open", "closed"),
        closed_at=maybe(MOMENT),
        close_reason=maybe(SHOWN),
        reply=maybe(SHOWN),
        replied_by=maybe(SHOWN),
        question=maybe(loose("its structured question")),
        outcome=maybe(word(*OUTCOMES)),
        option_id=maybe(SHOWN),
        delivery_state=maybe(word(*STATES)),
        delivery_reason=maybe(SHOWN),
    ),
    "AskedMany": record(
        parent_id=SHOWN,
        children=listed(
            record(
                peer=SHOWN,
                correlation_id=maybe(SHOWN),
                delivered=FLAG,
                state=maybe(word(*STATES)),
                error=maybe(SHOWN),
            )
        ),
    ),
    "Rollup": record(
        parent_id=SHOWN,
        from_peer=SHOWN,
        text=SHOWN,
        created_at=MOMENT,
        deadline=MOMENT,
        state=word("pending", "partial", "complete"),
        timed_out=FLAG,
        rollup=record(total=COUNT, acked=COUNT, replied=COUNT, pending=COUNT, failed=COUNT),
        children=listed(
            record(
                peer=SHOWN,
                peer_id=maybe(SHOWN),
                correlation_id=maybe(SHOWN),
                status=word("acked", "replied", "pending", "failed"),
                reply=maybe(SHOWN),
                close_reason=maybe(SHOWN),
                error=maybe(SHOWN),
            )
        ),
    ),
    "Queried": record(
        {"correlation_id": SHOWN},
        text=maybe(SHOWN),
        error=maybe(SHOWN),
        status=maybe(word("busy", "offline")),
    ),
}

ROUTES = [
    Route(
        "POST", "/ask", "ask", "Ask a peer; the ask stays open until it is acked.",
        takes(TO, **SENDER, reply_to=line(64), attachments=ATTACHMENTS, if_offline=IF_OFFLINE,
              question=QUESTION),
        answer=shape("Asked"), refuses={**UNREACHED, 503: "nobody is there; if_offline `queue` keeps it"}, keyed=True,
    ),
    Route(
        "POST", "/ask-many", "ask_many", "Ask several peers the same; who cannot be asked is a child with an error.",
        takes(
            {"to_peers": listed(line(128, least=1), least=1, most=CHILDREN_MOST), "text": TEXT},
            **SENDER,
            attachments=ATTACHMENTS,
            if_offline=IF_OFFLINE,
            timeout_seconds=seconds(TIMEOUT_MOST_SECONDS, "how long the answers are waited for; default 300"),
        ),
        answer=shape("AskedMany"),
        refuses={403: UNREACHED[403], 409: UNREACHED[409]}, keyed=True,
    ),
    Route(
        "GET", "/ask-many/{parent_id}", "ask_many_result", "What came of the asks of one POST /ask-many.",
        answer=shape("Rollup"), refuses={403: "another agent's", 404: "none, or its asks ended over a day ago"},
    ),
    Route(
        "POST", "/ack", "ack", "Close an ask with a reply or bare. The same again is no error.",
        takes(
            {"correlation_id": CORRELATION_ID},
            message=line(TEXT["maxLength"]),
            attachments=ATTACHMENTS,
        ),
        answer=shape("Acked"),
        refuses={403: NOT_ASKED, 404: NO_ASK, 409: "a question that is over", 410: "it was closed in another way"},
    ),
    Route(
        "POST", "/decline", "decline", "Close an ask that will not be answered; the asker gets the reason.",
        takes({"correlation_id": CORRELATION_ID, "reason": TEXT}),
        answer=shape("Acked"), refuses={403: NOT_ASKED, 404: NO_ASK, 410: "it was closed in another way"},
    ),
    Route(
        "POST", "/response", "respond", "Answer as the peer of a pane: the ask that is named, else its oldest one.",
        takes({"pane_id": {**PANE, "minLength": 1}, "text": TEXT}, correlation_id=line(64)),
        answer=shape("Acked"),
        refuses={403: "another's ask", 404: "no peer holds the pane, or no such ask", 410: "it is closed"},
    ),
    Route(
        "POST", "/asks/{correlation_id}/wait", "wait_ask", "Wait for the reply; `pending` when the time is up.",
        takes(
            peer_id=line(128, "the asker"),
            timeout_seconds=seconds(None, f"default 45, cut to {WAIT_CAP_SECONDS:g}"),
        ),
        body_needed=False, answer=shape("Waited"), refuses={403: "not the asker", 404: NO_ASK},
    ),
    Route(
        "POST", "/asks/{correlation_id}/picked_up", "ask_picked_up", "Published, and without effect.",
        takes(), answer=OK,
    ),
    Route(
        "POST", "/asks/{correlation_id}/mark_reminded", "ask_reminded", "Published, and without effect.",
        takes(), answer=OK,
    ),
    Route(
        "GET", "/asks/pending", "pending_asks", "Open asks of one peer, newest first. Exactly one of peer_id, pane_id.",
        query={**ONE_OF_TWO, "direction": DIRECTION, "limit": LIMIT, "cursor": CURSOR},
        answer=record({"next": NEXT}, asks=listed(shape("OpenAsk"))),
        refuses={400: "both or none of the two, or another direction", 403: "another agent's", 404: "no such peer",
                 409: TWO_PEERS},
    ),
    Route(
        "GET", "/asks/history", "asks_history", "Asks, open and closed, newest first.",
        query={
            "peer_id": free("default: the agent that calls, else all"),
            "direction": DIRECTION,
            "state": word("open", "closed", "answered"),
            "limit": LIMIT,
            "cursor": CURSOR,
        },
        answer=record(asks=listed(shape("Ask")), next=NEXT),
        refuses={403: "another agent's", 404: "no such peer", 409: TWO_PEERS},
    ),
    Route(
        "POST", "/query", "query", "Ask and wait in one request: 200 with text or error.",
        takes(TO, **SENDER, timeout=seconds(None, f"default 300, cut to {TIMEOUT_CAP_SECONDS:g}")),
        answer=shape("Queried"), refuses={403: "`from_peer` is somebody else"},
    ),
]  # fmt: skip
