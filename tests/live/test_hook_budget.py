"""What the hook may cost an agent whose daemon is away, hung or slow (field.md E3 23): a bound, and silence.

The bounds are the hook's own plus what starting an interpreter takes on a busy machine.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import pytest
from conftest import DEADLINE_SECONDS, Live
from hookserver import http

pytestmark = pytest.mark.live

HOOK = Path(__file__).parent.parent.parent / "repowire" / "hook_stdio.py"
START_SECONDS = 0.7  # an interpreter's start is 12 ms; the rest is for whatever else the machine does
HUNG_SECONDS, SLOW_SECONDS, ENDING_SECONDS = 0.3, 2.0, 1.0
EVENTS = [
    "SessionStart",
    "UserPromptSubmit",
    "Stop",
    "StopFailure",
    "Notification",
    "PermissionRequest",
    "PostToolUse",
    "SessionEnd",
]

Behave = Callable[[socket.socket], None]


class Ran(NamedTuple):
    stdout: bytes
    stderr: bytes
    code: int
    seconds: float


def run(home: Path, event: str = "Stop", stdin: bytes = b"{}") -> Ran:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HOOK), "claude-code", event],
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(home)},
        check=False,
    )
    return Ran(done.stdout, done.stderr, done.returncode, time.monotonic() - began)


def silent_within(ran: Ran, seconds: float, least: float = 0.0) -> None:
    assert ran[:3] == (b"", b"", 0)
    assert least <= ran.seconds < seconds + START_SECONDS


@pytest.fixture
def listening(short_folder: Path) -> Iterator[Callable[..., socket.socket]]:
    """`listening(behave)`: a socket in the home; `behave` gets each connection, nobody accepts without one."""
    listeners, over = [], Event()

    def build(behave: Behave | None = None, backlog: int = 10) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(short_folder / "daemon.sock"))
        listener.listen(backlog)
        listeners.append(listener)

        def accept() -> None:
            with suppress(OSError):
                while not over.is_set():
                    link, _ = listener.accept()
                    with suppress(OSError), link:
                        behave(link)  # type: ignore[misc]

        if behave is not None:
            Thread(target=accept, daemon=True).start()
        return listener

    yield build
    over.set()
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def trickle(answer: bytes, step: float = 0.05) -> Behave:
    """A byte at a time, for as long as somebody reads."""

    def behave(link: socket.socket) -> None:
        link.recv(65_536)
        for at in range(len(answer)):
            link.sendall(answer[at : at + 1])
            Event().wait(step)

    return behave


def until_it_leaves(link: socket.socket) -> None:
    """Read what comes and answer nothing."""
    while link.recv(65_536):
        pass


@pytest.mark.parametrize("event", EVENTS)
def test_without_a_daemon_no_event_costs_anything(short_folder: Path, event: str) -> None:
    silent_within(run(short_folder / "nowhere", event), 0)
    silent_within(run(short_folder, event), 0)


def test_a_socket_file_that_a_dead_daemon_left(live: Live) -> None:
    live.kill()
    assert (live.home / "daemon.sock").exists()
    silent_within(run(live.home), 0)


@pytest.mark.parametrize("event", EVENTS)
def test_a_daemon_that_accepts_and_says_nothing(
    listening: Callable[..., socket.socket], short_folder: Path, event: str
) -> None:
    listening(until_it_leaves)
    silent_within(run(short_folder, event), HUNG_SECONDS, HUNG_SECONDS)


def test_a_daemon_that_is_stopped(live: Live) -> None:
    assert live.process is not None
    live.process.send_signal(19)  # SIGSTOP: the kernel accepts for it
    try:
        silent_within(run(live.home), HUNG_SECONDS, HUNG_SECONDS)
    finally:
        live.process.send_signal(18)


def test_a_daemon_whose_backlog_is_full(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    listening(backlog=0)
    waiting = []
    with suppress(BlockingIOError):
        while len(waiting) < 10:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(short_folder / "daemon.sock"))
    silent_within(run(short_folder), HUNG_SECONDS)
    for one in waiting:
        one.close()


def test_a_daemon_that_does_not_read_a_large_event(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    listening()
    silent_within(run(short_folder, stdin=b"x" * 4_000_000), HUNG_SECONDS, HUNG_SECONDS)


@pytest.mark.parametrize(("event", "seconds"), [("Stop", SLOW_SECONDS), ("SessionEnd", ENDING_SECONDS)])
def test_an_answer_that_trickles(
    listening: Callable[..., socket.socket], short_folder: Path, event: str, seconds: float
) -> None:
    listening(trickle(http(b"text" * 1_000)))
    silent_within(run(short_folder, event), seconds, seconds - 0.1)


def test_an_answer_that_trickles_and_makes_it(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    listening(trickle(http(b"text"), 0.005))
    assert run(short_folder)[:3] == (b"text", b"", 0)


def test_a_receipt_that_nobody_takes(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    def behave(link: socket.socket) -> None:
        link.recv(65_536)
        link.sendall(http(b"text", receipt="token"))
        until_it_leaves(link)

    listening(behave)
    ran = run(short_folder)
    assert ran[:3] == (b"text", b"", 0)
    assert ran.seconds < SLOW_SECONDS + START_SECONDS


def test_an_endless_answer(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    def behave(link: socket.socket) -> None:
        while True:
            link.sendall(b"HTTP/1.1 200 OK ")

    listening(behave)
    silent_within(run(short_folder), 0)


@pytest.mark.parametrize(("event", "seconds"), [("Stop", SLOW_SECONDS), ("SessionEnd", ENDING_SECONDS)])
def test_a_stdin_that_nobody_closes(
    listening: Callable[..., socket.socket], short_folder: Path, event: str, seconds: float
) -> None:
    listening(until_it_leaves)
    reader, writer = os.pipe()
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(HOOK), "claude-code", event],
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"REPOWIRE_HOME": str(short_folder)},
    ) as hook:
        os.close(reader)
        said = hook.communicate(timeout=DEADLINE_SECONDS)
        silent_within(Ran(*said, hook.returncode, time.monotonic() - began), seconds, seconds - 0.1)
    os.close(writer)


def test_a_stdout_that_nobody_reads(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    def behave(link: socket.socket) -> None:
        link.recv(65_536)
        link.sendall(http(b"x" * 1_000_000))

    listening(behave)
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(HOOK), "claude-code", "Stop"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={"REPOWIRE_HOME": str(short_folder)},
    ) as hook:
        assert hook.wait(DEADLINE_SECONDS) == 0
    assert time.monotonic() - began < SLOW_SECONDS + START_SECONDS


def test_a_blocked_alarm_does_not_unbind_it(listening: Callable[..., socket.socket], short_folder: Path) -> None:
    listening(until_it_leaves)
    code = "import os, signal, sys; signal.pthread_sigmask(0, [signal.SIGALRM]); os.execv(sys.argv[1], sys.argv[1:])"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-I", "-S", str(HOOK), "claude-code", "Stop"],
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(short_folder)},
        check=False,
    )
    assert done.returncode == 0
    assert time.monotonic() - began < HUNG_SECONDS + 2 * START_SECONDS
