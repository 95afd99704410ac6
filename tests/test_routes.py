"""What holds for all routes and events: each is documented, each refusal has one shape, each kind is listed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from repowire.protocol import KINDS

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^### `([A-Z]+) (/\S*)`$", re.MULTILINE)


def documented() -> set[tuple[str, str]]:
    """The routes that docs/api.md has a section for."""
    return {(method, path) for method, path in HEADING.findall((ROOT / "docs" / "api.md").read_text())}


def served(app: web.Application) -> set[tuple[str, str]]:
    """The app's own table; aiohttp adds a HEAD to each GET, which needs no section."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


async def test_every_route_is_documented_and_every_section_is_served(api: Any) -> None:
    routes = served(api.client.app)
    assert routes - documented() == set(), "docs/api.md lacks these"
    assert documented() - routes == set(), "docs/api.md has these, and the daemon does not"


async def test_no_route_is_served_twice(api: Any) -> None:
    routes = [(r.method, r.resource.canonical) for r in api.client.app.router.routes() if r.resource is not None]
    assert sorted(routes) == sorted(set(routes))


# -- one refusal shape --------------------------------------------------------

REFUSED = [
    ("GET", "/nowhere", None, 404, "not_found"),
    ("GET", "/peers/", None, 404, "not_found"),
    ("GET", "/peers/nobody", None, 404, "peer_not_found"),
    ("GET", "/traces/ask-000000000000", None, 404, "trace_not_found"),
    ("GET", "/deliveries/qd-000000000000", None, 404, "delivery_not_found"),
    ("DELETE", "/peers/nobody", None, 404, "peer_not_found"),
    ("DELETE", "/ask", None, 405, "method_not_allowed"),
    ("PUT", "/health", None, 405, "method_not_allowed"),
    ("GET", "/asks/pending", None, 400, "bad_request"),
    ("POST", "/ask", {"text": "hello"}, 422, "invalid_field"),
    ("POST", "/ask", {"to_peer": "nobody", "text": "hello"}, 404, "peer_not_found"),
    ("POST", "/ask", {"to_peer": True, "text": "hello"}, 422, "invalid_field"),
    ("POST", "/ack", {"correlation_id": "ask-000000000000"}, 404, "ask_not_found"),
    ("POST", "/ack", {}, 422, "invalid_field"),
    ("POST", "/asks/ask-000000000000/wait", {}, 404, "ask_not_found"),
    ("POST", "/peers", {"name": "a b"}, 422, "invalid_field"),
    ("POST", "/peers", {"name": "a", "role": "king"}, 422, "invalid_field"),
    ("POST", "/session/update", {"peer_name": "a"}, 400, "bad_request"),
]


def shape(body: Any) -> tuple[str, str]:
    """The slug and the hint of a refusal; fails on any other shape."""
    assert isinstance(body, dict), body
    assert set(body) == {"detail"}, body
    assert isinstance(body["detail"], dict), body
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", body["detail"]["error"]), body
    assert body["detail"]["hint"], body
    return body["detail"]["error"], body["detail"]["hint"]


@pytest.mark.parametrize(("method", "path", "body", "status", "error"), REFUSED)
async def test_a_refusal_has_the_one_shape(
    api: Any, method: str, path: str, body: dict[str, Any] | None, status: int, error: str
) -> None:
    got = await api.request(method, path, **({} if body is None else {"json": body}))
    assert (got.status, shape(got.json)[0]) == (status, error), got.body


@pytest.mark.parametrize("raw", [b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b""])
async def test_a_body_that_is_no_json_object_is_refused_in_the_one_shape(api: Any, raw: bytes) -> None:
    got = await api.request("POST", "/ask", data=raw, headers={"Content-Type": "application/json"})
    assert (got.status, shape(got.json)[0]) == (422, "invalid_field")
    assert got.json["detail"]["field"] == "body"


async def test_a_body_over_the_limit_is_too_large(api: Any) -> None:
    got = await api.request("POST", "/ask", json={"to_peer": "ben", "text": "x" * (1 << 20)})
    assert (got.status, shape(got.json)[0]) == (413, "too_large")


async def test_every_route_but_the_public_ones_wants_the_token(api: Any) -> None:
    public = {("GET", "/health"), ("GET", "/"), ("GET", "/dashboard"), ("GET", "/static"), ("GET", "/ws")}
    for method, path in sorted(served(api.client.app) - public):
        got = await api.request(method, re.sub(r"\{\w+\}", "x", path), token=None)
        assert (got.status, shape(got.json)[0]) == (401, "unauthorized"), (method, path)
        assert got.headers["WWW-Authenticate"].startswith("Bearer")


async def test_an_unknown_path_is_no_oracle_without_the_token(api: Any) -> None:
    got = await api.request("GET", "/nowhere", token=None)
    assert (got.status, shape(got.json)[0]) == (401, "unauthorized")


@pytest.mark.parametrize(("method", "path"), [("PATCH", "/ask"), ("DELETE", "/peers"), ("POST", "/health")])
async def test_a_wrong_method_is_told_which_are_allowed(api: Any, method: str, path: str) -> None:
    got = await api.request(method, path)
    assert (got.status, shape(got.json)[0]) == (405, "method_not_allowed")
    allowed = {name for name, where in served(api.client.app) if where == path}
    assert allowed <= set(re.split(r",\s*", got.headers["Allow"]))


async def test_a_fault_of_ours_is_told_in_the_one_shape_and_logged(
    api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("repowire.peers.resolve", fail)
    got = await api.request("GET", "/peers/ben")
    assert (got.status, shape(got.json)[0]) == (500, "internal")
    assert b"planted" not in got.body
    assert got.json["detail"]["trace"] in caplog.text


# -- every kind is listed -----------------------------------------------------


def kinds_recorded(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The kinds that `record` and `announce` are called with: (kind or pattern, line)."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr not in ("record", "announce", "_announce"):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "body":  # a field of a request
            continue
        for kind in spelled(node.args[0]):
            yield kind, node.lineno


def spelled(node: ast.expr) -> Iterator[str]:
    """The texts an expression can be; a part that is computed is a `*`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from spelled(node.body)
        yield from spelled(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)


def unlisted(kind: str) -> bool:
    pattern = re.compile(re.escape(kind).replace(r"\*", r"\w+"))
    return not any(pattern.fullmatch(known) for known in KINDS)


def recorded() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "repowire").rglob("*.py")):
        for kind, line in kinds_recorded(ast.parse(path.read_text())):
            found.setdefault(kind, []).append(f"{path.name}:{line}")
    return found


def test_every_recorded_kind_is_listed() -> None:
    found = recorded()
    assert "ask.opened" in found
    assert {kind: where for kind, where in found.items() if unlisted(kind)} == {}


def test_a_kind_that_is_not_listed_would_be_found() -> None:
    tree = ast.parse('change.record("ask.eaten")\nmesh.announce("a.b" if x else f"ask.{word}d")')
    found = [kind for kind, _ in kinds_recorded(tree)]
    assert found == ["ask.eaten", "a.b", "ask.*d"]
    assert [kind for kind in found if unlisted(kind)] == ["ask.eaten", "a.b"]


def test_every_kind_is_a_noun_and_a_past_tense() -> None:
    assert [kind for kind in KINDS if not re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", kind)] == []


# -- the pages ----------------------------------------------------------------

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []
