"""roster.py: what others are shown of a peer, and which peers."""

import json
import math

import pytest
from conftest import until_async
from yarl import URL

from repowire import asks, claims, lives, names, peers, presence, roster
from repowire.claims import Claim
from repowire.errors import Refusal

FIELDS = [
    "peer_id",
    "name",
    "display_name",
    "path",
    "machine",
    "tmux_session",
    "backend",
    "model",
    "circle",
    "role",
    "status",
    "turn_state",
    "last_seen",
    "metadata",
    "description",
    "ws_connected",
    "hook_supports_receipts",
    "last_successful_injection_at",
    "last_injection_failure_at",
    "pending_ask_count",
    "oldest_pending_age_seconds",
    "pane_safe",
    "inbound_status",
]


def register_in(change, name, **fields):
    return claims.register(change, Claim(name, **{"path": f"/src/{name}", **fields}))[0]


def register(mesh, name, *, status=None, **fields):
    with mesh.change() as change:
        peer = register_in(change, name, **fields)
        if status is not None:
            lives.say(change, peer, status, "the_test")
    return peer


def open_ask(mesh, to):
    with mesh.change() as change:
        draft = asks.Draft("ann", to, "ready?", keep_if_offline=True)
        return asks.open_ask(change, mesh, draft)[0]


async def shown(api, **query):
    return [one["display_name"] for one in (await api.get("/peers", **query))["peers"]]


# -- one peer -----------------------------------------------------------------


async def test_a_peer_is_shown_with_the_published_fields_in_their_order(api):
    sent = {"machine": "mill", "tmux_session": "main", "backend": "codex", "model": "m1", "turn_state": "working"}
    got = await api.post("/peers", name="ben", path="/src/ben", circle="red", metadata={"a": [1]}, **sent)
    info = await api.get("/peers/ben")
    assert list(info) == FIELDS
    assert info == {
        **sent,
        **{"peer_id": got["peer_id"], "name": "ben", "display_name": "ben", "path": "/src/ben", "circle": "red"},
        **{"role": "agent", "status": "online", "last_seen": "2025-06-15T15:06:40.000000+00:00"},
        **{"metadata": {"a": [1]}, "description": "", "ws_connected": False, "hook_supports_receipts": False},
        **{"last_successful_injection_at": None, "last_injection_failure_at": None},
        **{"pending_ask_count": 0, "oldest_pending_age_seconds": None},
        **{"pane_safe": None, "inbound_status": "no_hook"},
    }


async def test_a_peer_is_the_same_by_name_by_id_by_pane_and_in_the_list(api):
    ben = await api.connect("ben", path="/src/ben", pane_id="%42")
    info = await api.get("/peers/ben")
    assert await api.get(f"/peers/{ben.peer_id}") == info
    by_pane = await api.request("GET", URL("/peers/by-pane/%2542", encoded=True))
    assert by_pane.json == info
    assert (await api.get("/peers"))["peers"] == [info]
    assert info["ws_connected"] is True
    assert "pane_id" not in info
    assert "agent_pid" not in info


async def test_a_pane_that_nobody_holds_is_not_found(api):
    got = await api.request("GET", URL("/peers/by-pane/%2543", encoded=True))
    assert (got.status, got.json["detail"]["error"], got.json["detail"]["pane"]) == (404, "pane_not_found", "%43")


async def test_an_unknown_name_is_not_found_with_the_near_ones(api):
    for name in ("benjamin", "benjamine", "zoe"):
        register(api.mesh, name)
    detail = (await api.get("/peers/benjamim", expect=404))["detail"]
    assert (detail["error"], sorted(detail["near"])) == ("peer_not_found", ["benjamin", "benjamine"])
    assert "benjamin" in detail["hint"]
    assert (await api.get("/peers/xxxxxx", expect=404))["detail"]["near"] == []


@pytest.mark.parametrize("circles", [["red"], ["red", "blue"], ["a", "b", "c", "d"]])
async def test_a_peer_of_another_circle_is_not_found_with_its_circle(api, circles):
    ids = [register(api.mesh, "ann", path=f"/{circle}", circle=circle).peer_id for circle in circles]
    register(api.mesh, "anna", path="/anna", circle="night")
    detail = (await api.get("/peers/ann", circle="nigth", expect=404))["detail"]
    assert (detail["error"], detail["near"]) == ("peer_not_found", [])
    assert [one["peer_id"] for one in detail["candidates"]] == ids
    where = {1: "'red'", 2: "'blue', 'red'", 4: "'a', 'b', 'c' and 1 more"}[len(circles)]
    assert detail["hint"] == f"ann is not in circle 'nigth' but in {where}: name that circle, or none"


