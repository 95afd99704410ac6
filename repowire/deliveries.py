"""Deliveries: one thing in front of one peer, once. The mailbox's order is owned here.

`queued → leased → handed → seen → answered`, with `held` (and a reason), `failed`, `expired` and `unknown`. Every taker
uses one guarded UPDATE, `lease`; what is proved of what was taken, `receipts` says. Never a stronger word than the
proof: what was sent and not receipted is `leased`, past its lease `unknown`, and what is unknown is never sent again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Connection, Row
from typing import Any, NamedTuple

from repowire import peers
from repowire.errors import not_found
from repowire.frames import unpacked
from repowire.mesh import Change
from repowire.protocol import (
    ANSWERED,
    EXPIRED,
    FAILED,
    HANDED,
    HELD,
    LEASED,
    QUEUED,
    SEEN,
    UNKNOWN,
)

WINDOW = 32  # sent without a receipt to a taker that remembers; more waits in the mailbox, where it cannot be lost
RETRY_MOST_SECONDS = 60.0
SENT_SECONDS = 0.1  # how long it may go unsaid that a frame was sent whose receipt is to come
STATES = (QUEUED, LEASED, HELD, HANDED, SEEN, ANSWERED, FAILED, EXPIRED, UNKNOWN)
KEPT_SECONDS = 24 * 3600.0
PICKUP = "pickup:"  # a holder that confirms what it took: what it never confirmed comes back

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY,                     -- the mailbox's order
    delivery_id TEXT NOT NULL UNIQUE,
    peer_id TEXT NOT NULL,                       -- the recipient's mailbox
    kind TEXT NOT NULL,                          -- ask | notify
    trace TEXT NOT NULL,                         -- what it is part of: an ask's correlation id, or '': its own id
    from_peer_id TEXT, frame TEXT NOT NULL,      -- the frame of /ws without its delivery_id; see `packed`
    state TEXT NOT NULL, reason TEXT,
    created_at REAL NOT NULL, expires_at REAL NOT NULL,        -- unix seconds
    leased_by TEXT, leased_at REAL, attempts INTEGER NOT NULL DEFAULT 0,
    handed_at REAL, seen_at REAL, closed_at REAL
);
CREATE INDEX mailboxes ON deliveries (peer_id, seq) WHERE state IN ('queued', 'held');
CREATE INDEX deliveries_leased ON deliveries (peer_id, leased_at) WHERE state = 'leased';
CREATE INDEX deliveries_unknown ON deliveries (peer_id) WHERE state = 'unknown';
CREATE INDEX deliveries_expiring ON deliveries (expires_at) WHERE state IN ('queued', 'held');
""",
    """
ALTER TABLE deliveries ADD COLUMN told_at REAL;                -- its sender was told that it died, or need not be
ALTER TABLE deliveries ADD COLUMN dropped_at REAL;             -- somebody took it off the list of the dead
CREATE INDEX deliveries_dead ON deliveries (seq) WHERE state IN ('failed', 'expired') AND dropped_at IS NULL;
CREATE INDEX deliveries_untold ON deliveries (seq)
    WHERE state IN ('failed', 'expired') AND told_at IS NULL AND kind != 'ask';
""",
    """
DROP INDEX deliveries_leased;  -- by time instead of by peer: the copies of a broadcast come to stand side by side
CREATE INDEX deliveries_leased ON deliveries (leased_at, peer_id) WHERE state = 'leased';
""",
]


class Delivery(NamedTuple):
    """A row of `deliveries`; moments are unix seconds, `frame` is JSON text."""

    seq: int
    delivery_id: str
    peer_id: str
    kind: str
    trace: str
    from_peer_id: str | None
    frame: str
    state: str
    reason: str | None
    created_at: float
    expires_at: float
    leased_by: str | None
    leased_at: float | None
    attempts: int
    handed_at: float | None
    seen_at: float | None
    closed_at: float | None
    told_at: float | None = None
    dropped_at: float | None = None

    @classmethod
    def of(cls, row: Row) -> "Delivery":
        """From the table, where `frame` and `trace` are kept short; see `intake`."""
        found = cls(*row)
        trace = found.trace or found.delivery_id
        return found._replace(trace=trace, frame=unpacked(found.frame, trace))

    @property
    def payload(self) -> dict[str, Any]:
        """The frame as it is sent, with its id."""
        frame: dict[str, Any] = json.loads(self.frame)
        return {"type": frame.pop("type"), "delivery_id": self.delivery_id, **frame}

    @property
    def wire_text(self) -> str:
        """The payload as JSON text: the stored frame with its id spliced in."""
        return f'{{"delivery_id":"{self.delivery_id}",{self.frame[1:]}'


# -- queries -----------------------------------------------------------------


def _delivery(row: Row | None) -> Delivery | None:
    return None if row is None else Delivery.of(row)


def find(db: Connection, delivery_id: str) -> Delivery | None:
    """By id."""
    return _delivery(db.execute("SELECT * FROM deliveries WHERE delivery_id = ?", (delivery_id,)).fetchone())


