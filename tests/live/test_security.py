"""The door of a real daemon, by bytes on its real port: browsers' tricks, strangers, leaks, and files' modes."""

import asyncio
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live, until

from repowire import config, daemon
from repowire.clock import SystemClock

pytestmark = pytest.mark.live


class Reply:
    """A raw answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        self.status = int(self.head.split(" ", 2)[1])

    @property
    def error(self) -> str | None:
        """The slug of the one shape; None where there is none."""
        try:
            found: str = json.loads(self.body)["detail"]["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return found


def say(live: Live, request: str, body: bytes = b"", host: str = "127.0.0.1") -> Reply:
    """Send the lines of a request as they are, and read what comes until the other side closes."""
    lines = [line.strip() for line in request.splitlines() if line.strip()]
    with socket.create_connection((host, live.port), timeout=DEADLINE_SECONDS) as link:
        close = [] if "Connection: Upgrade" in lines else ["Connection: close"]
        link.sendall("\r\n".join([*lines, *close, "", ""]).encode() + body)
        raw = b""
        while not whole(raw) and (chunk := link.recv(65_536)):
            raw += chunk
    return Reply(raw)


def whole(raw: bytes) -> bool:
    """A refused upgrade leaves the connection open behind its answer."""
    head, end, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(end and length and raw[:4] == b"HTTP" and len(body) >= int(length[1]))


def bearer(live: Live) -> str:
    return f"Authorization: Bearer {live.token}"


def post(live: Live, where: str, *headers: str, kind: str = "application/json", **body: Any) -> Reply:
    raw = json.dumps(body).encode()
    lines = [f"POST {where} HTTP/1.1", f"Host: 127.0.0.1:{live.port}", f"Content-Length: {len(raw)}"]
    return say(live, "\n".join([*lines, f"Content-Type: {kind}", *headers]), raw)


UPGRADE = """
Upgrade: websocket
Connection: Upgrade
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==
"""

# -- Host ------------------------------------------------------------------------

HOSTS = [
    "evil.test", "evil.test:{port}", "localhost.evil.test:{port}", "127.0.0.1.evil.test:{port}", "localhost.:{port}",
    "127.0.0.1.:{port}", "127.0.0.1", "localhost", "127.0.0.1:1", "0.0.0.0:{port}", "[::]:{port}", "127.0.0.2:{port}",
    "2130706433:{port}", "127.1:{port}", "0x7f.1:{port}", "user@127.0.0.1:{port}", "127.0.0.1:{port}@evil.test",
    "127.0.0.1:{port},evil.test", "127.0.0.1:0{port}", "", "[::ffff:127.0.0.1]:{port}",
]  # fmt: skip
PATHS = [
    "/", "/dashboard", "/static/app.js", "/health", "/peers", "/ws", "/mcp", "/nowhere", "/x/../api",
    "/health/../peers", "//health", "/%68ealth", "/static/../peers", "/static/%2e%2e/peers", "/health;x",
    "/health?x=/peers",
]  # fmt: skip


@pytest.mark.parametrize("with_token", [False, True])
def test_a_wrong_host_is_refused_on_every_path(live: Live, with_token: bool) -> None:
    token = bearer(live) if with_token else "X: y"
    for host in HOSTS:
        for path in PATHS if host == "evil.test" else ("/health", "/ws"):
            upgrade = UPGRADE if path == "/ws" else ""
            reply = say(live, f"GET {path} HTTP/1.1\nHost: {host.format(port=live.port)}\n{token}\n{upgrade}".strip())
            assert (reply.status, reply.error) == (403, "forbidden_host"), (host, path, reply.head)


def test_two_hosts_or_none_are_refused(live: Live) -> None:
    good = f"Host: 127.0.0.1:{live.port}"
    for hosts in (f"{good}\nHost: evil.test", f"Host: evil.test\n{good}", f"{good}\n{good}", ""):
        for path in ("/health", "/peers"):
            reply = say(live, f"GET {path} HTTP/1.1\n{bearer(live)}\n{hosts}".strip())
            assert reply.status in (400, 403), (hosts, reply.head)
    absolute = f"GET http://evil.test/health HTTP/1.1\n{good}"
    assert say(live, absolute).status in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_our_own_names_are_let_in(live: Live, host: str) -> None:
    assert say(live, f"GET /health HTTP/1.1\nHost: {host}:{live.port}").status == 200


# -- no token --------------------------------------------------------------------


def test_without_a_token_every_route_is_shut(live: Live, tmp_path: Path) -> None:
    """A page that rebinds its name sends no Origin with a GET: every route of the app, and more."""
    config.prepare_home(tmp_path / "home")
    mesh = daemon.open_mesh(config.load(tmp_path / "home", {}), SystemClock())
    try:
        app = daemon.build_app(mesh)
        routes = {(one.method, one.resource.canonical) for one in app.router.routes() if one.resource is not None}
    finally:
        mesh.close()
    assert len(routes) > 30
    routes |= {("GET", path) for path in PATHS if path not in ("/health", "/", "/dashboard", "/static/app.js")}
    routes |= {("OPTIONS", "/peers"), ("TRACE", "/health"), ("POST", "/health"), ("PROPFIND", "/")}
    public = {"/", "/dashboard", "/health", "/static"}
    for method, path in sorted(routes):
        if method in ("GET", "HEAD") and (path in public or path.startswith("/health?")):
            continue
        for token in ("X: y", "Authorization: Bearer wrong", "Authorization: Basic Ong=", "Cookie: token=x"):
            where = re.sub(r"\{\w+\}", "x", path)
            reply = say(live, f"{method} {where} HTTP/1.1\nHost: 127.0.0.1:{live.port}\n{token}")
            assert reply.status == 401, (method, path, token, reply.head)
            assert method == "HEAD" or reply.error == "unauthorized", (method, path, reply.body)
            assert "www-authenticate: bearer" in reply.head.lower()


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: 127.0.0.1", "X-Forwarded-Proto: unix", "X-Real-IP: 127.0.0.1",
        "Forwarded: for=127.0.0.1;host=localhost;proto=http", "X-Forwarded-Port: 80", "X-Original-URL: /health",
        "X-HTTP-Method-Override: GET", "X-Rewrite-URL: /health",
    ],
)  # fmt: skip
def test_what_a_proxy_may_say_changes_nothing(live: Live, header: str) -> None:
    good = f"Host: 127.0.0.1:{live.port}"
    assert say(live, f"GET /peers HTTP/1.1\n{good}\n{header}").status == 401
    assert say(live, f"GET /peers HTTP/1.1\nHost: evil.test\n{bearer(live)}\n{header}").status == 403
    assert say(live, f"GET /peers HTTP/1.1\n{good}\n{bearer(live)}\n{header}").status == 200


# -- pages -----------------------------------------------------------------------

ORIGINS = [
    "null", "http://evil.test", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://127.0.0.1", "",
    "http://localhost.evil.test:{port}", "vscode-webview://1a2b", "chrome-extension://abc", "file://",
    "http://127.0.0.1:{port}/", "http://127.0.0.1:{port} http://evil.test", "http://user@127.0.0.1:{port}",
]  # fmt: skip


def test_pages_of_others_are_refused_whatever_they_know(live: Live) -> None:
    """On a POST, on a GET, and on the upgrade before any frame; with the token too."""
    for origin in ORIGINS:
        header = f"Origin: {origin.format(port=live.port)}"
        for token in (bearer(live), "X: y"):
            made = post(live, "/peers", header, token, name="ann", path="/srv/ann")
            read = say(live, f"GET /health HTTP/1.1\nHost: 127.0.0.1:{live.port}\n{header}\n{token}")
            upgraded = say(live, f"GET /ws HTTP/1.1\nHost: 127.0.0.1:{live.port}\n{header}\n{token}{UPGRADE}")
            for reply in (made, read, upgraded):
                assert (reply.status, reply.error) == (403, "forbidden_origin"), (origin, reply.head)
    for site in ("cross-site", "same-site", "Cross-Site", "odd"):
        made = post(live, "/peers", f"Sec-Fetch-Site: {site}", bearer(live), name="ann", path="/srv/ann")
        assert made.status == 403, site
    assert live.get("/peers")["peers"] == []
    own = f"Origin: http://127.0.0.1:{live.port}"
    assert post(live, "/peers", own, bearer(live), name="ann", path="/srv/ann").status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "*/*"]
)
def test_a_plain_form_cannot_imitate_us(new_live: Callable[..., Live], kind: str) -> None:
    """With the token, and where no token is asked for: a page may send these without asking first."""
    live = new_live().start()
    opened = new_live("open").start(REPOWIRE_DAEMON__AUTH_TOKEN="")
    for one, token in ((live, bearer(live)), (opened, "X: y")):
        for origin in (f"Origin: http://127.0.0.1:{one.port}", "Sec-Fetch-Site: none", "X: y"):
            reply = post(one, "/peers", origin, token, kind=kind, name="ann", path="/srv/ann")
            assert reply.status in (415, 422), (origin, reply.head)
    assert live.get("/peers")["peers"] == opened.request("GET", "/peers", token=None).json["peers"] == []


# -- where it listens --------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.2", "127.1.2.3", "::1"])
def test_it_listens_on_one_address_alone(live: Live, address: str) -> None:
    with pytest.raises(OSError), socket.create_connection((address, live.port), timeout=DEADLINE_SECONDS):
        pass


def test_the_machines_other_addresses_are_not_bound(live: Live) -> None:
    inode = re.compile(rf"^\s*\d+: ([0-9A-F]+):{live.port:04X} 0+:0000 0A ", re.MULTILINE)
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp here")
    assert inode.findall(Path("/proc/net/tcp").read_text()) == ["0100007F"]
    if Path("/proc/net/tcp6").exists():
        assert inode.findall(Path("/proc/net/tcp6").read_text()) == []


# -- the token ---------------------------------------------------------------------


def test_the_token_is_told_to_nobody(live: Live) -> None:
    """Not by a public page, an event, a log, the process list or the environment; only its file holds it."""
    token = live.token
    good = f"Host: 127.0.0.1:{live.port}"
    told = [say(live, f"GET {path} HTTP/1.1\n{good}").body for path in ("/", "/dashboard", "/health", "/static/app.js")]
    told += [json.dumps(live.get(path)).encode() for path in ("/peers", "/events", "/health")]
    live.request("GET", f"/peers?token={token}", token=None)
    live.request("GET", "/peers", token="wrong")
    told += [Path(f"/proc/{live.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    told.append(live.cli("status", "--json").stdout.encode())
    assert live.term() == 0
    told.append(live.stderr().encode())
    for path in live.home.rglob("*"):
        if path.is_file() and path.name != "token":
            told.append(path.read_bytes())
    for one in told:
        assert token.encode() not in one


async def test_a_rotation_cuts_what_the_old_token_let_in(live: Live) -> None:
    """At once, and TCP alone: the Unix socket's peers never showed a token."""
    old = live.token
    tcp = aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers={"Authorization": f"Bearer {old}"})
    unix = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(live.home / "daemon.sock")))
    bare = aiohttp.ClientSession(f"http://127.0.0.1:{live.port}")
    async with tcp, unix, bare:
        by_header, by_frame, stays = (
            await tcp.ws_connect("/ws"),
            await bare.ws_connect("/ws"),
            await unix.ws_connect("/ws"),
        )
        for number, ws in enumerate((by_header, by_frame, stays)):
            hello = {"type": "connect", "display_name": f"p{number}", "path": f"/srv/{number}"}
            await ws.send_json(hello | ({"auth_token": old} if ws is by_frame else {}))
            assert (await ws.receive_json(timeout=DEADLINE_SECONDS))["type"] == "connected"
        rotated = await asyncio.to_thread(live.cli, "token", "--rotate", "--json")
        assert rotated.returncode == 0, rotated.stderr
        for ws in (by_header, by_frame):
            end = await ws.receive(timeout=2)
            assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 4001)
        assert (await tcp.get("/peers")).status == 401
        fresh = live.token
        assert fresh != old
        assert (await tcp.get("/peers", headers={"Authorization": f"Bearer {fresh}"})).status == 200
        await stays.send_json({"type": "nobody handles this"})
        async with unix.post("/notify", json={"to_peer": "p2", "text": "still here"}) as answer:
            assert answer.status == 200
        assert (await stays.receive_json(timeout=DEADLINE_SECONDS))["text"] == "still here"


