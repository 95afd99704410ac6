"""The document that /openapi.json serves, held to the routes, to what the handlers read, and to what they answer."""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web, web_request
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_routes import served

from repowire import openapi, wire
from repowire.openapi.words import Route

Route_ = tuple[str, str]
TABLE = {(route.method, route.path): route for _, route in openapi.table()}
STREAMS = {("GET", "/events/stream"), ("GET", "/panes/hosted"), ("GET", "/ws")}
PAGES = {("GET", "/"), ("GET", "/dashboard"), ("GET", "/static/{file}")}


# -- the document --------------------------------------------------------------


def test_it_is_an_openapi_document() -> None:
    assert list(OpenAPIV31SpecValidator(openapi.document()).iter_errors()) == []


async def test_every_route_is_in_it_and_the_other_way_round(api: Any) -> None:
    routes = {(method, "/static/{file}" if path == "/static" else path) for method, path in served(api.client.app)}
    document = await api.get("/openapi.json")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert routes - described == set(), "repowire/openapi lacks these"
    assert described - routes == set(), "repowire/openapi has these, and the daemon does not"
    assert len(TABLE) == len(openapi.table()), "a route stands twice"


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does() -> None:
    names = [route.name for route in TABLE.values()]
    assert sorted(names) == sorted(set(names))
    assert [route.name for route in TABLE.values() if not re.fullmatch(r"\S.*\.", route.about)] == []


async def test_it_needs_the_token_like_everything_else(api: Any) -> None:
    assert (await api.request("GET", "/openapi.json", token=None)).status == 401


# -- answers -------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The schema with every object shut, unless the table opens it: an answer may not say more than is described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **made} if "properties" in made else made


SHUT = {"components": closed(openapi.document()["components"])}
CHECKER = jsonschema.FormatChecker()


def faults(schema: dict[str, Any], value: Any) -> list[str]:
    """What of the value is not as the schema says."""
    validator = jsonschema.Draft202012Validator({**closed(schema), **SHUT}, format_checker=CHECKER)
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]


def test_a_planted_fault_of_an_answer_is_found() -> None:
    shape = openapi.words.shape("Registered")
    good = {"ok": True, "peer_id": "a", "display_name": "b", "pane_assigned": True, "birth_certificate": None}
    assert faults(shape, good) == []
    assert faults(shape, {**good, "more": 1})
    assert faults(shape, {**good, "peer_id": None})
    assert faults(shape, {name: value for name, value in good.items() if name != "ok"})
    assert faults(shape, {**good, "birth_certificate": {"nonce": "x"}})


def schema_of(route: Route_, status: int, media: str) -> dict[str, Any] | None:
    """What the document says of such an answer; a status or a media type that it does not know fails."""
    method, path = route
    responses = openapi.document()["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, f"{method} {path} may not answer {status}"
    response = responses[str(status)]
    if "$ref" in response:
        response = openapi.document()["components"]["responses"][str(status)]
    content = response.get("content")
    if content is None:
        return None
    assert media in content or "*/*" in content, f"{method} {path} may not answer {media}"
    schema: dict[str, Any] | None = content.get(media, {}).get("schema")
    return schema


Fields = dict[Route_, set[str]]


class Read(dict[str, Any]):
    """The fields of a body, which note what a handler looks for."""

    def __init__(self, fields: dict[str, Any], noted: set[str]) -> None:
        super().__init__(fields)
        self.noted = noted

    def get(self, name: str, default: Any = None) -> Any:
        self.noted.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.noted.add(str(name))
        return super().__contains__(name)


@pytest.fixture
def fields_read(monkeypatch: pytest.MonkeyPatch) -> Fields:
    """Which fields of its body each handler read, by route."""
    noted: Fields = defaultdict(set)
    read = wire.read

    async def noting(request: web.Request, **options: Any) -> wire.Body:
        body = await read(request, **options)
        return wire.Body(Read(body.fields, noted[route_of(request)]))

    monkeypatch.setattr(wire, "read", noting)
    return noted


@pytest.fixture
def queries_read(monkeypatch: pytest.MonkeyPatch) -> Fields:
    """Which words of its query string each handler read, by route."""
    noted: Fields = defaultdict(set)
    query = web_request.BaseRequest.query

    def noting(request: web.Request) -> Read:
        return Read(dict(query.__get__(request, type(request))), noted[route_of(request)])

    monkeypatch.setattr(web_request.BaseRequest, "query", property(noting))
    return noted


def route_of(request: web.Request) -> Route_:
    resource = request.match_info.route.resource
    return request.method, resource.canonical if resource is not None else ""


class Tour:
    """Calls by route, each answer held to the document."""

    def __init__(self, api: Any) -> None:
        self.api, self.answered = api, dict[Route_, set[int]]()

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        /,
        *,
        expect: int = 200,
        query: dict[str, Any] | None = None,
        key: str | None = None,
        **named: str,
    ) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        sent = {} if body is None else {"json": body}
        where = re.sub(r"{(\w+)}", lambda part: named[part[1]].replace("%", "%25"), path)
        got = await self.api.request(method, where, query=query, headers=headers, **sent)
        assert got.status == expect, f"{method} {where}: {got.status}, not {expect}: {got.body[:500]!r}"
        media = got.headers.get("Content-Type", "application/json").partition(";")[0]
        schema = schema_of((method, path), got.status, media)
        if schema is not None and got.body:
            assert faults(schema, got.json) == [], f"{method} {where} answered {got.body[:1000]!r}"
        self.answered.setdefault((method, path), set()).add(got.status)
        return got.json


