"""Sessions: the runtime session that a peer lives in now, and the ways into it.

One row a peer, kept when the session ends: whoever comes back in the same session, or in the same pane of the same tmux
server, is known by it. A pane id says little by itself, since each server counts anew (field.md B 21).
"""

from sqlite3 import Connection
from typing import Any, NamedTuple

from repowire.mesh import Change

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
]


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
