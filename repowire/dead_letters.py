"""Dead letters: what died in a mailbox. Its sender is told once; it stays to be seen, retried or dropped.

A delivery dies as `expired` or `failed`. What is `unknown` is not dead: it may have arrived, and is never sent again.
How an ask ends is told by `replies`, so of an ask's delivery nothing more is said here.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from sqlite3 import Connection
from typing import Any

from aiohttp import web

from repowire import callers, deliveries, intake, peers, receipts, wire
from repowire.deliveries import STATES, Delivery
from repowire.errors import conflict, forbidden, too_many
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import EXPIRED, FAILED, HELD, HINT, QUEUED, UNKNOWN

DEAD = (FAILED, EXPIRED)
TOLD_CHARS = 150  # of the text of what died
TOLD_NAMES = 5  # recipients that a notice names
BATCH = 500  # told in one change

# -- queries -------------------------------------------------------------------


def _listed(
    db: Connection, peer_id: str | None, states: tuple[str, ...], *, dead: bool, most: int, before: int
) -> list[tuple[int, dict[str, Any]]]:
    """Deliveries to or from a peer, or all, newest first, with their seqs. Reads the table: for the reading thread."""
    words = ", ".join(f"'{state}'" for state in states)
    where = ["seq < :before", f"state IN ({words})"]
    if dead:
        where.append("dropped_at IS NULL")
    if peer_id is not None:
        where.append("(peer_id = :peer OR from_peer_id = :peer)")
    rows = db.execute(
        f"SELECT * FROM deliveries WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT :most",
        {"before": before, "peer": peer_id, "most": most},
    )
    return [(row[0], as_json(db, Delivery.of(row))) for row in rows.fetchall()]


# -- rules ---------------------------------------------------------------------


def revive(change: Change, delivery: Delivery, expires_at: float, most: int, reason: str) -> bool:
    """A dead one goes back into its mailbox, in its old place; False when it is not dead any more, 429 as `queue`.

    Of its next death its sender is told anew, save of a notice, which counts as told from its making on.
    """
    if deliveries.depth(change.db, delivery.peer_id) >= most:
        raise too_many("queue_full", f"{most} messages wait for this peer already", limit=most)
    back = change.db.execute(
        "UPDATE deliveries SET state = 'queued', reason = ?, expires_at = ?, closed_at = NULL, dropped_at = NULL,"
        " told_at = CASE WHEN told_at = created_at THEN told_at END"
        " WHERE delivery_id = ? AND state IN ('failed', 'expired')",
        (reason, expires_at, delivery.delivery_id),
    )
    if back.rowcount == 1:
        deliveries.say(change, "queued", delivery, reason)
        deliveries.mail(change, delivery.peer_id)
    return back.rowcount == 1


def retry(change: Change, mesh: Mesh, delivery: Delivery) -> Delivery:
    """Put a dead one back into its mailbox for another whole lifetime, in its old place.

    409 when it is not dead, or its ask ended with it; 429 when the mailbox is full.
    """
    if delivery.state not in DEAD:
        more = (
            "it may have arrived; send it anew if it may come twice" if delivery.state == UNKNOWN else "nothing to do"
        )
        raise conflict("not_dead", f"{delivery.delivery_id} is {delivery.state}: {more}", state=delivery.state)
    if delivery.kind == "ask":
        raise conflict("ask_closed", f"{delivery.trace} was closed with it: ask again", correlation_id=delivery.trace)
    config = mesh.config.daemon
    expires_at = change.now + config.delivery_queue_ttl_seconds
    revive(change, delivery, expires_at, config.delivery_queue_max_per_peer, "retried")
    return deliveries.load(change.db, delivery.delivery_id)


def drop(change: Change, delivery: Delivery, by: Peer) -> Delivery:
    """Take a dead one off the list, or one that still waits out of its mailbox; the same again changes nothing.

    Its sender is told unless he did it. 409 for an ask that still waits (it is closed by a decline) and for what left
    already.
    """
    if delivery.state in (QUEUED, HELD) and delivery.kind == "ask":
        raise conflict("ask_open", f"{delivery.trace} is an open ask: decline it", correlation_id=delivery.trace)
    dead = delivery.state in DEAD or deliveries.cancel(change, delivery.delivery_id, f"dropped by {by.display_name}")
    if not dead:
        raise conflict("already_sent", f"{delivery.delivery_id} is {delivery.state} already", state=delivery.state)
    change.db.execute(
        "UPDATE deliveries SET dropped_at = coalesce(dropped_at, :now), told_at = CASE WHEN from_peer_id = :by"
        " THEN coalesce(told_at, :now) ELSE told_at END WHERE delivery_id = :delivery",
        {"now": change.now, "by": by.peer_id, "delivery": delivery.delivery_id},
    )
    return deliveries.load(change.db, delivery.delivery_id)


# -- loop ----------------------------------------------------------------------

WAKES = ("delivery.expired", "delivery.failed")


def tick(mesh: Mesh) -> float:
    """Tell the senders of what died since; those of one broadcast make one notice."""
    while rows := mesh.db.conn.execute(f"{_UNTOLD} LIMIT {BATCH}").fetchall():
        with mesh.change() as change:
            for group in _groups(Delivery.of(row) for row in rows):
                _tell_sender(change, mesh, group)
            change.db.executemany(
                "UPDATE deliveries SET told_at = ? WHERE seq = ?", [(change.now, row[0]) for row in rows]
            )
    return 60.0


_UNTOLD = (
    "SELECT * FROM deliveries WHERE state IN ('failed', 'expired') AND told_at IS NULL AND kind != 'ask'"
    " ORDER BY trace, state, from_peer_id, seq"
)


def _groups(dead: Iterator[Delivery]) -> Iterator[list[Delivery]]:
    return (list(group) for _, group in groupby(dead, key=lambda one: (one.trace, one.from_peer_id, one.state)))


def _tell_sender(change: Change, mesh: Mesh, dead: list[Delivery]) -> None:
    one = dead[0]
    sender = peers.find(change.db, one.from_peer_id) if one.from_peer_id else None
    if sender is None:  # a stranger has no mailbox
        return
    known = [peers.find(change.db, each.peer_id) for each in dead]
    names = [f"@{peer.display_name}" for peer in known if peer is not None]
    more = f" and {len(names) - TOLD_NAMES} more" if len(names) > TOLD_NAMES else ""
    said = str(json.loads(one.frame).get("text") or "")
    short = said if len(said) <= TOLD_CHARS else f"{said[: TOLD_CHARS - 1]}…"
    which = one.trace if one.kind == "broadcast" else one.delivery_id
    head = f"[{one.kind} #{which} to {', '.join(names[:TOLD_NAMES])}{more} {one.state}]"
    notice = intake.queue(
        change,
        sender.peer_id,
        {
            "type": "notify",
            "from_peer": known[0].display_name if known[0] else one.peer_id,
            "to_peer": sender.display_name,
            "text": f"{head} {one.reason or 'nobody fetched it'}: {short}",
        },
        trace=one.trace,
        from_peer_id=one.peer_id,
        expires_at=change.now + mesh.config.daemon.delivery_queue_ttl_seconds,
        most=2**31,  # how something ended that was accepted: a full mailbox does not refuse it
        notice=True,
    )
    intake.tell(change, notice, leased=True)


# -- wire ----------------------------------------------------------------------


def as_json(db: Connection, delivery: Delivery) -> dict[str, Any]:
    """A delivery as GET /deliveries/{id} shows it."""
    frame = json.loads(delivery.frame)
    return {
        "delivery_id": delivery.delivery_id,
        "kind": delivery.kind,
        "trace": delivery.trace,
        "from_peer": frame.get("from_peer"),
        "from_peer_id": delivery.from_peer_id,
        "to_peer": deliveries.addressee(db, delivery, frame),
        "peer_id": delivery.peer_id,
        "state": delivery.state,
        "reason": delivery.reason,
        "attempts": delivery.attempts,
        **{
            name: wire.moment(getattr(delivery, name))
            for name in ("created_at", "expires_at", "leased_at", "handed_at", "seen_at", "closed_at")
        },
        "text": frame["text"].rpartition(HINT)[0] if delivery.kind == "ask" else frame.get("text"),
    }


def its_own(mesh: Mesh, request: web.Request, delivery: Delivery) -> Peer | None:
    """Who asks; 403 when it is an agent that neither sent it nor is to get it."""
    caller = callers.calling(mesh, request)
    if caller is not None and caller.peer_id not in (delivery.peer_id, delivery.from_peer_id):
        raise forbidden("not_your_delivery", f"{delivery.delivery_id} is neither to nor from {caller.display_name}")
    return caller


async def get_delivery(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    receipts.note(mesh)
    delivery = deliveries.load(mesh.db.conn, request.match_info["delivery_id"])
    its_own(mesh, request, delivery)
    return wire.reply(as_json(mesh.db.conn, delivery))


async def get_deliveries(request: web.Request) -> web.Response:
    """Newest first; `peer` to it or from it, `state` or `dead=true`, `limit`, `cursor`. An agent sees its own."""
    mesh = request.app[MESH]
    dead = wire.word(request, "dead", ("true", "false"), "false") == "true"
    state = wire.word(request, "state", STATES)
    most, before = wire.whole(request, "limit", default=50), wire.cursor(request)
    name = request.query.get("peer")
    peer = peers.resolve(mesh.db.conn, name) if name else callers.calling(mesh, request)
    if peer is not None:
        callers.may_read(mesh, request, peer)
    states = DEAD if dead else (state,) if state else STATES
    receipts.note(mesh)
    await mesh.committed()
    found = await mesh.db.read(
        lambda db: _listed(
            db,
            peer.peer_id if peer else None,
            states,
            dead=dead,
            most=most + 1,
            before=2**62 if before is None else before,
        )
    )
    return wire.reply(
        {
            "deliveries": [one for _, one in found[:most]],
            "next": wire.next_cursor(found[most - 1][0]) if len(found) > most else None,
        }
    )


async def post_retry(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    with mesh.change() as change:
        delivery = deliveries.load(change.db, request.match_info["delivery_id"])
        its_own(mesh, request, delivery)
        delivery = retry(change, mesh, delivery)
    return wire.reply(_as_reply(delivery))


async def delete_delivery(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    human = callers.human(mesh)
    with mesh.change() as change:
        delivery = deliveries.load(change.db, request.match_info["delivery_id"])
        delivery = drop(change, delivery, its_own(mesh, request, delivery) or human)
    return wire.reply(_as_reply(delivery))


def _as_reply(delivery: Delivery) -> dict[str, Any]:
    return {"ok": True, "delivery_id": delivery.delivery_id, "state": delivery.state, "reason": delivery.reason}


ROUTES = [
    web.get("/deliveries/{delivery_id}", get_delivery),
    web.get("/deliveries", get_deliveries),
    web.post("/deliveries/{delivery_id}/retry", post_retry),
    web.delete("/deliveries/{delivery_id}", delete_delivery),
]
