"""queries.py: an ask and its wait in one; 200 with text or words, and no reply is lost when the time is up."""

import asyncio

from repowire import deliveries


async def test_a_query_brings_the_reply(both):
    await both.post("/peers", name="ann", path="/src/ann")
    ben = await both.connect("ben", path="/src/ben")
    asking = asyncio.create_task(both.post("/query", from_peer="ann", to_peer="ben", text="ready?"))
    frame = await ben.next()
    await both.post("/ack", correlation_id=frame["correlation_id"], message="yes")
    assert await asking == {
        "text": "yes",
        "error": None,
        "status": None,
        "correlation_id": frame["correlation_id"],
    }


async def test_a_declined_query_says_why(both):
    ben = await both.connect("ben", path="/src/ben")
    asking = asyncio.create_task(both.post("/query", to_peer="ben", text="ready?"))
    frame = await ben.next()
    await both.post("/decline", correlation_id=frame["correlation_id"], reason="not mine")
    got = await asking
    assert got["text"] is None
    assert got["error"].endswith("declined: not mine")


async def test_a_late_reply_comes_as_a_message(both):
    ann = await both.post("/peers", name="ann", path="/src/ann")
    await both.connect("ben", path="/src/ben")
    got = await both.post("/query", from_peer="ann", to_peer="ben", text="ready?", timeout=0.01)
    assert (got["text"], "stays open" in got["error"]) == (None, True)
    await both.post("/ack", correlation_id=got["correlation_id"], message="at last")
    assert deliveries.depth(both.mesh.db.conn, ann["peer_id"]) == 1


async def test_who_is_unknown_busy_or_away_is_not_asked(both):
    got = await both.post("/query", to_peer="nobody", text="x")
    assert (got["text"], "no peer 'nobody'" in got["error"]) == (None, True)
    ben = await both.connect("ben", path="/src/ben")
    await both.post("/session/update", peer_name="ben", status="busy")
    assert (await both.post("/query", to_peer="ben", text="x"))["status"] == "busy"
    await ben.close()
    await both.post("/peers/ben/offline")
    assert (await both.post("/query", to_peer="ben", text="x"))["status"] == "offline"
    assert both.mesh.db.conn.execute("SELECT count(*) FROM asks").fetchone()[0] == 0
