"""`repowire mcp` as an agent runs it: with the published MCP client, and over its bare pipes."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import DEADLINE_SECONDS, Live, gone, until
from hookserver import Server

from repowire import config
from repowire.mcp_tools import TOOLS

pytestmark = pytest.mark.live

SHIM = Path(__file__).parent.parent.parent / "repowire" / "mcp_stdio.py"


class Agent:
    """A process that speaks MCP to a shim over two pipes."""

    def __init__(self, environ: dict[str, str], *arguments: str, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SHIM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            cwd=cwd,
            bufsize=0,
        )
        self.left = b""

    def write(self, raw: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(raw)

    def send(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}, **more}).encode() + b"\n")

    def next(self, seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """The next message of the shim."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self.left:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65_536) if ready else b""
            assert piece, "nothing came"
            self.left += piece
        line, _, self.left = self.left.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        self.send(method, params, **{"id": 1, **more})
        return self.next()

    def call(self, tool: str, /, **arguments: Any) -> str:
        """The text of a tool that succeeds."""
        return self.text(self.ask("tools/call", {"name": tool, "arguments": arguments}))

    @staticmethod
    def text(answer: dict[str, Any], *, error: bool = False) -> str:
        assert answer["result"]["isError"] is error, answer
        text: str = answer["result"]["content"][0]["text"]
        return text

    def silent(self) -> bool:
        """Whether nothing has come."""
        return not self.left and not select.select([self.process.stdout], [], [], 0)[0]

    def leave(self) -> tuple[int, bytes]:
        """Close stdin as a client does; the exit code and what stood on stderr."""
        _, said = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, said


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """`agent(live, "session-1")`: a shim whose agent has that session id, in a folder of its own."""
    made: list[Agent] = []

    def build(live: Live, session: str = "", **environ: str) -> Agent:
        folder = tmp_path / (session or "nobody")
        folder.mkdir(exist_ok=True)
        facts = {"CLAUDE_CODE_SESSION_ID": session} if session else {}
        clean = {key: value for key, value in live.environ.items() if not key.startswith(("TMUX", "CLAUDE"))}
        made.append(Agent({**clean, **facts, **environ}, cwd=folder))
        return made[-1]

    yield build
    for one in made:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def no_daemon(new_live: Callable[..., Live]) -> Iterator[Live]:
    """A home without a daemon; one that was started in it is ended."""
    live = new_live()
    live.home.mkdir(mode=0o700)
    live.environ |= {"REPOWIRE_DAEMON__PORT": "0"}
    yield live
    live.cli("daemon", "stop")


def name_of(table: str) -> str:
    return table.split("\n")[1].split("\t")[1]


# -- with the published client ---------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_published_client_finds_and_calls_the_tools(live: Live, mode: str) -> None:
    mcp = pytest.importorskip("mcp")
    stdio = pytest.importorskip("mcp.client.stdio")
    server = mcp.StdioServerParameters(command=sys.executable, args=["-m", "repowire", "mcp"], env=live.environ)
    async with asyncio.timeout(3 * DEADLINE_SECONDS):
        async with mcp.Client(stdio.stdio_client(server), mode=mode) as client:
            assert client.server_info.name == "repowire"
            listed = await client.list_tools()
            assert "wait_on_ack" in [tool.name for tool in listed.tools]
            mine = await client.call_tool("whoami", {})
            assert (mine.is_error, name_of(mine.content[0].text)) == (False, "human")
            wrong = await client.call_tool("ask", {"peer_name": "nobody", "query": "x"})
            assert wrong.is_error
            assert "nobody" in wrong.content[0].text


async def test_the_published_client_over_http(live: Live) -> None:
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")
    httpx = pytest.importorskip("httpx2")
    headers = {"Authorization": f"Bearer {live.token}"}
    async with asyncio.timeout(3 * DEADLINE_SECONDS):
        async with httpx.AsyncClient(headers=headers) as links:
            way = http.streamable_http_client(f"http://127.0.0.1:{live.port}/mcp", http_client=links)
            async with mcp.Client(way) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == list(TOOLS)
                assert name_of((await client.call_tool("whoami", {})).content[0].text) == "human"


# -- two agents -----------------------------------------------------------------


def test_a_waiting_tool_holds_up_nothing_else(live: Live, agent: Callable[..., Agent]) -> None:
    ann, ben = agent(live, "ann"), agent(live, "ben")
    assert (name_of(ann.call("whoami")), name_of(ben.call("whoami"))) == ("ann", "ben")
    asked = ann.call("ask", peer_name="ben", query="ready?", if_offline="queue")
    ann.send("tools/call", {"name": "wait_on_ack", "arguments": {"correlation_id": asked}}, id="waits")
    ann.send("ping", id="a")
    ann.send("tools/call", {"name": "list_peers", "arguments": {}}, id="b")
    assert sorted(ann.next()["id"] for _ in range(2)) == ["a", "b"]
    assert ben.call("ack", correlation_id=asked, message="line\nbreak ✓") == f"acked #{asked} with reply"
    waited = ann.next()
    assert waited["id"] == "waits"
    assert json.loads(ann.text(waited))["reply"] == "line\nbreak ✓"