async def test_an_ambiguous_name_is_a_conflict_with_its_candidates(api):
    ids = {circle: register(api.mesh, "ben", path=f"/{circle}", circle=circle).peer_id for circle in ("red", "blue")}
    detail = (await api.get("/peers/ben", expect=409))["detail"]
    assert detail["error"] == "ambiguous_peer"
    assert detail["candidates"] == [
        {"peer_id": peer_id, "display_name": "ben", "circle": circle} for circle, peer_id in ids.items()
    ]
    assert (await api.get("/peers/ben", circle="blue"))["peer_id"] == ids["blue"]


@pytest.mark.parametrize("raw", ["%00", "%FF", "%ED%A0%80", "a%0Ab", "..%2F..", "x" * 5000])
async def test_no_name_is_a_fault_of_ours(api, raw):
    got = await api.request("GET", URL(f"/peers/{raw}", encoded=True))
    assert (got.status, got.json["detail"]["error"]) == (404, "peer_not_found")


async def test_a_description_is_shown_for_its_lifetime(api, clock):
    register(api.mesh, "ben")
    await api.post("/peers/ben/description", description="mends the mill")
    clock.advance(api.mesh.config.daemon.description_ttl_seconds)
    assert (await api.get("/peers/ben"))["description"] == "mends the mill"
    clock.advance(1)
    assert (await api.get("/peers/ben"))["description"] == ""
    await api.post("/peers/ben/description", description="again")
    assert (await api.get("/peers/ben"))["description"] == "again"


async def test_the_asks_that_wait_for_a_peer_are_counted_and_the_oldest_has_an_age(api, clock):
    register(api.mesh, "ann")
    register(api.mesh, "ben")
    first = open_ask(api.mesh, "ben")
    clock.advance(10)
    open_ask(api.mesh, "ben")
    clock.advance(2.5)
    info = await api.get("/peers/ben")
    assert (info["pending_ask_count"], info["oldest_pending_age_seconds"]) == (2, 12.5)
    await api.post("/ack", correlation_id=first.correlation_id)
    info = await api.get("/peers/ben")
    assert (info["pending_ask_count"], info["oldest_pending_age_seconds"]) == (1, 2.5)
    assert (await api.get("/peers/ann"))["pending_ask_count"] == 0  # outbound ones are another's to answer


async def test_the_count_of_asks_ends_at_fifty(api):
    register(api.mesh, "ben")
    for _ in range(53):
        open_ask(api.mesh, "ben")
    assert (await api.get("/peers/ben"))["pending_ask_count"] == 50


# -- inbound_status -----------------------------------------------------------


async def inbound(api, name="ben"):
    info = await api.get(f"/peers/{name}")
    return info["inbound_status"], info["hook_supports_receipts"]


async def test_without_a_socket_there_is_no_hook_and_offline_says_so_first(api):
    register(api.mesh, "ben")
    assert (await inbound(api))[0] == "no_hook"
    await api.post("/peers/ben/offline")
    assert (await inbound(api))[0] == "offline"


async def test_a_socket_that_promises_receipts_is_online(api):
    await api.connect("ben", path="/src/ben", capabilities=["delivery_receipts"])
    assert await inbound(api) == ("online", True)


async def test_a_socket_without_receipts_is_unverified_until_its_first_one(api):
    ben = await api.connect("ben", path="/src/ben")
    assert await inbound(api) == ("legacy_unverified", False)
    await api.post("/notify", from_peer="ann", to_peer="ben", text="hi")
    await ben.receipt(await ben.next())
    await until_async(lambda: "delivery.handed" in [line.kind for line in api.mesh.ledger.after(0)])
    assert await inbound(api) == ("online", True)
    assert (await api.get("/peers/ben"))["last_successful_injection_at"] is not None


