"""Both clients of ours, held to the document: a method for each route, all of its fields, and the published names."""

import dataclasses
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import pytest
from test_openapi import TABLE, described_fields

from repowire import answers, openapi, shapes
from repowire.async_client import AsyncRepowireClient
from repowire.client import RepowireClient
from repowire.openapi.words import Route

# Routes that no method calls, each with the reason.
ABSENT = {
    "register_peer_as_before": "the old twin of register_peer",
    "unregister_peer_as_before": "the old twin of unregister_peer",
    "ask_picked_up": "without effect, for clients of 0.17.0",
    "ask_reminded": "without effect, for clients of 0.17.0",
    "post_message": "ask, notify and broadcast are its methods",
    "post_hook": "hook_stdio.py speaks for an agent's hooks",
    "post_hook_receipt": "hook_stdio.py says it",
    "post_launch": "launcher.py asks it",
    "post_gate": "gate_stdio.py asks for an agent's hook",
    "stream_hosted_panes": "ws_hook.py alone may hear it",
    "pane_died": "the hooks of tmux say it",
    "session_closed": "the hooks of tmux say it",
    "session_renamed": "the hooks of tmux say it",
    "window_renamed": "the hooks of tmux say it",
    "client_detached": "the hooks of tmux say it",
    "post_mcp": "mcp_stdio.py carries it",
    "get_page": "a page",
    "get_dashboard": "a page",
    "get_file": "a page",
}
ONLY_ASYNC = {"connect": "being a peer needs an event loop"}
# Public names of a client that are no route
ITS_OWN = {
    RepowireClient: {"close", "request"},
    AsyncRepowireClient: {"aclose", "request", "headers", "token", "session", "translated", "connect_as"},
}
STREAMS = {"stream", "connect"}
# wire.md 14: what programs for the published client write; its methods whose routes are not ours yet are left out
PUBLISHED = {
    "health": "",
    "list_peers": "status path backend",
    "get_peer": "identifier circle",
    "get_peer_by_pane": "pane_id",
    "register_peer": "name path machine tmux_session pane_id backend circle circle_source role metadata",
    "unregister_peer": "name circle",
    "mark_peer_offline": "name",
    "set_description": "name description circle",
    "touch_peer": "name circle",
    "set_circle": "peer_name circle",
    "orchestrator_status": "circle",
    "query": "to_peer text from_peer timeout bypass_circle circle",
    "ask": "to_peer text from_peer attachments reply_to bypass_circle circle",
    "ack": "correlation_id from_peer message attachments",
    "pending_asks": "pane_id peer_id direction",
    "notify": "to_peer text from_peer attachments bypass_circle circle",
    "broadcast": "text from_peer exclude bypass_circle",
    "events": "",
    "spawn_config": "",
    "spawn": "path command backend profile circle message",
    "kill_peer": "peer_identifier circle from_peer",
    "restart_peer": "peer_identifier circle from_peer dry_run message",
    "resume_session": "dry_run profile message from_peer",
    "ingest_chat_turn": "peer role text peer_id pane_id tool_calls",
}

CLIENTS = [RepowireClient, AsyncRepowireClient]
both = pytest.mark.parametrize("client", CLIENTS)
Called = tuple[str, str, dict[str, Any], dict[str, Any]]


def public(client: type) -> set[str]:
    return {name for name in dir(client) if not name.startswith("_")}


@both
def test_each_route_has_a_method_and_each_method_a_route(client: type) -> None:
    names = {route.name for route in TABLE.values()}
    wanted = names - set(ABSENT) - (set(ONLY_ASYNC) if client is RepowireClient else set())
    assert public(client) - ITS_OWN[client] == wanted
    assert set(ABSENT) | set(ONLY_ASYNC) <= names, "a reason for a route that there is not"


@both
def test_each_method_says_what_it_does(client: type) -> None:
    assert [name for name in public(client) if not (inspect.getdoc(getattr(client, name)) or "").strip()] == []


class Stop(Exception):
    """The request was seen."""


async def called(client: type, name: str, given: dict[str, Any]) -> Called:
    """Method, path, body and query of the request that this method makes."""
    seen: list[Called] = []

    def note(
        self: Any,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Any = None,
        timeout: Any = None,
        seconds: Any = None,
        idempotency_key: str | None = None,
    ) -> Any:
        key = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        seen.append((method, path, body or {}, {**(query or {}), **key}))
        raise Stop

    async def note_later(self: Any, *args: Any, **more: Any) -> Any:
        note(self, *args, **more)

    kind = type("Noting", (client,), {"request": note if client is RepowireClient else note_later})
    made = kind("http://127.0.0.1:1", auth_token="t")
    with suppress(Stop):
        await getattr(made, name)(**given)
    return seen[0]


