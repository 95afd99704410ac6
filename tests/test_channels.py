"""channels.py: what a channel took and had not begun to write is not lost with it."""

import asyncio
import os

import pytest
from conftest import until_async
from fake_claude import Inbox

from repowire import channels, claims, deliveries, messages, sessions
from repowire.claims import Claim


@pytest.mark.parametrize("stuck", ["looking", "connecting"])
async def test_a_channel_that_ends_before_it_wrote_gives_the_message_back(mesh, monkeypatch, stuck):
    reached = asyncio.Event()

    async def forever(*_):
        reached.set()
        await asyncio.Event().wait()

    async def open_gate(*_):
        return None

    monkeypatch.setattr(channels, "why_held", forever if stuck == "looking" else open_gate)
    monkeypatch.setattr(asyncio, "open_unix_connection", forever)
    with mesh.change() as change:
        ben, _ = claims.register(change, Claim("ben", path="/src/ben"), connected=True)
        sessions.bind(change, ben.peer_id, session="s-1", inbox="/inbox")
    channel = channels.Channel(mesh, sessions.find(mesh.db.conn, ben.peer_id))
    serving = asyncio.create_task(channel.run())
    await until_async(lambda: channel.door.resting)
    with mesh.change() as change:
        sent = [messages.notify(change, mesh, messages.Note("ann", "ben", text))[0] for text in ("one", "two")]
    await reached.wait()
    serving.cancel()
    await asyncio.wait([serving])
    found = [deliveries.load(mesh.db.conn, one.delivery_id) for one in sent]
    assert [(one.state, one.reason) for one in found] == [("queued", "way_closed")] * 2
    assert deliveries.first(mesh.db.conn, ben.peer_id) == found[0]


async def test_an_inbox_is_served_again_when_the_socket_that_came_after_it_closes(both, short_folder):
    mesh, inbox = both.mesh, Inbox(short_folder / "inbox")
    me = {"agent_pid": os.getpid(), "agent_started": mesh.procs.started(os.getpid())}
    with mesh.change() as change:
        ben, _ = claims.register(change, Claim("ben", path="/src/ben", backend="claude-code", **me), connected=True)
        proof = claims.certify(change, ben)
        sessions.bind(change, ben.peer_id, session="s-1", inbox=str(inbox.path))
    await until_async(lambda: mesh.doors.of(ben.peer_id) is not None)
    socket = await both.connect("ben", peer_id=ben.peer_id, birth_certificate=proof, capabilities=["dedupe"])
    assert socket.peer_id == ben.peer_id
    await both.post("/notify", from_peer="ann", to_peer="ben", text="over the socket")
    assert (await socket.next())["text"] == "over the socket"
    assert inbox.taken == []
    await socket.close()
    await until_async(lambda: not any(door.way == "socket" for door in mesh.doors))
    await both.post("/notify", from_peer="ann", to_peer="ben", text="for the inbox")
    await until_async(lambda: len(inbox.taken) == 1)
    assert "for the inbox" in inbox.taken[0]
    inbox.close()
