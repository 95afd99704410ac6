"""Sessions: the runtime session that a peer lives in now, and the ways into it.

One row a peer, kept when the session ends: whoever comes back in the same session, or in the same pane of the same tmux
server, is known by it. A pane id says little by itself, since each server counts anew (field.md B 21).
"""

from sqlite3 import Connection
from typing import Any, NamedTuple, cast

from repowire.clock import new_id
from repowire.mesh import Change, Mesh

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE sessions (
    peer_id TEXT PRIMARY KEY,
    session TEXT,                                -- the runtime's own session id
    transcript TEXT,                             -- its file
    mode TEXT,                                   -- the permission mode that its hooks state
    inbox TEXT, inbox_token TEXT,                -- the socket that takes messages for it, and what opens it
    registry TEXT,                               -- the file in which the runtime says how it is
    tmux TEXT, server_pid INTEGER, server_started REAL,        -- the tmux server of its pane
    pane_id TEXT,
    bound_at REAL NOT NULL                       -- unix seconds; since then it is this session, in this place
) WITHOUT ROWID;
""",
    """
ALTER TABLE sessions ADD COLUMN inbound TEXT;    -- what its user's settings do with messages that come into the inbox
""",
    """
CREATE TABLE session_bindings (                  -- every runtime session that a peer lived in, for as long as the peer
    repowire_session_id TEXT PRIMARY KEY, peer_id TEXT NOT NULL,
    session TEXT NOT NULL UNIQUE, transcript TEXT,
    bound_at REAL NOT NULL                       -- unix seconds; when the peer came to live in it last
) WITHOUT ROWID;
CREATE INDEX session_bindings_by_peer ON session_bindings (peer_id, bound_at);
INSERT OR REPLACE INTO session_bindings SELECT 'rw-session-' || lower(hex(randomblob(6))), peer_id, session, transcript,
    bound_at FROM sessions WHERE session IS NOT NULL ORDER BY bound_at;
