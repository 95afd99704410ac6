"""Messages: notify, to one peer; broadcast, to all that are connected; and the list of all that was said.

A message is what one peer has in front of it: an ask, a notify, a reply, or its copy of a broadcast (wire.md 16, row
33).
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import (
    asks,
    callers,
    deliveries,
    idempotency,
    intake,
    mailboxes,
    names,
    peers,
    receipts,
    sessions,
    traces,
    wire,
)
from repowire.clock import new_id
from repowire.deliveries import Delivery
from repowire.errors import Refusal, forbidden, invalid, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import BYPASS_ROLES, DEFAULT_CIRCLE, LEASED, MAX_TEXT_CHARS, is_identifier

EXCLUDED_MOST = 1000


class Note(NamedTuple):
    """A notify as it was posted."""

    from_peer: str
    to_peer: str
    text: str
    circle: str | None = None
    bypass_circle: bool = False
    attachments: tuple[dict[str, Any], ...] = ()


KINDS_SAID = ("ask", "notify", "broadcast", "reply")

# -- queries -----------------------------------------------------------------


class Sought(NamedTuple):
    """What to list; `before` is a seq, `since` unix seconds."""

    peer_id: str | None
    circle: str | None
    kind: str | None
    state: str | None
    since: float
    before: int
    most: int


_KINDS_AS_SQL = {
    "ask": "kind = 'ask'",
    "broadcast": "kind = 'broadcast'",
    "reply": "kind = 'notify' AND trace GLOB 'ask-*'",
    "notify": "kind = 'notify' AND NOT trace GLOB 'ask-*'",
}


def _sought(db: Connection, sought: Sought) -> list[tuple[int, dict[str, Any]]]:
    """Messages, newest first, each with its seq. Reads the table, so it is for the reading thread."""
    where = ["seq < :before", "created_at >= :since"]
    if sought.peer_id is not None:
        where.append("(peer_id = :peer_id OR from_peer_id = :peer_id)")
    if sought.circle is not None:
        where.append("peer_id IN (SELECT peer_id FROM peers WHERE circle = :circle)")
    if sought.kind is not None:
        where.append(_KINDS_AS_SQL[sought.kind])
    if sought.state is not None:
        where.append("state = :state")
    rows = db.execute(
        f"SELECT * FROM deliveries WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT :most", sought._asdict()
    ).fetchall()
    return [(row[0], as_message(db, Delivery.of(row))) for row in rows]


def as_message(db: Connection, delivery: Delivery) -> dict[str, Any]:
    """A message as the list shows it: its delivery's state, and of an ask what came of it."""
    ask = asks.find(db, delivery.trace) if delivery.trace.startswith("ask-") else None
    frame = json.loads(delivery.frame)
    kind = "reply" if delivery.kind == "notify" and ask else delivery.kind
    message = {
        "id": delivery.trace if delivery.kind == "ask" else delivery.delivery_id,
        "kind": kind,
        "from_peer": frame.get("from_peer"),
        "from_peer_id": delivery.from_peer_id,
        "to_peer": deliveries.addressee(db, delivery, frame),
        "to_peer_id": delivery.peer_id,
        "text": frame.get("text"),
        "attachments": frame.get("attachments", []),
        "state": delivery.state,
        "reason": delivery.reason,
        "created_at": wire.moment(delivery.created_at),
        "delivery_id": delivery.delivery_id,
        "trace_id": delivery.trace,
    }
    if delivery.kind == "ask" and ask:
        message |= {
            "text": ask.text,
            "ask_state": "open" if ask.closed_at is None else "closed",
            "close_reason": ask.close_reason,
            "reply": ask.reply,
        }
    return message


# -- rules -------------------------------------------------------------------


