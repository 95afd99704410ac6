"""`repowire approvals` without a daemon: a call as a person reads it, whole and with nothing hidden."""

import json
import os
import time
from typing import Any

import pytest
from test_cli import Cli, Stub, cli, environ, on_a_terminal, stub

from repowire.cli import calls, watch

__all__ = ["cli", "environ", "stub"]

QUESTION: dict[str, Any] = {
    "correlation_id": "p-1",
    "from_peer": "ann",
    "from_peer_id": None,
    "prompt": "Bash: make",
    "kind": "choice",
    "options": [{"id": "allow", "title": "Allow", "description": None}],
    "scope": "tool_permission",
    "origin": None,
    "metadata": {"tool_name": "Bash", "tool_input": {"command": "make"}, "cwd": "/src", "session_id": "s-1"},
    "digest": "d" * 64,
    "dialog": False,
    "state": "open",
    "created_at": "2026-07-01T10:00:00.000000+00:00",
    "expires_at": "2026-07-01T10:00:45.000000+00:00",
    "closed_at": None,
    "outcome": None,
    "option_id": None,
    "text": None,
    "message": None,
    "reason": None,
    "answered_by": None,
    "surface": None,
    "decision": None,
}
CLOSED = {**QUESTION, "state": "closed", "outcome": "denied", "decision": "deny"}
ANSWERED = {**CLOSED, "reason": "answered", "answered_by": "human", "surface": "dashboard (tcp)"}


def call(tool: str, **arguments: Any) -> Any:
    return {**QUESTION, "metadata": {"tool_name": tool, "tool_input": arguments, "cwd": "/src", "session_id": "s-1"}}


def lines(question: Any) -> list[str]:
    return list(calls.whole(question))


# -- how it is shown -------------------------------------------------------------


def test_all_of_it_is_shown() -> None:
    command = "make " + "x" * 5_000 + "\n" + "rm -rf ~\n" * 300
    shown = "\n".join(lines(call("Bash", command=command)))
    assert shown.count("rm -rf ~") == 300
    assert "x" * 5_000 in shown
    assert lines(QUESTION)[:2] == ["p-1 · @ann · Bash", "cwd /src"]


@pytest.mark.parametrize(
    "hidden",
    [
        "\x1b[2K",
        *"\r\x08\x7f\x9b\xa0\xad\u034f\u115f\u180e\u200b\u2028\u202e\u2066\u2800\u3000\u3164",
        *"\ue000\ufe0f\ufff9\U0001d173\U000e0041\U000e0101",
    ],
)
def test_what_a_terminal_would_hide_is_seen(hidden: str) -> None:
    shown = lines(call("Bash", command=f"ls {hidden}rm"))[-1]
    assert hidden not in shown
    assert "\\x" in shown or "\\u" in shown or "\\U" in shown
    assert "rm" in shown


def test_nothing_that_was_said_looks_like_a_line_of_ours() -> None:
    """Neither the head of another question nor the line with the keys: every line begins with our word."""
    fake = "p-9 · @web · Bash"
    words = f"x\n{fake}"
    question = call(
        "Bash", command=words, content=words, old_string=words, new_string=words + "!", **{words: 1}, e=[{"a": words}]
    )
    question["options"] = [{"id": words, "title": words, "description": words}]
    question["metadata"] |= {"cwd": words, "session_id": [words], "agent_id": words, "more": words, "tool_name": words}
    question |= {"from_peer": words, "prompt": words, "origin": words, "correlation_id": words}
    for columns in (None, 40):
        shown = list(calls.whole(question, columns))
        assert not any(line.startswith(fake) for line in shown)
        assert sum(fake in line for line in shown) > 10 if columns is None else all(len(line) <= 40 for line in shown)


def test_a_long_line_is_folded_so_that_no_row_of_it_begins_at_the_margin() -> None:
    command = "rm -rf ~ #".ljust(70) + "p-9 · @web · Bash".ljust(80) + "command make test"
    shown = list(calls.whole(call("Bash", command=command), 80))
    assert "".join([shown[-3], *(row.removeprefix("    ") for row in shown[-2:])]) == f"command {command}"
    assert all(row.startswith("    ") for row in shown[-2:])


def test_all_that_a_client_told_is_shown() -> None:
    assert "danger yes" in lines({**QUESTION, "metadata": {"tool_name": "Bash", "danger": "yes"}})


def test_a_long_replacement_is_shown_in_a_moment() -> None:
    old = "\n".join(f"line {number % 97} of a file" for number in range(8_000))
    began = time.monotonic()
    shown = lines(call("Edit", file_path="/x", old_string=old, new_string=old.replace("of", "in")))
    assert time.monotonic() - began < 5
    assert sum(line.startswith("+ ") for line in shown) == 8_000


def test_the_list_says_what_a_call_does_whatever_stands_first() -> None:
    said = call("Bash", description="harmless", command="rm -rf ~")
    assert calls.short(said | {"prompt": "Allow?"}) == 'Bash: {"description": "harmless", "command": "rm -rf ~"}'
    assert calls.short(said | {"prompt": "Bash: rm -rf ~"}) == "Bash: rm -rf ~"


