"""Replies: how an ask ends, by an ack or by itself, and how that reaches who asked.

A reply is stored with the ask in the change that closes it, and then goes to whoever waits, or into the asker's
mailbox; it is never left where nobody looks (wire.md 16, row 13).
"""

import json
from typing import Any, NamedTuple

from aiohttp import web

from repowire import asks, callers, deliveries, mailboxes, peers, wire
from repowire.asks import Ask, wait_topic
from repowire.deliveries import Delivery
from repowire.errors import forbidden, gone
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN, MAX_TEXT_CHARS

WAIT_SECONDS, WAIT_CAP_SECONDS = 45.0, 50.0  # wire.md 1.4
CLOSED_SECONDS = 24 * 3600.0  # how long a closed ask can still be read

# -- rules -------------------------------------------------------------------


class Reply(NamedTuple):
    """What an ack says; nothing at all is a bare ack."""

    text: str | None = None
    attachments: tuple[dict[str, Any], ...] = ()

    @property
    def bare(self) -> bool:
        return not self.text and not self.attachments


def ack(change: Change, mesh: Mesh, correlation_id: str, reply: Reply, by: str | None = None) -> Delivery | None:
    """Close an ask; returns the delivery of its reply, if one goes into a mailbox.

    The same ack again changes nothing; another reply is gone (410), so that none is lost silently.
    """
    deliveries.take_receipts(change)
    reason = "ack" if reply.bare else "ack_with_msg"
    awaited = mesh.bus.heard(wait_topic(correlation_id))
    row = change.db.execute(
        _ACK, (change.now, reason, reply.text, _packed(reply), by, int(reply.bare or not awaited), correlation_id)
    ).fetchone()
    if row is None:
        _same_reply(asks.load(change.db, correlation_id), reply)
        return None
    ask = Ask(*row)
    change.record(
        "ask.acked",
        correlation_id=correlation_id,
        **{"from": ask.replied_by, "to": ask.from_peer},
        from_peer_id=ask.to_peer_id,
        to_peer_id=ask.from_peer_id,
        peer_id=ask.to_peer_id,
        status=reason,
        text=reply.text,
    )
    deliveries.answered(change, ask.delivery_id)
    if awaited:
        change.ring(wait_topic(correlation_id))
        return None
    return None if reply.bare else push_reply(change, mesh, ask)


_ACK = (
    "UPDATE asks SET closed_at = ?, close_reason = ?, reply = ?, reply_attachments = ?,"
    " replied_by = coalesce(?, to_peer), reply_at_rest = ? WHERE correlation_id = ? AND closed_at IS NULL RETURNING *"
)


def _same_reply(ask: Ask, reply: Reply) -> None:
    """An ack of a closed ask: nothing to do when it says the same, else 410."""
    if not reply.bare and (reply.text, _packed(reply)) != (ask.reply, ask.reply_attachments):
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
    return _tell_asker(
        change, mesh, ask, asker, f"[ack #{ask.correlation_id} from @{ask.replied_by or ask.to_peer}] {ask.reply or ''}"
    )


def _tell_asker(change: Change, mesh: Mesh, ask: Ask, asker: Peer, text: str) -> Delivery:
    frame = {"type": "notify", "from_peer": ask.to_peer, "to_peer": asker.display_name, "text": text}
    if ask.reply_attachments:
        frame["attachments"] = json.loads(ask.reply_attachments)
    # A reply is the end of something that was accepted: a full mailbox does not refuse it.
    delivery = deliveries.queue(
        change,
        asker.peer_id,
        frame,
        trace=ask.correlation_id,
        from_peer_id=ask.to_peer_id,
        expires_at=change.now + mesh.config.daemon.delivery_queue_ttl_seconds,
        most=2**31,
    )
    deliveries.tell(change, delivery, leased=True)
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

WAKES = ("ask.stale",)


def at_start(mesh: Mesh) -> None:
    """A reply that a waiter was about to take when the daemon died goes to the asker's mailbox."""
    with mesh.change() as change:
        for row in change.db.execute("SELECT * FROM asks WHERE reply_at_rest = 0").fetchall():
            push_reply(change, mesh, Ask(*row))


def tick(mesh: Mesh) -> float:
    """Asks that nobody answered in their time end, and the asker hears of it; old closed ones go."""
    db, now = mesh.db.conn, mesh.clock.now()
    for row in db.execute(f"SELECT * {_OPEN} AND expires_at <= ? LIMIT 100", (now,)).fetchall():
        with mesh.change() as change:
            end(change, mesh, Ask(*row), "expired", "nobody answered it in its time")
    oldest = db.execute("SELECT created_at FROM asks ORDER BY seq LIMIT 1").fetchone()
    if oldest is not None and oldest[0] <= now - CLOSED_SECONDS:
        with mesh.change() as change:
            change.db.execute("DELETE FROM asks WHERE closed_at <= ?", (now - CLOSED_SECONDS,))
    first = db.execute(f"SELECT min(expires_at) {_OPEN}").fetchone()[0]
    return 60.0 if first is None else max(0.05, min(60.0, first - now))


_OPEN = "FROM asks INDEXED BY asks_open_to WHERE closed_at IS NULL"


# -- wire --------------------------------------------------------------------


async def post_ack(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    correlation_id = body.text("correlation_id", max_chars=64)
    reply = Reply(body.optional_text("message", max_chars=MAX_TEXT_CHARS) or None, tuple(body.records("attachments")))
    caller = callers.calling(mesh, request)
    with mesh.change() as change:
        ask = asks.load(change.db, correlation_id)
        if caller is not None and caller.peer_id != ask.to_peer_id:
            raise forbidden(
                "not_the_asked", f"{correlation_id} was asked of {ask.to_peer}, you are {caller.display_name}"
            )
        delivery = ack(change, mesh, correlation_id, reply)
    if delivery is not None:
        return wire.reply({"ok": True, **deliveries.standing(await mailboxes.written(mesh, delivery))})
    return wire.reply({"ok": True})


async def post_wait(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    correlation_id = request.match_info["correlation_id"]
    body = await wire.read(request, empty_ok=True)
    seconds = body.seconds("timeout_seconds", default=WAIT_SECONDS, at_most=WAIT_CAP_SECONDS, cap=True)
    ask = asks.load(mesh.db.conn, correlation_id)
    _may_wait(mesh, request, body, ask)
    ask = await asks.wait(mesh, correlation_id, max(0.0, seconds) if seconds else WAIT_SECONDS)
    if request.transport is None or request.transport.is_closing():
        # The waiter left: its reply is pushed, unless another waiter is there to take it.
        if ask.closed_at is not None and not ask.reply_at_rest and not mesh.bus.heard(wait_topic(correlation_id)):
            with mesh.change() as change:
                push_reply(change, mesh, ask)
    elif not ask.reply_at_rest:
        with mesh.change() as change:
            taken(change, correlation_id)
    return wire.reply(_waited(ask))


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
    closed = ask.closed_at is not None
    return {
        "correlation_id": ask.correlation_id,
        "status": "resolved" if closed else "pending",
        "reply": ask.reply,
        "outcome": None,
        "option_id": None,
        "message": None,
        "close_reason": ask.close_reason,
        "responder": (ask.replied_by or ask.to_peer) if closed else None,
        "attachments": json.loads(ask.reply_attachments) if ask.reply_attachments else [],
    }


ROUTES = [
    web.post("/ack", post_ack),
    web.post("/asks/{correlation_id}/wait", post_wait),
]
