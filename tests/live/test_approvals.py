"""Approvals with real processes: kill -9 at each step, clients that vanish, a full disk, and a person at a terminal."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

pytestmark = pytest.mark.live

PUBLISHED = Path(__file__).parents[2] / ".agents" / "published-0.17.0" / "bin" / "repowire"

CALL = {"tool_name": "Bash", "tool_input": {"command": "make release"}, "cwd": "/src", "session_id": "s-1"}
PERMISSION = {
    "prompt": "Bash: make release",
    "scope": "tool_permission",
    "options": [{"id": "allow", "title": "Allow"}, {"id": "deny", "title": "Deny"}],
    "metadata": CALL,
    "timeout_seconds": 40,
}


class Asking(threading.Thread):
    """A client that stands still; `got` is the answer, or what became of its connection."""

    def __init__(self, live: Live, correlation_id: str, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.live, self.body = live, {**PERMISSION, "correlation_id": correlation_id, **fields}
        self.got: Any = None
        self.start()
        until(lambda: self.got is not None or is_kept(live, correlation_id))

    def run(self) -> None:
        try:
            self.got = self.live.request("POST", "/questions/ask-blocking", body=self.body, seconds=50).json
        except OSError as cut:
            self.got = {"decision": None, "cut": repr(cut)}

    def answer(self, seconds: float = 20.0) -> Any:
        self.join(seconds)
        assert self.got is not None, "still waiting"
        return self.got


def is_open(live: Live, name: str) -> bool:
    with contextlib.suppress(OSError):
        found = live.request("GET", f"/questions/{name}")
        return found.status == 200 and found.json["state"] == "open"
    return False


def is_kept(live: Live, name: str) -> bool:
    """Open, and committed: a kill cannot lose it any more."""
    lines = live.request("GET", "/events?limit=500").json if is_open(live, name) else []
    return any(line["kind"] == "question.asked" and line["correlation_id"] == name for line in lines)


def ends(live: Live, name: str) -> list[Any]:
    """Every line of the ledger that says how a question ended."""
    lines = [json.loads(line) for path in sorted((live.home / "traces").iterdir()) for line in path.open()]
    return [
        one
        for one in lines
        if one["kind"] in ("question.answered", "question.closed") and one["correlation_id"] == name
    ]


# -- kill -9 and SIGTERM ---------------------------------------------------------


def test_a_daemon_that_is_killed_while_somebody_waits_allows_nothing(live: Live) -> None:
    asking = Asking(live, "p-1")
    live.kill()
    assert asking.answer()["decision"] is None
    live.start()
    found = live.get("/questions/p-1")
    assert (found["decision"], found["reason"]) == ("deny", "restarted")
    late = live.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
    assert late["detail"]["winner"]["reason"] == "restarted"
    again = live.post("/questions/ask-blocking", **{**PERMISSION, "correlation_id": "p-1"})
    assert again["decision"] == "deny"
    assert len(ends(live, "p-1")) == 1


def test_an_answer_that_was_acknowledged_survives_the_kill_and_is_not_replayed_for_long(live: Live) -> None:
    asking = Asking(live, "p-1")
    live.post("/answer", correlation_id="p-1", option_id="deny")
    live.kill()
    live.start()
    assert asking.answer()["decision"] in ("deny", None)
    found = live.get("/questions/p-1")
    assert (found["decision"], found["reason"], found["answered_by"]) == ("deny", "answered", "human")
    assert len(ends(live, "p-1")) == 1


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002, 0.004, 0.008])
def test_a_kill_around_an_answer_leaves_one_winner_and_nobody_who_heard_another(live: Live, delay: float) -> None:
    asking = Asking(live, "p-1")
    said: list[int] = []

    def answer() -> None:
        with contextlib.suppress(OSError):
            said.append(live.request("POST", "/answer", body={"correlation_id": "p-1", "option_id": "allow"}).status)

    answering = threading.Thread(target=answer)
    answering.start()
    threading.Event().wait(delay)
    live.kill()
    answering.join()
    heard = asking.answer()["decision"]
    live.start()
    found = live.get("/questions/p-1")
    assert found["state"] == "closed"
    if heard == "allow" or said == [200]:
        assert found["decision"] == "allow", "what was told was not on the disk"
    assert found["decision"] in ("allow", "deny")
    assert len(ends(live, "p-1")) <= 1  # a line may be lost with the daemon, and the gap is recorded; never two


def test_a_daemon_that_is_told_to_stop_denies_and_says_so(live: Live) -> None:
    asking = Asking(live, "p-1")
    assert live.term() == 0
    got = asking.answer()
    assert (got["decision"], got["outcome"]) == ("deny", "denied")
    live.start()
    assert live.get("/questions/p-1")["reason"] == "shutting_down"


# -- clients ---------------------------------------------------------------------


def unix(live: Live, body: dict[str, Any]) -> socket.socket:
    """A question over the Unix socket, sent and not waited for."""
    raw = json.dumps(body).encode()
    link = socket.socket(socket.AF_UNIX)
    link.connect(live.ready["socket"])
    head = "POST /questions/ask-blocking HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
    head += f"\r\nContent-Length: {len(raw)}"
    link.sendall(f"{head}\r\n\r\n".encode() + raw)
    return link


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_vanishes_is_seen_at_once(live: Live, how: str) -> None:
    link = unix(live, {**PERMISSION, "correlation_id": "p-1"})
    until(lambda: is_open(live, "p-1"))
    if how == "reset":
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()
    found = until(lambda: None if is_open(live, "p-1") else live.get("/questions/p-1"), seconds=3)
    assert (found["reason"], found["decision"]) == ("client_left", "deny")
    live.post("/answer", correlation_id="p-1", option_id="allow", expect=409)


def test_a_connection_is_used_again_after_a_question(live: Live) -> None:
    link = unix(live, {**PERMISSION, "correlation_id": "p-1"})
    until(lambda: is_open(live, "p-1"))
    live.post("/answer", correlation_id="p-1", option_id="allow")
    assert b'"decision": "allow"' in link.recv(65536)
    link.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'"status": "ok"' in link.recv(65536)
    link.close()


def test_a_hundred_answers_from_four_surfaces_have_one_winner(live: Live) -> None:
    asking = Asking(live, "p-1")
    got: list[tuple[str, int]] = []

    def press(surface: str, option: str) -> None:
        for _ in range(25):
            body = {"correlation_id": "p-1", "option_id": option, "surface": surface}
            got.append((option, live.request("POST", "/answer", body=body).status))

    sides = [("cli", "allow"), ("dashboard", "deny"), ("telegram", "allow"), ("slack", "deny")]
    threads = [threading.Thread(target=press, args=side) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [option for option, status in got if status == 200]
    assert len(got) == 100
    assert len(won) == 1
    assert {status for _, status in got} == {200, 409}
    assert asking.answer()["decision"] == won[0]
    [end] = ends(live, "p-1")
    assert end["decision"] == won[0]


# -- agents ------------------------------------------------------------------------


def test_what_an_agent_started_cannot_answer_for_it(live: Live) -> None:
    """A shell that is an agent, and the very commands a person would use: refused, whoever asked."""
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=live.environ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        live.post("/peers", name="ann", path="/src/ann", agent_pid=shell.pid)
        asking = Asking(live, "p-1")
        answer = shlex.join(live.command("approvals", "answer", "p-1", "allow"))
        code = "from repowire.client import RepowireClient as C; C().answer('p-1', option_id='allow')"
        shell.stdin.write(f"{answer} 2>&1; {shlex.join([sys.executable, '-c', code])} 2>&1; exit\n")
        shell.stdin.flush()
        said = shell.stdout.read()
    assert "p-1 is not of ann" in said
    assert "humans_only: p-1 is put to the human: ann is an agent and cannot answer it" in said
    assert is_open(live, "p-1")
    live.post("/answer", correlation_id="p-1", option_id="deny")
    assert asking.answer()["decision"] == "deny"


STARTED = "/hooks/claude-code/SessionStart"
SHED: dict[str, tuple[str, str, Any]] = {
    "unregistered": ("DELETE", "/peers/ann", None),
    "unregistered as before": ("POST", "/peer/unregister", {"name": "ann"}),
    "retired": ("POST", "/peers/ann/offline", {"terminal": True}),
    "in another process": ("POST", "/peers", {"name": "ann", "peer_id": "ANN", "agent_pid": "CHILD"}),
    "in another session": ("POST", "/peers", {"name": "ann", "peer_id": "ANN", "metadata": {"session_id": "s-2"}}),
    "in another session by its hook": ("POST", STARTED, {"session_id": "s-2", "cwd": "/src/ann"}),
}


@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("shed", SHED)
def test_an_agent_that_sheds_its_identity_is_no_human(live: Live, shed: str, orphan: bool) -> None:
    """Whatever it makes of its peer, what it started does not answer: nor in the background, nor after a restart."""
    method, path, body = SHED[shed]
    environ = {**live.environ, "CLAUDE_CODE_SESSION_ID": "s-1"}
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as shell:

        def run(method: str, path: str, body: str) -> str:
            assert shell.stdin is not None
            assert shell.stdout is not None
            curl = f"curl -s --unix-socket {live.home}/daemon.sock -H 'Content-Type: application/json'"
            (live.folder / "script").write_text(f"{curl} http://localhost{path} -X {method} -d '{body}'; echo\n")
            script = f"sh {live.folder}/script"
            shell.stdin.write(f"(setsid {script} &)\n" if orphan else f"{script}\n")
            shell.stdin.flush()
            return shell.stdout.readline()

        metadata = {"hook_session_id": "s-1"}
        ann = live.post("/peers", name="ann", path="/src/ann", agent_pid=shell.pid, metadata=metadata)["peer_id"]
        said = json.dumps(body or {}).replace("ANN", ann).replace('"CHILD"', "'$$'")
        assert "detail" not in run(method, path, said)
        live.kill()
        live.start()
        asking = Asking(live, "p-1")
        assert "humans_only" in run("POST", "/answer", '{"correlation_id": "p-1", "option_id": "allow"}')
        shell.kill()
    assert is_open(live, "p-1")
    live.post("/answer", correlation_id="p-1", option_id="deny")
    assert asking.answer()["decision"] == "deny"


GONE = """
import json, os, socket, sys
body = os.environ["BODY"].encode()
head = "POST %s HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
for path in sys.argv[2:]:
    link.sendall((head % (path, len(body))).encode() + body)