@pytest.fixture
async def tour(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tour:
    """With the peers `ann`, who only registered, and `ben`, who has a socket and a pane."""
    monkeypatch.setenv("HOME", str(tmp_path))  # of the agents whose files are read and written
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    made = Tour(api)
    await made("POST", "/peers", {"name": "ann", "path": "/src/ann"})
    api.ben = await api.connect("ben", path="/src/ben", pane_id="%7", capabilities=["delivery_receipts", "dedupe"])
    return made


async def every_route(go: Tour) -> None:
    """One visit at least to each route, and to each shape that an answer can have."""
    ben = go.api.ben
    await see_the_host(go)
    await see_the_asks(go, ben)
    await see_the_questions(go, ben)
    await see_the_messages(go, ben)
    await see_the_panes(go)
    await see_the_peers(go)
    await see_the_agents(go)
    await go("POST", "/auth/rotate", expect=409)
    await go("POST", "/shutdown")


async def see_the_host(go: Tour) -> None:
    await go("GET", "/health")
    await go("GET", "/openapi.json")
    await go("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"})
    await go("POST", "/mcp", {"jsonrpc": "2.0", "method": "notifications/initialized"}, expect=202)
    await go("POST", "/mcp", {"jsonrpc": "1.0"}, expect=400)
    event = {"session_id": "s-1", "hook_event_name": "Stop", "cwd": "/src/eve"}
    await go("POST", "/hooks/{backend}/{event}", event, backend="claude-code", event="Stop")
    await go("POST", "/hooks/{backend}/{event}", event, backend="claude-code", event="Sneeze", expect=404)
    await go("POST", "/hooks/receipts/{token}", token="nothing")
    call = {"tool_name": "Read", "tool_input": {"file_path": "a"}, **event}
    await go("POST", "/gates/{backend}/{event}", call, backend="claude-code", event="PreToolUse")
    await go("POST", "/gates/{backend}/{event}", call, backend="claude-code", event="Sneeze", expect=404)


