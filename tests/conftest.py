"""The fixtures that carry almost every test: `clock`, `mesh`, `api`, `live` and `tmux` (and `new_mesh` for several).

Nothing here waits for a duration or guesses a port: what must become true is waited for with a deadline (`until`),
ports are given out by the system, and whatever a fixture started it ends itself, by its own id.
"""

import asyncio
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from repowire.clock import Clock

T = TypeVar("T")
DEADLINE_SECONDS = 10.0
STEP_SECONDS = 0.01
TOKEN = "token-of-the-tests"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background; what we start is to hear of Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def until(condition: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """Look until the condition gives something true and return that; fail when the deadline passes."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(STEP_SECONDS)
    return found


async def until_async(condition: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """`until` for a test on the loop, which runs on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(STEP_SECONDS)
    return found


# -- clock --------------------------------------------------------------------


class FakeClock:
    """A clock that stands still until the test moves it; sleepers wake in the order of their moments."""

    def __init__(self, at: float = 1_750_000_000.0) -> None:
        self._now = at
        self._passed = 1_000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._passed

    def set_back_or_forward(self, seconds: float) -> None:
        """Somebody sets the clock: it shows another time, and none has passed."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        due, woken = self._now + seconds, asyncio.Event()
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self._sleepers.append((due, woken))
        try:
            await woken.wait()
        finally:
            self._sleepers.remove((due, woken))

    def advance(self, seconds: float) -> None:
        """Move on; whoever sleeps until then runs at the test's next await."""
        self._now += seconds
        self._passed += seconds
        for due, woken in sorted(self._sleepers, key=lambda sleeper: sleeper[0]):
            if due <= self._now:
                woken.set()

    @property
    def sleeping(self) -> int:
        """How many sleep now, so that a test can wait for a loop to have come to rest."""
        return len(self._sleepers)


@pytest.fixture(scope="session", autouse=True)
def no_tmux_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever looks for the user's tmux servers finds an empty folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMUX_TMPDIR", str(tmp_path_factory.mktemp("tmux")))
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# -- mesh: rules on a real store, without HTTP --------------------------------


@pytest.fixture
async def new_mesh() -> AsyncIterator[Callable[..., Any]]:
    """`new_mesh(home, clock, REPOWIRE_DAEMON__ASK_TTL_SECONDS="60")`: a mesh over `home`; all are closed at the end."""
    from repowire import config, daemon

    opened: list[Any] = []

    def build(home: Path, clock: Clock, **environ: str) -> Any:
        settings = {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN, **environ}
        config.prepare_home(home)
        opened.append(daemon.open_mesh(config.load(home, settings), clock))
        return opened[-1]

    yield build
    for mesh in reversed(opened):
        close(mesh)


def close(mesh: Any) -> None:
    """Let go of the mesh's files and watches, as the daemon does when it stops. A second call changes nothing."""
    mesh.commit()
    mesh.procs.close()
    mesh.db.close()
    mesh.ledger.close()


@pytest.fixture
async def mesh(new_mesh: Callable[..., Any], tmp_path: Path, clock: FakeClock) -> Any:
    """Real SQLite and ledger in `tmp_path`, a clock that stands still."""
    return new_mesh(tmp_path / "home", clock)


# -- api: the wire, in this process -------------------------------------------


class Answer(NamedTuple):
    """What came back; `json` is None when the body is not JSON."""

    status: int
    headers: Any
    body: bytes
    json: Any


def answer(status: int, headers: Any, body: bytes) -> Answer:
    is_json = "json" in (headers.get("Content-Type") or "")
    return Answer(status, headers, body, json.loads(body) if is_json else None)


class Socket:
    """A peer on /ws, after its handshake."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, connected: dict[str, Any]) -> None:
        self.socket, self.connected = socket, connected
        self.peer_id: str = connected["session_id"]

    async def next(self, seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """The next frame."""
        frame: dict[str, Any] = await self.socket.receive_json(timeout=seconds)
        return frame

    async def send(self, type: str, /, **fields: Any) -> None:
        await self.socket.send_json({"type": type, **fields})

    async def receipt(self, frame: dict[str, Any], status: str = "injected", **fields: Any) -> None:
        """Say what became of an ask or a notify."""
        await self.send(
            "delivery_ack",
            delivery_id=frame["delivery_id"],
            message_type=frame["type"],
            status=status,
            **fields,
        )

    async def close(self) -> None:
        await self.socket.close()


class Api:
    """An HTTP client of the app; carries the token unless told otherwise, and returns the parsed body."""

    def __init__(self, client: TestClient[Any, Any], mesh: Any, token: str) -> None:
        self.client, self.mesh, self.token = client, mesh, token

    async def request(
        self,
        method: str,
        path: str,
        /,
        *,
        token: str | None = "",
        headers: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
        **sent: Any,
    ) -> Answer:
        """Any request: `json=` or `data=` as aiohttp takes them; `token=None` sends none."""
        bearer = {} if token is None else {"Authorization": f"Bearer {token or self.token}"}
        async with self.client.request(
            method, path, params=query, headers={**bearer, **(headers or {})}, **sent
        ) as response:
            return answer(response.status, response.headers, await response.read())

    async def get(self, path: str, /, *, expect: int = 200, **query: Any) -> Any:
        """The JSON of a GET; `expect` is the status that must come."""
        return self._expected(await self.request("GET", path, query=query), expect)

    async def post(self, path: str, /, *, expect: int = 200, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """The JSON of a POST whose fields are the keyword arguments."""
        return self._expected(await self.request("POST", path, json=body, headers=headers), expect)

    async def delete(self, path: str, /, *, expect: int = 200, **query: Any) -> Any:
        return self._expected(await self.request("DELETE", path, query=query), expect)

    async def connect(self, display_name: str, **fields: Any) -> Socket:
        """A peer's socket, connected; `fields` go into the first frame."""
        socket = await self.client.ws_connect("/ws", headers={"Authorization": f"Bearer {self.token}"})
        await socket.send_json({"type": "connect", "display_name": display_name, **fields})
        first = await socket.receive_json(timeout=DEADLINE_SECONDS)
        assert first["type"] == "connected", first
        return Socket(socket, first)

    @staticmethod
    def _expected(got: Answer, status: int) -> Any:
        assert got.status == status, f"{got.status}, not {status}: {got.body[:500]!r}"
        return got.json


@pytest.fixture
async def new_api(new_mesh: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """`await new_api(mesh)`: an `Api` over that mesh's app, with its loops running; all end before the meshes do."""
    clients: list[TestClient[Any, Any]] = []
    loops: list[asyncio.Task[None]] = []

    async def build(mesh: Any) -> Api:
        from repowire import daemon

        server = TestServer(daemon.build_app(mesh), host="127.0.0.1")
        patience = aiohttp.ClientTimeout(total=3 * DEADLINE_SECONDS)
        client = TestClient(server, cookie_jar=aiohttp.DummyCookieJar(), timeout=patience)
        await client.start_server()
        clients.append(client)
        mesh.auth.bind("127.0.0.1", server.port)
        loops.extend(asyncio.create_task(run(mesh), name=name) for name, run in daemon.loops(client.app))
        return Api(client, mesh, mesh.config.daemon.auth_token)

    yield build
    crashed = [task for task in loops if task.done()]
    for task in loops:
        task.cancel()
    ended = await asyncio.gather(*loops, return_exceptions=True)
    for client in reversed(clients):
        await client.close()
    assert not crashed, f"loops ended by themselves: {[(t.get_name(), e) for t, e in zip(loops, ended, strict=True)]}"


@pytest.fixture
async def api(new_api: Callable[..., Any], mesh: Any) -> Api:
    return await new_api(mesh)


@pytest.fixture(params=["each", "shared"])
async def both(request: pytest.FixtureRequest, new_api: Callable[..., Any], mesh: Any) -> Api:
    """`api` twice: each change committed by itself, and those of one turn together, as the real daemon does."""
    mesh.shared = request.param == "shared"
    return await new_api(mesh)


# -- live: the daemon as a process --------------------------------------------


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe to write into, whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path: a Unix socket's address holds about 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Live:
    """A daemon in a process of its own, on a port that the system gave it. `start` again reuses the home."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("REPOWIRE_")}
        self.environ.pop("COLUMNS", None)  # what the command line prints is read whole, as in a pipe
        self.environ |= {"REPOWIRE_HOME": str(self.home), "HOME": str(folder), "NO_COLOR": "1"}
        self.environ["TMUX_TMPDIR"] = str(folder)  # the user's own tmux is none of ours
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def start(self, *arguments: str, **environ: str) -> Self:
        """Start and wait for the ready line; `environ` adds to the daemon's environment."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        with (self.folder / "daemon.err").open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "repowire", "daemon", "--port", "0", "--json", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**self.environ, **environ},
            )
        self.ready = json.loads(self._first_line())
        assert self.ready["ready"] is True, self.ready
        return self

    def _first_line(self, seconds: float = 20.0) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], (), (), max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65_536) if readable else b""
            assert chunk, f"no ready line; stdout {line!r}, stderr:\n{self.stderr()}"
            line += chunk
        return line

    def stderr(self) -> str:
        """What the daemon wrote there so far, over all its starts."""
        return (self.folder / "daemon.err").read_text(errors="replace")

    @property
    def port(self) -> int:
        return int(self.ready["port"])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def token(self) -> str:
        return (self.home / "token").read_text().strip()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def term(self, seconds: float = 15.0) -> int:
        """SIGTERM; the exit status."""
        return self._end(signal.SIGTERM, seconds)

    def _end(self, number: signal.Signals, seconds: float = 15.0) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(seconds)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # requests over TCP, with the standard library alone

    def request(
        self,
        method: str,
        path: str,
        /,
        *,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = "",
        seconds: float = 15.0,
    ) -> Answer:
        """One request on a connection of its own; `token=None` sends none."""
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token or self.token}")
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, /, *, expect: int = 200) -> Any:
        return self._expected(self.request("GET", path), expect)

    def post(self, path: str, /, *, expect: int = 200, **body: Any) -> Any:
        return self._expected(self.request("POST", path, body=body), expect)

    @staticmethod
    def _expected(got: Answer, status: int) -> Any:
        assert got.status == status, f"{got.status}, not {status}: {got.body[:500]!r}"
        return got.json

    # the command line, in the same home

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "repowire", *arguments]

    def cli(
        self,
        *arguments: str,
        stdin: str = "",
        stdout: int = subprocess.PIPE,
        seconds: float = 20.0,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run `repowire ARGUMENTS` to its end."""
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=seconds,
            env={**self.environ, **environ},
            check=False,
        )


@pytest.fixture
def new_live(short_folder: Path) -> Iterator[Callable[..., Live]]:
    """`new_live("second")`: a daemon that is not started yet, in a home of its own; all are ended at the end."""
    made: list[Live] = []

    def build(name: str = "one") -> Live:
        folder = short_folder / name
        folder.mkdir()
        made.append(Live(folder))
        return made[-1]

    yield build
    for daemon in made:
        daemon.close()
    left = end_daemons(short_folder)
    assert not left, f"the test left daemons behind: {left}"


def end_daemons(folder: Path) -> list[str]:
    """Kill the daemons with a home in that folder, and who starts one; the command lines of those that ran."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if "daemon" in words and any(word.startswith(f"{folder}/") for word in words):
                os.kill(int(entry.parent.name), signal.SIGKILL)
                found.append(" ".join(words))
    return found


@pytest.fixture
def live(new_live: Callable[..., Live]) -> Live:
    return new_live().start()


# -- tmux: a real server of our own -------------------------------------------


@dataclass
class TmuxServer:
    """A tmux server on a private socket, without anybody's configuration."""

    socket: Path
    environ: dict[str, str]

    def run(self, *arguments: str, stdin: bytes | None = None) -> str:
        """One tmux command; its output without the last newline. After `kill-server` the server is gone.

        A client that comes while it goes meets it, and is told that it exited unexpectedly.
        """
        ending = int(self.run("display-message", "-p", "#{pid}")) if arguments == ("kill-server",) else None
        done = subprocess.run(
            ["tmux", "-S", str(self.socket), "-f", "/dev/null", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            env=self.environ,
            check=False,
        )
        assert done.returncode == 0, f"tmux {arguments}: {done.stderr.decode(errors='replace')}"
        if ending is not None:
            until(lambda: gone(ending))
        return done.stdout.decode(errors="replace").removesuffix("\n")

    def window(self, *command: str, cwd: Path | None = None, **environ: str) -> str:
        """Open a window that runs the command; its pane id."""
        settings = [part for key, value in environ.items() for part in ("-e", f"{key}={value}")]
        where = ["-c", str(cwd)] if cwd else []
        return self.run("new-window", "-d", "-P", "-F", "#{pane_id}", *where, *settings, *command)

    def screen(self, pane: str) -> str:
        """What the pane shows, history included."""
        return self.run("capture-pane", "-p", "-J", "-S", "-", "-t", pane)

    def pid(self, pane: str) -> int:
        return int(self.run("display-message", "-p", "-t", pane, "#{pane_pid}"))


def gone(pid: int) -> bool:
    """No such process, or only its remains."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:  # also while its file is read
        return True
    except FileNotFoundError:  # no /proc here, or it went meanwhile
        return Path("/proc/self").exists()


@pytest.fixture
def tmux(short_folder: Path) -> Iterator[TmuxServer]:
    """One session `main` of 200 x 50; the server is gone after the test, also after a failure."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    server = TmuxServer(short_folder / "tmux", {**environ, "TERM": "xterm-256color"})
    server.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
    pid = int(server.run("display-message", "-p", "#{pid}"))
    yield server
    with_server = ["tmux", "-S", str(server.socket), "kill-server"]
    subprocess.run(with_server, capture_output=True, env=server.environ, check=False)
    until(lambda: gone(pid))
