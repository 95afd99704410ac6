"""peers.py: names, circles, lookups, and how a peer ends; over HTTP as clients see it."""

import os

import pytest

from repowire import callers, claims, deliveries, intake, lives, names, peers, presence
from repowire.claims import Claim
from repowire.errors import Refusal


def register(mesh, name="ann", **fields):
    with mesh.change() as change:
        return claims.register(change, Claim(name, **{"path": f"/src/{name}", **fields}))[0]


def go(mesh, peer, word="offline"):
    with mesh.change() as change:
        lives.say(change, peer, word, "offline_route")


def leave_mail(mesh, peer):
    with mesh.change() as change:
        frame = {"type": "notify", "text": "hi"}
        intake.queue(change, peer.peer_id, frame, expires_at=change.now + 9e9, most=100)


def refusal_of(mesh, name, circle=None):
    with pytest.raises(Refusal) as refused:
        peers.resolve(mesh.db.conn, name, circle)
    return refused.value


# -- lookups ------------------------------------------------------------------


async def test_an_id_is_looked_up_before_a_name(mesh):
    ann = register(mesh)
    impostor = register(mesh, ann.peer_id, path="/x")
    assert impostor.display_name == ann.peer_id
    assert peers.resolve(mesh.db.conn, ann.peer_id).peer_id == ann.peer_id


async def test_a_live_peer_is_meant_before_an_offline_one_of_its_name(mesh):
    red, blue = register(mesh, circle="red"), register(mesh, path="/b", circle="blue")
    go(mesh, red)
    assert peers.resolve(mesh.db.conn, "ann").peer_id == blue.peer_id
    go(mesh, blue)
    assert refusal_of(mesh, "ann").status == 409


async def test_the_one_with_a_pane_is_meant_where_no_circle_is_named(mesh):
    register(mesh, circle="red")
    paned = register(mesh, path="/b", circle="blue", pane_id="%1")
    assert peers.resolve(mesh.db.conn, "ann").peer_id == paned.peer_id


async def test_a_circle_decides_between_peers_of_one_name(mesh):
    both = {circle: register(mesh, path=f"/{circle}", circle=circle) for circle in ("red", "blue")}
    for circle, peer in both.items():
        assert peers.resolve(mesh.db.conn, "ann", circle).peer_id == peer.peer_id
    assert refusal_of(mesh, "ann", "green").status == 404
    refused = refusal_of(mesh, "ann")
    assert (refused.status, refused.error) == (409, "ambiguous_peer")
    assert {one["peer_id"] for one in refused.facts["candidates"]} == {peer.peer_id for peer in both.values()}


async def test_a_typo_is_answered_with_near_names(mesh):
    register(mesh, "frontend")
    assert refusal_of(mesh, "frontned").facts["near"] == ["frontend"]
    assert refusal_of(mesh, "zzz").facts["near"] == []


async def test_a_rename_is_seen_by_the_next_message(mesh):
    ann = register(mesh)
    with mesh.change() as change:
        assert peers.meant(change, "ann").peer_id == ann.peer_id
    with mesh.change() as change:
        assert names.rename(change, ann, "anna")
        assert peers.meant(change, "anna").display_name == "anna"
        with pytest.raises(Refusal):
            peers.meant(change, "ann")


# -- names --------------------------------------------------------------------


async def test_a_long_name_keeps_its_number_within_the_limit(mesh):
    first, second = register(mesh, "x" * 64), register(mesh, "x" * 64, path="/b")
    assert (len(first.display_name), second.display_name) == (64, "x" * 62 + "-2")


async def test_an_offline_peer_for_whom_something_waits_keeps_its_name(mesh):
    old = register(mesh)
    go(mesh, old)
    leave_mail(mesh, old)
    assert register(mesh, path="/b").display_name == "ann-2"


async def test_nobody_is_renamed_to_a_name_for_which_mail_waits(mesh):
    old, ben = register(mesh), register(mesh, "ben")
    go(mesh, old)
    with mesh.change() as change:
        assert names.rename(change, ben, "ann")
    back = register(mesh, peer_id=old.peer_id)
    assert (back.peer_id, back.display_name) == (old.peer_id, "ann-2")
    leave_mail(mesh, back)
    go(mesh, back)
    with mesh.change() as change:
        assert not names.rename(change, ben, "ann-2")


async def test_a_peer_whose_name_went_to_another_comes_back_under_a_free_one(mesh):
    old = register(mesh)
    go(mesh, old)
    register(mesh, path="/b")
    back = register(mesh, peer_id=old.peer_id)
    assert (back.peer_id, back.display_name, back.hidden_at) == (old.peer_id, "ann-2", None)


# -- ends ---------------------------------------------------------------------