def notify(change: Change, mesh: Mesh, note: Note) -> tuple[Delivery, Peer | None, Peer]:
    """Put a note into the recipient's mailbox; returns its delivery, the sender if known, and the recipient."""
    target = names.meant(change, note.to_peer, note.circle)
    sender = peers.sender(change, note.from_peer, target.circle)
    peers.check_circle(sender, target, bypass=note.bypass_circle)
    config = mesh.config.daemon
    from_peer = sender.display_name if sender else note.from_peer
    frame: dict[str, Any] = {
        "type": "notify",
        "from_peer": from_peer,
        "to_peer": target.display_name,
        "text": note.text,
    }
    if note.attachments:
        frame["attachments"] = list(note.attachments)
    delivery = intake.queue(
        change,
        target.peer_id,
        frame,
        from_peer_id=sender.peer_id if sender else None,
        expires_at=change.now + config.delivery_queue_ttl_seconds,
        most=config.delivery_queue_max_per_peer,
    )
    change.record(
        "notify.accepted",
        delivery_id=delivery.delivery_id,
        **{"from": from_peer, "to": target.display_name},
        from_peer_id=delivery.from_peer_id,
        to_peer_id=target.peer_id,
        text=note.text,
        by=intake.straight_by(delivery),
        attachments=list(note.attachments) or None,
    )
    intake.tell(change, delivery)
    return delivery, sender, target


class Shout(NamedTuple):
    """A broadcast as it was posted; `exclude` are names or ids."""

    from_peer: str
    text: str
    exclude: frozenset[str] = frozenset()
    bypass_circle: bool = False


class Spread(NamedTuple):
    """What became of a broadcast: the names of all who were to hear it by id, their deliveries, and whose mailbox
    refused one.
    """

    broadcast_id: str
    hearers: dict[str, str]
    sent: list[Delivery]
    failed: list[tuple[str, Refusal]]


def broadcast(change: Change, mesh: Mesh, shout: Shout) -> Spread:
    """A delivery of its own for everybody who is connected, save the sender, the excluded and other circles.

    An unknown sender reaches every circle. One full mailbox holds back nobody else.
    """
    sender = peers.sender(change, shout.from_peer, DEFAULT_CIRCLE)
    from_peer, from_peer_id = (sender.display_name, sender.peer_id) if sender else (shout.from_peer, None)
    config, broadcast_id = mesh.config.daemon, new_id("bcast")
    hearers = _hearers(change, mesh, shout, sender)
    made, refused = intake.queue_all(
        change,
        list(hearers),
        {"type": "broadcast", "from_peer": from_peer, "text": shout.text},
        trace=broadcast_id,
        from_peer_id=from_peer_id,
        expires_at=change.now + config.delivery_queue_ttl_seconds,
        most=config.delivery_queue_max_per_peer,
    )
    spread = Spread(
        broadcast_id,
        hearers,
        made,
        [(hearers[peer_id], refusal) for peer_id, refusal in refused],
    )
    change.record(
        "broadcast.accepted",
        trace=spread.broadcast_id,
        **{"from": from_peer},
        from_peer_id=from_peer_id,
        text=shout.text,
        exclude=sorted(shout.exclude),
        reached=len(spread.sent),
    )
    leased = [one for one in made if one.state == LEASED]
    if leased:  # one line for all: a thousand of them are most of what a broadcast costs
        change.record(
            "broadcast.leased",
            trace=broadcast_id,
            deliveries=[one.delivery_id for one in leased],
            peers=[one.peer_id for one in leased],
        )
    for one in made:
        if one.state != LEASED:
            intake.tell(change, one)
    return spread


def _hearers(change: Change, mesh: Mesh, shout: Shout, sender: Peer | None) -> dict[str, str]:
    """Who is to hear it: name by id, in order of registration."""
    free = sender is None or sender.everywhere or shout.bypass_circle
    circle_of_sender, open_to = sender.circle if sender else None, mesh.doors.of
    deaf = shout.exclude | {sender.peer_id} if sender else shout.exclude
    return {
        peer_id: name
        for peer_id, name, circle, role in _present(change, mesh)
        if open_to(peer_id) is not None
        and not (name in deaf or peer_id in deaf)
        and (free or circle == circle_of_sender or role in BYPASS_ROLES)
    }


def _present(change: Change, mesh: Mesh) -> Iterable[list[str]]:
    """Id, name, circle and role of everybody who is not gone, in order of registration.

    From memory where no event of a peer came since; as one text, which is a sixth of what the rows would take.
    """
    if (text := mesh.memo.get("present")) is None:
        rows = change.db.execute(
            "SELECT peer_id, display_name, circle, role FROM peers"
            " WHERE hidden_at IS NULL AND retired_at IS NULL ORDER BY seq"
        )
        text = mesh.memo["present"] = "\n".join(map("\t".join, rows))  # neither stands in a name or a circle
    return [line.split("\t") for line in text.split("\n")] if text else ()