async def see_the_asks(go: Tour, ben: Any) -> None:
    first = await go("POST", "/ask", {"from_peer": "ann", "to_peer": "ben", "text": "up?"}, key="k1")
    assert await go("POST", "/ask", {"from_peer": "ann", "to_peer": "ben", "text": "up?"}, key="k1") == first
    await go("POST", "/ask", {"from_peer": "ann", "to_peer": "ben", "text": "no"}, key="k1", expect=409)
    await go("POST", "/ask", {"from_peer": "ann", "to_peer": "nobody", "text": "x"}, expect=404)
    await go("GET", "/asks/pending", query={"peer_id": "ben"})
    await go("GET", "/asks/pending", query={"pane_id": "%7", "limit": 1, "direction": "both"})
    await go("GET", "/asks/pending", expect=400)
    await go("GET", "/asks/history", query={"limit": 1})
    cid = first["correlation_id"]
    await go("POST", "/asks/{correlation_id}/wait", {"timeout_seconds": -1}, correlation_id=cid)
    await go("POST", "/asks/{correlation_id}/picked_up", {}, correlation_id=cid)
    await go("POST", "/asks/{correlation_id}/mark_reminded", {}, correlation_id=cid)
    await go("POST", "/ack", {"correlation_id": cid, "message": "yes"})
    await go("POST", "/ack", {"correlation_id": cid, "message": "no"}, expect=410)
    await go("POST", "/ack", {"correlation_id": "ask-000000000000"}, expect=404)
    await go("POST", "/asks/{correlation_id}/wait", correlation_id=cid)
    second = await go("POST", "/ask", {"from_peer": "ann", "to_peer": "ben", "text": "sure?", "reply_to": cid})
    await go("POST", "/decline", {"correlation_id": second["correlation_id"], "reason": "asked before"})
    await go("POST", "/ask", {"from_peer": "ben", "to_peer": "ann", "text": "why?", "if_offline": "queue"})
    await go("POST", "/ask", {"to_peer": "ben", "text": "and now?"})
    await go("POST", "/response", {"pane_id": "%7", "text": "now"})
    await go("POST", "/response", {"pane_id": "%8", "text": "now"}, expect=404)
    many = await go("POST", "/ask-many", {"from_peer": "ann", "to_peers": ["ben", "nobody"], "text": "all well?"})
    await go("POST", "/ack", {"correlation_id": many["children"][0]["correlation_id"]})
    await go("GET", "/ask-many/{parent_id}", parent_id=many["parent_id"])
    await go("GET", "/ask-many/{parent_id}", parent_id="askm-0", expect=404)
    await go("POST", "/query", {"to_peer": "ben", "text": "quick?", "timeout": 0})
    await go("POST", "/query", {"to_peer": "nobody", "text": "quick?"})
    await go("GET", "/asks/history", query={"peer_id": "ann", "state": "closed"})
    await go("GET", "/asks/history", query={"peer_id": "nobody"}, expect=404)


CALL = {"tool_name": "Bash", "tool_input": {"command": "make"}, "cwd": "/src", "session_id": "s-1"}


async def see_the_questions(go: Tour, ben: Any) -> None:
    choice = {"kind": "choice", "prompt": "ship it?", "options": [{"id": "yes", "title": "Ship"}, {"id": "no"}]}
    asked = {"from_peer": "ann", "to_peer": "ben", "text": "ready"}
    cid = (await go("POST", "/ask", {**asked, "question": choice}))["correlation_id"]
    await go("POST", "/answer", {"correlation_id": cid, "option_id": "maybe"}, expect=422)
    await go("POST", "/answer", {"correlation_id": cid, "option_id": "yes"})
    await go("POST", "/answer", {"correlation_id": cid, "option_id": "no"}, expect=410)
    await go("POST", "/answer", {"correlation_id": "ask-0"}, expect=404)
    await go("POST", "/asks/{correlation_id}/wait", correlation_id=cid)
    await go("GET", "/asks/history", query={"limit": 1})
    await go("POST", "/questions/ask-blocking", {"prompt": "which?", "timeout_seconds": -1})
    permission = {"prompt": "make", "scope": "tool_permission", "options": [{"id": "allow"}], "metadata": CALL}
    await go("POST", "/questions/ask-blocking", {**permission, "correlation_id": "p-1", "timeout_seconds": -1})
    await go("POST", "/questions/ask-blocking", {**permission, "correlation_id": "p-1", "scope": None}, expect=409)
    await go("POST", "/answer", {"correlation_id": "p-1", "option_id": "allow"}, expect=409)
    await go("POST", "/ack", {"correlation_id": "p-1"}, expect=422)
    read = {**CALL, "tool_name": "Read"}
    await go("POST", "/questions/ask-blocking", {**permission, "metadata": read})
    await go("POST", "/questions/withdraw", {"metadata": CALL})
    await go("POST", "/questions/withdraw", {"correlation_id": "p-1"})
    await go("POST", "/questions/withdraw", {"correlation_id": "p-0"}, expect=404)
    page = await go("GET", "/questions", query={"limit": 1, "state": "closed"})
    await go("GET", "/questions", query={"cursor": page["next"]})
    await go("GET", "/questions/{correlation_id}", correlation_id="p-1")
    await go("GET", "/questions/{correlation_id}", correlation_id="p-0", expect=404)
    await go("GET", "/traces/{trace_id}", trace_id="p-1")


