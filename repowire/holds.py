"""Holds: a person keeps all mail from a peer for a while, or has one message go in now.

A hold is one more gate, the only one that a person closes and opens: it is kept in `holds` and, for those who lease and
queue, in memory. What it keeps is `held` and says so; nothing of it is lost.
"""

from functools import partial
from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, dead_letters, deliveries, peers, receipts, wire
from repowire.deliveries import Delivery
from repowire.errors import conflict, invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HELD, HELD_BY_USER, LEASED, QUEUED

MOST_SECONDS = 30 * 86_400.0
OUTCOME_SECONDS = 5.0  # how long a request waits to see what became of the message

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE holds (
    peer_id TEXT PRIMARY KEY, reason TEXT,
    held_at REAL NOT NULL,                       -- unix seconds
    until REAL                                   -- unix seconds; NULL: until it is released
) WITHOUT ROWID;
"""
]


class Hold(NamedTuple):
    """A row of `holds`."""

    peer_id: str
    reason: str | None
    held_at: float
    until: float | None

    def json(self) -> dict[str, Any]:
        """As a report shows it."""
        return {"reason": self.reason, "since": wire.moment(self.held_at), "until": wire.moment(self.until)}


# -- queries -------------------------------------------------------------------


def find(db: Connection, peer_id: str) -> Hold | None:
    """The hold on a peer, if there is one."""
    row = db.execute("SELECT * FROM holds WHERE peer_id = ?", (peer_id,)).fetchone()
    return Hold(*row) if row is not None else None


# -- rules ---------------------------------------------------------------------


def hold(change: Change, peer: Peer, reason: str | None, seconds: float | None) -> int:
    """From now on nothing is put in front of the peer; returns how many messages wait. The same again renews it."""
    until = change.now + seconds if seconds is not None else None
    change.db.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?)", (peer.peer_id, reason, change.now, until))
    change.mesh.doors.locked.add(peer.peer_id)
    rows = change.db.execute(
        "UPDATE deliveries SET state = 'held', reason = ? WHERE peer_id = ? AND state IN ('queued', 'held')"
        " RETURNING *",
        (HELD_BY_USER, peer.peer_id),
    ).fetchall()
    change.record("peer.held", peer_id=peer.peer_id, reason=reason, until=until)
    for one in sorted(Delivery.of(row) for row in rows):
        deliveries.say(change, "held", one, HELD_BY_USER)
    return len(rows)


def release(change: Change, peer: Peer, why: str) -> int:
    """Let its mail through again; returns how many messages wait. The same again changes nothing."""
    locked = peer.peer_id in change.mesh.doors.locked
    change.mesh.doors.locked.discard(peer.peer_id)
    if change.db.execute("DELETE FROM holds WHERE peer_id = ?", (peer.peer_id,)).rowcount == 0:
        if locked:  # by a hold that was lost with its turn
            deliveries.mail(change, peer.peer_id)
        return deliveries.depth(change.db, peer.peer_id)
    rows = change.db.execute(
        "UPDATE deliveries SET state = 'queued', reason = 'released'"
        " WHERE peer_id = ? AND state = 'held' AND reason = ? RETURNING *",
        (peer.peer_id, HELD_BY_USER),
    ).fetchall()
    change.record("peer.released", peer_id=peer.peer_id, reason=why)
    for one in sorted(Delivery.of(row) for row in rows):
        deliveries.say(change, "queued", one, "released")
    if (door := change.mesh.doors.of(peer.peer_id)) is not None:
        door.retry_at = 0.0
    deliveries.mail(change, peer.peer_id)
    return len(rows)


def deliver_now(change: Change, delivery: Delivery) -> Delivery:
    """Have one that waits go in before all others, past a hold and past the rest for typing hands, and no other gate.

    409 when it does not wait, or nothing leads to its peer.
    """
    if delivery.state not in (QUEUED, HELD):
        raise conflict("not_waiting", f"{delivery.delivery_id} is {delivery.state}", state=delivery.state)
    door = change.mesh.doors.of(delivery.peer_id)
    if door is None:
        hint = f"nothing leads to its peer now: `repowire peer doctor {delivery.peer_id}`"
        raise conflict("no_way_in", hint, peer_id=delivery.peer_id)
    taken = deliveries.lease_one(change, delivery.delivery_id, door.holder)
    now = taken._replace(frame='{"now":true,' + taken.frame[1:])  # for this time: not in the stored frame
    if door.receipts:
        door.in_flight[now.delivery_id] = now.trace
    else:
        door.unproved.append(change.now)
    change.after(partial(door.put, now))
    return now


def at_start(mesh: Mesh) -> None:
    """Know the holds again."""
    mesh.doors.locked = {row[0] for row in mesh.db.conn.execute("SELECT peer_id FROM holds")}


# -- loop ----------------------------------------------------------------------

WAKES = ("peer.held",)


def tick(mesh: Mesh) -> float:
    """Release what was held for a time that is over."""
    now = mesh.clock.now()
    due = mesh.db.conn.execute("SELECT peer_id FROM holds WHERE until <= ?", (now,)).fetchall()
    for (peer_id,) in due:
        with mesh.change() as change:
            if (peer := peers.find(change.db, peer_id)) is not None:
                release(change, peer, "its time is over")
    row = mesh.db.conn.execute("SELECT min(until) FROM holds").fetchone()
    return max(0.05, min(60.0, row[0] - now)) if row[0] is not None else 60.0


# -- wire ----------------------------------------------------------------------


async def post_hold(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    reason = body.optional_text("reason", max_chars=200)
    seconds = body.seconds("seconds", default=0.0, at_most=MOST_SECONDS) if body.has("seconds") else None
    if seconds is not None and seconds <= 0:
        raise invalid("seconds", "must be more than 0")
    with mesh.change() as change:
        peer = peers.resolve(change.db, request.match_info["name"], body.optional_identifier("circle"))
        callers.may_read(mesh, request, peer)
        waiting = hold(change, peer, reason, seconds)
    return wire.reply(_as_reply(mesh, peer, waiting))


async def post_release(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    with mesh.change() as change:
        peer = peers.resolve(change.db, request.match_info["name"], body.optional_identifier("circle"))
        callers.may_read(mesh, request, peer)
        waiting = release(change, peer, "released")
    return wire.reply(_as_reply(mesh, peer, waiting))


def _as_reply(mesh: Mesh, peer: Peer, waiting: int) -> dict[str, Any]:
    found = find(mesh.db.conn, peer.peer_id)
    named = {"peer_id": peer.peer_id, "display_name": peer.display_name}
    return {"ok": True, **named, "hold": found.json() if found else None, "waiting": waiting}


async def post_now(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    delivery_id = request.match_info["delivery_id"]
    with mesh.bus.listen(delivery_id) as nudge:
        with mesh.change() as change:
            delivery = deliveries.load(change.db, delivery_id)
            dead_letters.its_own(mesh, request, delivery)
            deliver_now(change, delivery)
        await mesh.on_disk()
        delivery = await _outcome(mesh, delivery_id, nudge)
    return wire.reply({"ok": True, "delivery_id": delivery_id, "state": delivery.state, "reason": delivery.reason})


async def _outcome(mesh: Mesh, delivery_id: str, nudge: Any) -> Delivery:
    """What became of it, for some seconds at most: whoever asked for now wants to know."""
    while True:
        receipts.note(mesh)
        delivery = deliveries.load(mesh.db.conn, delivery_id)
        if delivery.state != LEASED or mesh.bus.closed or not await nudge.wait(OUTCOME_SECONDS):
            return delivery


ROUTES = [
    web.post("/peers/{name}/hold", post_hold),
    web.post("/peers/{name}/release", post_release),
    web.post("/deliveries/{delivery_id}/now", post_now),
]
