"""The gate as an agent starts it: only a daemon's clear verdict lets a tool run, and everything else refuses it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import pytest
from conftest import DEADLINE_SECONDS
from hookserver import Server, http

from repowire import config

GATE = Path(__file__).parent.parent / "repowire" / "gate_stdio.py"
EVENT = b'{"hook_event_name": "PreToolUse", "tool_name": "Bash"}'
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
ALLOW, DENY = b'{"may": "allow"}', b'{"may": "deny"}'


class Ran(NamedTuple):
    stdout: bytes
    stderr: bytes
    code: int


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(GATE), *(arguments or ("claude-code", "PreToolUse"))]


def run(home: Path, *arguments: str, stdin: bytes = EVENT, seconds: str | None = None) -> Ran:
    """The gate to its end."""
    more = () if seconds is None else ("--seconds", seconds)
    done = subprocess.run(
        command(*(arguments or ("claude-code", "PreToolUse")), *more),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(home), "TMUX_PANE": "%3"},
        check=False,
    )
    return Ran(done.stdout, done.stderr, done.returncode)


def refused(ran: Ran, words: str = "") -> bool:
    """As every agent reads it: exit code 2, the reason on stderr, and nothing that could pass for a verdict."""
    line, _, more = ran.stderr.decode().partition("\n")
    return (ran.code, ran.stdout, more) == (2, b"", "") and line.startswith("repowire refused this: ") and words in line


def verdict(body: bytes, word: str | None = "allow", **more: int) -> bytes:
    """An answer of the daemon's, with the header that makes it a verdict."""
    header = b"" if word is None else b"X-Repowire-Verdict: " + word.encode() + b"\r\n"
    first, _, rest = http(body, **more).partition(b"\r\n")
    return first + b"\r\n" + header + rest


