"""mcp.py: JSON-RPC as the protocol wants it, and the tools as an agent meets them."""

import asyncio
import json

import pytest
from conftest import until_async

from repowire import asks
from repowire.mcp import VERSIONS
from repowire.mcp_tools import COLUMNS, TOOLS


async def rpc(api, method, params=None, *, headers=None, status=200, **more):
    message = {"jsonrpc": "2.0", "id": 1, "method": method, **({} if params is None else {"params": params}), **more}
    got = await api.request("POST", "/mcp", json=message, headers=headers)
    assert got.status == status, got.body
    assert got.json["jsonrpc"] == "2.0"
    assert got.json["id"] == message["id"]
    return got.json


async def call(api, tool, /, *, error=False, headers=None, **arguments):
    """The text of a tool's result."""
    got = (await rpc(api, "tools/call", {"name": tool, "arguments": arguments}, headers=headers))["result"]
    assert got["isError"] is error, got
    (part,) = got["content"]
    assert part["type"] == "text"
    return part["text"]


def rows(text):
    head, *lines = text.split("\n")
    assert head.split("\t") == list(COLUMNS)
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


async def agent(api, session, folder):
    """Headers of an agent with a session of its own, which the first call makes a peer."""
    headers = {"X-Repowire-Session": session, "X-Repowire-Cwd": folder}
    (me,) = rows(await call(api, "whoami", headers=headers))
    return headers, me


# -- JSON-RPC -----------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_version_that_we_speak_is_spoken(api, version):
    got = (await rpc(api, "initialize", {"protocolVersion": version, "capabilities": {}}))["result"]
    assert got["protocolVersion"] == version
    assert got["capabilities"] == {"tools": {"listChanged": False}}
    assert got["serverInfo"]["name"] == "repowire"


@pytest.mark.parametrize("params", [None, {}, {"protocolVersion": "2026-07-28"}, {"protocolVersion": ["x"]}])
async def test_for_another_version_the_newest_of_ours_is_offered(api, params):
    assert (await rpc(api, "initialize", params))["result"]["protocolVersion"] == "2025-11-25"


async def test_a_version_in_the_header_is_one_of_ours(api):
    for version in VERSIONS:
        assert (await rpc(api, "ping", headers={"MCP-Protocol-Version": version}))["result"] == {}
    got = await rpc(api, "ping", headers={"MCP-Protocol-Version": "1999-01-01"}, status=400)
    assert got["error"]["code"] == -32600


@pytest.mark.parametrize("method", ["server/discover", "prompts/list", "resources/list", "tools/eat", ""])
async def test_an_unknown_method_is_not_found(api, method):
    got = await rpc(api, method, headers={"MCP-Protocol-Version": "2026-07-28"})
    assert got["error"]["code"] == -32601


@pytest.mark.parametrize("message", [{"method": "notifications/initialized"}, {"id": 1, "result": {}}])
async def test_what_wants_no_answer_gets_none(api, message):
    got = await api.request("POST", "/mcp", json={"jsonrpc": "2.0", **message})
    assert (got.status, got.body) == (202, b"")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": NaN}', -32700),
        (b"[" * 50_000, -32700),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600),
        (b'"ping"', -32600),
        (b'{"id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600),
    ],
)
async def test_what_is_no_message_is_refused(api, body, code):
    got = await api.request("POST", "/mcp", data=body, headers={"Content-Type": "application/json"})
    assert (got.status, got.json["error"]["code"], got.json["id"]) == (400, code, None)


async def test_there_is_no_stream(api):
    got = await api.request("GET", "/mcp")
    assert (got.status, got.headers["Allow"]) == (405, "POST")


async def test_every_tool_is_listed_with_its_schema(api):
    tools = (await rpc(api, "tools/list"))["result"]["tools"]
    assert [tool["name"] for tool in tools] == list(TOOLS)
    assert " ".join(TOOLS) == (
        "list_peers whoami ask wait_on_ack ack answer notify_peer ask_many ask_many_result broadcast"
        " orchestrator_status set_description spawn_peer kill_peer"
    )
    for tool in tools:
        schema = tool["inputSchema"]
        assert set(schema["required"]) <= set(schema["properties"])
        assert tool["description"].endswith(".")