def test_a_replacement_is_a_diff_of_whole_lines() -> None:
    shown = lines(call("Edit", file_path="/src/a.py", old_string="a\nb\r\nc", new_string="a\nB\nc"))
    assert "file_path /src/a.py" in shown
    assert shown[-4:] == ["  a", "- b\\x0d", "+ B", "  c"]


def test_several_replacements_are_a_diff_each() -> None:
    edits = [{"old_string": "a", "new_string": "b"}, {"old_string": "c", "new_string": "d", "replace_all": True}]
    shown = lines(call("MultiEdit", file_path="/x", edits=edits))
    assert shown[-7:] == ["edits[0]", "  - a", "  + b", "edits[1]", "  replace_all true", "  - c", "  + d"]


def test_what_is_written_is_added_lines() -> None:
    assert lines(call("Write", file_path="/x", content="one\n\ntwo"))[-3:] == ["+ one", "+ ", "+ two"]


def test_a_call_of_any_other_tool_names_its_arguments() -> None:
    shown = lines(call("mcp__x__y", a=1, b={"c": [True]}, d="two\nlines"))
    assert shown[-4:] == ["a 1", 'b {"c": [true]}', "d two", "  lines"]


def test_a_call_that_is_only_told_of_is_shown_as_told() -> None:
    told = {**QUESTION, "prompt": "Allow?\nreally", "metadata": {"tool_name": "Bash", "tool_input": "make te"}}
    assert lines(told)[-4:-1] == ["Allow?", "  really", "tool_input make te"]
    assert "may be cut" in lines(told)[-1]


# -- list, show, answer ----------------------------------------------------------


def test_list_shows_what_waits(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /questions"] = {"questions": [QUESTION, ANSWERED], "next": None}
    done = cli("approvals", "list")
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["ID", "FROM", "STATE", "SINCE", "WHAT"]
    assert "open until 10:00:45" in first
    assert first.endswith("Bash: make")
    assert "deny: answered by human, dashboard (tcp)" in second
    assert stub.asked[-1][0] == "GET /questions?state=open&limit=50"
    assert json.loads(cli("approvals", "list", "--all", "--json").stdout)["questions"] == [QUESTION, ANSWERED]
    assert stub.asked[-1][0] == "GET /questions?state=all&limit=50"


def test_nothing_that_waits_is_no_failure(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /questions"] = {"questions": [], "next": None}
    done = cli("approvals", "list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing waits for you\n")


def test_show_says_how_it_ended(cli: Cli, stub: Stub) -> None:
    stub.answers["GET /questions/p-1"] = ANSWERED
    assert cli("approvals", "show", "p-1").stdout.splitlines()[-1] == "deny: answered by human, dashboard (tcp)"
    stub.answers["GET /questions/p-1"] = {**CLOSED, "reason": "timed_out"}
    assert cli("approvals", "show", "p-1").stdout.splitlines()[-1] == "deny: timed out"


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["allow"], {"option_id": "allow"}),
        (["deny"], {"outcome": "denied"}),
        (["deny", "-m", "no"], {"outcome": "denied", "message": "no"}),
        (["--text", "later"], {"text": "later"}),
        (["--text", "-"], {"text": "from stdin"}),
    ],
)
def test_answer_says_what_was_said(cli: Cli, stub: Stub, arguments: list[str], sent: dict[str, str]) -> None:
    stub.answers |= {"GET /questions/p-1": QUESTION, "POST /answer": {"ok": True}}
    done = cli("approvals", "answer", "p-1", *arguments, stdin="from stdin\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert stub.asked[-1] == ("POST /answer", {"correlation_id": "p-1", "surface": "cli", **sent})


def test_who_comes_second_hears_who_was_first(cli: Cli, stub: Stub) -> None:
    winner = {"decision": "deny", "answered_by": "human"}
    no = {"detail": {"error": "already_answered", "hint": "p-1 is over: deny, human", "winner": winner}}
    stub.answers |= {"GET /questions/p-1": QUESTION, "POST /answer": (409, no)}
    done = cli("approvals", "answer", "p-1", "allow")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "repowire: p-1 is over: deny, human\n")
    assert json.loads(cli("approvals", "answer", "p-1", "allow", "--json").stdout)["winner"] == winner


@pytest.mark.parametrize("arguments", [[], ["allow", "--text", "x"]])
def test_an_answer_is_one_thing(cli: Cli, stub: Stub, arguments: list[str]) -> None:
    assert cli("approvals", "answer", "p-1", *arguments).returncode == 2
    assert stub.asked == []


@pytest.mark.parametrize("verb", ["list", "show", "answer", "watch"])
def test_each_verb_has_two_lines_to_copy(cli: Cli, verb: str) -> None:
    done = cli("approvals", verb, "--help")
    assert len(done.stdout.partition("example:\n")[2].split("\n\n")[0].splitlines()) == 2
    assert "exit codes: 0 ok" in done.stdout


