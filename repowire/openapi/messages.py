"""Messages and their deliveries, in the words of the document."""

from repowire.deliveries import STATES
from repowire.messages import EXCLUDED_MOST, KINDS_SAID
from repowire.openapi.asks import IF_OFFLINE, ONE_OF_TWO, QUESTION, SENDER, STANDING, TO, UNREACHED
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
    shape,
    takes,
    whole,
    word,
)
from repowire.pickups import MAX_BATCH, OUTCOMES

STATE = word(*STATES)
FROM = {"from_peer": SENDER["from_peer"], "bypass_circle": FLAG}
EXCLUDE = listed({"type": "string"}, most=EXCLUDED_MOST, about="names or ids")
NOT_YOURS = "an agent asks for another's"

SHAPES: dict[str, Schema] = {
    "Notified": both(
        record(
            ok=FLAG,
            status=word("sent", "queued"),
            reason=word("transport_delivered", "queued_delivery"),
            from_peer_id=maybe(SHOWN),
            from_peer_name=SHOWN,
            to_peer_id=SHOWN,
            to_peer_name=SHOWN,
            repowire_session_id=maybe(SHOWN),
            from_repowire_session_id=maybe(SHOWN),
            to_repowire_session_id=maybe(SHOWN),
            hook_delivery=maybe(loose()),
            delivery_id=SHOWN,
        ),
        STANDING,
    ),
    "NotNotified": record(
        ok=FLAG,
        status=SHOWN,
        delivery_state=SHOWN,
        delivered=FLAG,
        queued=FLAG,
        reason=SHOWN,
        detail=loose("error, hint and facts as in every refusal"),
        from_peer_name=SHOWN,
        to_peer_name=SHOWN,
    ),
    "Spread": record(
        ok=FLAG,
        sent_to=listed(SHOWN),
        failed=listed(record(peer=SHOWN, error=SHOWN)),
        broadcast_id=SHOWN,
        deliveries=listed(record(peer_id=SHOWN, delivery_id=SHOWN, state=STATE)),
    ),
    "Message": record(
        {"ask_state": word("open", "closed"), "close_reason": maybe(SHOWN), "reply": maybe(SHOWN)},
        id=SHOWN,
        kind=word(*KINDS_SAID),
        from_peer=maybe(SHOWN),
        from_peer_id=maybe(SHOWN),
        to_peer=maybe(SHOWN),
        to_peer_id=SHOWN,
        text=maybe(SHOWN),
        attachments=listed(loose()),
        state=STATE,
        reason=maybe(SHOWN),
        created_at=MOMENT,
        delivery_id=SHOWN,
        trace_id=SHOWN,
    ),
    "Delivery": record(
        delivery_id=SHOWN,
        kind=SHOWN,
        trace=SHOWN,
        from_peer=maybe(SHOWN),
        from_peer_id=maybe(SHOWN),
        to_peer=maybe(SHOWN),
        peer_id=SHOWN,
        state=STATE,
        reason=maybe(SHOWN),
        attempts=COUNT,
        created_at=MOMENT,
        expires_at=maybe(MOMENT),
        leased_at=maybe(MOMENT),
        handed_at=maybe(MOMENT),
        seen_at=maybe(MOMENT),
        closed_at=maybe(MOMENT),
        text=maybe(SHOWN),
    ),
    "PickedUp": record(
        {"attempts": COUNT},
        delivery_id=SHOWN,
        kind=SHOWN,
        from_peer=maybe(SHOWN),
        to_peer=maybe(SHOWN),
        text=maybe(SHOWN),
        created_at=MOMENT,
        expires_at=maybe(MOMENT),
        correlation_id=maybe(SHOWN),
        attachments=listed(loose()),
    ),
    "Standing": record(ok=FLAG, delivery_id=SHOWN, state=STATE, reason=maybe(SHOWN)),
}
_MESSAGE = SHAPES["Message"]