def load(db: Connection, delivery_id: str) -> Delivery:
    """By id; 404 when there is none."""
    delivery = find(db, delivery_id)
    if delivery is None:
        raise not_found("delivery", delivery_id)
    return delivery


def depth(db: Connection, peer_id: str) -> int:
    """How many messages wait in a mailbox."""
    rows = db.execute("SELECT count(*) FROM deliveries WHERE peer_id = ? AND state IN ('queued', 'held')", (peer_id,))
    return int(rows.fetchone()[0])


def first(db: Connection, peer_id: str) -> Delivery | None:
    """The head of a mailbox."""
    rows = db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('queued', 'held') ORDER BY seq LIMIT 1", (peer_id,)
    )
    return _delivery(rows.fetchone())


# -- rules -------------------------------------------------------------------


def say(change: Change, word: str, delivery: Delivery, reason: str | None = None, **facts: Any) -> None:
    note(change, word, delivery.delivery_id, delivery.trace, delivery.peer_id, reason=reason, **facts)


def note(change: Change, word: str, delivery_id: str, trace: str, peer_id: str, **facts: Any) -> None:
    part_of = None if trace == delivery_id else trace
    change.record(f"delivery.{word}", delivery_id=delivery_id, trace=part_of, peer_id=peer_id, **facts)


def lease(change: Change, peer_id: str, holder: str, most: int = 1) -> list[Delivery]:
    """Take the oldest messages of a mailbox for one holder: the one door for every taker, so each goes to one only.

    None while a person holds the peer's mail.
    """
    if peer_id in change.mesh.doors.locked:
        return []
    rows = change.db.execute(
        "UPDATE deliveries SET state = 'leased', leased_by = ?, leased_at = ?, attempts = attempts + 1, reason = NULL"
        " WHERE state IN ('queued', 'held') AND seq IN (SELECT seq FROM deliveries"
        " WHERE peer_id = ? AND state IN ('queued', 'held') ORDER BY seq LIMIT ?) RETURNING *",
        (holder, change.now, peer_id, most),
    ).fetchall()
    leased = sorted((Delivery.of(row) for row in rows), key=lambda one: one.seq)
    by = "pickup" if holder.startswith(PICKUP) else holder  # a token is its taker's alone, and events are for everybody
    for delivery in leased:
        say(change, "leased", delivery, by=by)
    return leased


def lease_one(change: Change, delivery_id: str, holder: str) -> Delivery:
    """Take this one, whatever waits before it, as a person asked; it waits, as the caller has seen in this change."""
    row = change.db.execute(
        "UPDATE deliveries SET state = 'leased', leased_by = ?, leased_at = ?, attempts = attempts + 1, reason = NULL"
        " WHERE delivery_id = ? AND state IN ('queued', 'held') RETURNING *",
        (holder, change.now, delivery_id),
    ).fetchone()
    delivery = Delivery.of(row)
    say(change, "leased", delivery, by=holder, now=True)
    return delivery


def take_again(change: Change, peer_id: str, holder: str) -> list[Delivery]:
    """What this very holder was given and never receipted: it remembers what it took, so the same may be sent again.

    That holds for the unknown too: after a long stop of the daemon its lease has run out before the holder is back.
    """
    rows = []
    for state in (UNKNOWN, LEASED):
        rows += change.db.execute(
            "UPDATE deliveries SET state = 'leased', reason = NULL, leased_at = ?, attempts = attempts + 1"
            f" WHERE peer_id = ? AND state = '{state}' AND leased_by = ? RETURNING *",
            (change.now, peer_id, holder),
        ).fetchall()
    again = {row[0]: Delivery.of(row) for row in rows}  # by seq: the first update makes rows that the second finds
    return [again[seq] for seq in sorted(again)]


def release(change: Change, unwritten: Sequence[Delivery], reason: str) -> None:
    """Back into the mailbox, in its old place: leased, and provably never written."""
    for delivery in unwritten:
        if become(change, delivery, (LEASED,), QUEUED, reason):
            say(change, "queued", delivery, reason)
            mail(change, delivery.peer_id)


def mail(change: Change, peer_id: str) -> None:
    """Something waits in the mailbox: new messages queue behind it."""
    if (door := change.mesh.doors.of(peer_id)) is not None:
        door.clear = False
        change.after(door.mail)


def say_sent(change: Change, delivery_id: str) -> None:
    """It was written to a WebSocket, which proves nothing more; where that was not said yet."""
    known = change.mesh.doors.sent.pop(delivery_id, None)
    if known is not None:
        trace, at, _ = known
        part_of = None if trace == delivery_id else trace
        change.record("delivery.sent", delivery_id=delivery_id, trace=part_of, verified=False, sent_at=at)


def again(change: Change, given: Delivery, reason: str) -> None:
    """Back into the mailbox: it is proved that the one who was given it then is gone and never showed it."""
    delivery = find(change.db, given.delivery_id)
    if delivery is None or (delivery.leased_by, delivery.leased_at) != (given.leased_by, given.leased_at):
        return  # somebody else was given it meanwhile
    if become(change, delivery, (LEASED, HANDED, UNKNOWN), QUEUED, reason):
        say(change, "queued", delivery, reason)
        mail(change, delivery.peer_id)