os._exit(0)
"""


@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("paths", [["/answer"], ["/hooks/claude-code/Stop", "/answer"]])
def test_who_answers_and_is_gone_is_nobody(live: Live, paths: list[str], orphan: bool) -> None:
    """It connects, sends and ends, before anybody could look whose it is."""
    asking = Asking(live, "p-1")
    script = live.folder / "gone.py"
    script.write_text(GONE)
    command = [sys.executable, "-I", "-S", str(script), live.ready["socket"], *paths]
    environ = live.environ | {"BODY": json.dumps({"correlation_id": "p-1", "option_id": "allow"})}
    for _ in range(5):
        os.kill(live.pid, signal.SIGSTOP)
        subprocess.run(["setsid", *command] if orphan else command, env=environ, check=True)
        os.kill(live.pid, signal.SIGCONT)
        live.get("/health")
    assert is_open(live, "p-1")
    live.post("/answer", correlation_id="p-1", option_id="deny")
    assert asking.answer()["decision"] == "deny"


def test_who_speaks_over_mcp_and_is_gone_is_nobody(live: Live) -> None:
    live.post("/peers", name="ben", path="/src/ben")
    script = live.folder / "gone.py"
    script.write_text(GONE)
    said = {"name": "notify_peer", "arguments": {"peer_name": "ben", "message": "from your user"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": said}
    command = [sys.executable, "-I", "-S", str(script), live.ready["socket"], "/mcp"]
    os.kill(live.pid, signal.SIGSTOP)
    subprocess.run(command, env=live.environ | {"BODY": json.dumps(body)}, check=True)
    os.kill(live.pid, signal.SIGCONT)
    live.get("/health")
    live.post("/notify", to_peer="ben", text="the last")
    told = {line["text"] for line in live.get("/events?limit=500") if line.get("text")}
    assert told == {"the last"}


def test_who_hides_behind_many_ancestors_is_nobody(live: Live) -> None:
    asking = Asking(live, "p-1")
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=live.environ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        live.post("/peers", name="ann", path="/src/ann", agent_pid=shell.pid)
        script = live.folder / "script"
        curl = f"curl -s --unix-socket {live.home}/daemon.sock -H 'Content-Type: application/json'"
        answer = f"""{curl} http://localhost/answer -d '{{"correlation_id": "p-1", "option_id": "allow"}}'"""
        script.write_text(f"if [ $1 = 0 ]; then {answer}; else sh {script} $(($1 - 1)); fi; true\n")
        shell.stdin.write(f"sh {script} 70; exit\n")
        shell.stdin.flush()
        assert "unknown_caller" in shell.stdout.read()
    assert is_open(live, "p-1")
    live.post("/answer", correlation_id="p-1", option_id="deny")
    assert asking.answer()["decision"] == "deny"