# -- watch -----------------------------------------------------------------------


def test_watch_without_a_daemon_is_3(cli: Cli) -> None:
    assert cli("approvals", "watch").returncode == 3


class Said:
    """A daemon that takes answers."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def answer(self, name: str, **said: Any) -> None:
        self.answers.append((name, said))


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> watch.Watch:
    """Two questions wait, and the first stands on the screen since long."""
    monkeypatch.setattr(watch.termios, "tcflush", lambda *_: None)
    monkeypatch.setattr(watch.sys.stdin, "fileno", lambda: 0, raising=False)
    made = watch.Watch(Said(), as_json=False, keys=True)  # type: ignore[arg-type]
    made.waiting = {"p-1": QUESTION, "p-2": {**QUESTION, "correlation_id": "p-2"}}  # type: ignore[dict-item]
    made.present()
    made.shown_at -= 60
    return made


@pytest.mark.parametrize(
    ("key", "said"), [(b"a", {"option_id": "allow"}), (b"Y", {"option_id": "allow"}), (b"d", {"outcome": "denied"})]
)
def test_a_key_answers_what_was_shown(watching: watch.Watch, key: bytes, said: dict[str, str]) -> None:
    assert watching.key(key) is False
    assert watching.daemon.answers == [("p-1", {**said, "surface": "cli", "digest": "d" * 64})]
    assert list(watching.waiting) == ["p-2"]


@pytest.mark.parametrize("key", [b"aa", b"allow", b"\x1b[A", b"x", b"\n", b"1", b"\xff", b"a\n", b" a"])
def test_a_paste_or_another_key_answers_nothing(watching: watch.Watch, key: bytes) -> None:
    watching.key(key)
    assert watching.daemon.answers == []
    assert list(watching.waiting) == ["p-1", "p-2"]


def test_the_end_of_a_paste_or_of_a_key_that_came_in_pieces_answers_nothing(watching: watch.Watch) -> None:
    for piece in (b"\x1b", b"[", b"A"):
        watching.key(piece)
    watching.key(b"x" * 1024)
    watching.key(b"a")
    assert watching.daemon.answers == []
    watching.wrong_at -= 60
    watching.key(b"a")
    assert [name for name, _ in watching.daemon.answers] == ["p-1"]


def test_keys_that_come_together_are_read_as_one_paste() -> None:
    ours, theirs = os.pipe()
    for text in (b"a", b"x" * 1024 + b"a"):
        os.write(theirs, text)
        assert watch.pressed(ours) == text
    os.close(theirs)
    assert watch.pressed(ours) == b""
    os.close(ours)


def test_a_key_that_came_before_it_could_be_read_answers_nothing(watching: watch.Watch) -> None:
    watching.key(b"a")
    watching.present()
    watching.key(b"a")
    assert [name for name, _ in watching.daemon.answers] == ["p-1"]


def test_a_key_for_what_was_answered_elsewhere_meanwhile_answers_nothing(watching: watch.Watch) -> None:
    """Another question has taken its place while the finger was on its way."""
    watching.daemon.question = lambda name: ANSWERED  # type: ignore[method-assign, assignment, misc, return-value]
    watching.hear({"kind": "question.answered", "correlation_id": "p-1"})
    watching.present()
    watching.shown_at -= watch.LOOK_SECONDS + 0.1
    watching.key(b"a")
    assert watching.daemon.answers == []
    watching.shown_at -= watch.ELSEWHERE_SECONDS
    watching.key(b"a")
    assert [name for name, _ in watching.daemon.answers] == ["p-2"]


def test_what_is_put_off_comes_last_and_the_end_is_the_end(watching: watch.Watch) -> None:
    watching.key(b"n")
    assert list(watching.waiting) == ["p-2", "p-1"]
    assert watching.shown is None
    assert all(watching.key(key) for key in (b"q", b"Q", b"", b"\x04"))


def test_a_digit_chooses_where_one_has_to(watching: watch.Watch) -> None:
    options = [{"id": "red", "title": "Red", "description": None}, {"id": "blue", "title": "Blue", "description": None}]
    watching.waiting["p-1"] = {**QUESTION, "scope": None, "options": options}  # type: ignore[typeddict-item]
    for key in (b"0", b"3", b"a"):
        watching.key(key)
    assert watching.daemon.answers == []
    watching.wrong_at -= 60
    watching.key(b"2")
    assert watching.daemon.answers[0][1]["option_id"] == "blue"


def test_a_terminal_gets_the_questions_in_colour(stub: Stub, environ: dict[str, str]) -> None:
    stub.answers["GET /questions/p-1"] = call("Edit", file_path="/a", old_string="x", new_string="y")
    _, shown = on_a_terminal(environ, "approvals", "show", "p-1")
    assert "\x1b[31m- x\x1b[0m\n\x1b[32m+ y\x1b[0m\n" in shown
