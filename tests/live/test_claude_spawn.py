"""Real Claude Codes started by the daemon: peers from the first moment, and who they were when they are back."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import pytest
from claude.driver import NEWEST, WITHOUT_INBOX, Claude
from claude.model import Model
from claude.town import Town, times_told
from conftest import Live, TmuxServer, gone, until

pytestmark = pytest.mark.live


class Hired(Town):
    """A town whose daemon may start its Claudes; each has a profile, which is its name."""

    def __init__(self, live: Live, tmux: TmuxServer, model: Model, version: str = NEWEST) -> None:
        self.version = version
        super().__init__(live, tmux, model, "inbox")
        self.ben = self.claude("ben", version)

    def allow(self, claude: Claude, *arguments: str) -> None:
        """Start the daemon anew, so that it may start this one."""
        settings = {
            "COMMANDS": {"claude-code": " ".join([str(claude.binary), *arguments])},
            "ALLOWED_PATHS": [str(claude.project)],
            "ENV": {**self.user.environ(claude.name), "TMUX_TMPDIR": ""},
            "LOGIN_SHELL": False,
            "TMUX_SOCKET": str(self.tmux.socket),
        }
        for key, value in settings.items():
            self.live.environ[f"REPOWIRE_SPAWN__{key}"] = value if isinstance(value, str) else json.dumps(value)
        self.live.environ["PATH"] = self.user.environ(claude.name)["PATH"]
        assert self.live.term() == 0
        self.start_daemon()

    def hire(self, claude: Claude, **fields: Any) -> dict[str, Any]:
        """Have it started, and wait until its hooks have spoken."""
        made: dict[str, Any] = self.live.post("/spawn", path=str(claude.project), backend="claude-code", **fields)
        self.follow(claude, made["pane_id"])
        until(lambda: self.peer(made["display_name"])["turn_state"] != "pending_first_turn", 30)
        return made

    def follow(self, claude: Claude, pane: str) -> None:
        claude.pane, claude.pid = pane, self.tmux.pid(pane)
        claude.until(claude.idle, "it started")


@pytest.fixture
def new_hired(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Callable[..., Hired]]:
    made: list[Hired] = []
    with Model() as model:

        def build(version: str = NEWEST) -> Hired:
            made.append(Hired(new_live(), tmux, model, version))
            made[-1].allow(made[-1].ben)
            return made[-1]

        yield build
        for town in made:
            town.close()


@pytest.mark.parametrize("version", [NEWEST, WITHOUT_INBOX])
def test_a_spawned_claude_is_the_peer_it_was_opened_as_and_hears_its_first_message_once(
    new_hired: Callable[..., Hired], version: str
) -> None:
    town = new_hired(version)
    made = town.hire(town.ben, circle="night", name="benny", message="begin with the tests")
    peer = town.peer("benny")
    assert (peer["peer_id"], peer["circle"]) == (made["peer_id"], "night")
    assert [one for one in town.live.get("/peers?circle=night")["peers"] if one["role"] == "agent"] == [peer]
    first = town.live.get(f"/messages?peer={made['peer_id']}")["messages"][0]["id"]
    town.until_seen(town.ben, first)


def test_a_killed_claude_is_gone_and_its_session_said_so(new_hired: Callable[..., Hired]) -> None:
    town = new_hired()
    made = town.hire(town.ben)
    assert town.live.post("/kill-peer", peer_identifier=made["peer_id"])["tmux_killed"] is True
    assert gone(town.ben.pid)
    assert made["pane_id"] not in town.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split()
    assert town.peer(made["display_name"]) == {}


def test_a_claude_behind_a_script_is_the_peer_it_was_opened_as(new_hired: Callable[..., Hired]) -> None:
    town = new_hired()
    script = town.live.folder / "script"
    script.write_text(f'#!/bin/sh\n{town.ben.binary} "$@"\necho over\n')
    script.chmod(0o755)
    town.ben.binary = script
    town.allow(town.ben)
    made = town.live.post("/spawn", path=str(town.ben.project), backend="claude-code", name="benny")
    until(lambda: town.peer("benny")["turn_state"] != "pending_first_turn", 30)
    assert town.peer("benny")["peer_id"] == made["peer_id"]
    assert len([one for one in town.live.get("/peers")["peers"] if one["role"] == "agent"]) == 1
    shell = town.tmux.pid(made["pane_id"])
    assert town.live.post("/kill-peer", peer_identifier="benny")["tmux_killed"] is True
    assert gone(shell)


@pytest.mark.parametrize("version", [NEWEST, WITHOUT_INBOX])
def test_a_restarted_claude_goes_on_with_its_conversation_as_the_same_peer(
    new_hired: Callable[..., Hired], version: str
) -> None:
    town = new_hired(version)
    made = town.hire(town.ben, name="benny")
    before = town.tell("benny", "before the restart")
    town.until_seen(town.ben, before)
    town.ben.until_idle()
    session, pid = town.ben.session, town.ben.pid
    done = town.live.post(f"/peers/{made['peer_id']}/restart", message="and after it")
    assert (done["status"], done["peer_id"]) == ("restarted", made["peer_id"])
    assert gone(pid)
    town.follow(town.ben, made["pane_id"])
    assert town.ben.session == session
    assert town.peer("benny")["peer_id"] == made["peer_id"]
    after = town.live.get(f"/messages?peer={made['peer_id']}")["messages"][0]
    assert after["text"] == "and after it"
    town.until_seen(town.ben, before, after["id"])


@pytest.mark.parametrize("killed", [False, True])
def test_a_claude_whose_hooks_nobody_heard_is_told_what_waits(
    new_hired: Callable[..., Hired], monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Its registry file is where it says that it rests; the hook that names it may come while no daemon is there."""
    town = new_hired(WITHOUT_INBOX)
    town.user.change_settings(hooks={})
    before = set(town.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split())
    if killed:
        town.without_mcp()
        monkeypatch.setitem(town.live.environ, "REPOWIRE_SPAWN__SETTLE_SECONDS", "60")
        town.allow(town.ben)
    with ThreadPoolExecutor(1) as pool:
        where = {"path": str(town.ben.project), "backend": "claude-code", "name": "benny"}
        asked = pool.submit(town.live.request, "POST", "/spawn", body=where)
        (pane,) = until(lambda: set(town.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split()) - before)
        town.follow(town.ben, pane)
        if killed:
            town.live.kill()
            with suppress(OSError, HTTPException):
                asked.result()
            town.start_daemon()
        else:
            assert asked.result().status == 200
    told = town.tell("benny", "is anybody there?")
    town.until_state(town.ben, told, "handed")
    town.ben.until(lambda: times_told(town.ben, told) == 1)


