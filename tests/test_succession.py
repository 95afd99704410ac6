"""succession.py: an ended peer's open asks and mail go to who follows it, or their senders hear that nobody does."""

import json
import os

import pytest
from conftest import until_async

from repowire import asks, claims, deliveries, intake, lives, peers, presence, replies, succession
from repowire.claims import Claim
from repowire.deliveries import Delivery


def come(mesh, name, *, session=None, started=None, **fields):
    """A peer that lives; with `started` in a process of its own."""
    said = {"path": f"/src/{name}", **fields}
    if session:
        said["metadata"] = {"hook_session_id": session}
    if started:
        said |= {"agent_pid": os.getpid(), "agent_started": started}
    with mesh.change() as change:
        return claims.register(change, Claim(name, **said), connected=True)[0]


def ask(mesh, sender, to, text="ready?"):
    with mesh.change() as change:
        return asks.open_ask(change, mesh, asks.Draft(sender, to, text, keep_if_offline=True))[0]


def note(mesh, to, text, sender=None):
    with mesh.change() as change:
        frame = {"type": "notify", "from_peer": "x", "to_peer": "old", "text": text}
        return intake.queue(change, to, frame, from_peer_id=sender, expires_at=change.now + 9e9, most=1000)


def retire(mesh, peer):
    with mesh.change() as change:
        lives.retire(change, peer, "session_end")


def mail(mesh, peer):
    query = "SELECT * FROM deliveries WHERE peer_id = ? AND state IN ('queued', 'held') ORDER BY seq"
    return [json.loads(Delivery.of(row).frame) for row in mesh.db.conn.execute(query, (peer.peer_id,))]


def texts(mesh, peer):
    return [frame["text"].partition("\n")[0] for frame in mail(mesh, peer)]


@pytest.fixture
def forked(mesh):
    """Two that live in one runtime session: it was resumed while the first still lived."""
    old = come(mesh, "old", session="s1", started=1.0, path="/src")
    new = come(mesh, "new", session="s1", started=2.0, path="/src")
    assert old.peer_id != new.peer_id
    return old, new


# -- to a successor -----------------------------------------------------------


def test_what_waits_moves_to_who_goes_on_with_the_session_each_once_and_in_order(mesh, forked):
    old, new = forked
    come(mesh, "ann")
    note(mesh, old.peer_id, "first")
    asked = ask(mesh, "ann", old.peer_id, "second")
    note(mesh, old.peer_id, "third")
    mine = ask(mesh, old.peer_id, "ann", "mine")
    retire(mesh, old)
    for _ in range(2):
        succession.tick(mesh)
        assert texts(mesh, new) == ["first", "second", "third"]
    assert mail(mesh, old) == []
    assert {frame["to_peer"] for frame in mail(mesh, new)} == {"new"}
    assert [one.correlation_id for one in asks.listed(mesh.db.conn, new.peer_id, "inbound", "open", 10)] == [
        asked.correlation_id
    ]
    assert [one.correlation_id for one in asks.listed(mesh.db.conn, new.peer_id, "outbound", "open", 10)] == [
        mine.correlation_id
    ]
    kinds = [line.facts.get("correlation_id") for line in mesh.ledger.after(0) if line.kind == "ask.handed_over"]
    assert sorted(kinds) == sorted([asked.correlation_id, mine.correlation_id])


def test_the_successor_answers_and_the_asker_hears_it_once(mesh, forked):
    old, _ = forked
    ann = come(mesh, "ann")
    asked = ask(mesh, "ann", old.peer_id)
    retire(mesh, old)
    succession.tick(mesh)
    with mesh.change() as change:
        replies.ack(change, mesh, asked.correlation_id, replies.Reply("yes"))
    assert texts(mesh, ann) == [f"[ack #{asked.correlation_id} from @new] yes"]


def given(mesh, asked, state):
    """The asked one was given the text, and this is what is known of it."""
    with mesh.change() as change:
        change.db.execute("UPDATE deliveries SET state = ? WHERE delivery_id = ?", (state, asked.delivery_id))


