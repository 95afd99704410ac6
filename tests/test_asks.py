"""asks.py: open until answered; one reply; never left where nobody looks."""

import asyncio

import pytest
from conftest import until_async

from repowire import asks, claims, deliveries, replies
from repowire.asks import Draft
from repowire.claims import Claim
from repowire.errors import Refusal
from repowire.replies import Reply


def peer(mesh, name, **fields):
    with mesh.change() as change:
        return claims.register(change, Claim(name, path=f"/src/{name}", **fields))[0]


def open_ask(mesh, **fields):
    with mesh.change() as change:
        ask, _ = asks.open_ask(change, mesh, Draft("ann", "ben", "ready?", keep_if_offline=True, **fields))
    return ask


def ack(mesh, ask, text=None):
    with mesh.change() as change:
        return replies.ack(change, mesh, ask.correlation_id, Reply(text))


@pytest.fixture
def pair(mesh):
    return peer(mesh, "ann"), peer(mesh, "ben")


# -- rules --------------------------------------------------------------------


async def test_an_ask_is_open_until_its_ack(mesh, pair):
    ask = open_ask(mesh)
    assert [one.correlation_id for one in asks.listed(mesh.db.conn, pair[1].peer_id, "inbound", "open", 10)] == [
        ask.correlation_id
    ]
    ack(mesh, ask, "yes")
    assert asks.listed(mesh.db.conn, pair[1].peer_id, "inbound", "open", 10) == []
    closed = asks.load(mesh.db.conn, ask.correlation_id)
    assert (closed.reply, closed.close_reason) == ("yes", "ack_with_msg")


async def test_the_reply_goes_into_the_askers_mailbox_once(mesh, pair):
    ask = open_ask(mesh)
    first = ack(mesh, ask, "yes")
    again = ack(mesh, ask, "yes")
    assert (first.peer_id, again) == (pair[0].peer_id, None)
    assert first.payload["text"] == f"[ack #{ask.correlation_id} from @ben] yes"
    assert deliveries.depth(mesh.db.conn, pair[0].peer_id) == 1


async def test_another_reply_is_gone(mesh, pair):
    ask = open_ask(mesh)
    ack(mesh, ask, "yes")
    with pytest.raises(Refusal) as refused:
        ack(mesh, ask, "no")
    assert refused.value.status == 410
    assert asks.load(mesh.db.conn, ask.correlation_id).reply == "yes"


async def test_a_bare_ack_again_changes_nothing(mesh, pair):
    ask = open_ask(mesh)
    ack(mesh, ask)
    at = mesh.ledger.last
    assert ack(mesh, ask) is None
    assert mesh.ledger.last == at


async def test_an_answered_ask_is_not_sent_any_more(mesh, pair):
    ask = open_ask(mesh)
    ack(mesh, ask, "yes")
    with mesh.change() as change:
        assert deliveries.lease(change, pair[1].peer_id, "x", 10) == []
    assert deliveries.load(mesh.db.conn, ask.delivery_id).state == "answered"


async def test_a_later_ask_that_replies_closes_the_first(mesh, pair):
    first = open_ask(mesh)
    with mesh.change() as change:
        draft = Draft("ben", "ann", "ready for what?", reply_to=first.correlation_id, keep_if_offline=True)
        asks.open_ask(change, mesh, draft)
    assert asks.load(mesh.db.conn, first.correlation_id).close_reason == "reply_to"


async def test_nobody_else_can_close_an_ask_by_replying_to_it(mesh, pair):
    first = open_ask(mesh)
    peer(mesh, "eve")
    with mesh.change() as change:
        asks.open_ask(change, mesh, Draft("eve", "ann", "x", reply_to=first.correlation_id, keep_if_offline=True))
    assert asks.load(mesh.db.conn, first.correlation_id).closed_at is None


async def test_an_offline_peer_refuses_an_ask_that_is_not_to_be_kept(mesh, pair):
    with pytest.raises(Refusal) as refused, mesh.change() as change:
        asks.open_ask(change, mesh, Draft("ann", "ben", "ready?"))
    assert (refused.value.status, refused.value.error) == (503, "no_live_transport")
    assert mesh.db.conn.execute("SELECT count(*) FROM asks").fetchone()[0] == 0


async def test_a_full_mailbox_refuses_the_ask_whole(mesh, pair):
    for _ in range(mesh.config.daemon.delivery_queue_max_per_peer):
        open_ask(mesh)
    with pytest.raises(Refusal) as refused:
        open_ask(mesh)
    assert (refused.value.status, refused.value.error) == (429, "queue_full")
    count = mesh.db.conn.execute("SELECT count(*) FROM asks").fetchone()[0]
    assert count == mesh.config.daemon.delivery_queue_max_per_peer


async def test_an_ask_that_nobody_answers_expires_and_the_asker_hears_of_it_once(mesh, pair, clock):
    ask = open_ask(mesh)
    clock.advance(mesh.config.daemon.ask_ttl_seconds + 1)
    replies.tick(mesh)
    at = mesh.ledger.last
    replies.tick(mesh)
    assert mesh.ledger.last == at
    assert asks.load(mesh.db.conn, ask.correlation_id).close_reason == "expired"
    with mesh.change() as change:
        told = deliveries.lease(change, pair[0].peer_id, "x", 10)
    assert [one.payload["text"] for one in told] == [
        f"[ask #{ask.correlation_id} to @ben expired] nobody answered it in its time"
    ]


