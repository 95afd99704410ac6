"""mesh.py: changes that happen whole or not at all, events after the commit, and the barrier before a 2xx."""

import asyncio
import contextvars
import errno
import gc
import math
import os
import threading
import weakref

import pytest
from conftest import until_async

from repowire import barrier, config
from repowire import mesh as mesh_module
from repowire.barrier import StoreError
from repowire.errors import Refusal, malformed


@pytest.fixture
def shared(mesh):
    """A mesh whose changes share a commit, as while the disk is busy."""
    mesh.shared, mesh.rest_seconds = True, math.inf
    return mesh


@pytest.fixture(params=["each", "shared"])
def either(request, mesh):
    """A mesh that commits each change by itself, and one that commits a turn's together."""
    mesh.shared, mesh.rest_seconds = request.param == "shared", math.inf
    return mesh


def write(change, key):
    change.db.execute("INSERT INTO presence VALUES (?, 'socket', 'open', 0, NULL)", (key,))


def keys(mesh):
    return [row[0] for row in mesh.db.conn.execute("SELECT peer_id FROM presence ORDER BY peer_id")]


def kinds(mesh, after=0):
    return [line.kind for line in mesh.ledger.after(after)]


def mark(mesh):
    return mesh.db.conn.execute("SELECT seq FROM ledger_mark").fetchone()[0]


def keep(mesh, key, kind="test.kept"):
    with mesh.change() as change:
        write(change, key)
        change.record(kind, key=key)


def fail_after_a_write(mesh, key):
    def failing():
        with mesh.change() as change:
            write(change, key)
            change.record("test.failed", key=key)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def refuse_before_a_write(mesh):
    def refusing():
        with mesh.change() as change:
            change.record("test.refused")
            raise malformed("no")

    with pytest.raises(Refusal):
        refusing()


# -- one change ---------------------------------------------------------------


async def test_a_change_is_kept_with_its_events_after_the_commit(either):
    order = []
    real = either.ledger.extend

    def extend(at, events):
        order.append((either.db.conn.in_transaction, [kind for kind, _ in events]))
        real(at, events)

    either.ledger.extend = extend
    with either.change() as change:
        write(change, "a")
        change.record("test.first", a=1, b=None)
        change.record("test.second")
        change.after(lambda: order.append("after"))
        assert order == []
    await either.committed()
    assert order == [(False, ["test.first", "test.second"]), "after"]
    assert keys(either) == ["a"]
    assert either.ledger.after(0)[-2].facts == {"a": 1}


async def test_a_change_that_fails_leaves_nothing(either):
    before = (either.ledger.last, mark(either))
    called = []

    def failing():
        with either.change() as change:
            write(change, "a")
            change.record("test.failed")
            change.ring("bell")
            change.after(lambda: called.append(1))
            raise ZeroDivisionError

    with either.bus.listen("test.failed", "bell") as nudge:
        with pytest.raises(ZeroDivisionError):
            failing()
        either.commit()
        assert nudge._rung is False
    assert (keys(either), called, (either.ledger.last, mark(either))) == ([], [], before)


async def test_events_ring_by_their_kind_and_the_ids_among_their_facts_once_committed(either):
    with either.bus.listen("test.kept") as by_kind, either.bus.listen("ask-1") as by_id, either.bus.listen("x") as none:
        with either.change() as change:
            change.record("test.kept", correlation_id="ask-1", other="x")
            assert by_kind._rung is False
        assert await by_kind.wait(5) is True
        assert await by_id.wait(5) is True
        assert none._rung is False


async def test_a_change_in_a_change_is_refused_and_so_is_one_of_another_task(either):
    async def other():
        with either.change():
            pass

    with either.change() as change:
        write(change, "a")
        with pytest.raises(RuntimeError, match="never await"):
            either.change().__enter__()
        waiting = asyncio.create_task(other())
        await asyncio.wait([waiting])
        with pytest.raises(RuntimeError, match="never await"):
            waiting.result()
    keep(either, "b")
    await either.committed()
    assert keys(either)[-1] == "b"


async def test_a_change_has_one_moment(either, clock):
    with either.change() as change:
        at = change.now
        clock.advance(5)
        assert change.now == at
        change.record("test.kept")
    await either.committed()
    assert either.ledger.after(0)[-1].at == at


async def test_the_mark_is_the_number_of_the_last_event_after_every_commit(either):
    for n in range(5):
        with either.change() as change:
            for _ in range(n):
                change.record("test.kept")
            write(change, f"{n}")
        await either.committed()
        if n:
            assert mark(either) == either.ledger.last
        either.announce("test.announced")  # belongs to no commit; the next one counts it
    refuse_before_a_write(either)
    keep(either, "last")
    await either.committed()
    assert mark(either) == either.ledger.last == either.ledger.after(0)[-1].seq


