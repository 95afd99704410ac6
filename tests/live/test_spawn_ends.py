"""Spawned agents that are ended: by a request, at the command line, by another agent or by themselves."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Live, TmuxServer, gone, until
from test_cli import on_a_terminal
from yards import AGENTS, Settled, Yard, rows, session_of, yarding

from repowire.client import RepowireClient
from repowire.errors import Refusal

pytestmark = pytest.mark.live


@pytest.fixture
def yard(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Yard]:
    with yarding(new_live(), tmux) as yard:
        yield yard


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
