"""Links on a real daemon, its real ws-hook and a real tmux: a pane becomes a peer's with a way in, or nothing stays."""

import fcntl
import json
import os
import select
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from boxes import Box, Host, hosting, program
from claude.driver import Claude, User
from claude.model import Model
from conftest import Live, TmuxServer, until

pytestmark = pytest.mark.live


@pytest.fixture
def host(new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path) -> Iterator[Host]:
    with hosting(new_live(), tmux, short_folder) as host:
        yield host


def test_a_pane_that_nobody_has_is_listed_and_linked_and_told(host: Host) -> None:
    box = host.box()
    shown = host.orphans()[box.pane]
    assert (shown["detected_backend"], shown["confidence"], shown["pid"]) == ("claude-code", "hint", box.pid)
    assert (shown["cwd"], shown["session"], shown["window"], shown["command"]) == (
        str(box.folder),
        "main",
        "1",
        "claude",
    )
    done = host.link(box.pane, name="ann")
    assert done == {
        "linked": True,
        "pane_id": box.pane,
        "peer_id": host.peers()["ann"]["peer_id"],
        "display_name": "ann",
        "transport_connected": True,
        "reason": "linked",
        "repair_hint": None,
    }
    assert host.peers()["ann"]["inbound_status"] == "online"
    assert box.pane not in host.orphans()
    host.until_state(host.tell("ann", "hello over there"), "handed")
    assert box.times("hello over there") == 1


def test_of_two_at_once_one_links_and_the_other_is_told_whose_it_is(host: Host) -> None:
    box = host.box()
    together = threading.Barrier(2)

    def one(name: str) -> tuple[int, Any]:
        together.wait()
        body = {"backend": "claude-code", "tmux": str(host.tmux.socket), "name": name}
        got = host.live.request("POST", f"/panes/{quote(box.pane, safe='')}/link", body=body)
        return got.status, got.json

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(one, ("ann", "ben")), key=lambda answer: answer[0])
    assert [status for status, _ in answers] == [200, 409]
    assert answers[0][1]["linked"]
    assert answers[1][1]["detail"]["error"] == "already_linked"
    assert answers[1][1]["detail"]["peer_id"] == answers[0][1]["peer_id"]
    assert [peer["inbound_status"] for peer in host.peers().values()] == ["online"]


def slow(host: Host) -> None:
    """The program that serves the panes stands still from now on."""
    host.link(host.box("served").pane, name="served")
    for pid in host.ws_hooks():
        os.kill(pid, signal.SIGSTOP)


def nothing_of(host: Host, pane: str, name: str = "ann") -> None:
    """No peer, no wanted pane and no socket is left."""
    assert name not in host.peers()
    assert pane in host.orphans() or pane not in host.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split()
    kinds = [event["kind"] for event in host.live.get("/events?limit=500") if event.get("pane_id") == pane]
    assert kinds.count("pane.linked") == 0


def test_a_daemon_that_an_agent_started_serves_panes_like_any_other(host: Host) -> None:
    """Whoever started it: what an agent left in its environment is not passed on."""
    host.live.term()
    host.live.start(REPOWIRE_DELIVERY__INBOX="false", CLAUDE_CODE_SESSION_ID="s-1")
    host.live.post("/peers", name="starter", metadata={"hook_session_id": "s-1"})
    assert host.link(host.box().pane, name="ann")["linked"] is True


def test_every_file_of_the_home_is_its_owners_alone(host: Host) -> None:
    host.link(host.box().pane, name="ann")
    files = {path: stat.S_IMODE(path.lstat().st_mode) for path in host.live.home.rglob("*")}
    assert host.live.home / "ws-hook.log" in files
    assert {str(path): oct(mode) for path, mode in files.items() if mode & 0o077} == {}


def test_without_a_way_in_all_of_it_is_undone_within_eight_seconds(host: Host) -> None:
    slow(host)
    box = host.box()
    done = host.link(box.pane, name="ann")
    assert (done["linked"], done["transport_connected"], done["peer_id"]) == (False, False, None)
    assert done["reason"] == "transport_unestablished"
    assert "ws-hook.log" in done["repair_hint"]
    nothing_of(host, box.pane)
    for pid in host.ws_hooks():
        os.kill(pid, signal.SIGCONT)  # and late it makes no ghost
    host.until_state(host.tell("served", "still here"), "handed")
    nothing_of(host, box.pane)
    assert host.link(box.pane, name="ann")["linked"]


def test_what_was_sent_to_it_meanwhile_ends_and_its_sender_is_told(host: Host) -> None:
    slow(host)
    box = host.box()
    with ThreadPoolExecutor(1) as pool:
        linking = pool.submit(host.link, box.pane, name="ann")
        until(lambda: "ann" in host.peers())
        sent = host.tell("ann", "are you there?")
        assert not linking.result()["linked"]
    assert host.until_state(sent, "failed")["reason"]
    assert box.bytes == b""


def test_a_pane_that_dies_meanwhile_leaves_nothing(host: Host) -> None:
    slow(host)
    box = host.box()
    with ThreadPoolExecutor(1) as pool:
        linking = pool.submit(host.link, box.pane, name="ann")
        until(lambda: "ann" in host.peers())
        host.tmux.run("kill-pane", "-t", box.pane)
        done = linking.result()
    assert (done["linked"], done["reason"]) == (False, "agent_gone")
    nothing_of(host, box.pane)


def test_a_daemon_killed_in_the_middle_leaves_nothing_when_it_is_back(host: Host) -> None:
    slow(host)
    box = host.box()
    with ThreadPoolExecutor(1) as pool:
        linking = pool.submit(host.link, box.pane, name="ann")
        until(lambda: "ann" in host.peers())
        host.live.kill()
        assert linking.exception() is not None
    host.start()
    nothing_of(host, box.pane)
    for pid in host.ws_hooks():
        os.kill(pid, signal.SIGCONT)
    until(lambda: host.peers()["served"]["ws_connected"])
    nothing_of(host, box.pane)


def test_a_link_outlives_the_daemon_and_the_program_that_serves_the_panes(host: Host) -> None:
    box = host.box()
    peer_id = host.link(box.pane, name="ann")["peer_id"]
    host.live.kill()
    for pid in host.ws_hooks():
        os.kill(pid, signal.SIGKILL)
    host.start()
    until(lambda: host.peers()["ann"]["ws_connected"])
    assert host.peers()["ann"]["peer_id"] == peer_id
    host.until_state(host.tell("ann", "after all that"), "handed")


@pytest.mark.parametrize("how", ["the program ends", "the pane is killed", "tmux is killed"])
def test_a_linked_peer_goes_with_its_pane(host: Host, how: str) -> None:
    box = host.box()
    host.link(box.pane, name="ann")
    if how == "the program ends":
        os.kill(box.pid, signal.SIGKILL)
    else:
        host.tmux.run(*(["kill-pane", "-t", box.pane] if how == "the pane is killed" else ["kill-server"]))
    until(lambda: host.peers().get("ann", {"status": "offline"})["status"] == "offline", 3)


def test_who_lived_there_before_is_who_it_was(host: Host) -> None:
    box = host.box()
    peer_id = host.link(box.pane, name="ann")["peer_id"]
    host.tmux.run("set-option", "-g", "remain-on-exit", "on")
    os.kill(box.pid, signal.SIGKILL)
    until(lambda: host.peers()["ann"]["status"] == "offline")
    Path(f"{box.record}.ready").unlink()
    host.tmux.run("respawn-pane", "-t", box.pane)
    until(Path(f"{box.record}.ready").exists)
    until(lambda: box.pane in host.orphans())
    again = host.link(box.pane)
    assert (again["linked"], again["peer_id"], again["display_name"]) == (True, peer_id, "ann")


def test_who_lived_there_before_is_offline_again_when_the_link_fails(host: Host) -> None:
    box = host.box()
    peer_id = host.link(box.pane, name="ann")["peer_id"]
    host.tmux.run("set-option", "-g", "remain-on-exit", "on")
    os.kill(box.pid, signal.SIGKILL)
    until(lambda: host.peers()["ann"]["status"] == "offline")
    sent = host.tell("ann", "when you are back")
    before = host.live.get(f"/peers/{peer_id}")
    host.tmux.run("respawn-pane", "-t", box.pane)
    until(lambda: box.pane in host.orphans())
    slow(host)
    assert not host.link(box.pane)["linked"]
    after = host.live.get(f"/peers/{peer_id}")
    assert {**before, "last_seen": None} == {**after, "last_seen": None}
    assert host.delivery(sent)["state"] == "queued"


@pytest.mark.parametrize(
    ("pane", "fields", "status", "error"),
    [
        ("%999", {}, 404, "pane_not_found"),
        ("main", {}, 422, "invalid_field"),
        ("%0", {}, 409, "no_agent"),
        ("%0", {"backend": None}, 422, "invalid_field"),
        ("%0", {"name": "a b"}, 422, "invalid_field"),
        ("%0", {"tmux": "/nowhere"}, 404, "pane_not_found"),
    ],
)
def test_what_cannot_be_linked_is_refused(
    host: Host, pane: str, fields: dict[str, Any], status: int, error: str
) -> None:
    refused = host.link(pane, expect=status, **fields)["detail"]
    assert refused["error"] == error
    assert host.peers() == {}


def test_a_pane_id_that_two_servers_have_is_a_conflict(host: Host, short_folder: Path) -> None:
    other = TmuxServer(short_folder / "other", host.tmux.environ)
    other.run("new-session", "-d", "-s", "main", "cat")
    try:
        (short_folder / "two").mkdir()
        one, two = host.box(), Box(other, short_folder / "two")
        assert one.pane == two.pane
        host.link(one.pane, name="ann")
        host.tmux.run("kill-pane", "-t", one.pane)  # the daemon knows the first server now by its session
        third = host.box("third")
        fourth = Box(other, short_folder / "two", "fourth")
        assert third.pane == fourth.pane
        done = host.link(fourth.pane, tmux=str(other.socket), name="cid")
        assert done["linked"]
        host.until_state(host.tell("cid", "to the second server"), "handed")
        assert (fourth.times("second"), third.bytes) == (1, b"")
        refused = host.link(third.pane, expect=409, tmux=None)["detail"]
        assert refused["error"] == "ambiguous_pane"
        assert {one["tmux"] for one in refused["candidates"]} == {str(host.tmux.socket), str(other.socket)}
        said = host.live.cli("link", "--pane", third.pane, "--backend", "claude-code").stderr
        assert all(words in said for words in ("--tmux", str(host.tmux.socket), str(other.socket))), said
    finally:
        other.run("kill-server")


