"""Hooks against a real daemon: a process called `claude` runs the real hook script; its inbox is a real socket."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

from repowire import protocol

FAKE = Path(__file__).parent.parent / "fake_claude.py"


class Agent:
    """A process called `claude`, driven line by line."""

    def __init__(self, live: Live, folder: Path, *options: str, **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        program = live.folder / "claude"
        if not program.exists():
            program.symlink_to(sys.executable)
        self.live, self.folder = live, folder
        self.process = subprocess.Popen(
            [str(program), str(FAKE), str(live.folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**live.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
        )
        self.pid = self._read()["pid"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def tell(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return self._read()

    def hook(self, event: str, **body: Any) -> str:
        done = self.tell(hook=event, body=body)
        assert (done["code"], done["err"]) == (0, "")
        return str(done["out"])

    @property
    def taken(self) -> list[str]:
        return list(self.tell(taken=True)["taken"])

    def peer(self) -> dict[str, Any]:
        """The peer whose folder this is; there is one."""
        found = [one for one in self.live.get("/peers")["peers"] if one["path"] == str(self.folder)]
        assert len(found) == 1, found
        return dict(found[0])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def agent(live: Live) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def build(name: str = "proj", *options: str, **environ: str) -> Agent:
        started.append(Agent(live, live.folder / name, *options, **environ))
        return started[-1]

    yield build
    for one in started:
        if one.process.poll() is None:
            one.end()


def reason(out: str) -> str:
    answer = json.loads(out)["hookSpecificOutput"]
    assert answer["hookEventName"] == "Stop"
    return str(answer["additionalContext"])


def states(live: Live, delivery_id: str) -> str:
    return str(live.get(f"/deliveries/{delivery_id}")["state"])


def note(live: Live, to: str, text: str) -> str:
    return str(live.post("/notify", to_peer=to, text=text)["delivery_id"])


# -- who it is -------------------------------------------------------------------


def test_a_session_becomes_a_peer_with_its_process(live, agent):
    one = agent()
    out = json.loads(one.hook("SessionStart", source="startup", model="m-1"))
    assert "You are @proj" in out["hookSpecificOutput"]["additionalContext"]
    peer = one.peer()
    assert (peer["display_name"], peer["status"], peer["turn_state"], peer["model"]) == (
        "proj",
        "online",
        "idle",
        "m-1",
    )
    one.end()
    until(lambda: one.peer()["status"] == "offline", 2)


def test_clear_and_resume_keep_the_peer(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup", session_id="s-1")
    before = one.peer()["peer_id"]
    one.hook("SessionEnd", reason="clear", session_id="s-1")
    one.hook("SessionStart", source="clear", session_id="s-2")
    assert one.peer()["peer_id"] == before
    one.end()
    until(lambda: one.peer()["status"] == "offline", 2)
    two = agent()
    two.hook("SessionStart", source="resume", session_id="s-2")
    assert (two.peer()["peer_id"], two.peer()["status"]) == (before, "online")


def test_a_session_that_was_left_and_is_resumed_is_the_same_peer(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    before = one.peer()["peer_id"]
    one.hook("SessionEnd", reason="prompt_input_exit")
    one.end()
    two = agent()
    two.hook("SessionStart", source="resume")
    assert (two.peer()["peer_id"], two.peer()["status"]) == (before, "online")


def test_a_session_resumed_twice_is_two_peers(live, agent):
    one, two = agent(), agent()
    one.hook("SessionStart", source="startup", session_id="s-1")
    two.hook("SessionStart", source="resume", session_id="s-1")
    assert len({peer["peer_id"] for peer in live.get("/peers")["peers"]}) == 2


def test_another_session_of_the_folder_is_another_peer(live, agent):
    one, two = agent(), agent()
    one.hook("SessionStart", source="startup", session_id="s-1")
    two.hook("SessionStart", source="startup", session_id="s-2")
    assert sorted(peer["display_name"] for peer in live.get("/peers")["peers"]) == ["proj", "proj-2"]


def test_the_end_of_a_session_is_the_end_of_the_peer(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    one.hook("SessionEnd", reason="prompt_input_exit")
    assert one.peer()["status"] == "offline"
    one.hook("SessionEnd", reason="prompt_input_exit")  # once more changes nothing
    assert one.peer()["status"] == "offline"


def test_a_turn_shows_in_the_status(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    seen = []
    for event, body in (
        ("UserPromptSubmit", {"prompt": "go"}),
        ("PermissionRequest", {"tool_name": "Bash"}),
        ("PostToolUse", {"tool_name": "Bash"}),
        ("Notification", {"notification_type": "permission_prompt"}),
        ("Stop", {}),
        ("UserPromptSubmit", {"prompt": "go on"}),
        ("StopFailure", {"error": "unknown"}),
        ("Notification", {"notification_type": "idle_prompt"}),
    ):
        assert one.hook(event, **body) == ""
        seen.append((one.peer()["status"], one.peer()["turn_state"]))
    assert seen == [
        ("busy", "working"),
        ("busy", "awaiting_input"),
        ("busy", "working"),
        ("busy", "awaiting_input"),
        ("online", "idle"),
        ("busy", "working"),
        ("online", "idle"),
        ("online", "awaiting_input"),
    ]


def test_an_event_larger_than_a_body_still_counts(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    one.hook("PermissionRequest", tool_name="Bash")
    one.hook("PostToolUse", tool_response="x" * (2 << 20))
    assert one.peer()["turn_state"] == "working"


# -- mail at the end of a turn -----------------------------------------------------


def test_a_stop_carries_the_mail_once(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    first, second = note(live, "proj", "one"), note(live, "proj", "two")
    told = reason(one.hook("Stop"))
    assert protocol.shown(told) == [first, second]
    assert [states(live, first), states(live, second)] == ["handed", "handed"]
    assert one.hook("Stop") == ""


def test_a_turn_that_a_stop_hook_made_gets_no_mail(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    sent = note(live, "proj", "one")
    assert one.hook("Stop", stop_hook_active=True) == ""
    assert states(live, sent) == "queued"
    assert sent in one.hook("Stop")


def test_what_a_stop_carried_is_seen_when_the_transcript_shows_it(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    sent = note(live, "proj", 'with "quotes" and\nlines')
    told = reason(one.hook("Stop"))
    transcript = live.folder / ".claude" / "projects" / "p" / "s-1.jsonl"
    transcript.parent.mkdir(parents=True, exist_ok=True)
    said = {"type": "assistant", "message": {"content": [{"type": "text", "text": told}]}}
    transcript.write_text(json.dumps(said) + "\n")
    one.hook("Stop", stop_hook_active=True)
    assert states(live, sent) == "handed"  # the model's own words prove nothing
    line = {"type": "user", "message": {"role": "user", "content": f"Stop hook feedback:\n{told}"}}
    one.hook("Stop", stop_hook_active=True)
    transcript.write_text(transcript.read_text() + json.dumps(line) + "\n")  # later than the hook ran
    until(lambda: states(live, sent) == "seen")


def test_an_open_ask_is_mentioned_at_the_end_of_the_turn_that_saw_it(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    asked = live.post("/ask", to_peer="proj", text="is it green?", if_offline="queue")["correlation_id"]
    told = reason(one.hook("Stop"))
    one.hook("UserPromptSubmit", prompt=told)  # now it was seen, and is not answered
    assert re.search(rf"#{asked} from @human, \d+ s: is it green\?", reason(one.hook("Stop")))
    assert one.hook("Stop") == ""


def test_a_prompt_that_shows_a_message_makes_it_seen(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    sent = note(live, "proj", "one")
    other = note(live, "proj", "two")
    told = protocol.render(
        {"type": "notify", "delivery_id": sent, "from_peer": "human", "to_peer": "proj", "text": "one"}
    )
    one.hook("UserPromptSubmit", prompt=f"<pasted_content>\n{told}\n</pasted_content>")
    assert [states(live, sent), states(live, other)] == ["seen", "queued"]
    stages = [stage["stage"] for stage in live.get(f"/traces/{sent}")["stages"]]
    assert stages[-1] == "seen"
    assert sent not in one.hook("Stop")


def test_a_big_mailbox_goes_out_in_pieces(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    sent = [note(live, "proj", f"{number} " + "x" * 9_000) for number in range(5)]
    first = protocol.shown(reason(one.hook("Stop")))
    second = protocol.shown(reason(one.hook("Stop")))
    assert first + second == sent
    assert len(first) == 3


def test_a_stranger_gets_nothing_of_this_ones(live, agent):
    one = agent()
    one.hook("SessionStart", source="startup")
    sent = note(live, "proj", "one")
    got = live.request("POST", "/hooks/claude-code/Stop", body={"session_id": "s-9"}, token=live.token)
    assert (got.status, got.body) == (200, b"")  # over TCP nothing proves a process: another peer
    assert states(live, sent) == "queued"


# -- the inbox ---------------------------------------------------------------------


def test_a_message_goes_into_the_inbox_and_is_handed(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    sent = [note(live, "proj", f"number {number}") for number in range(3)]
    until(lambda: len(one.taken) == 3)
    assert [protocol.shown(text) for text in one.taken] == [[one_id] for one_id in sent]
    until(lambda: [states(live, one_id) for one_id in sent] == ["handed"] * 3)
    one.hook("UserPromptSubmit", prompt=one.taken[0])
    assert states(live, sent[0]) == "seen"
    assert one.hook("Stop") == ""


def test_an_open_dialog_holds_the_inbox_until_it_is_gone(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    one.tell(status="waiting")
    one.hook("PermissionRequest", tool_name="Bash")
    until(lambda: one.peer()["inbound_status"] == "online")
    first, second = note(live, "proj", "one"), note(live, "proj", "two")
    until(lambda: states(live, first) == "held")
    assert live.get(f"/deliveries/{first}")["reason"] == "dialog_open"
    assert (one.taken, states(live, second)) == ([], "queued")
    one.tell(status="busy")
    one.hook("PostToolUse", tool_name="Bash")  # the evidence that makes us look at once
    until(lambda: len(one.taken) == 2, 2)
    assert [protocol.shown(text) for text in one.taken] == [[first], [second]]


def test_a_dialog_that_closes_without_a_hook_is_found_by_looking(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    one.tell(status="waiting")
    until(lambda: one.peer()["inbound_status"] == "online")
    sent = note(live, "proj", "one")
    until(lambda: states(live, sent) == "held")
    one.tell(status="idle")  # Escape: no hook fires
    until(lambda: len(one.taken) == 1)
    until(lambda: states(live, sent) == "handed")


def test_an_inbox_that_is_gone_leaves_the_mail_for_the_hook(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    one.tell(inbox=False)
    sent = note(live, "proj", "one")
    until(lambda: one.peer()["inbound_status"] == "no_hook")
    assert states(live, sent) == "queued"
    assert sent in reason(one.hook("Stop"))


def test_a_daemon_killed_under_way_loses_and_repeats_nothing(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    sent = []
    for round_number in range(4):
        sent += [note(live, "proj", f"{round_number}.{number}") for number in range(20)]
        live.kill()
        live.start()
        until(lambda: one.peer()["inbound_status"] == "online")
    until(lambda: all(states(live, one_id) not in ("queued", "leased") for one_id in sent))
    arrived = [one_id for text in one.taken for one_id in protocol.shown(text)]
    assert len(arrived) == len(set(arrived))
    assert set(sent) - set(arrived) == {one_id for one_id in sent if states(live, one_id) == "unknown"} - set(arrived)


def test_what_a_killed_session_never_showed_goes_to_the_resumed_one(live, agent):
    one = agent("proj", "--inbox")
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    shown, lost = note(live, "proj", "shown"), note(live, "proj", "lost")
    until(lambda: len(one.taken) == 2)
    transcript = live.folder / ".claude" / "projects" / "p" / "s-1.jsonl"
    transcript.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"type": "user", "message": {"content": f"Another Claude session sent a message:\n{one.taken[0]}\n\n"}},
        {"type": "queue-operation", "operation": "enqueue", "content": one.taken[1]},
    ]
    transcript.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one.end()
    until(lambda: one.peer()["status"] == "offline")
    two = agent("proj", "--inbox")
    two.hook("SessionStart", source="resume")
    until(lambda: len(two.taken) == 1)
    assert protocol.shown(two.taken[0]) == [lost]
    assert [states(live, shown), states(live, lost)] == ["seen", "handed"]


# -- its user's settings for the inbox -------------------------------------------------


def write_settings(agent: Agent, **words: str) -> None:
    """`user="hold"`, `project="accept"`, `local="refuse"`: what each file says of the inbox."""
    folder = agent.folder / ".claude"
    folder.mkdir(exist_ok=True)
    user = agent.live.folder / ".claude" / "settings.json"
    files = {"user": user, "project": folder / "settings.json", "local": folder / "settings.local.json"}
    for place, file in files.items():
        file.write_text(json.dumps({"crossSessionInbound": words[place]} if place in words else {}))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"user": "hold"}, ()),
        ({"user": "refuse"}, ()),
        ({"user": "accept", "project": "hold"}, ()),
        ({"user": "accept", "local": "refuse"}, ()),
        ({"user": "hold", "project": "accept"}, ()),
        ({}, ("--dangerously-skip-permissions",)),
        ({"project": "accept"}, ("--dangerously-skip-permissions",)),
    ],
    ids=str,
)
def test_what_the_runtime_would_keep_from_its_model_waits_for_the_end_of_a_turn(live, agent, settings, options):
    one = agent("proj", "--inbox", *options)
    write_settings(one, **settings)
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    for text in ("one", "two"):
        sent = note(live, "proj", text)
        until(lambda sent=sent: states(live, sent) == "held")
        assert live.get(f"/deliveries/{sent}")["reason"] == "receiver_policy"
        assert protocol.shown(reason(one.hook("Stop"))) == [sent]
        assert states(live, sent) == "handed"
    assert one.taken == []


def test_who_accepts_is_given_messages_also_without_prompts_and_a_new_session_reads_the_settings_again(live, agent):
    one = agent("proj", "--inbox", "--dangerously-skip-permissions")
    write_settings(one, user="hold")
    one.hook("SessionStart", source="startup")
    until(lambda: one.peer()["inbound_status"] == "online")
    sent = note(live, "proj", "one")
    until(lambda: states(live, sent) == "held")
    write_settings(one, user="accept")
    one.hook("SessionStart", source="clear")
    until(lambda: len(one.taken) == 1, 5)
    until(lambda: states(live, sent) == "handed")
