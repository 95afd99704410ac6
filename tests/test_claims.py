"""claims.py: an identity is taken over only with proof."""

import os

import pytest

from repowire import claims, lives, names, peers, presence
from repowire.claims import Claim
from repowire.errors import Refusal


def register(mesh, name="ann", **fields):
    connected = fields.pop("connected", False)
    with mesh.change() as change:
        peer, _ = claims.register(change, Claim(name, **{"path": f"/src/{name}", **fields}), connected=connected)
        if connected:
            lives.note(change, peer, presence.SOCKET, "open", "connected")
    return peer


def leave(mesh, peer):
    with mesh.change() as change:
        lives.note(change, peer, presence.SOCKET, "closed", "transport_failure")


async def test_a_given_name_is_honoured(mesh):
    assert register(mesh, "build.1_x-y").display_name == "build.1_x-y"


async def test_without_a_name_the_folder_names_the_peer(mesh):
    assert register(mesh, None, path="/src/my project!").display_name == "my-project"


async def test_a_name_that_a_live_peer_holds_gets_a_number(mesh):
    first, second = register(mesh), register(mesh, path="/elsewhere")
    third = register(mesh, path="/nowhere")
    assert [first.display_name, second.display_name, third.display_name] == ["ann", "ann-2", "ann-3"]


async def test_the_same_name_in_another_circle_is_free(mesh):
    assert register(mesh, path="/a", circle="red").display_name == register(mesh, path="/b", circle="blue").display_name


async def test_a_name_whose_offline_holder_has_nothing_waiting_is_reused(mesh):
    old = register(mesh, connected=True)
    leave(mesh, old)
    new = register(mesh, path="/elsewhere")
    assert new.display_name == "ann"
    assert peers.load(mesh.db.conn, old.peer_id).hidden_at is not None


async def test_a_live_identity_is_not_taken_by_naming_its_id(mesh):
    ann = register(mesh, connected=True)
    thief = register(mesh, peer_id=ann.peer_id, connected=True)
    assert thief.peer_id != ann.peer_id
    refused = [line for line in mesh.ledger.after(0) if line.kind == "peer.claim_refused"]
    assert [line.facts["peer_id"] for line in refused] == [ann.peer_id]


async def test_a_certificate_takes_a_live_identity_over(mesh):
    ann = register(mesh, connected=True)
    with mesh.change() as change:
        certificate = claims.certify(change, ann)
    assert register(mesh, peer_id=ann.peer_id, certificate=certificate, connected=True).peer_id == ann.peer_id


async def test_an_expired_certificate_proves_nothing(mesh, clock):
    ann = register(mesh, connected=True)
    with mesh.change() as change:
        certificate = claims.certify(change, ann)
    clock.advance(24 * 3600 + 1)
    assert register(mesh, peer_id=ann.peer_id, certificate=certificate, connected=True).peer_id != ann.peer_id


async def test_the_same_pane_with_the_same_process_takes_a_live_identity_over(mesh):
    held = {"pane_id": "%4", "agent_pid": os.getpid(), "agent_started": 1.0, "connected": True}
    ann = register(mesh, **held)
    assert register(mesh, peer_id=ann.peer_id, **held).peer_id == ann.peer_id
    assert register(mesh, peer_id=ann.peer_id, **{**held, "agent_started": 2.0}).peer_id != ann.peer_id


async def test_an_offline_identity_comes_back_with_its_backend_and_path(mesh):
    ann = register(mesh, connected=True)
    leave(mesh, ann)
    assert register(mesh, peer_id=ann.peer_id).peer_id == ann.peer_id


@pytest.mark.parametrize("change", [{"backend": "codex"}, {"path": "/elsewhere"}])
async def test_an_offline_identity_is_not_given_to_another_backend_or_path(mesh, change):
    ann = register(mesh, connected=True)
    leave(mesh, ann)
    assert register(mesh, peer_id=ann.peer_id, **change).peer_id != ann.peer_id


async def test_a_script_that_comes_back_without_its_id_keeps_its_mailbox(mesh):
    ann = register(mesh, connected=True)
    leave(mesh, ann)
    assert register(mesh, connected=True).peer_id == ann.peer_id


async def test_a_script_that_registered_by_hand_connects_as_that_peer(mesh):
    ann = register(mesh)
    assert register(mesh, connected=True).peer_id == ann.peer_id
    assert register(mesh, connected=True).peer_id != ann.peer_id


async def test_the_same_runtime_session_is_the_same_peer(mesh):
    session = {"metadata": {"hook_session_id": "s-1"}}
    ann = register(mesh, path="/a", **session)
    assert register(mesh, path="/b", **session).peer_id == ann.peer_id


