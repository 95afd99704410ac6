"""The mail side of the command line, against a real daemon: ask-many, broadcast, query, inbox, messages, deliveries."""

import json
import sqlite3
import subprocess
from contextlib import closing

import pytest
from conftest import Live, until
from test_cli_live import listen as listen  # the fixture: `repowire listen` as a process

pytestmark = pytest.mark.live


@pytest.fixture
def run(live: Live):
    """`run("notify", "build", "x")`: the finished command; `code` is the exit code it must have."""

    def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = live.cli(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    return command


def test_several_are_asked_at_once_and_their_answers_stand_in_one_table(live, listen, run):
    listen("--name", "build", "--exec", "echo green")
    listen("--name", "docs", "--exec", "echo 'two pages'")
    done = run("ask-many", "build,docs,nobody", "how is it?", "--wait", "20", code=1)
    assert "not asked: nobody" in done.stderr
    rows = [line.split(maxsplit=3) for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("build", "replied"), ("docs", "replied"), ("nobody", "failed")]
    assert rows[0][3] == "green"
    assert rows[1][3] == "two pages"


def test_who_has_not_answered_is_pending_and_exit_code_4(live, listen, run):
    listen("--name", "quiet")
    parent = run("ask-many", "quiet", "how is it?").stdout.strip()
    shown = run("answers", parent, "--json", code=4)
    assert json.loads(shown.stdout)["rollup"]["pending"] == 1
    cid = json.loads(shown.stdout)["children"][0]["correlation_id"]
    run("ack", cid, "-m", "fine")
    assert "fine" in run("answers", parent).stdout


def test_a_broadcast_is_told_to_all_and_a_query_answered(live, listen, run):
    listener = listen("--name", "ear")
    listen("--name", "build", "--exec", "cat")
    sent = run("broadcast", "frozen", "--exclude", "build", "--json")
    assert json.loads(sent.stdout)["sent_to"] == ["ear"]
    assert listener.line()["text"] == "frozen"
    assert run("query", "build", "one", "-t", "20").stdout == "one\n"
    assert run("peer", "ask", "build", "two", "-t", "20").stdout == "two\n"
    assert "no peer 'nobody'" in run("query", "nobody", "x", code=1).stderr


@pytest.mark.parametrize("name", ["upp", "repow-default-000000000000"])
def test_a_peer_to_be_spared_that_there_is_none_of_is_refused_and_nobody_told(live, listen, run, name):
    """A name that is mistyped would tell exactly the one who was not to hear it."""
    listener = listen("--name", "up")
    until(lambda: json.loads(run("peer", "list", "--json").stdout)["peers"])
    refused = run("broadcast", "yo", "--exclude", "up", "--exclude", name, code=2)
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"repowire: --exclude: there is no peer {name!r}")
    assert ("did you mean up?" in refused.stderr) == (name == "upp")
    assert "nothing was sent" in refused.stderr
    run("notify", "up", "only this")
    assert listener.line()["text"] == "only this"


def test_an_id_a_name_that_several_have_and_one_that_is_offline_can_be_spared(live, listen, run):
    listen("--name", "ear")
    until(lambda: json.loads(run("peer", "list", "--json").stdout)["peers"])
    ear = json.loads(run("peer", "describe", "ear", "--json").stdout)["peer_id"]
    for circle in ("red", "blue"):
        run("peer", "register", "twin", "--circle", circle)
    run("peer", "register", "gone")
    live.post("/peers/gone/offline")
    spared = [part for name in (ear, "twin", "gone", "human") for part in ("--exclude", name)]
    assert json.loads(run("broadcast", "yo", *spared, "--json").stdout)["sent_to"] == []


def test_a_sender_that_is_no_peer_is_said_and_no_bar(live, listen, run):
    """Scripts that are no peers send in a name of their own; who mistyped one hears why no reply comes."""
    listen("--name", "up", "--exec", "cat")
    until(lambda: json.loads(run("peer", "list", "--json").stdout)["peers"])
    run("peer", "register", "nobody")
    for command in (["ask"], ["notify"], ["ask-many"], ["query"]):
        done = run(*command, "up", "hi", "--from", "nobdy")
        assert done.stdout
        assert done.stderr.startswith("repowire: --from: there is no peer 'nobdy' (did you mean nobody?)"), command
        assert done.stderr.count("\n") == 1
        assert run(*command, "up", "hi", "--from", "nobody").stderr == ""
    assert "no peer 'ci', so " in run("broadcast", "hi", "--from", "ci").stderr
    done = run("ask", "up", "still answered", "--from", "ci", "--wait", "20")
    assert done.stdout == "still answered\n"
    cid = run("ask", "up", "later", "--from", "ci").stdout.strip()
    assert run("wait", cid).stdout == "later\n"  # as the line says


