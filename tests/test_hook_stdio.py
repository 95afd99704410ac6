"""The hook as the agent starts it: what it sends, what it prints, and what it does with nonsense."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from conftest import DEADLINE_SECONDS
from hookserver import Server, http

HOOK = Path(__file__).parent.parent / "repowire" / "hook_stdio.py"
EVENT = b'{"hook_event_name": "Stop", "text": "\x00 \xff"}'
VARIABLES = {
    "TMUX": "/tmp/tmux-1000/default,12,0",
    "TMUX_PANE": "%3",
    "CLAUDE_PID": "4242",
    "CLAUDE_CODE_MESSAGING_SOCKET": "/run/cc.sock",
    "CLAUDE_CODE_MESSAGING_TOKEN": "secret",
    "CLAUDE_CODE_SESSION_ID": "5e55",
}


class Ran(NamedTuple):
    stdout: bytes
    stderr: bytes
    code: int


def run(home: Path | None, *arguments: str, stdin: bytes = EVENT, cwd: Path | None = None, **environ: str) -> Ran:
    """The hook to its end; REPOWIRE_HOME names the home unless it is None."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HOOK), *(arguments or ("claude-code", "Stop"))],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        timeout=DEADLINE_SECONDS,
        env=({"REPOWIRE_HOME": str(home)} if home else {}) | environ,
        check=False,
    )
    return Ran(done.stdout, done.stderr, done.returncode)


SILENT = Ran(b"", b"", 0)


@pytest.fixture
def serving(short_folder: Path) -> Iterator[Callable[..., Server]]:
    """`serving(answer, …)`: a daemon in that home which gives these answers, one a request."""
    made: list[Server] = []

    def build(*answers: bytes, home: Path = short_folder) -> Server:
        made.append(Server(home, answers))
        return made[-1]

    yield build
    for server in made:
        server.close()


def test_the_event_goes_out_as_it_came_with_the_agents_facts(
    serving: Callable[..., Server], short_folder: Path
) -> None:
    server = serving(http(b'{"decision": "block"}'))
    assert run(short_folder, cwd=short_folder, **VARIABLES) == Ran(b'{"decision": "block"}', b"", 0)
    (request,) = server.requests
    assert (request.line, request.body) == ("POST /hooks/claude-code/Stop HTTP/1.1", EVENT)
    assert request.headers == {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(EVENT)),
        "x-repowire-tmux": "/tmp/tmux-1000/default,12,0",
        "x-repowire-pane": "%3",
        "x-repowire-agent-pid": "4242",
        "x-repowire-inbox": "/run/cc.sock",
        "x-repowire-inbox-token": "secret",
        "x-repowire-session": "5e55",
        "x-repowire-cwd": str(short_folder),
    }


def test_a_variable_that_is_not_set_or_empty_leaves_no_header(
    serving: Callable[..., Server], short_folder: Path
) -> None:
    server = serving(http(b""))
    assert run(short_folder, TMUX="", cwd=short_folder) == SILENT
    assert [name for name in server.requests[0].headers if name.startswith("x-")] == ["x-repowire-cwd"]


def test_no_value_can_begin_another_header(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(http(b""))
    run(short_folder, TMUX="a\r\nX-Evil: 1", TMUX_PANE="b\nc\x1bd\te\x7f", CLAUDE_PID="9" * 9_000)
    (request,) = server.requests
    assert request.headers["x-repowire-tmux"] == "aX-Evil: 1"
    assert request.headers["x-repowire-pane"] == "bcde"
    assert not {"x-evil", "x-repowire-agent-pid"} & set(request.headers)


@pytest.mark.parametrize("name", ["plain", "with space ", "ünï✓", "line\nbreak", "100%25"])
def test_the_folder_can_be_read_from_its_header(serving: Callable[..., Server], short_folder: Path, name: str) -> None:
    server, folder = serving(http(b"")), short_folder / name
    folder.mkdir()
    run(short_folder, cwd=folder)
    said = server.requests[0].headers["x-repowire-cwd"]
    assert said.isascii()
    assert said.isprintable()
    assert unquote(said) == str(folder)


def test_a_folder_that_is_gone_is_not_named(serving: Callable[..., Server], short_folder: Path) -> None:
    server, folder = serving(http(b"ok")), short_folder / "gone"
    folder.mkdir()
    shell = f'cd "{folder}" && rmdir "{folder}" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-I", "-S", str(HOOK), "claude-code", "Stop"],
        input=EVENT,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(short_folder)},
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"ok", b"", 0)
    assert "x-repowire-cwd" not in server.requests[0].headers


# -- homes --------------------------------------------------------------------


