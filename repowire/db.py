"""The database: the only `sqlite3.connect`, and transactions on the loop's thread.

Checkpoints and long reads have threads of their own, as the sync has: see `barrier`.
"""

import asyncio
import logging
import math
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from repowire.barrier import Barrier, Requests, StoreError, next_request

T = TypeVar("T")
log = logging.getLogger(__name__)

APPLICATION_ID = 0x52505752  # "RPWR" in the file's header: an SQLite file of another program is not taken for ours
LOCK_WAIT_MS = 2_000  # what may hold the write lock is our own checkpoint, for milliseconds on a good disk
CHECKPOINT_WAIT_MS = 20  # a checkpoint that waits for a reader holds the write lock, so it soon gives way
PASSIVE_TRIES = 3
PRAGMAS = (
    "synchronous = NORMAL",
    "wal_autocheckpoint = 0",
    "checkpoint_fullfsync = ON",
    "foreign_keys = ON",
    "cache_size = -1000",  # KiB, half of what SQLite takes: the kernel keeps the pages too
)
LOOK_EVERY = 16  # commits between two looks at the size of the log


# -- opening -------------------------------------------------------------------


def _aside(path: Path) -> str:
    return f"move {path.name}, {path.name}-wal and {path.name}-shm aside together to start anew, or restore a backup"


def _code(error: BaseException) -> int:
    """SQLite's primary result code, 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _explain(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    words = {
        sqlite3.SQLITE_NOTADB: f"is not a database; {_aside(path)}",
        sqlite3.SQLITE_CORRUPT: f"is damaged ({error}); {_aside(path)}",
        sqlite3.SQLITE_FULL: "cannot be written: the disk is full; make room and start again",
        sqlite3.SQLITE_READONLY: "cannot be written: it or its folder is read-only; mend the permissions or the mount",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; look at the permissions of the file and its folder",
        sqlite3.SQLITE_BUSY: "is held by another program; close whatever has it open",
        sqlite3.SQLITE_IOERR: f"cannot be read or written ({error}); look at the disk, then {_aside(path)}",
    }
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StoreError(f"{path}: {words.get(_code(error), f'cannot be used: {reason}')}")


def _connect(path: Path, wait_ms: int, *, any_thread: bool = False) -> sqlite3.Connection:
    conn = sqlite3.connect(
        path, isolation_level=None, cached_statements=512, check_same_thread=not any_thread, timeout=wait_ms / 1000
    )
    conn.row_factory = sqlite3.Row
    for pragma in PRAGMAS:
        conn.execute(f"PRAGMA {pragma}")
    return conn


class Check:
    """The integrity check of a database that was closed in order, in a thread: it begins before the rest is imported.

    Where a log stands beside the file, somebody may be writing, or was killed: then `open` looks for itself.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, ""
        self._thread = threading.Thread(target=self._look, name="db-check", daemon=True)
        if path.is_file() and not path.is_symlink() and not os.path.exists(f"{path}-wal"):
            self._thread.start()

    def _look(self) -> None:
        try:  # takes no lock and makes no file
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as conn:
                self._found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error:
            log.debug("%s: the check is left to the open", self._path)

    def result(self) -> str:
        """`ok`, or what is wrong; empty where it did not look."""
        if self._thread.ident is not None:
            self._thread.join()
        return self._found


def _open(path: Path, keep_bytes: int, check: Check | None) -> sqlite3.Connection:
    found = check.result() if check is not None else ""
    try:
        # made here for its mode, and closed before SQLite comes: closing it later would drop SQLite's POSIX locks
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        conn = _connect(path, LOCK_WAIT_MS)
    except (OSError, sqlite3.Error) as error:
        raise _explain(path, error) from error
    try:
        _check(path, conn, found)
        if conn.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(f"{path}: its file system cannot hold a write-ahead log; choose a local disk for the home")
        conn.execute(f"PRAGMA journal_size_limit = {keep_bytes}")
        conn.execute("CREATE TABLE IF NOT EXISTS schemas (concern TEXT PRIMARY KEY, steps INTEGER NOT NULL) STRICT")
    except sqlite3.Error as error:
        conn.close()
        raise _explain(path, error) from error
    except StoreError:
        conn.close()
        raise
    return conn


