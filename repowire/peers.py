"""Peers: who there is. A peer's id is its mailbox's address and outlives its process; a name is how others call it.

How a newcomer becomes a peer is in `claims.py`, what follows from how it fares in `lives.py`, what it is called in
`names.py`; what decides whether one lives is in `presence.py`.
"""

import difflib
import json
import math
from sqlite3 import Connection, Row
from typing import Any, NamedTuple, cast

from repowire import presence
from repowire.errors import Refusal, conflict, forbidden, not_found
from repowire.mesh import Change, Mesh
from repowire.protocol import BYPASS_ROLES

TOMBSTONE_SECONDS = 72 * 3600.0  # wire.md 4, retirement
MEMO_MOST = 10_000  # names kept in memory between two events of a peer

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE peers (
    peer_id TEXT PRIMARY KEY, seq INTEGER NOT NULL,            -- seq: order of registration
    display_name TEXT NOT NULL, circle TEXT NOT NULL, role TEXT NOT NULL, backend TEXT NOT NULL,
    path TEXT, machine TEXT, tmux_session TEXT, pane_id TEXT, model TEXT,
    agent_pid INTEGER, agent_started REAL, parent_pid INTEGER, -- the runtime's process, by pid and start
    session TEXT,                                              -- the runtime's own session id
    metadata TEXT NOT NULL, description TEXT NOT NULL, described_at REAL,
    turn_state TEXT, last_seen REAL NOT NULL,                  -- unix seconds
    handed_at REAL, failed_at REAL,                            -- newest receipt of either kind
    retired_at REAL,                                           -- its identity ended; a claim needs a live process
    hidden_at REAL                                             -- reaped or unregistered: not listed, its mail stays
) WITHOUT ROWID;
CREATE INDEX peers_by_name ON peers (display_name) WHERE hidden_at IS NULL;
CREATE INDEX peers_by_pane ON peers (pane_id) WHERE pane_id IS NOT NULL;
CREATE INDEX peers_by_path ON peers (path, backend);
CREATE INDEX peers_by_session ON peers (session) WHERE session IS NOT NULL;
CREATE INDEX peers_by_process ON peers (agent_pid) WHERE agent_pid IS NOT NULL;
CREATE UNIQUE INDEX peers_by_seq ON peers (seq);
""",
    """
ALTER TABLE peers ADD COLUMN pane_server TEXT;                 -- the tmux server of pane_id: its socket, pid and start
""",
    """
ALTER TABLE peers ADD COLUMN last_pane_id TEXT;                -- the pane it had before it lost it, on pane_server
ALTER TABLE peers ADD COLUMN ended_at REAL;                    -- unregistered by hand: nothing waits for its return
CREATE INDEX peers_ended ON peers (seq) WHERE retired_at IS NOT NULL OR hidden_at IS NOT NULL;
CREATE INDEX peers_hidden ON peers (hidden_at) WHERE hidden_at IS NOT NULL;
""",
    """
CREATE TABLE lived (                                           -- each process and runtime session that was a peer,
    seq INTEGER PRIMARY KEY, peer_id TEXT NOT NULL,            -- whatever became of the peer since
    pid INTEGER, started REAL, session TEXT, backend TEXT NOT NULL
);
CREATE INDEX lived_by_process ON lived (pid, started) WHERE pid IS NOT NULL;
CREATE INDEX lived_by_session ON lived (session) WHERE session IS NOT NULL;
CREATE INDEX lived_by_peer ON lived (peer_id);
CREATE TRIGGER peer_lives AFTER INSERT ON peers WHEN NEW.agent_started IS NOT NULL OR NEW.session IS NOT NULL BEGIN
    INSERT INTO lived VALUES (NULL, NEW.peer_id, NEW.agent_pid, NEW.agent_started, NEW.session, NEW.backend);
END;
CREATE TRIGGER peer_lives_anew AFTER UPDATE OF agent_pid, agent_started, session ON peers
WHEN (NEW.agent_started IS NOT NULL OR NEW.session IS NOT NULL) AND NOT EXISTS (SELECT 1 FROM lived
    WHERE peer_id = NEW.peer_id AND pid IS NEW.agent_pid AND started IS NEW.agent_started AND session IS NEW.session)
BEGIN
    INSERT INTO lived VALUES (NULL, NEW.peer_id, NEW.agent_pid, NEW.agent_started, NEW.session, NEW.backend);
END;
INSERT INTO lived SELECT NULL, peer_id, agent_pid, agent_started, session, backend FROM peers
    WHERE agent_started IS NOT NULL OR session IS NOT NULL;
