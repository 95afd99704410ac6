"""Succession: what becomes of the mail and the open asks of a peer whose identity ended.

Who comes back as itself needs none of this. An identity that ended (retired, or no longer listed and offline) has a
*successor* when a live peer goes on with its runtime session, or holds its pane of the same tmux server with the same
backend and folder: what was open moves there, each item once. Without one it stays, since a session that was left is
often resumed, until the identity ended *for good*: at once when it was unregistered by hand, and when its tombstone
passes (72 h) where it was retired. Then its open asks are closed and its mail fails, and each sender is told. What
waits for a peer that is only hidden lapses in its own time.
"""

import json
from sqlite3 import Connection

from repowire import deliveries, intake, lives, peers, presence, replies
from repowire.asks import Ask
from repowire.deliveries import Delivery
from repowire.frames import encode, packed
from repowire.mesh import Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HELD, LEASED, QUEUED, SEEN

EVICTED = "evicted"  # the published close reason of an ask whose peer is gone (wire.md 5.1)
GONE = "its peer is gone for good, and nobody follows it"

# -- queries -------------------------------------------------------------------


def successor(db: Connection, old: Peer) -> Peer | None:
    """The live peer that goes on with what an ended one did: in its runtime session, else in its very pane."""
    rows = db.execute(
        "SELECT * FROM peers WHERE hidden_at IS NULL AND retired_at IS NULL AND backend = :backend AND peer_id != :id"
        " AND (session = :session OR (pane_id = :pane AND path = :path AND pane_server IS :server))"
        " ORDER BY session IS NOT :session, seq DESC",
        {
            "backend": old.backend,
            "id": old.peer_id,
            "session": old.session,
            "pane": old.last_pane_id,
            "path": old.path,
            "server": old.pane_server,
        },
    )
    found = (Peer(*row) for row in rows.fetchall())
    return next((peer for peer in found if presence.of(db, peer.peer_id) != presence.OFFLINE), None)


# The words of the index `peers_ended`, so that only its rows are read
_ENDED = (
    "SELECT * FROM peers INDEXED BY peers_ended WHERE (retired_at IS NOT NULL OR hidden_at IS NOT NULL)"
    " AND (EXISTS (SELECT 1 FROM deliveries WHERE deliveries.peer_id = peers.peer_id AND state IN ('queued', 'held'))"
    " OR EXISTS (SELECT 1 FROM asks WHERE to_peer_id = peers.peer_id AND closed_at IS NULL)"
    " OR EXISTS (SELECT 1 FROM asks WHERE from_peer_id = peers.peer_id AND closed_at IS NULL)) ORDER BY seq"
)


def for_good(peer: Peer, now: float) -> bool:
    """Whether nobody can come back as it any more."""
    lapsed = peer.retired_at is not None and now - peer.retired_at >= peers.TOMBSTONE_SECONDS
    return peer.ended_at is not None or lapsed


# -- rules ---------------------------------------------------------------------


def move(change: Change, peer_id: str, heir: Peer) -> int:
    """What waits in one mailbox goes into another, in its old place; returns how many. See `succession`."""
    rows = change.db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('queued', 'held') ORDER BY seq", (peer_id,)
    ).fetchall()
    for one in (Delivery.of(row) for row in rows):
        frame = json.loads(one.frame)
        if frame.get("to_peer") is not None:
            frame["to_peer"] = heir.display_name
        change.db.execute(
            "UPDATE deliveries SET peer_id = ?, frame = ?, state = 'queued', reason = 'handed_over' WHERE seq = ?",
            (heir.peer_id, packed(encode(frame), one.trace), one.seq),
        )
        deliveries.say(change, "queued", one._replace(peer_id=heir.peer_id), "handed_over")
    if rows:
        deliveries.mail(change, heir.peer_id)
    return len(rows)


