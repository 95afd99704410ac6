"""The API's own description: OpenAPI 3.1, made once from the tables of this folder.

The tables are written by hand; `tests/test_openapi.py` holds them to the routes, to what the handlers read and to what
they answer, each both ways.
"""

import json
import re
from functools import cache
from typing import Any

from aiohttp import web

from repowire import __version__, idempotency
from repowire.openapi import asks, events, history, host, mcp_servers, messages, panes, peers, questions, spawn
from repowire.openapi.words import Route, Schema, shape

GROUPS = {
    "daemon": host,
    "peers": peers,
    "asks": asks,
    "questions": questions,
    "messages": messages,
    "panes": panes,
    "events": events,
    "spawn": spawn,
    "history": history,
    "mcp servers": mcp_servers,
}
PUBLIC = frozenset({"health", "get_page", "get_dashboard", "get_file"})
REFUSED = {
    400: "what was sent is no request",
    401: "no token, or a wrong one",
    403: "a Host or Origin that is not the daemon's own, or not allowed",
    404: "no such thing",
    413: "the body is too large",
    415: "a browser's request that is not application/json",
    422: "a field is missing, of the wrong type or out of bounds",
}

# -- the document --------------------------------------------------------------


def table() -> list[tuple[str, Route]]:
    """Every route with its group."""
    return [(group, route) for group, module in GROUPS.items() for route in module.ROUTES]


@cache
def document() -> dict[str, Any]:
    """The whole of it."""
    paths: dict[str, dict[str, Any]] = {}
    for group, route in table():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(group, route)
    shapes: dict[str, Schema] = {}
    for module in GROUPS.values():
        shapes |= module.SHAPES
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "repowire",
            "version": __version__,
            "description": "A local daemon that gives every coding agent on a machine a name and a mailbox.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": group} for group in GROUPS],
        "paths": paths,
        "components": {
            "schemas": shapes,
            "responses": {str(status): _refused(words) for status, words in REFUSED.items()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "over TCP; on the Unix socket the caller's uid is the login",
                }
            },
        },
    }


def _operation(group: str, route: Route) -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": route.name, "summary": route.about, "tags": [group]}
    if route.name in PUBLIC:
        made["security"] = []
    if parameters := _parameters(route):
        made["parameters"] = parameters
    if route.body is not None:
        made["requestBody"] = {"required": route.body_needed, "content": {"application/json": {"schema": route.body}}}
    made["responses"] = _responses(route)
    return made


def _parameters(route: Route) -> list[dict[str, Any]]:
    named = re.findall(r"{(\w+)}", route.path)
    inside = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in named
    ]
    asked = [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    key = {
        "name": idempotency.HEADER,
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_CHARS, "pattern": "^[ -~]+$"},
    }
    return [*inside, *asked, *([key] if route.keyed else [])]


def _responses(route: Route) -> dict[str, Any]:
    schema = {} if route.answer is None else {"schema": route.answer}
    content = {} if route.status == 101 else {"content": {route.media: schema}}
    said: dict[int, Any] = {route.status: {"description": "as asked", **content}}
    if route.name == "post_mcp":
        said[202] = {"description": "taken; there is nothing to answer"}
    plain = route.refused == shape("Refusal")
    for status, words in sorted({**REFUSED, **route.refuses}.items()):
        common = plain and status not in route.refuses
        said[status] = {"$ref": f"#/components/responses/{status}"} if common else _refused(words, route.refused)
    return {str(status): response for status, response in said.items()} | {"default": _refused("another refusal")}


def _refused(words: str, schema: Schema | None = None) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": schema or shape("Refusal")}}}


# -- wire ----------------------------------------------------------------------


@cache
def _text() -> bytes:
    return json.dumps(document(), ensure_ascii=False).encode()


async def get_openapi(request: web.Request) -> web.Response:
    return web.Response(body=_text(), content_type="application/json")


ROUTES = [web.get("/openapi.json", get_openapi)]
