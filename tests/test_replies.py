"""replies.py: an ask ends once, by whoever is first, and its asker hears of it once."""

import asyncio
import math

import pytest
from conftest import until_async
from test_asks import ack, open_ask, peer

from repowire import asks, deliveries, messages, replies
from repowire.errors import Refusal


@pytest.fixture
def pair(mesh):
    return peer(mesh, "ann"), peer(mesh, "ben")


def decline(mesh, ask, reason="not mine"):
    with mesh.change() as change:
        return replies.decline(change, mesh, ask.correlation_id, reason)


async def asked(api, **fields):
    body = {"from_peer": "ann", "to_peer": "ben", "text": "ready?", "if_offline": "queue", **fields}
    return (await api.post("/ask", **body))["correlation_id"]


# -- rules --------------------------------------------------------------------


async def test_a_decline_closes_the_ask_and_its_reason_reaches_the_asker_once(mesh, pair):
    ask = open_ask(mesh)
    told = decline(mesh, ask)
    assert (told.peer_id, told.payload["text"]) == (
        pair[0].peer_id,
        f"[ask #{ask.correlation_id} to @ben declined] not mine",
    )
    assert decline(mesh, ask) is None
    assert deliveries.depth(mesh.db.conn, pair[0].peer_id) == 1
    assert asks.load(mesh.db.conn, ask.correlation_id).close_reason == "declined"
    assert asks.listed(mesh.db.conn, pair[1].peer_id, "inbound", "open", 10) == []


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lambda mesh, ask: decline(mesh, ask), lambda mesh, ask: decline(mesh, ask, "another reason")),
        (lambda mesh, ask: decline(mesh, ask), lambda mesh, ask: ack(mesh, ask, "not mine")),
        (lambda mesh, ask: ack(mesh, ask, "not mine"), lambda mesh, ask: decline(mesh, ask)),
        (lambda mesh, ask: ack(mesh, ask), lambda mesh, ask: decline(mesh, ask)),
    ],
)
async def test_the_first_end_stands(mesh, pair, first, then):
    ask = open_ask(mesh)
    first(mesh, ask)
    before = asks.load(mesh.db.conn, ask.correlation_id)
    with pytest.raises(Refusal) as refused:
        then(mesh, ask)
    assert (refused.value.status, refused.value.error) == (410, "ask_closed")
    assert asks.load(mesh.db.conn, ask.correlation_id) == before


async def test_a_bare_ack_of_a_declined_ask_changes_nothing(mesh, pair):
    ask = open_ask(mesh)
    decline(mesh, ask)
    assert ack(mesh, ask) is None
    assert asks.load(mesh.db.conn, ask.correlation_id).close_reason == "declined"


# -- wire ---------------------------------------------------------------------


async def test_a_decline_wakes_the_waiter_with_the_reason_and_queues_nothing(both):
    ann = await both.post("/peers", name="ann", path="/src/ann")
    await both.post("/peers", name="ben", path="/src/ben")
    cid = await asked(both)
    waiting = asyncio.create_task(both.post(f"/asks/{cid}/wait", peer_id="ann"))
    await until_async(lambda: both.mesh.bus.heard(asks.wait_topic(cid)))
    assert await both.post("/decline", correlation_id=cid, reason="not mine") == {"ok": True}
    got = await waiting
    assert (got["status"], got["close_reason"], got["reply"], got["responder"]) == (
        "resolved",
        "declined",
        "not mine",
        "ben",
    )
    assert deliveries.depth(both.mesh.db.conn, ann["peer_id"]) == 0
    assert (await both.get("/asks/history", state="answered"))["asks"] == []


async def test_a_decline_wants_a_reason_and_an_ask(both):
    got = await both.post("/decline", expect=422, correlation_id="ask-000000000000")
    assert got["detail"]["field"] == "reason"
    got = await both.post("/decline", expect=404, correlation_id="ask-000000000000", reason="no")
    assert got["detail"]["error"] == "ask_not_found"