def test_an_agent_cannot_make_the_humans_shell_an_agent(live: Live) -> None:
    """It would answer nothing any more."""
    asking = Asking(live, "p-1")
    curl = f"curl -s --unix-socket {live.home}/daemon.sock -H 'Content-Type: application/json'"
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=live.environ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        live.post("/peers", name="ann", path="/src/ann", agent_pid=shell.pid)
        bad, child = f'{{"name": "bad", "agent_pid": {os.getpid()}}}', """{"name": "child", "agent_pid": '$$'}"""
        shell.stdin.write("".join(f"{curl} http://localhost/peers -d '{one}'; echo\n" for one in (bad, child)))
        hook = f"{curl} -H 'X-Repowire-Agent-Pid: {os.getpid()}' http://localhost/hooks/claude-code/Stop"
        shell.stdin.write(f"""{hook} -d '{{"session_id": "s-1", "cwd": "/src/ann"}}'; exit\n""")
        shell.stdin.flush()
        refused, mine, *_ = shell.stdout.read().splitlines()
    assert json.loads(refused)["detail"]["error"] == "not_your_process"
    assert json.loads(mine)["ok"] is True
    assert live.cli("approvals", "answer", "p-1", "deny").returncode == 0
    assert asking.answer()["decision"] == "deny"