async def test_a_commit_that_fails_alone_is_raised_and_tells_nobody(mesh, monkeypatch):
    before = mesh.ledger.last
    monkeypatch.setattr(mesh.db, "_transaction", Broken(mesh.db))
    with pytest.raises(StoreError, match="full"):
        keep(mesh, "a")
    monkeypatch.undo()
    assert (keys(mesh), mesh.ledger.last) == ([], before)
    keep(mesh, "b")
    assert keys(mesh) == ["b"]


class Broken:
    """A transaction whose commit fails as on a full disk."""

    def __init__(self, db):
        self.db = db

    def __enter__(self):
        self.db.conn.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind, error, trace):
        if kind is None:
            raise StoreError("the disk is full")
        self.db.conn.execute("ROLLBACK")


# -- the changes of one turn --------------------------------------------------


async def test_the_changes_of_one_turn_share_a_commit(shared):
    before, at = shared.db.committed, shared.ledger.last
    for n in range(50):
        keep(shared, f"{n:02}")
    assert (shared.db.committed, kinds(shared, at)) == (before, [])
    await shared.committed()
    assert (shared.db.committed, kinds(shared, at)) == (before + 1, ["test.kept"] * 50)
    keep(shared, "next turn")
    await shared.committed()
    assert shared.db.committed == before + 2


async def test_tasks_of_one_turn_share_it_too(shared):
    before = shared.db.committed

    async def one(n):
        keep(shared, f"{n}")
        await shared.committed()
        return shared.db.committed

    assert set(await asyncio.gather(*(one(n) for n in range(20)))) == {before + 1}
    assert len(keys(shared)) == 20


async def test_a_change_that_comes_alone_is_committed_at_once(shared):
    shared.rest_seconds = -1.0
    before, at = shared.db.committed, shared.ledger.last
    keep(shared, "a")
    assert (shared.db.committed, kinds(shared, at)) == (before + 1, ["test.kept"])
    await shared.on_disk()
    fail_after_a_write(shared, "x")
    keep(shared, "b")
    await shared.on_disk()
    assert (keys(shared), shared.db.committed) == (["a", "b"], before + 2)


async def test_a_change_after_another_one_waits_for_its_neighbours(shared):
    shared.rest_seconds = 3600.0
    shared._committed_at = -math.inf
    before = shared.db.committed
    for n in range(50):
        keep(shared, f"{n:02}")
    assert shared.db.committed == before + 1
    await shared.committed()
    assert (shared.db.committed, len(keys(shared))) == (before + 2, 50)


async def test_a_change_after_a_commit_that_several_shared_waits_for_its_neighbours(shared):
    for key in ("a", "b"):
        keep(shared, key)
    await shared.on_disk()
    shared.rest_seconds = -1.0
    before = shared.db.committed
    keep(shared, "c")
    assert shared.db.committed == before
    await shared.on_disk()  # which nobody shared
    keep(shared, "d")
    assert shared.db.committed == before + 2
    await shared.on_disk()
    shared._crowded, shared._committed_at = True, shared._committed_at - mesh_module.CALM_SECONDS
    keep(shared, "e")
    assert shared.db.committed == before + 3


async def test_a_change_while_somebody_waits_for_the_disk_waits_for_its_neighbours(shared, slow_disk):
    shared.rest_seconds = -1.0
    keep(shared, "a")
    before = shared.db.committed
    waiting = asyncio.create_task(shared.on_disk())
    await until_async(slow_disk.asked.is_set)
    keep(shared, "b")
    keep(shared, "c")
    assert shared.db.committed == before
    await shared.committed()
    assert shared.db.committed == before + 1
    slow_disk.go.set()
    await waiting


async def test_a_refusal_before_a_write_undoes_nothing_else_of_the_turn(shared):
    at = shared.ledger.last
    keep(shared, "a")
    refuse_before_a_write(shared)
    keep(shared, "b")
    await shared.committed()
    assert (keys(shared), kinds(shared, at)) == (["a", "b"], ["test.kept"] * 2)


async def test_a_fault_after_a_write_loses_the_turn_and_everybody_in_it_is_told(shared, caplog):
    at, before = shared.ledger.last, shared.db.committed

    async def one(key):
        keep(shared, key)
        await shared.on_disk()

    async def faulty():
        fail_after_a_write(shared, "x")

    ended = await asyncio.gather(one("a"), faulty(), one("b"), return_exceptions=True)
    assert [(one.status, one.error) for one in (ended[0], ended[2])] == [(503, "store_failed")] * 2
    assert "try again" in ended[0].hint
    assert (keys(shared), kinds(shared, at), shared.db.committed) == ([], [], before)
    assert "2 changes were undone" in caplog.text
    await one("c")
    assert (keys(shared), kinds(shared, at), mark(shared)) == (["c"], ["test.kept"], shared.ledger.last)