async def see_the_messages(go: Tour, ben: Any) -> None:
    sent = await go("POST", "/notify", {"from_peer": "ann", "to_peer": "ben", "text": "hi"}, key="n1")
    assert sent["delivery_id"] == (await last_notify(ben))["delivery_id"]
    await ben.receipt({"type": "notify", "delivery_id": sent["delivery_id"]})
    await go("POST", "/notify", {"to_peer": "nobody", "text": "hi"}, expect=404)
    await go("POST", "/notify", {"to_peer": "ben"}, expect=422)
    await go("POST", "/broadcast", {"from_peer": "ann", "text": "all hear", "exclude": ["eve"]})
    await go("POST", "/messages", {"kind": "ask", "to_peer": "ben", "text": "x", "bypass_circle": True})
    await go("POST", "/messages", {"kind": "notify", "to_peer": "nobody", "text": "x"}, expect=404)
    await go("POST", "/messages", {"kind": "notify", "to_peer": "ann", "text": "x"})
    await go("POST", "/messages", {"kind": "broadcast", "text": "x"})
    page = await go("GET", "/messages", query={"limit": 3})
    await go("GET", "/messages", query={"cursor": page["next"], "peer": "ben", "since": "2020-01-01"})
    await go("GET", "/messages", query={"kind": "ask", "state": "leased", "circle": "default"})
    for message in (await go("GET", "/messages", query={"limit": 500}))["messages"]:
        await go("GET", "/messages/{message_id}", message_id=message["id"])
        await go("GET", "/traces/{trace_id}", trace_id=message["trace_id"])
    await go("GET", "/messages/{message_id}", message_id="ask-0", expect=404)
    await go("GET", "/traces/{trace_id}", trace_id="ask-0", expect=404)
    await go("GET", "/deliveries", query={"peer": "ben", "limit": 2})
    await go("GET", "/deliveries", query={"dead": "true"})
    await go("GET", "/deliveries/{delivery_id}", delivery_id=sent["delivery_id"])
    await go("GET", "/deliveries/{delivery_id}", delivery_id="qd-0", expect=404)
    first = await go("GET", "/deliveries/pending", query={"peer_id": "ann", "confirm": "true", "max_results": 1})
    await go("POST", "/deliveries/confirm", {"lease": first["lease"], "status": "held", "detail": "busy"})
    await go("POST", "/deliveries/confirm", {"lease": "none"}, expect=410)
    held = first["deliveries"][0]["delivery_id"]
    waits = await go("POST", "/notify", {"to_peer": "ann", "text": "later"})
    await go("POST", "/deliveries/{delivery_id}/retry", delivery_id=held, expect=409)
    await go("DELETE", "/deliveries/{delivery_id}", delivery_id=waits["delivery_id"])
    await go("POST", "/deliveries/{delivery_id}/retry", delivery_id=waits["delivery_id"])
    await go("POST", "/deliveries/{delivery_id}/retry", delivery_id="qd-0", expect=404)
    await go("GET", "/deliveries/pending", query={"peer_id": "ann"})
    await go("GET", "/deliveries/pending", query={"peer_id": "ann"})
    await go("GET", "/deliveries/pending", query={"pane_id": "%8"}, expect=404)
    turn = {"peer": "ben", "role": "user", "text": "hello", "tool_calls": [{"name": "Bash", "input": {}}]}
    await go("POST", "/events/chat", turn)
    await go("POST", "/events/chat", {**turn, "peer": "a bot", "role": "assistant", "turn_id": "t1"})
    await go("POST", "/events/chat_delta", {"peer": "ben", "turn_id": "t2", "chunk_index": 0, "text": "he"})
    await go("GET", "/events")
    await go("GET", "/events", query={"since": "3", "limit": 2})
    await go("GET", "/events", query={"limit": 0}, expect=422)