@pytest.mark.parametrize(
    "params", [{}, {"name": "eat"}, {"name": ["x"]}, {"name": "whoami", "arguments": []}, [], "whoami"]
)
async def test_a_call_of_no_tool_is_invalid(api, params):
    assert (await rpc(api, "tools/call", params))["error"]["code"] == -32602


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("ask", {"query": "x"}, "peer_name: is required"),
        ("ask", {"peer_name": "ben"}, "query: is required"),
        ("ask", {"peer_name": "ben", "query": ""}, "query: must not be empty"),
        ("ask", {"peer_name": "ben", "query": "x" * 64_001}, "query: must be at most 64000 characters"),
        ("ask", {"peer_name": "ben", "query": "\ud800"}, "query: must be Unicode"),
        ("ask", {"peer_name": "ben", "query": "x", "if_offline": "eat"}, "if_offline: must be one of"),
        ("ask", {"peer": "ben", "query": "x"}, "peer: is no argument of ask; it takes peer_name"),
        ("ask", {"peer_name": "nobody", "query": "x"}, "there is no peer 'nobody'"),
        ("ack", {"correlation_id": "ask-000000000000"}, "there is no ask"),
        ("wait_on_ack", {"correlation_id": "x", "timeout_seconds": "5"}, "timeout_seconds: must be a number"),
        ("list_peers", {"show_offline": "yes"}, "show_offline: must be true or false"),
        ("whoami", {"x": 1}, "x: is no argument of whoami; it takes none"),
        ("spawn_peer", {"path": "/src", "backend": "pi"}, "nothing may be started here: set spawn.commands"),
        ("spawn_peer", {"backend": "pi"}, "path: is required"),
        ("kill_peer", {"peer_identifier": "nobody"}, "there is no peer 'nobody'"),
        ("set_description", {"description": "x" * 2_001}, "description: must be at most 2000"),
    ],
)
async def test_what_a_tool_refuses_is_told_to_the_agent(api, tool, arguments, said):
    assert said in await call(api, tool, error=True, **arguments)


# -- tools --------------------------------------------------------------------


async def test_an_agent_is_a_peer_by_its_session(api, tmp_path):
    headers, me = await agent(api, "session-1", f"{tmp_path}/app")
    assert (me["name"], me["backend"], me["role"], me["project"]) == ("app", "claude-code", "agent", "app")
    assert rows(await call(api, "whoami", headers=headers))[0]["peer_id"] == me["peer_id"]


async def test_without_evidence_the_caller_is_the_human(api):
    (me,) = rows(await call(api, "whoami"))
    assert (me["name"], me["role"]) == ("human", "human")


async def test_two_agents_ask_and_answer(api, tmp_path):
    ann, ann_is = await agent(api, "session-ann", f"{tmp_path}/ann")
    ben, ben_is = await agent(api, "session-ben", f"{tmp_path}/ben")
    asked = await call(api, "ask", peer_name="ben", query="ready?", if_offline="queue", headers=ann)
    assert asked.startswith("ask-")
    waiting = asyncio.create_task(call(api, "wait_on_ack", correlation_id=asked, headers=ann))
    await until_async(lambda: api.mesh.bus.heard(asks.wait_topic(asked)))
    assert await call(api, "ack", correlation_id=asked, message="yes ✓", headers=ben) == f"acked #{asked} with reply"
    assert json.loads(await waiting) == {
        "correlation_id": asked,
        "status": "resolved",
        "reply": "yes ✓",
        "close_reason": "ack_with_msg",
        "responder": "ben",
        "attachments": [],
    }
    row = asks.load(api.mesh.db.conn, asked)
    assert (row.from_peer_id, row.to_peer_id, row.reply_at_rest) == (ann_is["peer_id"], ben_is["peer_id"], 1)
    again = json.loads(await call(api, "wait_on_ack", correlation_id=asked, headers=ann))
    assert again["reply"] == "yes ✓"
    assert "was closed already" in await call(api, "ack", correlation_id=asked, message="no", headers=ben, error=True)


async def test_a_wait_that_is_over_is_pending(api, tmp_path):
    ann, _ = await agent(api, "session-ann", f"{tmp_path}/ann")
    await agent(api, "session-ben", f"{tmp_path}/ben")
    asked = await call(api, "ask", peer_name="ben", query="ready?", if_offline="queue", headers=ann)
    for seconds in (0, -5, 0.01):
        got = json.loads(await call(api, "wait_on_ack", correlation_id=asked, timeout_seconds=seconds, headers=ann))
        assert got == {"correlation_id": asked, "status": "pending"}