@pytest.mark.parametrize("state", ["handed", "unknown"])
def test_an_ask_that_the_old_one_was_given_is_put_before_the_new_one(mesh, forked, state):
    old, new = forked
    asked = ask(mesh, "ann", old.peer_id)
    given(mesh, asked, state)
    retire(mesh, old)
    succession.tick(mesh)
    assert texts(mesh, new) == ["ready?"]
    again = asks.load(mesh.db.conn, asked.correlation_id)
    assert deliveries.load(mesh.db.conn, asked.delivery_id).state == state  # what was known of the first stays true
    assert deliveries.load(mesh.db.conn, again.delivery_id).state == "queued"


def test_what_the_same_session_showed_already_is_not_said_twice(mesh, forked):
    old, new = forked
    asked = ask(mesh, "ann", old.peer_id)
    given(mesh, asked, "seen")
    retire(mesh, old)
    succession.tick(mesh)
    assert texts(mesh, new) == []
    assert asks.load(mesh.db.conn, asked.correlation_id).to_peer_id == new.peer_id


def test_what_is_on_its_way_moves_when_it_is_known_what_became_of_it(mesh, forked):
    old, new = forked
    asked = ask(mesh, "ann", old.peer_id)
    given(mesh, asked, "leased")
    retire(mesh, old)
    succession.tick(mesh)
    assert asks.load(mesh.db.conn, asked.correlation_id).to_peer_id == old.peer_id
    given(mesh, asked, "queued")
    succession.tick(mesh)
    assert texts(mesh, new) == ["ready?"]


def test_who_took_over_the_pane_follows(mesh):
    place = {"path": "/src", "pane_id": "%1", "pane_server": "tmux,7,1.0"}
    old = come(mesh, "old", started=1.0, **place)
    note(mesh, old.peer_id, "hi")
    new = come(mesh, "new", started=2.0, **place)
    assert new.peer_id != old.peer_id
    succession.tick(mesh)
    assert texts(mesh, old) == ["hi"]  # displaced, and perhaps alive
    retire(mesh, old)
    succession.tick(mesh)
    assert texts(mesh, new) == ["hi"]


@pytest.mark.parametrize(
    "other", [{"pane_server": "tmux,8,1.0"}, {"path": "/b"}, {"pane_id": "%2"}, {"backend": "codex"}]
)
def test_another_server_folder_pane_or_kind_follows_nobody(mesh, other):
    place = {"path": "/src", "pane_id": "%1", "pane_server": "tmux,7,1.0"}
    old = come(mesh, "old", started=1.0, **place)
    note(mesh, old.peer_id, "hi")
    new = come(mesh, "new", started=2.0, **{**place, **other})
    retire(mesh, old)
    succession.tick(mesh)
    assert (texts(mesh, old), texts(mesh, new)) == (["hi"], [])


def test_new_mail_stands_behind_what_was_handed_over(mesh, forked):
    old, new = forked
    note(mesh, old.peer_id, "first")
    note(mesh, new.peer_id, "second")
    retire(mesh, old)
    succession.tick(mesh)
    assert texts(mesh, new) == ["first", "second"]


async def nothing_more(api, socket):
    """What comes next is what is sent now."""
    await api.post("/notify", from_peer="x", to_peer=socket.peer_id, text="the last")
    assert (await socket.next())["text"] == "the last"


async def test_an_ask_that_died_with_a_socket_goes_to_the_other_one_of_its_session(api):
    said = {"path": "/src", "metadata": {"hook_session_id": "s1"}}
    old = await api.connect("old", **said)
    new = await api.connect("new", **said)
    assert new.peer_id != old.peer_id
    asked = await api.post("/ask", from_peer="x", to_peer="old", text="ready?")
    assert (await old.next())["correlation_id"] == asked["correlation_id"]
    await api.post("/peers/old/offline", terminal=True)
    frame = await new.next()
    assert (frame["correlation_id"], frame["to_peer"]) == (asked["correlation_id"], "new")
    await nothing_more(api, new)


# -- nobody follows -----------------------------------------------------------


def test_a_session_that_was_left_keeps_what_waits_until_its_tombstone_passes(mesh, clock):
    old, ann = come(mesh, "old", session="s1", started=1.0), come(mesh, "ann")
    note(mesh, old.peer_id, "hi", sender=ann.peer_id)
    retire(mesh, old)
    clock.advance(peers.TOMBSTONE_SECONDS - 1)
    succession.tick(mesh)
    assert texts(mesh, old) == ["hi"]
    back = come(mesh, "old", session="s1", started=2.0)
    assert (back.peer_id, texts(mesh, back)) == (old.peer_id, ["hi"])
    retire(mesh, back)
    clock.advance(peers.TOMBSTONE_SECONDS)
    succession.tick(mesh)
    assert texts(mesh, back) == []