def taken_by(db: Connection, holder: str) -> list[Delivery]:
    """What one holder was given and has not receipted, in order; a restart or a long silence made it unknown."""
    rows = db.execute(
        "SELECT * FROM deliveries WHERE state = 'leased' AND leased_by = ?1"
        " UNION ALL SELECT * FROM deliveries WHERE state = 'unknown' AND leased_by = ?1",
        (holder,),
    )
    return sorted(Delivery.of(row) for row in rows)


def owing(db: Connection, holder: str) -> set[str]:
    """The peers of whose messages one holder owes a receipt."""
    rows = db.execute("SELECT DISTINCT peer_id FROM deliveries WHERE state = 'leased' AND leased_by = ?", (holder,))
    return {row[0] for row in rows}


def answered(change: Change, delivery_id: str, *, handed: bool = False) -> None:
    """The ask was answered, which proves that it arrived; one that still waits in the mailbox need not be sent.

    `handed`: its receipt came just now, and this change notes it too.
    """
    change.mesh.doors.sent.pop(delivery_id, None)
    change.db.execute(
        f"UPDATE deliveries SET state = 'answered', reason = NULL, closed_at = ?1{AS_HANDED if handed else ''}"
        " WHERE delivery_id = ?2 AND state IN ('queued', 'held', 'leased', 'handed', 'seen', 'unknown')",
        (change.now, delivery_id),
    )


# Where it is handed already, that moment stays; of one that was taken back and handed anew it is the new one. What was
# handed over a plain socket is never taken back from it, so it need not be known which it was.
AS_HANDED = (
    ", handed_at = CASE WHEN state IN ('handed', 'seen') THEN handed_at ELSE ?1 END"
    ", leased_by = CASE WHEN leased_by GLOB 'socket:*' THEN NULL ELSE leased_by END"
)


def cancel(change: Change, delivery_id: str, reason: str) -> bool:
    """What still waits in the mailbox is not sent; what left already stays what it is, and False is returned."""
    delivery = find(change.db, delivery_id)
    if delivery and become(change, delivery, (QUEUED, HELD), FAILED, reason, closed_at=change.now):
        say(change, "failed", delivery, reason)
        return True
    return False


def become(
    change: Change, delivery: Delivery, sources: Sequence[str], state: str, reason: str | None, **moments: float
) -> bool:
    """The guarded UPDATE of a state; False when the delivery is elsewhere by now."""
    columns = "".join(f", {name} = ?" for name in moments)
    marks = ", ".join("?" for _ in sources)
    done = change.db.execute(
        f"UPDATE deliveries SET state = ?, reason = ?{columns} WHERE delivery_id = ? AND state IN ({marks})",
        (state, reason, *moments.values(), delivery.delivery_id, *sources),
    )
    return done.rowcount == 1


def unknown(change: Change, delivery: Delivery, reason: str) -> None:
    """Sent, and nothing proves that it arrived: never sent again."""
    say_sent(change, delivery.delivery_id)
    if become(change, delivery, (LEASED,), UNKNOWN, reason):
        say(change, "unknown", delivery, reason)
        door = change.mesh.doors.of(delivery.peer_id)
        if door is not None:
            door.receipted(delivery.delivery_id)


def lost(change: Change, peer_id: str, holder: str, expected: Iterable[str], moments: Iterable[float]) -> None:
    """A holder that keeps no memory is gone: what it was sent without a receipt is unknown.

    `expected` are the ids whose receipts were promised, `moments` (unix seconds) when it was given the rest: a look by
    peer alone would read all the leases there are, for each of a thousand sockets that close at once.
    """
    rows: list[Row] = []
    for delivery_id in expected:
        rows += change.db.execute(
            "SELECT * FROM deliveries WHERE delivery_id = ? AND state = 'leased' AND leased_by = ?",
            (delivery_id, holder),
        )
    for moment in set(moments):
        rows += change.db.execute(
            "SELECT * FROM deliveries WHERE state = 'leased' AND leased_at = ? AND peer_id = ? AND leased_by = ?",
            (moment, peer_id, holder),
        )
    for seq in sorted(found := {row[0]: row for row in rows}):
        unknown(change, Delivery.of(found[seq]), "the socket closed before a receipt came")


# -- wire --------------------------------------------------------------------


def addressee(db: Connection, delivery: Delivery, frame: Mapping[str, Any]) -> str:
    """The recipient's name, as the frame says it; a broadcast's frame names nobody."""
    peer = None if "to_peer" in frame else peers.find(db, delivery.peer_id)
    return peer.display_name if peer is not None else str(frame.get("to_peer", delivery.peer_id))


def standing(delivery: Delivery) -> dict[str, Any]:
    """The published words for a delivery, and beside them the honest one (wire.md 16, row 15)."""
    waits = delivery.state in (QUEUED, HELD)
    unsent = waits or delivery.state in (FAILED, EXPIRED)  # what dies dies in the mailbox
    return {
        "delivery_state": "queued" if unsent else "delivered",
        "delivered": not unsent,
        "queued": waits,
        "state": delivery.state,
    }