def test_a_home_whose_path_no_socket_address_holds(serving: Callable[..., Server], short_folder: Path) -> None:
    home = short_folder / ("h" * 120)
    home.mkdir()
    serving(http(b"ok"), home=home)
    assert run(home).stdout == b"ok"


def test_the_flag_goes_before_the_variable_and_that_before_the_default(
    serving: Callable[..., Server], short_folder: Path
) -> None:
    default = short_folder / ".repowire"
    default.mkdir()
    serving(http(b"default"), http(b"tilde"), home=default)
    serving(http(b"other"))
    assert run(None, HOME=str(short_folder)).stdout == b"default"
    assert run(Path("~/.repowire"), HOME=str(short_folder)).stdout == b"tilde"
    flag = ("claude-code", "Stop", "--home", str(short_folder))
    assert run(short_folder / "nowhere", *flag).stdout == b"other"


@pytest.mark.parametrize(
    "arguments",
    [("claude-code",), ("a", "b", "c"), ("a/../b", "Stop"), ("claude-code", "Stop?x=1"), ("claude-code", "--home")],
)
def test_arguments_that_make_no_sense_are_nobodys(
    serving: Callable[..., Server], short_folder: Path, arguments: tuple[str, ...]
) -> None:
    server = serving(http(b"ok"))
    assert run(short_folder, *arguments) == SILENT
    assert server.requests == []


# -- answers ------------------------------------------------------------------


def test_what_was_printed_is_receipted_and_only_then(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(http(b"text", receipt="to-ken_1"), http(b"not printed"))
    assert run(short_folder) == Ran(b"text", b"", 0)
    assert [request.line for request in server.requests] == [
        "POST /hooks/claude-code/Stop HTTP/1.1",
        "POST /hooks/receipts/to-ken_1 HTTP/1.1",
    ]
    assert server.requests[1].body == b""


def test_nothing_is_receipted_that_nobody_reads(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(http(b"text" * 50_000, receipt="token"), http(b""))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-I", "-S", str(HOOK), "claude-code", "Stop"]
    hook = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        env={"REPOWIRE_HOME": str(short_folder)},
    )
    os.close(writer)
    assert hook.communicate(timeout=DEADLINE_SECONDS) == (None, b"")
    assert hook.returncode == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("token", ["", "a/b", "a b", "../x"])
def test_a_token_that_is_none_asks_for_nothing(serving: Callable[..., Server], short_folder: Path, token: str) -> None:
    server = serving(http(b"text", receipt=token), http(b""))
    assert run(short_folder).stdout == b"text"
    assert len(server.requests) == 1


def test_a_large_answer_comes_through_whole(serving: Callable[..., Server], short_folder: Path) -> None:
    serving(http(b"x" * 3_000_000))
    assert run(short_folder).stdout == b"x" * 3_000_000


@pytest.mark.parametrize(
    "answer",
    [
        http(b"no such event", status=404),
        http(b"", status=204),
        http(b"broken", status=500),
        http(b"text", size=10),
        http(b"text", size=-1),
        http(b"text", size=99_999_999_999_999),
        b"",
        b"\x00\xff garbage\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 4\r\n\r\ntext",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"A: " + b"b" * 200_000,
    ],
)
def test_no_other_answer_is_printed(serving: Callable[..., Server], short_folder: Path, answer: bytes) -> None:
    serving(answer)
    assert run(short_folder) == SILENT


# -- events -------------------------------------------------------------------


@pytest.mark.parametrize("stdin", [b"", b"{", b"\x00" * 100, b"x" * 8 * 1024 * 1024])
def test_whatever_the_event_is_it_is_the_daemons_to_judge(
    serving: Callable[..., Server], short_folder: Path, stdin: bytes
) -> None:
    server = serving(http(b"ok"))
    assert run(short_folder, stdin=stdin).stdout == b"ok"
    assert server.requests[0].body == stdin


def test_an_event_over_8_mib_is_read_and_not_sent(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(http(b"ok"))
    assert run(short_folder, stdin=b"x" * (8 * 1024 * 1024 + 1)) == SILENT
    assert server.requests == []


def test_closed_streams_are_not_mixed_up_with_the_socket(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(http(b"text", receipt="token"), http(b""))
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-I", "-S", str(HOOK), "claude-code", "Stop"],
        timeout=DEADLINE_SECONDS,
        env={"REPOWIRE_HOME": str(short_folder)},
        check=False,
    )
    assert done.returncode == 0
    assert [request.body for request in server.requests] == [b"", b""]


def test_many_hooks_at_once(serving: Callable[..., Server], short_folder: Path) -> None:
    server = serving(*[http(b"ok")] * 10)
    ran: list[Ran] = []
    threads = [threading.Thread(target=lambda: ran.append(run(short_folder))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert ran == [Ran(b"ok", b"", 0)] * 10
    assert len(server.requests) == 10
