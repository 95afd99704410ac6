"""idempotency.py: one key of one caller makes one thing, whoever races, restarts or kills."""

import asyncio
import json

import pytest

from repowire import deliveries, idempotency
from repowire.async_client import AsyncRepowireClient
from repowire.client import RepowireClient

KEY = {"Idempotency-Key": "k-1"}
ASK = {"from_peer": "ann", "to_peer": "ben", "text": "ready?", "if_offline": "queue"}
NOTE = {"from_peer": "ann", "to_peer": "ben", "text": "main is green"}
ROUTES = [("/ask", ASK, "correlation_id"), ("/notify", NOTE, "delivery_id")]


@pytest.fixture
async def pair(both):
    await both.post("/peers", name="ann", path="/src/ann")
    await both.post("/peers", name="ben", path="/src/ben")
    return both


def count(mesh, table="deliveries"):
    return mesh.db.conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


@pytest.mark.parametrize(("path", "body", "subject"), ROUTES)
async def test_the_same_key_and_body_make_one_and_get_the_first_answer(pair, path, body, subject):
    first = await pair.post(path, headers=KEY, **body)
    assert first[subject]
    assert await pair.post(path, headers=KEY, **dict(reversed(body.items()))) == first
    assert count(pair.mesh) == 1


@pytest.mark.parametrize(("path", "body", "subject"), ROUTES)
async def test_another_body_with_the_key_is_a_conflict_that_names_what_was_made(pair, path, body, subject):
    first = await pair.post(path, headers=KEY, **body)
    got = await pair.post(path, headers=KEY, expect=409, **{**body, "text": "something else"})
    assert (got["detail"]["error"], got["detail"]["subject"]) == ("idempotency_conflict", first[subject])
    assert count(pair.mesh) == 1


async def test_another_route_with_the_key_is_a_conflict(pair):
    await pair.post("/ask", headers=KEY, **NOTE, if_offline="queue")
    assert (await pair.post("/notify", headers=KEY, expect=409, **NOTE))["detail"]["error"] == "idempotency_conflict"


async def test_two_senders_may_choose_the_same_key(pair):
    first = await pair.post("/notify", headers=KEY, **NOTE)
    second = await pair.post("/notify", headers=KEY, **{**NOTE, "from_peer": "ben", "to_peer": "ann"})
    assert first["delivery_id"] != second["delivery_id"]


@pytest.mark.parametrize(("path", "body", "subject"), ROUTES)
async def test_eight_racing_requests_with_one_key_make_one(pair, path, body, subject):
    answers = await asyncio.gather(*(pair.post(path, headers=KEY, **body) for _ in range(8)))
    assert len({answer[subject] for answer in answers}) == 1
    assert count(pair.mesh) == 1


async def test_requests_without_a_key_are_each_their_own(pair):
    await pair.post("/notify", **NOTE)
    await pair.post("/notify", **NOTE)
    assert (count(pair.mesh), count(pair.mesh, "idempotency")) == (2, 0)


async def test_a_refused_request_has_used_no_key(pair):
    refused = await pair.post("/ask", headers=KEY, expect=404, **{**ASK, "to_peer": "nobody"})
    assert refused["detail"]["error"] == "peer_not_found"
    assert (await pair.post("/ask", headers=KEY, **ASK))["state"] == "queued"


async def test_the_repeat_shows_how_the_first_stands_by_now(pair):
    first = await pair.post("/ask", headers=KEY, **ASK)
    await pair.post("/ack", correlation_id=first["correlation_id"], message="yes")
    assert (await pair.post("/ask", headers=KEY, **ASK))["state"] == "answered"


async def test_the_repeat_does_not_call_delivered_what_died_in_the_mailbox(pair):
    sent = await pair.post("/notify", headers=KEY, **NOTE)
    asked = await pair.post("/ask", headers={"Idempotency-Key": "k-2"}, **ASK)
    with pair.mesh.change() as change:
        for one in (sent, asked):
            assert deliveries.cancel(change, one["delivery_id"], "its peer left for good")
    for path, key, body in (("/notify", "k-1", NOTE), ("/ask", "k-2", ASK)):
        again = await pair.post(path, headers={"Idempotency-Key": key}, **body)
        assert (again["state"], again["delivered"], again["queued"]) == ("failed", False, False)
        assert (again["delivery_state"], again.get("status", "queued")) == ("queued", "queued")


async def test_a_key_is_free_again_after_24_hours_and_forgotten(pair, clock):
    first = await pair.post("/notify", headers=KEY, **NOTE)
    clock.advance(idempotency.KEPT_SECONDS - 1)
    assert (await pair.post("/notify", headers=KEY, **NOTE))["delivery_id"] == first["delivery_id"]
    clock.advance(1)
    assert (await pair.post("/notify", headers=KEY, **NOTE))["delivery_id"] != first["delivery_id"]
    assert count(pair.mesh, "idempotency") == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tinside"])
async def test_a_key_that_is_none_is_refused(pair, key):
    got = await pair.post("/notify", headers={"Idempotency-Key": key}, expect=422, **NOTE)
    assert got["detail"]["field"] == "Idempotency-Key"
    assert count(pair.mesh) == 0


async def test_a_body_nested_without_end_is_refused_or_taken_but_no_fault(pair):
    deep = json.dumps(NOTE)[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}"
    got = await pair.request("POST", "/notify", data=deep, headers={**KEY, "Content-Type": "application/json"})
    assert got.status in (200, 422)


def test_the_key_holds_over_kill_9(live):
    """What was answered before the kill is answered the same after it; and what was not is made once."""
    for name in ("ann", "ben"):
        live.post("/peers", name=name, path=f"/src/{name}")
    first = live.request("POST", "/ask", body=ASK, headers=KEY)
    assert first.status == 200
    live.kill()
    live.start()
    again = live.request("POST", "/ask", body=ASK, headers=KEY)
    assert (again.status, again.json["correlation_id"]) == (200, first.json["correlation_id"])
    assert len(live.get("/asks/pending?peer_id=ben")["asks"]) == 1


async def test_both_clients_send_the_key(live):
    live.post("/peers", name="ben", path="/src/ben")

    def by_socket():
        with RepowireClient(home=live.home) as client:
            return [client.notify("ben", "hi", idempotency_key="k-2")["delivery_id"] for _ in range(2)]

    first, second = await asyncio.to_thread(by_socket)
    assert first == second
    async with AsyncRepowireClient(home=live.home) as client:
        asked = [await client.ask("ben", "hi?", if_offline="queue", idempotency_key="k-3") for _ in range(2)]
        for _ in range(2):
            await client.notify("ben", "hi", idempotency_key="k-4")
    assert asked[0].correlation_id == asked[1].correlation_id
    assert len(live.get("/deliveries/pending?peer_id=ben")["deliveries"]) == 3