def test_an_agent_that_becomes_another_peer_gets_none_of_its_freedom(new_live: Callable[..., Live]) -> None:
    """The config lets another peer do what this one must ask for; its identity is free, and nothing proves it."""
    live = new_live().start()
    loose = live.post("/peers", name="loose", path="/src/loose")["peer_id"]
    live.kill()
    (live.home / "config.toml").write_text(f'[approvals.peers."{loose}"]\ngated_tools = []\n')
    live.start()
    ask = {**PERMISSION, "from_peer": loose, "timeout_seconds": -1}
    assert live.post("/questions/ask-blocking", **ask)["decision"] == "none"
    curl = f"curl -s --unix-socket {live.home}/daemon.sock -H 'Content-Type: application/json' http://localhost"
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=live.environ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        live.post("/peers", name="ann", path="/src/ann", agent_pid=shell.pid)
        claim = {"name": "loose", "path": "/src/loose", "peer_id": loose, "agent_pid": shell.pid}
        shell.stdin.write(f"{curl}/peers/ann -X DELETE; echo; {curl}/peers -d '{json.dumps(claim)}'; echo\n")
        body = json.dumps({**PERMISSION, "timeout_seconds": -1})
        shell.stdin.write(f"{curl}/questions/ask-blocking -d '{body}'; exit\n")
        shell.stdin.flush()
        gone, became, asked = map(json.loads, shell.stdout.read().splitlines())
    assert gone == {"ok": True}
    assert became["peer_id"] == loose
    assert asked["decision"] == "deny"