async def test_a_closed_ask_is_kept_for_a_day(mesh, pair, clock):
    ask = open_ask(mesh)
    ack(mesh, ask, "yes")
    clock.advance(replies.CLOSED_SECONDS - 1)
    replies.tick(mesh)
    assert asks.load(mesh.db.conn, ask.correlation_id).reply == "yes"
    clock.advance(2)
    replies.tick(mesh)
    with pytest.raises(Refusal):
        asks.load(mesh.db.conn, ask.correlation_id)


async def test_crossing_a_circle_is_refused_with_the_way_out(mesh):
    peer(mesh, "ann", circle="red")
    peer(mesh, "ben", circle="blue")
    with pytest.raises(Refusal) as refused:
        open_ask(mesh)
    assert (refused.value.status, refused.value.facts["circle"]) == (403, "blue")
    assert "bypass_circle" in refused.value.hint
    assert open_ask(mesh, bypass_circle=True).to_peer == "ben"


# -- waiting ------------------------------------------------------------------


async def test_a_waiter_wakes_on_the_ack_and_nothing_is_queued(mesh, pair):
    ask = open_ask(mesh)
    waiting = asyncio.create_task(asks.wait(mesh, ask.correlation_id, seconds=5))
    await asyncio.sleep(0)
    assert ack(mesh, ask, "yes") is None
    assert (await waiting).reply == "yes"
    assert deliveries.depth(mesh.db.conn, pair[0].peer_id) == 0


async def test_a_waiter_wakes_when_a_later_ask_answers(mesh, pair):
    first = open_ask(mesh)
    waiting = asyncio.create_task(asks.wait(mesh, first.correlation_id, seconds=60))
    await asyncio.sleep(0)
    with mesh.change() as change:
        asks.open_ask(change, mesh, Draft("ben", "ann", "?", reply_to=first.correlation_id, keep_if_offline=True))
    assert (await asyncio.wait_for(waiting, 5)).close_reason == "reply_to"


async def test_a_reply_that_a_waiter_had_not_taken_at_the_crash_is_pushed_at_the_start(mesh, pair):
    ask = open_ask(mesh)
    waiting = asyncio.create_task(asks.wait(mesh, ask.correlation_id, seconds=5))
    await asyncio.sleep(0)
    ack(mesh, ask, "yes")
    await waiting
    replies.at_start(mesh)
    replies.at_start(mesh)
    assert deliveries.depth(mesh.db.conn, pair[0].peer_id) == 1


# -- wire ---------------------------------------------------------------------


async def test_an_ask_reaches_the_socket_and_its_reply_comes_back(api):
    ann, ben = await api.connect("ann", path="/src/ann"), await api.connect("ben", path="/src/ben")
    asked = await api.post("/ask", from_peer="ann", to_peer="ben", text="ready? ")
    cid = asked["correlation_id"]
    assert (asked["error"], asked["delivery_state"], asked["state"]) == (None, "delivered", "leased")
    frame = await ben.next()
    assert frame == {
        "type": "ask",
        "delivery_id": asked["delivery_id"],
        "correlation_id": cid,
        "from_peer": "ann",
        "to_peer": "ben",
        "text": f'ready?\n↳ ack("{cid}") or ack("{cid}", "reply")',
    }
    await api.post("/ack", correlation_id=cid, message="yes")
    reply = await ann.next()
    assert (reply["type"], reply["from_peer"], reply["text"]) == ("notify", "ben", f"[ack #{cid} from @ben] yes")


async def test_an_ask_with_a_typo_names_the_near_peer(api):
    await api.connect("benjamin", path="/src/ben")
    got = await api.post("/ask", expect=404, from_peer="ann", to_peer="benjamim", text="?")
    assert got["detail"]["error"] == "peer_not_found"
    assert got["detail"]["near"] == ["benjamin"]


async def test_an_ask_to_an_offline_peer_is_kept_when_asked_to(api):
    ben = await api.connect("ben", path="/src/ben")
    await ben.close()
    await until_async(lambda: api.mesh.db.conn.execute("SELECT fact FROM presence").fetchone()[0] == "closed")
    await api.post("/ask", expect=503, from_peer="x", to_peer="ben", text="?")
    kept = await api.post("/ask", from_peer="x", to_peer="ben", text="?", if_offline="queue")
    assert (kept["delivery_state"], kept["state"]) == ("queued", "queued")
    again = await api.connect("ben", path="/src/ben")
    assert (await again.next())["correlation_id"] == kept["correlation_id"]


