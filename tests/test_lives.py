"""lives.py: clearing the list of peers, and what that leaves."""

from repowire import peers


async def shown(api):
    return [one["display_name"] for one in (await api.get("/peers"))["peers"]]


async def test_prune_takes_the_offline_off_the_list_and_keeps_what_waits(api):
    for name in ("ann", "ben", "cat"):
        await api.post("/peers", name=name, path=f"/src/{name}")
    await api.post("/notify", from_peer="x", to_peer="cat", text="hi")
    for name in ("ben", "cat"):
        await api.post(f"/peers/{name}/offline")
    dry = await api.post("/peers/prune", dry_run=True)
    assert [(one["display_name"], one["waiting"]) for one in dry["pruned"]] == [("ben", False), ("cat", True)]
    assert await shown(api) == ["ann", "ben", "cat"]
    assert (await api.post("/peers/prune"))["pruned"] == dry["pruned"]
    assert await shown(api) == ["ann"]
    cat = dry["pruned"][1]["peer_id"]
    assert peers.waiting(api.mesh.db.conn, cat)
    back = await api.post("/peers", name="cat", path="/src/cat")
    assert back["peer_id"] == cat
    assert (await api.post("/peers/prune"))["pruned"] == []


async def test_prune_of_one_circle_leaves_the_others_and_the_human(api):
    await api.post("/notify", to_peer="nobody", text="x", expect=404)
    for name, circle in (("ann", "red"), ("ben", "blue")):
        await api.post("/peers", name=name, path=f"/src/{name}", circle=circle)
        await api.post(f"/peers/{name}/offline")
    await api.post("/peers/human/offline")
    assert [one["display_name"] for one in (await api.post("/peers/prune", circle="red"))["pruned"]] == ["ann"]
    await api.post("/peers/prune")
    assert await shown(api) == ["human"]


async def test_a_description_lapses_by_its_own_clock_over_a_restart(new_mesh, new_api, clock, tmp_path):
    first = new_mesh(tmp_path / "home", clock)
    api = await new_api(first)
    await api.post("/peers", name="ann", path="/src/ann")
    await api.post("/peers/ann/description", description="on the parser")
    clock.advance(600)
    first.close()
    api = await new_api(new_mesh(tmp_path / "home", clock))
    assert (await api.get("/peers/ann"))["description"] == "on the parser"
    clock.advance(301)
    assert (await api.get("/peers/ann"))["description"] == ""


async def test_a_lifetime_of_zero_keeps_descriptions(api, clock):
    daemon = api.mesh.config.daemon._replace(description_ttl_seconds=0)
    api.mesh.config = api.mesh.config._replace(daemon=daemon)
    await api.post("/peers", name="ann", path="/src/ann")
    await api.post("/peers/ann/description", description="on the parser")
    clock.advance(10 * 365 * 86_400)
    assert (await api.get("/peers/ann"))["description"] == "on the parser"