""",
]


class Peer(NamedTuple):
    """A row of `peers`; moments are unix seconds, `metadata` is JSON text."""

    peer_id: str
    seq: int
    display_name: str
    circle: str
    role: str
    backend: str
    path: str | None
    machine: str | None
    tmux_session: str | None
    pane_id: str | None
    model: str | None
    agent_pid: int | None
    agent_started: float | None
    parent_pid: int | None
    session: str | None
    metadata: str
    description: str
    described_at: float | None
    turn_state: str | None
    last_seen: float
    handed_at: float | None
    failed_at: float | None
    retired_at: float | None
    hidden_at: float | None
    pane_server: str | None = None
    last_pane_id: str | None = None
    ended_at: float | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The metadata as an object."""
        found: dict[str, Any] = json.loads(self.metadata)
        return found

    @property
    def everywhere(self) -> bool:
        """Whether its role puts it into every circle."""
        return self.role in BYPASS_ROLES


# -- queries -----------------------------------------------------------------


def _peer(row: Row | None) -> Peer | None:
    return None if row is None else Peer(*row)


def find(db: Connection, peer_id: str) -> Peer | None:
    """By id, hidden ones too."""
    return _peer(db.execute("SELECT * FROM peers WHERE peer_id = ?", (peer_id,)).fetchone())


def load(db: Connection, peer_id: str) -> Peer:
    """By id; 404 when there is none."""
    peer = find(db, peer_id)
    if peer is None:
        raise not_found("peer", peer_id)
    return peer


def listed(db: Connection) -> list[Peer]:
    """All that are shown, in order of registration."""
    return [Peer(*row) for row in db.execute("SELECT * FROM peers WHERE hidden_at IS NULL ORDER BY seq")]


def unheard_of(db: Connection, since: float) -> list[Peer]:
    """All that are shown and were not seen since that moment."""
    rows = db.execute("SELECT * FROM peers WHERE hidden_at IS NULL AND last_seen <= ? ORDER BY seq", (since,))
    return [Peer(*row) for row in rows]


def named(db: Connection, name: str) -> list[Peer]:
    """All that are shown under a display name, oldest first."""
    rows = db.execute("SELECT * FROM peers WHERE display_name = ? AND hidden_at IS NULL ORDER BY seq", (name,))
    return [Peer(*row) for row in rows]


def in_pane(db: Connection, pane_id: str) -> list[Peer]:
    """All that hold a pane of that id; more than one where several tmux servers have one."""
    rows = db.execute("SELECT * FROM peers WHERE pane_id = ? AND hidden_at IS NULL ORDER BY seq", (pane_id,))
    return [Peer(*row) for row in rows]


def by_pane(db: Connection, pane_id: str) -> Peer | None:
    """The peer that holds a pane: of several the live one; 409 when that could be several too."""
    found = in_pane(db, pane_id)
    if len(found) > 1:
        found = [peer for peer in found if presence.of(db, peer.peer_id) != presence.OFFLINE] or found
    if len(found) > 1:
        raise conflict(
            "ambiguous_pane",
            f"{len(found)} tmux servers have a pane {pane_id}: use a peer_id",
            pane=pane_id,
            candidates=_candidates(found),
        )
    return found[0] if found else None


def of_pane(db: Connection, pane_id: str) -> Peer:
    """`by_pane`; 404 when nobody does."""
    peer = by_pane(db, pane_id)
    if peer is None:
        raise not_found("pane", pane_id, f"no peer holds pane {pane_id}")
    return peer


def in_session(db: Connection, name: str, *, is_circle: bool) -> list[Peer]:
    """All that live in a tmux session, known as `session` or `session:window`; `is_circle`: those of the circle too."""
    rows = db.execute(
        "SELECT * FROM peers WHERE hidden_at IS NULL AND (tmux_session = :name"
        " OR substr(tmux_session, 1, length(:name) + 1) = :name || ':'"
        " OR (:is_circle AND tmux_session IS NULL AND circle = :name)) ORDER BY seq",
        {"name": name, "is_circle": is_circle},
    )
    return [Peer(*row) for row in rows]


def by_session(db: Connection, session: str, backend: str) -> Peer | None:
    """The peer of a runtime's own session."""
    rows = db.execute("SELECT * FROM peers WHERE session = ? AND backend = ? ORDER BY seq DESC", (session, backend))
    return _peer(rows.fetchone())