async def test_the_reply_to_an_offline_asker_waits_for_it(api):
    ann, ben = await api.connect("ann", path="/src/ann"), await api.connect("ben", path="/src/ben")
    cid = (await api.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    await ann.close()
    await until_async(lambda: not _reachable(api.mesh, ann.peer_id))
    for _ in range(2):
        assert (await api.post("/ack", correlation_id=cid, message="yes"))["ok"] is True
    back = await api.connect("ann", path="/src/ann")
    assert (await back.next())["text"].endswith("] yes")
    await api.post("/notify", from_peer="ben", to_peer="ann", text="the next")
    assert (await back.next())["text"] == "the next"


def _reachable(mesh, peer_id):
    from repowire import presence

    return presence.reachable(mesh.db.conn, peer_id)


async def test_a_wait_over_http_returns_the_published_fields(api):
    ben = await api.connect("ben", path="/src/ben")
    cid = (await api.post("/ask", from_peer="cli", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    pending = await api.post(f"/asks/{cid}/wait", peer_id="cli", timeout_seconds=0.05)
    assert (pending["status"], pending["responder"]) == ("pending", None)
    waiting = asyncio.create_task(api.post(f"/asks/{cid}/wait", peer_id="cli"))
    await until_async(lambda: api.mesh.bus.heard(asks.wait_topic(cid)))
    await api.post("/ack", correlation_id=cid, message="yes")
    got = await waiting
    assert (got["status"], got["reply"], got["responder"], got["close_reason"]) == (
        "resolved",
        "yes",
        "ben",
        "ack_with_msg",
    )


async def test_a_waiter_who_left_gets_the_reply_pushed(api):
    ann, ben = await api.connect("ann", path="/src/ann"), await api.connect("ben", path="/src/ben")
    cid = (await api.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    waiting = asyncio.create_task(api.post(f"/asks/{cid}/wait", peer_id="ann"))
    await until_async(lambda: api.mesh.bus.heard(asks.wait_topic(cid)))
    waiting.cancel()
    await api.post("/ack", correlation_id=cid, message="yes")
    assert (await ann.next())["text"].endswith("] yes")


async def test_only_the_asker_waits(api):
    ben = await api.connect("ben", path="/src/ben")
    cid = (await api.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    got = await api.post(f"/asks/{cid}/wait", expect=403, peer_id="eve")
    assert (got["detail"]["error"], got["detail"]["asker"]) == ("not_the_asker", "ann")


async def test_eight_racing_acks_deliver_one_reply(api):
    ann, ben = await api.connect("ann", path="/src/ann"), await api.connect("ben", path="/src/ben")
    cid = (await api.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    got = await asyncio.gather(
        *(api.request("POST", "/ack", json={"correlation_id": cid, "message": f"reply {n}"}) for n in range(8))
    )
    assert sorted(one.status for one in got) == [200] + [410] * 7
    assert (await ann.next())["text"].startswith(f"[ack #{cid}")
    await api.post("/notify", from_peer="ben", to_peer="ann", text="the next")
    assert (await ann.next())["text"] == "the next"


@pytest.mark.parametrize(
    ("query", "status"),
    [({}, 400), ({"peer_id": "a", "pane_id": "%1"}, 400), ({"peer_id": "nobody"}, 404), ({"pane_id": "%9"}, 404)],
)
async def test_pending_wants_exactly_one_peer(api, query, status):
    await api.get("/asks/pending", expect=status, **query)


async def test_pending_shows_the_raw_text_newest_first_and_at_most_ten(api):
    await api.connect("ben", path="/src/ben")
    for n in range(12):
        await api.post("/ask", from_peer="ann", to_peer="ben", text=f"question {n}")
    got = (await api.get("/asks/pending", peer_id="ben"))["asks"]
    assert [one["text"] for one in got] == [f"question {n}" for n in range(11, 1, -1)]
    assert got[0]["direction"] == "inbound"


async def test_history_pages_through_what_was_answered(api):
    await api.connect("ben", path="/src/ben")
    cids = [(await api.post("/ask", from_peer="ann", to_peer="ben", text=f"q{n}"))["correlation_id"] for n in range(3)]
    await api.post("/ack", correlation_id=cids[0], message="a0")
    await api.post("/ack", correlation_id=cids[2], message="a2")
    page = await api.get("/asks/history", state="answered", limit=1)
    assert [one["reply"] for one in page["asks"]] == ["a2"]
    rest = await api.get("/asks/history", state="answered", limit=1, cursor=page["next"])
    assert ([one["reply"] for one in rest["asks"]], rest["next"]) == (["a0"], None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"to_peer": "ben"}, "text"),
        ({"text": "x"}, "to_peer"),
        ({"to_peer": "ben", "text": 5}, "text"),
        ({"to_peer": "ben", "text": "x" * 64_001}, "text"),
        ({"to_peer": "ben", "text": "x", "bypass_circle": "yes"}, "bypass_circle"),
        ({"to_peer": "ben", "text": "x", "if_offline": "drop"}, "if_offline"),
        ({"to_peer": "ben", "text": "x", "attachments": [1]}, "attachments"),
    ],
)
async def test_a_wrong_field_of_an_ask_is_named(api, body, field):
    got = await api.request("POST", "/ask", json=body)
    assert (got.status, got.json["detail"]["field"]) == (422, field)