def test_a_question_between_agents_ends_with_its_default_when_its_time_is_up(live: Live) -> None:
    """And not when the daemon looks the next time, up to a minute later."""
    for name in ("ann", "ben"):
        live.post("/peers", name=name)
    question = {"kind": "choice", "options": [{"id": "red"}, {"id": "blue"}], "timeout_seconds": 0.3}
    asked = {"from_peer": "ann", "to_peer": "ben", "text": "which?", "if_offline": "queue"}
    name = live.post("/ask", **asked, question={**question, "default_answer": {"option_id": "blue"}})["correlation_id"]
    got = live.post(f"/asks/{name}/wait", peer_id="ann", timeout_seconds=10)
    assert (got["status"], got["option_id"]) == ("resolved", "blue")
    live.post("/answer", correlation_id=name, option_id="red", expect=410)


# -- a full disk -------------------------------------------------------------------


@pytest.fixture
def small_disk(new_live: Callable[..., Live]) -> Iterator[Live]:
    """A daemon whose home is a file system of its own with little room."""
    live = new_live()
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root on Linux can mount a small file system")
    live.home.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={16 << 20},mode=0700", "tmpfs", str(live.home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small file system")
    try:
        yield live.start()
        live.close()
    finally:
        subprocess.run(["umount", "-l", str(live.home)], check=True)


def test_a_full_disk_allows_nothing_that_it_cannot_keep(small_disk: Live) -> None:
    """The disk fills up while somebody waits: an answer that is not kept is refused, and nobody is told of it."""
    live = small_disk
    asking = Asking(live, "p-1")
    with (live.home / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    refused = 0
    for number in range(3_000):  # until the room that the log has already is used up
        body = {**PERMISSION, "correlation_id": f"q-{number}", "timeout_seconds": -1, "prompt": "x" * 20_000}
        got = live.request("POST", "/questions/ask-blocking", body=body)
        assert got.status == 503 or got.json["decision"] == "deny"
        refused += got.status == 503
        if refused:
            break
    assert refused
    said = live.request("POST", "/answer", body={"correlation_id": "p-1", "option_id": "allow", "message": "y" * 4_000})
    (live.home / "ballast").unlink()
    if said.status == 200:  # there was room for this one
        assert asking.answer()["decision"] == "allow"
        assert live.get("/questions/p-1")["decision"] == "allow"
    else:
        assert said.status == 503
        assert is_open(live, "p-1") or live.get("/questions/p-1")["decision"] == "deny"
        live.request("POST", "/answer", body={"correlation_id": "p-1", "option_id": "deny"})
        assert asking.answer().get("decision") != "allow"
        assert live.get("/questions/p-1")["decision"] == "deny"


# -- the published hook --------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "decision"), [({"option_id": "allow"}, "allow"), ({"outcome": "denied"}, "deny"), (None, "deny")]
)
def test_the_published_hook_asks_and_obeys(new_live: Callable[..., Live], said: Any, decision: str) -> None:
    """`repowire hook pretooluse` of 0.17.0, unmodified."""
    if not PUBLISHED.exists():
        pytest.skip("the published client is not there: make published")
    live = new_live().start(REPOWIRE_DAEMON__AUTH_TOKEN="")
    user = live.folder / "user"
    (user / ".repowire").mkdir(parents=True)
    approval = "remote_tool_approval: {enabled: true, timeout_seconds: 2}"
    (user / ".repowire" / "config.yaml").write_text(f"experiments:\n  {approval}\n")
    environ = {**live.environ, "HOME": str(user), "REPOWIRE_DAEMON_URL": f"http://127.0.0.1:{live.port}"}
    del environ["REPOWIRE_HOME"]
    event = {**CALL, "hook_event_name": "PreToolUse", "tool_use_id": "t-1"}
    command = [str(PUBLISHED), "hook", "pretooluse"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True
    ) as hook:
        assert hook.stdin is not None
        hook.stdin.write(json.dumps(event))
        hook.stdin.close()
        [asked] = until(lambda: live.request("GET", "/questions", token=None).json["questions"], seconds=20)
        assert asked["prompt"].startswith("Allow Bash?")
        if said is not None:
            body = {"correlation_id": asked["correlation_id"], **said}
            assert live.request("POST", "/answer", body=body, token=None).status == 200
        assert hook.stdout is not None
        told = json.loads(hook.stdout.read())["hookSpecificOutput"]
    assert told["permissionDecision"] == decision