async def test_a_peer_that_is_long_offline_is_reaped_and_its_mail_stays(mesh, clock):
    ann = register(mesh)
    go(mesh, ann)
    leave_mail(mesh, ann)
    clock.advance(mesh.config.daemon.peer_reap_ttl_seconds - 1)
    lives.tick(mesh)
    assert [peer.peer_id for peer in peers.listed(mesh.db.conn)] == [ann.peer_id]
    clock.advance(1)
    lives.tick(mesh)
    assert peers.listed(mesh.db.conn) == []
    reaped = [line.facts["reason"] for line in mesh.ledger.after(0) if line.kind == "peer.reaped"]
    assert reaped == ["offline_ttl"]
    assert deliveries.depth(mesh.db.conn, ann.peer_id) == 1
    at = mesh.ledger.last
    lives.tick(mesh)
    assert mesh.ledger.last == at
    assert register(mesh, peer_id=ann.peer_id).peer_id == ann.peer_id


async def test_a_silent_live_peer_is_not_reaped(mesh, clock):
    register(mesh)
    clock.advance(10 * mesh.config.daemon.peer_reap_ttl_seconds)
    lives.tick(mesh)
    assert len(peers.listed(mesh.db.conn)) == 1


async def test_the_human_stays(mesh, clock):
    human = callers.human(mesh)
    go(mesh, human)
    clock.advance(10 * mesh.config.daemon.peer_reap_ttl_seconds)
    lives.tick(mesh)
    assert callers.human(mesh).peer_id == human.peer_id


async def test_who_died_while_the_daemon_was_away_is_retired_at_the_next_look(mesh):
    ann = register(mesh, agent_pid=os.getpid(), agent_started=1.0)
    lives.tick(mesh)
    assert peers.load(mesh.db.conn, ann.peer_id).retired_at is not None
    assert presence.of(mesh.db.conn, ann.peer_id) == "offline"


async def test_a_process_of_the_same_number_that_started_later_is_another(mesh):
    ann = register(mesh, agent_pid=os.getpid(), agent_started=mesh.procs.started(os.getpid()))
    lives.tick(mesh)
    assert peers.load(mesh.db.conn, ann.peer_id).retired_at is None


# -- wire ---------------------------------------------------------------------


async def post_peer(api, name="ann", **fields):
    return await api.post("/peers", name=name, **{"path": f"/src/{name}", **fields})


@pytest.mark.parametrize("way", ["DELETE /peers/ann", "POST /peer/unregister"])
async def test_unregistering_hides_the_peer_once(both, way):
    await post_peer(both)
    body = {"name": "ann"} if way.startswith("POST") else None
    for status in (200, 404):
        method, path = way.split()
        got = await both.request(method, path, json=body)
        assert got.status == status, got
    assert (await both.get("/peers"))["peers"] == []
    await both.get("/peers/ann", expect=404)


async def test_an_ambiguous_name_is_409_everywhere(both):
    for circle in ("red", "blue"):
        await post_peer(both, path=f"/{circle}", circle=circle)
    requests = [
        ("GET", "/peers/ann", None),
        ("DELETE", "/peers/ann", None),
        ("POST", "/peer/unregister", {"name": "ann"}),
        ("POST", "/peers/ann/offline", {}),
        ("POST", "/peers/ann/touch", None),
        ("POST", "/peers/ann/description", {"description": "x"}),
        ("POST", "/peers/circle", {"peer_name": "ann", "circle": "green"}),
        ("POST", "/session/update", {"peer_name": "ann", "status": "busy"}),
        ("POST", "/ask", {"to_peer": "ann", "text": "?"}),
        ("GET", "/asks/pending?peer_id=ann", None),
        ("GET", "/deliveries/pending?peer_id=ann", None),
    ]
    for method, path, body in requests:
        got = await both.request(method, path, json=body)
        assert (got.status, got.json["detail"]["error"]) == (409, "ambiguous_peer"), path
        assert len(got.json["detail"]["candidates"]) == 2
    for path in ("/peers/ann/touch", "/peers/ann/description"):
        got = await both.request("POST", path, json={"description": "x"}, query={"circle": "red"})
        assert got.status == 200
    await both.delete("/peers/ann", circle="red")
    assert [one["circle"] for one in (await both.get("/peers"))["peers"] if one["name"] == "ann"] == ["blue"]


async def test_offline_takes_no_body_or_an_unknown_name(both):
    await post_peer(both)
    for path in ("/peers/ann/offline", "/peers/nobody/offline"):
        got = await both.request("POST", path)
        assert (got.status, got.json) == (200, {"ok": True, "cancelled_queries": 0})
    assert (await both.get("/peers/ann"))["status"] == "offline"
    said = [line.facts for line in both.mesh.ledger.after(0) if line.kind == "peer.offline"]
    assert [(one["reason"], one["source"], one["old_status"]) for one in said] == [
        ("offline_route", "peers_route", "online")
    ]