def test_a_pane_that_is_gone_though_its_program_lives_on_is_not_linked(host: Host) -> None:
    slow(host)
    stays = host.folder / "stays.py"
    stays.write_text("import signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\ntime.sleep(60)\n")
    pane = host.tmux.window(str(program(host.folder, "claude")), str(stays), cwd=host.folder)
    pid = host.tmux.pid(pane)
    until(lambda: int(status_of(pid, "SigIgn"), 16) & 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            linking = pool.submit(host.link, pane, name="ann")
            until(lambda: "ann" in host.peers())
            host.tmux.run("kill-pane", "-t", pane)
            for hook in host.ws_hooks():
                os.kill(hook, signal.SIGCONT)
            done = linking.result()
        assert (done["linked"], done["reason"]) == (False, "pane_gone")
        nothing_of(host, pane)
    finally:
        os.kill(pid, signal.SIGKILL)


def status_of(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).split()[1]


def test_where_nothing_can_serve_the_panes_the_reason_says_so(host: Host) -> None:
    lock = host.live.home / "ws-hook.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another one that serves this home, and does not come
        box = host.box()
        done = host.link(box.pane, name="ann")
        assert (done["linked"], done["reason"]) == (False, "ws_hook_spawn_failed")
        nothing_of(host, box.pane)
    assert host.link(box.pane, name="ann")["linked"]


def test_name_circle_and_folder_are_what_was_said(host: Host) -> None:
    done = host.link(host.box().pane, name="ann", circle="night", cwd="/src/elsewhere")
    peer = host.peers()["ann"]
    assert (done["display_name"], peer["circle"], peer["path"]) == ("ann", "night", "/src/elsewhere")
    assert (peer["tmux_session"], peer["backend"]) == ("main", "claude-code")


# -- the command line ------------------------------------------------------------


def test_the_command_lists_and_links(host: Host) -> None:
    box = host.box()
    tmux = f"{host.tmux.socket},1,0"
    listed = host.live.cli("link", TMUX=tmux)
    assert listed.returncode == 0, listed.stderr
    row = next(line for line in listed.stdout.splitlines() if line.startswith(f"{box.pane} "))
    assert row.split()[1:5] == ["main:1", "claude-code", "claude", str(box.pid)]
    guess = host.live.cli("link", "--pane", box.pane, TMUX=tmux)
    assert (guess.returncode, guess.stdout) == (2, "")
    assert "looks like claude-code" in guess.stderr
    done = host.live.cli(
        "link", "--pane", box.pane, "--backend", "claude-code", "--name", "ann", "--tmux", str(host.tmux.socket)
    )
    assert (done.returncode, done.stdout) == (0, "ann\n"), done.stderr
    again = host.live.cli("link", "--pane", box.pane, "--backend", "claude-code")
    assert again.returncode == 1
    assert "ann's" in again.stderr


def test_the_command_shows_the_server_that_is_named_and_no_other(host: Host, short_folder: Path) -> None:
    other = TmuxServer(short_folder / "other", host.tmux.environ)
    other.run("new-session", "-d", "-s", "theirs", "cat")
    try:
        box = host.box()
        done = host.live.cli("link", "--tmux", str(host.tmux.socket), "--json", TMUX=f"{other.socket},1,0")
        panes = json.loads(done.stdout)["panes"]
        assert {pane["tmux"] for pane in panes} == {str(host.tmux.socket)}
        assert box.pane in {pane["pane_id"] for pane in panes}
        os.kill(server := int(other.run("display-message", "-p", "#{pid}")), signal.SIGSTOP)
        try:
            mute = host.live.cli("link", "--tmux", str(other.socket))
        finally:
            os.kill(server, signal.SIGCONT)
        assert (mute.returncode, mute.stdout, "does not answer" in mute.stderr) == (1, "", True)
    finally:
        other.run("kill-server")
    gone = host.live.cli("link", "--tmux", str(short_folder / "nowhere"))
    assert (gone.returncode, gone.stdout, "no tmux socket" in gone.stderr) == (1, "", True)


def test_the_command_finds_a_pane_of_the_server_that_it_is_called_in(host: Host, short_folder: Path) -> None:
    box, tmux = host.box(), f"{host.tmux.socket},1,0"
    arguments = ("link", "--pane", box.pane, "--backend", "claude-code", "--name", "ann")
    assert host.live.cli(*arguments, TMUX=tmux).stdout == "ann\n"


def test_the_command_does_not_choose_between_two_servers(host: Host, tmp_path: Path) -> None:
    box, folder = host.box(), Path(host.live.environ["TMUX_TMPDIR"]) / f"tmux-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    other = TmuxServer(folder / "other", host.tmux.environ)
    other.run("new-session", "-d", "-s", "main", "cat")
    try:
        other.run("new-window", "-d", "cat")
        assert box.pane in other.run("list-panes", "-a", "-F", "#{pane_id}").split()
        done = host.live.cli("link", "--pane", box.pane, "--backend", "shell", TMUX=f"{host.tmux.socket},1,0")
    finally:
        other.run("kill-server")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--tmux says which" in done.stderr
    assert str(host.tmux.socket) in done.stderr


def test_the_command_says_why_nothing_was_linked(host: Host) -> None:
    slow(host)
    box = host.box()
    done = host.live.cli("link", "--pane", box.pane, "--backend", "claude-code")
    assert (done.returncode, done.stdout) == (1, "")
    assert "transport_unestablished" in done.stderr
    assert "ws-hook.log" in done.stderr


def test_on_a_terminal_it_asks_which_and_what(host: Host) -> None:
    box = host.box()
    leader, follower = os.openpty()
    environ = {**host.live.environ, "TMUX": f"{host.tmux.socket},1,0"}
    process = subprocess.Popen(host.live.command("link"), stdin=follower, stdout=follower, stderr=follower, env=environ)
    os.close(follower)
    said = ""

    def shows(words: str) -> bool:
        nonlocal said
        readable, _, _ = select.select([leader], (), (), 0.05)
        said += os.read(leader, 65_536).decode() if readable else ""
        return words in said

    until(lambda: shows("link which pane"))
    os.write(leader, f"{box.pane}\n".encode())
    until(lambda: shows("what runs in it [claude-code]?"))
    os.write(leader, b"\n")
    until(lambda: shows(f"{box.pane} is box"))
    assert process.wait(10) == 0
    os.close(leader)


def test_the_hint_comes_from_the_processes_and_not_from_tmux_alone(host: Host) -> None:
    inner = host.folder / "bin" / "gemini"
    box = host.box()
    inner.write_text("import sys; sys.stdin.read()\n")
    (host.folder / "bin" / "node").symlink_to(host.folder / "bin" / "claude")
    pane = host.tmux.window("sh", "-c", f"{host.folder}/bin/node {inner}; true")
    until(lambda: host.orphans()[pane]["detected_backend"] == "gemini")
    assert host.orphans()[pane]["command"] != "gemini"
    assert host.orphans()["%0"]["detected_backend"] == "unknown"
    assert json.loads(box.registry.read_text())["status"] == "idle"


# -- a real agent ------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.1.330", "2.1.197"])
def test_a_real_agent_that_nobody_set_up_is_linked_and_hears(host: Host, version: str) -> None:
    if version == "2.1.330" and host.tmux.run("-V") < "tmux 3.2":
        pytest.skip("it writes no registry file in such a tmux")
    with Model() as model:
        claude = Claude(host.tmux, User(host.folder, model), "ann", version).start()
        try:
            shown = host.orphans()[claude.pane]
            assert (shown["detected_backend"], shown["agent_pid"]) == ("claude-code", claude.pid)
            assert host.link(claude.pane)["display_name"] == "ann"
            sent = host.tell("ann", "hello over there")
            host.until_state(sent, "handed")
            claude.until(lambda: claude.shows(f"#{sent}"), "it heard")
        finally:
            claude.kill()
