"""Real Claude Codes whose tools wait for a human (2.1.330 and 2.1.197): no verdict but his own "allow" lets one run.

What ran is read from the disk: a tool call makes a file, or it does not.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from claude.driver import NEWEST, WITHOUT_INBOX, Claude
from claude.model import Model, tool
from claude.town import Town
from conftest import Live, TmuxServer, until

pytestmark = pytest.mark.live

VERSIONS = (NEWEST, WITHOUT_INBOX)
SUB_AGENT = {NEWEST: "Agent", WITHOUT_INBOX: "Task"}


@pytest.fixture
def new_town(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Callable[..., Town]]:
    towns: list[Town] = []
    with Model() as model:

        def build(approvals: bool = True, config: str = "") -> Town:
            live = new_live()
            live.home.mkdir(mode=0o700, exist_ok=True)
            (live.home / "config.toml").write_text(config)
            towns.append(Town(live, tmux, model, "inbox"))
            word = "on" if approvals else "off"
            done = live.cli("setup", "claude-code", "--approvals", word, "--yes", HOME=str(towns[-1].user.home))
            assert done.returncode == 0, done.stderr
            towns[-1].without_mcp()
            return towns[-1]

        yield build
        for town in towns:
            town.close()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(town: Town, version: str, *, bypass: bool = True) -> Claude:
    """With `--dangerously-skip-permissions` nothing but the gate stands between the model and the disk."""
    return town.claude("ann", version).start(bypass=bypass)


def questions(town: Town) -> list[dict[str, Any]]:
    """What waits for the human."""
    found: list[dict[str, Any]] = town.live.get("/questions?state=open")["questions"]
    return found


def answer(town: Town, asked: dict[str, Any], word: str) -> int:
    """As one of the human's surfaces; the status."""
    body = {"correlation_id": asked["correlation_id"], "option_id": word, "surface": "test"}
    return town.live.request("POST", "/answer", body=body).status


def the_question(town: Town, claude: Claude) -> dict[str, Any]:
    found: dict[str, Any] = claude.until(lambda: questions(town), "it asks")[0]
    return found


def ended(town: Town) -> list[tuple[str, str]]:
    """How the questions ended, oldest first: the decision and why."""
    lines = town.live.get("/events?limit=500")
    kinds = ("question.answered", "question.closed")
    return [(line["decision"], line["reason"]) for line in lines if line["kind"] in kinds]


@pytest.mark.parametrize("word", ["allow", "deny"])
def test_what_the_human_says_is_what_happens(new_town: Callable[..., Town], version: str, word: str) -> None:
    town = new_town()
    ann = start(town, version)
    ann.type("shell touch made")
    asked = the_question(town, ann)
    assert asked["metadata"]["tool_input"]["command"] == "touch made"
    assert town.peer("ann")["turn_state"] == "awaiting_input"
    assert not (ann.project / "made").exists()
    assert answer(town, asked, word) == 200
    ann.until_shows("It ran.")
    ann.until_idle()
    assert (ann.project / "made").exists() is (word == "allow")
    assert ann.shows("denied by human") is (word == "deny")
    assert ended(town) == [(word, "answered")]