async def test_a_terminal_offline_needs_a_live_process_to_come_back(both):
    ann = await post_peer(both)
    await both.post("/peers/ann/offline", terminal=True, reason="session_end")
    got = await both.post("/peers", expect=409, name="ann", path="/src/ann", peer_id=ann["peer_id"])
    assert (got["detail"]["error"], got["detail"]["peer_id"]) == ("peer_retired", ann["peer_id"])
    got = await both.post("/peers", expect=409, name="ann", peer_id=ann["peer_id"], agent_pid=2**30)
    again = await post_peer(both, peer_id=ann["peer_id"], agent_pid=os.getpid())
    assert again["peer_id"] == ann["peer_id"]
    assert (await both.get("/peers/ann"))["status"] == "online"


async def test_a_session_update_changes_what_it_names(both):
    await post_peer(both, pane_id="%5", metadata={"a": 1})
    await both.post("/session/update", pane_id="%5", status="busy", turn_state="working", model="m", metadata={"b": 2})
    got = await both.get("/peers/ann")
    assert (got["status"], got["turn_state"], got["model"], got["metadata"]) == (
        "busy",
        "working",
        "m",
        {"a": 1, "b": 2},
    )
    await both.post("/session/update", peer_name="ann", status="idle")
    got = await both.get("/peers/ann")
    assert (got["status"], got["turn_state"], got["model"]) == ("online", "working", "m")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"peer_name": "ann"}, 400),
        ({"status": "busy"}, 400),
        ({"peer_name": "ann", "status": "asleep"}, 400),
        ({"peer_name": "nobody", "status": "busy"}, 200),
        ({"pane_id": "%9", "status": "busy"}, 404),
        ({"peer_name": "ann", "turn_state": "dancing"}, 422),
        ({"peer_name": "ann", "metadata": []}, 422),
        ({"peer_name": "ann", "metadata": {"x": "y" * 17_000}}, 422),
    ],
)
async def test_a_session_update_that_says_nothing_is_refused(api, body, status):
    await post_peer(api)
    await api.post("/session/update", expect=status, **body)


async def test_metadata_does_not_grow_beyond_its_limit_by_parts(both):
    await post_peer(both, metadata={"a": "x" * 15_000})
    await both.post("/session/update", peer_name="ann", metadata={"b": "x" * 15_000})
    got = await both.post("/session/update", expect=422, peer_name="ann", metadata={"c": "x" * 15_000})
    assert got["detail"]["field"] == "metadata"
    assert set((await both.get("/peers/ann"))["metadata"]) == {"a", "b"}
    await both.post("/session/update", peer_name="ann", status="busy")
    await both.post("/peers/ann/offline")
    await post_peer(both, metadata={"c": "x" * 15_000})
    assert set((await both.get("/peers/ann"))["metadata"]) == {"c"}


async def test_touch_is_seen(both, clock):
    await post_peer(both)
    before = (await both.get("/peers/ann"))["last_seen"]
    clock.advance(5)
    await both.request("POST", "/peers/ann/touch")
    assert (await both.get("/peers/ann"))["last_seen"] > before
    await both.post("/peers/nobody/touch", expect=404)


async def test_a_description_is_shown_for_its_lifetime(both, clock):
    await post_peer(both)
    await both.post("/peers/ann/description", description="builds the parser")
    assert (await both.get("/peers/ann"))["description"] == "builds the parser"
    clock.advance(both.mesh.config.daemon.description_ttl_seconds + 1)
    assert (await both.get("/peers/ann"))["description"] == ""
    await both.post("/peers/ann/description", description="")
    for wrong in ({}, {"description": None}, {"description": 5}, {"description": "x" * 2001}):
        got = await both.post("/peers/ann/description", expect=422, **wrong)
        assert got["detail"]["field"] == "description"


@pytest.mark.parametrize("circle", [None, "", "a b", "x" * 65, 5])
async def test_a_circle_is_checked(api, circle):
    await post_peer(api)
    got = await api.post("/peers/circle", expect=422, peer_name="ann", circle=circle)
    assert got["detail"]["field"] == "circle"


async def test_the_circle_of_an_unknown_peer_is_nothing_to_change(both):
    assert await both.post("/peers/circle", peer_name="nobody", circle="red") == {"ok": True}


async def test_moving_a_peer_leaves_its_id_and_its_mail(both):
    ann = await post_peer(both)
    await both.post("/notify", from_peer="x", to_peer="ann", text="hi")
    await both.post("/peers/circle", peer_name="ann", circle="red")
    got = await both.get("/peers/ann")
    assert (got["peer_id"], got["circle"]) == (ann["peer_id"], "red")
    assert len((await both.get("/deliveries/pending", peer_id="ann"))["deliveries"]) == 1
