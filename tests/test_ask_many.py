"""ask_many.py: one question to several, each by an ask of its own, and a roll-up that never contradicts them."""

import asyncio

import pytest

from repowire import ask_many, replies

RECEIPTS = ["delivery_receipts"]


@pytest.fixture
async def town(both):
    return {name: await both.connect(name, path=f"/src/{name}", capabilities=RECEIPTS) for name in ("ann", "ben", "cy")}


async def test_everybody_gets_an_ask_of_his_own_and_the_rollup_follows_them(both, town):
    got = await both.post("/ask-many", from_peer="ann", to_peers=["ben", "cy"], text="ready?")
    assert [(one["peer"], one["delivered"], one["error"]) for one in got["children"]] == [
        ("ben", True, None),
        ("cy", True, None),
    ]
    cids = [one["correlation_id"] for one in got["children"]]
    for name, cid in zip(("ben", "cy"), cids, strict=True):
        frame = await town[name].next()
        assert (frame["type"], frame["correlation_id"], frame["from_peer"]) == ("ask", cid, "ann")
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert (whole["state"], whole["timed_out"]) == ("pending", False)
    assert whole["rollup"] == {"total": 2, "acked": 0, "replied": 0, "pending": 2, "failed": 0}

    await both.post("/ack", correlation_id=cids[0], message="yes")
    await both.post("/ack", correlation_id=cids[1])
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert (whole["state"], whole["from_peer"], whole["text"]) == ("complete", "ann", "ready?")
    assert [(one["status"], one["reply"], one["close_reason"]) for one in whole["children"]] == [
        ("replied", "yes", "ack_with_msg"),
        ("acked", None, "ack"),
    ]
    assert "yes" in (await town["ann"].next())["text"]


async def test_who_cannot_be_asked_holds_back_nobody(both, town):
    await both.post("/peers", name="away", path="/src/away")
    await both.connect("eve", path="/src/eve", circle="night")
    got = await both.post("/ask-many", from_peer="ann", to_peers=["nobody", "away", "ben", "eve"], text="x")
    errors = {one["peer"]: one["error"] for one in got["children"]}
    assert "there is no peer 'nobody'" in errors["nobody"]
    assert "is not connected" in errors["away"]
    assert "circle" in errors["eve"]
    assert errors["ben"] is None
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert whole["rollup"] == {"total": 4, "acked": 0, "replied": 0, "pending": 1, "failed": 3}
    kept = await both.post("/ask-many", from_peer="ann", to_peers=["away"], text="x", if_offline="queue")
    assert (kept["children"][0]["error"], kept["children"][0]["state"]) == (None, "queued")


async def test_one_who_is_named_twice_is_asked_once(both, town):
    got = await both.post("/ask-many", to_peers=["ben", town["ben"].peer_id, "ben"], text="x")
    assert [one["peer"] for one in got["children"]] == ["ben"]


@pytest.mark.parametrize("to_peers", [[], None, ["x"] * 51, [1], [""], "ben"])
async def test_the_list_of_peers_is_checked(both, to_peers):
    got = await both.post("/ask-many", expect=422, to_peers=to_peers, text="x")
    assert got["detail"]["field"] == "to_peers"


async def test_a_question_is_for_one(both, town):
    got = await both.post("/ask-many", expect=422, to_peers=["ben"], text="x", question={"kind": "acknowledge"})
    assert got["detail"]["field"] == "question"
    assert "POST /ask" in got["detail"]["hint"]


async def test_a_declined_and_an_expired_child_have_failed(both, town, clock):
    got = await both.post("/ask-many", to_peers=["ben", "cy"], text="x")
    cids = [one["correlation_id"] for one in got["children"]]
    clock.advance(1000)
    await both.post("/decline", correlation_id=cids[0], reason="not mine")
    clock.advance(both.mesh.config.daemon.ask_ttl_seconds - 999)
    replies.tick(both.mesh)
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert whole["state"] == "complete"
    assert [(one["status"], one["close_reason"], one["reply"]) for one in whole["children"]] == [
        ("failed", "declined", "not mine"),
        ("failed", "expired", None),
    ]