async def see_the_agents(go: Tour) -> None:
    servers, server = "/peers/{name}/mcp", {"name": "files", "command": "npx", "args": ["x"], "env": {"KEY": "secret"}}
    await go("POST", servers, server, query={"scope": "user", "circle": "default"}, name="ben")
    await go("POST", servers, server, name="ben", expect=409)
    await go("POST", servers, {**server, "name": "a b"}, name="ben", expect=400)
    await go("POST", servers, {"name": "web", "type": "http", "url": "http://127.0.0.1:1"}, name="ben")
    assert "secret" not in json.dumps(await go("GET", servers, query={"circle": "default"}, name="ben"))
    where = {"scope": "user", "circle": "default"}
    await go("DELETE", "/peers/{name}/mcp/{server}", query=where, name="ben", server="files")
    await go("DELETE", "/peers/{name}/mcp/{server}", name="ben", server="files", expect=404)
    await go("POST", "/peers", {"name": "pie", "backend": "pi"})
    await go("GET", servers, name="pie", expect=501)
    some = {"limit": 3, "session_id": "s", "circle": "default"}
    await go("GET", "/peers/{name}/transcript", query=some, name="ben")
    await go("GET", "/peers/{name}/transcript", query={"before": "x"}, expect=422, name="ben")
    await go("GET", "/peers/{name}/transcript", expect=404, name="nobody")
    await go("GET", "/peers/{name}/timeline", query=some, name="ben")
    await go("GET", "/peers/{name}/timeline/search", query={**some, "q": "HE"}, name="ben")
    await go("GET", "/peers/{name}/timeline/search", query={"q": "he"}, name="ben")
    await go("GET", "/peers/{name}/timeline/search", expect=422, name="ben")
    await go("GET", "/spawn/config")
    order = {
        "path": "/src",
        "backend": "claude-code",
        "profile": "p",
        "circle": "night",
        "name": "dan",
        "role": "agent",
    }
    await go("POST", "/spawn", {**order, "message": "begin"}, expect=403)
    await go("POST", "/spawn/{spawn_id}/launch", spawn_id="spawn-0", expect=410)
    await go("POST", "/kill-peer", {"peer_identifier": "nobody"}, expect=404)
    switch = "/peers/{name}/switch-backend"
    await go("POST", switch, {"new_backend": "codex"}, query={"circle": "default"}, name="ben", expect=409)
    await go("POST", switch, {"new_backend": "codex"}, name="nobody", expect=404)
    await go("POST", switch, {"new_backend": "mcp-http"}, name="ben", expect=422)
    restart, told = "/peers/{name}/restart", "/sessions/{repowire_session_id}/controls/notify"
    resume = "/sessions/{repowire_session_id}/controls/resume"
    body = {"circle": "default", "from_peer": "ann", "dry_run": True, "message": "go on"}
    await go("POST", restart, body, name="ben", expect=409)
    await go("POST", restart, name="nobody", expect=404)
    await go("POST", "/peers", {"name": "eve", "path": "/src/eve", "metadata": {"session_id": "s-eve"}})
    session = (await go("POST", "/notify", {"to_peer": "eve", "text": "hi"}))["repowire_session_id"]
    await go("POST", told, {"text": "hello"}, repowire_session_id=session)
    await go("POST", told, {"text": "hello"}, repowire_session_id="rw-session-0", expect=404)
    await go("POST", resume, repowire_session_id=session)
    await go("POST", resume, {"dry_run": False, "profile": "p"}, repowire_session_id=session, expect=409)
    await go("POST", "/peers/{name}/offline", name="eve")
    await go("POST", told, {"text": "hello"}, repowire_session_id=session, expect=409)
    await go("POST", resume, {"from_peer": "x", "message": "go on"}, repowire_session_id=session)
    await go("POST", resume, {"dry_run": False}, repowire_session_id=session, expect=403)
    await go("POST", "/peers", {"name": "dan"})
    await go("POST", "/kill-peer", {"peer_identifier": "dan", "circle": "default", "from_peer": "ben"})


