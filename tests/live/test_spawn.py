"""Spawned agents: a real daemon, a real tmux on a private socket, and small programs for agents."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, TmuxServer, gone, until
from yards import AGENTS, Settled, Yard, rows, settled, yarding

pytestmark = pytest.mark.live


@pytest.fixture
def yard(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Yard]:
    with yarding(new_live(), tmux) as yard:
        yield yard


# -- starting --------------------------------------------------------------------


def test_an_agent_is_started_as_the_config_says_and_is_a_peer(yard: Yard) -> None:
    made = yard.spawn(profile="fast", circle="night.shift", name="ann")
    assert (made["display_name"], made["registration_state"], made["warnings"]) == ("ann", "pending_hook", [])
    assert made["command"] == "steady --model 'a b'"
    assert made["tmux_session"].startswith("night_shift:")
    screen = yard.shows(made["pane_id"], "CLAUDECODE=")
    said = f"I am {yard.bin}/steady --model a b in {yard.work.resolve()}/app with red; green, CLAUDECODE="
    assert screen.replace("\n", "").strip() == said
    peer = yard.peers()["ann"]
    assert peer["peer_id"] == made["peer_id"]
    assert (peer["circle"], peer["role"], peer["status"]) == ("night.shift", "agent", "online")
    assert peer["turn_state"] == "pending_first_turn"
    assert yard.tmux.run("show-options", "-p", "-t", made["pane_id"], "remain-on-exit") == ""


def test_two_of_one_folder_are_two_peers(yard: Yard) -> None:
    names = [yard.spawn()["display_name"] for _ in range(2)]
    assert names == ["app", "app-2"]


def test_an_agent_that_started_the_tmux_server_is_not_its_parent(new_live: Any, short_folder: Path) -> None:
    socket = short_folder / "t2"
    inside = {**os.environ, "CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": "another"}
    run = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    subprocess.run([*run, "new-session", "-d", "-s", "main", "cat"], env=inside, check=True)
    try:
        yard = Yard(new_live(), TmuxServer(socket, {**os.environ}))
        made = yard.spawn()
        assert "CLAUDECODE=1" not in yard.shows(made["pane_id"], "CLAUDECODE=")
    finally:
        subprocess.run([*run, "kill-server"], check=False)


def test_neither_the_environment_nor_the_command_stands_in_tmux(yard: Yard) -> None:
    made = yard.spawn(profile="fast")
    told = yard.tmux.run("display-message", "-p", "-t", made["pane_id"], "#{pane_start_command}")
    assert "launcher.py" in told
    assert "steady" not in told
    assert "red" not in yard.tmux.run("show-environment", "-t", made["pane_id"])


def test_the_first_message_waits_for_the_agent(yard: Yard) -> None:
    made = yard.spawn(message="begin with the tests")
    found = yard.live.get(f"/messages?peer={made['peer_id']}")["messages"]
    assert [(one["text"], one["from_peer"]) for one in found] == [("begin with the tests", "human")]
    assert found[0]["state"] in ("queued", "held", "leased")


def test_a_command_that_is_allowed_word_for_word(yard: Yard) -> None:
    line = f"{yard.bin}/claude --odd"
    assert yard.spawn(command=line, expect=422)["error"] == "command_unavailable"
    yard.program("claude", AGENTS["steady"])
    made = yard.spawn(command=line)
    assert yard.peers()[made["display_name"]]["backend"] == "claude-code"
    refused = yard.spawn(command=f"{line} --more", expect=403)
    assert (refused["error"], refused["allowed_commands"][-1]) == ("command_unavailable", line)


def test_an_agent_that_says_nothing_of_itself_has_its_asks_kept(yard: Yard) -> None:
    made = yard.spawn(backend="antigravity")
    assert made["registration_state"] == "cli_fallback"
    asked = yard.live.post("/ask", to_peer=made["peer_id"], text="ready?")
    assert [one["text"] for one in yard.live.get(f"/asks/pending?peer_id={made['peer_id']}")["asks"]] == ["ready?"]
    assert asked["correlation_id"]


def test_the_config_is_told(yard: Yard) -> None:
    told = yard.live.get("/spawn/config")
    assert told["enabled"] is True
    assert told["commands"] == yard.settings["commands"]
    assert told["profiles"] == yard.settings["profiles"]
    lines = ["steady", "stubborn --now", "hasty", "wrapper", "steady --quietly", f"{yard.bin}/claude --odd"]
    assert told["allowed_commands"] == lines
    assert told["allowed_paths"] == yard.settings["allowed_paths"]


def test_without_a_config_nothing_is_started(live: Live) -> None:
    refused = live.post("/spawn", expect=403, path=str(live.folder), backend="claude-code")["detail"]
    assert refused["error"] == "spawn_disabled"
    assert str(live.home / "config.toml") in refused["hint"]
    assert live.get("/spawn/config")["enabled"] is False


# -- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"backend": "opencode"}, 422, "command_unavailable"),
        ({"backend": "claude-code", "command": "steady"}, 422, "invalid_field"),
        ({"backend": None}, 422, "invalid_field"),
        ({"profile": "slow"}, 422, "profile_unavailable"),
        ({"command": "steady", "profile": "fast"}, 422, "invalid_field"),
        ({"command": "sh -c true"}, 403, "command_unavailable"),
        ({"role": "human"}, 422, "invalid_field"),
        ({"circle": "a b"}, 422, "invalid_field"),
        ({"path": "app"}, 422, "invalid_field"),
        ({"path": "/nowhere/at/all"}, 403, "path_not_allowed"),
    ],
)
def test_what_is_refused_says_why_and_opens_nothing(yard: Yard, body: Any, status: int, error: str) -> None:
    refused = yard.spawn(expect=status, **body)
    assert refused["error"] == error
    assert len(refused["hint"]) > 10
    assert yard.new_panes() == set()
    assert yard.peers().keys() <= {"human"}


def test_no_more_run_at_once_than_the_config_lets(yard: Yard) -> None:
    yard.live.term()
    yard.settings["max_agents"] = 2
    yard.start()
    first = yard.spawn()
    yard.spawn()
    panes = yard.new_panes()
    refused = yard.spawn(expect=429)
    assert (refused["error"], refused["limit"], "spawn.max_agents" in refused["hint"]) == ("too_many_agents", 2, True)
    assert yard.new_panes() == panes
    yard.kill(first["display_name"])
    yard.spawn()


def test_only_what_lies_in_an_allowed_folder_is_entered(yard: Yard) -> None:
    outside = yard.live.folder / "outside"
    (outside / "deep").mkdir(parents=True)
    (yard.live.folder / "work-not").mkdir()
    links = {"link": outside, "inner": yard.work / "app", "loop": yard.work / "loop"}
    for name, where in links.items():
        (yard.work / name).symlink_to(where)
    (yard.work / "file").write_text("")
    assert yard.spawn(path=f"{yard.work}/link/deep", expect=403)["error"] == "path_not_allowed"
    assert yard.spawn(path=f"{yard.work}/app/../../outside", expect=403)["error"] == "path_not_allowed"
    assert yard.spawn(path=f"{yard.work}-not", expect=403)["error"] == "path_not_allowed"
    assert yard.spawn(path=f"{yard.work}/none", expect=404)["error"] == "path_not_found"
    assert yard.spawn(path=f"{yard.work}/loop", expect=404)["error"] == "path_not_found"
    assert yard.spawn(path=f"{yard.work}/file", expect=422)["field"] == "path"
    os.mkdir(os.fsencode(yard.work) + b"/not-utf-8-\xff")
    os.symlink(os.fsencode(yard.work) + b"/not-utf-8-\xff", yard.work / "odd")
    assert "UTF-8" in yard.spawn(path=f"{yard.work}/odd", expect=422)["hint"]
    made = yard.spawn(path=f"{yard.work}/inner")
    assert yard.peers()[made["display_name"]]["path"] == str((yard.work / "app").resolve())


def test_a_folder_that_is_swapped_while_it_is_started_in_is_not_entered(yard: Yard) -> None:
    """The launcher finds another folder than the one that was allowed: here a python that waits before it runs."""
    outside, app = yard.live.folder / "outside", yard.work / "app"
    outside.mkdir()
    swapped = threading.Event()

    def swap() -> None:
        while not swapped.is_set():
            if yard.new_panes():
                app.rename(yard.work / "was-app")
                app.symlink_to(outside)
                swapped.set()

    turning = threading.Thread(target=swap)
    turning.start()
    try:
        got = yard.live.request("POST", "/spawn", body={"path": str(app), "backend": "claude-code"})
    finally:
        swapped.set()
        turning.join()
    if got.status == 200:  # it was in already: then it is in the folder that was allowed
        where = yard.tmux.run("display-message", "-p", "-t", got.json["pane_id"], "#{pane_current_path}")
        assert where == str(yard.work / "was-app")
    else:
        assert got.json["detail"]["error"] == "spawn_failed"
        assert "another folder" in got.json["detail"]["screen"]


def test_a_name_full_of_commands_is_a_name(yard: Yard) -> None:
    odd = yard.work / "#(touch made) ;'$(touch made)"
    odd.mkdir()
    made = yard.spawn(path=str(odd))
    yard.shows(made["pane_id"], "CLAUDECODE=")
    assert not list(yard.live.folder.rglob("made"))


# -- failing -----------------------------------------------------------------------


def test_an_agent_that_ends_at_once_is_told_with_what_it_showed_and_leaves_nothing(yard: Yard) -> None:
    refused = yard.spawn(backend="gemini", expect=500)
    assert refused["error"] == "spawn_failed"
    assert refused["exit_status"] == 3
    assert "no such model: m1" in refused["screen"]
    assert "no such model: m1" in refused["hint"]
    assert refused["command"] == "hasty"
    assert yard.new_panes() == set()
    assert yard.peers().keys() <= {"human"}
    assert rows(yard) == []


def test_a_program_that_is_not_there_is_told_before_a_window_is_opened(yard: Yard) -> None:
    (yard.bin / "steady").unlink()
    refused = yard.spawn(expect=422)
    assert refused["error"] == "command_unavailable"
    assert "steady" in refused["hint"]
    assert str(yard.bin) in refused["searched"]


def test_a_program_is_looked_for_in_no_folder_that_depends_on_where_one_is(yard: Yard) -> None:
    """The project's own program of that name is not what the config means."""
    yard.live.term()
    yard.settings |= {"env_path": f".:{yard.bin}:relative", "commands": {"claude-code": "tool"}}
    yard.program("tool", "echo the one that is meant\nexec cat")
    for folder in (Path.cwd(), yard.work / "app"):
        (folder / "tool").write_text("#!/bin/sh\necho the one of the project\nexec cat\n")
        (folder / "tool").chmod(0o755)
    try:
        yard.start()
        yard.shows(yard.spawn()["pane_id"], "the one that is meant")
    finally:
        Path("tool").unlink()


