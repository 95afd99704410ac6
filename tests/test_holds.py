"""holds.py on the wire: a person keeps mail from a peer, lets it through, or has one go in now."""

import asyncio

import pytest
from conftest import until_async

from repowire import holds, peers


@pytest.fixture
async def ben(api):
    return await api.connect("ben", path="/src/ben", capabilities=["delivery_receipts", "dedupe"], instance="one")


async def state(api, delivery_id):
    got = await api.get(f"/deliveries/{delivery_id}")
    return got["state"], got["reason"]


async def test_what_comes_while_it_is_held_waits_and_says_why(both):
    api = both
    ben = await api.connect("ben", path="/src/ben", capabilities=["delivery_receipts"])
    done = await api.post("/peers/ben/hold", reason="in a demo", seconds=600)
    assert (done["hold"]["reason"], done["waiting"]) == ("in a demo", 0)
    sent = [await api.post("/notify", to_peer="ben", text=text) for text in ("one", "two")]
    assert {(one["state"], one["delivery_state"]) for one in sent} == {("held", "queued")}
    ids = [one["delivery_id"] for one in sent]
    assert [await state(api, one) for one in ids] == [("held", "held_by_user")] * 2
    stages = (await api.get(f"/traces/{ids[0]}"))["stages"]
    assert [one["detail"]["reason"] for one in stages if one["stage"] == "held"] == ["held_by_user"]
    report = await api.get("/peers/ben/doctor")
    assert report["hold"]["reason"] == "in a demo"
    assert [one["reason"] for one in report["held"]] == ["held_by_user"] * 2
    await api.post("/peers/ben/release")
    assert [(await ben.next())["delivery_id"] for _ in ids] == ids, "in their order"


async def test_what_waits_already_is_held_too_and_a_hook_or_a_fetch_gets_nothing(api):
    await api.post("/peers", name="ann", path="/src/ann")
    sent = (await api.post("/notify", to_peer="ann", text="one"))["delivery_id"]
    assert (await api.post("/peers/ann/hold"))["waiting"] == 1
    assert await state(api, sent) == ("held", "held_by_user")
    assert (await api.get("/deliveries/pending", peer_id="ann", confirm="true"))["deliveries"] == []
    assert (await api.post("/peers/ann/release"))["hold"] is None
    fetched = await api.get("/deliveries/pending", peer_id="ann", confirm="true")
    assert [one["delivery_id"] for one in fetched["deliveries"]] == [sent]


async def test_a_hold_for_a_time_ends_by_itself_and_outlives_the_daemon(api, ben, clock):
    await api.post("/peers/ben/hold", seconds=600)
    sent = (await api.post("/notify", to_peer="ben", text="one"))["delivery_id"]
    api.mesh.doors.locked.clear()
    holds.at_start(api.mesh)  # as the next daemon does
    assert api.mesh.doors.locked
    clock.advance(601)
    holds.tick(api.mesh)
    assert (await ben.next())["delivery_id"] == sent
    assert (await api.get("/peers/ben/doctor"))["hold"] is None


@pytest.mark.parametrize("seconds", [0, -5, -1e15])
async def test_a_hold_for_no_time_is_refused_and_holds_nothing(api, ben, seconds):
    refused = await api.request("POST", "/peers/ben/hold", json={"seconds": seconds})
    assert refused.status == 422
    assert (await api.get("/peers/ben/doctor"))["hold"] is None


def hold_and_fail(mesh, peer_id):
    with mesh.change() as change:
        holds.hold(change, peers.load(change.db, peer_id), None, None)
        raise ZeroDivisionError


async def test_a_hold_that_was_lost_with_its_turn_is_let_go_again(api, ben):
    with pytest.raises(ZeroDivisionError):
        hold_and_fail(api.mesh, ben.peer_id)
    sent = await api.post("/notify", to_peer="ben", text="hi")
    assert sent["state"] == "held"
    await api.post("/peers/ben/release")
    assert (await ben.next())["text"] == "hi"


async def test_one_goes_in_now_past_the_hold_and_the_others_wait(api, ben):
    await api.post("/peers/ben/hold")
    first, second = [(await api.post("/notify", to_peer="ben", text=text))["delivery_id"] for text in ("one", "two")]
    now = asyncio.create_task(api.post(f"/deliveries/{second}/now"))
    frame = await ben.next()
    assert (frame["delivery_id"], frame["now"]) == (second, True)
    await ben.receipt(frame)
    assert (await now)["state"] == "handed"
    assert await state(api, first) == ("held", "held_by_user")
    assert (await api.post("/peers/ben/release"))["waiting"] == 1
    frame = await ben.next()
    assert (frame["delivery_id"], "now" in frame) == (first, False)


async def test_what_is_held_again_says_so_and_is_not_now_any_more(api, ben):
    await api.post("/peers/ben/hold")
    sent = (await api.post("/notify", to_peer="ben", text="one"))["delivery_id"]
    now = asyncio.create_task(api.post(f"/deliveries/{sent}/now"))
    await ben.receipt(await ben.next(), "held", detail="dialog_open")
    assert ((await now)["state"], (await now)["reason"]) == ("held", "dialog_open")
    await api.post("/peers/ben/release")
    await ben.send("ready")
    assert "now" not in await ben.next()


async def test_what_does_not_wait_or_has_no_way_in_is_refused(api, ben):
    sent = (await api.post("/notify", to_peer="ben", text="one"))["delivery_id"]
    await ben.receipt(await ben.next())
    got = await api.request("POST", f"/deliveries/{sent}/now", json={})
    assert (got.status, got.json["detail"]["error"]) == (409, "not_waiting")
    await api.post("/peers", name="ann", path="/src/ann")
    waits = (await api.post("/notify", to_peer="ann", text="one"))["delivery_id"]
    got = await api.request("POST", f"/deliveries/{waits}/now", json={})
    assert (got.status, got.json["detail"]["error"]) == (409, "no_way_in")


async def test_what_went_in_now_is_unknown_when_a_way_without_receipts_ends(both):
    ben = await both.connect("ben", path="/src/ben")
    await until_async(lambda: both.mesh.doors.of(ben.peer_id).resting)
    await both.post("/peers/ben/hold")
    sent = await both.post("/notify", to_peer="ben", text="urgent")
    now = asyncio.create_task(both.post(f"/deliveries/{sent['delivery_id']}/now"))
    assert (await ben.next())["text"] == "urgent"
    await ben.close()
    assert (await now)["state"] == "unknown"
    assert await state(both, sent["delivery_id"]) == ("unknown", "the socket closed before a receipt came")