def needed(method: Callable[..., Any]) -> dict[str, Any]:
    """An argument for each that has no default."""
    kinds = {"to_peers": ["x"], "chunk_index": 0}
    return {
        name: kinds.get(name, "x")
        for name, parameter in list(inspect.signature(method).parameters.items())[1:]
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }


def routes() -> list[Route]:
    return [route for route in TABLE.values() if route.name not in {*ABSENT, *STREAMS}]


@both
@pytest.mark.parametrize("route", routes(), ids=lambda route: route.name)
async def test_each_method_calls_its_route_and_can_say_every_field(client: type, route: Route) -> None:
    method = getattr(client, route.name)
    minimal = needed(method)
    verb, path, _, _ = await called(client, route.name, minimal)
    assert verb == route.method
    assert re.fullmatch(re.sub(r"{\w+}", "x", route.path), path), path
    parameters = inspect.signature(method).parameters
    takes_more = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    wanted = (described_fields(route) | set(route.query)) - set(minimal)
    if route.keyed:
        wanted |= {"idempotency_key"}
    for field in sorted(wanted):
        assert field in parameters or takes_more, f"{route.name} cannot say {field}"
        seconds = field.endswith("_seconds") or field == "timeout"
        value: Any = True if field in ("dead", "confirm", "apply") else 0.5 if seconds else "given"
        _, _, body, query = await called(client, route.name, {**minimal, field: value})
        said = {**body, **query}
        name = {"idempotency_key": "Idempotency-Key"}.get(field, field)
        assert said.get(name) in (value, "true"), f"{route.name} does not say {field}: {said}"


@both
def test_the_published_methods_take_the_published_names(client: type) -> None:
    for name, keywords in PUBLISHED.items():
        parameters = inspect.signature(getattr(client, name)).parameters
        takes_more = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        lacking = [word for word in keywords.split() if word not in parameters and not takes_more]
        assert lacking == [], name


# -- results -------------------------------------------------------------------

# The record of each shape, and what of it is only in one of the two: a list of records is checked by its own row
RECORDS: dict[type, str] = {
    answers.Health: "Health",
    answers.OrchestratorStatus: "Orchestrator",
    answers.ClientPeer: "Peer",
    answers.RegisterPeerResult: "Registered",
    answers.AskResult: "Asked",
    answers.Acked: "Acked",
    answers.WaitResult: "Waited",
    answers.PendingAsk: "OpenAsk",
    answers.Ask: "Ask",
    answers.AskManyResult: "AskedMany",
    answers.AskManyStatus: "Rollup",
    answers.QueryResult: "Queried",
    answers.Blocked: "Blocked",
    answers.Question: "Question",
    answers.NotifyResult: "Notified",
    answers.BroadcastResult: "Spread",
    answers.SaidMessage: "Message",
    answers.Delivery: "Delivery",
    answers.DeliveryStanding: "Standing",
    answers.PickedUp: "PickedUp",
    answers.Stage: "Stage",
    answers.OrphanPane: "OrphanPane",
    answers.LinkedPane: "LinkedPane",
    answers.SpawnConfigInfo: "SpawnConfig",
    answers.Turn: "Turn",
    answers.Transcript: "Transcript",
    answers.SpawnResult: "Spawned",
    answers.KillPeerResult: "Killed",
    answers.Rehooked: "Rehooked",
    answers.RestartPeerResult: "Restarted",
    answers.SessionNotifyResult: "SessionNotified",
    answers.SessionResumeResult: "SessionResumed",
}
OPEN = {answers.MeshEvent}  # what else it says is in `extras`
INNER = {
    answers.AskManyChild: ("AskedMany", "children"),
    answers.AskManyAnswer: ("Rollup", "children"),
}
OF_A_ROUTE = {
    answers.AskPage: ("GET", "/asks/history"),
    answers.QuestionPage: ("GET", "/questions"),
    answers.Withdrawn: ("POST", "/questions/withdraw"),
    answers.MessagePage: ("GET", "/messages"),
    answers.TracedMessage: ("GET", "/messages/{message_id}"),
    answers.DeliveryPage: ("GET", "/deliveries"),
    answers.PickUp: ("GET", "/deliveries/pending"),
    answers.Trace: ("GET", "/traces/{trace_id}"),
}


def shape_of(record: type) -> dict[str, Any]:
    shapes = openapi.document()["components"]["schemas"]
    if record in RECORDS:
        shape: dict[str, Any] = shapes[RECORDS[record]]
    elif record in INNER:
        name, field = INNER[record]
        shape = shapes[name]["properties"][field]["items"]
    else:
        shape = TABLE[OF_A_ROUTE[record]].answer or {}
    return shape


