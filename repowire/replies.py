"""Replies: how an ask ends, by an ack, a decline or by itself, and how that reaches who asked.

A reply is stored with the ask in the change that closes it, and then goes to whoever waits, or into the asker's
mailbox; it is never left where nobody looks (wire.md 16, row 13).
"""

import json
from typing import Any, NamedTuple

from aiohttp import web

from repowire import asks, callers, choices, deliveries, intake, mailboxes, peers, questions, receipts, wire
from repowire.asks import Ask, Draft, wait_topic
from repowire.choices import Answer
from repowire.deliveries import Delivery
from repowire.errors import Refusal, forbidden, gone, invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN, MAX_TEXT_CHARS

WAIT_SECONDS, WAIT_CAP_SECONDS = 45.0, 50.0  # wire.md 1.4
CLOSED_SECONDS = 24 * 3600.0  # how long a closed ask can still be read

DECLINED = "declined"  # a close reason: the one who was asked will not answer
NOBODY = "nobody"  # who answered a question whose time was up: it ends with its default, and no word of its being read

# -- rules -------------------------------------------------------------------


class Reply(NamedTuple):
    """What an ack says; nothing at all is a bare ack."""

    text: str | None = None
    attachments: tuple[dict[str, Any], ...] = ()
    answer: Answer | None = None  # of a structured question

    @property
    def bare(self) -> bool:
        return not self.text and not self.attachments


def ack(change: Change, mesh: Mesh, correlation_id: str, reply: Reply, by: str | None = None) -> Delivery | None:
    """Close an ask; returns the delivery of its reply, if one goes into a mailbox.

    The same ack again changes nothing; another reply is gone (410), so that none is lost silently. Of a structured
    question it is the answer: bare it acknowledges, with words it answers, 422 where one has to choose.
    """
    return _answer(change, mesh, correlation_id, reply, "ack" if reply.bare else "ack_with_msg", by)


def decline(change: Change, mesh: Mesh, correlation_id: str, reason: str, by: str | None = None) -> Delivery | None:
    """Close an ask that its recipient will not answer; the asker gets the reason the way it would get a reply.

    The same decline again changes nothing; 410 when the ask was closed in another way.
    """
    return _answer(change, mesh, correlation_id, Reply(reason), DECLINED, by)


def answer(
    change: Change,
    mesh: Mesh,
    correlation_id: str,
    said: Answer,
    attachments: tuple[dict[str, Any], ...] = (),
    by: str | None = None,
) -> Delivery | None:
    """Answer an ask's structured question; the asker is told in words. The same again changes nothing, 410 otherwise.

    422 for a plain ask, and for an answer that does not fit.
    """
    asked = asks.load(change.db, correlation_id)
    question = asked.structured
    if question is None:
        raise invalid("correlation_id", f"{correlation_id} has no structured question: ack it instead")
    choices.check(question.kind, question.options, said)
    return _say(change, mesh, asked, said, attachments, by)


def _say(
    change: Change, mesh: Mesh, ask: Ask, said: Answer, attachments: tuple[dict[str, Any], ...], by: str | None
) -> Delivery | None:
    return _answer(change, mesh, ask.correlation_id, _in_words(ask, said, attachments), "answered", by)


def _in_words(ask: Ask, said: Answer, attachments: tuple[dict[str, Any], ...]) -> Reply:
    question = ask.structured
    return Reply(choices.said(question, said) if question else None, attachments, said)


def check_reply_to(change: Change, draft: Draft, asker: Peer) -> None:
    """Refuse an ask that is to answer another one and would not: 404 and 422, with what to do instead."""
    if draft.reply_to is None:
        return
    first, name = asks.load(change.db, draft.reply_to), draft.reply_to
    try:
        target = peers.meant(change, draft.to_peer, draft.circle).peer_id
    except Refusal as no:
        if no.status != 404:
            raise
        target = ""  # such as the human before its first use, who has asked nothing either
    if (first.to_peer_id, first.from_peer_id) != (asker.peer_id, target):
        way = f"from {first.to_peer} to {first.from_peer}"
        raise invalid("reply_to", f"{name} is answered only by an ask {way}; ask without reply_to")
    if first.closed_at is not None:
        raise invalid("reply_to", f"{name} is closed already ({first.close_reason}); ask without reply_to")


