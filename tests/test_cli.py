"""What the command line prints and how it ends, against a daemon that says what the test wants."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from repowire import __version__, errors
from repowire.cli import NOUNS
from repowire.cli import command as c

EVIL = "\x1b[2J\x1b]0;title\x07ben\x9b31m\u202eexe\u2066\x00\x7f\u200b\u2060\u00ad\u3164\U000e0041\n\rnext"
NAMING = ["peer list", "peer describe ben", "peer prune", "peer kill ben", "session resume ben", "messages"]
NAMING += ["notify ben x", "ask ben x", "ask-many ben x"]
IN_NO_CIRCLE = [[*command.split(), "--circle", "no such"] for command in NAMING]
PEER = {
    "peer_id": "repow-default-0011223344ff",
    "name": "ben",
    "display_name": "ben",
    "status": "online",
    "circle": "default",
    "role": "agent",
    "backend": "codex",
    "path": "/work/ben",
    "description": "",
    "pending_ask_count": 2,
    "last_seen": "2026-07-01T10:00:00.000000+00:00",
}


class Stub(ThreadingMixIn, UnixStreamServer):
    """Answers by method and path; a callable gets the body, a list is taken one by one."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        super().__init__(str(home / "daemon.sock"), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was interrupted is no news."""

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("local", 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        self.server.asked.append((f"{self.command} {self.path}", body))
        said = self.server.answers.get(f"{self.command} {self.path.partition('?')[0]}", (404, {"detail": "Not Found"}))
        said = said.pop(0) if isinstance(said, list) else said
        said = said(body) if callable(said) else said
        if said is None:
            self.close_connection = True
            return
        status, value = said if isinstance(said, tuple) else (200, said)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def stub(short_folder: Path) -> Iterator[Stub]:
    server = Stub(short_folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(short_folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("REPOWIRE_") and key != "COLUMNS"}
    return {**kept, "REPOWIRE_HOME": str(short_folder), "TZ": "UTC", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def cli(environ: dict[str, str]) -> Cli:
    def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "repowire", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env={**environ, **more},
            check=False,
        )

    return run


def on_a_terminal(environ: dict[str, str], *arguments: str, columns: int = 80) -> tuple[int, str]:
    """Run with stdin, stdout and stderr on a terminal; the exit code and all that it showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "repowire", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and select.select([ours], [], [], deadline - time.monotonic())[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return child.wait(10), shown.decode().replace("\r\n", "\n")


# -- help and mistakes ---------------------------------------------------------


def test_the_version_imports_nothing_of_the_command_line() -> None:
    code = "import sys; sys.argv[1:] = ['--version']; import repowire.__main__ as m; m.main(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, modules = out.splitlines()
    assert first == f"repowire {__version__}"
    assert {"argparse", "json", "socket", "re", "repowire.client", "repowire.config"} & set(modules.split()) == set()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_alone_it_teaches_the_first_steps(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.returncode == 0
    for word in (*NOUNS, "repowire daemon --detach", "exit codes: 0 ok"):
        assert word in done.stdout


PEER_VERBS = [
    f"peer {verb}"
    for verb in ["list", "describe", "register", "unregister", "whoami", "touch", "circle", "claim-role", "prune"]
]


@pytest.mark.parametrize("noun", [*NOUNS, "serve", *PEER_VERBS])
def test_every_help_has_an_example_and_the_exit_codes(cli: Cli, noun: str) -> None:
    done = cli(*noun.split(), "--help")
    assert done.returncode == 0
    assert "exit codes: 0 ok" in done.stdout
    example = done.stdout.partition("example:\n")[2].split("\n\n")[0].splitlines()
    assert len(example) == 2
    assert all("repowire" in line for line in example)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["aks"], "no command 'aks' (did you mean ask"),
        (["ask"], "required: TO, TEXT; see repowire ask --help"),
        (["ask", "ben", ""], "no text to send"),
        (["wait", "ask-1", "--timeout", "-3"], "'-3' is no number of seconds"),
        (["wait", "ask-1", "--timeout", "soon"], "'soon' is no number of seconds"),
        (["ask", "--wait", "ben", "x"], "a bare --wait stands at the end"),
        (["asks", "--inbound", "--outbound"], "not allowed with"),
        (["daemon", "--port", "99999"], "a whole number from 0 to 65535"),
        (["daemon", "start"], "`repowire daemon` starts it, with --detach in the background"),
        (["serve", "start", "--detach"], "`repowire daemon` starts it"),
        (["daemon", "strat"], "argument verb: invalid choice: 'strat'"),
        (["peer"], "required: list|describe|register|unregister"),
        (["tail", "--\x1b[31mred"], "unrecognized arguments: --\\x1b[31mred;"),
        (["tail", "--kind", "ask.*", "--kind", "aks.*"], "no event is of kind 'aks.*'; there are those of ask, "),
        (["listen", "--name", "two words"], "--name: must be 1 to 64 of the letters, digits and . _ -"),
        *(
            ([*command.split(), ""], "must not be empty")
            for command in (
                "wait",
                "trace",
                "ack",
                "answers",
                "messages",
                "deliver --now",
                "deliveries drop",
                "mcp --home",
            )
        ),
        (["listen", "--name", "ok", "--circle", ""], "--circle: must be 1 to 64 of the letters, digits and . _ -"),
        *((words, "--circle: must be 1 to 64 of the letters, digits and . _ -") for words in IN_NO_CIRCLE),
    ],
)
def test_a_mistake_is_one_line_and_2(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["peer", "list"], ["ask", "ben", "x"], ["status"], ["tail"], ["wait", "x"]])
def test_without_a_daemon_it_is_3_and_says_how_to_start_one(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert "repowire daemon --detach" in done.stderr
    assert done.stderr.count("\n") == 1


def test_listen_without_a_daemon_is_3(cli: Cli) -> None:
    done = cli("listen", "--name", "x")
    assert (done.returncode, done.stdout) == (3, "")
    assert "repowire daemon --detach" in done.stderr


def test_a_refusal_is_1_with_the_hint_and_near_names(cli: Cli, stub: Stub) -> None:
    no = {"detail": {"error": "peer_not_found", "hint": "there is no peer 'bne'", "near": ["ben", "bea\u200b"]}}
    stub.answers["POST /ask"] = (404, no)
    done = cli("ask", "bne", "hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "repowire: there is no peer 'bne' (did you mean ben or bea\\u200b?)\n"


def test_a_wrong_token_says_what_to_set(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /peers"] = (401, {"detail": {"error": "unauthorized", "hint": "wrong token"}})
    done = cli("peer", "list")
    assert done.returncode == 1
    assert "REPOWIRE_AUTH_TOKEN" in done.stderr


def test_a_daemon_that_hangs_up_leaves_it_open_whether_it_was_taken(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /notify"] = [None]
    done = cli("notify", "ben", "x")
    assert (done.returncode, done.stdout) == (3, "")
    assert "it may have been taken" in done.stderr
    assert len(stub.asked) == 1, "never sent twice"


def test_a_wrong_url_is_a_clear_line(cli: Cli) -> None:
    done = cli("peer", "list", REPOWIRE_DAEMON_URL="ftp://x")
    assert done.returncode == 1
    assert "http://127.0.0.1:8377" in done.stderr


def test_the_page_of_the_command_line_names_every_command_and_option(cli: Cli) -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    for noun in [*NOUNS, *PEER_VERBS]:
        assert f"repowire {noun}" in page
        for option in re.findall(r"--[a-z-]+", cli(*noun.split(), "--help").stdout):
            assert option in page, f"{noun} {option}"


# -- peers ---------------------------------------------------------------------


def test_peers_as_a_table_and_as_json(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /peers"] = {"peers": [PEER]}
    done = cli("peer", "list")
    assert done.returncode == 0
    head, row = done.stdout.splitlines()
    assert head.split() == ["NAME", "STATUS", "CIRCLE", "ROLE", "BACKEND", "ASKS", "PATH", "DESCRIPTION"]
    assert row.split() == ["ben", "online", "default", "agent", "codex", "2", "/work/ben"]
    assert json.loads(cli("peer", "list", "--json", "-a").stdout) == {"peers": [PEER]}
    assert [path for path, _ in stub.asked] == ["GET /peers?status=online", "GET /peers"]


def test_a_peer_whose_turn_waits_for_a_person_is_told_from_a_busy_one(cli: Cli, stub: Stub) -> None:
    waits = {"turn_state": "awaiting_input"}
    working = {"status": "busy", "turn_state": "working"}
    peers = [{**PEER, "status": "busy", **waits}, {**PEER, **waits}, {**PEER, **working}]
    stub.answers["GET /peers"] = {"peers": peers}
    _, *rows = cli("peer", "list").stdout.splitlines()
    assert [row.split()[1] for row in rows] == ["awaiting_input", "online", "busy"]


def test_nobody_there_is_no_failure(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /peers"] = {"peers": []}
    done = cli("peer", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "repowire listen" in done.stderr


def test_a_circle_that_nobody_is_in_is_said_with_those_there_are(cli: Cli, stub: Stub) -> None:
    """A service is seen from every circle, so the table alone does not tell."""
    everyone = [PEER, {**PEER, "circle": "night"}, {**PEER, "role": "service", "circle": "day"}]
    stub.answers["GET /peers"] = [{"peers": everyone[2:]}, {"peers": everyone}] * 2 + [{"peers": everyone[1:]}] * 2
    done = cli("peer", "list", "--circle", "nigth")
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert done.stderr == "nobody is in circle 'nigth'; there are day, default, night\n"
    assert json.loads(cli("peer", "list", "--circle", "nigth", "--json").stdout) == {"peers": everyone[2:]}
    assert cli("peer", "list", "--circle", "night").stderr == ""
    assert cli("peer", "list", "--circle", "*").stderr == ""
    asked = [path for path, _ in stub.asked]
    assert asked[:2] == ["GET /peers?status=online&circle=nigth", "GET /peers"]
    assert asked[4:] == ["GET /peers?status=online&circle=night", "GET /peers?status=online&circle=%2A"]


def test_describe_shows_what_is_known(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /peers/ben"] = PEER
    done = cli("peer", "describe", "ben", "-c", "default")
    assert "path       /work/ben" in done.stdout
    assert "last seen  07-01 10:00:00" in done.stdout
    assert "model" not in done.stdout
    assert stub.asked[0][0] == "GET /peers/ben?circle=default"


def test_register_prints_the_id_alone_in_a_pipe(cli: Cli, stub: Stub, tmp_path: Path) -> None:
    stub.answers["POST /peers"] = {"ok": True, "peer_id": "repow-x-1", "display_name": "ben-2"}
    done = cli("peer", "register", "ben", "-p", str(tmp_path), "-c", "x", "-t", "main", "--role", "service")
    assert (done.returncode, done.stdout) == (0, "repow-x-1\n")
    assert stub.asked[0][1] == {
        "name": "ben",
        "tmux_session": "main",
        "circle": "x",
        "path": str(tmp_path),
        "role": "service",
    }


def test_unregister(cli: Cli, stub: Stub) -> None:
    stub.answers["DELETE /peers/ben"] = {"ok": True}
    done = cli("peer", "unregister", "ben")
    assert (done.returncode, done.stdout) == (0, "")


# -- asks ----------------------------------------------------------------------

OPENED = {"correlation_id": "ask-1", "error": None, "to_peer": "ben", "state": "leased", "delivery_state": "delivered"}


ASKED = {"id": "ask-0", "kind": "ask", "ask_state": "closed", "close_reason": "ack"}


def waited(**facts: Any) -> dict[str, Any]:
    return {"correlation_id": "ask-1", "status": "resolved", "reply": None, "close_reason": None, **facts}


def test_ask_prints_the_id_alone_in_a_pipe_and_a_sentence_on_a_terminal(
    cli: Cli, stub: Stub, environ: dict[str, str]
) -> None:
    stub.answers["POST /ask"] = OPENED
    assert cli("ask", "ben", "ready?").stdout == "ask-1\n"
    code, shown = on_a_terminal(environ, "ask", "ben", "ready?")
    assert (code, shown) == (0, "asked ben (leased); read the reply with: repowire wait ask-1\n")


def test_ask_sends_what_its_flags_say_and_stdin_whole(cli: Cli, stub: Stub) -> None:
    stub.answers |= {"POST /ask": OPENED, "GET /peers/ann": PEER, "GET /messages/ask-0": ASKED}
    text = "two\nlines ✓ \t end\n\n"
    done = cli(
        "ask", "ben", "-", "--queue", "--from", "ann", "-c", "x", "--bypass-circle", "--reply-to", "ask-0", stdin=text
    )
    assert done.returncode == 0
    assert stub.asked[2][1] == {
        "to_peer": "ben",
        "text": text.removesuffix("\n"),
        "reply_to": "ask-0",
        "if_offline": "queue",
        "from_peer": "ann",
        "circle": "x",
        "bypass_circle": True,
    }


def test_a_plain_ask_leaves_the_defaults_to_the_daemon(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /ask"] = OPENED
    cli("ask", "ben", "x")
    assert stub.asked[0][1] == {"to_peer": "ben", "text": "x"}


def test_bytes_that_are_no_utf8_are_marked_not_fatal(stub: Stub, environ: dict[str, str]) -> None:
    stub.answers["POST /ask"] = OPENED
    command = [sys.executable.encode(), b"-m", b"repowire", b"ask", b"ben", b"caf\xe9"]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert stub.asked[0][1]["text"] == "caf\ufffd"


def test_ask_wait_prints_the_reply_alone(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /ask"] = OPENED
    stub.answers["POST /asks/ask-1/wait"] = waited(reply="two\nlines", close_reason="ack_with_msg")
    done = cli("ask", "ben", "x", "--wait", "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "two\nlines\n", "")
    assert 4 < stub.asked[1][1]["timeout_seconds"] <= 5


def test_wait_goes_on_over_the_daemons_cap(cli: Cli, stub: Stub) -> None:
    pending = waited(status="pending")
    stub.answers["POST /asks/ask-1/wait"] = [pending, pending, waited(reply="at last", close_reason="ack_with_msg")]
    done = cli("wait", "ask-1")
    assert (done.returncode, done.stdout) == (0, "at last\n")


def test_no_reply_in_time_is_4_and_says_how_to_go_on(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /asks/ask-1/wait"] = waited(status="pending")
    done = cli("wait", "ask-1", "--timeout", "0")
    assert (done.returncode, done.stdout) == (4, "")
    assert "repowire wait ask-1" in done.stderr
    assert 0 < stub.asked[0][1]["timeout_seconds"] < 1


def test_a_daemon_that_restarts_while_we_wait_is_waited_for(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /asks/ask-1/wait"] = [None, waited(reply="still here", close_reason="ack_with_msg")]
    done = cli("wait", "ask-1")
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_an_ask_closed_without_an_answer_is_1(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /asks/ask-1/wait"] = waited(close_reason="expired")
    done = cli("wait", "ask-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "closed without an answer: expired" in done.stderr


def test_a_bare_ack_is_an_answer_without_words(cli: Cli, stub: Stub, environ: dict[str, str]) -> None:
    stub.answers["POST /asks/ask-1/wait"] = waited(close_reason="ack", responder="ben")
    done = cli("wait", "ask-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert on_a_terminal(environ, "wait", "ask-1") == (0, "ben has acknowledged it without words\n")


def test_progress_is_said_on_a_terminal_only(stub: Stub, environ: dict[str, str]) -> None:
    pending = waited(status="pending")
    stub.answers["POST /asks/ask-1/wait"] = [pending, pending, waited(reply="yes", close_reason="ack_with_msg")]
    code, shown = on_a_terminal(environ, "wait", "ask-1")
    assert (code, shown) == (0, "waiting for the reply to ask-1 (Ctrl-C leaves it open)\nyes\n")


def test_ctrl_c_is_130_and_quiet(stub: Stub, environ: dict[str, str]) -> None:
    reached, hold = threading.Event(), threading.Event()

    def wait_long(body: Any) -> Any:
        reached.set()
        hold.wait(20)
        return waited(status="pending")

    stub.answers["POST /asks/ask-1/wait"] = wait_long
    command = [sys.executable, "-m", "repowire", "wait", "ask-1"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert reached.wait(20)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    hold.set()
    assert (child.returncode, out, err) == (130, b"", b"")


def test_ack_sends_its_message_or_none(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /ack"] = {"ok": True}
    assert cli("ack", "ask-1").returncode == 0
    assert cli("ack", "ask-1", "-m", "-", stdin="done\n").returncode == 0
    assert [body for _, body in stub.asked] == [
        {"correlation_id": "ask-1"},
        {"correlation_id": "ask-1", "message": "done"},
    ]


ASK = {
    "correlation_id": "ask-1",
    "from_peer": "human",
    "to_peer": "ben",
    "text": "ready?",
    "state": "open",
    "delivery_state": "handed",
    "created_at": "2026-07-01T10:00:00.000000+00:00",
    "closed_at": None,
    "close_reason": None,
    "reply": None,
}


def test_asks_lists_open_ones_and_answered_ones(cli: Cli, stub: Stub) -> None:
    answered = {
        **ASK,
        "state": "closed",
        "close_reason": "ack_with_msg",
        "reply": "yes",
        "closed_at": ASK["created_at"],
    }
    stub.answers["GET /asks/history"] = [{"asks": [ASK], "next": None}, {"asks": [answered], "next": None}]
    assert cli("asks").stdout.splitlines()[1].split() == [
        "ask-1",
        "human",
        "ben",
        "handed",
        "07-01",
        "10:00:00",
        "ready?",
    ]
    shown = cli("asks", "--answered", "--outbound", "--peer", "ann").stdout.splitlines()
    assert shown[0].split()[-1] == "REPLY"
    assert shown[1].split()[-2:] == ["ready?", "yes"]
    assert stub.asked[0][0] == "GET /asks/history?direction=both&state=open&limit=50"
    assert stub.asked[1][0] == "GET /asks/history?peer_id=ann&direction=outbound&state=answered&limit=50"


# -- messages, traces, events --------------------------------------------------


def test_notify_prints_the_delivery_alone_in_a_pipe(cli: Cli, stub: Stub, environ: dict[str, str]) -> None:
    sent = {"ok": True, "delivery_id": "notif-delivery-1", "state": "queued", "to_peer_name": "ben"}
    stub.answers["POST /notify"] = sent
    assert cli("notify", "ben", "x").stdout == "notif-delivery-1\n"
    assert json.loads(cli("notify", "ben", "x", "--json").stdout) == sent
    _, shown = on_a_terminal(environ, "notify", "ben", "x")
    assert shown == "ben: queued; follow it with: repowire trace notif-delivery-1\n"


def test_a_reply_without_an_id_is_no_success(cli: Cli, stub: Stub) -> None:
    """A 200 from something else must not look like a message that was sent (field.md B 17)."""
    stub.answers["POST /notify"] = {"ok": True}
    stub.answers["POST /ask"] = {"hello": "world"}
    for command in ("notify", "ask"):
        done = cli(command, "ben", "x")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr.count("\n") == 1


def test_a_trace_shows_each_stage_and_the_time_between(cli: Cli, stub: Stub) -> None:
    stages = [
        {"seq": 0, "stage": "created", "status": "ok", "ts": "2026-07-01T10:00:00.000000+00:00", "detail": {}},
        {
            "seq": 1,
            "stage": "injection_failed",
            "status": "fail",
            "peer_id": "p1",
            "ts": "2026-07-01T10:00:01.250000+00:00",
            "detail": {"reason": "gone", "none": None},
        },
    ]
    stub.answers["GET /traces/ask-1"] = {"trace_id": "ask-1", "kind": "ask", "stages": stages}
    lines = cli("trace", "ask-1").stdout.splitlines()
    assert lines[1].split() == ["07-01", "10:00:00", "+0.000", "created", "ok"]
    assert lines[2].split() == ["07-01", "10:00:01", "+1.250", "injection_failed", "fail", "p1", "reason=gone"]


def events(*said: dict[str, Any]) -> bytes:
    return b"".join(b"id: %s\ndata: %s\n\n" % (str(e["id"]).encode(), json.dumps(e).encode()) for e in said)


def test_tail_prints_events_as_they_come_and_filters(stub: Stub, environ: dict[str, str]) -> None:
    at = "2026-07-01T10:00:00.000000+00:00"
    body = events(
        {"id": "5", "type": "ask", "kind": "ask.opened", "timestamp": at, "from": "ann", "to": "ben", "text": EVIL},
        {"id": "6", "type": "peer.online", "kind": "peer.online", "timestamp": at, "peer_id": "p"},
        {"id": "7", "type": "ask.closed", "kind": "ask.closed", "timestamp": at, "reason": "ack"},
    )
    stub.answers["GET /events/stream"] = body
    command = [sys.executable, "-m", "repowire", "tail", "--since", "4", "--kind", "ask"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        first, second = child.stdout.readline(), child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
    assert child.returncode == 130
    assert UNSAFE.search(first) is None
    assert first.split()[:5] == [b"10:00:00", b"5", b"ask.opened", b"from=ann", b"to=ben"]
    assert second.split() == [b"10:00:00", b"7", b"ask.closed", b"reason=ack"]
    assert stub.asked[0][0] == "GET /events/stream?since=4"


# -- what peers write, on our screen -------------------------------------------


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]52;c;Y29weQ==\x07clip", r"\x1b]52;c;Y29weQ==\x07clip"),
        ("\x9b2Jclear", r"\x9b2Jclear"),
        ("\x1b", r"\x1b"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
        ("nul\x00bel\x07bs\x08del\x7f", r"nul\x00bel\x07bs\x08del\x7f"),
        ("tab\tline\nfeed\r", "tab line feed "),
        ("\u2028\ufeff", r" \ufeff"),
        ("\ud800", r"\ud800"),
        ("an\u200bn an\u2060n a\u00adn\U000e0041", r"an\u200bn an\u2060n a\xadn\U000e0041"),
        ("an\u200dn 日\u200d\u200d本 x\ufe0f \u3164", r"an\u200dn 日\u200d\u200d本 x\ufe0f \u3164"),
        ("⚠\ufe0f 1\ufe0f\u20e3 ❤\ufe0f\u200d🔥 می\u200cروم", "⚠\ufe0f 1\ufe0f\u20e3 ❤\ufe0f\u200d🔥 می\u200cروم"),
        ("10\xa0000\u202f€ 日本\u3000語", "10\xa0000\u202f€ 日本\u3000語"),
        ("héllo ✓ 日本 👩‍💻", "héllo ✓ 日本 👩‍💻"),
    ],
)
def test_clean(raw: str, shown: str) -> None:
    assert c.clean(raw) == shown
    assert c.clean("a\r\nb\tc\x1b[1m", lines=True) == "a\nb\tc\\x1b[1m"


UNSAFE = re.compile(
    b"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]|\xe2\x80\x8b|\xe2\x81\xa0"
    b"|\xc2\xad|\xe3\x85\xa4|\xf3\xa0\x81\x81"
)


def test_no_escape_of_a_peer_reaches_the_screen(stub: Stub, environ: dict[str, str]) -> None:
    """In tables, details, replies, refusals and JSON alike (field.md E3, 12)."""
    evil = {key: EVIL if isinstance(value, str) and key != "status" else value for key, value in PEER.items()}
    stub.answers |= {
        "GET /peers": {"peers": [evil]},
        "GET /peers/ben": evil,
        "POST /ask": {**OPENED, "to_peer": EVIL, "state": EVIL},
        "POST /asks/ask-1/wait": waited(reply=EVIL, close_reason="ack_with_msg"),
        "GET /asks/history": {"asks": [{**ASK, "text": EVIL, "from_peer": EVIL, "to_peer": EVIL}], "next": None},
        "POST /notify": (403, {"detail": {"error": "forbidden", "hint": EVIL, "near": [EVIL]}}),
        "GET /traces/ask-1": {"stages": [{"seq": 0, "stage": EVIL, "status": EVIL, "detail": {EVIL: EVIL}}]},
        "GET /deliveries": {
            "deliveries": [
                {
                    **dict.fromkeys(("delivery_id", "from_peer", "to_peer", "reason", "text"), EVIL),
                    "state": "failed",
                    "created_at": None,
                }
            ],
            "next": None,
        },
    }
    commands = [
        ["peer", "list"],
        ["peer", "list", "--json"],
        ["peer", "describe", "ben"],
        ["ask", "ben", "x"],
        ["wait", "ask-1"],
        ["wait", "ask-1", "--json"],
        ["asks"],
        ["notify", "ben", "x"],
        ["trace", "ask-1"],
        ["deliveries"],
    ]
    for command in commands:
        _, shown = on_a_terminal({**environ, "NO_COLOR": "1"}, *command, columns=200)
        assert shown
        assert UNSAFE.search(shown.encode()) is None, (command, shown)


def test_json_is_exact_for_the_program_that_reads_it(cli: Cli, stub: Stub) -> None:
    stub.answers["POST /asks/ask-1/wait"] = waited(reply=EVIL, close_reason="ack_with_msg")
    done = cli("wait", "ask-1", "--json")
    assert json.loads(done.stdout)["reply"] == EVIL
    assert UNSAFE.search(done.stdout.encode()) is None


def test_a_reply_in_a_pipe_is_letter_for_letter(cli: Cli, stub: Stub) -> None:
    text = "tab\tcolour \x1b[1m ✓"
    stub.answers["POST /asks/ask-1/wait"] = waited(reply=text, close_reason="ack_with_msg")
    assert cli("wait", "ask-1").stdout == text + "\n"


# -- the terminal --------------------------------------------------------------


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_a_table_fits_the_terminal(stub: Stub, environ: dict[str, str], columns: int) -> None:
    wide = {**PEER, "path": "/very/long/" + "path/" * 30, "description": "日本語の説明 " * 20}
    stub.answers["GET /peers"] = {"peers": [PEER, wide]}
    code, shown = on_a_terminal({**environ, "NO_COLOR": "1"}, "peer", "list", columns=columns)
    assert code == 0
    assert "…" in shown
    assert max(c.width_of(line) for line in shown.splitlines()) <= columns


def test_a_pipe_gets_all_of_it_unless_told_its_width(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /peers"] = {"peers": [{**PEER, "path": "/long" * 100}]}
    assert "/long" * 100 in cli("peer", "list").stdout
    assert max(map(len, cli("peer", "list", COLUMNS="50").stdout.splitlines())) <= 50


def test_colour_is_for_terminals_without_no_color(cli: Cli, stub: Stub, environ: dict[str, str]) -> None:
    stub.answers["GET /peers"] = {"peers": [PEER]}
    assert "\x1b[32monline\x1b[0m" in on_a_terminal(environ, "peer", "list")[1]
    assert "\x1b" not in on_a_terminal({**environ, "NO_COLOR": "1"}, "peer", "list")[1]
    assert "\x1b" not in cli("peer", "list").stdout


def test_widths_narrow_the_widest_column_first() -> None:
    assert c.widths([["name", "x" * 50, "y" * 20]], 40) == [4, 16, 16]
    assert c.widths([["name", "x" * 50]], None) == [4, 50]
    assert c.cut("日本語", 5) == "日本…"
    assert c.cut("abc", 3) == "abc"


def test_a_reader_that_leaves_early_is_no_trace(cli: Cli, stub: Stub, environ: dict[str, str]) -> None:
    stub.answers["GET /peers"] = {"peers": [PEER] * 5000}
    done = subprocess.run(
        f"{sys.executable} -m repowire peer list | head -1",
        shell=True,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


def test_a_refused_field_is_named() -> None:
    assert (
        c.refused(errors.invalid("text", "must be at most 64000 characters"))
        == "text: must be at most 64000 characters"
    )