@pytest.fixture
def serving(short_folder: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def build(*answers: bytes) -> Server:
        made.append(Server(short_folder, answers))
        return made[-1]

    yield build
    for server in made:
        server.close()


@pytest.fixture
def behaving(short_folder: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], None]]:
    """`behaving(do)`: a daemon that does this with each connection, until the test ends."""
    listeners = []

    def build(do: Callable[[socket.socket], None]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(config.socket_address(short_folder / "daemon.sock"))
        listener.listen()
        listeners.append(listener)

        def serve() -> None:
            try:
                while True:
                    link, _ = listener.accept()
                    with link:
                        do(link)
            except OSError:
                return

        Thread(target=serve, daemon=True).start()

    yield build
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# -- verdicts -------------------------------------------------------------------


@pytest.mark.parametrize(("body", "word"), [(ALLOW, "allow"), (DENY, "deny"), (b"{" + b" " * 300_000 + b"}", "deny")])
def test_a_verdict_is_printed_as_it_came(
    serving: Callable[..., Server], short_folder: Path, body: bytes, word: str
) -> None:
    server = serving(PROCESSING * 3 + verdict(body, word))
    assert run(short_folder, seconds="100") == Ran(body, b"", 0)
    (request,) = server.requests
    assert (request.line, request.body) == ("POST /gates/claude-code/PreToolUse HTTP/1.1", EVENT)
    assert request.headers["x-repowire-pane"] == "%3"
    assert request.headers["x-repowire-waits"] == "95"


def test_a_tool_that_is_not_gated_runs_without_a_word(serving: Callable[..., Server], short_folder: Path) -> None:
    serving(PROCESSING + verdict(b"", "none"))
    assert run(short_folder) == Ran(b"", b"", 0)


NONSENSE = [
    b"",
    PROCESSING,
    PROCESSING + b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 2x4 No Content\r\n\r\n",
    b"HTTP/1.1 1\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"\x00\xff garbage\r\n\r\n",
    b"A: " + b"b" * 200_000,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    http(b""),
    http(ALLOW),
    verdict(ALLOW, None),
    verdict(ALLOW, "none"),
    verdict(ALLOW, "allow", size=5),
    verdict(ALLOW, "allow", size=500),
    verdict(ALLOW, "allow", size=-1),
    verdict(ALLOW, "allow", size=99_999_999_999_999),
    verdict(b"", "allow"),
    verdict(b"allow", "allow"),
    verdict(b"{allow}", "allow"),
    verdict(b"{}{}", "deny"),
    verdict(b'{"a": NaN, }', "deny"),
    verdict(DENY.replace(b'": ', b'" '), "deny"),
    verdict(b'{"a": "\xff"}', "deny"),
    verdict(ALLOW, "allow", status=201),
    verdict(ALLOW, "allow", status=404),
    verdict(ALLOW, "allow", status=500),
    verdict(ALLOW, "allow", status=302),
]


@pytest.mark.parametrize("answer", NONSENSE)
def test_every_other_answer_refuses_the_tool(serving: Callable[..., Server], short_folder: Path, answer: bytes) -> None:
    serving(answer)
    ran = run(short_folder)
    assert refused(ran), ran


@pytest.mark.parametrize("answer", NONSENSE)
def test_before_an_open_dialog_it_says_nothing_then(
    serving: Callable[..., Server], short_folder: Path, answer: bytes
) -> None:
    serving(answer)
    assert run(short_folder, "claude-code", "PermissionRequest", "--open") == Ran(b"", b"", 0)


def test_a_refusal_of_the_daemons_is_told_with_its_hint(serving: Callable[..., Server], short_folder: Path) -> None:
    serving(http(b'{"detail": {"error": "body_too_large", "hint": "a body has at most\\u001b 1 MiB"}}', status=413))
    ran = run(short_folder)
    assert refused(ran, "HTTP 413 (a body has at most")
    assert b"\x1b" not in ran.stderr


# -- a daemon that is away, hung or slow ------------------------------------------


def test_without_a_daemon_it_refuses_and_says_how_to_get_one(short_folder: Path) -> None:
    assert refused(run(short_folder), "repowire daemon --detach")
    assert refused(run(short_folder / "nowhere"), "repowire daemon --detach")
    (short_folder / "daemon.sock").touch()
    assert refused(run(short_folder), "repowire daemon --detach")


def test_a_daemon_that_accepts_and_says_nothing(behaving: Callable[..., None], short_folder: Path) -> None:
    over = Event()
    behaving(lambda link: over.wait(DEADLINE_SECONDS) and None)
    began = time.monotonic()
    assert refused(run(short_folder, seconds="0.5"), "does not answer")
    assert time.monotonic() - began >= 0.5
    over.set()


def test_one_that_waits_for_a_human_for_longer_than_the_runtime_does(
    behaving: Callable[..., None], short_folder: Path
) -> None:
    over = Event()

    def wait(link: socket.socket) -> None:
        while not over.wait(0.05):
            link.sendall(PROCESSING)

    behaving(wait)
    assert refused(run(short_folder, seconds="1"), "nobody answered")
    over.set()


def test_one_that_dies_while_somebody_thinks(behaving: Callable[..., None], short_folder: Path) -> None:
    def die(link: socket.socket) -> None:
        link.recv(1)
        link.sendall(PROCESSING)
        link.shutdown(socket.SHUT_RDWR)

    behaving(die)
    assert refused(run(short_folder))


def test_a_verdict_that_comes_in_pieces(behaving: Callable[..., None], short_folder: Path) -> None:
    def dribble(link: socket.socket) -> None:
        link.recv(65_536)
        for at in range(len(whole := PROCESSING + verdict(DENY, "deny"))):
            link.sendall(whole[at : at + 1])

    behaving(dribble)
    assert run(short_folder) == Ran(DENY, b"", 0)


# -- its own end ------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ended_from_outside_it_still_refuses(
    behaving: Callable[..., None], short_folder: Path, number: signal.Signals
) -> None:
    asked, over = Event(), Event()

    def wait(link: socket.socket) -> None:
        link.recv(65_536)
        asked.set()
        over.wait(DEADLINE_SECONDS)

    behaving(wait)
    gate = subprocess.Popen(
        command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"REPOWIRE_HOME": str(short_folder)},
    )
    assert asked.wait(DEADLINE_SECONDS)
    gate.send_signal(number)
    stdout, stderr = gate.communicate(timeout=DEADLINE_SECONDS)
    assert refused(Ran(stdout, stderr, gate.returncode), "it was ended")
    over.set()


@pytest.mark.parametrize("word", ["allow", "deny"])
def test_a_verdict_that_nobody_reads_is_a_refusal(
    serving: Callable[..., Server], short_folder: Path, word: str
) -> None:
    serving(verdict(ALLOW, word), verdict(ALLOW, word))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command(),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(short_folder)},
        check=False,
    )
    os.close(writer)
    assert done.returncode == 2
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command()],
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(short_folder)},
        check=False,
    )
    assert done.returncode == 2


def test_a_call_too_large_to_be_shown_is_refused(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(verdict(ALLOW))
    assert refused(run(short_folder, stdin=b"x" * (8 * 1024 * 1024 + 1)), "too large")
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("claude-code",),
        ("a", "b", "c"),
        ("a/../b", "PreToolUse"),
        ("claude-code", "Pre?x=1"),
        ("claude-code", "PreToolUse", "--home"),
        ("claude-code", "PreToolUse", "--seconds"),
        ("claude-code", "PreToolUse", "--seconds", "soon"),
    ],
)
def test_arguments_that_make_no_sense_refuse(
    serving: Callable[..., Server], short_folder: Path, arguments: tuple[str, ...]
) -> None:
    server = serving(verdict(ALLOW))
    assert refused(run(short_folder, *arguments))
    assert server.requests == []


def test_a_broken_installation_refuses(tmp_path: Path) -> None:
    alone = tmp_path / "repowire" / "gate_stdio.py"
    alone.parent.mkdir()
    alone.write_bytes(GATE.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(alone), "claude-code", "PreToolUse"],
        input=EVENT,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert refused(Ran(done.stdout, done.stderr, done.returncode), "install repowire again")
