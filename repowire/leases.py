"""Leases and terms of deliveries: what ran out is `unknown`, back in its mailbox, `expired`, or at last forgotten."""

from sqlite3 import Connection

from repowire import deliveries, receipts
from repowire.deliveries import KEPT_SECONDS, PICKUP, Delivery
from repowire.doors import Door
from repowire.mesh import Mesh
from repowire.protocol import EXPIRED, HELD, LEASED, QUEUED

UNFETCHED = "nobody fetched it in time"


def at_start(mesh: Mesh) -> None:
    """After a restart nothing tells whether a lease was written, save to a taker that remembers and comes back, or one
    that confirms, whose lease goes on.
    """
    with mesh.change() as change:
        for row in change.db.execute("SELECT * FROM deliveries WHERE state = 'leased'").fetchall():
            delivery = Delivery.of(row)
            if not (delivery.leased_by or "").startswith(("instance:", PICKUP)):
                deliveries.unknown(change, delivery, "the daemon stopped before a receipt came")


WAKES = ("delivery.stale",)


def tick(mesh: Mesh) -> float:
    """Leases that ran out are `unknown`, or back in the mailbox where their taker confirms; mail that nobody fetched in
    its time is `expired`.
    """
    receipts.note(mesh)
    now, lease_seconds = mesh.clock.now(), mesh.config.daemon.delivery_lease_seconds
    stale = mesh.db.conn.execute(
        "SELECT * FROM deliveries WHERE state = 'leased' AND leased_at <= ? LIMIT 500", (now - lease_seconds,)
    ).fetchall()
    late = mesh.db.conn.execute(
        "SELECT * FROM deliveries WHERE state IN ('queued', 'held') AND expires_at <= ? LIMIT 500", (now,)
    ).fetchall()
    if stale or late:
        unwritten = {one.delivery_id for door in mesh.doors for one in (*door.unwritten, *door.items)}
        with mesh.change() as change:
            for one in (Delivery.of(row) for row in stale):
                if one.delivery_id in unwritten:  # behind what a slow reader is being written: its lease begins then
                    change.db.execute("UPDATE deliveries SET leased_at = ? WHERE seq = ?", (now, one.seq))
                    if (door := mesh.doors.of(one.peer_id)) is not None and one.delivery_id not in door.in_flight:
                        door.unproved.append(now)
                elif (one.leased_by or "").startswith(PICKUP):
                    deliveries.release(change, [one], "not_confirmed")
                else:
                    deliveries.unknown(change, one, "no receipt came within the lease")
            for row in late:
                if deliveries.become(
                    change, Delivery.of(row), (QUEUED, HELD), EXPIRED, "nobody fetched it in time", closed_at=now
                ):
                    deliveries.say(change, "expired", Delivery.of(row), "nobody fetched it in time")
    _forget(mesh, now)
    for door in mesh.doors:
        if door.remembers:
            _recount(mesh.db.conn, door)
        elif door.unproved:
            door.unproved = [at for at in door.unproved if at > now - lease_seconds]  # the others are unknown by now
    return 0.0 if len(stale) == 500 or len(late) == 500 else _next(mesh, now, lease_seconds)


def _recount(db: Connection, door: Door) -> None:
    """A message of a turn that was lost is not in flight, and must not hold a place of the window."""
    for delivery_id in list(door.in_flight):
        delivery = deliveries.find(db, delivery_id)
        if delivery is None or delivery.state != LEASED:
            door.receipted(delivery_id)


def _forget(mesh: Mesh, now: float) -> None:
    """What ended is kept as long as the ask that it may be part of, and a day more."""
    config = mesh.config.daemon
    old = now - max(config.ask_ttl_seconds, config.delivery_queue_ttl_seconds) - KEPT_SECONDS
    oldest = mesh.db.conn.execute("SELECT created_at FROM deliveries ORDER BY seq LIMIT 1").fetchone()
    if oldest is not None and oldest[0] <= old:
        with mesh.change() as change:
            change.db.execute(
                "DELETE FROM deliveries WHERE created_at <= ?1 AND coalesce(closed_at, created_at) <= ?1"
                " AND state NOT IN ('queued', 'held', 'leased')",
                (old,),
            )


def _next(mesh: Mesh, now: float, lease_seconds: float) -> float:
    """Seconds until the next one runs out. What comes meanwhile tells nobody, and has one of these terms at least."""
    most = min(lease_seconds, mesh.config.daemon.delivery_queue_ttl_seconds, 60.0)
    row = mesh.db.conn.execute("SELECT min(leased_at) FROM deliveries WHERE state = 'leased'").fetchone()
    first = row[0] + lease_seconds - now if row[0] is not None else most
    row = mesh.db.conn.execute("SELECT min(expires_at) FROM deliveries WHERE state IN ('queued', 'held')").fetchone()
    return max(0.05, min(first, row[0] - now if row[0] is not None else most, most))
