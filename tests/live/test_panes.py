"""ws-hook against a real daemon's way of speaking, a real tmux and a real Claude Code without an inbox.

The daemon here is a small server that says which panes are wanted and takes the sockets, so that each step can be held.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from claude.driver import Claude, User
from claude.model import Model, tool
from conftest import TmuxServer, until, until_async

from repowire.procs import Procs
from repowire.protocol import CLOSE_RETIRED

pytestmark = pytest.mark.live
VERSIONS = ("2.1.330", "2.1.197")


class Town:
    """What a daemon says to ws-hook, on the home's socket."""

    def __init__(self, home: Path) -> None:
        self.home, self.rows = home, list[dict[str, Any]]()
        self.heard: list[dict[str, Any]] = []
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.changed = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}  # of ws-hook, besides our own

    async def open(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/panes/hosted", self.hosted), web.get("/ws", self.ws)])
        self.runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.home / "daemon.sock")).start()

    async def close(self) -> None:
        """Be gone, sockets and all, until `open`."""
        await self.runner.cleanup()

    async def hosted(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            self.changed.clear()
            await response.write(json.dumps({"panes": self.rows}).encode() + b"\n")
            await self.changed.wait()

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        hello = await socket.receive_json()
        await socket.send_json(
            {"type": "connected", "session_id": hello["peer_id"], "display_name": hello["display_name"]}
        )
        self.sockets[hello["peer_id"]] = socket
        async for message in socket:
            self.heard.append({"peer": hello["peer_id"], **json.loads(message.data)})
        return socket

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "repowire", "ws-hook", "--home", str(self.home)],
            stderr=(self.home / "ws-hook.log").open("ab"),
            env={**os.environ, **self.environ},
        )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    async def host(self, claude: Claude, name: str = "ann") -> None:
        """Want this Claude's pane, and wait for its socket."""
        registry = claude.user.home / ".claude/sessions" / f"{claude.pid}.json"
        await self.host_pane(claude.tmux, claude.pane, claude.pid, claude.project, registry, name)

    async def host_pane(
        self, tmux: TmuxServer, pane: str, pid: int, project: Path, registry: Path, name: str = "ann"
    ) -> None:
        procs = Procs(lambda pid, started: None)
        server = int(tmux.run("display-message", "-p", "#{pid}"))
        self.rows.append(
            {"peer_id": f"p-{name}", "display_name": name, "backend": "claude-code", "circle": "default"}
            | {"path": str(project), "pane_id": pane, "tmux": str(tmux.socket), "registry": str(registry)}
            | {"server_pid": server, "server_started": procs.started(server), "agent_pid": pid}
            | {"agent_started": procs.started(pid)}
        )
        self.changed.set()
        await until_async(lambda: f"p-{name}" in self.sockets)

    async def send(self, text: str, number: int = 1, name: str = "ann") -> str:
        delivery_id = f"notif-delivery-{number:012x}"
        frame = {"type": "notify", "delivery_id": delivery_id, "from_peer": "ben", "to_peer": name, "text": text}
        await self.sockets[f"p-{name}"].send_json(frame)
        return delivery_id

    def receipts(self, delivery_id: str) -> list[tuple[str, str | None]]:
        return [(one["status"], one.get("detail")) for one in self.heard if one.get("delivery_id") == delivery_id]


@pytest.fixture
async def town(short_folder: Path) -> AsyncIterator[Town]:
    (short_folder / "home").mkdir(mode=0o700)
    town = Town(short_folder / "home")
    await town.open()
    town.start()
    yield town
    town.kill()
    await town.close()


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as model:
        yield model


@pytest.fixture
def new_claude(tmux: TmuxServer, short_folder: Path, model: Model) -> Iterator[Callable[..., Claude]]:
    made: list[Claude] = []
    user = User(short_folder, model)

    def build(version: str, name: str = "ann", **more: Any) -> Claude:
        made.append(Claude(tmux, user, name, version))
        return made[-1].start(**more)

    yield build
    for claude in made:
        claude.kill()


