"""identity.py: a certificate proves who one is as long as it is whole, valid, and its caller's."""

import os

import pytest

from repowire import certificates, lives, peers

ME = os.getpid()


async def born(api, name="ann", **fields):
    return (await api.post("/peers", name=name, path=f"/src/{name}", **fields))["birth_certificate"]


async def show(api, certificate, *, expect=200, **fields):
    said = {"backend": "claude-code", "path": certificate.get("project_path") or None, **fields}
    return await api.post("/peers/identity/validate", birth_certificate=certificate, expect=expect, **said)


async def refused(api, certificate, **fields):
    return (await show(api, certificate, expect=409, **fields))["detail"]["error"]


async def test_it_proves_the_peer_and_shows_it(api):
    certificate = await born(api, agent_pid=ME, pane_id="%1")
    got = await show(api, certificate, agent_pid=ME, pane_id="%1")
    assert (got["ok"], got["peer_id"], got["display_name"]) == (True, certificate["peer_id"], "ann")
    assert got["peer"] == await api.get("/peers/ann")


@pytest.mark.parametrize(
    "field", ["nonce", "peer_id", "display_name", "agent_pid", "metadata", "issued_at", "expires_at"]
)
async def test_an_altered_field_is_refused(api, field):
    certificate = await born(api)
    other = await born(api, "ben")
    value = {**other, "agent_pid": 1, "metadata": {"role": "human"}, "issued_at": "x", "expires_at": "x"}[field]
    if field == "nonce":
        value = "made-up"
    assert await refused(api, {**certificate, field: value}) == "certificate_invalid"


async def test_a_field_that_is_left_out_is_refused(api):
    certificate = await born(api)
    del certificate["parent_pid"]
    assert await refused(api, certificate) == "certificate_invalid"


async def test_after_a_day_it_is_refused(api, clock):
    certificate = await born(api)
    clock.advance(certificates.LIFETIME_SECONDS - 1)
    await show(api, certificate)
    clock.advance(1)
    assert await refused(api, certificate) == "certificate_invalid"


@pytest.mark.parametrize("said", [{"backend": "codex"}, {"path": "/elsewhere"}, {"pane_id": "%2"}, {"agent_pid": 1}])
async def test_it_is_of_one_caller(api, said):
    certificate = await born(api, pane_id="%1", agent_pid=ME)
    assert await refused(api, certificate, **said) == "certificate_of_another"


async def test_pane_and_process_count_only_where_both_sides_have_them(api):
    certificate = await born(api)
    await show(api, certificate, pane_id="%7", agent_pid=ME)


async def test_who_was_only_off_the_list_is_back_on_it(api):
    certificate = await born(api)
    with api.mesh.change() as change:
        ann = peers.load(change.db, certificate["peer_id"])
        lives.say(change, ann, "offline", "test")
        lives.hide(change, ann, "offline_ttl")
    assert (await api.get("/peers"))["peers"] == []
    got = await show(api, certificate)
    assert (got["peer"]["status"], got["peer_id"]) == ("online", certificate["peer_id"])
    assert [one["peer_id"] for one in (await api.get("/peers"))["peers"]] == [certificate["peer_id"]]


@pytest.mark.parametrize("end", ["retired", "unregistered"])
async def test_who_ended_comes_back_with_a_live_process_alone(api, end):
    certificate = await born(api)
    if end == "retired":
        await api.post("/peers/ann/offline", terminal=True)
    else:
        await api.delete("/peers/ann")
    assert await refused(api, certificate) == "peer_retired"
    assert await refused(api, certificate, agent_pid=2**22 + 1) == "peer_retired"
    got = await show(api, certificate, agent_pid=ME)
    assert (got["peer_id"], got["peer"]["status"]) == (certificate["peer_id"], "online")


async def test_who_was_forgotten_is_not_found(api):
    certificate = await born(api)
    with api.mesh.change() as change:
        change.db.execute("DELETE FROM peers")
    assert (await show(api, certificate, expect=404))["detail"]["error"] == "peer_not_found"


async def test_of_one_peer_the_newest_are_kept(api, clock):
    made = [await born(api)]
    for _ in range(certificates.KEPT + 2):
        clock.advance(1)
        made.append(await born(api, peer_id=made[0]["peer_id"], birth_certificate=made[-1]))
    assert len({one["peer_id"] for one in made}) == 1
    count = api.mesh.db.conn.execute("SELECT count(*) FROM certificates").fetchone()[0]
    assert count == certificates.KEPT
    assert await refused(api, made[2]) == "certificate_invalid"
    for one in made[3:]:
        await show(api, one)


async def test_a_certificate_of_before_the_envelope_was_kept_is_refused(api):
    certificate = await born(api)
    with api.mesh.change() as change:
        change.db.execute("UPDATE certificates SET envelope = NULL")
    assert await refused(api, certificate) == "certificate_invalid"