""",
]
KEPT = 200  # bindings of one peer, the newest


CHANGES_WITHIN = ("mode", "inbox", "inbox_token", "inbound")  # while it stays the same session


class Session(NamedTuple):
    """A row of `sessions`."""

    peer_id: str
    session: str | None
    transcript: str | None
    mode: str | None
    inbox: str | None
    inbox_token: str | None
    registry: str | None
    tmux: str | None
    server_pid: int | None
    server_started: float | None
    pane_id: str | None
    bound_at: float
    inbound: str | None = None


class Binding(NamedTuple):
    """A row of `session_bindings`: a name for a runtime session that outlives its process."""

    repowire_session_id: str
    peer_id: str
    session: str
    transcript: str | None
    bound_at: float


def server_name(tmux: str | None, pid: int | None, started: float | None) -> str | None:
    """One tmux server in one word, for comparing; None when any part of it is not known."""
    return None if tmux is None or pid is None or started is None else f"{tmux},{pid},{started}"


# -- queries -------------------------------------------------------------------


def find(db: Connection, peer_id: str) -> Session | None:
    """The session that a peer lives in, or lived in last."""
    row = db.execute("SELECT * FROM sessions WHERE peer_id = ?", (peer_id,)).fetchone()
    return Session(*row) if row else None


def in_pane(db: Connection, tmux: str, server_pid: int, server_started: float, pane_id: str) -> list[Session]:
    """Who lives or lived in that very pane, the newest first."""
    rows = db.execute(
        "SELECT * FROM sessions WHERE pane_id = ? AND tmux = ? AND server_pid = ? AND server_started = ?"
        " ORDER BY bound_at DESC",
        (pane_id, tmux, server_pid, server_started),
    )
    return [Session(*row) for row in rows]


def with_inbox(db: Connection) -> list[str]:
    """The peers whose session has an inbox."""
    return [row[0] for row in db.execute("SELECT peer_id FROM sessions WHERE inbox IS NOT NULL")]


def with_pane(db: Connection) -> list[str]:
    """The peers whose session lives or lived in a pane."""
    return [row[0] for row in db.execute("SELECT peer_id FROM sessions WHERE pane_id IS NOT NULL AND tmux IS NOT NULL")]


def tmux_sockets(db: Connection) -> list[str]:
    """The sockets of every tmux server that a session was seen in."""
    return [row[0] for row in db.execute("SELECT DISTINCT tmux FROM sessions WHERE tmux IS NOT NULL")]


def binding(db: Connection, repowire_session_id: str) -> Binding | None:
    """By its own id."""
    rows = db.execute("SELECT * FROM session_bindings WHERE repowire_session_id = ?", (repowire_session_id,))
    row = rows.fetchone()
    return Binding(*row) if row else None


def bindings(db: Connection, peer_id: str) -> list[Binding]:
    """The sessions that a peer lived in, the newest first."""
    rows = db.execute(
        "SELECT * FROM session_bindings WHERE peer_id = ? ORDER BY bound_at DESC, repowire_session_id DESC", (peer_id,)
    )
    return [Binding(*row) for row in rows]


def binding_id(db: Connection, peer_id: str | None) -> str | None:
    """The id of the session that a peer lives in, or lived in last."""
    rows = db.execute(
        "SELECT repowire_session_id FROM session_bindings WHERE peer_id = ?"
        " ORDER BY bound_at DESC, repowire_session_id DESC LIMIT 1",
        (peer_id,),
    )
    row = rows.fetchone()
    return row[0] if row else None


def current_id(mesh: Mesh, peer_id: str) -> str | None:
    """`binding_id`, from memory where nothing was remembered since."""
    memo, key = mesh.memo, f"binding {peer_id}"
    if key not in memo:
        memo[key] = binding_id(mesh.db.conn, peer_id)
    return cast(str | None, memo[key])


# -- rules ---------------------------------------------------------------------


def bind(change: Change, peer_id: str, **facts: Any) -> bool:
    """Note the session that a peer lives in now, by column; False when nothing of it is new."""
    before = find(change.db, peer_id)
    known = before._asdict() if before else {}
    if before and all(known[name] == fact for name, fact in facts.items()):
        return False
    moved = before is None or any(known[name] != fact for name, fact in facts.items() if name not in CHANGES_WITHIN)
    row = {**known, **facts, "peer_id": peer_id, "bound_at": change.now if moved else known["bound_at"]}
    change.db.execute(
        f"INSERT OR REPLACE INTO sessions ({', '.join(row)}) VALUES ({', '.join('?' for _ in row)})",
        tuple(row.values()),
    )
    if row.get("session") is not None:
        remember(change, peer_id, row["session"], row.get("transcript"), anew=moved)
    change.record("session.bound", peer_id=peer_id, session=row.get("session"), pane_id=row.get("pane_id"))
    return True


def restore(change: Change, session: Session) -> None:
    """As it was before."""
    row = session._asdict()
    change.db.execute(
        f"INSERT OR REPLACE INTO sessions ({', '.join(row)}) VALUES ({', '.join('?' for _ in row)})",
        tuple(row.values()),
    )
    change.record("session.bound", peer_id=session.peer_id, session=session.session, pane_id=session.pane_id)


def remember(change: Change, peer_id: str, session: str, transcript: str | None = None, *, anew: bool = True) -> None:
    """This runtime session is the peer's, `anew` from now on. It keeps its id, whoever lives in it."""
    change.mesh.memo.clear()
    known = change.db.execute(
        "UPDATE session_bindings SET peer_id = ?, transcript = coalesce(?, transcript),"
        " bound_at = CASE WHEN ? THEN ? ELSE bound_at END WHERE session = ?",
        (peer_id, transcript, anew, change.now, session),
    ).rowcount
    if known:
        return
    change.db.execute(
        "INSERT INTO session_bindings VALUES (?, ?, ?, ?, ?)",
        (new_id("rw-session"), peer_id, session, transcript, change.now),
    )
    change.db.execute(
        "DELETE FROM session_bindings WHERE repowire_session_id IN (SELECT repowire_session_id FROM session_bindings"
        " WHERE peer_id = ? ORDER BY bound_at DESC LIMIT -1 OFFSET ?)",
        (peer_id, KEPT),
    )
