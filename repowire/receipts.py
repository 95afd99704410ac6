"""Receipts: what is proved of a message that was sent.

Every receipt comes through one door, `receipt`, late, double and wrong ones too; `seen` comes from the runtime alone.
What was sent and not receipted is `leased`, and after its lease `unknown`; see `leases`.
"""

import math
import time
from sqlite3 import Connection

from repowire import deliveries
from repowire.deliveries import AS_HANDED, RETRY_MOST_SECONDS, SENT_SECONDS, Delivery
from repowire.mesh import Change, Mesh
from repowire.protocol import HELD, LEASED, UNKNOWN


def receipt(
    change: Change, delivery_id: str, status: str, detail: str | None = None, *, peer_id: str, by: str | None = None
) -> None:
    """The one door for receipts, late, double and wrong ones too.

    `injected` proves `handed`; `held`, `rejected` and `failed` say that nothing was injected, so the message goes back
    into the mailbox as `held` with the reason. Only the recipient may give one, and none makes a state weaker. `by` is
    the taker, where it was not the peer's door.
    """
    take(change)
    delivery, door = deliveries.find(change.db, delivery_id), change.mesh.doors.of(peer_id)
    if delivery is None or delivery.peer_id != peer_id:
        return
    deliveries.say_sent(change, delivery_id)
    if door is not None:
        door.receipted(delivery_id)
    if status == "injected":
        if change.db.execute(_HANDED, (change.now, delivery_id)).rowcount == 1:
            deliveries.say(change, "handed", delivery, by=by or (door.way if door is not None else "socket"))
            change.db.execute("UPDATE peers SET handed_at = ? WHERE peer_id = ?", (change.now, peer_id))
    elif deliveries.become(change, delivery, (LEASED, UNKNOWN), HELD, detail or status):
        deliveries.say(change, "held", delivery, detail or status, status=status)
        change.db.execute("UPDATE peers SET failed_at = ? WHERE peer_id = ?", (change.now, peer_id))
        if door is not None and by is None:
            soon = RETRY_MOST_SECONDS if door.watches else min(RETRY_MOST_SECONDS, 2.0 ** min(delivery.attempts, 10))
            door.retry_at = change.now + soon
            deliveries.mail(change, peer_id)


def note(mesh: Mesh) -> None:
    """Note the receipts that came meanwhile, and what was sent and has none."""
    if mesh.doors.receipts or unsaid_until(mesh) <= time.monotonic():
        with mesh.change() as change:
            take(change)


def unsaid_until(mesh: Mesh) -> float:
    """When it is to be said that the first was sent of those that have no receipt, in monotonic seconds; or never."""
    return next((since + SENT_SECONDS for _, _, since in mesh.doors.sent.values()), math.inf)


def take(change: Change, answered: str | None = None) -> bool:
    """Note what was sent and the receipts that came before this change, so that the order of events is the true one.

    Whether one is of the delivery that this change makes `answered`, and with it its row what a receipt makes of it.
    """
    while unsaid_until(change.mesh) <= time.monotonic():
        deliveries.say_sent(change, next(iter(change.mesh.doors.sent)))
    receipts = change.mesh.doors.receipts
    if not receipts:
        return False
    change.mesh.doors.receipts = []
    others = [(change.now, delivery_id) for delivery_id, _, _ in receipts if delivery_id != answered]
    if others:
        change.db.executemany(_HANDED, others)
    for delivery_id, trace, door in receipts:
        deliveries.note(change, "handed", delivery_id, trace, door.peer_id, by=door.way)
        door.handed_at = change.now
    return len(others) < len(receipts)


_HANDED = (
    f"UPDATE deliveries SET state = 'handed', reason = NULL{AS_HANDED}"
    " WHERE delivery_id = ?2 AND state IN ('queued', 'held', 'leased', 'unknown')"
)


def seen(change: Change, peer_id: str, delivery_id: str, by: str) -> bool:
    """The runtime showed the message's id, which is the proof that it was read; `by` is what showed it.

    True when that is news. Whatever was believed of it before, it is never sent again.
    """
    take(change)
    change.mesh.doors.sent.pop(delivery_id, None)  # seen proves that it was sent
    row = change.db.execute(_SEEN, (change.now, delivery_id, peer_id)).fetchone()
    if row is None:
        return False
    delivery = Delivery.of(row)
    deliveries.say(change, "seen", delivery, by=by)
    if (door := change.mesh.doors.of(peer_id)) is not None:
        door.receipted(delivery_id)
    return True


_SEEN = (
    "UPDATE deliveries SET state = 'seen', reason = NULL, seen_at = ? WHERE delivery_id = ? AND peer_id = ?"
    " AND state IN ('queued', 'held', 'leased', 'handed', 'unknown') RETURNING *"
)


def unshown(db: Connection, peer_id: str) -> list[Delivery]:
    """What a peer's channel or hook was given and its runtime never showed, in order. Reads the whole table."""
    rows = db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('handed', 'unknown')"
        " AND (leased_by GLOB 'channel:*' OR leased_by GLOB 'hook:*') ORDER BY seq",
        (peer_id,),
    )
    return [Delivery.of(row) for row in rows]


def given_since(db: Connection, peer_id: str, since: float) -> list[Delivery]:
    """What a peer was given or showed since a moment, in order."""
    rows = db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('leased', 'handed', 'seen', 'unknown')"
        " AND max(leased_at, coalesce(handed_at, 0), coalesce(seen_at, 0)) >= ? ORDER BY seq",
        (peer_id, since),
    )
    return [Delivery.of(row) for row in rows]


def unprinted(db: Connection, peer_id: str) -> list[Delivery]:
    """What a peer's hooks were given and have not receipted, in order."""
    found = []
    for state in (LEASED, UNKNOWN):  # each has an index
        found += db.execute(
            f"SELECT * FROM deliveries WHERE peer_id = ? AND state = '{state}' AND leased_by GLOB 'hook:*'", (peer_id,)
        ).fetchall()
    return sorted(Delivery.of(row) for row in found)
