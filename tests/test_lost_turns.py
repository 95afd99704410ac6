"""mesh.settle and wire.refusals: what was lost is answered as such, and no 2xx leaves before the disk has it."""

import asyncio
import threading

import aiohttp
import pytest
from conftest import until_async

from repowire import barrier, deliveries


class Trouble:
    """`Mesh.commit` that loses one turn, as on a full disk."""

    def __init__(self, mesh):
        self.mesh, self.commit = mesh, mesh.commit

    def __call__(self):
        turn = self.mesh._turn
        if turn is not None and turn.changes:
            turn.broken = True
            self.mesh.commit = self.commit
        self.commit()


REQUESTS = [
    ("/peers", {"name": "ben", "path": "/src/ben"}),
    ("/notify", {"from_peer": "x", "to_peer": "ann", "text": "hi"}),
    ("/ask", {"from_peer": "x", "to_peer": "ann", "text": "hi", "if_offline": "queue"}),
    ("/peers/ann/description", {"description": "x"}),
    ("/session/update", {"peer_name": "ann", "status": "busy"}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_what_was_lost_is_answered_in_the_one_shape_and_the_connection_goes_on(api, path, body):
    await api.post("/peers", name="ann", path="/src/ann")
    before = api.mesh.ledger.last
    api.mesh.shared = True
    api.mesh.commit = Trouble(api.mesh)
    got = await api.request("POST", path, json=body)
    assert (got.status, got.json["detail"]["error"]) == (503, "store_failed")
    assert api.mesh.ledger.last == before
    assert api.mesh.db.conn.execute("SELECT count(*) FROM deliveries").fetchone()[0] == 0
    assert (await api.request("POST", "/peers/nobody/touch")).status == 404, "a loss is told once"
    assert (await api.request("POST", path, json=body)).status == 200


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_no_reply_leaves_before_the_disk_has_what_it_says(both, monkeypatch, path, body):
    await both.post("/peers", name="ann", path="/src/ann")
    may_sync, sync_file = threading.Event(), barrier.sync_file

    def slow(file):
        may_sync.wait()
        sync_file(file)

    monkeypatch.setattr(barrier, "sync_file", slow)
    sent = asyncio.create_task(both.request("POST", path, json=body))
    try:
        for _ in range(5):  # whole requests, so that the one that waits had every chance to be answered
            await both.get("/health")
        assert not sent.done()
    finally:
        may_sync.set()
    assert (await sent).status == 200


async def test_what_finds_the_write_buffer_full_is_written_by_the_worker(api):
    api.mesh.shared = True
    ann = await api.connect("ann")
    door = api.mesh.doors.of(ann.peer_id)
    await until_async(lambda: door.resting)
    door.at_once = lambda one: False
    for n in range(3):
        await api.post("/notify", to_peer="ann", text=f"{n}")
        assert (await ann.next())["text"] == f"{n}"
        await until_async(lambda: door.resting and not door.unwritten)


@pytest.mark.parametrize("worker_rests", [True, False])
async def test_no_frame_leaves_before_the_disk_has_its_message(api, monkeypatch, worker_rests):
    """Save what the disk was waited for, whatever came into the same door meanwhile."""
    api.mesh.shared = True
    ann = await api.connect("ann", capabilities=["delivery_receipts"])
    door = api.mesh.doors.of(ann.peer_id)
    await until_async(lambda: door.resting)
    if not worker_rests:
        door.at_once = None  # so that nobody writes for it
    await api.mesh.db.on_disk()
    begun, may_sync, sync_file = [], threading.Semaphore(0), barrier.sync_file

    def slow(file):
        begun.append(file)
        may_sync.acquire()
        sync_file(file)

    monkeypatch.setattr(barrier, "sync_file", slow)
    try:
        sent = [asyncio.create_task(api.post("/notify", to_peer="ann", text="one"))]
        await until_async(lambda: begun and len(door.items + door.unwritten) == 1)
        sent.append(asyncio.create_task(api.post("/notify", to_peer="ann", text="two")))
        await until_async(lambda: len(door.items + door.unwritten) == 2)
        may_sync.release()
        assert (await ann.next())["text"] == "one"
        second = asyncio.create_task(ann.next())
        for _ in range(5):
            await api.get("/health")
        assert not second.done()
    finally:
        for _ in range(20):
            may_sync.release()
    assert (await second)["text"] == "two"
    await asyncio.gather(*sent)


@pytest.mark.parametrize("taking", ["lease", "take_again"])
async def test_no_frame_leaves_before_the_disk_has_its_lease(api, monkeypatch, taking):
    """Or a power cut would make the mailbox send it once more."""
    api.mesh.shared = True
    hello = {"path": "/src/ann", "capabilities": ["delivery_receipts", "dedupe"], "instance": "a1"}
    ann = await api.connect("ann", **hello)
    if taking == "take_again":
        await api.post("/notify", to_peer="ann", text="hi")
        await ann.next()  # and no receipt
    await ann.close()
    await until_async(lambda: api.mesh.doors.of(ann.peer_id) is None)
    if taking == "lease":
        await api.post("/notify", to_peer="ann", text="hi")
    may_sync, sync_file, take = threading.Event(), barrier.sync_file, getattr(deliveries, taking)
    may_sync.set()

    def slow(file):
        may_sync.wait()
        sync_file(file)

    def taken(*arguments):
        may_sync.clear()
        return take(*arguments)

    monkeypatch.setattr(barrier, "sync_file", slow)
    monkeypatch.setattr(deliveries, taking, taken)
    try:
        ann = await api.connect("ann", **hello)
        came = asyncio.create_task(ann.next())
        await until_async(lambda: not may_sync.is_set())
        for _ in range(5):
            await api.get("/health")
        assert not came.done()
    finally:
        monkeypatch.setattr(deliveries, taking, take)
        may_sync.set()
    assert (await came)["text"] == "hi"


async def test_a_touch_is_forgiven_and_a_read_waits_for_nothing(both, monkeypatch):
    await both.post("/peers", name="ann", path="/src/ann")

    async def never(*_):
        raise AssertionError("nobody was to wait for the disk")

    monkeypatch.setattr(both.mesh.db, "on_disk", never)
    assert (await both.request("POST", "/peers/ann/touch")).status == 200
    await both.get("/peers/ann")


async def test_a_disk_that_fails_lets_no_success_out(both, monkeypatch):
    async def failed(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(both.mesh.db, "on_disk", failed)
    try:
        status = (await both.request("POST", "/peers", json={"name": "ann"})).status
    except aiohttp.ClientError:
        status = None
    assert status in (None, 500, 503)


@pytest.mark.parametrize("path", ["/notify", "/ask", "/ask-many"])
async def test_what_was_lost_on_its_way_to_a_live_socket_is_answered_and_the_next_goes_through(api, path):
    api.mesh.shared = True
    ann = await api.connect("ann", capabilities=["delivery_receipts", "dedupe"], instance="a1")
    await until_async(lambda: api.mesh.doors.of(ann.peer_id).resting)
    api.mesh.commit = Trouble(api.mesh)
    to = {"to_peers": ["ann"]} if path == "/ask-many" else {"to_peer": "ann"}
    body = {**to, "from_peer": "x", "text": "hi"}
    got = await asyncio.wait_for(api.request("POST", path, json=body), 5)
    assert (got.status, got.json["detail"]["error"]) == (503, "store_failed")
    assert (await api.request("POST", path, json=body)).status == 200
    assert (await ann.next())["text"].startswith("hi")