async def test_who_asked_an_unregistered_peer_is_told_once_and_so_is_who_wrote(api):
    ann = await api.connect("ann", path="/src/ann")
    await api.post("/peers", name="old", path="/src/old")
    asked = await api.post("/ask", from_peer="ann", to_peer="old", text="ready?", if_offline="queue")
    wrote = await api.post("/notify", from_peer="ann", to_peer="old", text="hi")
    await api.delete("/peers/old")
    heard = sorted([(await ann.next())["text"] for _ in range(2)])
    assert heard[0].startswith(f"[ask #{asked['correlation_id']} to @old evicted] ")
    assert heard[1].startswith(f"[notify #{wrote['delivery_id']} to @old failed")
    await nothing_more(api, ann)
    waited = await api.post(f"/asks/{asked['correlation_id']}/wait", peer_id="ann")
    assert (waited["status"], waited["close_reason"]) == ("resolved", "evicted")


def test_who_is_only_hidden_keeps_what_waits_until_it_lapses(mesh, clock):
    old = come(mesh, "old")
    note(mesh, old.peer_id, "hi")
    with mesh.change() as change:
        lives.say(change, old, presence.OFFLINE, "test")
        lives.hide(change, old, "offline_ttl")
    clock.advance(2 * peers.TOMBSTONE_SECONDS)
    succession.tick(mesh)
    assert texts(mesh, old) == ["hi"]


def test_an_ask_of_who_is_gone_stays_open_for_who_was_asked(mesh, clock):
    old = come(mesh, "old", started=1.0)
    come(mesh, "ann")
    mine = ask(mesh, old.peer_id, "ann")
    retire(mesh, old)
    clock.advance(peers.TOMBSTONE_SECONDS)
    before = mesh.ledger.last
    succession.tick(mesh)
    assert asks.load(mesh.db.conn, mine.correlation_id).closed_at is None
    assert mesh.ledger.last == before  # a tick that finds nothing to do leaves no line


# -- rows that go -------------------------------------------------------------


def hidden(mesh, name):
    peer = come(mesh, name)
    with mesh.change() as change:
        lives.say(change, peer, presence.OFFLINE, "test")
        lives.hide(change, peer, "offline_ttl")
    return peer


def test_the_long_hidden_go_once_nothing_waits_for_them(mesh, clock):
    idle, awaited = hidden(mesh, "idle"), hidden(mesh, "awaited")
    note(mesh, awaited.peer_id, "hi")
    shown = come(mesh, "shown")
    clock.advance(lives.HIDDEN_SECONDS - 1)
    succession.tick(mesh)
    assert peers.find(mesh.db.conn, idle.peer_id) is not None
    clock.advance(1)
    succession.tick(mesh)
    db = mesh.db.conn
    assert [peers.find(db, one.peer_id) is None for one in (idle, awaited, shown)] == [True, False, False]
    left = db.execute("SELECT count(*) FROM presence WHERE peer_id = ?", (idle.peer_id,)).fetchone()[0]
    assert left == 0


async def test_the_trace_of_a_message_to_a_forgotten_peer_is_still_there(api, clock):
    await api.post("/peers", name="old", path="/src/old")
    wrote = await api.post("/notify", from_peer="x", to_peer="old", text="hi")
    peer_id = (await api.get("/peers/old"))["peer_id"]
    await api.delete("/peers/old")
    await until_async(lambda: "delivery.failed" in [line.kind for line in api.mesh.ledger.after(0)])
    before = [stage["stage"] for stage in (await api.get(f"/traces/{wrote['delivery_id']}"))["stages"]]
    clock.advance(lives.HIDDEN_SECONDS)
    succession.tick(api.mesh)
    assert peers.find(api.mesh.db.conn, peer_id) is None
    after = (await api.get(f"/traces/{wrote['delivery_id']}"))["stages"]
    assert [stage["stage"] for stage in after] == before