def test_an_ask_that_answers_none_is_refused_and_not_sent(live, listen, run):
    """A mistyped id was kept as it is, and the ask that it should have answered stayed open for ever."""
    listener = listen("--name", "up")
    until(lambda: json.loads(run("peer", "list", "--json").stdout)["peers"])
    told = run("notify", "up", "x").stdout.strip()
    for wrong, said in (("ask-nope", "there is no ask 'ask-nope'"), (told, f"{told} is a notify")):
        refused = run("ask", "up", "hi", "--reply-to", wrong, code=2)
        assert (refused.stdout, refused.stderr.count("\n")) == ("", 1)
        assert refused.stderr.startswith(f"repowire: --reply-to: {said}")
        assert "nothing was sent" in refused.stderr
    run("notify", "up", "only this")
    assert [listener.line()["text"] for _ in range(2)] == ["x", "only this"]


def test_an_ask_says_whether_it_answered_the_other(live, listen, run):
    for name in ("up", "other"):
        listen("--name", name)
    until(lambda: len(json.loads(run("peer", "list", "--json").stdout)["peers"]) == 2)
    run("notify", "up", "there is a human")
    first = run("ask", "human", "shall I?", "--from", "up").stdout.strip()
    missed = run("ask", "other", "shall it?", "--reply-to", first)
    assert missed.stdout.startswith("ask-")
    assert missed.stderr == (
        f"repowire: {first} stays open: only an ask from human to up answers it; answer it with: repowire ack {first}\n"
    )
    assert run("ask", "up", "what exactly?", "--reply-to", first).stderr == ""
    assert json.loads(run("messages", first, "--json").stdout)["close_reason"] == "reply_to"
    again = run("ask", "up", "and then?", "--reply-to", first)
    assert again.stdout.startswith("ask-")
    assert again.stderr == f"repowire: {first} was closed before (reply_to): this ask answers nothing\n"


def test_the_inbox_gives_each_message_once(live, run):
    run("peer", "register", "build")
    run("notify", "build", "main is\nfrozen")
    cid = run("ask", "build", "why?", "--queue").stdout.strip()
    first = run("inbox", "--peer", "build")
    assert "main is\nfrozen\n" in first.stdout
    assert "why?\n" in first.stdout
    assert f"repowire ack {cid} -m" in first.stdout
    assert run("inbox", "--peer", "build").stdout == ""
    assert json.loads(run("messages", "--state", "handed", "--json").stdout)["messages"][0]["text"] == "why?"
    assert run("peer", "deliveries", "--peer-id", "build").stdout == ""


def test_what_the_inbox_could_not_print_stays(live, run):
    """stdout is a full device: nothing was read, so nothing may be called handed."""
    run("peer", "register", "build")
    run("notify", "build", "x")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            live.command("inbox", "--peer", "build"), env=live.environ, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (one,) = json.loads(run("deliveries", "--json").stdout)["deliveries"]
    assert one["state"] == "leased"  # until its lease runs out; then it waits again


def test_the_dead_are_shown_retried_and_dropped(live, run):
    run("peer", "register", "build")
    delivery_id = run("notify", "build", "x").stdout.strip()
    live.term()
    with closing(sqlite3.connect(live.home / "state.db")) as db, db:  # a day goes by
        db.execute("UPDATE deliveries SET expires_at = 0")
    live.start()
    page = until(lambda: json.loads(run("deliveries", "--dead", "--json").stdout)["deliveries"])
    assert [(one["delivery_id"], one["state"]) for one in page] == [(delivery_id, "expired")]
    told = until(lambda: run("inbox").stdout)
    assert f"[notify #{delivery_id} to @build expired]" in told
    assert run("deliveries", "retry", delivery_id).stdout == f"{delivery_id}: queued\n"
    assert "is queued" in run("deliveries", "retry", delivery_id, code=1).stderr
    assert run("deliveries", "drop", delivery_id).stdout == f"{delivery_id}: failed\n"
    assert run("deliveries", "--dead").stdout == ""


def test_each_of_several_is_dropped_whoever_reads_the_lines(live, run, unread):
    run("peer", "register", "build")
    ids = [run("notify", "build", text).stdout.strip() for text in ("one", "two", "three")]
    done = live.cli("deliveries", "drop", *ids, stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")
    assert {one["state"] for one in json.loads(run("deliveries", "--json").stdout)["deliveries"]} == {"failed"}


@pytest.mark.parametrize("noun", ["ask-many", "answers", "broadcast", "query", "inbox", "messages", "deliveries"])
def test_each_has_a_help_with_an_example(run, noun):
    shown = run(noun, "--help").stdout
    assert "example:" in shown
    assert f"repowire {noun}" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask-many", ",", "x"), "name at least one peer"),
        (("inbox", "-n", "0"), "-n takes a whole number"),
        (("inbox", "--peer", ""), "must not be empty"),
        (("inbox", "--pane-id", ""), "must not be empty"),
        (("messages", "--kind", "letter"), "invalid choice"),
        (("deliveries", "retry"), "the following arguments are required"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, words):
    done = run(*arguments, code=2)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_id_of_a_message_does_not_list_them_all(run):
    run("notify", "human", "x")
    assert run("messages", "", code=2).stdout == ""