def _answer(
    change: Change, mesh: Mesh, correlation_id: str, reply: Reply, reason: str, by: str | None
) -> Delivery | None:
    """What its recipient makes of an ask, by the one guarded UPDATE: the first wins."""
    awaited = mesh.bus.heard(wait_topic(correlation_id))
    row = change.db.execute(
        _ANSWER,
        (change.now, reason, reply.text, _packed(reply), reply.answer.as_text() if reply.answer else None, by,
         int(reply.bare or not awaited), correlation_id, reply.answer is not None or reason == DECLINED),
    ).fetchone()  # fmt: skip
    if row is None:
        return _acked_already(change, mesh, asks.load(change.db, correlation_id), reply, reason, by)
    ask = Ask(*row)
    handed = receipts.take(change, None if by == NOBODY else ask.delivery_id)
    change.record(
        "ask.closed" if reason == DECLINED or by == NOBODY else "ask.acked",
        correlation_id=correlation_id,
        **{"from": ask.replied_by, "to": ask.from_peer},
        from_peer_id=ask.to_peer_id,
        to_peer_id=ask.from_peer_id,
        status=reason,
        reason="timed_out" if by == NOBODY else reason if reason == DECLINED else None,
        text=reply.text,
        outcome=reply.answer.outcome if reply.answer else None,
        option_id=reply.answer.option_id if reply.answer else None,
    )
    if by == NOBODY:
        deliveries.cancel(change, ask.delivery_id, "timed_out")
    else:
        deliveries.answered(change, ask.delivery_id, handed=handed)
    if awaited:
        change.ring(wait_topic(correlation_id))
        return None
    return None if reply.bare else push_reply(change, mesh, ask)


_ANSWER = (
    "UPDATE asks SET closed_at = ?, close_reason = ?, reply = ?, reply_attachments = ?,"
    " answer = ?, replied_by = coalesce(?, to_peer), reply_at_rest = ? WHERE correlation_id = ? AND closed_at IS NULL"
    " AND (question IS NULL OR ?) RETURNING *"  # an ack of a question has to be read as an answer first
)


def _acked_already(change: Change, mesh: Mesh, ask: Ask, reply: Reply, reason: str, by: str | None) -> Delivery | None:
    """Of a question an ack is the answer; what is closed stays as it is."""
    question = ask.structured
    if question is not None and reply.answer is None and reason != DECLINED and not (reply.bare and ask.closed_at):
        reply, reason = _in_words(ask, choices.by_ack(question, reply.text), reply.attachments), "answered"
    if ask.closed_at is None:
        return _answer(change, mesh, ask.correlation_id, reply, reason, by)
    _same_answer(ask, reply, reason)
    return None


def _same_answer(ask: Ask, reply: Reply, reason: str) -> None:
    """The answer of a closed ask: nothing to do when it says the same, or is a bare ack, else 410."""
    said = (reply.text, _packed(reply), reply.answer)
    known = (ask.reply, ask.reply_attachments, ask.answered)
    nothing = reply.bare and reply.answer is None
    if not nothing and (said != known or (reason == DECLINED) != (ask.close_reason == DECLINED)):
        raise gone(
            "ask_closed",
            f"{ask.correlation_id} was closed already ({ask.close_reason}); the asker got the first reply",
            closed_at=wire.moment(ask.closed_at),
            close_reason=ask.close_reason,
        )


def _packed(reply: Reply) -> str | None:
    return json.dumps(reply.attachments) if reply.attachments else None


def push_reply(change: Change, mesh: Mesh, ask: Ask) -> Delivery | None:
    """Send the reply to the asker as a notify. A stranger has no mailbox; the human's replies wait with the ask."""
    if not ask.reply_at_rest:
        taken(change, ask.correlation_id)
    asker = peers.remembered(change, ask.from_peer_id) if ask.from_peer_id else None
    if asker is None or (asker.role == HUMAN and mesh.doors.of(asker.peer_id) is None):
        return None
    head = f"ack #{ask.correlation_id} from @{ask.replied_by or ask.to_peer}"
    if ask.close_reason == DECLINED:
        head = f"ask #{ask.correlation_id} to @{ask.to_peer} {DECLINED}"
    return _tell_asker(change, mesh, ask, asker, f"[{head}] {ask.reply or ''}")


def _tell_asker(change: Change, mesh: Mesh, ask: Ask, asker: Peer, text: str) -> Delivery:
    frame = {"type": "notify", "from_peer": ask.to_peer, "to_peer": asker.display_name, "text": text}
    if ask.reply_attachments:
        frame["attachments"] = json.loads(ask.reply_attachments)
    # A reply is the end of something that was accepted: a full mailbox does not refuse it.
    delivery = intake.queue(
        change,
        asker.peer_id,
        frame,
        trace=ask.correlation_id,
        from_peer_id=ask.to_peer_id,
        expires_at=change.now + mesh.config.daemon.delivery_queue_ttl_seconds,
        most=2**31,
    )
    intake.tell(change, delivery, leased=True)
    return delivery