def heard(claude: Claude, needle: str) -> int:
    """How many prompts of its transcript have these words."""
    files = (claude.user.home / ".claude" / "projects").glob("*/*.jsonl")
    lines = [
        json.loads(line) for file in files for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
    return sum(line.get("type") == "user" and needle in json.dumps(line["message"]) for line in lines)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "text", ["hello", "many\n" * 40 + "lines", "x" * 9_000, "Enter", "-X", "a;"], ids=lambda text: text[:5]
)
async def test_a_message_is_pasted_submitted_and_heard_once(
    town: Town, new_claude: Callable[..., Claude], version: str, text: str
) -> None:
    claude = new_claude(version)
    await town.host(claude)
    sent = await town.send(text)
    await until_async(lambda: town.receipts(sent))
    assert town.receipts(sent) == [("injected", None)]
    await until_async(lambda: heard(claude, f"#{sent}"))
    await town.send(text)  # the daemon is not sure, and says it again
    await until_async(lambda: len(town.receipts(sent)) == 2)
    assert town.receipts(sent)[1] == ("injected", None)
    assert heard(claude, f"#{sent}") == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_draft_is_left_alone_and_the_message_waits(
    town: Town, new_claude: Callable[..., Claude], version: str
) -> None:
    claude = new_claude(version)
    await town.host(claude)
    claude.draft("half a thought")
    sent = await town.send("hello")
    await until_async(lambda: town.receipts(sent))
    assert town.receipts(sent) == [("held", "draft")]
    assert claude.box() == "half a thought"
    claude.keys("C-u")
    await until_async(lambda: {"peer": "p-ann", "type": "ready"} in town.heard)
    await town.send("hello")
    await until_async(lambda: ("injected", None) in town.receipts(sent))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_permission_dialog_is_never_answered(
    town: Town, new_claude: Callable[..., Claude], model: Model, version: str
) -> None:
    claude = new_claude(version, bypass=False)
    await town.host(claude)
    model.on("^touch it", tool("Bash", command="touch made-by-enter; curl -s x", description="d"), "done")
    claude.type("touch it")
    await until_async(lambda: claude.status() == "waiting")
    sent = await town.send("hello")
    await until_async(lambda: town.receipts(sent))
    assert town.receipts(sent) == [("held", "dialog_open")]
    assert claude.status() == "waiting"
    assert not (claude.project / "made-by-enter").exists()


async def test_after_kill_9_a_text_that_stands_in_the_box_is_submitted_and_not_pasted_again(
    town: Town, new_claude: Callable[..., Claude]
) -> None:
    claude = new_claude("2.1.197")
    await town.host(claude)
    town.kill()
    delivery_id = f"notif-delivery-{1:012x}"
    journal = town.home / "ws-hook" / "journal.jsonl"
    journal.write_text(json.dumps({"id": delivery_id, "state": "pasting", "code": "7f3a"}) + "\n")
    block = (
        f"[repowire 7f3a] @ben → @ann · notify #{delivery_id}\nhello\n[/repowire 7f3a] from a peer agent, not your user"
    )
    claude.tmux.run("load-buffer", "-b", "x", "-", stdin=block.encode())
    claude.tmux.run("paste-buffer", "-p", "-r", "-d", "-b", "x", "-t", claude.pane)
    until(lambda: "7f3a" in (claude.box() or ""))
    town.sockets.clear()
    town.start()
    await until_async(lambda: "p-ann" in town.sockets)
    await town.send("hello")
    await until_async(lambda: town.receipts(delivery_id))
    assert town.receipts(delivery_id) == [("injected", None)]
    await until_async(lambda: heard(claude, f"#{delivery_id}"))
    assert heard(claude, "[repowire 7f3a]") == heard(claude, f"#{delivery_id}") == 1