ROUTES = [
    Route(
        "POST", "/notify", "notify", "Tell a peer something that wants no answer; who is away gets it later.",
        takes(TO, **SENDER, attachments=ATTACHMENTS), answer=shape("Notified"), refuses=UNREACHED, keyed=True,
        refused={"anyOf": [shape("NotNotified"), shape("Refusal")]},
    ),
    Route(
        "POST", "/broadcast", "broadcast", "Tell all that are connected.",
        takes({"text": TEXT}, **FROM, exclude=EXCLUDE),
        answer=shape("Spread"), refuses={403: "`from_peer` is somebody else"},
    ),
    Route(
        "POST", "/messages", "post_message", "With a `kind`: what POST /ask, /notify or /broadcast does.",
        {
            "oneOf": [
                takes({"kind": word("ask"), **TO}, **SENDER, reply_to=line(64), attachments=ATTACHMENTS,
                      if_offline=IF_OFFLINE, question=QUESTION),
                takes({"kind": word("notify"), **TO}, **SENDER, attachments=ATTACHMENTS),
                takes({"kind": word("broadcast"), "text": TEXT}, **FROM, exclude=EXCLUDE),
            ]
        },
        answer={"anyOf": [shape("Asked"), shape("Notified"), shape("Spread")]},
        refuses={**UNREACHED, 503: "an ask, and nobody is there"}, keyed=True,
        refused={"anyOf": [shape("NotNotified"), shape("Refusal")]},
    ),
    Route(
        "GET", "/messages", "messages", "All that was said, newest first.",
        query={
            "peer": free("to it or from it; default: the agent that calls, else all"),
            "circle": {**IDENTIFIER_TEXT, "description": "of the recipient"},
            "kind": word(*KINDS_SAID),
            "state": STATE,
            "since": free("a moment in ISO-8601; UTC where it names no zone"),
            "limit": LIMIT,
            "cursor": CURSOR,
        },
        answer=record(messages=listed(shape("Message")), next=NEXT),
        refuses={403: NOT_YOURS, 404: "no such peer", 409: TWO_PEERS},
    ),
    Route(
        "GET", "/messages/{message_id}", "message", "One message and its trace, by the delivery's id or the ask's.",
        answer=both(_MESSAGE, record(trace=listed(shape("Stage")))),
        refuses={403: NOT_YOURS, 404: "no such message"},
    ),
    Route(
        "GET", "/deliveries", "deliveries", "Deliveries, newest first.",
        query={
            "peer": free("to it or from it; default: the agent that calls, else all"),
            "state": STATE,
            "dead": word("true", "false"),
            "limit": LIMIT,
            "cursor": CURSOR,
        },
        answer=record(deliveries=listed(shape("Delivery")), next=NEXT),
        refuses={403: NOT_YOURS, 404: "no such peer", 409: TWO_PEERS},
    ),
    Route(
        "GET", "/deliveries/{delivery_id}", "delivery", "One delivery and what is proven of it.",
        answer=shape("Delivery"), refuses={404: "no such delivery"},
    ),
    Route(
        "GET", "/deliveries/pending", "pick_up", "Take what waits. Exactly one of peer_id and pane_id.",
        query={**ONE_OF_TWO, "max_results": whole(-MAX_BATCH, MAX_BATCH), "confirm": word("true", "false")},
        answer=record({"lease": maybe(SHOWN), "lease_expires_at": maybe(MOMENT)}, deliveries=listed(shape("PickedUp"))),
        refuses={400: "both or none of the two", 403: NOT_YOURS, 404: "no such peer", 409: TWO_PEERS},
    ),
    Route(
        "POST", "/deliveries/confirm", "confirm", "Say what became of what was picked up.",
        takes(
            {"lease": line(128, least=1)},
            delivery_ids=listed({"type": "string"}, most=MAX_BATCH),
            status=word(*OUTCOMES),
            detail=line(1000),
        ),
        answer=record(ok=FLAG, confirmed=listed(SHOWN)), refuses={410: "nothing is leased under this token any more"},
    ),
    Route(
        "POST", "/deliveries/{delivery_id}/retry", "retry_delivery", "Put a dead one back into its mailbox.",
        answer=shape("Standing"), refuses={403: NOT_YOURS, 404: "no such delivery", 409: "it is not dead"},
    ),
    Route(
        "DELETE", "/deliveries/{delivery_id}", "drop_delivery", "Take a dead or a waiting one away.",
        answer=shape("Standing"), refuses={403: NOT_YOURS, 404: "no such delivery", 409: "it was sent already"},
    ),
]  # fmt: skip