async def test_of_eight_racing_answers_one_reaches_the_asker(both):
    """Four acks with different words and four declines at once: one is 200, the others 410, one message goes out."""
    ann = await both.post("/peers", name="ann", path="/src/ann")
    await both.post("/peers", name="ben", path="/src/ben")
    for _ in range(5):
        cid = await asked(both)
        bodies = [("/ack", {"message": f"yes {n}"}) for n in range(4)]
        bodies += [("/decline", {"reason": f"no {n}"}) for n in range(4)]
        got = await asyncio.gather(
            *(both.request("POST", path, json={"correlation_id": cid, **body}) for path, body in bodies)
        )
        assert sorted(one.status for one in got) == [200] + [410] * 7
        drained = (await both.get("/deliveries/pending", peer_id=ann["peer_id"]))["deliveries"]
        assert len(drained) == 1
        kept = asks.load(both.mesh.db.conn, cid)
        assert drained[0]["text"].endswith(f"] {kept.reply}")


async def test_of_eight_racing_equal_acks_one_reaches_the_asker(both):
    ann = await both.post("/peers", name="ann", path="/src/ann")
    await both.post("/peers", name="ben", path="/src/ben")
    cid = await asked(both)
    got = await asyncio.gather(
        *(both.request("POST", "/ack", json={"correlation_id": cid, "message": "yes"}) for _ in range(8))
    )
    assert [one.status for one in got] == [200] * 8
    assert len((await both.get("/deliveries/pending", peer_id=ann["peer_id"]))["deliveries"]) == 1


async def test_a_response_answers_the_oldest_open_ask_of_the_pane(both):
    await both.post("/peers", name="ann", path="/src/ann")
    await both.post("/peers", name="ben", path="/src/ben", pane_id="%7")
    first, second = await asked(both), await asked(both)
    await both.post("/response", pane_id="%7", text="one")
    await both.post("/response", pane_id="%7", text="two", correlation_id=second)
    db = both.mesh.db.conn
    assert [asks.load(db, cid).reply for cid in (first, second)] == ["one", "two"]
    assert await both.post("/response", pane_id="%7", text="three") == {"ok": True}


async def test_a_response_speaks_for_its_own_pane_only(both):
    await both.post("/peers", name="ann", path="/src/ann", pane_id="%6")
    await both.post("/peers", name="ben", path="/src/ben")
    cid = await asked(both)
    got = await both.post("/response", expect=403, pane_id="%6", text="x", correlation_id=cid)
    assert got["detail"]["error"] == "not_the_asked"
    assert (await both.post("/response", expect=404, pane_id="%9", text="x"))["detail"]["error"] == "pane_not_found"


def test_the_command_line_declines_and_whoever_waits_reads_why(live):
    live.post("/peers", name="ben", path="/src/ben")
    cid = live.cli("ask", "ben", "ready?", "--queue").stdout.strip()
    assert live.cli("decline", cid, "not mine").returncode == 0
    waited = live.cli("wait", cid)
    assert waited.returncode == 1
    assert "closed without an answer: declined: not mine" in waited.stderr
    again = live.cli("decline", cid, "another reason")
    assert again.returncode == 1
    assert "was closed already (declined)" in again.stderr


async def test_a_reply_to_that_is_refused_undoes_nothing_of_its_turn(mesh, pair):
    _, ben = pair
    first = open_ask(mesh)
    mesh.shared, mesh.rest_seconds = True, math.inf
    with mesh.change() as change:
        sent, _, _ = messages.notify(change, mesh, messages.Note("ann", "ben", "of somebody else"))
    to_human = asks.Draft("ben", "human", "which?", reply_to=first.correlation_id)
    with pytest.raises(Refusal, match="only by an ask from ben to ann"), mesh.change() as change:
        replies.check_reply_to(change, to_human, ben)
    await mesh.committed()
    assert deliveries.load(mesh.db.conn, sent.delivery_id).peer_id == ben.peer_id
