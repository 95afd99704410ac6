"""The gates end to end: a daemon, its ws-hook, a tmux, and in the pane a program that writes down every byte.

`make test-panes TMUX=…` runs them with another tmux.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from boxes import RECORDER, Box, Host, hosting, program
from conftest import Live, TmuxServer, gone, until
from fake_claude import Inbox

pytestmark = pytest.mark.live

NASTY = (
    "Enter\nC-c\n-X ; kill-server ;\n#{pane_pid} #(touch owned) %1 $HOME `id`\n"
    "a\x1b[201~b\x1b]52;c;aGk=\x07c\u202ed\x00e\x9b31mf\ttab\nend;"
)
SHOWN = "Enter\nC-c\n-X ; kill-server ;\n#{pane_pid} #(touch owned) %1 $HOME `id`\nab]52;c;aGk=cde31mf\ttab\nend;"


@pytest.fixture
def host(new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path) -> Iterator[Host]:
    with hosting(new_live(), tmux, short_folder) as host:
        yield host


@pytest.fixture
def box(host: Host) -> Box:
    box = host.box()
    assert host.link(box.pane, name="ann")["linked"]
    return box


def arrives_once(host: Host, box: Box, sent: str, words: str) -> None:
    """It is handed in the end: pasted in one piece, with one Enter behind it."""
    host.until_state(sent, "handed")
    assert box.times(words) == 1
    assert box.bytes.count(b"\x1b[200~") == box.bytes.count(b"\x1b[201~") == 1
    assert box.bytes.endswith(b"\x1b[201~\r")


@pytest.mark.parametrize(
    ("reason", "close", "opens"),
    [
        ("copy_mode", ("copy-mode", "-t", "PANE"), ("send-keys", "-t", "PANE", "-X", "cancel")),
        ("copy_mode", ("run-shell", "-t", "PANE", "echo it opens"), ("send-keys", "-t", "PANE", "-X", "cancel")),
        ("input_off", ("select-pane", "-d", "-t", "PANE"), ("select-pane", "-e", "-t", "PANE")),
        (
            "panes_synchronized",
            ("set-option", "-w", "-t", "PANE", "synchronize-panes", "on"),
            ("set-option", "-w", "-t", "PANE", "synchronize-panes", "off"),
        ),
    ],
    ids=["copy mode", "view mode", "input off", "synchronized"],
)
def test_a_mode_of_tmux_holds_and_not_one_byte_goes(
    host: Host, box: Box, reason: str, close: tuple[str, ...], opens: tuple[str, ...]
) -> None:
    def tmux(words: tuple[str, ...]) -> None:
        host.tmux.run(*(box.pane if word == "PANE" else word for word in words))

    neighbour = host.tmux.run("split-window", "-d", "-P", "-F", "#{pane_id}", "-t", box.pane, "cat")
    tmux(close)
    sent = host.tell("ann", "while it is closed")
    assert host.until_state(sent, "held")["reason"] == reason
    assert box.bytes == b""
    tmux(opens)
    arrives_once(host, box, sent, "while it is closed")
    assert host.tmux.screen(neighbour).strip() == ""


@pytest.mark.parametrize("says", ["waiting", "busy"])
def test_a_dialog_and_a_turn_hold(host: Host, box: Box, says: str) -> None:
    box.say(says)
    sent = host.tell("ann", "not now")
    assert host.until_state(sent, "held")["reason"] == {"waiting": "dialog_open", "busy": "mid_turn"}[says]
    assert box.bytes == b""
    box.say("idle")
    arrives_once(host, box, sent, "not now")


class Leaving(NamedTuple):
    """An agent that has an inbox by now, and a ws-hook that was given messages for its pane before and is stopped."""

    host: Host
    box: Box
    inbox: Inbox
    serving: int  # the ws-hook's pid
    given: list[str]
    later: str  # what came after the inbox

    def all_arrive_once(self) -> None:
        for sent in (*self.given, self.later):
            self.host.until_state(sent, "handed")
        for number, sent in enumerate(self.given):
            in_pane = self.box.times(f"given to the pane, {number}")
            assert in_pane + sum(f"#{sent}\n" in one for one in self.inbox.taken) == 1


@contextmanager
def leaving_its_pane(live: Live, tmux: TmuxServer, folder: Path) -> Iterator[Leaving]:
    with hosting(live, tmux, folder, inbox=True) as host:
        box = host.box()
        host.link(box.pane, name="ann")
        inbox = Inbox(Path(f"{box.record}.inbox"))
        (serving,) = host.ws_hooks()
        os.kill(serving, signal.SIGSTOP)
        given = [host.tell("ann", f"given to the pane, {number}") for number in range(3)]
        box.say_inbox()
        later = host.tell("ann", "for the inbox")
        assert host.delivery(later)["state"] == "queued"
        yield Leaving(host, box, inbox, serving, given, later)
        inbox.close()


def test_what_was_given_to_a_pane_arrives_though_its_agent_has_another_way_in_by_then(
    new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path
) -> None:
    with leaving_its_pane(new_live(), tmux, short_folder) as town:
        host, serving = town.host, town.serving
        os.kill(serving, signal.SIGCONT)
        town.all_arrive_once()
        last = host.tell("ann", "for the inbox too")
        host.until_state(last, "handed")
        by_inbox = zip((town.later, last), town.inbox.taken[-2:], strict=True)
        assert [f"#{sent}\n" in one for sent, one in by_inbox] == [True, True]


@pytest.mark.parametrize("who", ["its ws-hook", "the daemon"])
def test_what_was_given_to_a_pane_arrives_though_what_served_it_is_killed(
    new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path, who: str
) -> None:
    with leaving_its_pane(new_live(), tmux, short_folder) as town:
        host, serving = town.host, town.serving
        if who == "the daemon":
            host.live.kill()
        os.kill(serving, signal.SIGKILL)
        if who == "the daemon":
            until(lambda: gone(serving))
            host.start(inbox=True)
        town.all_arrive_once()
        last = host.tell("ann", "for the inbox too")
        host.until_state(last, "handed")
        until(lambda: f"#{last}\n" in town.inbox.taken[-1])


def test_a_draft_holds_and_stays_as_it_is(host: Host, box: Box) -> None:
    box.keys("half a thought")
    until(lambda: box.bytes == b"half a thought")
    sent = host.tell("ann", "beside your draft")
    assert host.until_state(sent, "held")["reason"] == "draft"
    now = host.live.cli("deliver", "--now", sent)
    assert (now.returncode, now.stdout) == (1, "held: draft\n"), "a person's word does not open it either"
    assert box.bytes == b"half a thought"
    box.keys("Enter")  # the human sends it
    host.until_state(sent, "handed")
    assert box.bytes.startswith(b"half a thought\r\x1b[200~")


def test_the_hands_of_a_human_hold_until_they_rest_or_say_so(host: Host, box: Box) -> None:
    leader, follower = os.openpty()
    attach = ["tmux", "-S", str(host.tmux.socket), "attach-session", "-t", "main"]
    client = subprocess.Popen(
        attach, stdin=follower, stdout=follower, stderr=follower, env=host.tmux.environ, start_new_session=True
    )
    os.close(follower)
    ended = threading.Event()

    def hands() -> None:
        """A key that the program takes for nothing, again and again, and what the terminal shows read away."""
        while not ended.is_set():
            os.write(leader, b"\x1b[I")
            if select.select([leader], (), (), 0.3)[0]:
                os.read(leader, 65_536)

    typing = threading.Thread(target=hands)
    try:
        until(lambda: host.tmux.run("list-clients"))
        host.tmux.run("select-window", "-t", box.pane)
        typing.start()
        until(lambda: time.time() - int(host.tmux.run("list-clients", "-F", "#{client_activity}")) < 2)
        sent = host.tell("ann", "while you type")
        found = host.until_state(sent, "held")
        assert found["reason"] in ("typing", "draft")
        ended.set()
        typing.join()
    finally:
        ended.set()
        client.terminate()
        client.wait(10)
        os.close(leader)


def test_deliver_now_does_not_wait_for_hands(host: Host, box: Box) -> None:
    assert host.live.cli("peer", "hold", "ann", "--reason", "in a demo").returncode == 0
    first, second = host.tell("ann", "the first"), host.tell("ann", "the second")
    assert host.until_state(first, "held")["reason"] == "held_by_user"
    now = host.live.cli("deliver", "--now", second)
    assert (now.returncode, now.stdout) == (0, "handed\n"), now.stderr
    assert (box.times("the first"), box.times("the second")) == (0, 1)
    assert host.delivery(first)["state"] == "held"
    assert "held_by_user" in host.live.cli("trace", first).stdout
    assert "held_by_user" in host.live.cli("deliveries", "--state", "held").stdout
    assert "in a demo" in host.live.cli("peer", "doctor", "ann", "--json").stdout
    assert host.live.cli("peer", "release", "ann").returncode == 0
    host.until_state(first, "handed")
    assert box.times("the first") == 1


@pytest.mark.parametrize(
    "change",
    [
        ("resize-pane", "-Z", "-t", "PANE"),
        ("swap-pane", "-d", "-s", "PANE", "-t", "%0"),
        ("move-pane", "-d", "-s", "PANE", "-t", "%0"),
        ("break-pane", "-d", "-s", "PANE"),
        ("rename-session", "-t", "main", "renamed"),
        ("set-option", "-g", "base-index", "1"),
    ],
    ids=lambda change: change[0],
)
def test_a_pane_that_is_zoomed_swapped_or_moved_is_the_same_pane(host: Host, box: Box, change: tuple[str, ...]) -> None:
    stranger = Box(host.tmux, host.folder, "stranger", split=box.pane)
    host.tmux.run(*(box.pane if word == "PANE" else word for word in change))
    sent = host.tell("ann", "wherever you are")
    arrives_once(host, box, sent, "wherever you are")
    assert stranger.bytes == b""
    report = host.live.get("/peers/ann/doctor")
    assert report["tmux_evidence"]["pane_pid"] == box.pid
    assert {one["code"] for one in report["contradictions"]} <= {"HOOKS_MISSING"}  # nobody ran setup here


def test_while_panes_are_swapped_again_and_again_each_gets_its_own(host: Host, box: Box) -> None:
    other = Box(host.tmux, host.folder, "other", split=box.pane)
    host.link(other.pane, name="ben")
    ended = threading.Event()

    def swapping() -> None:
        while not ended.is_set():
            host.tmux.run("swap-pane", "-d", "-s", box.pane, "-t", other.pane)

    swaps = threading.Thread(target=swapping)
    swaps.start()
    try:
        ids = [host.tell(name, f"{n} for {name}") for n in range(5) for name in ("ann", "ben")]
        for one in ids:
            host.until_state(one, "handed")
    finally:
        ended.set()
        swaps.join()
    assert (box.times("for ann"), box.times("for ben")) == (5, 0)
    assert (other.times("for ann"), other.times("for ben")) == (0, 5)


def test_a_text_full_of_keys_and_escapes_arrives_as_the_text_it_is(host: Host, box: Box) -> None:
    sent = host.tell("ann", NASTY)
    arrives_once(host, box, sent, SHOWN)
    assert not list(host.folder.rglob("owned"))
    assert host.tmux.run("list-sessions")


def test_after_a_restart_of_tmux_not_one_byte_goes_to_a_stranger(host: Host, box: Box) -> None:
    box.say("busy")
    waits = host.tell("ann", "for ann alone")
    host.until_state(waits, "held")
    server = int(host.tmux.run("display-message", "-p", "#{pid}"))
    host.tmux.run("kill-server")
    until(lambda: gone(server))
    host.tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
    stranger = host.box("stranger")
    assert stranger.pane == box.pane
    until(lambda: host.peers().get("ann", {"status": "offline"})["status"] == "offline")
    later = host.tell(host.delivery(waits)["peer_id"], "and this")
    assert host.link(stranger.pane, name="bob")["linked"]
    host.until_state(host.tell("bob", "for bob"), "handed")
    assert (stranger.times("for bob"), stranger.times("for ann alone"), stranger.times("and this")) == (1, 0, 0)
    assert {host.delivery(one)["state"] for one in (waits, later)} <= {"queued", "held"}
    assert box.bytes == b""


# -- any other program ---------------------------------------------------------------


class Plain:
    """A pane with a program of which nothing is known, linked as `any`."""

    def __init__(self, host: Host, *command: str, link: bool = True) -> None:
        self.host = host
        self.pane = host.tmux.window(*command, cwd=host.folder)
        if link:
            until(lambda: host.orphans()[self.pane]["command"])
            host.link(self.pane, backend="shell", name="any")

    def screen(self) -> str:
        return self.host.tmux.screen(self.pane)


def test_a_program_that_shows_what_it_is_told_is_told_once_and_that_is_never_seen(host: Host) -> None:
    pane = Plain(host, "cat")
    sent = host.tell("any", "hello over there")
    host.until_state(sent, "handed")
    assert pane.screen().count("hello over there") == 2  # as it is typed, and as cat says it again
    assert host.peers()["any"]["backend"] == "shell"
    assert host.delivery(sent)["seen_at"] is None


def test_one_whose_screen_moves_is_left_alone_until_it_rests(host: Host) -> None:
    go = host.folder / "rest"
    counts = f"n=0; until [ -e {go} ]; do n=$((n+1)); echo $n; sleep 0.05; done; exec cat"
    Plain(host, "sh", "-c", counts)
    sent = host.tell("any", "when you rest")
    assert host.until_state(sent, "held")["reason"] == "mid_turn"
    go.touch()
    host.until_state(sent, "handed")


def test_one_that_hides_what_it_is_told_gets_no_enter(host: Host, short_folder: Path) -> None:
    record = short_folder / "record"
    Plain(host, sys.executable, str(RECORDER), str(record))
    until(Path(f"{record}.ready").exists)
    sent = host.tell("any", "my secret")
    until(lambda: b"my secret" in record.read_bytes())
    until(lambda: host.delivery(sent)["attempts"] == 1)
    time.sleep(3.5)  # as long as it waits to see the text: what is not done then is not done
    assert b"\r" not in record.read_bytes()
    assert host.delivery(sent)["state"] == "leased"


def test_a_shell_is_refused_and_one_that_a_program_became_is_held(host: Host) -> None:
    pane = Plain(host, "sh", link=False)
    until(lambda: host.orphans()[pane.pane]["command"] == "sh")
    assert "runs the commands" in host.link(pane.pane, expect=409, backend="shell")["detail"]["hint"]
    other = Plain(host, "sh", "-c", "cat; exec sh")
    host.tmux.run("send-keys", "-t", other.pane, "C-d")
    until(lambda: Path(f"/proc/{host.tmux.pid(other.pane)}/cmdline").read_bytes() == b"sh\0")
    sent = host.tell("any", "touch owned")
    assert host.until_state(sent, "held")["reason"] == "shell_prompt"
    assert not (host.folder / "owned").exists()


def test_a_program_that_is_stopped_holds_and_goes_on(host: Host) -> None:
    claude = program(host.folder, "claude")
    pane = host.tmux.window("sh", "-c", f"{claude} -I -S -c 'input()'; true", cwd=host.folder)
    until(lambda: host.orphans()[pane]["agent_pid"])
    pid = host.orphans()[pane]["agent_pid"]
    host.link(pane, name="ann")
    os.kill(pid, signal.SIGSTOP)
    assert host.until_state(host.tell("ann", "are you there"), "held")["reason"] == "not_the_agent"
    os.kill(pid, signal.SIGKILL)
