"""The store: what `on_disk` returned for is on the disk, a failed disk is never hidden, and a bad file is refused."""

import asyncio
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from repowire import barrier, db
from repowire.barrier import StoreError
from repowire.db import Database

SECONDS = 10
TABLE = ["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"]
Open = Callable[..., Database]


class Disk:
    """Stands in for `sync_file`: each sync waits for leave, and can be told to fail."""

    def __init__(self) -> None:
        self.started, self.leave = threading.Semaphore(0), threading.Semaphore(0)
        self.error: OSError | None = None
        self.syncs = 0

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        self.started.release()
        assert self.leave.acquire(timeout=SECONDS)
        if self.error is not None:
            raise self.error

    async def has_started(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    made: list[Database] = []

    def build(at: Path = path, **settings: Any) -> Database:
        made.append(Database(at, **settings))
        made[-1].migrate("t", TABLE)
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A disk on leave; at the end every sync may go on, so that close() does not wait."""
    found = Disk()
    monkeypatch.setattr(barrier, "sync_file", found.sync)
    yield found
    found.leave.release(1_000)


def insert(store: Database, text: str = "x") -> None:
    with store.transaction() as conn:
        conn.execute("INSERT INTO t (v) VALUES (?)", (text,))


def count(store: Database) -> int:
    return int(store.conn.execute("SELECT count(*) FROM t").fetchone()[0])


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        await asyncio.sleep(0.002)


# -- transactions --------------------------------------------------------------


def test_a_transaction_commits_and_counts(opened: Open) -> None:
    store = opened()
    before = store.committed
    insert(store)
    assert (count(store), store.committed, store.conn.in_transaction) == (1, before + 1, False)


def test_an_exception_takes_everything_back(opened: Open) -> None:
    store = opened()
    before = store.committed
    with suppress(KeyError), store.transaction() as conn:
        conn.execute("INSERT INTO t (v) VALUES ('x')")
        raise KeyError
    assert (count(store), store.committed, store.conn.in_transaction) == (0, before, False)


def test_a_transaction_in_another_is_a_mistake_that_takes_both_back(opened: Open) -> None:
    store = opened()

    def nest() -> None:
        with store.transaction():
            insert(store)
            insert(store)

    with pytest.raises(RuntimeError, match="open already"):
        nest()
    assert count(store) == 0
    insert(store)


def test_a_commit_that_fails_is_rolled_back_and_raised(opened: Open) -> None:
    store = opened()
    store.migrate("child", ["CREATE TABLE c (t INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)"])
    before = store.committed
    with pytest.raises(sqlite3.IntegrityError), store.transaction() as conn:
        conn.execute("INSERT INTO c VALUES (99)")
    assert (store.committed, store.conn.in_transaction) == (before, False)
    insert(store)


def test_the_connection_is_for_its_own_thread(opened: Open) -> None:
    store = opened()
    errors: list[BaseException] = []

    def intrude() -> None:
        try:
            insert(store)
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_the_pragmas_that_the_promise_rests_on(opened: Open) -> None:
    names = ("journal_mode", "synchronous", "wal_autocheckpoint", "foreign_keys")
    conn = opened().conn
    assert [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == ["wal", 1, 0, 1]


def test_every_file_is_private(opened: Open, path: Path) -> None:
    insert(opened())
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


# -- migrations ----------------------------------------------------------------


def test_a_step_is_applied_once(path: Path) -> None:
    steps = ["CREATE TABLE a (n); INSERT INTO a VALUES (1); -- once; only\n"]
    for more in ([], [], ["INSERT INTO a VALUES (2); INSERT INTO a VALUES ('; not the end')"], []):
        steps += more
        store = Database(path)
        store.migrate("a", steps)
        found = [row["n"] for row in store.conn.execute("SELECT n FROM a ORDER BY rowid")]
        store.close()
    assert found == [1, 2, "; not the end"]


def test_a_trigger_is_one_statement(opened: Open) -> None:
    trigger = "CREATE TRIGGER tr AFTER INSERT ON t BEGIN UPDATE t SET v = 'a'; UPDATE t SET v = v || 'b'; END"
    store = opened()
    store.migrate("tr", [trigger])
    insert(store)
    assert store.conn.execute("SELECT v FROM t").fetchone()["v"] == "ab"


def test_a_step_that_fails_leaves_nothing_of_its_concern(opened: Open) -> None:
    store = opened()
    with pytest.raises(StoreError, match="bringing broken up to date"):
        store.migrate("broken", ["CREATE TABLE b (n)", "CREATE TABLE nonsense ("])
    assert store.conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'b'").fetchone()[0] == 0


def test_a_newer_schema_is_refused(path: Path) -> None:
    store = Database(path)
    store.migrate("a", ["CREATE TABLE a (n)", "CREATE TABLE b (n)"])
    with pytest.raises(StoreError, match=r"state\.db: was written by a newer repowire \(a: 2 steps, 1 known"):
        store.migrate("a", ["CREATE TABLE a (n)"])
    store.close()


# -- refusals ------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        Database(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_garbage_is_refused_with_the_way_out(path: Path) -> None:
    path.write_bytes(os.urandom(8_192))
    assert "is not a database; move state.db, state.db-wal and state.db-shm aside" in refused(path)


def test_a_damaged_file_is_refused_with_the_way_out(opened: Open, path: Path) -> None:
    store = opened()
    for _ in range(200):
        insert(store, "y" * 500)
    store.close()
    with open(path, "r+b") as file:
        file.seek(4_096 * 3)
        file.write(b"\xff" * 4_096 * 4)
    assert "is damaged" in (words := refused(path))
    assert "restore a backup" in words
    with pytest.raises(StoreError, match="is damaged"):
        Database(path, check=db.Check(path))


def test_a_check_that_begins_before_changes_nothing(opened: Open, path: Path, tmp_path: Path) -> None:
    store = opened()
    insert(store, "kept")
    killed = tmp_path / "killed.db"  # as a daemon that was killed leaves it: all of it in the log
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{killed}{end}")
    log = Path(f"{killed}-wal").read_bytes()
    check = db.Check(killed)
    assert (check.result(), Path(f"{killed}-wal").read_bytes()) == ("", log)
    assert count(opened(killed, check=check)) == 1
    store.close()
    check = db.Check(path)
    assert check.result() == "ok"
    assert not list(tmp_path.glob("state.db-*"))
    assert count(opened(path, check=check)) == 1
    assert db.Check(tmp_path / "none.db").result() == ""
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(("found", "again"), [("ok", 0), ("page 7 is never used", 1)])
def test_what_the_check_found_good_is_not_looked_at_again(
    opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch, found: str, again: int
) -> None:
    opened().close()
    check, said, connect = db.Check(path), [], db._connect
    assert check.result() == "ok"
    check._found = found

    def traced(*args: Any, **more: Any) -> sqlite3.Connection:
        conn = connect(*args, **more)
        conn.set_trace_callback(said.append)
        return conn

    monkeypatch.setattr(db, "_connect", traced)
    opened(path, check=check)
    assert len([words for words in said if "quick_check" in words]) == again


def test_the_file_of_another_program_is_refused(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE tracked_work (id)")
    other.close()
    assert "belongs to another program" in refused(path)
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA application_id").fetchone()[0] == 0  # and it was not touched
    other.close()


def test_a_symbolic_link_is_refused(tmp_path: Path, path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    refused(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none" / "state.db")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.SQLITE_FULL, "the disk is full"),
        (sqlite3.SQLITE_READONLY, "read-only"),
        (sqlite3.SQLITE_CANTOPEN, "permissions"),
        (sqlite3.SQLITE_BUSY, "held by another program"),
        (sqlite3.SQLITE_IOERR, "look at the disk"),
        (sqlite3.SQLITE_CORRUPT, "is damaged"),
    ],
)
def test_every_way_to_fail_has_words(path: Path, monkeypatch: pytest.MonkeyPatch, error: int, words: str) -> None:
    def fail(*_: object, **__: object) -> None:
        found = sqlite3.OperationalError("as injected")
        found.sqlite_errorcode = error
        raise found

    monkeypatch.setattr(sqlite3, "connect", fail)
    assert words in refused(path)


def test_a_full_disk_at_work_is_an_error_and_the_store_lives_on(opened: Open) -> None:
    store = opened()
    pages = store.conn.execute("PRAGMA page_count").fetchone()[0]
    store.conn.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        insert(store, "x" * 100_000)
    store.conn.execute("PRAGMA max_page_count = 1000000")
    insert(store)
    assert count(store) == 1


# -- the barrier ---------------------------------------------------------------


async def test_a_sync_that_began_before_the_commit_does_not_count(opened: Open, disk: Disk) -> None:
    store = opened()
    insert(store)
    first = asyncio.create_task(store.on_disk())
    await disk.has_started()
    insert(store)  # while the first sync runs
    second = asyncio.create_task(store.on_disk())
    await asyncio.sleep(0)
    disk.leave.release()
    await asyncio.wait_for(first, SECONDS)
    await disk.has_started()
    assert not second.done()
    disk.leave.release()
    await asyncio.wait_for(second, SECONDS)
    assert store.synced == store.committed


async def test_a_call_comes_when_the_disk_has_what_was_committed_before_it(opened: Open, disk: Disk) -> None:
    store, told = opened(), list[BaseException | None]()
    insert(store)
    waiting = asyncio.create_task(store.on_disk())
    await disk.has_started()
    insert(store)  # while the first sync runs
    store.when_on_disk(told.append)
    disk.leave.release()
    await asyncio.wait_for(waiting, SECONDS)
    await disk.has_started()
    assert told == []
    disk.leave.release()
    await until(lambda: told)
    store.when_on_disk(told.append)  # the disk has it: all the same it is not called while somebody is at it
    assert told == [None]
    await until(lambda: len(told) == 2)
    disk.error = OSError(errno.EIO, "Input/output error")
    insert(store)
    store.when_on_disk(told.append)
    disk.leave.release()
    await until(lambda: len(told) == 3)
    store.when_on_disk(told.append)
    await until(lambda: len(told) == 4)
    assert [type(one) for one in told] == [type(None)] * 2 + [StoreError] * 2


async def test_one_sync_serves_all_who_wait(opened: Open, disk: Disk) -> None:
    store = opened()
    insert(store)
    waiting = [asyncio.create_task(store.on_disk())]
    await disk.has_started()
    for _ in range(32):
        insert(store)
        waiting.append(asyncio.create_task(store.on_disk()))
        await asyncio.sleep(0)
    disk.leave.release(2)
    await asyncio.wait_for(asyncio.gather(*waiting), SECONDS)
    assert disk.syncs == 2


async def test_what_is_synced_costs_no_second_sync(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    insert(store)
    await store.on_disk()
    monkeypatch.setattr(store, "_to_sync", None)  # whoever asks for a sync now fails
    await store.on_disk()
    monkeypatch.undo()


async def test_the_first_barrier_covers_what_a_killed_process_left(opened: Open, disk: Disk) -> None:
    waiting = asyncio.create_task(opened().on_disk())
    await disk.has_started()
    assert not waiting.done()
    disk.leave.release()
    await asyncio.wait_for(waiting, SECONDS)


async def test_the_folder_is_synced_once(opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(barrier, "sync_folder", folders.append)
    store = opened()
    for _ in range(3):
        insert(store)
        await store.on_disk()
    assert folders == [path.parent]


async def test_a_failed_sync_is_told_to_all_for_good(opened: Open, disk: Disk) -> None:
    failures: list[BaseException] = []
    store = opened(on_failure=failures.append)
    disk.error = OSError(errno.EIO, "Input/output error")
    insert(store)
    waiting = [asyncio.create_task(store.on_disk()) for _ in range(3)]
    await disk.has_started()
    disk.leave.release()
    ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SECONDS)
    assert [type(one) for one in ended] == [StoreError] * 3
    await until(lambda: failures)
    disk.error = None  # the kernel says so gladly; the page is lost all the same
    insert(store)
    with pytest.raises(StoreError, match="could not be put on the disk"):
        await store.on_disk()
    assert failures == [store.failure]
    assert disk.syncs == 1


async def test_who_stops_waiting_disturbs_nobody(opened: Open, disk: Disk) -> None:
    store = opened()
    insert(store)
    gone, stays = asyncio.create_task(store.on_disk()), asyncio.create_task(store.on_disk())
    await disk.has_started()
    gone.cancel()
    await asyncio.sleep(0)
    disk.leave.release()
    await asyncio.wait_for(stays, SECONDS)
    assert gone.cancelled()


async def test_a_forgiven_write_is_synced_within_a_second_or_two(opened: Open) -> None:
    others: list[int] = []
    store = opened(also_sync=[lambda: others.append(1)])
    insert(store)
    await until(lambda: store.synced == store.committed and others)


async def test_what_only_the_ledger_holds_is_synced_on_request(opened: Open) -> None:
    others: list[int] = []
    store = opened(also_sync=[lambda: others.append(1)])
    await until(lambda: others)  # what the migration made stale
    others.clear()
    store.sync_soon()
    await until(lambda: others)


async def test_also_sync_runs_after_the_waiters_woke_and_no_failure_of_it_is_ours(opened: Open, disk: Disk) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = opened(also_sync=[fail])
    insert(store)
    disk.leave.release(100)
    await asyncio.wait_for(store.on_disk(), SECONDS)
    store.close()
    assert store.failure is None


def test_close_syncs_what_nobody_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(barrier, "sync_file", synced.append)
    others: list[int] = []
    store = Database(path, also_sync=[lambda: others.append(1)])
    store.migrate("t", TABLE)
    insert(store)
    store.close()
    store.close()
    assert synced
    assert others == [1]
    assert sorted(os.listdir(path.parent)) == ["state.db"]


async def test_close_wakes_who_still_waits(opened: Open) -> None:
    store = opened()
    insert(store)
    waiting = asyncio.create_task(store.on_disk())
    await asyncio.sleep(0)
    store.close()
    await asyncio.wait_for(waiting, SECONDS)


# -- reads ---------------------------------------------------------------------


async def test_a_read_is_one_snapshot_off_the_loop_and_cannot_write(opened: Open) -> None:
    store = opened()
    insert(store)
    entered, go = threading.Event(), threading.Event()

    def look(conn: sqlite3.Connection) -> tuple[int, int, int]:
        first = conn.execute("SELECT count(*) FROM t").fetchone()[0]
        entered.set()
        assert go.wait(SECONDS)
        return first, conn.execute("SELECT count(*) FROM t").fetchone()[0], threading.get_ident()

    reading = asyncio.create_task(store.read(look))
    await until(entered.is_set)
    insert(store)
    go.set()
    first, second, thread = await reading
    assert (first, second) == (1, 1)
    assert thread != threading.get_ident()
    assert await store.read(lambda conn: conn.execute("SELECT count(*) FROM t").fetchone()[0]) == 2
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await store.read(lambda conn: conn.execute("DELETE FROM t"))


# -- checkpoints ---------------------------------------------------------------


def frames(store: Database) -> int:
    return store._frames()


async def test_the_log_stays_bounded_under_a_steady_stream(opened: Open, path: Path) -> None:
    limit, lines = 128 * 1024, 3_000
    store = opened(checkpoint_bytes=limit)
    most = 0
    for _ in range(lines):
        insert(store, "x" * 800)
        await store.on_disk()
        most = max(most, os.stat(f"{path}-wal").st_size)
    assert most < 16 * limit, most
    assert count(store) == lines
    assert store.conn.execute("PRAGMA page_count").fetchone()[0] * 4_096 > 16 * limit


async def test_a_write_does_not_stay_in_the_log_for_ever(opened: Open, path: Path) -> None:
    store = opened(checkpoint_seconds=0.05)
    insert(store, "found-in-the-file")
    # read by another process: closing a descriptor of the file in this one would drop SQLite's locks
    await until(lambda: subprocess.run(["grep", "-q", "found-in-the-file", path], check=False).returncode == 0)


async def test_a_long_reader_does_not_make_a_checkpoint_hold_the_write_lock(opened: Open) -> None:
    store = opened(checkpoint_bytes=64 * 1024)
    entered, go = threading.Event(), threading.Event()

    def look(conn: sqlite3.Connection) -> int:
        conn.execute("SELECT count(*) FROM t").fetchone()
        entered.set()
        assert go.wait(SECONDS)
        return 1

    reading = asyncio.create_task(store.read(look))
    await until(entered.is_set)
    for _ in range(500):
        insert(store, "x" * 800)
    go.set()
    assert await reading == 1
    grown = frames(store)
    assert grown > 500  # nothing could start over while the reader held its snapshot
    for _ in range(300):
        insert(store, "x" * 800)
        await store.on_disk()
        if frames(store) < grown // 2:
            return
    pytest.fail("the log never started over once the reader had left")
