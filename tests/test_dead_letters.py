"""dead_letters.py: what died is told to its sender once, and can be seen, retried and dropped."""

import pytest
from conftest import until_async

from repowire import claims, dead_letters, deliveries, intake, leases, replies
from repowire.claims import Claim


@pytest.fixture
async def town(both):
    ann = await both.post("/peers", name="ann", path="/src/ann")
    ben = await both.post("/peers", name="ben", path="/src/ben")
    return {"ann": ann["peer_id"], "ben": ben["peer_id"]}


async def dead(api, clock, **fields):
    """A notify from ann to ben that nobody fetched in time."""
    sent = await api.post("/notify", from_peer="ann", to_peer="ben", **{"text": "x", **fields})
    clock.advance(api.mesh.config.daemon.delivery_queue_ttl_seconds + 1)
    leases.tick(api.mesh)
    dead_letters.tick(api.mesh)
    return sent["delivery_id"]


async def mail(api, peer):
    got = await api.get("/deliveries/pending", peer_id=peer)
    return [one["text"] for one in got["deliveries"]]


async def test_the_sender_of_an_expired_message_is_told_once(both, town, clock):
    gone = await dead(both, clock, text="main is " + "frozen " * 50)
    dead_letters.tick(both.mesh)
    (told,) = await mail(both, "ann")
    assert told.startswith(f"[notify #{gone} to @ben expired] nobody fetched it in time: main is frozen")
    assert len(told) < 260
    dead_letters.tick(both.mesh)
    assert await mail(both, "ann") == []


async def test_a_term_of_seconds_is_kept_to_the_second(new_mesh, new_api, tmp_path, clock):
    """No tick is called here: the loops of the daemon find what ran out, in the time of their own timers."""
    short = {f"REPOWIRE_DAEMON__{key}": "1" for key in ("DELIVERY_QUEUE_TTL_SECONDS", "PEER_REAP_TTL_SECONDS")}
    api = await new_api(new_mesh(tmp_path / "home", clock, **short))
    await api.post("/peers", name="ben", path="/src/ben")
    sent = await api.post("/notify", to_peer="ben", text="x")
    await api.post("/peers/ben/offline")
    clock.advance(2)
    conn = api.mesh.db.conn
    await until_async(lambda: deliveries.find(conn, sent["delivery_id"]).state == "expired")
    await until_async(lambda: conn.execute("SELECT 1 FROM peers WHERE display_name = 'ben' AND hidden_at").fetchone())


async def test_a_notice_that_dies_is_told_to_nobody(both, town, clock):
    await dead(both, clock)
    clock.advance(both.mesh.config.daemon.delivery_queue_ttl_seconds + 1)
    leases.tick(both.mesh)
    dead_letters.tick(both.mesh)
    assert await mail(both, "ben") == []
    assert await mail(both, "ann") == []