def test_a_cancelled_call_is_never_answered_and_its_reply_comes_as_a_message(
    live: Live, agent: Callable[..., Agent]
) -> None:
    ann, ben = agent(live, "ann"), agent(live, "ben")
    ann.call("whoami"), ben.call("whoami")
    asked = ann.call("ask", peer_name="ben", query="ready?", if_offline="queue")
    ann.send("tools/call", {"name": "wait_on_ack", "arguments": {"correlation_id": asked}}, id="waits")
    assert ann.ask("ping")["result"] == {}
    ann.send("notifications/cancelled", {"requestId": "waits"})
    ann.ask("ping")
    ben.call("ack", correlation_id=asked, message="yes")
    (mail,) = until(lambda: live.get("/deliveries/pending?peer_id=ann")["deliveries"])
    assert mail["text"].endswith("yes")
    ann.ask("ping")
    assert ann.silent()
    assert live.get("/asks/history?peer_id=ann&state=answered")["asks"][0]["reply"] == "yes"


# -- the daemon comes and goes -----------------------------------------------------


def test_a_daemon_that_is_down_is_started_and_not_as_our_child(no_daemon: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(no_daemon, "ann", TMUX="/tmp/t,1,0", ANTHROPIC_API_KEY="secret")
    assert ann.ask("initialize", {"protocolVersion": "2025-11-25"})["result"]["serverInfo"]["name"] == "repowire"
    pid = (config.read_lock(no_daemon.home) or {})["pid"]
    assert ann.leave() == (0, b"")
    assert not gone(pid)
    if Path("/proc").exists():
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[1]) not in (ann.process.pid, os.getpid())
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"ANTHROPIC" not in environ
        assert b"TMUX" not in environ
        assert b"CLAUDE" not in environ


def test_several_agents_that_start_at_once_get_one_daemon(no_daemon: Live, agent: Callable[..., Agent]) -> None:
    agents = [agent(no_daemon, f"a{number}") for number in range(4)]
    for one in agents:
        one.send("tools/call", {"name": "whoami", "arguments": {}}, id=1)
    assert sorted(name_of(one.text(one.next(30))) for one in agents) == ["a0", "a1", "a2", "a3"]


def test_a_restart_between_two_calls_is_not_noticed(live: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(live, "ann")
    first = ann.call("whoami")
    live.term()
    live.start()
    assert ann.call("whoami").split("\t")[:14] == first.split("\t")[:14]


def test_a_daemon_killed_under_a_wait_is_started_and_waited_on_again(live: Live, agent: Callable[..., Agent]) -> None:
    live.environ |= {"REPOWIRE_DAEMON__PORT": "0"}
    ann, ben = agent(live, "ann"), agent(live, "ben")
    ann.call("whoami"), ben.call("whoami")
    asked = ann.call("ask", peer_name="ben", query="ready?", if_offline="queue")
    ann.send("tools/call", {"name": "wait_on_ack", "arguments": {"correlation_id": asked}}, id="waits")
    ann.ask("ping")
    killed = live.pid
    live.kill()
    again = until(lambda: (config.read_lock(live.home) or {}).get("pid") not in (None, killed), 20)
    assert again
    assert ben.call("ack", correlation_id=asked, message="yes").endswith("with reply")
    assert json.loads(ann.text(ann.next(20)))["reply"] == "yes"
    live.cli("daemon", "stop")


def test_a_daemon_that_cannot_start_is_said_to_the_agent(no_daemon: Live, agent: Callable[..., Agent]) -> None:
    (no_daemon.home / "config.toml").write_text("[daemon]\nport = 'x'\n")
    ann = agent(no_daemon)
    answer = ann.ask("tools/call", {"name": "whoami", "arguments": {}})
    assert "daemon.port" in ann.text(answer, error=True)
    assert "config.toml" in ann.ask("tools/list")["error"]["message"]


@pytest.mark.parametrize(
    ("tool", "times", "said"),
    [("ask", 1, "may have been sent"), ("notify_peer", 1, "may have"), ("whoami", 5, "hangs up")],
)
def test_what_may_have_been_sent_is_not_sent_again(
    new_live: Callable[..., Live], agent: Callable[..., Agent], tool: str, times: int, said: str
) -> None:
    live = new_live()
    live.home.mkdir()
    server = Server(live.home, ())
    ann = agent(live)
    try:
        assert said in ann.text(ann.ask("tools/call", {"name": tool, "arguments": {}}), error=True)
        assert len(server.requests) == times
    finally:
        server.close()


def test_a_home_too_long_for_a_sockets_address(new_live: Callable[..., Live], agent: Callable[..., Agent]) -> None:
    live = new_live("l" * 110)
    live.start()
    assert name_of(agent(live, "ann").call("whoami")) == "ann"


# -- odd lines -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"\x00", -32700),
        (b"[" * 50_000, -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": NaN}', -32700),
        (b"[]", -32600),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}', -32600),
    ],
)
def test_a_line_that_is_no_message_is_answered_and_survived(
    live: Live, agent: Callable[..., Agent], line: bytes, code: int
) -> None:
    ann = agent(live)
    ann.write(line + b"\n\n\r\n")
    answer = ann.next()
    assert (answer["error"]["code"], answer["id"]) == (code, None)
    assert ann.ask("ping", id="x")["id"] == "x"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"jsonrpc": "2.0", "id": 7, "method": "server/discover"}', -32601),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "prompts/list"}', -32601),
        (b'{"jsonrpc": "1.0", "id": 7, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"x": 1e999}}', -32700),
    ],
)
def test_every_request_is_answered_under_its_id(
    live: Live, agent: Callable[..., Agent], line: bytes, code: int
) -> None:
    ann = agent(live)
    ann.write(line + b"\n")
    answer = ann.next()
    assert (answer["id"], answer["error"]["code"]) == (7, code)