async def test_a_retired_identity_needs_a_live_process(mesh):
    ann = register(mesh)
    with mesh.change() as change:
        lives.retire(change, ann, "session_end")
    with pytest.raises(Refusal) as refused:
        register(mesh, peer_id=ann.peer_id)
    assert (refused.value.status, refused.value.error) == (409, "peer_retired")
    with mesh.change() as change:
        certificate = claims.certify(change, ann)
    with pytest.raises(Refusal):
        register(mesh, peer_id=ann.peer_id, certificate=certificate)
    back = register(mesh, peer_id=ann.peer_id, agent_pid=os.getpid(), agent_started=1.0)
    assert (back.peer_id, back.retired_at) == (ann.peer_id, None)
    assert presence.of(mesh.db.conn, back.peer_id) == "online"


async def test_the_pane_of_a_newcomer_is_taken_from_its_former_owner(mesh):
    old = register(mesh, pane_id="%1")
    new = register(mesh, "ben", pane_id="%1")
    assert peers.by_pane(mesh.db.conn, "%1").peer_id == new.peer_id
    assert presence.of(mesh.db.conn, old.peer_id) == "offline"


async def test_a_tmux_session_is_a_circle_only_where_the_config_says_so(mesh):
    with mesh.change() as change:
        one, _ = claims.register(change, Claim("a", circle="work", circle_source="tmux", path="/a"))
        many, _ = claims.register(change, Claim("b", circle="work", circle_source="tmux", path="/b"), circles="tmux")
    assert (one.circle, many.circle) == ("default", "work")


async def test_registering_returns_the_published_fields(api):
    got = await api.post("/peers", name="ann", path="/src/ann")
    assert got["ok"] is True
    assert got["peer_id"].startswith("repow-default-")
    assert (got["display_name"], got["pane_assigned"]) == ("ann", True)
    assert len(got["birth_certificate"]["nonce"]) == 43


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": 7}, "name"),
        ({}, "name"),
        ({"name": "a", "backend": "vi"}, "backend"),
        ({"name": "a", "role": "king"}, "role"),
        ({"name": "a", "circle": "no spaces"}, "circle"),
        ({"name": "a", "metadata": {"x": "y" * 17000}}, "metadata"),
        ({"name": "a", "agent_pid": True}, "agent_pid"),
    ],
)
async def test_a_wrong_field_is_named(api, fields, named):
    got = await api.request("POST", "/peers", json=fields)
    assert (got.status, got.json["detail"]["error"], got.json["detail"]["field"]) == (422, "invalid_field", named)


async def test_the_humans_name_is_nobody_elses_in_any_circle(mesh):
    assert register(mesh, "human", path="/a", circle="red").display_name == "human-2"
    ben = register(mesh, "ben", path="/b", circle="red", pane_id="%7")
    with mesh.change() as change:
        assert not names.rename(change, ben, "human")
        assert names.meant(change, "human", "red").role == "human"


def busy_with(mesh, pid):
    """A peer in a pane whose process is at work."""
    peer = register(mesh, pane_id="%5", agent_pid=pid, agent_started=mesh.procs.started(pid), connected=True)
    with mesh.change() as change:
        lives.say(change, peer, presence.BUSY, "hook", "hook")
    return peer


async def test_a_socket_that_comes_back_leaves_the_same_process_at_work(mesh):
    pid = os.getpid()
    ann = busy_with(mesh, pid)
    for _ in range(2):  # a ws-hook that was killed, and one that takes over from a live one
        again = register(
            mesh,
            peer_id=ann.peer_id,
            pane_id="%5",
            agent_pid=pid,
            agent_started=mesh.procs.started(pid),
            connected=True,
        )
        assert (again.peer_id, presence.of(mesh.db.conn, ann.peer_id)) == (ann.peer_id, presence.BUSY)
        leave(mesh, ann)


@pytest.mark.parametrize("claim", [{"agent_pid": os.getppid()}, {}], ids=["another process", "none that is known"])
async def test_another_process_of_the_peer_is_not_at_work(mesh, claim):
    ann = busy_with(mesh, os.getpid())
    leave(mesh, ann)
    if claim:
        claim["agent_started"] = mesh.procs.started(claim["agent_pid"])
    again = register(mesh, peer_id=ann.peer_id, connected=True, **claim)
    assert (again.peer_id, presence.of(mesh.db.conn, ann.peer_id)) == (ann.peer_id, presence.ONLINE)