def test_a_program_that_cannot_be_run_is_told(yard: Yard) -> None:
    (yard.bin / "steady").write_text("#!/no/such/interpreter\n")
    refused = yard.spawn(expect=500)
    assert refused["error"] == "spawn_failed"
    assert "cannot be run" in refused["screen"]
    assert yard.new_panes() == set()


def test_a_tmux_that_does_not_answer_is_told(yard: Yard) -> None:
    server = int(yard.tmux.run("display-message", "-p", "#{pid}"))
    os.kill(server, signal.SIGSTOP)
    try:
        refused = yard.spawn(expect=500)
    finally:
        os.kill(server, signal.SIGCONT)
    assert refused["error"] == "tmux_failed"
    until(lambda: yard.new_panes() == set())
    assert rows(yard) == []


def test_what_a_hanging_tmux_left_half_done_is_done_when_the_agent_ends(yard: Yard) -> None:
    ann = Settled(yard)
    server = int(yard.tmux.run("display-message", "-p", "#{pid}"))
    os.kill(server, signal.SIGSTOP)
    try:
        refused = ann.restart(expect=500)
    finally:
        os.kill(server, signal.SIGCONT)
    assert refused["error"] == "kill_failed"
    assert not gone(ann.pid)
    os.kill(ann.pid, signal.SIGKILL)
    until(lambda: (yard.new_panes(), rows(yard)) == (set(), []))