async def test_a_failure_newer_than_the_last_success_degrades(api, clock):
    ben = await api.connect("ben", path="/src/ben")
    await api.post("/notify", from_peer="ann", to_peer="ben", text="hi")
    await ben.receipt(await ben.next(), "failed", detail="no pane")
    await until_async(lambda: peers.load(api.mesh.db.conn, ben.peer_id).failed_at)
    assert await inbound(api) == ("inbound_degraded", True)  # a receipt that says no is a receipt
    clock.advance(1)
    with api.mesh.change() as change:
        peers.change_columns(change, ben.peer_id, handed_at=change.now)
    assert await inbound(api) == ("online", True)


@pytest.mark.parametrize("word", [5, True, "delivery_receipts", {"delivery_receipts": 1}, None, [["x"], {}]])
async def test_capabilities_of_any_type_harm_nobody(api, word):
    await api.post("/peers", name="ben", path="/src/ben", metadata={"capabilities": word})
    assert await inbound(api) == ("no_hook", False)
    assert await shown(api) == ["ben"]


# -- the list -----------------------------------------------------------------


async def test_the_list_is_in_the_order_of_registration_without_a_next(api):
    for name in ("zoe", "ann", "max"):
        register(api.mesh, name)
    got = await api.get("/peers")
    assert list(got) == ["peers"]
    assert [one["display_name"] for one in got["peers"]] == ["zoe", "ann", "max"]


async def test_the_list_is_filtered_by_status(api):
    register(api.mesh, "ann")
    register(api.mesh, "ben", status=presence.BUSY)
    register(api.mesh, "cat", status=presence.OFFLINE)
    assert await shown(api, status="online") == ["ann", "ben"]
    assert await shown(api, status="offline") == ["cat"]
    assert await shown(api, status="whatever") == ["ann", "ben", "cat"]


async def test_the_list_is_filtered_by_backend_and_names_a_wrong_one(api):
    register(api.mesh, "ann", backend="codex")
    register(api.mesh, "ben", backend="gemini")
    assert await shown(api, backend="gemini") == ["ben"]
    assert (await api.get("/peers", expect=422, backend="emacs"))["detail"]["field"] == "backend"


async def test_the_list_is_filtered_by_circle_and_a_bypass_role_is_in_each(api):
    register(api.mesh, "ann", circle="red")
    register(api.mesh, "ben", circle="blue")
    register(api.mesh, "bot", circle="blue", role="service")
    assert await shown(api, circle="red") == ["ann", "bot"]
    assert await shown(api, circle="*") == ["ann", "ben", "bot"]
    assert await shown(api, circle="green") == ["bot"]


@pytest.mark.parametrize("route", ["/peers", "/messages"])
@pytest.mark.parametrize("circle", ["no such", "", "x" * 65, "**"])
async def test_what_can_be_no_circle_is_refused_as_elsewhere(api, route, circle):
    detail = (await api.get(route, circle=circle, expect=422))["detail"]
    assert (detail["error"], detail["field"]) == ("invalid_field", "circle")
    assert "must be 1 to 64 of the letters, digits and . _ -" in detail["hint"]


async def test_the_list_is_filtered_by_path_as_text_first_then_as_on_the_disk(api, tmp_path):
    folder, link = tmp_path / "src", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    register(api.mesh, "ann", path=str(folder))
    register(api.mesh, "ben", path=str(link))
    register(api.mesh, "cat", path=str(tmp_path))
    assert await shown(api, path=str(folder)) == ["ann", "ben"]
    assert await shown(api, path=str(link)) == ["ben", "ann"]
    assert await shown(api, path=str(tmp_path / "none")) == []


async def test_a_path_with_a_nul_is_refused(api):
    register(api.mesh, "ann")
    assert (await api.get("/peers", expect=422, path="a\0b"))["detail"]["field"] == "path"


async def test_a_peer_that_was_unregistered_is_not_in_the_list(api):
    register(api.mesh, "ann")
    register(api.mesh, "ben")
    await api.delete("/peers/ann")
    assert await shown(api) == ["ben"]


async def test_pages_follow_each_other_and_a_newcomer_disturbs_none(api):
    for n in range(5):
        register(api.mesh, f"p{n}", path=f"/{n}")
    first = await api.get("/peers", limit=2)
    register(api.mesh, "p5", path="/5")
    second = await api.get("/peers", limit=2, cursor=first["next"])
    third = await api.get("/peers", limit=2, cursor=second["next"])
    found = [[one["display_name"] for one in page["peers"]] for page in (first, second, third)]
    assert found == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    assert third["next"] is None