def _check(path: Path, conn: sqlite3.Connection, found: str) -> None:
    """Raise StoreError unless the file is empty, or ours and whole; `found` is what was found of it already."""
    if conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        return
    if conn.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreError(f"{path}: belongs to another program or to repowire before 0.1; move it aside to start anew")
    if found != "ok":  # or another daemon came and went meanwhile
        found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(f"{path}: is damaged ({found}); {_aside(path)}")


def _statements(script: str) -> Iterator[str]:
    text = ""
    for piece in script.split(";"):
        text += piece
        if sqlite3.complete_statement(text + ";"):
            yield text
            text = ""
        else:
            text += ";"
    if text.strip("; \n\t"):
        yield text.rstrip(";")


# -- the database --------------------------------------------------------------


class _Transaction(AbstractContextManager[sqlite3.Connection]):
    """BEGIN IMMEDIATE to COMMIT; a class, since a generator costs as much again as the statements."""

    __slots__ = ("_committed", "_conn")

    def __init__(self, conn: sqlite3.Connection, committed: Callable[[], None]) -> None:
        self._conn, self._committed = conn, committed

    def __enter__(self) -> sqlite3.Connection:
        if self._conn.in_transaction:
            raise RuntimeError("a transaction is open already: never await inside one, and never open one in another")
        self._conn.execute("BEGIN IMMEDIATE")
        return self._conn

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._conn.execute("COMMIT")
        finally:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
        if kind is None:
            self._committed()


