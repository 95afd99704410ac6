"""Spawned agents that go on: restarted, resumed elsewhere, or with another kind in their place."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import pytest
from conftest import Live, TmuxServer, gone, until
from test_openapi import faults, schema_of
from yards import Settled, Yard, rows, session_of, settled, yarding

pytestmark = pytest.mark.live


@pytest.fixture
def yard(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Yard]:
    with yarding(new_live(), tmux) as yard:
        yield yard


# -- restarts ------------------------------------------------------------------------


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