LIFECYCLE = {
    "pane-died": {"pane_id": "%9"},
    "session-closed": {"session_name": "old"},
    "session-renamed": {"new_name": "new", "pane_ids": ["%9"]},
    "window-renamed": {"session_name": "main", "new_name": "build", "pane_ids": ["%9"]},
    "client-detached": {"session_name": "main"},
}


async def see_the_peers(go: Tour) -> None:
    certificate = (await go("POST", "/peer/register", {"name": "cat"}))["birth_certificate"]
    await go("POST", "/peers", {"name": "cat", "birth_certificate": certificate, "turn_state": "idle"})
    await go("POST", "/peers", {"name": "a b"}, expect=422)
    await go("GET", "/peers", query={"status": "online", "backend": "claude-code", "circle": "*"})
    await go("GET", "/peers", query={"path": "/src/ann", "limit": 1})
    await go("GET", "/whoami")
    await go("GET", "/peers/{name}", name="ben")
    await go("GET", "/peers/{name}", name="bne", expect=404)
    await go("GET", "/peers/by-pane/{pane_id}", pane_id="%7")
    await go("GET", "/peers/by-pane/{pane_id}", pane_id="%8", expect=404)
    await go("POST", "/peers/{name}/touch", name="cat")
    await go("POST", "/peers/{name}/description", {"description": "on the parser"}, name="cat")
    await go("POST", "/peers/circle", {"peer_name": "cat", "circle": "night"})
    await go("POST", "/session/update", {"peer_name": "cat", "status": "busy", "model": "m", "metadata": {"a": 1}})
    await go("POST", "/session/update", {"peer_name": "cat"}, expect=400)
    await go("POST", "/peers/claim-role", {"role": "orchestrator", "peer_name": "cat", "force": True})
    await go("POST", "/peers/claim-role", {"role": "orchestrator", "peer_name": "nobody"}, expect=404)
    await go("POST", "/peers/claim-role", {"role": "king", "peer_name": "cat"}, expect=400)
    await go("GET", "/circles/{name}/orchestrator", name="night")
    await go("GET", "/circles/{name}/orchestrator", name="noon")
    shown = {"birth_certificate": certificate, "backend": "claude-code"}
    await go("POST", "/peers/identity/validate", shown)
    await go("POST", "/peers/identity/validate", {**shown, "backend": "pi"}, expect=409)
    for event, said in LIFECYCLE.items():
        await go("POST", f"/hooks/lifecycle/{event}", said)
    await go("GET", "/peers")
    await go("POST", "/peers/{name}/offline", {"reason": "left"}, name="cat")
    await go("POST", "/peers/{name}/offline", name="nobody")
    await go("POST", "/peers/prune", {"dry_run": True})
    await go("POST", "/peer/unregister", {"name": "cat"})
    await go("DELETE", "/peers/{name}", name="cat", expect=404)
    await go("DELETE", "/peers/{name}", name="ann")


async def see_the_panes(go: Tour) -> None:
    await go("GET", "/panes/orphans", query={"tmux": "/nowhere"})
    await go("POST", "/panes/{pane_id}/link", {"backend": "codex"}, pane_id="%9", expect=404)
    await go("POST", "/panes/{pane_id}/link", {"backend": "codex"}, pane_id="main", expect=422)
    await go("POST", "/peers/{name}/rehook", {"apply": True}, name="ben", expect=409)
    await go("GET", "/peers/{name}/doctor", name="ben")
    await go("GET", "/peers/{name}/doctor", name="ann", query={"circle": "default"})
    await go("GET", "/peers/{name}/doctor", name="bne", expect=404)
    await go("GET", "/doctor")
    kept = await go("POST", "/notify", {"to_peer": "ann", "text": "kept"})
    await go("POST", "/deliveries/{delivery_id}/now", delivery_id=kept["delivery_id"], expect=409)
    await go("POST", "/deliveries/{delivery_id}/now", delivery_id="qd-0", expect=404)
    await go("POST", "/peers/{name}/hold", {"reason": "in a meeting", "seconds": 60}, name="ben")
    await go("GET", "/peers/{name}/doctor", name="ben")
    kept = await go("POST", "/notify", {"to_peer": "ben", "text": "kept"})
    assert (kept["state"], kept["delivery_state"]) == ("held", "queued")
    now = asyncio.create_task(go("POST", "/deliveries/{delivery_id}/now", delivery_id=kept["delivery_id"]))
    await go.api.ben.receipt({"type": "notify", "delivery_id": (await last_notify(go.api.ben))["delivery_id"]})
    assert (await now)["state"] == "handed"
    await go("POST", "/peers/{name}/release", name="ben")
    await go("POST", "/peers/{name}/hold", name="bne", expect=404)
    await go("POST", "/peers/{name}/rehook", name="bne", expect=404)