def in_runtime_session(db: Connection, session: str, backend: str) -> list[Peer]:
    """All that live or lived in it last, hidden ones too: who was taken off the list may live yet."""
    rows = db.execute("SELECT * FROM peers WHERE session = ? AND backend = ?", (session, backend))
    return [Peer(*row) for row in rows]


def at_path(db: Connection, backend: str, path: str | None) -> list[Peer]:
    """All of a backend that work, or worked, in a folder, the newest first."""
    rows = db.execute("SELECT * FROM peers WHERE path IS ? AND backend = ? ORDER BY seq DESC", (path, backend))
    return [Peer(*row) for row in rows]


def lapses_at(mesh: Mesh, peer: Peer) -> float:
    """Until when its description is shown, unix seconds; a lifetime of 0 has no end."""
    ttl = mesh.config.daemon.description_ttl_seconds
    return peer.described_at + ttl if peer.described_at is not None and ttl else math.inf


def newest(db: Connection) -> int:
    """The seq of who was registered last."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM peers").fetchone()[0])


def by_process(db: Connection, pid: int, started: float) -> Peer | None:
    """The peer whose runtime is this process."""
    rows = db.execute("SELECT * FROM peers WHERE agent_pid = ? AND hidden_at IS NULL AND retired_at IS NULL", (pid,))
    return next((peer for peer in (Peer(*row) for row in rows) if peer.agent_started == started), None)


def lived_in(db: Connection, pid: int, started: float) -> list[Peer]:
    """Every peer that this very process is, or was before it was unregistered or became another; the newest last.

    Not a shell that was a peer: it is its user's again.
    """
    rows = db.execute(
        "SELECT DISTINCT peers.* FROM lived JOIN peers USING (peer_id) WHERE lived.pid = ? AND lived.started = ?"
        " AND peers.backend != 'shell' ORDER BY peers.seq",
        (pid, started),
    )
    return [Peer(*row) for row in rows]


def lived_with(db: Connection, session: str, backend: str) -> list[tuple[int | None, float | None, Peer]]:
    """Every process that had this runtime session, and as which peer, the newest first."""
    rows = db.execute(
        "SELECT lived.pid, lived.started, peers.* FROM lived JOIN peers USING (peer_id)"
        " WHERE lived.session = ? AND lived.backend = ? ORDER BY lived.seq DESC",
        (session, backend),
    )
    return [(pid, started, Peer(*row)) for pid, started, *row in rows]


def resolve(db: Connection, name: str, circle: str | None = None) -> Peer:
    """The one peer that is meant by an id or a display name (wire.md 4, lookup order).

    404 with near names when nobody is; 409 with the candidates when it could be several.
    """
    peer = find(db, name)
    if peer is not None:
        return peer
    found = named(db, name)
    if circle is not None:
        found = [peer for peer in found if peer.circle == circle or peer.everywhere]
    if len(found) > 1:
        found = [peer for peer in found if presence.of(db, peer.peer_id) != presence.OFFLINE] or found
    if len(found) > 1 and circle is None:
        found = [peer for peer in found if peer.pane_id] if sum(1 for peer in found if peer.pane_id) == 1 else found
    if len(found) > 1 and circle is not None:
        found = sorted(
            found, key=lambda peer: (presence.reachable(db, peer.peer_id), bool(peer.pane_id), peer.last_seen)
        )
        return found[-1]
    if not found:
        raise unknown(db, name, circle)
    if len(found) > 1:
        raise _ambiguous(name, found)
    return found[0]


def exactly(db: Connection, name: str, circle: str | None = None) -> Peer:
    """The one peer of an id or a name for what must not be guessed, such as an end: one that is offline counts too.

    404 and 409 as `resolve`; the candidates say their panes.
    """
    peer = find(db, name)
    if peer is not None and peer.hidden_at is None:
        return peer
    found = [one for one in named(db, name) if circle is None or one.circle == circle or one.everywhere]
    if len(found) > 1:
        raise _ambiguous(name, found, "tmux_session", "pane_id")
    if not found:
        raise unknown(db, name, circle)
    return found[0]


def _ambiguous(name: str, found: list[Peer], *more: str) -> Refusal:
    return conflict(
        "ambiguous_peer",
        f"{len(found)} peers are called {name!r}: use a peer_id, or name the circle",
        peer=name,
        candidates=_candidates(found, *more),
    )


def _candidates(found: list[Peer], *more: str) -> list[dict[str, str | None]]:
    return [{fact: getattr(one, fact) for fact in ("peer_id", "display_name", "circle", *more)} for one in found]


def unknown(db: Connection, name: str, circle: str | None = None) -> Refusal:
    """404 for a name that nobody has, or nobody in this circle."""
    if circle is not None and (elsewhere := named(db, name)):
        circles = sorted({peer.circle for peer in elsewhere})
        where = ", ".join(map(repr, circles[:3])) + (f" and {len(circles) - 3} more" if len(circles) > 3 else "")
        hint = f"{name} is not in circle {circle!r} but in {where}: name that circle, or none"
        return not_found("peer", name, hint, near=[], candidates=_candidates(elsewhere))
    names = {row[0] for row in db.execute("SELECT display_name FROM peers WHERE hidden_at IS NULL LIMIT 2000")}
    near = difflib.get_close_matches(name[:64], sorted(names), n=3, cutoff=0.6)
    hint = f"there is no peer {name[:64]!r}: " + (f"did you mean {', '.join(near)}? " if near else "")
    return not_found("peer", name, hint + "`repowire peer list` shows who there is", near=near)


def known(db: Connection, name: str) -> Peer | None:
    """`resolve`, and None for a name that nobody has."""
    try:
        return resolve(db, name)
    except Refusal as refusal:
        if refusal.status == 404:
            return None
        raise


def remembered(change: Change, peer_id: str) -> Peer | None:
    """`find`, from memory where no event of a peer came since."""
    memo, key = change.mesh.memo, f"id {peer_id}"
    if key not in memo:
        memo[key] = find(change.db, peer_id)
    return cast(Peer | None, memo[key])


def meant(change: Change, name: str, circle: str | None = None) -> Peer:
    """`resolve`, from memory where no event of a peer came since. Presence decides between several only."""
    memo, key = change.mesh.memo, f"name {name}" if circle is None else f"name {name} in {circle}"
    if key not in memo:
        peer = resolve(change.db, name, circle)
        if len(memo) < MEMO_MOST and (peer.peer_id == name or len(named(change.db, name)) == 1):
            memo[key] = peer
        return peer
    return cast(Peer, memo[key])


def sender(change: Change, name: str, circle: str) -> Peer | None:
    """Who a `from_peer` is: looked up in the target's circle first, then everywhere; None for a stranger's name."""
    try:
        found = meant(change, name)
    except Refusal as refusal:
        if refusal.status == 404:
            return None
        found = None
    if found is not None and (found.peer_id == name or found.circle == circle):
        return found
    if any(one.circle == circle for one in named(change.db, name)):
        return resolve(change.db, name, circle)
    return found or resolve(change.db, name)


def waiting(db: Connection, peer_id: str) -> bool:
    """Whether mail or asks wait for the peer, so that its name must not be given away. The view is of `asks.py`."""
    return db.execute("SELECT 1 FROM waits WHERE peer_id = ? LIMIT 1", (peer_id,)).fetchone() is not None


def let_go_of_pane(change: Change, peer_id: str) -> None:
    """It has no pane any more; which one it had is kept, since who comes back there is known by it."""
    change.db.execute(
        "UPDATE peers SET last_pane_id = coalesce(pane_id, last_pane_id), pane_id = NULL WHERE peer_id = ?", (peer_id,)
    )


def check_circle(sender: Peer | None, target: Peer, *, bypass: bool) -> None:
    """403 when a message would leave its circle (wire.md 4, circle check)."""
    if sender is None or bypass or sender.everywhere or target.everywhere or sender.circle == target.circle:
        return
    raise forbidden(
        "circle_boundary",
        f"{target.display_name} is in circle {target.circle!r}, {sender.display_name} in {sender.circle!r}:"
        " send with bypass_circle (CLI: --bypass-circle) to cross",
        circle=target.circle,
        from_circle=sender.circle,
    )


def change_columns(change: Change, peer_id: str, **columns: Any) -> None:
    """Set columns of the row."""
    marks = ", ".join(f"{name} = ?" for name in columns)
    change.db.execute(f"UPDATE peers SET {marks} WHERE peer_id = ?", (*columns.values(), peer_id))


# -- loop --------------------------------------------------------------------


def at_start(mesh: Mesh) -> None:
    """Processes that are gone start nothing any more."""
    with mesh.change() as change:
        rows = change.db.execute("SELECT DISTINCT pid, started FROM lived WHERE started IS NOT NULL").fetchall()
        for pid, started in rows:
            if not mesh.procs.alive(pid, started):
                forget_process(change, pid, started)


def forget_process(change: Change, pid: int, started: float) -> None:
    """It has ended."""
    change.db.execute("DELETE FROM lived WHERE pid = ? AND started = ?", (pid, started))
