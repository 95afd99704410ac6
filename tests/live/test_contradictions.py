"""Each contradiction made for real: a daemon, its ws-hook, a tmux and programs in its panes, and what goes wrong."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from boxes import Box, Host, hosting, program
from conftest import Live, TmuxServer, gone, until

from repowire import __version__

pytestmark = pytest.mark.live


@pytest.fixture
def host(new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path) -> Iterator[Host]:
    with hosting(new_live(), tmux, short_folder) as host:
        yield host


@pytest.fixture
def box(host: Host) -> Box:
    """Linked as ann, with settings as setup writes them."""
    environ = {"HOME": str(host.folder)}
    assert host.live.cli("setup", "claude-code", "--yes", **environ).returncode == 0
    box = host.box()
    assert host.link(box.pane, name="ann")["linked"]
    return box


def report(host: Host, name: str = "ann") -> dict[str, Any]:
    found: dict[str, Any] = host.live.get(f"/peers/{name}/doctor")
    return found


def wrong(host: Host, name: str = "ann") -> dict[str, dict[str, Any]]:
    return {one["code"]: one for one in report(host, name)["contradictions"]}


def only(host: Host, code: str, name: str = "ann") -> dict[str, Any]:
    """The one contradiction there is; with its evidence, and what mends it."""
    found = wrong(host, name)
    assert set(found) == {code}, found
    assert found[code]["evidence"]
    assert found[code]["repair"]
    return found[code]


def test_a_healthy_peer_has_none_and_its_report_has_every_field(host: Host, box: Box) -> None:
    got = report(host)
    assert got["contradictions"] == []
    assert list(got)[:24] == [
        "peer_id", "display_name", "status", "turn_state", "last_seen", "machine", "backend", "circle", "role",
        "pane_id", "is_local_machine", "ws_connected", "ws_pane_id", "tmux_pane_exists", "tmux_evidence",
        "hook_meta_available", "hook_meta_peer_id", "hook_meta_display_name", "agent_pid", "agent_pid_alive",
        "pending_inbound_count", "oldest_pending_age_seconds", "oldest_pending_cid", "contradictions",
    ]  # fmt: skip
    assert (got["pane_id"], got["ws_pane_id"], got["tmux_pane_exists"]) == (box.pane, box.pane, True)
    assert got["tmux_evidence"] == {"tmux_session": "main", "current_path": str(box.folder), "pane_pid": box.pid}
    assert (got["agent_pid"], got["agent_pid_alive"], got["says"], got["way_in"]) == (box.pid, True, "idle", "pane")
    assert (got["hook_version"], got["daemon_version"]) == (__version__, __version__)
    assert host.live.get("/doctor")["peers"] == []


def test_a_report_changes_nothing(host: Host, box: Box) -> None:
    before = host.live.get("/peers/ann")
    for _ in range(3):
        report(host)
        host.live.get("/doctor")
    assert host.live.get("/peers/ann") == before
    assert box.bytes == b""


def test_online_but_no_ws(host: Host, box: Box) -> None:
    held = (host.live.home / "ws-hook.lock").open("rb")
    os.kill(host.ws_hooks()[0], signal.SIGKILL)
    blocker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, sys; f = open({held.name!r}, 'r+'); fcntl.flock(f, 2); print(); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip - somebody has the lock, so no other one starts
    assert blocker.stdout is not None
    assert blocker.stdout.readline() == b"\n"
    until(lambda: not host.peers()["ann"]["ws_connected"])
    found = only(host, "ONLINE_BUT_NO_WS")
    assert (found["severity"], found["fix"]) == ("error", "rehook")
    assert "rehook" in found["repair"]
    blocker.kill()
    blocker.wait()
    fixed = host.live.cli("peer", "doctor", "ann", "--fix", seconds=40)
    assert fixed.returncode == 0, (fixed.stdout, fixed.stderr)
    assert wrong(host) == {}


def linked_to_what_outlives_its_pane(host: Host) -> tuple[str, int]:
    """A program that does not end with its terminal, linked as ann: its pane and its process."""
    stays = host.folder / "stays.py"
    stays.write_text("import signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\ntime.sleep(60)\n")
    pane = host.tmux.window(str(program(host.folder, "claude")), str(stays), cwd=host.folder)
    until(lambda: host.orphans()[pane]["detected_backend"] == "claude-code")
    until(lambda: ignores_hangup(host.tmux.pid(pane)))
    host.link(pane, name="ann")
    return pane, host.tmux.pid(pane)


def ignores_hangup(pid: int) -> bool:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("SigIgn"))
    return int(line.split()[1], 16) & 1 == 1


def test_pane_missing(host: Host) -> None:
    pane, pid = linked_to_what_outlives_its_pane(host)
    host.tmux.run("kill-pane", "-t", pane)
    try:
        found = wrong(host)
        assert found["PANE_MISSING"]["evidence"]["agent_pid_alive"] is True
        assert report(host)["tmux_pane_exists"] is False
        assert "TMUX_SERVER_CHANGED" not in found
    finally:
        os.kill(pid, signal.SIGKILL)


def test_tmux_server_changed(host: Host) -> None:
    pane, pid = linked_to_what_outlives_its_pane(host)
    assert "TMUX_SERVER_CHANGED" not in wrong(host)
    server = int(host.tmux.run("display-message", "-p", "#{pid}"))
    host.tmux.run("kill-server")
    try:
        until(lambda: gone(server) and "TMUX_SERVER_CHANGED" in wrong(host))
        host.tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
        assert host.box("stranger").pane == pane
        found = wrong(host)
        assert found["TMUX_SERVER_CHANGED"]["evidence"]["pane_id"] == pane
        assert "PANE_MISSING" in found, "a stranger's pane of that id is not its pane"
        assert host.until_state(host.tell("ann", "not for strangers"), "held")["reason"] == "tmux_server_changed"
        assert wrong(host)["HELD_MAIL"]["repair"] == "repowire link"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_agent_pid_dead_and_dead_but_busy(host: Host, box: Box) -> None:
    peer_id = report(host)["peer_id"]
    host.live.post("/session/update", peer_name="ann", status="busy", turn_state="working")
    os.kill(box.pid, signal.SIGKILL)
    until(lambda: host.live.get(f"/peers/{peer_id}")["status"] == "offline")
    found = wrong(host, peer_id)
    assert {"AGENT_PID_DEAD", "DEAD_BUT_BUSY"} <= set(found)
    assert found["DEAD_BUT_BUSY"]["evidence"]["turn_state"] == "working"
    assert report(host, peer_id)["agent_pid_alive"] is False


def test_dead_but_busy_when_it_is_stopped(host: Host) -> None:
    line = f"{program(host.folder, 'claude')} -I -S -c 'input()'; true"
    pane = host.tmux.window("sh", "-c", line, cwd=host.folder)
    until(lambda: host.orphans()[pane]["agent_pid"])
    pid = host.orphans()[pane]["agent_pid"]
    host.link(pane, name="ann")
    host.live.post("/session/update", peer_name="ann", status="busy", turn_state="working")
    assert "DEAD_BUT_BUSY" not in wrong(host)
    os.kill(pid, signal.SIGSTOP)  # a child of a shell: tmux lets its own children go on by itself
    until(lambda: "DEAD_BUT_BUSY" in wrong(host))
    assert wrong(host)["DEAD_BUT_BUSY"]["repair"] == f"kill -CONT {pid}"
    host.live.post("/notify", to_peer="ann", text="are you there?")
    until(lambda: "HELD_MAIL" in wrong(host))
    held = wrong(host)["HELD_MAIL"]
    assert held["evidence"]["reason"] == "not_the_agent"
    assert held["repair"] == f"it is stopped: kill -CONT {pid}, or fg in pane {pane} where its shell has the keys"
    os.kill(pid, signal.SIGKILL)


def test_hook_peerid_mismatch(host: Host, box: Box) -> None:
    host.live.post("/peers", name="usurper", path="/src/usurper", pane_id=box.pane)
    found = wrong(host, "usurper")["HOOK_PEERID_MISMATCH"]
    assert found["evidence"]["hook_display_name"] == "ann"
    assert report(host, "usurper")["hook_meta_peer_id"] == found["evidence"]["hook_peer_id"]


async def test_ws_pane_mismatch(host: Host, box: Box) -> None:
    headers = {"Authorization": f"Bearer {host.live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{host.live.port}", headers=headers) as session:
        socket = await session.ws_connect("/ws")
        place = {"pane_id": "%71", "path": "/src/mover"}
        await socket.send_json({"type": "connect", "display_name": "mover", **place, "capabilities": ["dedupe"]})
        hello = await socket.receive_json()
        await asyncio.to_thread(
            host.live.post,
            "/peers",
            name="mover",
            path="/src/mover",
            pane_id=box.pane,
            peer_id=hello["session_id"],
            birth_certificate=hello["birth_certificate"],
        )
        found = (await asyncio.to_thread(wrong, host, "mover"))["WS_PANE_MISMATCH"]
        assert found["evidence"] == {"ws_pane_id": "%71", "pane_id": box.pane}
        await socket.close()


@pytest.mark.parametrize("word", ["draft", "copy_mode", "input_off", "dialog_open", "mid_turn"])
def test_held_mail_says_which_gate_and_what_opens_it(host: Host, box: Box, word: str) -> None:
    close = {
        "draft": lambda: box.keys("half a thought"),
        "copy_mode": lambda: host.tmux.run("copy-mode", "-t", box.pane),
        "input_off": lambda: host.tmux.run("select-pane", "-d", "-t", box.pane),
        "dialog_open": lambda: box.say("waiting"),
        "mid_turn": lambda: box.say("busy"),
    }
    close[word]()
    sent = host.tell("ann", "later")
    assert host.until_state(sent, "held")["reason"] == word
    found = only(host, "HELD_MAIL")
    assert found["evidence"]["reason"] == word
    assert found["evidence"]["oldest_delivery_id"] == sent
    assert "repowire trace" not in found["repair"]
    assert report(host)["held"][0]["reason"] == word


@pytest.mark.parametrize(
    ("what", "code"), [("gone", "HOOKS_MISSING"), ("changed", "HOOKS_STALE"), ("moved", "HOOKS_STALE")]
)
def test_hooks_missing_and_stale(host: Host, box: Box, what: str, code: str) -> None:
    file = host.folder / ".claude" / "settings.json"
    settings = json.loads(file.read_text())
    hook = settings["hooks"]["Stop"][0]["hooks"][0]
    if what == "gone":
        del settings["hooks"]["Stop"]
    elif what == "changed":
        hook["timeout"] = 600
    else:
        hook["command"] = hook["command"].replace(sys.executable, "/nowhere/python")
    file.write_text(json.dumps(settings))
    found = only(host, code)
    assert [(one["file"], one["entry"]) for one in found["evidence"]["entries"]] == [(str(file), "hooks.Stop")]
    assert found["repair"].endswith("repowire setup claude-code")
    assert host.live.cli("setup", "claude-code", "--yes", HOME=str(host.folder)).returncode == 0
    assert wrong(host) == {}


def test_settings_that_cannot_be_read_are_stale(host: Host, box: Box) -> None:
    (host.folder / ".claude" / "settings.json").write_text("{ // a comment\n}")
    assert "unreadable" in only(host, "HOOKS_STALE")["evidence"]["entries"][0]["what"]


def test_inbox_held(host: Host, box: Box) -> None:
    file = host.folder / ".claude" / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "crossSessionInbound": "hold"}))
    transcript = str(host.folder / ".claude" / "projects" / "p" / "s-9.jsonl")
    said = {"session_id": "s-9", "transcript_path": transcript, "cwd": "/src/dan", "source": "startup"}
    headers = {"X-Repowire-Session": "s-9", "X-Repowire-Inbox": str(host.folder / "inbox.sock")}
    assert host.live.request("POST", "/hooks/claude-code/SessionStart", body=said, headers=headers).status == 200
    found = only(host, "INBOX_HELD", "dan")
    assert (found["severity"], found["evidence"]["crossSessionInbound"]) == ("error", "hold")
    assert "crossSessionInbound" in found["repair"]


async def test_version_skew(host: Host, box: Box) -> None:
    headers = {"Authorization": f"Bearer {host.live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{host.live.port}", headers=headers) as session:
        socket = await session.ws_connect("/ws")
        await socket.send_json({"type": "connect", "display_name": "old", "path": "/src/old", "hook_version": "0.0.9"})
        await socket.receive_json()
        found = await asyncio.to_thread(only, host, "VERSION_SKEW", "old")
        assert found["evidence"]["connected"] == "0.0.9"
        await socket.close()


# -- the command line --------------------------------------------------------------


def test_the_commands_are_gates(host: Host, box: Box) -> None:
    fine = host.live.cli("peer", "doctor", "ann")
    assert fine.returncode == 0, fine.stderr
    assert "healthy" in fine.stdout
    host.live.cli("peer", "hold", "ann", "--reason", "in a \x1b[31mdemo")
    held = host.live.cli("peer", "doctor", "ann")
    assert re.search("^held +until it is released: in a \\\\x1b\\[31mdemo$", held.stdout, re.M), held.stdout
    host.live.cli("peer", "release", "ann")
    whole = host.live.cli("doctor")
    assert whole.returncode == 0, (whole.stdout, whole.stderr)
    assert "ws-hook" in whole.stdout
    box.keys("half a thought")
    host.until_state(host.tell("ann", "later"), "held")
    warned = host.live.cli("peer", "doctor", "ann")
    assert warned.returncode == 0, "a warning alone fails no gate"
    assert "HELD_MAIL" in warned.stdout
    assert "draft" in warned.stdout
    (host.folder / ".claude" / "settings.json").write_text("{}")
    for command in (("peer", "doctor", "ann"), ("doctor",)):
        bad = host.live.cli(*command)
        assert bad.returncode == 1
        assert "HOOKS_MISSING" in bad.stdout
        assert "repowire setup claude-code" in bad.stdout
        assert json.loads(host.live.cli(*command, "--json").stdout)
    host.live.kill()
    assert host.live.cli("doctor").returncode == 3


def test_the_host_says_that_an_agent_is_nobodys_and_that_nothing_serves(host: Host, box: Box) -> None:
    other = host.box("other")
    got = host.live.get("/doctor")
    found = {one["check"]: one for one in got["checks"]}
    assert not found["orphans"]["ok"]
    assert found["orphans"]["repair"] == "repowire link"
    assert found["ws-hook"]["ok"]
    assert found["version"]["ok"]
    assert got["ok"], "an agent that is nobody's is no error"
    assert other.bytes == b""


def test_a_tmux_that_hangs_is_named(host: Host, box: Box) -> None:
    pid = int(host.tmux.run("display-message", "-p", "#{pid}"))
    os.kill(pid, signal.SIGSTOP)
    try:
        got = host.live.get("/doctor")
        assert [one["ok"] for one in got["checks"] if one["check"] == "tmux"] == [True, False]
        assert not got["ok"]
        assert report(host)["tmux_pane_exists"] is None, "who does not answer says nothing about a pane"
    finally:
        os.kill(pid, signal.SIGCONT)
