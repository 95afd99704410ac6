"""The command line and a real daemon: one terminal asks, a script in another answers."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, end_daemons, gone, until

from repowire.config import read_lock

pytestmark = pytest.mark.live

TEXT = 'two\nlines ✓ "quoted" $HOME `x` \\ \t;'


class Listener:
    """`repowire listen` as a process; ended with the test."""

    def __init__(self, live: Live, cwd: Path, arguments: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            live.command("listen", *arguments),
            env=live.environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def line(self) -> Any:
        """The next JSON line."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, self.end()
        return json.loads(text)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; its exit code and stderr."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            _, err = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, err


Listen = Callable[..., Listener]


@pytest.fixture
def listen(live: Live, tmp_path: Path) -> Iterator[Listen]:
    """`listen("--name", "build", …)` in `tmp_path`, connected when it returns."""
    made: list[Listener] = []

    def start(*arguments: str, cwd: Path = tmp_path) -> Listener:
        made.append(Listener(live, cwd, ("--json", *arguments)))
        assert made[-1].line()["listening"] is True
        return made[-1]

    yield start
    for listener in made:
        if listener.process.poll() is None:
            listener.end(signal.SIGKILL)


# -- listen --------------------------------------------------------------------


def test_a_command_answers_from_the_folder_it_stands_in(live: Live, listen: Listen, tmp_path: Path) -> None:
    listener = listen("--name", "build", "--exec", 'cat; echo; pwd; echo "$REPOWIRE_FROM/$REPOWIRE_KIND"; echo; echo')
    done = live.cli("ask", "build", "-", "--wait", "10", stdin=TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{TEXT}\n{tmp_path}\nhuman/ask\n"
    told = listener.line()
    assert (told["kind"], told["from_peer"], told["exit"]) == ("ask", "human", 0)
    assert listener.end()[0] == 0


def test_a_command_that_fails_says_so_to_the_asker(live: Live, listen: Listen) -> None:
    listen("--name", "build", "--exec", "echo hidden; echo 'no such \x1b[31mtarget' >&2; exit 3")
    done = live.cli("ask", "build", "x", "--wait", "10")
    assert (done.returncode, done.stdout) == (0, "exit 3\nno such \x1b[31mtarget\n")


def test_a_command_gets_what_no_environment_holds_on_stdin(live: Live, listen: Listen) -> None:
    """64,000 characters of four bytes are more than Linux takes in one variable."""
    listen("--name", "build", "--exec", 'wc -m; printf %s "$REPOWIRE_TEXT" | wc -c')
    done = live.cli("ask", "build", "-", "--wait", "10", stdin="𝄞" * 64_000, LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == 100_000


def test_a_command_that_reads_nothing_and_prints_too_much(live: Live, listen: Listen) -> None:
    listen("--name", "build", "--exec", "yes | head -c 300000")
    done = live.cli("ask", "build", "-", "--wait", "10", stdin="x" * 64_000)
    assert done.returncode == 0
    assert done.stdout.endswith("[… cut by repowire listen]\n")
    assert len(done.stdout.removesuffix("\n")) == 64_000


def test_messages_as_lines_and_a_reply_by_hand(live: Live, listen: Listen) -> None:
    listener = listen("--name", "inbox")
    assert live.cli("notify", "inbox", TEXT).returncode == 0
    asked = live.cli("ask", "inbox", "ready?").stdout.strip()
    note, ask = listener.line(), listener.line()
    assert (note["kind"], note["text"], note["from_peer"]) == ("notify", TEXT, "human")
    assert (ask["kind"], ask["text"], ask["correlation_id"]) == ("ask", "ready?", asked)
    assert live.cli("wait", asked, "--timeout", "0").returncode == 4
    assert live.cli("ack", asked, "-m", "yes").returncode == 0
    assert live.cli("wait", asked, "--timeout", "5").stdout == "yes\n"
    assert live.cli("asks", "--answered").stdout.splitlines()[1].split()[0] == asked


def test_each_message_is_run_once_and_in_order(live: Live, listen: Listen, tmp_path: Path) -> None:
    listener = listen("--name", "build", "--exec", "cat >> got; echo >> got")
    for number in range(10):
        assert live.cli("notify", "build", str(number)).returncode == 0
    for _ in range(10):
        listener.line()
    assert (tmp_path / "got").read_text().split() == [str(number) for number in range(10)]


def test_a_killed_listener_gets_its_mail_when_it_is_back(live: Live, listen: Listen) -> None:
    first = listen("--name", "build", "--exec", "cat")
    first.end(signal.SIGKILL)
    until(lambda: "offline" in live.cli("peer", "describe", "build").stdout)
    refused = live.cli("ask", "build", "now?")
    assert refused.returncode == 1
    assert "--queue" in refused.stderr
    asked = live.cli("ask", "build", "later", "--queue").stdout.strip()
    listen("--name", "build", "--exec", "cat")
    assert live.cli("wait", asked, "--timeout", "10").stdout == "later\n"


def test_the_daemon_may_die_while_we_wait_and_the_answer_still_comes(
    live: Live, listen: Listen, tmp_path: Path
) -> None:
    listen("--name", "build", "--exec", "until test -e go; do sleep 0.05; done; cat")
    waiting = subprocess.Popen(
        live.command("ask", "build", "still there?", "--wait", "25"),
        env=live.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: "handed" in live.cli("asks").stdout)
    port = str(live.port)
    live.kill()
    (tmp_path / "go").touch()
    live.start("--port", port)
    out, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (0, "still there?\n")


def test_a_wait_whose_daemon_stays_away_names_the_ask_that_is_kept(live: Live, listen: Listen) -> None:
    listen("--name", "build", "--exec", "sleep 30")
    waiting = subprocess.Popen(
        live.command("ask", "build", "x", "--wait", "2"),
        env=live.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked = until(lambda: live.cli("asks").stdout.partition("ask-")[2][:12])
    live.kill()
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (3, "")
    assert f"repowire wait ask-{asked}" in err


def test_what_a_command_leaves_behind_holds_up_neither_its_reply_nor_the_next_message(
    live: Live, listen: Listen, tmp_path: Path
) -> None:
    listener = listen("--name", "build", "--exec", "sleep 600 & echo $! >> left; cat")
    try:
        for text in ("one", "two"):
            done = live.cli("ask", "build", text, "--wait", "8")
            assert (done.returncode, done.stdout) == (0, f"{text}\n"), done.stderr
        code, err = listener.end()
        assert (code, "Traceback" in err) == (0, False)
    finally:
        for pid in map(int, (tmp_path / "left").read_text().split()):
            os.kill(pid, signal.SIGKILL)


def test_a_stop_ends_the_command_that_runs(live: Live, listen: Listen, tmp_path: Path) -> None:
    listener = listen("--name", "build", "--exec", "echo $$ > pid; exec sleep 600")
    live.cli("notify", "build", "x")
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
    code, _ = listener.end(signal.SIGINT)
    assert code == 0
    until(lambda: gone(pid))


def test_a_stop_kills_a_command_that_does_not_heed_it(live: Live, listen: Listen, tmp_path: Path) -> None:
    listener = listen("--name", "build", "--exec", "trap '' TERM; echo $$ > pid; sleep 600")
    live.cli("notify", "build", "x")
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
    try:
        code, err = listener.end()
        assert code == 0
        assert "Traceback" not in err
        assert gone(pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def test_a_second_one_of_a_name_takes_the_next_name_and_says_so(live: Live, listen: Listen, tmp_path: Path) -> None:
    listen("--name", "build")
    second = listen("--name", "build")
    shown = live.cli("peer", "list", "--json")
    assert {peer["display_name"] for peer in json.loads(shown.stdout)["peers"]} >= {"build", "build-2"}
    assert "this one is build-2" in second.end()[1]


def test_a_reader_that_leaves_ends_the_listening(live: Live, listen: Listen) -> None:
    listener = listen("--name", "inbox")
    assert listener.process.stdout is not None
    listener.process.stdout.close()
    live.cli("notify", "inbox", "x")
    assert listener.process.wait(10) == 1


def test_a_reader_that_stalls_does_not_keep_a_signal_out(live: Live, listen: Listen) -> None:
    """Its pipe is full: the message waits in the listener, and Ctrl-C still ends it at once."""
    listener = listen("--name", "inbox")
    for _ in range(3):
        assert live.cli("notify", "inbox", "-", stdin="x" * 60_000).returncode == 0
    assert listener.end(signal.SIGINT)[0] == 0


def test_a_daemon_that_has_no_socket_left_is_told_in_words(new_live: Callable[..., Live], tmp_path: Path) -> None:
    live = new_live().start(REPOWIRE_DAEMON__MAX_SOCKETS="1")
    one = Listener(live, tmp_path, ("--json", "--name", "one"))
    try:
        assert one.line()["listening"] is True
        done = live.cli("listen", "--name", "two")
    finally:
        one.end()
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "opened no socket: as many are open as daemon.max_sockets allows" in done.stderr


def test_listening_over_tcp_ends_when_the_token_is_rotated(live: Live, tmp_path: Path) -> None:
    live.environ["REPOWIRE_DAEMON_URL"] = f"http://127.0.0.1:{live.port}"
    listener = Listener(live, tmp_path, ("--json", "--name", "far"))
    assert listener.line()["display_name"] == "far"
    del live.environ["REPOWIRE_DAEMON_URL"]
    assert live.cli("token", "--rotate").returncode == 0
    assert listener.process.wait(10) == 1
    assert "token" in listener.end()[1]


# -- peers, messages, events ---------------------------------------------------


def test_a_peer_is_registered_described_and_removed(live: Live, tmp_path: Path) -> None:
    made = live.cli("peer", "register", "ann", "-p", str(tmp_path), "-c", "blue", "--role", "service")
    assert made.returncode == 0
    shown = live.cli("peer", "describe", "ann", "--json")
    peer = json.loads(shown.stdout)
    assert (peer["peer_id"], peer["circle"], peer["role"]) == (made.stdout.strip(), "blue", "service")
    assert live.cli("peer", "unregister", "ann").returncode == 0
    missing = live.cli("peer", "describe", "ann")
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1


def test_a_near_name_is_suggested(live: Live, listen: Listen) -> None:
    listen("--name", "builder")
    done = live.cli("ask", "bulder", "x")
    assert done.returncode == 1
    assert "builder" in done.stderr


def test_a_trace_of_an_answered_ask(live: Live, listen: Listen) -> None:
    listen("--name", "build", "--exec", "cat")
    asked = live.cli("ask", "build", "x").stdout.strip()
    live.cli("wait", asked, "--timeout", "10")
    done = live.cli("trace", asked)
    assert done.returncode == 0
    stages = [line.split()[3] for line in done.stdout.splitlines()[1:]]
    assert [stages.index(name) for name in ("created", "leased", "handed", "acked")] == sorted(
        stages.index(name) for name in ("created", "leased", "handed", "acked")
    )
    assert live.cli("trace", "ask-nothing").returncode == 1


def test_tail_follows_through_a_restart_without_loss_or_repeat(live: Live) -> None:
    tail = subprocess.Popen(
        live.command("tail", "--json", "--since", "0"), env=live.environ, stdout=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    seen = [json.loads(tail.stdout.readline())]
    live.cli("peer", "register", "ann", "-p", "/tmp")
    port = str(live.port)
    live.term()
    live.start("--port", port)
    live.cli("peer", "register", "ben", "-p", "/tmp")
    while seen[-1].get("name") != "ben":
        seen.append(json.loads(tail.stdout.readline()))
    tail.send_signal(signal.SIGINT)
    tail.communicate(timeout=10)
    assert tail.returncode == 130
    ids = [int(event["id"]) for event in seen]
    assert ids == sorted(set(ids))
    names = [event.get("name") for event in seen if event["kind"] == "peer.registered"]
    assert names == ["ann", "ben"]
    assert [event["kind"] for event in seen].count("daemon.started") == 2


# -- the daemon itself ---------------------------------------------------------


@pytest.fixture
def home(new_live: Callable[..., Live]) -> Iterator[Live]:
    """A home without a daemon; whatever --detach started in it is ended by its own pid."""
    made = new_live("detached")
    yield made
    pid = (read_lock(made.home) or {}).get("pid")
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))


def test_the_life_of_a_detached_daemon(home: Live) -> None:
    assert home.cli("daemon", "stop").returncode == 3
    assert home.cli("daemon", "status").returncode == 3
    started = home.cli("daemon", "--detach", "--port", "0", "--json")
    assert started.returncode == 0, started.stderr
    ready = json.loads(started.stdout)
    assert ready["ready"] is True
    status = json.loads(home.cli("status", "--json").stdout)
    assert (status["status"], status["daemon"]["pid"], status["daemon"]["port"]) == ("ok", ready["pid"], ready["port"])
    assert f"(pid {ready['pid']}" in home.cli("daemon", "--detach").stderr
    again = home.cli("daemon", "restart", "--json")
    assert again.returncode == 0, again.stderr
    assert (json.loads(again.stdout)["port"], gone(ready["pid"])) == (ready["port"], True)
    stopped = home.cli("daemon", "stop", "--json")
    assert json.loads(stopped.stdout) == {"stopped": True, "pid": json.loads(again.stdout)["pid"]}
    assert gone(json.loads(again.stdout)["pid"])
    assert stat.S_IMODE((home.home / "daemon.log").stat().st_mode) == 0o600


def test_starters_at_the_same_moment_all_name_one_daemon_and_no_other_comes_after_its_end(home: Live) -> None:
    home.home.mkdir(mode=0o700)
    command = home.command("daemon", "--detach", "--port", "0", "--json")
    starters = [
        subprocess.Popen(command, env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    said = [(*one.communicate(timeout=40), one.returncode) for one in starters]
    assert [(code, err) for _, err, code in said] == [(0, b"")] * 4
    (pid,) = {json.loads(out)["pid"] for out, _, _ in said}
    assert home.cli("daemon", "stop").returncode == 0
    assert (gone(pid), end_daemons(home.home.parent)) == (True, [])


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(live: Live) -> None:
    for arguments in (["daemon"], ["serve", "--detach"]):
        done = live.cli(*arguments, "--port", "0")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"pid {live.pid}" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_daemon_that_cannot_start_says_why_in_one_line(home: Live, live: Live) -> None:
    busy = home.cli("daemon", "--port", str(live.port))
    assert busy.returncode == 1
    assert str(live.port) in busy.stderr
    assert busy.stderr.count("\n") == 1
    wrong = home.cli("daemon", "--detach", REPOWIRE_DAEMON__DRAIN_SECONDS="soon")
    assert wrong.returncode == 1
    assert "REPOWIRE_DAEMON__DRAIN_SECONDS" in wrong.stderr
    open_to_all = home.cli("daemon", "--host", "0.0.0.0", "--port", "0", REPOWIRE_DAEMON__AUTH_TOKEN="")
    assert open_to_all.returncode == 1
    assert open_to_all.stderr.count("\n") == 1
    home.home.mkdir(mode=0o700, exist_ok=True)
    (home.home / "state.db").write_bytes(b"this is no database, but long enough to look like one" * 100)
    for arguments in (["daemon", "--port", "0"], ["daemon", "--port", "0", "--detach"]):
        broken = home.cli(*arguments)
        assert broken.returncode == 1
        assert "state.db" in broken.stderr
        assert broken.stderr.count("\n") == 1, broken.stderr


def test_a_stop_while_the_lock_names_a_daemon_that_is_dead_says_so(home: Live) -> None:
    """As in the moment in which the next one has the lock of a killed one and has not written itself down."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    home.home.mkdir(mode=0o700)
    (home.home / "daemon.lock").write_text(json.dumps({"pid": int(ended.stdout), "port": 1}))
    with open(home.home / "daemon.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stopped = home.cli("daemon", "stop")
    assert stopped.returncode == 1
    assert "has not said its pid yet; try again in a moment" in stopped.stderr
    assert stopped.stderr.count("\n") == 1


def test_a_daemon_that_was_killed_is_not_running(live: Live) -> None:
    """Its lock file still names a pid, which may be anybody's by now."""
    live.kill()
    for verb in ("stop", "status"):
        done = live.cli("daemon", verb)
        assert done.returncode == 3, done.stderr


def has_pending(pid: int, number: int) -> bool:
    """Whether a signal waits for a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_stuck_daemon_is_stopped_by_a_signal(live: Live) -> None:
    """One that takes no request any more still ends: /shutdown goes unanswered, so SIGTERM follows."""
    os.kill(live.pid, signal.SIGSTOP)
    stopping = subprocess.Popen(live.command("daemon", "stop"), env=live.environ, stderr=subprocess.PIPE, text=True)
    until(lambda: has_pending(live.pid, signal.SIGTERM))
    os.kill(live.pid, signal.SIGCONT)
    _, err = stopping.communicate(timeout=20)
    assert stopping.returncode == 0, err


def test_the_token_opens_tcp_and_a_rotation_shuts_it(live: Live) -> None:
    token = live.cli("token").stdout.strip()
    assert token == live.token
    url: Any = {"REPOWIRE_DAEMON_URL": f"http://127.0.0.1:{live.port}"}
    assert live.cli("peer", "list", **url).returncode == 0
    assert live.cli("peer", "list", **url, REPOWIRE_AUTH_TOKEN="wrong").returncode == 1
    fresh = json.loads(live.cli("token", "--rotate", "--json").stdout)["token"]
    assert fresh == live.token != token
    refused = live.cli("peer", "list", **url, REPOWIRE_AUTH_TOKEN=token)
    assert refused.returncode == 1
    assert "REPOWIRE_AUTH_TOKEN" in refused.stderr
    assert live.cli("peer", "list", **url).returncode == 0