def test_what_a_claude_was_told_in_the_moment_of_its_restart_is_not_lost(new_hired: Callable[..., Hired]) -> None:
    """A prompt's hook shows it before the transcript does: ended in between, Claude goes on without it."""
    town = new_hired()
    made = town.hire(town.ben, name="benny")
    told = [town.tell("benny", "one turn at least")]
    town.until_seen(town.ben, *told)
    for number in range(3):
        town.ben.until_idle()
        told.append(town.tell("benny", f"just before restart {number}"))
        town.live.post(f"/peers/{made['peer_id']}/restart")
        town.follow(town.ben, made["pane_id"])
        town.until_seen(town.ben, *told)


def test_the_transcript_of_a_claude_is_what_it_said_and_heard(new_hired: Callable[..., Hired]) -> None:
    town = new_hired()
    permissions = town.user.read(town.user.settings)["permissions"]
    town.user.change_settings(permissions={**permissions, "allow": ["Bash"]})
    town.hire(town.ben, name="benny")
    town.ben.type("shell touch made")
    town.ben.until_shows("It ran.")
    town.ben.until_idle()
    until(lambda: len(town.live.get("/peers/benny/transcript")["turns"]) == 3)  # it is written a moment later
    told = town.live.get("/peers/benny/transcript")
    assert (told["history_status"], told["history_source"]) == ("available", "session_binding")
    assert told["runtime_session_id"] == town.ben.session
    turns = [(turn["role"], turn["text"], [call["name"] for call in turn["tool_calls"]]) for turn in told["turns"]]
    assert turns == [("assistant", "It ran.", []), ("assistant", "", ["Bash"]), ("user", "shell touch made", [])]
    items = town.live.get("/peers/benny/timeline")["items"]
    assert [item["text"] for item in items] == ["shell touch made", "", "It ran."]
    found = town.live.get("/peers/benny/timeline/search?q=it%20RAN")["results"]
    assert [one["item"]["id"] for one in found] == [items[-1]["id"]]


