"""messages.py: /broadcast reaches whom it should, once each, and says honestly whom it did not."""

import asyncio

import pytest
from conftest import until_async

from repowire import intake, mailboxes


@pytest.fixture
async def town(both):
    return {
        "ann": await both.connect("ann", path="/src/ann", capabilities=["delivery_receipts"]),
        "ben": await both.connect("ben", path="/src/ben", capabilities=["delivery_receipts"]),
        "eve": await both.connect("eve", path="/src/eve", circle="night"),
    }


async def test_a_broadcast_reaches_the_senders_circle_and_not_the_sender(both, town):
    await both.post("/peers", name="away", path="/src/away")
    got = await both.post("/broadcast", from_peer="ann", text="frozen")
    assert (got["ok"], got["sent_to"], got["failed"]) == (True, ["ben"], [])
    (one,) = got["deliveries"]
    frame = await town["ben"].next()
    assert frame == {"type": "broadcast", "delivery_id": one["delivery_id"], "from_peer": "ann", "text": "frozen"}
    await town["ben"].receipt(frame)
    count = both.mesh.db.conn.execute("SELECT count(*) FROM deliveries").fetchone()[0]
    assert count == 1


@pytest.mark.parametrize(
    ("fields", "reached"),
    [
        ({"from_peer": "ann", "bypass_circle": True}, ["ben", "eve"]),
        ({"from_peer": "stranger"}, ["ann", "ben", "eve"]),
        ({}, ["ann", "ben", "eve"]),  # the human is in every circle
        ({"from_peer": "ann", "exclude": ["ben"]}, []),
        ({"from_peer": "eve", "exclude": ["nobody"]}, []),
    ],
)
async def test_circles_and_exclusions(both, town, fields, reached):
    assert (await both.post("/broadcast", text="x", **fields))["sent_to"] == reached


async def test_a_full_mailbox_holds_back_nobody_else(both, town):
    door = both.mesh.doors.of(town["ben"].peer_id)
    door.stalled, door.retry_at = True, both.mesh.clock.now() + 1000  # it does not read
    with both.mesh.change() as change:
        for _ in range(both.mesh.config.daemon.delivery_queue_max_per_peer):
            frame = {"type": "notify", "from_peer": "x", "text": "x"}
            intake.queue(change, town["ben"].peer_id, frame, expires_at=change.now + 60, most=1000)
    got = await both.post("/broadcast", text="x")
    assert got["sent_to"] == ["ann", "eve"]
    assert [one["peer"] for one in got["failed"]] == ["ben"]
    assert "wait for this peer already" in got["failed"][0]["error"]
    assert (await town["ann"].next())["text"] == "x"


async def test_a_copy_is_stored_as_a_message_to_one_is(town, both):
    """Through an open door, held by a person, and behind what waits: the same columns, save the ids."""
    await both.post("/peers/ben/hold", reason="in a demo")
    both.mesh.doors.of(town["eve"].peer_id).clear = False
    with both.mesh.change() as change:
        how = {"trace": "bcast-x", "from_peer_id": "p", "expires_at": change.now + 60, "most": 10}
        frame = {"type": "broadcast", "from_peer": "x", "text": "\x02 'x' \u20ac"}
        ids = [peer.peer_id for peer in town.values()]
        copies, refused = intake.queue_all(change, ids, frame, **how)
        alone = [intake.queue(change, peer_id, frame, **how) for peer_id in ids]
        assert (refused, [one.state for one in copies]) == ([], ["leased", "held", "queued"])

        def rows(made):
            for one in made:
                row = change.db.execute("SELECT * FROM deliveries WHERE delivery_id = ?", (one.delivery_id,)).fetchone()
                yield [(type(value), value) for value in tuple(row)[2:]]  # after the seq and the id

        assert list(rows(copies)) == list(rows(alone))


async def test_its_trace_shows_every_delivery(both, town):
    got = await both.post("/broadcast", text="x")
    for peer in town.values():
        await peer.next()
    trace = await both.get(f"/traces/{got['broadcast_id']}")
    assert trace["kind"] == "broadcast"
    stages = [one["stage"] for one in trace["stages"]]
    assert stages[:2] == ["created", "resolved_peer"]
    assert stages.count("leased") == 3
    assert len({one["peer_id"] for one in trace["stages"] if one["stage"] == "leased"}) == 3
    events = await both.get("/events")
    assert [one["text"] for one in events if one["type"] == "broadcast"] == ["x"]


async def test_exclude_is_a_list_of_names(both):
    got = await both.post("/broadcast", expect=422, text="x", exclude=[1])
    assert got["detail"]["field"] == "exclude"


async def test_a_broadcast_leaves_others_their_turn_and_each_peer_its_order(api, monkeypatch):
    mesh = api.mesh
    mesh.shared = True
    sockets = [await api.connect(f"p{n}", path=f"/src/p{n}") for n in range(5)]
    await until_async(lambda: all(door.resting for door in mesh.doors))
    slices, write = [], mailboxes._write_at_once
    frame = {"type": "notify", "from_peer": "x", "text": "in between"}

    def note():
        with mesh.change() as change:
            for socket in (sockets[0], sockets[-1]):
                intake.queue(change, socket.peer_id, frame, expires_at=change.now + 60, most=10)

    def write_and_note(mesh, doors):
        slices.append(len(doors))
        write(mesh, doors)
        if len(slices) == 1:
            asyncio.get_running_loop().call_soon(note)

    monkeypatch.setattr(mailboxes, "SLICE", 2)
    monkeypatch.setattr(mailboxes, "_write_at_once", write_and_note)
    await api.post("/broadcast", text="all hands")
    assert [(await socket.next())["text"] for socket in sockets] == ["all hands"] * 5
    assert [(await socket.next())["text"] for socket in (sockets[0], sockets[-1])] == ["in between"] * 2
    assert slices == [2, 2, 1, 2]