def end(change: Change, mesh: Mesh, ask: Ask, reason: str, words: str) -> None:
    """Close an ask that nobody will answer, and tell the asker once how it ended (wire.md 16, row 26)."""
    if not asks.close(change, ask.correlation_id, reason):
        return
    change.record("ask.closed", correlation_id=ask.correlation_id, reason=reason)
    deliveries.cancel(change, ask.delivery_id, reason)
    change.ring(wait_topic(ask.correlation_id))
    asker = peers.find(change.db, ask.from_peer_id) if ask.from_peer_id else None
    if asker is not None and asker.role != HUMAN:
        _tell_asker(change, mesh, ask, asker, f"[ask #{ask.correlation_id} to @{ask.to_peer} {reason}] {words}")


def taken(change: Change, correlation_id: str) -> None:
    """A waiter has the reply in hand."""
    change.db.execute("UPDATE asks SET reply_at_rest = 1 WHERE correlation_id = ?", (correlation_id,))


# -- loop --------------------------------------------------------------------

WAKES = (asks.SOON,)


def at_start(mesh: Mesh) -> None:
    """A reply that a waiter was about to take when the daemon died goes to the asker's mailbox."""
    with mesh.change() as change:
        for row in change.db.execute("SELECT * FROM asks WHERE reply_at_rest = 0").fetchall():
            push_reply(change, mesh, Ask(*row))


def tick(mesh: Mesh) -> float:
    """Asks that nobody answered in their time end, and the asker hears of it; old closed ones go."""
    db, now = mesh.db.conn, mesh.clock.now()
    for row in db.execute(f"SELECT * {_OPEN} AND expires_at <= ? LIMIT 100", (now,)).fetchall():
        ask = Ask(*row)
        question = ask.structured
        with mesh.change() as change:
            if question is not None and question.timeout_seconds is not None:
                _say(change, mesh, ask, question.in_time(), (), NOBODY)
            else:
                end(change, mesh, ask, "expired", "nobody answered it in its time")
    oldest = db.execute("SELECT created_at FROM asks ORDER BY seq LIMIT 1").fetchone()
    if oldest is not None and oldest[0] <= now - CLOSED_SECONDS:
        with mesh.change() as change:
            change.db.execute(_FORGET, (now - CLOSED_SECONDS,))
    first = db.execute(f"SELECT min(expires_at) {_OPEN}").fetchone()[0]
    return asks.LOOKED_AT_SECONDS if first is None else max(0.05, min(asks.LOOKED_AT_SECONDS, first - now))


# One of an ask-many stays as long as its sisters are open, since the roll-up reads it
_FORGET = (
    "DELETE FROM asks WHERE closed_at <= ? AND (parent_id IS NULL OR NOT EXISTS"
    " (SELECT 1 FROM asks AS sister WHERE sister.parent_id = asks.parent_id AND sister.closed_at IS NULL))"
)
_OPEN = "FROM asks INDEXED BY asks_open_to WHERE closed_at IS NULL"


# -- wire --------------------------------------------------------------------