async def test_pages_are_of_what_the_filters_leave(api):
    for n in range(6):
        register(api.mesh, f"p{n}", path=f"/{n}", backend="codex" if n % 2 else "gemini")
    first = await api.get("/peers", limit=2, backend="codex")
    rest = await api.get("/peers", limit=2, backend="codex", cursor=first["next"])
    assert [one["display_name"] for one in first["peers"] + rest["peers"]] == ["p1", "p3", "p5"]


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "x"}, {"cursor": "?"}, {"cursor": "é"}, {"cursor": "eA=="}]
)
async def test_a_wrong_limit_or_cursor_is_named(api, query):
    assert (await api.get("/peers", expect=422, **query))["detail"]["field"] == next(iter(query))


async def test_showing_the_list_changes_nothing(api):
    register(api.mesh, "ben")
    before = (api.mesh.db.committed, api.mesh.ledger.last)
    await api.get("/peers")
    await api.get("/peers/ben")
    assert (api.mesh.db.committed, api.mesh.ledger.last) == before


# -- what is kept of it -------------------------------------------------------


def fresh(mesh):
    """What would be shown if nothing were kept."""
    return [
        roster.info(mesh, peer, presence.evidence(mesh.db.conn, peer.peer_id)) for peer in peers.listed(mesh.db.conn)
    ]


CHANGES = {
    "a touch": lambda change, ben: lives.touch(change, ben.peer_id),
    "a description": lambda change, ben: lives.describe(change, ben, "mends"),
    "a word": lambda change, ben: lives.say(change, ben, presence.BUSY, "test"),
    "a socket": lambda change, ben: lives.note(change, ben, presence.SOCKET, "open", "test"),
    "evidence that goes": lambda change, ben: presence.forget(change, ben.peer_id, presence.WORD),
    "another circle": lambda change, ben: names.set_circle(change, ben, "red"),
    "another name": lambda change, ben: names.rename(change, ben, "bob"),
    "a receipt": lambda change, ben: peers.change_columns(change, ben.peer_id, handed_at=change.now),
    "an ask": lambda change, ben: asks.open_ask(change, change.mesh, asks.Draft("x", "ben", "?", keep_if_offline=True)),
    "its end": lambda change, ben: lives.retire(change, ben, "test"),
    "hidden": lambda change, ben: lives.hide(change, ben, "test"),
    "metadata": lambda change, ben: lives.update(change, ben, turn_state="idle", model="m", metadata={"a": 1}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_kept_of_a_peer_goes_with_each_change_of_it(mesh, clock, kind):
    shown = roster.Roster(mesh)
    ben = register(mesh, "ben", metadata={"oldest_pending_age_seconds": None})
    register(mesh, "cat")
    open_ask(mesh, "cat")
    assert [json.loads(one.json(clock.now())) for one in shown.all()] == fresh(mesh)
    clock.advance(3)
    with mesh.change() as change:
        CHANGES[kind](change, ben)
    for _ in range(2):
        assert [json.loads(one.json(clock.now())) for one in shown.all()] == fresh(mesh)
        clock.advance(mesh.config.daemon.description_ttl_seconds + 1)


def test_who_did_not_change_is_not_looked_at_again(mesh):
    shown = roster.Roster(mesh)
    for n in range(200):
        register(mesh, f"p{n}")
    shown.all()
    before = shown.rendered
    assert len(shown.all()) == 200
    assert shown.rendered == before
    with mesh.change() as change:
        lives.touch(change, peers.resolve(change.db, "p7").peer_id)
    shown.all()
    assert shown.rendered == before + 1


def describe_and_fail(mesh, ben):
    with mesh.change() as change:
        lives.describe(change, ben, "nor this")
        peers.resolve(change.db, "nobody")


async def test_what_was_undone_is_not_shown(mesh, clock):
    mesh.shared, mesh.rest_seconds = True, math.inf
    ben, shown = register(mesh, "ben"), roster.Roster(mesh)
    await mesh.committed()
    with mesh.change() as change:
        lives.describe(change, ben, "never kept")
        register_in(change, "cat")
    assert [json.loads(one.json(clock.now()))["description"] for one in shown.all()] == ["never kept", ""]
    with pytest.raises(Refusal):
        describe_and_fail(mesh, ben)
    mesh.commit()
    assert [json.loads(one.json(clock.now()))["description"] for one in shown.all()] == [""]
    assert [json.loads(one.json(clock.now())) for one in shown.all()] == fresh(mesh)