async def test_a_statement_that_fails_without_a_write_undoes_nothing_else(shared):
    keep(shared, "a")
    with pytest.raises(shared.db.conn.IntegrityError), shared.change() as change:
        write(change, "a")
    await shared.committed()
    assert keys(shared) == ["a"]


async def test_a_commit_that_fails_loses_the_turn(shared, monkeypatch):
    monkeypatch.setattr(shared.db, "_transaction", Broken(shared.db))
    keep(shared, "a")
    with pytest.raises(Refusal) as refused:
        await shared.on_disk()
    assert (refused.value.status, refused.value.error) == (503, "store_failed")
    monkeypatch.undo()
    assert keys(shared) == []


async def test_what_follows_in_a_turn_that_sqlite_undid_by_itself_is_lost_with_it(shared):
    """A statement that finds the disk full may end the transaction: what comes then must not be committed alone."""
    most = shared.db.conn.execute("PRAGMA page_count").fetchone()[0] + 8
    shared.db.conn.execute(f"PRAGMA max_page_count = {most}")

    def filling():
        with shared.change() as change:
            change.db.execute("INSERT INTO presence VALUES ('x', 'socket', ?, 0, NULL)", ("x" * 2**20,))

    keep(shared, "a")
    with pytest.raises(shared.db.conn.OperationalError, match="full"):
        filling()
    assert not shared.db.conn.in_transaction
    keep(shared, "b")
    with pytest.raises(Refusal):
        await shared.on_disk()
    assert keys(shared) == []
    keep(shared, "c")
    await shared.on_disk()
    assert keys(shared) == ["c"]


async def test_a_loss_is_told_though_the_same_task_changed_something_since(shared, monkeypatch):
    shared.rest_seconds = -1.0
    monkeypatch.setattr(shared.db, "_transaction", Broken(shared.db))
    keep(shared, "a")
    monkeypatch.undo()
    keep(shared, "b")
    with pytest.raises(Refusal) as refused:
        await shared.on_disk()
    assert (refused.value.status, keys(shared)) == (503, ["b"])
    keep(shared, "c")
    await shared.on_disk()


async def test_a_loss_that_nobody_asks_for_keeps_nothing_of_its_changes_in_memory(shared, monkeypatch):
    """A task that lasts, such as a socket's, may never ask."""

    class Heavy:
        def __call__(self):
            raise AssertionError("it was lost")

    def losing():
        heavy = Heavy()
        with shared.change() as change:
            write(change, "a")
            change.after(heavy)
        return weakref.ref(heavy)

    monkeypatch.setattr(shared.db, "_transaction", Broken(shared.db))
    heavy = losing()
    shared.commit()
    monkeypatch.undo()
    keep(shared, "b")
    gc.collect()
    assert heavy() is None
    with pytest.raises(Refusal):
        await shared.on_disk()


async def test_a_lost_turn_empties_the_memory_of_rows(shared):
    keep(shared, "a")
    shared.memo["name ben"] = object()
    fail_after_a_write(shared, "x")
    shared.memo["name ann"] = object()
    shared.commit()
    assert shared.memo == {}


async def test_an_event_of_a_peer_empties_the_memory_of_rows_and_no_other_does(either):
    either.memo["name ben"] = 1
    with either.change() as change:
        change.record("ask.opened")
        assert either.memo == {"name ben": 1}
        change.record("peer.changed")
        assert either.memo == {}


# -- the barrier --------------------------------------------------------------


@pytest.fixture
def slow_disk(monkeypatch):
    """Syncs that wait until the test lets them: `go`; `asked` when the first one began."""

    class Disk:
        go, asked = threading.Event(), threading.Event()

    disk, real = Disk(), config.sync_file

    def sync_file(file):
        disk.asked.set()
        assert disk.go.wait(20)
        real(file)

    monkeypatch.setattr(barrier, "sync_file", sync_file)
    yield disk
    disk.go.set()


async def test_on_disk_waits_for_the_sync_of_ones_own_turn_only(shared, slow_disk):
    slow_disk.go.set()
    keep(shared, "a")
    await shared.on_disk()

    async def writer():
        keep(shared, "b")
        await shared.on_disk()

    slow_disk.go.clear()
    slow_disk.asked.clear()
    writing = asyncio.create_task(writer())
    await until_async(slow_disk.asked.is_set)
    await asyncio.wait_for(shared.on_disk(), 5)  # what this task changed last is on the disk long since
    assert not writing.done()
    slow_disk.go.set()
    await asyncio.wait_for(writing, 5)