def test_a_claude_restarted_in_the_middle_of_an_ask_answers_it_when_it_is_back(new_hired: Callable[..., Hired]) -> None:
    town = new_hired()
    made = town.hire(town.ben, name="benny", message="hello")
    first = town.live.get(f"/messages?peer={made['peer_id']}")["messages"][0]["id"]
    town.until_seen(town.ben, first)
    town.ben.until_idle()
    hold = town.model.hold()
    town.model.on(r"^work$", ["Working. ", hold, "Worked."])
    town.ben.type("work")
    town.ben.until(lambda: hold.reached, "it works")
    asked = town.live.post("/ask", to_peer="benny", text="what is twice 21 and one?")["correlation_id"]
    town.live.post(f"/peers/{made['peer_id']}/restart")
    hold.release()
    town.follow(town.ben, made["pane_id"])
    until(lambda: town.live.get(f"/messages/{asked}")["reply"], 60)
    assert town.live.get(f"/messages/{asked}")["reply"] == "twice and one is 43"
    assert town.peer("benny")["peer_id"] == made["peer_id"]


def test_a_claude_without_a_turn_has_nothing_to_go_on_with_and_is_left_alone(new_hired: Callable[..., Hired]) -> None:
    town = new_hired()
    made = town.hire(town.ben)
    refused = town.live.post(f"/peers/{made['peer_id']}/restart", expect=409)["detail"]
    assert (refused["error"], refused["runtime_session_id"]) == ("resume_unavailable", town.ben.session)
    assert "no transcript yet" in refused["hint"]
    assert not gone(town.ben.pid)


def test_a_session_that_its_user_went_on_with_elsewhere_is_not_resumed_beside_him(
    new_hired: Callable[..., Hired],
) -> None:
    town = new_hired()
    made = town.hire(town.ben, name="benny")
    seen = town.tell("benny", "one turn at least")
    town.until_seen(town.ben, seen)
    town.ben.until_idle()
    binding = town.live.post("/notify", to_peer="benny", text="bye")["repowire_session_id"]
    town.ben.until_idle()
    session = town.ben.session
    town.ben.kill()
    until(lambda: town.peer("benny")["status"] == "offline")
    # of a user whose hooks do not speak to this daemon
    town.user.change_settings(hooks={})
    town.ben.start("--resume", session, bypass=False)
    refused = town.live.post(f"/sessions/{binding}/controls/resume", expect=409, dry_run=False)["detail"]
    assert (refused["error"], refused["holders"]) == ("resume_unavailable", [town.ben.pid])
    town.ben.kill()
    resume = f"/sessions/{binding}/controls/resume"
    answers = []
    # a killed process is there until the last of its threads is gone
    until(
        lambda: answers.append(got := town.live.request("POST", resume, body={"dry_run": False})) or got.status == 200
    )
    town.follow(town.ben, answers[-1].json["pane_id"])
    assert (answers[-1].json["executor_peer_id"], town.ben.session) == (made["peer_id"], session)