async def test_an_upgrade_by_the_old_token_makes_no_peer_after_a_rotation(live: Live) -> None:
    headers = {"Authorization": f"Bearer {live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers) as session:
        late = await session.ws_connect("/ws")
        assert (await asyncio.to_thread(live.cli, "token", "--rotate")).returncode == 0
        await late.send_json({"type": "connect", "display_name": "late", "path": "/srv/late"})
        first = await late.receive(timeout=DEADLINE_SECONDS)
        while first.type is aiohttp.WSMsgType.TEXT:
            assert json.loads(first.data)["type"] == "error"
            first = await late.receive(timeout=DEADLINE_SECONDS)
        assert first.data == 4001
        assert live.get("/peers")["peers"] == []


async def test_a_rotation_ends_the_streams_of_the_old_token(live: Live) -> None:
    """A stream of events is a way in like a socket; over the Unix socket it goes on."""
    headers = {"Authorization": f"Bearer {live.token}"}
    path = str(live.home / "daemon.sock")
    tcp = aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers)
    unix = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(path))
    async with tcp, unix:
        events, own = await tcp.get("/events/stream"), await unix.get("/events/stream")
        assert (events.status, own.status) == (200, 200)
        assert (await asyncio.to_thread(live.cli, "token", "--rotate")).returncode == 0
        assert b"data:" not in await asyncio.wait_for(events.read(), DEADLINE_SECONDS)
        live.post("/peers", name="ann", path="/srv/ann")
        while b"peer.registered" not in await asyncio.wait_for(own.content.readline(), DEADLINE_SECONDS):
            pass


