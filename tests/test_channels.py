"""channels.py: what a channel took and had not begun to write is not lost with it."""

import asyncio

import pytest
from conftest import until_async

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