# -- a person at a terminal --------------------------------------------------------


class Terminal:
    """A command on a terminal of its own: what it showed, and the keys that are pressed."""

    def __init__(self, live: Live, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.kept = theirs
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        command = live.command(*arguments)
        self.process = subprocess.Popen(command, env=live.environ, start_new_session=True, **streams)
        self.shown = ""

    def read(self) -> str:
        while select.select([self.ours], (), (), 0.0)[0]:
            self.shown += os.read(self.ours, 65536).decode()
        return self.shown

    def until(self, words: str) -> None:
        until(lambda: words in self.read(), seconds=15)

    def press(self, keys: str) -> None:
        """After the moment in which a key counts as pressed for what stood there before."""
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.7)
        os.write(self.ours, keys.encode())

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def terminal(live: Live) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        made.append(Terminal(live, *arguments))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.ours)
        os.close(one.kept)


def test_one_key_allows_and_one_denies_and_the_terminal_is_left_as_it_was(
    live: Live, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("approvals", "watch")
    screen.until("nothing waits for you")
    first = Asking(live, "p-1")
    screen.until("make release")
    screen.until("a allow · d deny")
    screen.press("a")
    assert first.answer()["decision"] == "allow"
    screen.until("p-1: you said allow")
    second = Asking(live, "p-2", metadata={**CALL, "tool_input": {"command": "rm -rf \x1b[2K build"}})
    screen.until("rm -rf \\x1b[2K build")
    screen.press("d")
    assert second.answer()["decision"] == "deny"
    assert live.get("/questions/p-2")["surface"].startswith("cli (unix pid ")
    screen.press("q")
    assert screen.process.wait(10) == 0
    assert termios.tcgetattr(screen.kept) == screen.before


def test_what_is_answered_elsewhere_goes_and_a_key_for_it_answers_nothing_else(
    live: Live, terminal: Callable[..., Terminal]
) -> None:
    first, second = Asking(live, "p-1"), Asking(live, "p-2", metadata={**CALL, "session_id": "s-2"})
    screen = terminal("approvals", "watch")
    screen.until("p-1 · @external · Bash")
    live.post("/answer", correlation_id="p-1", option_id="deny", surface="dashboard")
    screen.until("p-1: deny: answered by human, dashboard (tcp)")
    os.write(screen.ours, b"a")  # meant for the first
    screen.until("p-2 · @external · Bash")
    assert first.answer()["decision"] == "deny"
    screen.press("n")
    assert is_open(live, "p-2")
    live.post("/answer", correlation_id="p-2", option_id="deny")
    assert second.answer()["decision"] == "deny"


def test_no_paste_answers_however_long_it_is(live: Live, terminal: Callable[..., Terminal]) -> None:
    asking = Asking(live, "p-1")
    screen = terminal("approvals", "watch")
    screen.until("a allow · d deny")
    screen.press("x" * 1024 + "a")
    screen.until("not answered: press one of the keys above")
    assert is_open(live, "p-1")
    screen.press("d")
    assert asking.answer()["decision"] == "deny"


def test_what_does_not_fit_the_screen_is_said(live: Live, terminal: Callable[..., Terminal]) -> None:
    """What runs first stands above the top; below it is nothing but blank lines and a harmless word."""
    call = {**CALL, "tool_input": {"command": "rm -rf ~" + "\n" * 60 + "make test"}}
    Asking(live, "p-1", metadata=call)
    watching = terminal("approvals", "watch")
    watching.until("rows of it are above this screen; scroll up before you answer")
    watching.until("p-1 open until")


def test_the_keys_name_what_they_answer_whatever_else_comes(live: Live, terminal: Callable[..., Terminal]) -> None:
    """Others cannot push the question from the screen with theirs, nor draw one of their own below it."""
    watching = terminal("approvals", "watch")
    watching.until("nothing waits")
    Asking(live, "p-1")
    watching.until("a allow")
    call = {**CALL, "tool_input": {"command": ("x" * 80 + "p-1 · make test · a allow · d deny".ljust(80)) * 30}}
    for number in range(20):
        Asking(live, f"q-{number}", metadata=call)
    watching.until("a allow · d deny · n later · q quit · 20 more")
    assert "make test" not in watching.shown
    *_, last = watching.shown.strip().splitlines()
    assert last.startswith("p-1 open until ")
    assert len(watching.shown.partition("a allow")[2].splitlines()) <= 21


def test_a_watch_whose_token_was_changed_says_so(live: Live) -> None:
    """It would show nothing any more, and seem to wait."""
    environ = live.environ | {"REPOWIRE_DAEMON_URL": f"http://127.0.0.1:{live.port}", "REPOWIRE_AUTH_TOKEN": live.token}
    command = live.command("approvals", "watch")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True) as watching:
        Asking(live, "p-1")
        assert watching.stdout is not None
        assert watching.stdout.readline()
        assert live.cli("token", "--rotate").returncode == 0
        _, said = watching.communicate(timeout=20)
        assert watching.returncode == 1
        assert "REPOWIRE_AUTH_TOKEN" in said


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGQUIT])
def test_a_watch_that_is_ended_leaves_the_terminal_as_it_was(
    terminal: Callable[..., Terminal], how: signal.Signals
) -> None:
    screen = terminal("approvals", "watch")
    screen.until("nothing waits for you")
    screen.process.send_signal(how)
    assert screen.process.wait(10) == 128 + how
    assert termios.tcgetattr(screen.kept) == screen.before