async def last_notify(ben: Any) -> dict[str, Any]:
    while (frame := await ben.next())["type"] != "notify":
        continue
    return frame


# What an agent in a real tmux is needed for: tests/live/test_spawn*.py hold these answers to the document
NEED_TMUX = {
    ("POST", "/spawn"),
    ("POST", "/spawn/{spawn_id}/launch"),
    ("POST", "/peers/{name}/switch-backend"),
    ("POST", "/peers/{name}/restart"),
}


async def test_every_answer_is_as_the_document_says_and_no_route_is_left_out(tour: Tour) -> None:
    await every_route(tour)
    succeeded = {route for route, statuses in tour.answered.items() if min(statuses) < 300}
    assert set(TABLE) - succeeded - STREAMS - PAGES == {
        ("POST", "/auth/rotate"),  # the token of these tests is of the config
        ("POST", "/panes/{pane_id}/link"),  # which needs a pane: tests/live/test_links.py
        *NEED_TMUX,
        ("POST", "/peers/{name}/rehook"),  # likewise
    }


async def test_a_page_is_what_the_document_says(api: Any) -> None:
    for method, path in sorted(PAGES):
        got = await api.request(method, path.replace("{file}", "icon.svg"), token=None)
        assert got.status == 200
        schema_of((method, path), 200, got.headers["Content-Type"].partition(";")[0])


# -- requests ------------------------------------------------------------------


def described_fields(route: Route) -> set[str]:
    bodies = route.body.get("oneOf", [route.body]) if route.body else []
    return {field for body in bodies for field in body.get("properties", {})}


async def test_each_handler_reads_the_fields_that_the_document_has_and_no_others(
    fields_read: Fields, queries_read: Fields, tour: Tour
) -> None:
    await every_route(tour)
    described = {route: described_fields(row) for route, row in TABLE.items()}
    asked = {route: set(row.query) for route, row in TABLE.items()}
    visited = set(tour.answered)
    own_words = {
        ("POST", "/hooks/{backend}/{event}"),
        ("POST", "/gates/{backend}/{event}"),
    }  # the agent's JSON, whatever it is
    refused = {("POST", "/ask-many"): {"question"}}  # which `/ask` has
    told = {route: fields_read[route] - refused.get(route, set()) for route in visited - own_words}
    assert told == {route: described[route] for route in told}
    assert {route: queries_read[route] for route in visited} == {route: asked[route] for route in visited}


# a direction that there is not is published as a 400
NOT_422 = {("GET", "/asks/pending", "direction")}

Case = tuple[str, str, dict[str, Any], str]


def base(body: dict[str, Any]) -> dict[str, Any]:
    """The smallest body that the handler reads to its end."""
    return {name: fitting(body["properties"][name]) for name in body.get("required", ())}