# -- files -------------------------------------------------------------------------


def test_every_file_of_the_home_is_ours_alone(new_live: Callable[..., Live]) -> None:
    """Whatever the umask of whoever starts it."""
    live = new_live()
    before = os.umask(0)
    try:
        live.start(REPOWIRE_LEDGER__SEGMENT_BYTES="65536")
        live.cli("token", "--rotate")
    finally:
        os.umask(before)
    live.post("/peers", name="ann", path="/srv/ann")
    for _ in range(5):
        live.post("/notify", to_peer="ann", text="x" * 30_000)
    paths = [live.home, *live.home.rglob("*")]
    assert len([path for path in paths if path.name.startswith("trace-")]) > 1
    for path in paths:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:04o}"


def test_a_home_behind_a_link_is_refused(new_live: Callable[..., Live]) -> None:
    live = new_live()
    (live.folder / "elsewhere").mkdir(mode=0o700)
    live.home.symlink_to(live.folder / "elsewhere")
    done = live.cli("daemon", "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "symbolic link" in done.stderr
    assert list((live.folder / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["state.db", "daemon.lock", "token", "traces/trace-000001.jsonl"])
def test_a_file_behind_a_link_is_refused(new_live: Callable[..., Live], name: str) -> None:
    """A link in the home could make the daemon write over anything of its user."""
    live = new_live()
    live.home.mkdir(mode=0o700)
    (live.home / name).parent.mkdir(mode=0o700, exist_ok=True)
    target = live.folder / "precious"
    target.write_text("precious")
    (live.home / name).symlink_to(target)
    done = live.cli("daemon", "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert Path(name).name in done.stderr
    assert target.read_text() == "precious"


# -- other users -------------------------------------------------------------------

STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(sys.argv[1])
except PermissionError:
    print("shut")
else:
    link.sendall(b"GET /peers HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
    raw = b""
    while chunk := link.recv(65536):
        raw += chunk
    print(raw.decode())
"""


def as_stranger(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER, str(path)],
        capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out_of_the_socket(live: Live) -> None:
    """By the modes of the files; and where somebody opened those, by who the kernel says he is."""
    assert as_stranger(live.home / "daemon.sock") == "shut\n"
    for path in (live.home, live.folder, live.folder.parent):
        path.chmod(0o755)
    (live.home / "daemon.sock").chmod(0o666)
    answered = as_stranger(live.home / "daemon.sock")
    assert answered.startswith("HTTP/1.1 403 "), answered
    assert "forbidden_user" in answered
    assert live.cli("peer", "list").returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_home_of_another_user_is_refused(new_live: Callable[..., Live]) -> None:
    live = new_live()
    live.home.mkdir(mode=0o700)
    os.chown(live.home, 65534, 65534)
    done = live.cli("daemon", "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "another user" in done.stderr
    assert until(lambda: list(live.home.iterdir()) == [])


# -- what an agent started ---------------------------------------------------------


def test_what_an_agent_left_running_is_still_that_agents(live: Live) -> None:
    ann = live.post("/peers", name="ann", metadata={"hook_session_id": "s-1"})["display_name"]

    def whoami(**environ: str) -> str:
        done = live.cli("peer", "whoami", "--json", **environ)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return str(said["peer"]["display_name"] if said["kind"] == "agent" else said["kind"])

    assert whoami(CLAUDE_CODE_SESSION_ID="s-1") == ann
    assert whoami(CLAUDE_CODE_SESSION_ID="s-2") == "human"
    assert whoami() == "human"
    live.post("/peers/ann/offline", terminal=True)
    assert whoami(CLAUDE_CODE_SESSION_ID="s-1") == "human", "its session is over, and a tmux that it began may live on"
