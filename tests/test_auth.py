"""The doors: who is admitted by which, and that no page, name or header of another's making opens one."""

import asyncio
import hmac
import json
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from repowire import auth as auth_module
from repowire import config, wire
from repowire.auth import ADMITTED, Auth, Caller, check_bind
from repowire.procs import Procs

TOKEN = "token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SECONDS = 10
JSON = "application/json"
ROUTES = [("GET", "/peers"), ("POST", "/ask"), ("GET", "/health"), ("GET", "/"), ("GET", "/static/app.js"),
          ("POST", "/mcp"), ("DELETE", "/peers/x"), ("GET", "/no/such/route"), ("GET", "/ws")]  # fmt: skip


class Answer(NamedTuple):
    status: int
    error: str | None
    headers: dict[str, str]


class Door:
    """A small app behind `admit`, which tells who it thinks is calling, and clients that say what they like."""

    def __init__(self, auth: Auth, server: TestServer, client: TestClient[Any, Any], path: Path) -> None:
        self.auth, self.server, self.client, self.path = auth, server, client, path
        self.host = f"127.0.0.1:{server.port}"
        self.reached: list[str] = []

    async def send(self, method: str, path: str, **headers: str) -> Answer:
        """A request of aiohttp's client; `_` in a header's name is a hyphen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, path, headers=named, data=b"{}" if method == "POST" else None) as got:
            return Answer(got.status, error_of(await got.read()), dict(got.headers))

    async def say(self, text: str, at: str | None = None) -> Answer:
        """A request letter by letter, over TCP, or over the Unix socket at a path."""
        opening = asyncio.open_unix_connection(at) if at else asyncio.open_connection("127.0.0.1", self.server.port)
        reader, writer = await opening
        writer.write(text.replace("\n", "\r\n").encode("latin-1") + b"\r\nConnection: close\r\n\r\n")
        try:
            head, _, body = (await asyncio.wait_for(reader.read(), SECONDS)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return Answer(int(head.split()[1]), error_of(body), {})


def error_of(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["detail"]["error"])
    except (ValueError, KeyError, TypeError):
        return None


async def tell(request: web.Request) -> web.Response:
    request.app[REACHED].append(request.raw_path)
    who = auth_module.caller(request)
    return web.json_response({"via": who.via, "pid": who.pid, "admitted": request[ADMITTED]})


async def socket_handler(request: web.Request) -> web.StreamResponse:
    request.app[REACHED].append(request.raw_path)
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    await answer.send_json({"admitted": request[ADMITTED]})
    await answer.close()
    return answer


AUTH = web.AppKey("auth", Auth)
REACHED = web.AppKey("reached", list[str])
NewDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def new_door(tmp_path: Path) -> AsyncIterator[NewDoor]:
    clients: list[TestClient[Any, Any]] = []
    procs = Procs(lambda pid, started: None)

    async def build(token: str | None = TOKEN) -> Door:
        auth = Auth(token, procs)
        app = web.Application(middlewares=[wire.refusals(auth.enter)])
        app[AUTH], app[REACHED] = auth, []
        app.router.add_get("/ws", socket_handler)
        for path in ("/", "/dashboard", "/health", "/peers", "/static/{tail:.*}"):
            app.router.add_get(path, tell)
        for path in ("/ask", "/mcp", "/health", "/attachments"):
            app.router.add_post(path, tell)
        app.router.add_delete("/peers/{name}", tell)
        server = TestServer(app, host="127.0.0.1")
        clients.append(TestClient(server, cookie_jar=aiohttp.DummyCookieJar()))
        await clients[-1].start_server()
        door = Door(app[AUTH], server, clients[-1], tmp_path / "d.sock")
        door.reached = app[REACHED]
        door.auth.bind("127.0.0.1", server.port or 0)
        assert server.runner is not None
        await web.UnixSite(server.runner, door.path).start()
        return door

    yield build
    for client in clients:
        await client.close()
    procs.close()


@pytest.fixture
async def door(new_door: NewDoor) -> Door:
    return await new_door()


# -- Host ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:{port}", "localhost.evil.test:{port}", "", "localhost", "localhost:1", "127.0.0.1.:{port}",
     "localhost.:{port}", "127.0.0.2:{port}", "0.0.0.0:{port}", "[::]:{port}", "127.0.0.1:{port} ,evil.test",
     "user@localhost:{port}", "localhost:{port}/", "2130706433:{port}", "localhost:0{port}"],
)  # fmt: skip
async def test_another_host_is_refused_everywhere(door: Door, method: str, path: str, host: str) -> None:
    named = host.format(port=door.server.port)
    got = await door.say(f"{method} {path} HTTP/1.1\nHost: {named}\nAuthorization: Bearer {TOKEN}\nContent-Length: 0")
    assert (got.status, got.error) == (403, "forbidden_host")
    assert door.reached == []


async def test_who_is_refused_for_his_host_is_told_the_real_address(door: Door) -> None:
    async with door.client.get("/health", headers={"Host": "evil.test"}) as got:
        hint = (await got.json())["detail"]["hint"]
    assert hint == f"speak to the daemon by the address it listens on: 127.0.0.1:{door.server.port}"


@pytest.mark.parametrize("lines", ["Host: {host}\nHost: {host}", "Host: {host}\nHost: evil.test", "X: y"])
async def test_two_hosts_or_none_reach_nobody(door: Door, lines: str) -> None:
    for version in ("1.0", "1.1"):
        got = await door.say(f"GET /health HTTP/{version}\n{lines.format(host=door.host)}")
        assert got.status in (400, 403)
    assert door.reached == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
async def test_every_loopback_name_with_our_port_is_ours(door: Door, name: str) -> None:
    got = await door.say(f"GET /peers HTTP/1.1\nHost: {name}:{door.server.port}\nAuthorization: Bearer {TOKEN}")
    assert got.status == 200


@pytest.mark.parametrize("target", ["http://evil.test/peers", "http://{host}/peers"])
async def test_a_request_target_that_is_no_path_is_refused(door: Door, target: str) -> None:
    line = f"GET {target.format(host=door.host)} HTTP/1.1"
    got = await door.say(f"{line}\nHost: {door.host}\nAuthorization: Bearer {TOKEN}")
    assert got.status == 403
    assert door.reached == []


def test_the_allow_list_is_exact() -> None:
    auth = Auth(TOKEN, Procs(lambda pid, started: None))
    auth.bind("192.168.1.5", 8377)
    auth.bind("fe80::1", 80)
    auth.bind("0.0.0.0", 9)
    names = ["127.0.0.1", "localhost", "[::1]"]
    expected = {f"http://{name}:8377" for name in [*names, "192.168.1.5"]}
    expected |= {f"http://{name}{port}" for name in [*names, "[fe80::1]"] for port in ("", ":80")}
    expected |= {f"http://{name}:9" for name in names}
    assert auth.allowed_origins == expected


# -- Origin --------------------------------------------------------------------

FOREIGN = ["null", "http://evil.test", "http://127.0.0.1:1", "http://localhost", "https://127.0.0.1:{port}", "",
           "vscode-webview://abc", "http://127.0.0.1:{port}.evil.test", "http://127.0.0.1:{port}, http://evil.test",
           "file://", "chrome-extension://abc", "http://0.0.0.0:{port}"]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize(("method", "path"), [("POST", "/ask"), ("GET", "/peers"), ("GET", "/health")])
async def test_another_origin_is_refused(door: Door, origin: str, method: str, path: str) -> None:
    named = origin.format(port=door.server.port)
    got = await door.send(method, path, Origin=named, Content_Type=JSON, **BEARER)
    assert (got.status, got.error) == (403, "forbidden_origin")
    assert door.reached == []


@pytest.mark.parametrize("origin", FOREIGN)
async def test_another_origin_gets_no_socket(door: Door, origin: str) -> None:
    headers = {"Origin": origin.format(port=door.server.port), **BEARER}
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await door.client.ws_connect("/ws", headers=headers)
    assert caught.value.status == 403
    assert door.reached == []


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd"])
async def test_another_site_is_refused_without_an_origin_too(door: Door, site: str) -> None:
    got = await door.send("GET", "/health", Sec_Fetch_Site=site)
    assert (got.status, got.error) == (403, "forbidden_origin")


async def test_our_own_page_is_served(door: Door) -> None:
    own = {"Origin": f"http://{door.host}", "Sec-Fetch-Site": "same-origin", **BEARER}
    assert (await door.send("POST", "/ask", Content_Type=JSON, **own)).status == 200
    assert (await door.send("GET", "/health", Sec_Fetch_Site="none")).status == 200


# -- what a form could send ----------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
@pytest.mark.parametrize("proof", [BEARER, {}])
async def test_what_a_form_could_send_is_refused(door: Door, kind: str | None, proof: dict[str, str]) -> None:
    line = "" if kind is None else f"\nContent-Type: {kind}"
    sent = "".join(f"\n{name}: {value}" for name, value in proof.items())
    for browser in (f"Origin: http://{door.host}", "Sec-Fetch-Site: same-origin"):
        got = await door.say(f"POST /ask HTTP/1.1\nHost: {door.host}\n{browser}{line}{sent}\nContent-Length: 0")
        assert (got.status, got.error) == (415, "unsupported_media_type")
    assert door.reached == []


async def test_an_upload_may_be_multipart(door: Door) -> None:
    own = {"Origin": f"http://{door.host}", "Content-Type": "multipart/form-data; boundary=x", **BEARER}
    assert (await door.send("POST", "/attachments", **own)).status == 200
    assert (await door.send("POST", "/attachmentsX", **own)).status == 415


# -- the token -----------------------------------------------------------------

PUBLIC = [("GET", "/health"), ("HEAD", "/health"), ("GET", "/"), ("GET", "/dashboard"), ("GET", "/static/app.js"),
          ("GET", "/health?x=1")]  # fmt: skip
CLOSED = [(method, path) for method, path in ROUTES if (method, path) not in PUBLIC] + [
    ("POST", "/health"), ("DELETE", "/"), ("POST", "/static/app.js"), ("OPTIONS", "/peers"), ("GET", "/health/")
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_without_the_token_a_rebound_request_gets_nothing(door: Door, method: str, path: str) -> None:
    got = await door.send(method, path)
    assert (got.status, got.error) == (401, "unauthorized")
    assert got.headers["WWW-Authenticate"] == "Bearer"
    assert door.reached == []


@pytest.mark.parametrize(("method", "path"), PUBLIC)
async def test_the_public_routes_need_none(door: Door, method: str, path: str) -> None:
    assert (await door.send(method, path)).status == 200


@pytest.mark.parametrize(
    "given",
    ["Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
     f"Bearer {TOKEN} x", "Bearer \xfc\xff", f"Bearer\t{TOKEN}"],
)  # fmt: skip
async def test_a_wrong_token_is_refused(door: Door, given: str) -> None:
    got = await door.say(f"GET /peers HTTP/1.1\nHost: {door.host}\nAuthorization: {given}")
    assert got.status == 401
    assert door.reached == []


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}"])
async def test_the_token_admits(door: Door, given: str) -> None:
    assert (await door.send("GET", "/peers", Authorization=given)).status == 200


async def test_an_unknown_path_is_unknown_only_with_the_token(door: Door) -> None:
    assert (await door.send("GET", "/no/such/route")).status == 401
    assert (await door.send("GET", "/no/such/route", **BEARER)).status == 404


@pytest.mark.parametrize(
    "path",
    ["/x/../peers", "/health/../peers", "/static/../peers", "/static/%2e%2e/peers", "/static/..%2fpeers", "//health",
     "/static//peers", "/%68ealth", "/health%00", "/health;/peers", "/.", "/static", "/dashboard/", "/peers#/health",
     "/peers?/../health", "/static/%5c..%5cpeers"],
)  # fmt: skip
async def test_a_tricky_path_is_not_public(door: Door, path: str) -> None:
    got = await door.say(f"GET {path} HTTP/1.1\nHost: {door.host}")
    assert got.status == 401
    assert door.reached == []


FORWARDED = {
    "X_Forwarded_For": "127.0.0.1", "X_Forwarded_Host": "localhost", "X_Forwarded_Proto": "http", "X_Real_IP": "::1",
    "Forwarded": "for=127.0.0.1;host=localhost", "X_Original_URL": "/health", "X_HTTP_Method_Override": "GET",
}  # fmt: skip


async def test_what_a_proxy_says_changes_nothing(door: Door) -> None:
    assert (await door.send("GET", "/peers", **FORWARDED)).status == 401
    assert (await door.send("GET", "/peers", Host="evil.test", **FORWARDED, **BEARER)).status == 403
    assert (await door.send("GET", "/peers", **FORWARDED, **BEARER)).status == 200


async def test_without_a_token_tcp_is_open_to_programs_and_still_closed_to_pages(new_door: NewDoor) -> None:
    door = await new_door(token=None)
    assert (await door.send("POST", "/ask")).status == 200
    assert (await door.send("GET", "/peers", Authorization="Bearer anything")).status == 200
    assert (await door.send("POST", "/ask", Origin="http://evil.test")).status == 403
    assert (await door.send("POST", "/ask", Host="evil.test")).status == 403
    own = {"Origin": f"http://{door.host}"}
    assert (await door.send("POST", "/ask", Content_Type="text/plain", **own)).status == 415


# -- WebSocket -----------------------------------------------------------------


async def first_frame(door: Door, **headers: str) -> Any:
    async with door.client.ws_connect("/ws", headers=headers) as ws:
        return await ws.receive_json(timeout=SECONDS)


async def test_a_socket_proves_itself_by_header_or_owes_it_to_the_first_frame(door: Door, new_door: NewDoor) -> None:
    assert await first_frame(door, **BEARER) == {"admitted": True}
    assert await first_frame(door) == {"admitted": False}
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await first_frame(door, Authorization="Bearer wrong")
    assert caught.value.status == 401


async def test_where_no_token_is_asked_for_a_socket_owes_none(new_door: NewDoor) -> None:
    assert await first_frame(await new_door(token="")) == {"admitted": True}


@pytest.mark.parametrize(
    ("method", "path", "upgrade"),
    [("GET", "/ws", "h2c"), ("POST", "/ws", "websocket"), ("GET", "/peers", "websocket"), ("GET", "/ws/", "websocket")],
)
async def test_only_the_upgrade_of_ws_may_owe_the_token(door: Door, method: str, path: str, upgrade: str) -> None:
    head = f"{method} {path} HTTP/1.1\nHost: {door.host}\nUpgrade: {upgrade}"
    assert (await door.say(head)).status == 401
    assert door.reached == []


# -- the Unix socket -----------------------------------------------------------


async def test_the_unix_socket_admits_by_uid_whatever_the_headers_say(door: Door) -> None:
    for headers in (
        "Host: localhost",
        "Host: evil.test\nOrigin: http://evil.test",
        "Host: x\nAuthorization: Bearer no",
    ):
        got = await door.say(f"POST /ask HTTP/1.1\n{headers}\nContent-Length: 0", at=str(door.path))
        assert got.status == 200


async def test_the_caller_is_the_process_at_the_other_end(door: Door) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(door.path))) as session:
        async with session.get("http://localhost/peers") as got:
            assert await got.json() == {"via": "unix", "pid": os.getpid(), "admitted": True}
    async with door.client.get("/peers", headers=BEARER) as got:
        assert await got.json() == {"via": "tcp", "pid": None, "admitted": True}


async def test_another_user_is_refused_at_the_unix_socket(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    got = await door.say("GET /health HTTP/1.1\nHost: localhost", at=str(door.path))
    assert (got.status, got.error) == (403, "forbidden_user")
    assert door.reached == []


async def test_the_kernel_is_asked_once_a_connection(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = auth_module._credentials

    def note(link: socket.socket | None) -> Caller:
        asked.append(1)
        return ask(link)

    monkeypatch.setattr(auth_module, "_credentials", note)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(door.path))) as session:
        for _ in range(5):
            async with session.get("http://localhost/peers") as got:
                assert got.status == 200
    assert len(asked) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="about the shape of SO_PEERCRED")
def test_a_process_outside_our_namespace_has_no_pid() -> None:
    class Link:
        family = socket.AF_UNIX

        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("3i", 0, os.getuid(), 0)

    assert auth_module._credentials(Link()) == Caller("unix", None)  # type: ignore[arg-type]


async def test_the_lineage_begins_with_the_caller_and_is_read_once(door: Door) -> None:
    lines: list[list[tuple[int, float]]] = []

    @web.middleware
    async def look(request: web.Request, handler: Any) -> web.StreamResponse:
        lines.append(request.app[AUTH].lineage(request))
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[wire.refusals(door.auth.enter), look])
    app[AUTH], app[REACHED] = door.auth, []
    app.router.add_get("/peers", tell)
    runner = web.AppRunner(app)
    await runner.setup()
    path = f"{door.path}2"
    await web.UnixSite(runner, path).start()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        for _ in range(2):
            async with session.get("http://localhost/peers") as got:
                assert got.status == 200
    await runner.cleanup()
    assert lines[0][0][0] == os.getpid()
    assert lines[1] is lines[0]


# -- comparing and rotating ----------------------------------------------------


def auth_of(token: str | None) -> Auth:
    return Auth(token, Procs(lambda pid, started: None))


def test_the_comparison_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def note(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return compare(given, token)

    monkeypatch.setattr(hmac, "compare_digest", note)
    auth = auth_of(TOKEN)
    assert [auth.matches(value) for value in (TOKEN, "wrong", TOKEN + "x")] == [True, False, False]
    assert [given for given, _ in compared] == [TOKEN.encode(), b"wrong", TOKEN.encode() + b"x"]


@pytest.mark.parametrize("value", [None, "", "ü", "\ud800", 7, True, ["x"], TOKEN.encode()])
def test_what_is_not_the_token_never_matches_and_never_raises(value: object) -> None:
    assert auth_of(TOKEN).matches(value) is False
    assert auth_of(None).matches(value) is True


def test_rotation_swaps_file_and_token_at_once(tmp_path: Path) -> None:
    config.prepare_home(tmp_path / "home")
    auth = auth_of(config.write_token(tmp_path / "home"))
    old = auth.token
    new = auth.rotate(tmp_path / "home")
    assert config.read_token(tmp_path / "home") == new != old
    assert (auth.matches(new), auth.matches(old), auth.generation) == (True, False, 1)


# -- where it may listen -------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST"])
@pytest.mark.parametrize("token", [None, "", TOKEN])
def test_loopback_may_be_open(host: str, token: str | None) -> None:
    check_bind(host, token)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "localhost.evil.test", "::ffff:192.168.1.5", "box"])
def test_what_others_reach_needs_a_token(host: str) -> None:
    check_bind(host, TOKEN)
    for token in (None, ""):
        with pytest.raises(config.ConfigError, match=r"daemon\.host.*needs a token"):
            check_bind(host, token)