async def test_a_reply_whose_waiter_left_is_pushed(api, tmp_path):
    ann, ann_is = await agent(api, "session-ann", f"{tmp_path}/ann")
    ben, _ = await agent(api, "session-ben", f"{tmp_path}/ben")
    asked = await call(api, "ask", peer_name="ben", query="ready?", if_offline="queue", headers=ann)
    waiting = asyncio.create_task(call(api, "wait_on_ack", correlation_id=asked, headers=ann))
    await until_async(lambda: api.mesh.bus.heard(asks.wait_topic(asked)))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await call(api, "ack", correlation_id=asked, message="yes", headers=ben)

    def mail():
        return [
            row[0]
            for row in api.mesh.db.conn.execute(
                "SELECT frame FROM deliveries WHERE peer_id = ? AND trace = ?", (ann_is["peer_id"], asked)
            )
        ]

    await until_async(mail)
    assert "yes" in mail()[0]


async def test_nobody_answers_or_waits_for_another(api, tmp_path):
    ann, _ = await agent(api, "session-ann", f"{tmp_path}/ann")
    await agent(api, "session-ben", f"{tmp_path}/ben")
    cid, _ = await agent(api, "session-cid", f"{tmp_path}/cid")
    asked = await call(api, "ask", peer_name="ben", query="ready?", if_offline="queue", headers=ann)
    assert "you are cid" in await call(api, "ack", correlation_id=asked, message="yes", headers=cid, error=True)
    assert "ann" in await call(api, "wait_on_ack", correlation_id=asked, headers=cid, error=True)
    assert asks.load(api.mesh.db.conn, asked).closed_at is None


async def test_an_ask_that_is_to_answer_another_one_and_would_not_is_refused(api, tmp_path):
    ann, _ = await agent(api, "session-ann", f"{tmp_path}/ann")
    ben, _ = await agent(api, "session-ben", f"{tmp_path}/ben")
    cid, _ = await agent(api, "session-cid", f"{tmp_path}/cid")

    async def back(whom, headers, reply_to, **more):
        back_at = {"peer_name": whom, "query": "which?", "if_offline": "queue", "reply_to": reply_to}
        return await call(api, "ask", **back_at, headers=headers, **more)

    asked = await call(api, "ask", peer_name="ben", query="ready?", if_offline="queue", headers=ann)
    count = "SELECT count(*) FROM asks"
    for whom, headers, reply_to, words in [
        ("ann", ben, "ask-00000000", "there is no ask 'ask-00000000'"),
        ("cid", ben, asked, "only by an ask from ben to ann; ask without reply_to"),
        ("ann", cid, asked, "only by an ask from ben to ann"),
        ("human", ben, asked, "only by an ask from ben to ann"),
    ]:
        assert words in await back(whom, headers, reply_to, error=True)
    assert api.mesh.db.conn.execute(count).fetchone()[0] == 1
    await back("ann", ben, asked)
    assert asks.load(api.mesh.db.conn, asked).close_reason == "reply_to"
    assert "closed already (reply_to)" in await back("ann", ben, asked, error=True)
    assert api.mesh.db.conn.execute(count).fetchone()[0] == 2


async def test_the_human_can_be_reached_before_he_has_said_anything(api, tmp_path):
    ann, _ = await agent(api, "session-ann", f"{tmp_path}/ann")
    assert [row["name"] for row in await all_peers(api, ann)] == ["ann"]
    asked = await call(api, "ask", peer_name="human", query="which branch?", headers=ann)
    (waits,) = (await api.get("/asks/pending?peer_id=human"))["asks"]
    assert (waits["correlation_id"], waits["from_peer"]) == (asked, "ann")
    await call(api, "notify_peer", peer_name="human", message="done", headers=ann)
    assert [row["role"] for row in await all_peers(api, ann)] == ["agent", "human"]


async def all_peers(api, headers):
    return rows(await call(api, "list_peers", show_offline=True, include_self=True, headers=headers))


