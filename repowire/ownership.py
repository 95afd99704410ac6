"""Ownership: which panes are our own making, by evidence that outlives the daemon.

A pane is ours while tmux server, pane and process are the very ones that were written down when we opened it: each by
number and start. What we did not open, or cannot prove, is never killed (field.md B 21).
"""

from sqlite3 import Connection
from typing import NamedTuple

from repowire.mesh import Change
from repowire.procs import Procs
from repowire.tmux import Server

# Phases of a spawn
OPENING = "opening"  # nothing of it is known to be there; its pane ends by itself when it asks for its order
RUNNING = "running"  # the pane is there, and was told what to become
RESTARTING = "restarting"  # its program is being ended, to be started again in the same pane

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE spawns (
    spawn_id TEXT PRIMARY KEY,
    peer_id TEXT,                                -- NULL while it is opening for the first time
    phase TEXT NOT NULL,
    backend TEXT NOT NULL, profile TEXT, command TEXT NOT NULL,      -- the command as the config has it
    path TEXT NOT NULL,
    tmux TEXT NOT NULL,                          -- the socket
    server_pid INTEGER, server_started REAL, pane_id TEXT,
    pane_pid INTEGER, pane_started REAL,         -- the pane's first process, which our launcher became
    remains INTEGER NOT NULL,                    -- 1 while the pane stands on when its program ends, by our doing
    made_at REAL NOT NULL                        -- unix seconds
) WITHOUT ROWID;
CREATE INDEX spawns_by_peer ON spawns (peer_id);
"""
]


class Spawn(NamedTuple):
    """A row of `spawns`."""

    spawn_id: str
    peer_id: str | None
    phase: str
    backend: str
    profile: str | None
    command: str
    path: str
    tmux: str
    server_pid: int | None
    server_started: float | None
    pane_id: str | None
    pane_pid: int | None
    pane_started: float | None
    remains: int
    made_at: float

    @property
    def pane(self) -> "Owned | None":
        """The pane, once it is known."""
        numbers = (self.server_pid, self.server_started, self.pane_id, self.pane_pid, self.pane_started)
        if None in numbers:
            return None
        assert self.server_pid is not None
        assert self.server_started is not None
        assert self.pane_id is not None
        assert self.pane_pid is not None
        assert self.pane_started is not None
        server = Server(self.tmux, self.server_pid, self.server_started)
        return Owned(server, self.pane_id, self.pane_pid, self.pane_started)


class Owned(NamedTuple):
    """A pane that we opened: to be compared with what is there before anything is done to it."""

    server: Server
    pane_id: str
    pid: int
    started: float


# -- queries -------------------------------------------------------------------


def find(db: Connection, spawn_id: str) -> Spawn | None:
    row = db.execute("SELECT * FROM spawns WHERE spawn_id = ?", (spawn_id,)).fetchone()
    return Spawn(*row) if row else None


def of_peer(db: Connection, peer_id: str) -> Spawn | None:
    """What we opened for a peer last."""
    row = db.execute("SELECT * FROM spawns WHERE peer_id = ? ORDER BY made_at DESC LIMIT 1", (peer_id,)).fetchone()
    return Spawn(*row) if row else None


def unsettled(db: Connection) -> list[Spawn]:
    """Those that a daemon left half done, or whose pane is not yet as its user has it."""
    return [Spawn(*row) for row in db.execute("SELECT * FROM spawns WHERE phase != 'running' OR remains = 1")]


def ended(db: Connection, procs: Procs) -> list[Spawn]:
    """Those whose pane runs nothing of ours any more, and was left to its user."""
    rows = db.execute("SELECT * FROM spawns WHERE phase = 'running' AND remains = 0")
    found = [Spawn(*row) for row in rows.fetchall()]
    return [one for one in found if one.pane is None or not procs.alive(one.pane.pid, one.pane.started)]


def standing(db: Connection, procs: Procs) -> int:
    """How many are being opened, or run."""
    rows = [Spawn(*row) for row in db.execute("SELECT * FROM spawns")]
    return sum(
        one.phase == OPENING or (one.pane is not None and procs.alive(one.pane.pid, one.pane.started)) for one in rows
    )


def rooted(db: Connection, pid: int, started: float) -> Spawn | None:
    """What we opened whose pane's first process is this one."""
    row = db.execute("SELECT * FROM spawns WHERE pane_pid = ? AND pane_started = ?", (pid, started)).fetchone()
    return Spawn(*row) if row else None


# -- rules ---------------------------------------------------------------------


def open_one(change: Change, spawn: Spawn) -> None:
    """Write down what is about to be opened."""
    change.db.execute(f"INSERT INTO spawns VALUES ({', '.join('?' for _ in spawn)})", spawn)


def change_columns(change: Change, spawn_id: str, **columns: object) -> None:
    """Set columns of the row."""
    marks = ", ".join(f"{name} = ?" for name in columns)
    change.db.execute(f"UPDATE spawns SET {marks} WHERE spawn_id = ?", (*columns.values(), spawn_id))


def disown(change: Change, spawn_id: str) -> None:
    """There is nothing of it any more."""
    change.db.execute("DELETE FROM spawns WHERE spawn_id = ?", (spawn_id,))