async def test_after_kill_9_a_text_that_nobody_finds_is_neither_pasted_nor_receipted(
    town: Town, new_claude: Callable[..., Claude]
) -> None:
    claude = new_claude("2.1.197")
    await town.host(claude)
    town.kill()
    lost = f"notif-delivery-{1:012x}"
    (town.home / "ws-hook" / "journal.jsonl").write_text(
        f'{{"id": "{lost}", "state": "pasting", "code": "7f3a"}}\n{{"id"'
    )
    town.sockets.clear()
    town.start()
    await until_async(lambda: "p-ann" in town.sockets)
    await town.send("hello")
    after = await town.send("the next one", 2)
    await until_async(lambda: town.receipts(after))
    assert town.receipts(lost) == []
    assert heard(claude, lost) == 0


# -- kill -9 at each step of a paste ---------------------------------------------------

KILLER = """#!/bin/sh
# tmux to ws-hook, which kills it at one step, once
step=$(cat {folder}/step 2>/dev/null)
it_ends() {{ rm -f {folder}/step; kill -9 $PPID; exit 1; }}
case "$*|$step" in
*load-buffer*"|before load") it_ends ;;
*load-buffer*"|after load") {tmux} -u -S "$3" load-buffer -b "$6" -; it_ends ;;
*load-buffer*"|after paste") {tmux} "$@"; it_ends ;;
*send-keys*"|before Enter") it_ends ;;
*send-keys*"|after Enter") {tmux} "$@"; it_ends ;;
*send-keys*"|before the receipt") {tmux} "$@"; rm -f {folder}/step; until [ -e {folder}/go ]; do sleep 0.01; done ;;
*) exec {tmux} "$@" ;;
esac
"""
FAKE_BOX = Path(__file__).parent.parent / "fake_box.py"
NEVER_PASTED = ("before load", "after load")


class Box:
    """The pane of `fake_box.py`."""

    def __init__(self, tmux: TmuxServer, folder: Path) -> None:
        self.record, self.registry = folder / "record", folder / "registry.json"
        self.registry.write_text(json.dumps({"status": "idle"}))
        self.pane = tmux.window(sys.executable, str(FAKE_BOX), str(self.record), cwd=folder)
        self.pid = tmux.pid(self.pane)
        until(Path(f"{self.record}.ready").exists)

    def times(self, words: bytes) -> int:
        """How often these bytes came in."""
        return self.record.read_bytes().count(words)


@pytest.fixture
async def killed(short_folder: Path, tmux: TmuxServer, town: Town) -> tuple[Town, Box, Path]:
    """A town whose ws-hook dies at the step that is written into the file."""
    folder = short_folder / "bin"
    folder.mkdir()
    program = folder / "tmux"
    program.write_text(KILLER.format(folder=folder, tmux=shutil.which("tmux")))
    program.chmod(0o755)
    town.kill()
    town.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    town.start()
    box = Box(tmux, short_folder)
    await town.host_pane(tmux, box.pane, box.pid, short_folder, box.registry)
    return town, box, folder


@pytest.mark.parametrize(
    "step", [*NEVER_PASTED, "after paste", "before Enter", "after Enter", "before the receipt", "no kill at all"]
)
async def test_killed_at_any_step_it_types_no_text_twice_and_knows_what_it_did(
    killed: tuple[Town, Box, Path], step: str
) -> None:
    town, box, folder = killed
    (folder / "step").write_text(step)
    sent = await town.send("once and no more")
    if step == "before the receipt":
        await until_async(lambda: box.times(b"\r") == 1)
        await town.sockets["p-ann"].close()  # so that there is nobody to tell
        (folder / "go").touch()
        await until_async(lambda: '"injected"' in (town.home / "ws-hook" / "journal.jsonl").read_text())
        town.kill()
    assert town.process is not None
    if step != "no kill at all":
        await until_async(lambda: town.process.poll() is not None)
        town.sockets.clear()
        town.start()
        await until_async(lambda: "p-ann" in town.sockets)
        await town.send("once and no more")  # as the daemon does, to one that remembers
    next_one = await town.send("the next one", 2)
    await until_async(lambda: town.receipts(next_one))
    assert town.receipts(next_one) == [("injected", None)]
    pasted = step not in NEVER_PASTED
    assert town.receipts(sent) == ([("injected", None)] if pasted else []), "nobody knows, and nothing is said"
    assert box.times(b"once and no more") == pasted
    assert box.times(b"\r") == box.times(b"\x1b[200~") == 1 + pasted
    assert box.times(b"the next one") == 1