class Database(Barrier):
    """One connection on the thread that made it, and the barrier behind its commits."""

    def __init__(
        self,
        path: Path,
        *,
        also_sync: Sequence[Callable[[], None]] = (),
        on_failure: Callable[[BaseException], None] | None = None,
        checkpoint_bytes: int = 4 * 1024 * 1024,
        checkpoint_seconds: float = 60,
        check: Check | None = None,
    ) -> None:
        """Raises StoreError. `on_failure` is called once, on the loop's thread, when the disk fails: stop then.

        `check` is that of the file, where it has begun already.
        """
        self.conn = _open(path, 4 * checkpoint_bytes, check)
        super().__init__(path, also_sync, on_failure)
        self._checkpoint_seconds = checkpoint_seconds
        self._full_frames = checkpoint_bytes // (self.conn.execute("PRAGMA page_size").fetchone()[0] + 24)
        self._most_frames = self._full_frames  # the size that starts the next checkpoint
        self._transaction = _Transaction(self.conn, self._note_commit)
        self._aging = self._crowded = False  # the checkpoint thread knows of a commit; of a full log
        self._closed = False
        self._reads = 0
        self._reader: sqlite3.Connection | None = None
        self._reading = ThreadPoolExecutor(1, "db-read")
        # closed after SQLite's own: closing any descriptor of -shm drops the POSIX locks that SQLite holds on it
        self._index_file = os.open(f"{path}-shm", os.O_RDONLY)
        self._to_checkpoint: Requests = queue.SimpleQueue()
        self._checkpointing = threading.Thread(target=self._keep_short, name="db-checkpoint", daemon=True)
        self._checkpointing.start()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """All or nothing, on the loop's thread. A second one inside raises RuntimeError; so never await in it."""
        return self._transaction

    def migrate(self, concern: str, steps: Sequence[str]) -> None:
        """Apply the steps that this file has not seen, all or none. Raises StoreError."""
        try:
            row = self.conn.execute("SELECT steps FROM schemas WHERE concern = ?", (concern,)).fetchone()
            done = row["steps"] if row else 0
            if done > len(steps):
                raise StoreError(
                    f"{self.path}: was written by a newer repowire ({concern}: {done} steps, {len(steps)} known here); "
                    "install that version again, or move the file aside to start anew"
                )
            if done < len(steps):
                self._apply(concern, steps, done)
        except sqlite3.Error as error:
            raise StoreError(f"{_explain(self.path, error)} (while bringing {concern} up to date)") from error

    def _apply(self, concern: str, steps: Sequence[str], done: int) -> None:
        with self.transaction() as conn:
            for step in steps[done:]:
                for statement in _statements(step):
                    conn.execute(statement)
            conn.execute("INSERT OR REPLACE INTO schemas VALUES (?, ?)", (concern, len(steps)))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise StoreError, with the way out, for whatever the database fails in."""
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.path, error) from error

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` on a read-only connection in a thread: one snapshot, whatever is committed meanwhile."""
        self._reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, fn)
        finally:
            self._reads -= 1

    def _read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            self._reader = _connect(self.path, LOCK_WAIT_MS, any_thread=True)
            self._reader.execute("PRAGMA query_only = ON")
        self._reader.execute("BEGIN")
        try:
            return fn(self._reader)
        finally:
            self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """Sync, checkpoint, close. Whoever still waits learns how it ended; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._reader is not None:
            self._reader.interrupt()
        self._reading.shutdown(cancel_futures=True)
        self._to_checkpoint.put(None)
        self._end_syncing()
        self._checkpointing.join()
        if self._reader is not None:
            self._reader.close()
        with suppress(sqlite3.Error):  # the log stays as it is, and the next start reads it
            self.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.conn.close()
        os.close(self._index_file)
        self._close_files()

    # -- checkpoints -----------------------------------------------------------

    def _note_commit(self) -> None:
        self.committed += 1
        if not self._stale:
            self.sync_soon()
        if not self._aging:
            self._aging = True
            self._to_checkpoint.put(False)
        if self.committed % LOOK_EVERY == 0 and not self._crowded and self._frames() > self._most_frames:
            self._crowded = True
            self._to_checkpoint.put(True)

    def _frames(self) -> int:
        """Pages in the log, by the documented header of its index: the file's size tells only the most ever."""
        return int.from_bytes(os.pread(self._index_file, 4, 16), sys.byteorder)

    def _keep_short(self) -> None:
        """The checkpoint thread: when the log is full, or its oldest commit has waited long enough."""
        conn = _connect(self.path, CHECKPOINT_WAIT_MS)
        due = math.inf
        while (now := next_request(self._to_checkpoint, due)) is not None:
            if not now and time.monotonic() < due:
                due = min(due, time.monotonic() + self._checkpoint_seconds)
                continue
            due, self._aging, self._crowded = math.inf, False, False
            if not self._checkpoint(conn):
                due = time.monotonic() + self._checkpoint_seconds
        conn.close()

    def _checkpoint(self, conn: sqlite3.Connection) -> bool:
        """Move the log into the file, so that the next commit begins it anew; False when something was in the way.

        PASSIVE works beside the loop and is enough when no commit comes meanwhile. RESTART holds the write lock while
        it moves the rest, so it comes last, when little is left, and never while a reader would make it wait.
        """
        try:
            done = any(self._is_moved(conn, "PASSIVE") for _ in range(PASSIVE_TRIES))
            done = not self._reads and (done or self._is_moved(conn, "RESTART"))
        except sqlite3.Error as error:
            log.error("%s: checkpoint failed: %s", self.path, error)
            if _code(error) == sqlite3.SQLITE_IOERR:
                self._fail(error)
            done = False
        self._most_frames = self._full_frames if done else self._frames() + self._full_frames // 4
        return done

    def _is_moved(self, conn: sqlite3.Connection, mode: str) -> bool:
        """Checkpoint; whether nothing of the log is left to move."""
        busy, _, moved = conn.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return not busy and moved >= self._frames()
