"""roles.py: a circle has one orchestrator; a fresh one keeps the role, a stale one loses it."""

import os

import pytest

from repowire import callers, lives, peers


async def made(api, *names, **fields):
    return [(await api.post("/peers", name=name, path=f"/src/{name}", **fields))["peer_id"] for name in names]


async def claim(api, name, *, expect=200, **fields):
    return await api.post("/peers/claim-role", role="orchestrator", peer_name=name, expect=expect, **fields)


async def test_the_first_claim_gets_the_role_and_leaves_an_event(api):
    (ann,) = await made(api, "ann")
    got = await claim(api, "ann")
    assert got == {
        **{"ok": True, "peer_id": ann, "peer_name": "ann", "role": "orchestrator", "circle": "default"},
        **{"already_held": False, "previous_holders": []},
    }
    (event,) = [one for one in await api.get("/events") if one["type"] == "role_claimed"]
    assert (event["peer_id"], event["peer_name"], event["role"], event["circle"]) == (
        ann,
        "ann",
        "orchestrator",
        "default",
    )


async def test_the_same_again_is_held_already_and_says_nothing_new(api):
    await made(api, "ann")
    await claim(api, "ann")
    assert (await claim(api, "ann"))["already_held"] is True
    assert len([one for one in await api.get("/events") if one["type"] == "role_claimed"]) == 1


@pytest.mark.parametrize("force", [False, True])
async def test_a_fresh_holder_keeps_the_role_whatever_is_said(api, clock, force):
    ann, _ = await made(api, "ann", "ben")
    await claim(api, "ann")
    clock.advance(60)
    detail = (await claim(api, "ben", expect=409, force=force))["detail"]
    assert (detail["error"], detail["holder"]["peer_id"], detail["stale_after_seconds"]) == ("role_held", ann, 60)
    assert (await api.get("/peers/ben"))["role"] == "agent"


async def test_a_stale_holder_becomes_an_agent(api, clock):
    ann, ben = await made(api, "ann", "ben")
    await claim(api, "ann")
    seen = (await api.get("/peers/ann"))["last_seen"]
    clock.advance(61)
    got = await claim(api, "ben")
    assert got["previous_holders"] == [{"peer_id": ann, "display_name": "ann", "status": "online", "last_seen": seen}]
    assert [(await api.get(f"/peers/{name}"))["role"] for name in (ann, ben)] == ["agent", "orchestrator"]


async def test_a_touch_keeps_it_fresh_and_an_offline_one_is_stale_at_once(api, clock):
    await made(api, "ann", "ben")
    await claim(api, "ann")
    clock.advance(50)
    await api.post("/peers/ann/touch")
    clock.advance(50)
    await claim(api, "ben", expect=409)
    await api.post("/peers/ann/offline")
    await claim(api, "ben")


async def test_each_circle_has_its_own(api):
    await made(api, "ann")
    await made(api, "ben", circle="red")
    await claim(api, "ann")
    assert (await claim(api, "ben"))["circle"] == "red"


async def test_an_ambiguous_name_is_a_conflict_and_an_unknown_one_not_found(api):
    for circle in ("red", "blue"):
        await api.post("/peers", name="ben", path=f"/{circle}", circle=circle)
    assert (await claim(api, "ben", expect=409))["detail"]["error"] == "ambiguous_peer"
    assert (await claim(api, "ben", circle="red"))["circle"] == "red"
    assert (await claim(api, "nobody", expect=404))["detail"]["error"] == "peer_not_found"


async def test_another_role_cannot_be_claimed_nor_by_the_human(api):
    await made(api, "ann")
    got = await api.post("/peers/claim-role", role="human", peer_name="ann", expect=400)
    assert got["detail"]["field"] == "role"
    callers.human(api.mesh)
    assert (await claim(api, "human", expect=409))["detail"]["error"] == "role_fixed"


async def test_an_agent_claims_for_itself_alone(api, monkeypatch):
    ann, _ = await made(api, "ann", "ben")
    monkeypatch.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ann))
    assert (await claim(api, "ben", expect=403))["detail"]["error"] == "not_your_peer"
    assert (await claim(api, "ann"))["peer_id"] == ann


async def test_who_is_gone_cannot_claim(api):
    (ann,) = await made(api, "ann")
    await api.delete("/peers/ann")
    assert (await claim(api, ann, expect=409))["detail"]["error"] == "peer_gone"


async def test_who_orchestrates_is_shown_while_it_is_fresh(api, clock):
    (ann,) = await made(api, "ann")
    absent = {"present": False, "peer_id": None, "peer_name": None, "last_seen": None, "stale_after_seconds": 60}
    assert await api.get("/circles/default/orchestrator") == {"circle": "default", **absent}
    await claim(api, "ann")
    got = await api.get("/circles/default/orchestrator")
    assert (got["present"], got["peer_id"], got["peer_name"]) == (True, ann, "ann")
    clock.advance(61)
    assert await api.get("/circles/default/orchestrator") == {"circle": "default", **absent}


# -- its pane -----------------------------------------------------------------


async def test_a_fresh_orchestrator_keeps_its_pane(api, clock):
    ann = await api.post("/peers", name="ann", path="/a", pane_id="%1", role="orchestrator")
    ben = await api.post("/peers", name="ben", path="/b", pane_id="%1")
    assert (ann["pane_assigned"], ben["pane_assigned"]) == (True, False)
    assert peers.by_pane(api.mesh.db.conn, "%1").peer_id == ann["peer_id"]
    clock.advance(61)
    cat = await api.post("/peers", name="cat", path="/c", pane_id="%1")
    assert cat["pane_assigned"] is True
    assert peers.by_pane(api.mesh.db.conn, "%1").peer_id == cat["peer_id"]
    assert (await api.get("/peers/ann"))["status"] == "offline"


async def test_a_child_of_the_panes_agent_does_not_take_the_pane(api, clock):
    holder = await api.post("/peers", name="ann", path="/a", pane_id="%1", agent_pid=os.getpid())
    said = {"name": "ben", "path": "/b", "pane_id": "%1", "parent_pid": os.getpid()}
    detail = (await api.post("/peers", expect=409, **said))["detail"]
    assert (detail["error"], detail["peer_id"]) == ("pane_held", holder["peer_id"])
    assert [one["display_name"] for one in (await api.get("/peers"))["peers"]] == ["ann"]
    assert (await api.post("/peers", **{**said, "pane_id": "%2"}))["pane_assigned"] is True
    with api.mesh.change() as change:
        lives.say(change, peers.load(change.db, holder["peer_id"]), "offline", "test")
    assert (await api.post("/peers", **{**said, "name": "cat"}))["pane_assigned"] is True


# -- circles -----------------------------------------------------------------------


async def test_an_agent_moves_itself_alone_and_a_person_anybody(api, monkeypatch):
    ann, ben = await made(api, "ann", "ben")
    with monkeypatch.context() as as_ann:
        as_ann.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ann))
        got = await api.post("/peers/circle", peer_name="ben", circle="night", expect=403)
        assert got["detail"]["error"] == "not_your_peer"
        await api.post("/peers/circle", peer_name="ann", circle="night")
    assert (await api.get(f"/peers/{ben}"))["circle"] == "default"
    assert (await api.get(f"/peers/{ann}"))["circle"] == "night"
    await api.post("/peers/circle", peer_name="ben", circle="night")
    assert (await api.get(f"/peers/{ben}"))["circle"] == "night"