# -- wire --------------------------------------------------------------------

# wire.md 1.5: a refused notify has a flat body of its own
_REFUSED = {404: ("not_found", "unknown_peer"), 409: ("conflict", "ambiguous_peer"), 403: ("forbidden", "forbidden"),
            429: ("unavailable", "queue_full")}  # fmt: skip


async def post_notify(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    from_peer = callers.spoken_for(mesh, request, body.optional_text("from_peer", max_chars=128))
    note = Note(
        from_peer=from_peer if from_peer is not None else callers.human(mesh).peer_id,
        to_peer=body.text("to_peer"),
        text=body.text("text", max_chars=MAX_TEXT_CHARS),
        circle=body.optional_identifier("circle"),
        bypass_circle=body.flag("bypass_circle"),
        attachments=tuple(body.records("attachments")),
    )
    claim = idempotency.claimed(request, body.fields, note.from_peer)
    try:
        with mesh.change() as change:
            if (made := idempotency.first(change, claim)) is not None:
                return wire.reply(_accepted(mesh, *_notified(change, made), note))
            delivery, sender, target = notify(change, mesh, note)
            idempotency.keep(change, claim, delivery.delivery_id)
    except Refusal as refusal:
        raise _flat(mesh, refusal, note) from None
    delivery = await mailboxes.written(mesh, delivery)
    return wire.reply(_accepted(mesh, delivery, sender, target, note))


def _notified(change: Change, delivery_id: str) -> tuple[Delivery, Peer | None, Peer]:
    """What `notify` returned when it made this delivery, as far as it still stands."""
    delivery = deliveries.load(change.db, delivery_id)
    sender = peers.find(change.db, delivery.from_peer_id) if delivery.from_peer_id else None
    return delivery, sender, peers.load(change.db, delivery.peer_id)


def _flat(mesh: Mesh, refusal: Refusal, note: Note) -> Refusal:
    if refusal.status not in _REFUSED or refusal.error == "idempotency_conflict":
        return refusal
    sender = peers.find(mesh.db.conn, note.from_peer)
    state, reason = _REFUSED[refusal.status]
    body = {
        "ok": False,
        "status": state,
        "delivery_state": state,
        "delivered": False,
        "queued": False,
        "reason": reason,
        "detail": {"error": refusal.error, "hint": refusal.hint, **refusal.facts},
        "from_peer_name": sender.display_name if sender else note.from_peer,
        "to_peer_name": note.to_peer,
    }
    return Refusal(refusal.status, refusal.error, refusal.hint, body=body)


def _accepted(mesh: Mesh, delivery: Delivery, sender: Peer | None, target: Peer, note: Note) -> dict[str, Any]:
    words = standing(delivery)
    to_session = sessions.current_id(mesh, target.peer_id)
    return {
        "ok": True,
        "status": "sent" if words["delivered"] else "queued",
        **words,
        "from_peer_id": sender.peer_id if sender else None,
        "from_peer_name": sender.display_name if sender else note.from_peer,
        "to_peer_id": target.peer_id,
        "to_peer_name": target.display_name,
        "repowire_session_id": to_session,
        "from_repowire_session_id": sessions.current_id(mesh, sender.peer_id) if sender else None,
        "to_repowire_session_id": to_session,
        "hook_delivery": None,
        "delivery_id": delivery.delivery_id,
    }


def standing(delivery: Delivery) -> dict[str, Any]:
    """How a note that was just accepted stands, in the published words."""
    words = deliveries.standing(delivery)
    return {**words, "reason": "transport_delivered" if words["delivered"] else "queued_delivery"}


async def post_broadcast(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    from_peer = callers.spoken_for(mesh, request, body.optional_text("from_peer", max_chars=128))
    excluded = body.members("exclude", most=EXCLUDED_MOST)
    if not all(isinstance(one, str) for one in excluded):
        raise invalid("exclude", "must be a list of names")
    shout = Shout(
        from_peer=from_peer if from_peer is not None else callers.human(mesh).peer_id,
        text=body.text("text", max_chars=MAX_TEXT_CHARS),
        exclude=frozenset(excluded),
        bypass_circle=body.flag("bypass_circle"),
    )
    with mesh.change() as change:
        spread = broadcast(change, mesh, shout)
    await mesh.committed()  # the disk has work while the reply is written
    head = json.dumps(
        {
            "ok": True,
            "sent_to": [spread.hearers[one.peer_id] for one in spread.sent],
            "failed": [{"peer": name, "error": refusal.hint} for name, refusal in spread.failed],
            "broadcast_id": spread.broadcast_id,
        }
    )
    # as text at once: a thousand dictionaries cost three times as much, while the copies wait to be written
    copies = ", ".join(
        [
            f'{{"peer_id": {encode_basestring_ascii(one.peer_id)}, "delivery_id": "{one.delivery_id}",'
            f' "state": "{one.state}"}}'
            for one in spread.sent
        ]
    )
    return wire.raw(f'{head[:-1]}, "deliveries": [{copies}]}}'.encode())


async def post_message(request: web.Request) -> web.Response:
    """What the route of its `kind` does."""
    kind = (await wire.read(request)).choice("kind", tuple(_POSTS))
    if kind is None:
        raise invalid("kind", f"is required: {', '.join(_POSTS)}")
    return await _POSTS[kind](request)


_POSTS = {"ask": asks.post_ask, "notify": post_notify, "broadcast": post_broadcast}


async def get_messages(request: web.Request) -> web.Response:
    mesh, db = request.app[MESH], request.app[MESH].db.conn
    most, before = wire.whole(request, "limit", default=50), wire.cursor(request)
    name = request.query.get("peer")
    peer = peers.resolve(db, name) if name else callers.calling(mesh, request)  # an agent sees its own
    if peer is not None:
        callers.may_read(mesh, request, peer)
    circle = request.query.get("circle")
    if circle is not None and not is_identifier(circle):
        raise invalid("circle", "must be 1 to 64 of the letters, digits and . _ -")
    sought = Sought(
        peer_id=peer.peer_id if peer else None,
        circle=circle,
        kind=wire.word(request, "kind", KINDS_SAID),
        state=wire.word(request, "state", deliveries.STATES),
        since=_since(request),
        before=2**62 if before is None else before,
        most=most + 1,
    )
    receipts.note(mesh)
    await mesh.committed()
    rows = await mesh.db.read(lambda reader: _sought(reader, sought))
    return wire.reply(
        {
            "messages": [message for _, message in rows[:most]],
            "next": wire.next_cursor(rows[most - 1][0]) if len(rows) > most else None,
        }
    )


def _since(request: web.Request) -> float:
    """The moment from which on to list, in unix seconds; ISO-8601 on the wire, UTC where it names no zone."""
    text = request.query.get("since")
    if text is None:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise invalid("since", "must be a moment in ISO-8601, such as 2026-11-25T09:30:00+00:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def get_message(request: web.Request) -> web.Response:
    """One message, by its delivery's id or its ask's, with its trace."""
    mesh, wanted = request.app[MESH], request.match_info["message_id"]
    receipts.note(mesh)
    ask = asks.find(mesh.db.conn, wanted)
    delivery = deliveries.find(mesh.db.conn, ask.delivery_id if ask else wanted)
    if delivery is None:
        raise not_found("message", wanted)
    caller = callers.calling(mesh, request)
    if caller is not None and caller.peer_id not in (delivery.peer_id, delivery.from_peer_id):
        raise forbidden("not_your_message", f"{wanted} is neither to nor from {caller.display_name}")
    await mesh.committed()
    lines = await traces.lines_of(mesh, delivery.trace)
    return wire.reply({**as_message(mesh.db.conn, delivery), "trace": traces.stages_of(lines)})


ROUTES = [
    web.post("/notify", post_notify),
    web.post("/broadcast", post_broadcast),
    web.post("/messages", post_message),
    web.get("/messages", get_messages),
    web.get("/messages/{message_id}", get_message),
]