def test_a_watch_outlives_the_daemon(live: Live, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("approvals", "watch")
    screen.until("nothing waits for you")
    asking = Asking(live, "p-1")
    screen.until("a allow · d deny")
    live.kill()
    assert asking.answer()["decision"] is None
    screen.until("no daemon answers")
    live.start()
    screen.until("the daemon is there again")
    screen.until("p-1: deny: restarted")
    again = Asking(live, "p-2")
    screen.until("p-2 · @external · Bash")
    screen.press("a")
    assert again.answer()["decision"] == "allow"
    assert screen.end() == 128 + signal.SIGTERM
    assert termios.tcgetattr(screen.kept) == screen.before


def test_in_a_pipe_it_tells_each_as_a_line_of_json(live: Live) -> None:
    with subprocess.Popen(
        live.command("approvals", "watch", "--json"), env=live.environ, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        asking = Asking(live, "p-1")
        came = json.loads(watching.stdout.readline())
        assert (came["kind"], came["question"]["metadata"]) == ("question.asked", CALL)
        live.cli("approvals", "answer", "p-1", "allow")
        assert asking.answer()["decision"] == "allow"
        gone = json.loads(watching.stdout.readline())
        assert (gone["kind"], gone["question"]["decision"]) == ("question.closed", "allow")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