@pytest.mark.parametrize("how", ["its pane is wanted no more", "it is ended"])
async def test_when_it_leaves_what_was_begun_is_sent_off_and_the_rest_given_back(
    town: Town, new_claude: Callable[..., Claude], how: str
) -> None:
    claude = new_claude("2.1.197")
    await town.host(claude)
    first, *rest = [await town.send("hello", number) for number in (1, 2, 3)]
    await until_async(lambda: first in (town.home / "ws-hook" / "journal.jsonl").read_text())
    if how == "it is ended":
        assert town.process is not None
        town.process.terminate()
    else:
        town.rows.clear()
        town.changed.set()
    await until_async(lambda: town.receipts(rest[-1]))
    assert [town.receipts(one) for one in (first, *rest)] == [[("injected", None)], *[[("held", "pane_left")]] * 2]
    await until_async(lambda: heard(claude, f"#{first}") == 1)
    await until_async(lambda: town.sockets["p-ann"].closed)
    assert [heard(claude, f"#{one}") for one in rest] == [0, 0]


async def test_what_was_begun_is_sent_off_though_the_daemon_ends_the_peer(
    town: Town, new_claude: Callable[..., Claude]
) -> None:
    claude = new_claude("2.1.197")
    await town.host(claude)
    first, *rest = [await town.send("hello", number) for number in (1, 2, 3)]
    journal = town.home / "ws-hook" / "journal.jsonl"
    await until_async(lambda: first in journal.read_text())
    await town.sockets["p-ann"].close(code=CLOSE_RETIRED)
    await until_async(lambda: heard(claude, f"#{first}") == 1)
    await until_async(lambda: "is served no more" in (town.home / "ws-hook.log").read_text())
    assert '"injected"' in journal.read_text()
    assert [one in journal.read_text() for one in rest] == [False, False]
    assert [heard(claude, f"#{one}") for one in rest] == [0, 0]


async def test_however_long_the_daemon_was_away_it_is_back_at_once(
    town: Town, new_claude: Callable[..., Claude]
) -> None:
    claude = new_claude("2.1.197")
    await town.host(claude)
    await town.close()
    tries, log = "ann: no daemon answers", town.home / "ws-hook.log"
    await until_async(lambda: log.read_text().count(tries) >= 5)  # with 1, 2, 4 … s in between: half a minute
    town.sockets.clear()
    await town.open()
    await until_async(lambda: "p-ann" in town.sockets, 3)
    sent = await town.send("hello")
    await until_async(lambda: heard(claude, f"#{sent}") and town.receipts(sent))
    assert town.receipts(sent) == [("injected", None)]


def a_second_one(home: Path) -> int:
    return subprocess.run([sys.executable, "-m", "repowire", "ws-hook", "--home", str(home)], check=False).returncode


def resident_kib(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)]))


async def test_only_one_of_a_home(town: Town) -> None:
    journal = town.home / "ws-hook" / "journal.jsonl"
    await until_async(journal.exists)
    assert a_second_one(town.home) == 75
    assert journal.stat().st_mode & 0o777 == 0o600


async def test_it_is_small(town: Town, new_claude: Callable[..., Claude]) -> None:
    await town.host(new_claude("2.1.197"))
    sent = await town.send("hello")
    await until_async(lambda: town.receipts(sent))
    assert town.process is not None
    assert resident_kib(town.process.pid) <= 45 << 10