def hand_over(change: Change, mesh: Mesh, old: Peer, new: Peer) -> int:
    """Move what is open for one peer to another; returns how many items moved. The same again moves nothing."""
    moved = 0
    for row in change.db.execute("SELECT * FROM asks WHERE to_peer_id = ? AND closed_at IS NULL", (old.peer_id,)):
        moved += _move_asked(change, mesh, Ask(*row), old, new)
    rows = change.db.execute(
        "UPDATE asks SET from_peer_id = ?, from_peer = ? WHERE from_peer_id = ? AND closed_at IS NULL"
        " RETURNING correlation_id",
        (new.peer_id, new.display_name, old.peer_id),
    )
    for (correlation_id,) in rows.fetchall():
        change.record(
            "ask.handed_over", correlation_id=correlation_id, peer_id=new.peer_id, by=old.peer_id, side="asker"
        )
        moved += 1
    return moved + move(change, old.peer_id, new)


def _move_asked(change: Change, mesh: Mesh, ask: Ask, old: Peer, new: Peer) -> int:
    """An open ask goes to the successor. Where its text was given to the old one already it is queued anew, save in the
    same runtime session that showed it: there it stands, and is said again by a reminder.
    """
    delivery = deliveries.find(change.db, ask.delivery_id)
    if delivery is not None and delivery.state == LEASED:
        return 0  # on its way just now: later, when it is known what became of it
    shown = delivery is not None and delivery.state == SEEN and old.session is not None and old.session == new.session
    change.db.execute(
        "UPDATE asks SET to_peer_id = ?, to_peer = ?, reminded_at = NULL WHERE seq = ?",
        (new.peer_id, new.display_name, ask.seq),
    )
    change.record(
        "ask.handed_over", correlation_id=ask.correlation_id, peer_id=new.peer_id, by=old.peer_id, side="asked"
    )
    if delivery is not None and delivery.state not in (QUEUED, HELD) and not shown:
        again = intake.queue(
            change,
            new.peer_id,
            {**json.loads(delivery.frame), "to_peer": new.display_name},
            trace=ask.correlation_id,
            from_peer_id=ask.from_peer_id,
            expires_at=ask.expires_at,
            most=2**31,  # it was accepted: a full mailbox does not refuse it
        )
        intake.tell(change, again, leased=True)
        change.db.execute("UPDATE asks SET delivery_id = ? WHERE seq = ?", (again.delivery_id, ask.seq))
    return 1


def close(change: Change, mesh: Mesh, old: Peer) -> None:
    """Nobody will come for it: the asks to it are closed and its mail fails, and each sender is told."""
    for row in change.db.execute(
        "SELECT * FROM asks WHERE to_peer_id = ? AND closed_at IS NULL", (old.peer_id,)
    ).fetchall():
        replies.end(change, mesh, Ask(*row), EVICTED, GONE)
    rows = change.db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('queued', 'held')", (old.peer_id,)
    )
    for row in rows.fetchall():
        deliveries.cancel(change, Delivery.of(row).delivery_id, GONE)


# -- loop ----------------------------------------------------------------------

WAKES = (
    "peer.retired",
    "peer.unregistered",
    "peer.registered",
    "peer.returned",
    "peer.displaced",
    "delivery.unknown",  # what was on its way is not any more
    "socket.closed",
)


def tick(mesh: Mesh) -> float:
    """Hand over or close what waits for those who ended; rows of the long hidden go."""
    db, now = mesh.db.conn, mesh.clock.now()
    for peer in [Peer(*row) for row in db.execute(_ENDED).fetchall()]:
        if presence.of(db, peer.peer_id) != presence.OFFLINE:
            continue  # hidden by mistake, or not gone yet
        follows = successor(db, peer)
        if follows is None and not for_good(peer, now):
            continue
        with mesh.change() as change:
            if follows is not None:
                hand_over(change, mesh, peer, follows)
            else:
                close(change, mesh, peer)
    lives.forget(mesh)
    return 60.0