def fitting(schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "string":
        return "x" * max(1, schema.get("minLength", 0))
    if kind == "integer":
        return schema["minimum"]
    if kind == "object":
        return {}
    return [fitting(schema["items"])] if kind == "array" else False


def misfits(schema: dict[str, Any], needed: bool) -> Iterator[Any]:
    """Values that the schema does not allow, each just outside or of another type."""
    kinds = schema.get("type", [])
    kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
    if not kind:
        return
    if needed:
        yield None
    yield {"string": 7, "integer": "7", "number": "7", "boolean": "true", "array": {}, "object": []}[kind]
    if kind in ("integer", "number"):
        yield True
    if kind == "integer":
        yield schema["minimum"] - 1
        yield schema["maximum"] + 1
    if kind == "number":
        yield schema["maximum"] * 2
    if schema.get("minLength"):
        yield ""
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "enum" in schema or "pattern" in schema:
        yield "no such word"
    if "maxItems" in schema:
        yield [fitting(schema["items"])] * (schema["maxItems"] + 1)
        yield [7]
    if "minItems" in schema:
        yield []
    if "x-max-bytes" in schema:
        yield {"x": "x" * schema["x-max-bytes"]}


def edges(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that the schema just allows."""
    if "maxLength" in schema:
        yield "x" * schema["maxLength"]
    if "maximum" in schema:
        yield schema["maximum"]
    if "minimum" in schema:
        yield schema["minimum"]
    yield from schema.get("enum", ())
    if "maxItems" in schema:
        yield [fitting(schema["items"])] * schema["maxItems"]
    if "x-max-bytes" in schema:
        yield {"x": "x" * (schema["x-max-bytes"] - len('{"x": ""}'))}
    if isinstance(schema.get("type"), list):
        yield None


def cases(values: Callable[[dict[str, Any], bool], Iterator[Any]]) -> list[Case]:
    """Bodies that are good but for one field: (method, path, body, field)."""
    return [
        (route.method, route.path, {**base(body), name: value}, name)
        for route in TABLE.values()
        if route.body is not None
        for body in route.body.get("oneOf", [route.body])
        for name, schema in body.get("properties", {}).items()
        for value in values(schema, name in body.get("required", ()))
    ]


async def made_up(api: Any) -> dict[str, str]:
    """What stands in the place of each part of a path."""
    ask = await api.post("/ask", to_peer="ben", text="x")
    return {
        "name": "ann",
        "correlation_id": ask["correlation_id"],
        "pane_id": "%259",
        "repowire_session_id": "rw-session-0",
    }


async def test_a_field_that_the_document_forbids_is_refused_by_its_name(tour: Tour) -> None:
    named = await made_up(tour.api)
    wrong = cases(misfits)
    assert len(wrong) > 200
    for method, path, body, field in wrong:
        got = await tour.api.request(method, path.format(**named), json=body)
        assert got.status == 422, (method, path, field, str(body)[:200], got.body)
        assert got.json["detail"]["field"] == field, (method, path, str(body)[:200], got.body)


async def test_a_field_that_the_document_just_allows_is_not_refused(tour: Tour) -> None:
    named = await made_up(tour.api)
    right = cases(lambda schema, needed: edges(schema))
    assert len(right) > 100
    for method, path, body, field in right:
        if path == "/asks/{correlation_id}/wait":
            body["timeout_seconds"] = -1
        if path == "/query":
            body["timeout"] = -1
        if path == "/peers/{name}/mcp":
            body = {"command": "x", "url": "http://127.0.0.1:1", **body}
        if path == "/questions/ask-blocking":
            body["timeout_seconds"] = -1
            body.setdefault("options", [{"id": "allow"}])
        got = await tour.api.request(method, path.format(**named), json=body)
        assert got.status not in (422, 500), (method, path, field, str(body)[:200], got.body)


async def test_a_query_that_the_document_forbids_is_refused_by_its_name(tour: Tour) -> None:
    for (method, path), route in TABLE.items():
        for name, schema in route.query.items():
            values = ["no such word"] if "enum" in schema else []
            if "maximum" in schema:
                values = ["x", str(schema["minimum"] - 1), str(schema["maximum"] + 1)]
            one_of_two = {"peer_id": "ann"} if "pane_id" in route.query else {}
            for value in values:
                query = {**one_of_two, name: value}
                got = await tour.api.request(method, path.format(name="ann"), query=query)
                if (method, path, name) in NOT_422:
                    assert got.status == 400
                    continue
                assert (got.status, got.json["detail"].get("field")) == (422, name), (path, query, got.body)
