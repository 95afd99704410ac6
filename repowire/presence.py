"""What we know of a peer's life: one row a (peer, source), and one pure function from the rows to a status.

Every source only notes what it saw; `status` alone decides. Nobody else keeps a peer's state.
"""

from collections.abc import Mapping
from sqlite3 import Connection
from typing import NamedTuple

from repowire.mesh import Change, Mesh

ONLINE, BUSY, OFFLINE = "online", "busy", "offline"

# Sources, and the facts they note
SOCKET = "socket"  # open | closed; detail: who holds it
CHANNEL = "channel"  # open | closed: the native door of its runtime
PROCESS = "process"  # alive | ended
DIALOG = "dialog"  # open | closed: the runtime waits for its user's decision, as its hooks say
WORD = "word"  # online | busy | offline: what the peer, its hooks or a route said last
IDENTITY = "identity"  # retired | current

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE presence (
    peer_id TEXT NOT NULL, source TEXT NOT NULL, fact TEXT NOT NULL,
    at REAL NOT NULL,           -- unix seconds
    detail TEXT,
    PRIMARY KEY (peer_id, source)
) WITHOUT ROWID;
"""
]


class Evidence(NamedTuple):
    """What one source saw last."""

    fact: str
    at: float
    detail: str | None


def status(evidence: Mapping[str, Evidence]) -> str:
    """The status that the evidence proves; without any, offline.

    A process that ended or a retired identity is offline whatever was said. A closed socket is offline too unless the
    process is known to live: then it runs and cannot be reached, which `inbound_status` says.
    """

    def fact(source: str) -> str | None:
        return evidence[source].fact if source in evidence else None

    if fact(IDENTITY) == "retired" or fact(PROCESS) == "ended" or not evidence:
        return OFFLINE
    word = evidence.get(WORD)
    said = word.fact if word else ONLINE
    if fact(SOCKET) == "closed" and fact(PROCESS) != "alive" and not (word and word.at > evidence[SOCKET].at):
        return OFFLINE
    return said


# -- queries -----------------------------------------------------------------


def evidence(db: Connection, peer_id: str) -> dict[str, Evidence]:
    """All that is known of one peer, by source."""
    rows = db.execute("SELECT source, fact, at, detail FROM presence WHERE peer_id = ?", (peer_id,))
    return {row[0]: Evidence(row[1], row[2], row[3]) for row in rows}


def of(db: Connection, peer_id: str) -> str:
    """The peer's status now."""
    return status(evidence(db, peer_id))


def all_evidence(db: Connection) -> dict[str, dict[str, Evidence]]:
    """The evidence of every peer, in one read."""
    found: dict[str, dict[str, Evidence]] = {}
    for row in db.execute("SELECT peer_id, source, fact, at, detail FROM presence"):
        found.setdefault(row[0], {})[row[1]] = Evidence(row[2], row[3], row[4])
    return found


def reachable(db: Connection, peer_id: str) -> bool:
    """Whether a live transport leads to the peer."""
    rows = db.execute(
        "SELECT 1 FROM presence WHERE peer_id = ? AND source IN ('socket', 'channel') AND fact = 'open'", (peer_id,)
    )
    return rows.fetchone() is not None


def lives(db: Connection, peer_id: str) -> bool:
    """Whether its process is known to live, or none is known at all."""
    row = db.execute("SELECT fact FROM presence WHERE peer_id = ? AND source = 'process'", (peer_id,)).fetchone()
    return row is None or row[0] == "alive"


# -- rules -------------------------------------------------------------------


def note(change: Change, peer_id: str, source: str, fact: str, detail: str | None = None) -> tuple[str, str]:
    """Note what a source saw; returns the status before and after."""
    known = evidence(change.db, peer_id)
    before = status(known)
    change.db.execute(
        "INSERT INTO presence VALUES (?, ?, ?, ?, ?) ON CONFLICT (peer_id, source)"
        " DO UPDATE SET fact = excluded.fact, at = excluded.at, detail = excluded.detail",
        (peer_id, source, fact, change.now, detail),
    )
    after = status({**known, source: Evidence(fact, change.now, detail)})
    if after != before or known.get(source, (None,))[0] != fact:
        change.record("presence.changed", peer_id=peer_id, source=source, fact=fact, status=after)
    return before, after


def forget(change: Change, peer_id: str, source: str) -> None:
    """Drop what a source said: it was about an earlier life of the peer."""
    change.db.execute("DELETE FROM presence WHERE peer_id = ? AND source = ?", (peer_id, source))


def close_all(mesh: Mesh) -> None:
    """At start: sockets and channels do not outlive the daemon that held them."""
    with mesh.change() as change:
        rows = change.db.execute(
            "SELECT peer_id, source FROM presence WHERE source IN ('socket', 'channel') AND fact = 'open'"
        )
        for peer_id, source in rows.fetchall():
            note(change, peer_id, source, "closed", "the daemon stopped")
