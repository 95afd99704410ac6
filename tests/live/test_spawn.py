"""Spawned agents: a real daemon, a real tmux on a private socket, and small programs for agents."""

import json
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
from test_cli import on_a_terminal
from test_openapi import faults, schema_of

from repowire.client import RepowireClient
from repowire.errors import Refusal

pytestmark = pytest.mark.live

# The agents. `steady` stands; it says what it is, and where.
AGENTS = {
    "steady": 'echo "I am $0 $* in $(pwd) with $COLOUR, CLAUDECODE=$CLAUDECODE"\nexec cat',
    "stubborn": "trap '' HUP TERM\necho ready\nwhile :; do read line || sleep 1; done",
    "hasty": "echo 'no such model: m1' >&2\nexit 3",
    "wrapper": "sleep 600 &\necho wrapped\nwait",
}


class Yard:
    """A daemon that may start the agents above in `work`, in a tmux of its own."""

    def __init__(self, live: Live, tmux: TmuxServer) -> None:
        self.live, self.tmux = live, tmux
        self.bin, self.work = live.folder / "bin", live.folder / "work"
        self.bin.mkdir()
        (self.work / "app").mkdir(parents=True)
        for name, script in AGENTS.items():
            self.program(name, script)
        self.before = self.panes()
        self.pids: list[int] = []
        self.settings: dict[str, Any] = {
            "commands": {
                "claude-code": "steady",
                "codex": "stubborn --now",
                "gemini": "hasty",
                "pi": "wrapper",
                "antigravity": "steady --quietly",
            },
            "allowed_commands": [str(self.bin / "claude") + " --odd"],
            "allowed_paths": [str(self.work)],
            "profiles": {"claude-code": {"fast": {"args": ["--model", "a b"], "description": "the quick one"}}},
            "env": {"COLOUR": "red; green"},
            "env_path": str(self.bin),
            "tmux_socket": str(tmux.socket),
            "settle_seconds": 0.3,
        }
        self.start()

    def program(self, name: str, script: str) -> Path:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def start(self) -> None:
        def text(value: Any) -> str:
            return value if isinstance(value, str) else json.dumps(value)

        self.live.start(**{f"REPOWIRE_SPAWN__{key}".upper(): text(value) for key, value in self.settings.items()})

    def panes(self) -> set[str]:
        return set(self.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split())

    def new_panes(self) -> set[str]:
        return self.panes() - self.before

    def spawn(self, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        body = {"path": str(self.work / "app"), **({} if "command" in body else {"backend": "claude-code"}), **body}
        found: dict[str, Any] = self.live.post("/spawn", expect=expect, **body)
        assert faults(schema_of(("POST", "/spawn"), expect, "application/json") or {}, found) == []
        if expect < 400:
            self.pids.append(self.pid(found["pane_id"]))
        return found["detail"] if expect >= 400 else found

    def kill(self, name: str, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.live.post("/kill-peer", expect=expect, peer_identifier=name, **body)
        return found["detail"] if expect >= 400 else found

    def peers(self) -> dict[str, dict[str, Any]]:
        return {peer["display_name"]: peer for peer in self.live.get("/peers")["peers"]}

    def pid(self, pane: str) -> int:
        return self.tmux.pid(pane)

    def shows(self, pane: str, words: str) -> str:
        def look() -> str:
            screen = self.tmux.screen(pane)
            return screen if words in screen.replace("\n", "") else ""

        return until(look)


@pytest.fixture
def yard(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Yard]:
    made = Yard(new_live(), tmux)
    yield made
    for pid in made.pids:  # some do not mind that their terminal is gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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


# -- killing -----------------------------------------------------------------------


def test_a_killed_agent_is_gone_with_its_pane_and_off_the_list(yard: Yard) -> None:
    made = yard.spawn()
    pid = yard.pid(made["pane_id"])
    assert yard.kill(made["display_name"]) == {"ok": True, "tmux_killed": True}
    assert gone(pid)
    assert yard.new_panes() == set()
    assert made["display_name"] not in yard.peers()
    assert rows(yard) == []
    assert yard.kill(made["display_name"], expect=404)["error"] == "peer_not_found"


def test_an_agent_that_ignores_the_hangup_is_ended_all_the_same(yard: Yard) -> None:
    made = yard.spawn(backend="codex")
    yard.shows(made["pane_id"], "ready")
    pid = yard.pid(made["pane_id"])
    assert yard.kill(made["peer_id"])["tmux_killed"] is True
    assert gone(pid)


def child_of(pid: int) -> int:
    """Its one child, once it has one."""
    return int(until(lambda: subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout))


@pytest.mark.parametrize("verb", ["kill", "restart"])
def test_an_agent_behind_a_script_that_outlives_the_script_is_ended_too(yard: Yard, verb: str) -> None:
    native = yard.program("native", AGENTS["stubborn"])
    yard.program("steady", f'{native} "$@" &\nwait')
    ann = Settled(yard)
    agent = child_of(ann.pid)
    yard.pids.append(agent)
    until(lambda: yard.peers()[ann.name]["ws_connected"])  # from then on its word alone is no proof
    shown = {"pane_id": ann.pane, "metadata": {"hook_session_id": "s-1"}, "birth_certificate": ann.certificate}
    where = {"path": str(yard.work / "app"), "peer_id": ann.peer_id}
    told = yard.live.post("/peers", name="x", agent_pid=agent, **where, **shown)
    assert told["peer_id"] == ann.peer_id
    if verb == "kill":
        assert yard.kill(ann.peer_id)["tmux_killed"] is True
    else:
        ann.restart()
        yard.pids += [yard.pid(ann.pane), child_of(yard.pid(ann.pane))]
    assert gone(ann.pid)
    assert gone(agent)


def test_a_pane_that_we_did_not_open_is_left_alone(yard: Yard) -> None:
    pane = yard.tmux.window("cat")
    yard.live.post("/peers", name="guest", path=str(yard.work), pane_id=pane)
    assert yard.kill("guest") == {"ok": True, "tmux_killed": None}
    assert pane in yard.panes()
    assert "guest" not in yard.peers()


def test_a_name_that_two_have_is_not_guessed(yard: Yard) -> None:
    for circle in ("day", "night"):
        yard.spawn(circle=circle, name="ann")
    refused = yard.kill("ann", expect=409)
    assert refused["error"] == "ambiguous_peer"
    told = {(one["circle"], one["tmux_session"].partition(":")[0]) for one in refused["candidates"]}
    assert told == {("day", "day"), ("night", "night")}
    assert yard.kill("ann", circle="day")["tmux_killed"] is True
    assert len(yard.new_panes()) == 1


def test_a_process_of_another_pane_that_got_the_number_is_not_killed(yard: Yard) -> None:
    """The tmux server is another one, whose pane has the same id: nothing there is ours."""
    made = yard.spawn()
    yard.tmux.run("kill-server")
    until(lambda: yard.peers().get(made["display_name"], {}).get("status") in (None, "offline"))
    yard.tmux.run("new-session", "-d", "-s", "main", "cat")
    while made["pane_id"] not in yard.panes():
        yard.tmux.window("cat")
    assert yard.kill(made["peer_id"]) == {"ok": True, "tmux_killed": None}
    assert made["pane_id"] in yard.panes()


def test_an_agent_that_ends_by_itself_takes_its_pane_along(yard: Yard) -> None:
    made = yard.spawn()
    os.kill(yard.pid(made["pane_id"]), signal.SIGKILL)
    until(lambda: yard.new_panes() == set())
    until(lambda: yard.peers()[made["display_name"]]["status"] == "offline")
    until(lambda: rows(yard) == [])


# -- the command line ----------------------------------------------------------------


def test_peer_new_and_kill(yard: Yard) -> None:
    done = yard.live.cli(
        "peer", "new", str(yard.work / "app"), "--backend", "claude-code", "-m", "begin", "--name", "ann"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ann\n", "")
    assert len(yard.new_panes()) == 1
    done = yard.live.cli("peer", "kill", "ann", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "tmux_killed": True})
    assert yard.new_panes() == set()


def test_peer_new_says_what_a_failed_start_showed(yard: Yard) -> None:
    done = yard.live.cli("peer", "new", str(yard.work / "app"), "--backend", "gemini")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "  | no such model: m1"
    assert done.stderr.splitlines()[-1] == "repowire: `hasty` ended at once with status 3: no such model: m1"


def test_peer_new_asks_for_the_kind_where_there_are_several(yard: Yard) -> None:
    done = yard.live.cli("peer", "new", str(yard.work / "app"))
    assert done.returncode == 2
    assert "antigravity, claude-code, codex, gemini, pi" in done.stderr


def test_what_takes_long_says_what_it_waits_for(yard: Yard) -> None:
    yard.live.term()
    yard.settings["settle_seconds"] = 3
    yard.start()
    code, shown = on_a_terminal(
        yard.live.environ, "peer", "new", str(yard.work / "app"), "--backend", "codex", "--name", "ann"
    )
    assert (code, "waiting for it to stand" in shown, "started ann" in shown) == (0, True, True)
    yard.pids.append(yard.pid(*yard.new_panes()))
    code, shown = on_a_terminal(yard.live.environ, "peer", "kill", "ann")  # which ignores the hangup
    assert (code, "waiting for ann to end" in shown, "ended ann" in shown) == (0, True, True)


def test_peer_kill_says_when_the_agent_was_left_alone(yard: Yard) -> None:
    yard.live.post("/peers", name="guest", path=str(yard.work))
    done = yard.live.cli("peer", "kill", "guest")
    assert done.returncode == 0
    assert "left alone" in done.stderr


def test_peer_restart_and_session_resume(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    done = yard.live.cli("peer", "restart", "ann", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "steady --resume s-1\n")
    assert "the agent's to say" in done.stderr
    done = yard.live.cli("peer", "restart", "ann", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "restarted")
    yard.pids.append(yard.pid(ann.pane))
    session = session_of(yard, ann.peer_id)
    os.kill(yard.pid(ann.pane), signal.SIGKILL)
    until(lambda: yard.peers()["ann"]["status"] == "offline")
    done = yard.live.cli("session", "resume", session, "--dry-run")
    assert (done.returncode, done.stdout) == (0, "resume_available\n")
    named = yard.live.cli("session", "resume", "ann", "--dry-run", "--json")  # its newest
    assert json.loads(named.stdout)["repowire_session_id"] == session
    done = yard.live.cli("session", "resume", "ann")
    assert (done.returncode, done.stdout) == (0, "ann\n")
    done = yard.live.cli("session", "resume", session)
    assert (done.returncode, "ann lives in this session" in done.stderr) == (1, True)
    yard.live.post("/peers", name="hookless", path="/src/hookless")
    for unknown, words in (
        ("rw-session-0", "no session 'rw-session-0'"),
        ("nobody", "no peer 'nobody'"),
        ("hookless", "no session of hookless is known"),
    ):
        done = yard.live.cli("session", "resume", unknown)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr


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


def settled(yard: Yard) -> bool:
    """Every pane that is there runs its agent, and is one's own."""
    owned = {row[0] for row in rows(yard)}
    return all("I am" in yard.tmux.screen(pane) and pane in owned for pane in yard.new_panes()) and all(
        pane in yard.new_panes() for pane in owned
    )


def rows(yard: Yard) -> list[Any]:
    """What the daemon has written down as its own, read beside it."""
    copy = yard.live.folder / "copy"
    copy.mkdir(exist_ok=True)
    for file in yard.live.home.glob("state.db*"):
        shutil.copy(file, copy)
    said = subprocess.run(
        ["python3", "-c", "import sqlite3, sys, json; print(json.dumps(sqlite3.connect(sys.argv[1])"
         ".execute('SELECT pane_id, phase, remains FROM spawns').fetchall()))", str(copy / "state.db")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[Any] = json.loads(said.stdout)
    return found


# -- restarts ------------------------------------------------------------------------


class Settled:
    """A spawned agent whose session is known, as its hooks would say it."""

    def __init__(self, yard: Yard, session: str = "s-1", **fields: Any) -> None:
        self.yard = yard
        made = yard.spawn(**fields)
        self.pane, self.peer_id, self.name = made["pane_id"], made["peer_id"], made["display_name"]
        self.pid = yard.pid(self.pane)
        self.say(session)

    def say(self, session: str) -> None:
        told = {"pane_id": self.pane, "agent_pid": self.yard.pid(self.pane), "metadata": {"hook_session_id": session}}
        path = str(self.yard.work / "app")
        backend = self.yard.peers()[self.name]["backend"]
        back = self.yard.live.post("/peers", name="x", peer_id=self.peer_id, path=path, backend=backend, **told)
        assert back["peer_id"] == self.peer_id
        self.certificate = back["birth_certificate"]

    def restart(self, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.yard.live.post(f"/peers/{self.peer_id}/restart", expect=expect, **body)
        route = ("POST", "/peers/{name}/restart")
        assert faults(schema_of(route, expect, "application/json") or {}, found) == []
        return found["detail"] if expect >= 400 else found


def test_a_restarted_agent_goes_on_with_its_session_in_its_pane_as_the_same_peer(yard: Yard) -> None:
    ann = Settled(yard, profile="fast", circle="night", name="ann")
    asked = yard.live.post("/ask", to_peer="ann", text="still there?", circle="night", if_offline="queue")
    told = ann.restart(message="go on")
    assert (told["status"], told["restarted"], told["peer_id"]) == ("restarted", True, ann.peer_id)
    assert told["command"] == "steady --model 'a b' --resume s-1"
    assert gone(ann.pid)
    assert yard.new_panes() == {ann.pane}
    yard.shows(ann.pane, "--resume s-1")
    peer = yard.peers()["ann"]
    assert (peer["peer_id"], peer["circle"], peer["status"]) == (ann.peer_id, "night", "online")
    open_asks = yard.live.get(f"/asks/pending?peer_id={ann.peer_id}")["asks"]
    assert [one["correlation_id"] for one in open_asks] == [asked["correlation_id"]]
    assert rows(yard) == [[ann.pane, "running", 0]]
    yard.pids.append(yard.pid(ann.pane))
    assert yard.kill(ann.peer_id)["tmux_killed"] is True


def test_a_dry_run_of_a_restart_touches_nothing(yard: Yard) -> None:
    ann = Settled(yard)
    told = ann.restart(dry_run=True)
    assert (told["status"], told["restarted"], told["command"]) == ("restart_available", False, "steady --resume s-1")
    assert yard.pid(ann.pane) == ann.pid
    assert not gone(ann.pid)


def test_an_agent_that_does_not_want_to_end_is_ended_and_started_again(yard: Yard) -> None:
    ann = Settled(yard, backend="codex")
    ann.restart()
    assert gone(ann.pid)
    yard.pids.append(yard.pid(ann.pane))
    until(lambda: yard.peers()[ann.name]["status"] == "online")


def test_a_restart_that_fails_is_told_and_keeps_the_peer_with_its_mail(yard: Yard) -> None:
    ann = Settled(yard)
    sent = yard.live.post("/notify", to_peer=ann.peer_id, text="wait for me")
    yard.program("steady", "echo 'no conversation found'; exit 1")
    refused = ann.restart(expect=500)
    assert refused["error"] == "spawn_failed"
    assert "no conversation found" in refused["screen"]
    assert yard.new_panes() == set()
    until(lambda: yard.peers()[ann.name]["status"] == "offline")
    assert yard.live.get(f"/deliveries/{sent['delivery_id']}")["state"] in ("queued", "held", "leased")
    assert rows(yard) == []
    assert ann.restart(expect=409)["error"] == "missing_pane"


def test_what_cannot_be_restarted_says_why(yard: Yard) -> None:
    pane = yard.tmux.window("cat")
    guest = yard.live.post("/peers", name="guest", path=str(yard.work), pane_id=pane, metadata={"session_id": "s-9"})
    refused = yard.live.post("/peers/guest/restart", expect=409)["detail"]
    assert (refused["error"], refused["pane_id"]) == ("pane_unverified", pane)
    yard.live.post("/peers", name="far", path="/src", machine="elsewhere")
    assert yard.live.post("/peers/far/restart", expect=409)["detail"]["error"] == "cross_host"
    made = yard.spawn()
    refused = yard.live.post(f"/peers/{made['peer_id']}/restart", expect=409)["detail"]
    assert refused["error"] == "resume_unavailable"
    assert "hooks have not spoken" in refused["hint"]
    ann = Settled(yard, session="s-9", name="ann")
    assert guest["peer_id"] != ann.peer_id
    (yard.work / "app").rename(yard.work / "moved")
    assert ann.restart(expect=404)["error"] == "path_not_found"
    assert not gone(ann.pid)


def test_two_restarts_at_once_end_it_once(yard: Yard) -> None:
    ann = Settled(yard, backend="codex")  # it takes its time to end
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: yard.live.request("POST", f"/peers/{ann.peer_id}/restart", body={}), range(2)))
    yard.pids.append(yard.pid(ann.pane))
    assert sorted(one.status for one in both) == [200, 409]
    lost = next(one for one in both if one.status == 409)
    assert lost.json["detail"]["error"] == "restart_in_progress"


def test_a_daemon_killed_at_any_moment_of_a_restart_leaves_no_ghost(yard: Yard) -> None:
    for number in range(8):
        ann = Settled(yard, name=f"ann{number}", session=f"s-{number}")
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            asked = pool.submit(again, yard, ann.peer_id)
            while time.monotonic() - began < 0.03 * number:
                continue
            yard.live.kill()
            asked.result()
        yard.start()
        until(lambda: settled(yard), 20)
        assert ann.name in yard.peers()
        for pane in yard.new_panes():
            peer = yard.live.get(f"/peers/by-pane/{pane.replace('%', '%25')}")
            assert peer["peer_id"] == ann.peer_id
            assert yard.kill(peer["peer_id"])["tmux_killed"] is True
        assert yard.new_panes() == set()


def again(yard: Yard, peer_id: str) -> None:
    with suppress(OSError, HTTPException):
        yard.live.request("POST", f"/peers/{peer_id}/restart", body={})


# -- sessions --------------------------------------------------------------------------


def session_of(yard: Yard, peer_id: str) -> str:
    return str(yard.live.post("/notify", to_peer=peer_id, text="hello")["repowire_session_id"])


def test_a_session_that_was_left_is_gone_on_with_as_the_same_peer(yard: Yard) -> None:
    ann = Settled(yard, name="ann", circle="night")
    session = session_of(yard, ann.peer_id)
    resume = f"/sessions/{session}/controls/resume"
    assert yard.live.post(resume)["status"] == "active_executor"
    assert yard.live.post(resume, expect=409, dry_run=False)["detail"]["error"] == "active_executor"
    os.kill(ann.pid, signal.SIGKILL)
    until(lambda: yard.peers()["ann"]["status"] == "offline")
    # what was killed is there until its tmux has heard of it, and nothing is resumed beside it
    until(lambda: yard.live.post(resume)["status"] == "resume_available")
    looked = yard.live.post(resume)
    assert (looked["status"], looked["action"], looked["runtime_session_id"]) == ("resume_available", "inspect", "s-1")
    assert looked["resume_capability"] == {"supported": True, "arguments": ["--resume", "s-1"]}
    refused = yard.live.post(f"/sessions/{session}/controls/notify", expect=409, text="up?")["detail"]
    assert (refused["error"], refused["session_status"]) == ("session_executor_unavailable", "ended")
    done = yard.live.post(resume, dry_run=False, profile="fast", message="go on")
    assert (done["action"], done["spawned_display_name"], done["executor_peer_id"]) == ("spawned", "ann", ann.peer_id)
    yard.shows(done["pane_id"], "--model a b --resume s-1")
    told = yard.live.post(f"/sessions/{session}/controls/notify", text="up?")
    assert (told["executor_peer_id"], told["capability"]) == (ann.peer_id, "active_executor")
    assert yard.peers()["ann"]["circle"] == "night"


def test_a_helper_that_says_the_session_of_its_agent_does_not_take_it_over(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    session = session_of(yard, ann.peer_id)
    for _ in range(2):
        helper = yard.live.post(
            "/peers", name="h", path="/src/h", agent_pid=os.getpid(), metadata={"session_id": "s-1"}
        )
        assert helper["peer_id"] != ann.peer_id
    told = yard.live.post(f"/sessions/{session}/controls/notify", text="for ann")
    assert told["executor_peer_id"] == ann.peer_id
    assert yard.live.get(f"/peers/{ann.peer_id}/transcript")["repowire_session_id"] == session


def test_a_session_that_another_process_lives_in_is_not_resumed_beside_it(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    session = session_of(yard, ann.peer_id)
    ann.say("s-2")  # it went on to another one, as after /clear
    other = yard.tmux.window("cat")
    pid = yard.pid(other)
    held = {"pane_id": other, "agent_pid": pid, "metadata": {"session_id": "s-1"}}
    ben = yard.live.post("/peers", name="ben", path=str(yard.work), backend="claude-code", **held)
    assert ben["peer_id"] != ann.peer_id
    refused = yard.live.post(f"/sessions/{session}/controls/resume", expect=409, dry_run=False)["detail"]
    assert (refused["error"], refused["hint"].split()[0]) == ("active_executor", "ben")
    assert yard.new_panes() == {ann.pane, other}


@pytest.mark.parametrize("session", ["--dangerously-skip-permissions", "-c", "../s-1", "s 1", "s\n1"])
def test_what_an_agent_calls_its_session_adds_no_words_to_its_command(yard: Yard, session: str) -> None:
    ann = Settled(yard, session=session)
    for dry_run in (True, False):
        refused = ann.restart(dry_run=dry_run, expect=409)
        assert (refused["error"], refused["runtime_session_id"]) == ("resume_unavailable", session)
    assert not gone(ann.pid)
    os.kill(ann.pid, signal.SIGKILL)
    until(lambda: yard.peers()[ann.name]["status"] == "offline")
    resume = f"/sessions/{session_of(yard, ann.peer_id)}/controls/resume"
    until(lambda: yard.live.post(resume)["status"] == "binding_unavailable")
    assert yard.live.post(resume, expect=409, dry_run=False)["detail"]["error"] == "resume_unavailable"


def test_while_a_restart_looks_at_a_peer_nothing_else_is_done_to_it(yard: Yard) -> None:
    """A login shell that takes its time lies between what it sees and what it does."""
    begun, go = yard.live.folder / "begun", yard.live.folder / "go"
    shell = yard.program("slow", f"touch {begun}\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexit 1")
    ann = Settled(yard)
    yard.live.kill()
    yard.settings |= {"login_shell_seconds": 10}
    yard.live.environ["SHELL"] = str(shell)
    yard.start()
    until(lambda: yard.peers()[ann.name]["status"] == "online")
    with ThreadPoolExecutor(1) as pool:
        restart = pool.submit(yard.live.request, "POST", f"/peers/{ann.peer_id}/restart", body={})
        until(begun.exists)
        assert yard.kill(ann.peer_id, expect=409)["error"] == "restart_in_progress"
        assert ann.restart(expect=409)["error"] == "restart_in_progress"
        go.touch()
        assert restart.result().status == 200
    assert yard.new_panes() == {ann.pane}
    yard.pids.append(yard.pid(ann.pane))


@pytest.mark.parametrize("lives_on", [True, False])
def test_an_older_session_that_is_gone_on_with_has_one_holder_whoever_tells_of_it(yard: Yard, lives_on: bool) -> None:
    ann = Settled(yard, name="ann", backend="codex")
    first = session_of(yard, ann.peer_id)
    ann.say("s-2")
    if not lives_on:
        os.kill(ann.pid, signal.SIGKILL)
        until(lambda: yard.peers()["ann"]["status"] == "offline")
    resume = f"/sessions/{first}/controls/resume"
    done = until(lambda: (got := yard.live.request("POST", resume, body={"dry_run": False})).status == 200 and got.json)
    yard.pids.append(yard.pid(done["pane_id"]))
    assert (done["executor_peer_id"] == ann.peer_id) is not lives_on
    refused = yard.live.post(resume, expect=409, dry_run=False)["detail"]
    assert refused["error"] == "active_executor"
    told = yard.live.post(f"/peers/{done['executor_peer_id']}/restart", dry_run=True)
    assert told["command"] == "stubborn --now resume s-1"


@pytest.mark.parametrize("shows", ["command", "transcript"])
def test_a_holder_that_no_peer_is_and_no_pane_has_is_found(yard: Yard, shows: str) -> None:
    """Started by hand, without hooks: its command line names the session, or it has the transcript open."""
    rollout = yard.live.folder / ".codex/sessions/2026/11/25/rollout-2026-11-25T10-00-00-s-1.jsonl"
    rollout.parent.mkdir(parents=True)
    rollout.write_text("{}\n")
    by_hand = yard.program("codex", 'exec 3>>"$OPENED"\necho there\nread line')
    ann = Settled(yard, backend="codex")
    words = ["resume", "s-1"] if shows == "command" else []
    opened = "/dev/null" if shows == "command" else str(rollout)
    resume = f"/sessions/{session_of(yard, ann.peer_id)}/controls/resume"
    with subprocess.Popen(
        [str(by_hand), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OPENED": opened}
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"there\n"
        refused = ann.restart(expect=409)
        assert (refused["error"], refused["holders"]) == ("resume_unavailable", [holder.pid])
        assert not gone(ann.pid)
        os.kill(ann.pid, signal.SIGKILL)
        until(lambda: yard.live.post(resume)["status"] == "resume_available")
        refused = yard.live.post(resume, expect=409, dry_run=False)["detail"]
        assert (refused["error"], refused["holders"]) == ("resume_unavailable", [holder.pid])
        holder.kill()
    yard.pids.append(yard.pid(yard.live.post(resume, dry_run=False)["pane_id"]))


def test_what_the_agent_itself_started_is_no_other_holder(yard: Yard) -> None:
    """Codex and its like are often a script that starts the program, with the same words."""
    native = yard.program("codex", "echo ready; exec 3<&0; while :; do read line || sleep 1; done")
    yard.program("stubborn", f'{native} "$@" &\nwait')
    ann = Settled(yard, backend="codex")
    for _ in range(2):
        assert ann.restart()["restarted"] is True
        yard.pids.append(yard.pid(ann.pane))


def test_who_was_taken_off_the_list_and_lives_yet_holds_its_session(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    session = session_of(yard, ann.peer_id)
    yard.live.request("DELETE", f"/peers/{ann.peer_id}")
    refused = yard.live.post(f"/sessions/{session}/controls/resume", expect=409, dry_run=False)["detail"]
    assert (refused["error"], refused["holders"]) == ("resume_unavailable", [ann.pid])
    assert yard.new_panes() == {ann.pane}


# -- another kind ----------------------------------------------------------------------


def switch(yard: Yard, peer_id: str, backend: str, *, expect: int = 200) -> dict[str, Any]:
    found: dict[str, Any] = yard.live.post(f"/peers/{peer_id}/switch-backend", expect=expect, new_backend=backend)
    route = ("POST", "/peers/{name}/switch-backend")
    assert faults(schema_of(route, expect, "application/json") or {}, found) == []
    return found["detail"] if expect >= 400 else found


def test_another_kind_of_agent_takes_the_place_with_the_name_and_the_mail(yard: Yard) -> None:
    ann = Settled(yard, name="ann", circle="night", profile="fast")
    sent = yard.live.post("/notify", to_peer=ann.peer_id, text="for whoever you are")
    told = switch(yard, ann.peer_id, "codex")
    assert (told["old_backend"], told["new_backend"], told["command"]) == ("claude-code", "codex", "stubborn --now")
    yard.shows(ann.pane, "ready")
    yard.pids.append(yard.pid(ann.pane))
    assert gone(ann.pid)
    peer = yard.peers()["ann"]
    assert (peer["peer_id"], peer["backend"], peer["circle"]) == (ann.peer_id, "codex", "night")
    assert "hook_session_id" not in peer["metadata"]
    assert yard.live.get(f"/deliveries/{sent['delivery_id']}")["state"] in ("queued", "held", "leased")
    assert ann.restart(expect=409)["error"] == "resume_unavailable", "the session was the other's"
    ann.say("c-1")
    assert ann.restart(dry_run=True)["command"] == "stubborn --now resume c-1"
    assert switch(yard, ann.peer_id, "codex", expect=409)["error"] == "same_backend"


def test_a_switch_is_refused_while_asks_are_open_or_the_kind_is_not_to_be_had(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    asked = yard.live.post("/ask", to_peer="ann", text="ready?", if_offline="queue")["correlation_id"]
    refused = switch(yard, ann.peer_id, "codex", expect=409)
    assert (refused["error"], refused["open_asks"]) == ("in_flight_asks", [asked])
    yard.live.post("/decline", correlation_id=asked, reason="later")
    assert switch(yard, ann.peer_id, "opencode", expect=422)["error"] == "command_unavailable"
    assert not gone(ann.pid)


def test_a_switch_that_fails_leaves_a_peer_that_can_be_gone_on_with(yard: Yard) -> None:
    ann = Settled(yard, name="ann")
    session = session_of(yard, ann.peer_id)
    refused = switch(yard, ann.peer_id, "gemini", expect=500)
    assert (refused["error"], refused["exit_status"]) == ("spawn_failed", 3)
    assert yard.new_panes() == set()
    until(lambda: yard.peers()["ann"]["status"] == "offline")
    assert yard.peers()["ann"]["backend"] == "claude-code"
    done = yard.live.post(f"/sessions/{session}/controls/resume", dry_run=False)
    assert done["executor_peer_id"] == ann.peer_id
    yard.shows(done["pane_id"], "--resume s-1")


# -- what an agent may --------------------------------------------------------------------


def test_an_agent_ends_nobody_of_another_circle_and_speaks_for_nobody_else(yard: Yard) -> None:
    made = yard.spawn(circle="night", name="ann")
    yard.live.post("/peers", name="me", path="/src/me", agent_pid=os.getpid())
    for verb in ("kill", "restart"):
        done = yard.live.cli("peer", verb, "ann")
        assert (done.returncode, "is in circle 'night'" in done.stderr) == (1, True), done.stderr
        done = yard.live.cli("peer", verb, "ann", "--from-peer", "ann")
        assert (done.returncode, "you are me" in done.stderr) == (1, True), done.stderr
    assert not gone(yard.pid(made["pane_id"]))
    where = {"path": str(yard.work / "app"), "circle": "night", "metadata": {"session_id": "s-1"}}
    ben = yard.live.post("/peers", name="ben", **where)
    session = session_of(yard, ben["peer_id"])
    yard.live.post("/peers/ben/offline")
    done = yard.live.cli("session", "resume", session)
    assert (done.returncode, "is in circle 'night'" in done.stderr) == (1, True), done.stderr
    assert yard.new_panes() == {made["pane_id"]}


def test_an_agent_starts_another_in_its_own_name(yard: Yard) -> None:
    me = yard.live.post("/peers", name="me", path="/src/me", agent_pid=os.getpid())
    done = yard.live.cli("peer", "new", str(yard.work / "app"), "--backend", "claude-code", "-m", "begin", "--json")
    made = json.loads(done.stdout)
    yard.pids.append(yard.pid(made["pane_id"]))
    sent = yard.live.get(f"/messages?peer={made['peer_id']}")["messages"]
    assert [(one["text"], one["from_peer_id"]) for one in sent] == [("begin", me["peer_id"])]
    done = yard.live.cli("peer", "kill", made["peer_id"])
    assert done.returncode == 0
    assert yard.new_panes() == set()


def test_an_agent_starts_and_ends_another_by_its_tools(yard: Yard) -> None:
    yard.live.post("/peers", name="me", path="/src/me", agent_pid=os.getpid())

    def use(tool: str, **arguments: Any) -> str:
        said = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        with RepowireClient(home=yard.live.home) as daemon:
            return str(daemon.request("POST", "/mcp", said)["result"]["content"][0]["text"])

    said = use("spawn_peer", path=str(yard.work / "app"), backend="claude-code", name="ann", message="begin")
    assert said.startswith("ann (repow-")
    assert said.endswith("; your message waits for it")
    (pane,) = yard.new_panes()
    yard.pids.append(yard.pid(pane))
    assert use("kill_peer", peer_identifier="ann") == "ann was ended and taken off the list"
    assert yard.new_panes() == set()
    yard.spawn(circle="night", name="ben")
    assert "is in circle 'night'" in use("kill_peer", peer_identifier="ben")
    assert len(yard.new_panes()) == 1


def test_what_another_agent_said_and_how_it_is_set_up_is_not_an_agents_to_see(yard: Yard) -> None:
    yard.live.post("/peers", name="ann", path="/src/ann")
    yard.live.post("/peers", name="me", path="/src/me", agent_pid=os.getpid())
    with RepowireClient(home=yard.live.home) as daemon:
        assert daemon.transcript("me")["history_status"] == "unavailable"
        for ask in (
            lambda: daemon.transcript("ann"),
            lambda: daemon.timeline("ann"),
            lambda: daemon.search_timeline("ann", "x"),
            lambda: daemon.list_mcp_servers("ann"),
            lambda: daemon.add_mcp_server("ann", "x", command="x"),
            lambda: daemon.remove_mcp_server("ann", "x"),
        ):
            with pytest.raises(Refusal) as refused:
                ask()
            assert (refused.value.status, refused.value.error) == (403, "not_your_peer")