def test_a_text_too_large_is_refused_in_words(live: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(live, "ann")
    answer = ann.ask("tools/call", {"name": "notify_peer", "arguments": {"peer_name": "x", "message": "y" * 2_000_000}})
    assert "at most" in ann.text(answer, error=True)
    assert ann.ask("ping")["result"] == {}


def test_the_discover_probe_needs_no_daemon(no_daemon: Live, agent: Callable[..., Agent]) -> None:
    answer = agent(no_daemon).ask("server/discover", id="server-discover-probe-1")
    assert (answer["id"], answer["error"]["code"]) == ("server-discover-probe-1", -32601)
    assert config.read_lock(no_daemon.home) is None


# -- the end ---------------------------------------------------------------------


def test_what_was_asked_before_the_end_of_stdin_is_answered(live: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(live, "ann")
    ann.send("tools/call", {"name": "whoami", "arguments": {}}, id=1)
    said, _ = ann.process.communicate(timeout=DEADLINE_SECONDS)
    assert json.loads(said)["id"] == 1
    assert ann.process.returncode == 0


def test_a_waiting_tool_does_not_keep_it(live: Live, agent: Callable[..., Agent]) -> None:
    ann, ben = agent(live, "ann"), agent(live, "ben")
    ann.call("whoami"), ben.call("whoami")
    asked = ann.call("ask", peer_name="ben", query="ready?", if_offline="queue")
    ann.send("tools/call", {"name": "wait_on_ack", "arguments": {"correlation_id": asked}}, id="waits")
    ann.ask("ping")
    began = time.monotonic()
    assert ann.leave() == (0, b"")
    assert time.monotonic() - began < 2


def test_it_goes_without_a_word_when_nobody_reads(live: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(live)
    ann.ask("ping")
    assert ann.process.stdout is not None
    ann.process.stdout.close()
    with suppress(BrokenPipeError):
        ann.send("ping", id=2)
    assert ann.process.wait(DEADLINE_SECONDS) == 0
    assert ann.process.stderr is not None
    assert ann.process.stderr.read() == b""


def test_over_sockets_as_some_runtimes_give_them(live: Live) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_SECONDS)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(SHIM)], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=live.environ
    ) as shim:
        theirs.close()
        stream = ours.makefile("rwb")
        padding = {"x": "y" * 300_000}
        for number in range(3):
            stream.write(
                json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/list", "params": padding}).encode()
            )
            stream.write(b"\n")
        stream.flush()
        got = [json.loads(stream.readline()) for _ in range(3)]
        assert sorted(one["id"] for one in got) == [0, 1, 2]
        assert all(len(one["result"]["tools"]) == len(TOOLS) for one in got)
        stream.close()
        ours.close()
        assert shim.wait(DEADLINE_SECONDS) == 0
        assert shim.stderr is not None
        assert shim.stderr.read() == b""


def test_a_stopped_daemon_does_not_hold_up_the_end(live: Live, agent: Callable[..., Agent]) -> None:
    assert live.process is not None
    ann = agent(live)
    ann.ask("ping")
    live.process.send_signal(signal.SIGSTOP)
    try:
        ann.send("ping", id=2)
        began = time.monotonic()
        assert ann.leave() == (0, b"")
        assert time.monotonic() - began < 8
    finally:
        live.process.send_signal(signal.SIGCONT)


def test_at_rest_it_wakes_for_nothing(live: Live, agent: Callable[..., Agent]) -> None:
    ann = agent(live, "ann")
    ann.call("whoami")
    status = Path(f"/proc/{ann.process.pid}/status")
    if not status.exists():
        pytest.skip("reads /proc, which is Linux's")

    def switches() -> int:
        return sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)

    until(lambda: "S (sleeping)" in status.read_text())
    before = switches()
    with suppress(AssertionError):
        until(lambda: False, 1.0)
    assert switches() - before <= 1
    resident = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    assert resident <= 16 * 1024