def test_a_login_shell_that_hangs_is_given_up_on_and_named(yard: Yard) -> None:
    yard.live.term()
    hangs = yard.program("hangs", "sleep 600")
    yard.live.environ["SHELL"] = str(hangs)
    yard.settings["login_shell_seconds"] = 0.2
    yard.start()
    made = yard.spawn()
    assert [word for word in made["warnings"] if str(hangs) in word and "PATH" in word]


def test_the_path_is_the_login_shells_and_is_asked_for_once(yard: Yard) -> None:
    yard.live.term()
    asked = yard.live.folder / "asked"
    tools = yard.live.folder / "tools"
    shutil.copytree(yard.bin, tools)
    shell = f'echo . >> {asked}\nPATH="{tools}:$PATH"\necho noise\nexport PATH\nshift 2\nexec /bin/sh "$@"'
    yard.live.environ["SHELL"] = str(yard.program("shell", shell))
    yard.settings["env_path"] = ""
    yard.start()
    made = yard.spawn()
    yard.shows(made["pane_id"], f"I am {tools}/steady")
    yard.spawn()
    assert asked.read_text() == ".\n"


# -- a daemon that dies in between ---------------------------------------------------


def test_a_daemon_killed_at_any_moment_of_a_start_leaves_no_ghost(yard: Yard) -> None:
    """Whatever is left of it is a peer that can be killed, or is nothing."""
    with ThreadPoolExecutor(1) as pool:
        for number in range(12):
            began = time.monotonic()
            asked = pool.submit(request, yard)
            while time.monotonic() - began < 0.03 * number:
                continue
            yard.live.kill()
            asked.result()
            yard.start()
            until(lambda: settled(yard), 20)
            for pane in yard.new_panes():
                peer = yard.live.get(f"/peers/by-pane/{pane.replace('%', '%25')}")
                assert yard.kill(peer["peer_id"])["tmux_killed"] is True
            assert yard.new_panes() == set()


def test_what_a_start_left_behind_is_told_from_a_pane_that_only_speaks_of_it(yard: Yard) -> None:
    """A user may look for a start by its id, in a pane of his own, while the daemon is down."""
    yard.live.term()
    yard.settings["settle_seconds"] = 30
    yard.start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(request, yard)
        until(lambda: [pane for pane in yard.new_panes() if "I am" in yard.tmux.screen(pane)])
        yard.live.kill()
        asked.result()
    (pane,) = yard.new_panes()
    yard.pids.append(yard.pid(pane))
    command = yard.tmux.run("display-message", "-p", "-t", pane, "#{pane_start_command}")
    spawn_id = re.findall(r"spawn-[0-9a-f]+", command)[0]
    his = yard.tmux.window(f"sh -c 'echo {spawn_id}; exec cat'")
    yard.start()
    until(lambda: rows(yard) == [[pane, "running", 0]])
    assert yard.new_panes() == {pane, his}


def request(yard: Yard) -> None:
    with suppress(OSError, HTTPException):  # the daemon dies while it is answered
        yard.live.request("POST", "/spawn", body={"path": str(yard.work / "app"), "backend": "claude-code"})