async def post_ack(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    correlation_id = body.text("correlation_id", max_chars=64)
    reply = Reply(body.optional_text("message", max_chars=MAX_TEXT_CHARS) or None, tuple(body.records("attachments")))
    caller = callers.calling(mesh, request)
    try:
        with mesh.change() as change:
            _may_answer(change, caller, correlation_id)
            delivery = ack(change, mesh, correlation_id, reply)
    except Refusal as refusal:
        if refusal.status != 404 or (question := questions.find(mesh.db.conn, correlation_id)) is None:
            raise
        said = choices.by_ack(question.asked(), reply.text)
        return questions.answer_from(request, question, said, questions.answerer(request))
    return await _closed(mesh, delivery)


async def post_answer(request: web.Request) -> web.Response:
    """The answer to a structured question: of an ask, or of one that stands alone."""
    mesh = request.app[MESH]
    body = await wire.read(request)
    correlation_id = body.text("correlation_id", max_chars=64)
    said, attachments = choices.read_answer(body), tuple(body.records("attachments"))
    who = questions.answerer(
        request, body.optional_identifier("surface"), body.optional_text("digest", max_chars=questions.DIGEST_CHARS)
    )
    if (question := questions.find(mesh.db.conn, correlation_id)) is not None:
        if attachments:
            raise invalid("attachments", "are not taken by a question that stands alone")
        return questions.answer_from(request, question, said, who)
    caller = callers.calling(mesh, request)
    with mesh.change() as change:
        _may_answer(change, caller, correlation_id)
        delivery = answer(change, mesh, correlation_id, said, attachments)
    return await _closed(mesh, delivery)


async def post_decline(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    correlation_id, reason = body.text("correlation_id", max_chars=64), body.text("reason", max_chars=MAX_TEXT_CHARS)
    caller = callers.calling(mesh, request)
    with mesh.change() as change:
        _may_answer(change, caller, correlation_id)
        delivery = decline(change, mesh, correlation_id, reason)
    return await _closed(mesh, delivery)


async def post_response(request: web.Request) -> web.Response:
    """The legacy answer to a query, by pane: an ack of the ask that is named, else of the oldest open one."""
    mesh = request.app[MESH]
    body = await wire.read(request)
    pane_id, text = body.text("pane_id", max_chars=64), body.text("text", max_chars=MAX_TEXT_CHARS)
    correlation_id = body.optional_text("correlation_id", max_chars=64)
    peer = peers.of_pane(mesh.db.conn, pane_id)
    callers.may_read(mesh, request, peer)
    with mesh.change() as change:
        if correlation_id is None:
            oldest = asks.oldest_to(change.db, peer.peer_id)
            correlation_id = oldest.correlation_id if oldest else None
        if correlation_id is None:
            return wire.reply({"ok": True})
        _may_answer(change, peer, correlation_id)
        delivery = ack(change, mesh, correlation_id, Reply(text))
    return await _closed(mesh, delivery)


def _may_answer(change: Change, caller: Peer | None, correlation_id: str) -> None:
    """404 for an unknown ask; 403 for an agent that was not asked. The human may answer every ask."""
    if caller is None:
        return  # whether there is one is found by the UPDATE
    ask = asks.load(change.db, correlation_id)
    if caller.peer_id != ask.to_peer_id:
        raise forbidden("not_the_asked", f"{correlation_id} was asked of {ask.to_peer}, you are {caller.display_name}")
    question = ask.structured
    if question is not None and question.is_permission:
        raise forbidden("humans_only", f"{correlation_id} is a tool permission: a person answers it, and no agent")


async def _closed(mesh: Mesh, delivery: Delivery | None) -> web.Response:
    if delivery is None:
        return wire.reply({"ok": True})
    return wire.reply({"ok": True, **deliveries.standing(await mailboxes.written(mesh, delivery))})


async def post_wait(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    correlation_id = request.match_info["correlation_id"]
    body = await wire.read(request, empty_ok=True)
    seconds = body.seconds("timeout_seconds", default=WAIT_SECONDS, at_most=WAIT_CAP_SECONDS, cap=True)
    ask = asks.load(mesh.db.conn, correlation_id)
    _may_wait(mesh, request, body, ask)
    ask = await asks.wait(mesh, correlation_id, max(0.0, seconds) if seconds else WAIT_SECONDS)
    hand_over(mesh, request, ask)
    return wire.reply(_waited(ask))


def hand_over(mesh: Mesh, request: web.Request, ask: Ask) -> None:
    """After a wait the reply is in the hand of who waited; where he left it is pushed, unless another waits for it."""
    if request.transport is None or request.transport.is_closing():
        if ask.closed_at is not None and not ask.reply_at_rest and not mesh.bus.heard(wait_topic(ask.correlation_id)):
            with mesh.change() as change:
                push_reply(change, mesh, ask)
    elif not ask.reply_at_rest:
        with mesh.change() as change:
            taken(change, ask.correlation_id)


def _may_wait(mesh: Mesh, request: web.Request, body: wire.Body, ask: Ask) -> None:
    asker = callers.spoken_for(mesh, request, body.optional_text("peer_id", max_chars=128))
    if asker not in (None, ask.from_peer, ask.from_peer_id):
        raise forbidden(
            "not_the_asker",
            f"only {ask.from_peer} waits for this answer",
            correlation_id=ask.correlation_id,
            asker=ask.from_peer,
        )


def _waited(ask: Ask) -> dict[str, Any]:
    closed, said = ask.closed_at is not None, ask.answered
    return {
        "correlation_id": ask.correlation_id,
        "status": "resolved" if closed else "pending",
        "reply": ask.reply,
        "outcome": said.outcome if said else None,
        "option_id": said.option_id if said else None,
        "message": said.message if said else None,
        "close_reason": ask.close_reason,
        "responder": (ask.replied_by or ask.to_peer) if closed else None,
        "attachments": json.loads(ask.reply_attachments) if ask.reply_attachments else [],
    }


ROUTES = [
    web.post("/ack", post_ack),
    web.post("/answer", post_answer),
    web.post("/decline", post_decline),
    web.post("/response", post_response),
    web.post("/asks/{correlation_id}/wait", post_wait),
]