def test_read_only_tools_never_wait(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    town.model.on(r"^read (.*)$", lambda turn: tool("Read", file_path=turn.match[1]), "It is read.")
    ann = start(town, version)
    town.live.kill()  # so whoever asked it would be refused
    (ann.project / "note").write_text("a note")
    ann.type(f"read {ann.project / 'note'}")
    ann.until_shows("It is read.")
    ann.until_idle()
    assert not ann.shows("repowire refused")


def test_a_sub_agent_waits_too(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    call = tool(SUB_AGENT[version], description="x", prompt="shell touch made", subagent_type="general-purpose")
    town.model.on(r"^delegate$", call, "It is delegated.")
    ann = start(town, version)
    ann.type("delegate")
    asked = the_question(town, ann)
    assert asked["metadata"]["agent_id"]
    assert answer(town, asked, "deny") == 200
    until(lambda: ended(town) == [("deny", "answered")])
    ann.until_shows("It is delegated.")
    ann.until_idle()
    assert not (ann.project / "made").exists()


def test_nobody_answers(new_town: Callable[..., Town], version: str) -> None:
    town = new_town(config="[daemon]\nquestion_wait_cap_seconds = 1.0\n")
    ann = start(town, version)
    ann.type("shell touch made")
    ann.until_shows("nobody answered")
    ann.until_idle()
    assert not (ann.project / "made").exists()
    assert ended(town) == [("deny", "timed_out")]


@pytest.mark.parametrize("how", ["kill", "term"])
def test_the_daemon_goes_while_it_waits(new_town: Callable[..., Town], version: str, how: str) -> None:
    town = new_town()
    ann = start(town, version)
    ann.type("shell touch made")
    asked = the_question(town, ann)
    if how == "kill":
        town.live.kill()
    else:
        town.live.term()
    ann.until_shows("It ran.")
    ann.until_idle()
    assert not (ann.project / "made").exists()
    town.start_daemon()
    assert answer(town, asked, "allow") == 409
    assert ended(town) == [("deny", "restarted" if how == "kill" else "shutting_down")]
    assert not (ann.project / "made").exists()


def test_the_daemon_is_away(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    ann = start(town, version)
    town.live.kill()
    ann.type("shell touch made")
    ann.until_shows("repowire refused this: its daemon is not running")
    ann.until_idle()
    assert not (ann.project / "made").exists()


def test_the_daemon_hangs(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    ann = start(town, version)
    os.kill(town.live.pid, signal.SIGSTOP)
    try:
        ann.type("shell touch made")
        ann.until_shows("repowire refused this: its daemon does not answer")
        ann.until_idle()
        assert not (ann.project / "made").exists()
    finally:
        os.kill(town.live.pid, signal.SIGCONT)


@pytest.mark.parametrize("moved", ["interpreter", "script"])
def test_repowire_is_gone(new_town: Callable[..., Town], version: str, moved: str) -> None:
    """Uninstalled, or moved, while the settings still name it: no gated tool runs."""
    town = new_town()
    hooks = town.user.read(town.user.settings)["hooks"]
    gate = hooks["PreToolUse"][0]["hooks"][0]
    old = sys.executable if moved == "interpreter" else "gate_stdio.py"
    assert old in gate["command"]
    gate["command"] = gate["command"].replace(old, f"{old}-gone", 1)
    town.user.change_settings(hooks=hooks)
    ann = start(town, version)
    ann.type("shell touch made")
    ann.until_shows("It ran.")
    ann.until_idle()
    assert not (ann.project / "made").exists()


def test_the_gate_is_killed(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    ann = start(town, version)
    ann.type("shell touch made")
    the_question(town, ann)
    [gate] = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if str(town.live.home) in (words := arguments_of(folder)) and words[0] == sys.executable
    ]
    os.kill(gate, signal.SIGKILL)
    ann.until_shows("It ran.")
    ann.until_idle()
    assert not (ann.project / "made").exists()
    assert ended(town) == [("deny", "client_left")]


def arguments_of(folder: Path) -> list[str]:
    """Of a gate; nothing of any other process."""
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]
    return words if any(word.endswith("/gate_stdio.py") for word in words) else [""]


def test_what_was_shown_is_what_runs(new_town: Callable[..., Town], version: str) -> None:
    """Another hook of the user's, or of a project's, writes the call anew while he reads it."""
    town = new_town()
    hooks = town.user.read(town.user.settings)["hooks"]
    anew = {"hookEventName": "PreToolUse", "updatedInput": {"command": "touch other", "description": "d"}}
    (town.live.folder / "anew.json").write_text(json.dumps({"hookSpecificOutput": anew}))
    other = {"type": "command", "command": f"cat {town.live.folder}/anew.json"}
    hooks["PreToolUse"].append({"matcher": "Bash", "hooks": [other]})
    town.user.change_settings(hooks=hooks)
    ann = start(town, version)
    ann.type("shell touch made")
    asked = the_question(town, ann)
    assert asked["metadata"]["tool_input"]["command"] == "touch made"
    assert answer(town, asked, "allow") == 200
    ann.until_shows("It ran.")
    ann.until_idle()
    assert (ann.project / "made").exists()
    assert not (ann.project / "other").exists()


def test_a_large_call_runs_as_it_was_shown(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    ann = start(town, version)
    content = "".join(f'{number} ä€ \u2028 😀 \\ " \t.\n' for number in range(20_000))
    town.model.on(r"^write$", tool("Write", file_path=str(ann.project / "made"), content=content), "It is over.")
    ann.type("write")
    asked = the_question(town, ann)
    assert asked["metadata"]["tool_input"]["content"] == content
    assert answer(town, asked, "allow") == 200
    ann.until_shows("It is over.")
    ann.until_idle()
    assert (ann.project / "made").read_text() == content


def test_a_skill_that_runs_commands_waits_where_it_is_gated(new_town: Callable[..., Town], version: str) -> None:
    """Claude Code runs what stands in a skill between !` and ` itself: no gate of Bash ever sees it."""
    town = new_town(config='[approvals]\ngated_tools = ["Bash", "Skill"]\n')
    ann = town.claude("ann", version)
    skill = ann.project / ".claude" / "skills" / "release" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("---\nname: release\ndescription: x\nallowed-tools: Bash(*)\n---\nIt says: !`touch $ARGUMENTS`\n")
    town.model.on(r"^release$", [tool("Skill", skill="release", args="made")], "It is over.")
    ann.start(bypass=True)
    ann.type("release")
    asked = the_question(town, ann)
    assert asked["metadata"]["tool_input"] == {"skill": "release", "args": "made"}
    assert answer(town, asked, "deny") == 200
    ann.until_shows("It is over.")
    ann.until_idle()
    assert not (ann.project / "made").exists()


def test_escape_withdraws_the_question(new_town: Callable[..., Town], version: str) -> None:
    town = new_town()
    ann = start(town, version)
    ann.type("shell touch made")
    asked = the_question(town, ann)
    ann.keys("Escape")
    until(lambda: ended(town) == [("deny", "client_left")])
    ann.until_idle()
    assert answer(town, asked, "allow") == 409
    assert not (ann.project / "made").exists()


def test_no_rule_for_files_lets_the_gate_be_turned_off(new_town: Callable[..., Town], version: str) -> None:
    rule = '{ tool = "Write", arguments = { file_path = "/*" }, other_arguments = true }'
    town = new_town(config=f"[approvals]\nallow = [{rule}]\n")
    ann = start(town, version)
    settings = ann.project / ".claude" / "settings.json"
    town.model.on(r"^off$", tool("Write", file_path=str(settings), content='{"disableAllHooks": true}'), "It is over.")
    ann.type("off")
    asked = the_question(town, ann)
    assert asked["metadata"]["tool_input"]["file_path"] == str(settings)
    assert answer(town, asked, "deny") == 200
    ann.until_shows("It is over.")
    ann.until_idle()
    assert not settings.exists()


def test_an_allow_rule_lets_its_very_call_through_and_no_other(new_town: Callable[..., Town], version: str) -> None:
    rule = '[[approvals.allow]]\ntool = "Bash"\narguments = { command = "touch made*" }\n'
    town = new_town(config=rule)
    ann = start(town, version)
    ann.type("shell touch made1")
    ann.until_shows("It ran.")
    ann.until_idle()
    assert (ann.project / "made1").exists()
    assert ended(town) == [("allow", "rule")]
    ann.type("shell touch made2; touch more")
    asked = the_question(town, ann)
    assert answer(town, asked, "deny") == 200
    ann.until(lambda: len(ended(town)) == 2)
    ann.until_idle()
    assert not (ann.project / "more").exists()


def test_an_agent_cannot_allow_itself(new_town: Callable[..., Town], version: str) -> None:
    """Its shell, which is not gated here, tries to allow the call that waits, as itself and as the human."""
    town = new_town(config='[approvals]\ngated_tools = ["Write"]\n')
    ann = start(town, version)
    curl = (
        f"curl -s -o {ann.project}/said -w %{{http_code}} --unix-socket {town.live.home}/daemon.sock"
        " -H 'Content-Type: application/json' http://localhost/answer -d"
    )
    tries = "until [ -s ask ]; do :; done; for who in ann human; do "
    tries += (
        f"""{curl} '{{"correlation_id": "'$(cat ask)'", "option_id": "allow", "from_peer": "'$who'"}}' >> codes; done"""
    )
    town.model.on(
        r"^write$",
        [
            tool("Bash", command=f"({tries}) > /dev/null 2>&1 &", description="d", run_in_background=True),
            tool("Write", file_path=str(ann.project / "made"), content="x"),
        ],
        "It is over.",
    )
    ann.type("write")
    asked = the_question(town, ann)
    (ann.project / "ask").write_text(asked["correlation_id"])
    ann.until(lambda: (ann.project / "codes").exists() and (ann.project / "codes").read_text() == "403403", "refused")
    assert len(questions(town)) == 1
    assert answer(town, asked, "deny") == 200
    ann.until_shows("It is over.")
    ann.until_idle()
    assert not (ann.project / "made").exists()
    assert ended(town) == [("deny", "answered")]


# -- a dialog that is on the screen already ---------------------------------------


@pytest.mark.parametrize("word", ["allow", "deny"])
def test_a_dialog_is_answered_from_elsewhere_and_closes(new_town: Callable[..., Town], version: str, word: str) -> None:
    town = new_town(config='[approvals]\ngated_tools = ["Write"]\n')
    ann = start(town, version, bypass=False)
    ann.type("shell touch made")
    asked = the_question(town, ann)
    ann.until(lambda: ann.box() is None and ann.status() == "waiting", "a dialog is open")
    assert asked["dialog"] is True
    assert answer(town, asked, word) == 200
    ann.until_shows("It ran.")
    ann.until_idle()
    assert (ann.project / "made").exists() is (word == "allow")


def test_a_dialog_answered_at_the_keyboard_is_withdrawn(new_town: Callable[..., Town], version: str) -> None:
    town = new_town(config='[approvals]\ngated_tools = ["Write"]\n')
    ann = start(town, version, bypass=False)
    ann.type("shell touch made")
    the_question(town, ann)
    ann.until(lambda: ann.box() is None and ann.status() == "waiting", "a dialog is open")
    ann.until(lambda: ann.box() is not None or ann.keys("Enter"), "the tool runs")
    ann.until_idle()
    assert (ann.project / "made").exists()
    until(lambda: ended(town) == [("none", "answered_in_terminal")])
    ann.type("shell touch more")
    the_question(town, ann)
    ann.until(lambda: ann.box() is None and ann.status() == "waiting", "a dialog is open")
    ann.until(lambda: ann.box() is not None or ann.keys("Escape"), "it is gone")
    until(lambda: len(ended(town)) == 2 and questions(town) == [])
    assert not (ann.project / "more").exists()


def test_the_dialog_stays_when_the_daemon_goes(new_town: Callable[..., Town], version: str) -> None:
    town = new_town(config='[approvals]\ngated_tools = ["Write"]\n')
    ann = start(town, version, bypass=False)
    ann.type("shell touch made")
    the_question(town, ann)
    ann.until(lambda: ann.box() is None and ann.status() == "waiting", "a dialog is open")
    town.live.kill()
    ann.until(lambda: ann.box() is not None or ann.keys("Enter"), "the tool runs")
    ann.until_idle()
    assert (ann.project / "made").exists()


def test_without_approvals_no_tool_waits(new_town: Callable[..., Town], version: str) -> None:
    town = new_town(approvals=False)
    ann = start(town, version)
    ann.type("shell touch made")
    ann.until_shows("It ran.")
    ann.until_idle()
    assert (ann.project / "made").exists()
    assert questions(town) == []