async def test_on_disk_returns_when_the_commit_is_synced(either):
    for n in range(3):
        keep(either, f"{n}")
        await either.on_disk()
        assert either.db.synced >= mesh_module._MINE.get().number


async def test_who_changed_nothing_waits_for_nothing(shared, slow_disk):
    keep(shared, "another's")
    stranger = asyncio.create_task(shared.on_disk(), context=contextvars.Context())
    await asyncio.wait_for(stranger, 5)


# -- events of no row ---------------------------------------------------------


def fill_the_disk(monkeypatch, words=errno.ENOSPC):
    real = os.write

    def full(file, data):
        if b'"kind"' in bytes(data):
            raise OSError(words, os.strerror(words))
        return real(file, data)

    monkeypatch.setattr(os, "write", full)


async def test_announce_never_raises_with_a_full_disk_and_the_gap_can_be_seen(either, monkeypatch):
    at = either.ledger.last
    with either.bus.listen("test.announced") as nudge, monkeypatch.context() as patched:
        fill_the_disk(patched)
        either.announce("test.announced", n=1, none=None)
        assert await nudge.wait(5) is True
    assert "No space left" in either.ledger.failure
    either.announce("test.announced", n=2, none=None)
    (line,) = either.ledger.after(at)
    assert (line.seq, line.facts, either.ledger.failure) == (at + 2, {"n": 2}, None)


async def test_a_change_is_kept_though_its_event_cannot_be_written(either, monkeypatch):
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        keep(either, "a")
        await either.on_disk()
    assert keys(either) == ["a"]
    assert mark(either) == either.ledger.last


async def test_an_announced_line_is_synced_without_a_commit(mesh, monkeypatch):
    monkeypatch.setattr(barrier, "ALSO_SYNC_SECONDS", 0.0)
    synced = threading.Event()
    monkeypatch.setattr(mesh.db, "_also_sync", [synced.set])
    await until_async(synced.is_set)  # what was committed at the start; from here on nothing is due
    synced.clear()
    mesh.announce("test.announced")
    await until_async(synced.is_set)


async def test_the_index_is_called_once_in_so_many_lines(mesh):
    with mesh.bus.listen("ledger.grown") as nudge:
        for _ in range(mesh_module.INDEX_LINES - mesh.ledger.last - 1):
            mesh.announce("test.announced")
        assert nudge._rung is False
        mesh.announce("test.announced")
        assert nudge._rung is True


async def test_close_commits_what_is_open_and_a_second_one_changes_nothing(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    mesh.shared = True
    keep(mesh, "a")
    mesh.close()
    mesh.close()
    again = new_mesh(tmp_path / "home", clock)
    assert keys(again) == ["a"]
    assert "test.kept" in kinds(again)


# -- on the wire --------------------------------------------------------------


async def test_no_header_of_a_post_leaves_before_the_disk_has_it(both, slow_disk):
    posting = asyncio.create_task(both.request("POST", "/peers", json={"name": "ben", "path": "/src/ben"}))
    await until_async(slow_disk.asked.is_set)
    assert (await both.get("/peers/ben"))["name"] == "ben"  # a GET does not wait
    assert not posting.done()
    slow_disk.go.set()
    assert (await posting).status == 200


async def test_a_touch_waits_for_no_disk(both, slow_disk):
    slow_disk.go.set()
    await both.post("/peers", name="ben", path="/src/ben")
    slow_disk.go.clear()
    await asyncio.wait_for(both.post("/peers/ben/touch"), 5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/peers/ben/description", {"description": "x"}),
        ("/notify", {"from_peer": "ann", "to_peer": "ben", "text": "hi"}),
        ("/ask", {"from_peer": "ann", "to_peer": "ben", "text": "hi", "if_offline": "queue"}),
    ],
)
async def test_a_request_whose_turn_was_lost_is_answered_503(api, path, body):
    mesh = api.mesh
    await api.post("/peers", name="ben", path="/src/ben")
    mesh.shared, mesh.rest_seconds = True, math.inf
    end = mesh._end

    def end_and_fail(change):
        end(change)
        mesh._end = end
        fail_after_a_write(mesh, "x")

    mesh._end = end_and_fail
    got = await api.request("POST", path, json=body)
    assert (got.status, got.json["detail"]["error"]) == (503, "store_failed")
    assert (await api.request("POST", path, json=body)).status == 200