async def test_past_its_deadline_it_is_partial_and_late_replies_still_count(both, town, clock):
    got = await both.post("/ask-many", to_peers=["ben", "cy"], text="x", timeout_seconds=60)
    first, second = (one["correlation_id"] for one in got["children"])
    await both.post("/ack", correlation_id=first, message="early")
    clock.advance(61)
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert (whole["state"], whole["timed_out"], whole["rollup"]["pending"]) == ("partial", True, 1)
    await both.post("/ack", correlation_id=second, message="late")
    whole = await both.get(f"/ask-many/{got['parent_id']}")
    assert (whole["state"], whole["timed_out"]) == ("complete", False)


async def test_one_key_asks_once(both, town):
    body = {"to_peers": ["ben", "cy"], "text": "x"}
    first, again = await asyncio.gather(
        *(both.post("/ask-many", headers={"Idempotency-Key": "k"}, **body) for _ in range(2))
    )
    assert first["parent_id"] == again["parent_id"]
    assert [one["correlation_id"] for one in first["children"]] == [one["correlation_id"] for one in again["children"]]
    assert both.mesh.db.conn.execute("SELECT count(*) FROM asks").fetchone()[0] == 2
    other = await both.post("/ask-many", expect=409, headers={"Idempotency-Key": "k"}, to_peers=["ben"], text="x")
    assert other["detail"]["error"] == "idempotency_conflict"


async def test_it_survives_a_restart_with_its_children(new_mesh, new_api, tmp_path, clock):
    before = new_mesh(tmp_path / "home", clock)
    api = await new_api(before)
    await api.post("/peers", name="ben", path="/src/ben")
    got = await api.post("/ask-many", to_peers=["ben", "nobody"], text="x", if_offline="queue")
    before.close()
    api = await new_api(new_mesh(tmp_path / "home", clock))
    whole = await api.get(f"/ask-many/{got['parent_id']}")
    assert [one["status"] for one in whole["children"]] == ["pending", "failed"]
    await api.post("/ack", correlation_id=got["children"][0]["correlation_id"], message="yes")
    assert (await api.get(f"/ask-many/{got['parent_id']}"))["state"] == "complete"


async def test_a_closed_child_stays_while_its_sister_is_open_and_then_all_of_it_goes(
    new_mesh, new_api, tmp_path, clock
):
    week = 7 * 86_400.0
    mesh = new_mesh(tmp_path / "home", clock, REPOWIRE_DAEMON__ASK_TTL_SECONDS=str(week))
    api = await new_api(mesh)
    for name in ("ben", "cy"):
        await api.post("/peers", name=name, path=f"/src/{name}")
    got = await api.post("/ask-many", to_peers=["ben", "cy"], text="x", if_offline="queue")
    await api.post("/ack", correlation_id=got["children"][0]["correlation_id"], message="yes")
    clock.advance(3 * 86_400.0)
    replies.tick(mesh)
    ask_many.tick(mesh)
    whole = await api.get(f"/ask-many/{got['parent_id']}")
    assert [one["status"] for one in whole["children"]] == ["replied", "pending"]
    await api.post("/ack", correlation_id=got["children"][1]["correlation_id"])
    clock.advance(2 * 86_400.0)
    replies.tick(mesh)
    ask_many.tick(mesh)
    gone = await api.get(f"/ask-many/{got['parent_id']}", expect=404)
    assert gone["detail"]["error"] == "ask_many_not_found"
    assert mesh.db.conn.execute("SELECT count(*) FROM ask_children").fetchone()[0] == 0


async def test_its_trace_names_the_children(both, town):
    got = await both.post("/ask-many", to_peers=["ben"], text="x")
    trace = await both.get(f"/traces/{got['parent_id']}")
    (stage,) = trace["stages"]
    child = got["children"][0]["correlation_id"]
    assert (stage["stage"], stage["detail"]["children"]) == ("created", [{"peer": "ben", "correlation_id": child}])
    assert (await both.get(f"/traces/{child}"))["stages"][0]["detail"]["parent_id"] == got["parent_id"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/ask-many", {"to_peers": ["\ud800"], "text": "x"}, "to_peers"),
        ("/broadcast", {"exclude": ["\ud800"], "text": "x"}, "exclude"),
        ("/deliveries/confirm", {"lease": "x", "delivery_ids": ["\ud800"]}, "delivery_ids"),
    ],
)
async def test_a_lone_surrogate_in_a_list_is_refused_with_its_field(both, path, body, field):
    assert (await both.post(path, expect=422, **body))["detail"]["field"] == field
