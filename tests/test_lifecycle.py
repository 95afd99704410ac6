"""lifecycle.py: what tmux says moves whom it fits, and never a process that provably lives."""

import os

import pytest

from repowire import claims, peers, presence, settings
from repowire.claims import Claim

PIDS = {"agent_pid": os.getpid()}


def come(mesh, name, *, alive=False, **fields):
    if alive:
        fields |= {**PIDS, "agent_started": mesh.procs.started(os.getpid())}
    with mesh.change() as change:
        return claims.register(change, Claim(name, **{"path": f"/src/{name}", **fields}))[0]


def status(mesh, *found):
    return [presence.of(mesh.db.conn, peer.peer_id) for peer in found]


async def say(api, event, *, expect=200, **body):
    return await api.post(f"/hooks/lifecycle/{event}", expect=expect, **body)


async def test_the_peer_of_a_dead_pane_is_offline_and_not_retired(api):
    ann = come(api.mesh, "ann", pane_id="%1")
    assert await say(api, "pane-died", pane_id="%1") == {"ok": True}
    found = peers.load(api.mesh.db.conn, ann.peer_id)
    assert (status(api.mesh, ann), found.retired_at, found.pane_id) == (["offline"], None, None)
    back = come(api.mesh, "ann", pane_id="%1")
    assert (back.peer_id, status(api.mesh, back)) == (ann.peer_id, ["online"])


async def test_a_process_that_lives_is_stronger_than_a_word_of_a_pane(api):
    ann = come(api.mesh, "ann", alive=True, pane_id="%1", tmux_session="main")
    await say(api, "pane-died", pane_id="%1")
    await say(api, "session-closed", session_name="main")
    assert status(api.mesh, ann) == ["online"]
    assert peers.load(api.mesh.db.conn, ann.peer_id).pane_id == "%1"


async def test_a_pane_id_of_two_servers_moves_nobody(api):
    found = [come(api.mesh, name, pane_id="%1", pane_server=f"tmux,{name},1.0") for name in ("ann", "ben")]
    await say(api, "pane-died", pane_id="%1")
    await say(api, "session-renamed", new_name="new", pane_ids=["%1"])
    assert status(api.mesh, *found) == ["online", "online"]
    assert [peers.load(api.mesh.db.conn, one.peer_id).tmux_session for one in found] == [None, None]


async def test_a_closed_session_takes_its_own_peers_offline_and_no_others(api):
    ann = come(api.mesh, "ann", tmux_session="main")
    bob = come(api.mesh, "bob", tmux_session="main:build")
    cat = come(api.mesh, "cat", tmux_session="mainly")
    dan = come(api.mesh, "dan", circle="main")
    await say(api, "session-closed", session_name="default")  # which is everybody's circle
    assert status(api.mesh, ann, bob, cat, dan) == ["online"] * 4
    await say(api, "session-closed", session_name="main")
    assert status(api.mesh, ann, bob, cat, dan) == ["offline", "offline", "online", "online"]


async def test_a_session_name_of_two_servers_moves_nobody(api):
    found = [come(api.mesh, name, tmux_session="main", pane_server=f"tmux,{name},1.0") for name in ("ann", "ben")]
    await say(api, "session-closed", session_name="main")
    assert status(api.mesh, *found) == ["online", "online"]


async def test_a_renamed_session_is_another_circle_only_where_sessions_are_circles(api, new_mesh, new_api, tmp_path):
    ann = come(api.mesh, "ann", pane_id="%1", tmux_session="old:build")
    await say(api, "session-renamed", new_name="new", pane_ids=["%1", "%2"])
    found = peers.load(api.mesh.db.conn, ann.peer_id)
    assert (found.tmux_session, found.circle) == ("new:build", "default")


async def test_where_a_session_is_a_circle_it_moves_with_it(api):
    api.mesh.config = api.mesh.config._replace(mesh=settings.MeshSection(circles="tmux"))
    ann = come(api.mesh, "ann", pane_id="%1", circle="old", tmux_session="old")
    ben = come(api.mesh, "ben", circle="old")
    await say(api, "session-renamed", new_name="new", pane_ids=["%1"])
    assert peers.load(api.mesh.db.conn, ann.peer_id).circle == "new"
    await say(api, "session-renamed", new_name="not a circle", pane_ids=["%1"])
    found = peers.load(api.mesh.db.conn, ann.peer_id)
    assert (found.tmux_session, found.circle) == ("not a circle", "new")
    await say(api, "session-closed", session_name="old")
    assert status(api.mesh, ann, ben) == ["online", "offline"]


async def test_a_window_and_a_client_are_nothing_to_us(api):
    ann = come(api.mesh, "ann", pane_id="%1", tmux_session="main")
    before = api.mesh.ledger.last
    await say(api, "window-renamed", session_name="main", new_name="x", pane_ids=["%1"])
    await say(api, "client-detached", session_name="main")
    assert (api.mesh.ledger.last, status(api.mesh, ann)) == (before, ["online"])


@pytest.mark.parametrize(
    ("event", "body", "field"),
    [
        ("pane-died", {}, "pane_id"),
        ("pane-died", {"pane_id": "x" * 65}, "pane_id"),
        ("session-closed", {"session_name": ""}, "session_name"),
        ("session-renamed", {"new_name": "a", "pane_ids": [7]}, "pane_ids"),
        ("session-renamed", {"new_name": "a", "pane_ids": "%1"}, "pane_ids"),
        ("window-renamed", {"new_name": "a"}, "session_name"),
    ],
)
async def test_a_wrong_field_is_named(api, event, body, field):
    assert (await say(api, event, expect=422, **body))["detail"]["field"] == field


async def test_from_loopback_is_not_enough(api):
    got = await api.request("POST", "/hooks/lifecycle/pane-died", json={"pane_id": "%1"}, token=None)
    assert got.status == 401


# -- by pane ------------------------------------------------------------------


async def test_a_pane_of_two_live_agents_is_a_conflict_and_of_one_is_its(api):
    ann, ben = [come(api.mesh, name, pane_id="%1", pane_server=f"tmux,{name},1.0") for name in ("ann", "ben")]
    detail = (await api.get("/peers/by-pane/%251", expect=409))["detail"]
    assert detail["error"] == "ambiguous_pane"
    assert [one["peer_id"] for one in detail["candidates"]] == [ann.peer_id, ben.peer_id]
    await api.post("/peers/ann/offline")
    assert (await api.get("/peers/by-pane/%251"))["peer_id"] == ben.peer_id