def records() -> list[type]:
    return [one for one in vars(answers).values() if dataclasses.is_dataclass(one) and isinstance(one, type)]


@pytest.mark.parametrize("record", [one for one in records() if one not in OPEN], ids=lambda one: one.__name__)
def test_each_record_has_the_fields_of_its_shape(record: type) -> None:
    shape = shape_of(record)
    fields = {one.name: one for one in dataclasses.fields(record)}
    assert set(fields) == set(shape["properties"])
    for name, hint in typing.get_type_hints(record).items():
        kinds = shape["properties"][name].get("type", "object")
        may_be_null = "null" in kinds or "anyOf" in shape["properties"][name] or name not in shape["required"]
        if may_be_null and fields[name].default is None:
            assert type(None) in typing.get_args(hint), name
        if fields[name].default is fields[name].default_factory is dataclasses.MISSING:
            assert name in shape["required"], f"{name} may be absent"
            assert "null" not in kinds, f"{name} may be null"


# -- shapes --------------------------------------------------------------------


def typed() -> list[Any]:
    return [one for one in vars(shapes).values() if typing.is_typeddict(one)]


def named_shape(schema: dict[str, Any]) -> dict[str, Any]:
    found = schema.get("$ref", "").rpartition("/")[2]
    return openapi.document()["components"]["schemas"][found] if found else schema


def agrees(hint: Any, schema: dict[str, Any]) -> bool:
    """Whether a type allows just what the schema does."""
    given = typing.get_args(hint)
    if typing.get_origin(hint) is typing.NotRequired:
        return agrees(given[0], schema)
    if type(None) in given:
        bare = typing.Union[tuple(one for one in given if one is not type(None))]  # noqa: UP007 - made, not written
        if "anyOf" in schema:
            return (
                len(schema["anyOf"]) == 2 and {"type": "null"} in schema["anyOf"] and agrees(bare, schema["anyOf"][0])
            )
        kinds = schema.get("type")
        inner = {**schema, "type": kinds[0] if isinstance(kinds, list) else None}
        if "enum" in schema:
            inner["enum"] = [one for one in schema["enum"] if one is not None]
        return isinstance(kinds, list) and kinds[1:] == ["null"] and agrees(bare, inner)
    schema = named_shape(schema)
    if typing.get_origin(hint) is Literal:
        return set(given) == set(schema.get("enum", ()))
    if typing.get_origin(hint) is list:
        return schema["type"] == "array" and agrees(given[0], schema["items"])
    if typing.is_typeddict(hint):
        required = set(schema.get("required", ()))
        hints = typing.get_type_hints(hint)
        return (
            set(hints) == set(schema.get("properties", ()))
            and hint.__required_keys__ == required
            and all(agrees(one, schema["properties"][name]) for name, one in hints.items())
        )
    kinds = {str: "string", int: "integer", float: "number", bool: "boolean", shapes.Json: "object"}
    return schema.get("type") == kinds[hint] and "enum" not in schema


def test_a_planted_difference_between_a_type_and_a_schema_is_found() -> None:
    ok = openapi.words.OK
    assert agrees(shapes.Ok, ok)
    assert not agrees(shapes.Rotated, ok)
    assert not agrees(str, {"type": ["string", "null"]})
    assert not agrees(str | None, {"type": "string"})
    assert not agrees(str, {"type": "string", "enum": ["a"]})
    assert not agrees(Literal["a", "b"], {"type": "string", "enum": ["a"]})
    assert not agrees(int, {"type": "number"})


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.name)
def test_each_answer_of_the_plain_client_is_declared_as_the_document_has_it(route: Route) -> None:
    if route.name == "openapi":  # a document of its own
        return
    space = {**vars(shapes), "shapes": shapes, "Json": shapes.Json}
    hint = typing.get_type_hints(getattr(RepowireClient, route.name), space)["return"]
    answer = named_shape(route.answer or {})
    if typing.get_origin(hint) is list and answer["type"] == "object":  # the list alone is handed on
        inner = [one for one in answer["properties"].values() if one.get("type") == "array"]
        assert len(inner) == 1
        answer = inner[0]
    if route.name == "events":
        assert hint == list[shapes.Json]
        return
    assert agrees(hint, answer), f"{route.name}: {hint} is not {answer}"


def test_no_shape_is_without_use() -> None:
    modules = [vars(shapes)[one.name] for one in pkgutil.iter_modules(shapes.__path__)]
    source = "".join(inspect.getsource(one) for one in (*modules, inspect.getmodule(RepowireClient)))  # type: ignore[arg-type]
    assert [one.__name__ for one in typed() if len(re.findall(rf"\b{one.__name__}\b", source)) < 2] == []
