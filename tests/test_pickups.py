"""pickups.py: what is picked up with a token is confirmed, or comes back; the published drain gives out once."""

import pytest

from repowire import callers, leases, peers


@pytest.fixture
async def ben(both):
    got = await both.post("/peers", name="ben", path="/src/ben")
    for text in ("one", "two"):
        await both.post("/notify", to_peer="ben", text=text)
    return got["peer_id"]


async def states(api):
    return [
        row[0] for row in api.mesh.db.conn.execute("SELECT state FROM deliveries WHERE kind = 'notify' ORDER BY seq")
    ]


async def test_what_is_confirmed_was_handed(both, ben):
    got = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    assert [(one["text"], one["attempts"]) for one in got["deliveries"]] == [("one", 1), ("two", 1)]
    assert await states(both) == ["leased", "leased"]
    said = await both.post("/deliveries/confirm", lease=got["lease"])
    assert said["confirmed"] == [one["delivery_id"] for one in got["deliveries"]]
    assert await states(both) == ["handed", "handed"]
    again = await both.post("/deliveries/confirm", expect=410, lease=got["lease"])
    assert again["detail"]["error"] == "lease_over"
    empty = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    assert empty == {"deliveries": [], "lease": None, "lease_expires_at": None}


async def test_what_was_never_confirmed_comes_back_in_its_place(both, ben, clock):
    first = await both.get("/deliveries/pending", peer_id="ben", confirm="true", max_results=1)
    await both.post("/notify", to_peer="ben", text="three")
    clock.advance(both.mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(both.mesh)
    late = await both.post("/deliveries/confirm", expect=410, lease=first["lease"])
    assert late["detail"]["error"] == "lease_over"
    got = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    assert [(one["text"], one["attempts"]) for one in got["deliveries"]] == [("one", 2), ("two", 1), ("three", 1)]


async def test_a_part_can_be_confirmed_and_the_rest_put_back(both, ben):
    got = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    first, second = (one["delivery_id"] for one in got["deliveries"])
    await both.post("/deliveries/confirm", lease=got["lease"], delivery_ids=[first])
    await both.post("/deliveries/confirm", lease=got["lease"], status="held", detail="a dialog is open")
    assert (await both.get(f"/deliveries/{first}"))["state"] == "handed"
    held = await both.get(f"/deliveries/{second}")
    assert (held["state"], held["reason"]) == ("held", "a dialog is open")


async def test_the_lease_outlives_the_daemon(new_mesh, new_api, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    api = await new_api(mesh)
    await api.post("/peers", name="ben", path="/src/ben")
    await api.post("/notify", to_peer="ben", text="one")
    got = await api.get("/deliveries/pending", peer_id="ben", confirm="true")
    mesh.close()
    api = await new_api(new_mesh(tmp_path / "home", clock))
    assert (await api.get("/deliveries/pending", peer_id="ben", confirm="true"))["deliveries"] == []
    said = await api.post("/deliveries/confirm", lease=got["lease"])
    assert said["confirmed"] == [got["deliveries"][0]["delivery_id"]]


async def test_the_published_drain_keeps_its_shape_and_gives_out_once(both, ben, clock):
    got = await both.get("/deliveries/pending", peer_id="ben")
    assert set(got) == {"deliveries"}
    assert set(got["deliveries"][0]) == {
        *("delivery_id", "kind", "from_peer", "to_peer", "text", "created_at", "expires_at"),
        *("correlation_id", "attachments"),
    }
    clock.advance(both.mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(both.mesh)
    assert await states(both) == ["unknown", "unknown"]
    assert (await both.get("/deliveries/pending", peer_id="ben"))["deliveries"] == []


@pytest.mark.parametrize(
    "body", [{}, {"lease": 1}, {"lease": "x", "status": "read"}, {"lease": "x", "delivery_ids": [1]}]
)
async def test_a_confirmation_is_checked(both, body):
    await both.post("/deliveries/confirm", expect=422, **body)


async def test_a_strangers_token_confirms_nothing(both, ben):
    got = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    await both.post("/deliveries/confirm", expect=410, lease="x" * 24)
    await both.post("/deliveries/confirm", expect=410, lease=got["lease"], delivery_ids=["notif-delivery-000000000000"])
    assert await states(both) == ["leased", "leased"]


async def test_only_the_peer_itself_or_the_human_confirms_and_the_token_stands_in_no_event(both, ben, monkeypatch):
    ann = (await both.post("/peers", name="ann", path="/src/ann"))["peer_id"]
    got = await both.get("/deliveries/pending", peer_id="ben", confirm="true")
    assert got["lease"] not in str(await both.get("/events"))
    for status in ("injected", "held"):
        monkeypatch.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ann))
        no = await both.post("/deliveries/confirm", expect=403, lease=got["lease"], status=status)
        assert no["detail"]["error"] == "not_your_peer"
    assert await states(both) == ["leased", "leased"]
    monkeypatch.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ben))
    await both.post("/deliveries/confirm", lease=got["lease"])
    assert await states(both) == ["handed", "handed"]


async def test_an_agent_sees_no_delivery_of_others(both, ben, monkeypatch):
    ann = (await both.post("/peers", name="ann", path="/src/ann"))["peer_id"]
    one = both.mesh.db.conn.execute("SELECT delivery_id FROM deliveries").fetchone()[0]
    monkeypatch.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ann))
    assert (await both.get(f"/deliveries/{one}", expect=403))["detail"]["error"] == "not_your_delivery"
    monkeypatch.setattr(callers, "calling", lambda mesh, request: peers.load(mesh.db.conn, ben))
    assert (await both.get(f"/deliveries/{one}"))["text"] == "one"
