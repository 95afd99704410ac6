"""messages.py: GET /messages and GET /messages/{id} show all that was said; POST /messages says it."""

import pytest


@pytest.fixture
async def said(both):
    """An answered ask, a note, a broadcast and an ask that waits: their ids."""
    sockets = {name: await both.connect(name, path=f"/src/{name}", capabilities=["delivery_receipts"]) for name in "ab"}
    await both.post("/peers", name="away", path="/src/away", circle="night")
    ask = await both.post("/messages", kind="ask", from_peer="a", to_peer="b", text="ready?")
    await both.post("/ack", correlation_id=ask["correlation_id"], message="yes")
    await sockets["a"].next()
    note = await both.post("/messages", kind="notify", from_peer="a", to_peer="b", text="frozen")
    shout = await both.post("/messages", kind="broadcast", from_peer="a", text="all")
    waits = await both.post("/ask", to_peer="away", text="when?", if_offline="queue")
    return {
        "ask": ask["correlation_id"],
        "note": note["delivery_id"],
        "shout": shout["deliveries"][0]["delivery_id"],
        "waits": waits["correlation_id"],
        "b": sockets["b"].peer_id,
    }


async def ids(api, **query):
    return [one["id"] for one in (await api.get("/messages", **query))["messages"]]


async def test_all_that_was_said_newest_first(both, said):
    got = (await both.get("/messages"))["messages"]
    assert [(one["kind"], one["from_peer"], one["to_peer"]) for one in got] == [
        ("ask", "human", "away"),
        ("broadcast", "a", "b"),
        ("notify", "a", "b"),
        ("reply", "b", "a"),
        ("ask", "a", "b"),
    ]
    ask = got[-1]
    assert (ask["id"], ask["text"], ask["state"], ask["ask_state"], ask["reply"]) == (
        said["ask"], "ready?", "answered", "closed", "yes",
    )  # fmt: skip
    assert got[0]["state"] == "queued"
    assert "ask_state" not in got[2]
    assert got[1]["to_peer_id"] == said["b"]


async def test_the_list_can_be_narrowed(both, said):
    assert await ids(both, kind="notify") == [said["note"]]
    assert await ids(both, kind="broadcast") == [said["shout"]]
    assert len(await ids(both, kind="reply")) == 1
    assert await ids(both, circle="night") == [said["waits"]]
    assert await ids(both, state="queued") == [said["waits"]]
    assert await ids(both, peer="away") == [said["waits"]]
    assert len(await ids(both, peer="b")) == 4
    assert await ids(both, since="2100-01-01") == []
    assert len(await ids(both, since="2000-01-01T00:00:00Z")) == 5


async def test_pages_hold_every_message_once(both, said):
    whole, seen, cursor = await ids(both), [], {}
    while True:
        page = await both.get("/messages", limit=2, **cursor)
        seen += [one["id"] for one in page["messages"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == whole


async def test_one_message_has_its_trace(both, said):
    ask = await both.get(f"/messages/{said['ask']}")
    assert (ask["id"], ask["kind"]) == (said["ask"], "ask")
    stages = [one["stage"] for one in ask["trace"]]
    assert stages[:2] == ["created", "resolved_peer"]
    assert "answered" in stages
    note = await both.get(f"/messages/{said['note']}")
    assert (note["kind"], note["text"]) == ("notify", "frozen")
    gone = await both.get("/messages/notif-delivery-000000000000", expect=404)
    assert gone["detail"]["error"] == "message_not_found"


@pytest.mark.parametrize(
    ("query", "field"), [({"kind": "letter"}, "kind"), ({"state": "lost"}, "state"), ({"since": "monday"}, "since")]
)
async def test_the_query_is_checked(both, query, field):
    assert (await both.get("/messages", expect=422, **query))["detail"]["field"] == field


async def test_a_message_has_a_kind(both):
    assert (await both.post("/messages", expect=422, text="x"))["detail"]["field"] == "kind"
    assert (await both.post("/messages", expect=422, kind="ask", text="x"))["detail"]["field"] == "to_peer"