async def test_told_once_over_a_crash_between_death_and_notice(new_mesh, new_api, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    with mesh.change() as change:
        ann, _ = claims.register(change, Claim(name="ann", path="/src/ann"), circles="one")
        ben, _ = claims.register(change, Claim(name="ben", path="/src/ben"), circles="one")
        frame = {"type": "notify", "from_peer": "ann", "to_peer": "ben", "text": "x"}
        intake.queue(change, ben.peer_id, frame, from_peer_id=ann.peer_id, expires_at=change.now + 5, most=9)
    clock.advance(6)
    leases.tick(mesh)
    mesh.close()  # before anybody was told
    mesh = new_mesh(tmp_path / "home", clock)
    dead_letters.tick(mesh)
    dead_letters.tick(mesh)
    told = mesh.db.conn.execute("SELECT count(*) FROM deliveries WHERE peer_id = ?", (ann.peer_id,)).fetchone()[0]
    assert told == 1


async def test_a_dead_broadcast_makes_one_notice(both, town, clock):
    sockets = [await both.connect(name, path=f"/src/{name}") for name in ("cy", "dee")]
    for socket in sockets:
        both.mesh.doors.of(socket.peer_id).stalled = True  # accepted, and never read
    sent = await both.post("/broadcast", from_peer="ann", text="frozen")
    assert len(sent["deliveries"]) == 2
    with both.mesh.change() as change:
        for one in sent["deliveries"]:
            change.db.execute("UPDATE deliveries SET state = 'queued' WHERE delivery_id = ?", (one["delivery_id"],))
            deliveries.cancel(change, one["delivery_id"], "the peer was unregistered")
    dead_letters.tick(both.mesh)
    (told,) = await mail(both, "ann")
    assert told == f"[broadcast #{sent['broadcast_id']} to @cy, @dee failed] the peer was unregistered: frozen"


async def test_the_dead_are_listed_until_they_are_dropped(both, town, clock):
    gone = await dead(both, clock)
    alive = (await both.post("/notify", to_peer="ben", text="y"))["delivery_id"]
    assert [one["delivery_id"] for one in (await both.get("/deliveries", dead="true"))["deliveries"]] == [gone]
    everything = await both.get("/deliveries", peer="ben")
    assert {one["delivery_id"] for one in everything["deliveries"]} >= {alive, gone}
    said = await both.delete(f"/deliveries/{gone}")
    assert said == {"ok": True, "delivery_id": gone, "state": "expired", "reason": "nobody fetched it in time"}
    assert await both.delete(f"/deliveries/{gone}") == said
    assert (await both.get("/deliveries", dead="true"))["deliveries"] == []
    assert (await both.get("/deliveries", state="expired"))["deliveries"][0]["delivery_id"] == gone


async def test_retry_gives_another_lifetime_and_a_second_death_is_told_again(both, town, clock):
    gone = await dead(both, clock)
    assert len(await mail(both, "ann")) == 1
    said = await both.post(f"/deliveries/{gone}/retry")
    assert (said["state"], said["reason"]) == ("queued", "retried")
    again = await both.post(f"/deliveries/{gone}/retry", expect=409)
    assert again["detail"]["error"] == "not_dead"
    clock.advance(both.mesh.config.daemon.delivery_queue_ttl_seconds + 1)
    leases.tick(both.mesh)
    dead_letters.tick(both.mesh)
    assert len(await mail(both, "ann")) == 1
    await both.post(f"/deliveries/{gone}/retry")
    assert await mail(both, "ben") == ["x"]


async def test_a_retried_one_leaves_through_an_open_door(both, town, clock):
    gone = await dead(both, clock)
    socket = await both.connect("ben", path="/src/ben", peer_id=town["ben"])
    await both.post(f"/deliveries/{gone}/retry")
    assert (await socket.next())["delivery_id"] == gone


async def test_what_may_have_arrived_is_not_retried_nor_dropped(both, town, clock):
    sent = await both.post("/notify", from_peer="ann", to_peer="ben", text="x")
    await both.get("/deliveries/pending", peer_id="ben")
    clock.advance(both.mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(both.mesh)
    refused = await both.post(f"/deliveries/{sent['delivery_id']}/retry", expect=409)
    assert (refused["detail"]["error"], refused["detail"]["state"]) == ("not_dead", "unknown")
    refused = await both.delete(f"/deliveries/{sent['delivery_id']}", expect=409)
    assert refused["detail"]["error"] == "already_sent"


async def test_what_still_waits_can_be_dropped_and_its_sender_hears(both, town):
    sent = await both.post("/notify", from_peer="ann", to_peer="ben", text="x")
    said = await both.delete(f"/deliveries/{sent['delivery_id']}")
    assert (said["state"], said["reason"]) == ("failed", "dropped by human")
    dead_letters.tick(both.mesh)
    assert await mail(both, "ben") == []
    assert (await mail(both, "ann"))[0].endswith("failed] dropped by human: x")


async def test_an_open_ask_is_declined_and_not_dropped(both, town):
    ask = await both.post("/ask", from_peer="ann", to_peer="ben", text="?", if_offline="queue")
    refused = await both.delete(f"/deliveries/{ask['delivery_id']}", expect=409)
    assert refused["detail"]["error"] == "ask_open"
    await both.post("/decline", correlation_id=ask["correlation_id"], reason="no")


async def test_an_expired_ask_is_told_by_the_ask_alone(both, town, clock):
    ask = await both.post("/ask", from_peer="ann", to_peer="ben", text="?", if_offline="queue")
    clock.advance(both.mesh.config.daemon.ask_ttl_seconds + 1)
    leases.tick(both.mesh)
    replies.tick(both.mesh)
    dead_letters.tick(both.mesh)
    (told,) = await mail(both, "ann")
    assert told.startswith(f"[ask #{ask['correlation_id']} to @ben expired]")
    refused = await both.post(f"/deliveries/{ask['delivery_id']}/retry", expect=409)
    assert refused["detail"]["error"] == "ask_closed"


async def test_a_full_mailbox_refuses_a_retry(new_mesh, new_api, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock, REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER="1")
    api = await new_api(mesh)
    for name in ("ann", "ben"):
        await api.post("/peers", name=name, path=f"/src/{name}")
    gone = await dead(api, clock)
    await api.post("/notify", to_peer="ben", text="y")
    refused = await api.post(f"/deliveries/{gone}/retry", expect=429)
    assert refused["detail"]["error"] == "queue_full"


async def test_pages_of_the_list(both, town):
    sent = [(await both.post("/notify", to_peer="ben", text=str(n)))["delivery_id"] for n in range(5)]
    first = await both.get("/deliveries", limit=3)
    rest = await both.get("/deliveries", limit=3, cursor=first["next"])
    assert [one["delivery_id"] for one in first["deliveries"] + rest["deliveries"]] == sent[::-1]
    assert rest["next"] is None
    await both.get("/deliveries", expect=422, state="lost")


async def test_a_notice_that_was_retried_and_dies_again_is_told_to_nobody(both, town, clock):
    await dead(both, clock)
    for _ in range(2):
        clock.advance(both.mesh.config.daemon.delivery_queue_ttl_seconds + 1)
        leases.tick(both.mesh)
        dead_letters.tick(both.mesh)
        listed = (await both.get("/deliveries", dead="true"))["deliveries"]
        (notice,) = [one for one in listed if one["to_peer"] == "ann"]
        await both.post(f"/deliveries/{notice['delivery_id']}/retry")
    assert await mail(both, "ben") == []
    assert len(await mail(both, "ann")) == 1


async def test_the_copies_of_a_broadcast_that_died_in_two_ways_make_two_notices(both, clock):
    ann = (await both.post("/peers", name="ann", path="/src/ann"))["peer_id"]
    ids = [(await both.post("/peers", name=f"b{n}", path=f"/src/b{n}"))["peer_id"] for n in range(4)]
    with both.mesh.change() as change:
        frame = {"type": "broadcast", "from_peer": "ann", "text": "x"}
        made, _ = intake.queue_all(
            change, ids, frame, trace="bcast-1", from_peer_id=ann, expires_at=change.now + 5, most=9
        )
        for one in made[::2]:
            deliveries.cancel(change, one.delivery_id, "gone")
        clock.advance(6)
    leases.tick(both.mesh)
    dead_letters.tick(both.mesh)
    told = sorted(await mail(both, "ann"))
    assert [one.partition("]")[0] for one in told] == [
        "[broadcast #bcast-1 to @b0, @b2 failed",
        "[broadcast #bcast-1 to @b1, @b3 expired",
    ]