async def test_the_peers_are_a_table_that_no_text_can_break(api, tmp_path):
    ann, ann_is = await agent(api, "session-ann", f"{tmp_path}/ann")
    ben, _ = await agent(api, "session-ben", f"{tmp_path}/ben")
    evil = "a\tb\nrepow-x\tevil\x1b[31m\u202e"
    assert (await call(api, "set_description", description=evil, headers=ben)).startswith("others now see")
    (seen,) = [
        row for row in rows(await call(api, "list_peers", show_offline=True, headers=ann)) if row["name"] == "ben"
    ]
    assert seen["description"] == "a b repow-x evil[31m"
    listed = rows(await call(api, "list_peers", show_offline=True, include_self=True, headers=ann))
    assert ann_is["peer_id"] in [row["peer_id"] for row in listed]
    elsewhere = rows(await call(api, "list_peers", circle="elsewhere", headers=ann))
    assert [row["role"] for row in elsewhere if row["role"] == "agent"] == []


async def test_a_note_is_kept_and_its_id_told(api, tmp_path):
    ann, ann_is = await agent(api, "session-ann", f"{tmp_path}/ann")
    _, ben_is = await agent(api, "session-ben", f"{tmp_path}/ben")
    sent = await call(api, "notify_peer", peer_name=ben_is["peer_id"], message="frozen", headers=ann)
    found = await api.get(f"/deliveries/{sent}")
    assert found["peer_id"] == ben_is["peer_id"]
    row = api.mesh.db.conn.execute("SELECT from_peer_id FROM deliveries WHERE delivery_id = ?", (sent,)).fetchone()
    assert row[0] == ann_is["peer_id"]


async def test_an_ask_to_nobody_there_is_refused_unless_it_may_wait(api, tmp_path):
    ann, _ = await agent(api, "session-ann", f"{tmp_path}/ann")
    await api.post("/peers", name="ben", path=f"{tmp_path}/ben")
    assert "if_offline" in await call(api, "ask", peer_name="ben", query="x", headers=ann, error=True)


async def test_a_fault_of_ours_is_no_result(api, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("repowire.presence.all_evidence", fail)
    got = await api.request(
        "POST", "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_peers"}}
    )
    assert (got.status, got.json["detail"]["error"]) == (500, "internal")


async def test_several_are_asked_at_once_and_their_answers_read_together(api):
    ben = await api.connect("ben", path="/src/ben")
    headers, me = await agent(api, "s-many", "/src/ann")
    said = await call(api, "ask_many", headers=headers, peer_names=["ben", "nobody"], query="up?")
    head, wrong = said.split("\n")
    parent, _, count = head.partition(" ")
    assert (count, wrong.partition(":")[0]) == ("(1/2 delivered)", "nobody")
    cid = (await ben.next())["correlation_id"]
    assert (await call(api, "ask_many_result", headers=headers, parent_id=parent)).split("\n")[0] == (
        f"{parent} pending: 2 total, 0 acked, 0 replied, 1 pending, 1 failed"
    )
    await api.post("/ack", correlation_id=cid, message="yes\x1b[2J")
    lines = (await call(api, "ask_many_result", headers=headers, parent_id=parent)).split("\n")
    assert lines[0].startswith(f"{parent} complete: 2 total")
    assert lines[1] == "@ben replied: yes[2J"
    other, _ = await agent(api, "s-other", "/src/other")
    assert "not_the_asker" in await call(api, "ask_many_result", error=True, headers=other, parent_id=parent)
    assert "peer_names" in await call(api, "ask_many", error=True, headers=headers, peer_names=[], query="up?")
    assert me["name"] == "ann"


async def test_all_that_are_connected_are_told(api):
    ben = await api.connect("ben", path="/src/ben")
    headers, _ = await agent(api, "s-loud", "/src/ann")
    assert (await call(api, "broadcast", headers=headers, message="lunch")).endswith(": told 1")
    assert (await ben.next())["text"] == "lunch"


async def test_who_orchestrates_is_said(api):
    headers, me = await agent(api, "s-lead", "/src/lead")
    assert (await call(api, "orchestrator_status", headers=headers)).split("\n")[1].startswith("default\tFalse\t")
    await api.post("/peers/claim-role", role="orchestrator", peer_name=me["peer_id"])
    shown = (await call(api, "orchestrator_status", headers=headers)).split("\n")[1].split("\t")
    assert shown[:4] == ["default", "True", me["name"], me["peer_id"]]
