"""questions.py and blocking.py: who stands still, who may answer, who wins, and that silence is never an allow."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from conftest import until_async
from test_mcp import call

from repowire import blocking, callers, peers, questions
from repowire.blocking import Draft
from repowire.choices import Answer, Option
from repowire.errors import Refusal
from repowire.questions import Answerer

CALL = {"tool_name": "Bash", "tool_input": {"command": "make"}, "cwd": "/src", "session_id": "s-1"}
PERMISSION = {
    "prompt": "Bash: make",
    "scope": "tool_permission",
    "options": [{"id": "allow", "title": "Allow"}, {"id": "deny", "title": "Deny"}],
    "metadata": CALL,
}


@asynccontextmanager
async def asking(api, correlation_id="p-1", expect=200, **fields):
    """A question that stands; yields the task of its client, which ends with the answer."""
    body = {**PERMISSION, "correlation_id": correlation_id, **fields}
    task = asyncio.create_task(api.post("/questions/ask-blocking", expect=expect, **body))
    heard = questions.topic(correlation_id)
    try:
        await until_async(lambda: api.mesh.bus.heard(heard) or task.done())
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def events(api, *kinds):
    """The facts of what is in the ledger of these kinds, oldest first."""
    return [line for line in await api.get("/events", limit=500) if line["kind"] in kinds]


ENDS = ("question.answered", "question.closed")


# -- answers -------------------------------------------------------------------


async def test_an_allow_from_the_human_lets_the_tool_run(both):
    async with asking(both) as waiting:
        await both.post("/answer", correlation_id="p-1", option_id="allow", surface="cli")
        got = await waiting
    assert (got["decision"], got["outcome"], got["option_id"]) == ("allow", "answered", "allow")
    asked, answered = await events(both, "question.asked", *ENDS)
    assert asked["question"]["metadata"] == CALL
    assert asked["text"] == "Bash: make"
    assert (answered["by"], answered["surface"], answered["decision"]) == ("human", "cli (tcp)", "allow")
    assert asked["digest"] == answered["digest"] == got["digest"]
    assert (asked["type"], answered["type"]) == ("ask", "ack")


@pytest.mark.parametrize(
    "said", [{"option_id": "deny"}, {"outcome": "denied"}, {"outcome": "cancelled"}, {"outcome": "acknowledged"}]
)
async def test_every_other_answer_is_a_denial(api, said):
    async with asking(api) as waiting:
        await api.post("/answer", correlation_id="p-1", **said)
        assert (await waiting)["decision"] == "deny"


@pytest.mark.parametrize(
    "said", [{}, {"option_id": "yes"}, {"text": "allow"}, {"option_id": "allow", "outcome": "allow"}]
)
async def test_an_answer_that_is_none_of_the_options_answers_nothing(api, said):
    async with asking(api) as waiting:
        await api.post("/answer", correlation_id="p-1", expect=422, **said)
        assert not waiting.done()


async def test_an_ack_allows_no_tool(api):
    async with asking(api) as waiting:
        for said in ({}, {"message": "allow"}):
            await api.post("/ack", correlation_id="p-1", expect=422, **said)
        assert not waiting.done()


async def test_a_question_in_words_is_answered_in_words(api):
    async with asking(api, scope="user_question", options=[], prompt="which colour?") as waiting:
        await api.post("/answer", correlation_id="p-1", text="green")
        got = await waiting
    assert (got["outcome"], got["text"], got["decision"]) == ("answered", "green", None)


async def test_an_ack_answers_a_question_in_words(api):
    async with asking(api, scope=None, options=[]) as waiting:
        await api.post("/ack", correlation_id="p-1", message="green")
        assert (await waiting)["text"] == "green"


async def test_the_first_of_a_hundred_wins_and_each_other_hears_who_it_was(both):
    async with asking(both) as waiting:
        sides = ["allow", "deny"] * 50
        body = [{"correlation_id": "p-1", "option_id": side, "surface": f"s{n}"} for n, side in enumerate(sides)]
        got = await asyncio.gather(*(both.request("POST", "/answer", json=one) for one in body))
        told = await waiting
    won = [sides[n] for n, one in enumerate(got) if one.status == 200]
    assert len(won) == 1
    assert told["option_id"] == won[0]
    lost = [one.json["detail"] for one in got if one.status != 200]
    assert {(one["error"], one["winner"]["option_id"]) for one in lost} == {("already_answered", won[0])}
    assert all(one["winner"]["closed_at"] and one["winner"]["surface"].startswith("s") for one in lost)
    assert len(await events(both, *ENDS)) == 1


async def test_there_is_no_allow_after_a_deny(api):
    async with asking(api) as waiting:
        await api.post("/answer", correlation_id="p-1", option_id="deny")
        await api.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
        assert (await waiting)["decision"] == "deny"
    again = await api.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1")
    assert again["decision"] == "deny"


async def test_a_surface_cannot_allow_what_it_did_not_show(api):
    async with asking(api) as waiting:
        await api.post("/answer", correlation_id="p-1", option_id="allow", digest="0" * 64, expect=409)
        assert not waiting.done()
        shown = (await api.get("/questions/p-1"))["digest"]
        await api.post("/answer", correlation_id="p-1", option_id="allow", digest=shown)
        assert (await waiting)["decision"] == "allow"


async def test_no_title_says_the_opposite_of_what_its_option_does(api):
    lies = [{"id": "allow", "title": "Deny"}, {"id": "deny", "title": "Allow"}, {"id": "later", "title": "Not now"}]
    async with asking(api, options=lies) as waiting:
        shown = (await api.get("/questions/p-1"))["options"]
        assert [(one["id"], one["title"]) for one in shown] == [
            ("allow", "Allow"),
            ("deny", "Deny"),
            ("later", "Not now"),
        ]
        await api.post("/answer", correlation_id="p-1", option_id="later")
        assert (await waiting)["decision"] == "deny"
    lies = [{"id": "allow", "title": "Allow"}, {"id": "x", "title": "allow it"}]
    body = {**PERMISSION, "correlation_id": "p-2", "options": lies}
    await api.post("/questions/ask-blocking", expect=422, **body)


async def test_another_prompt_under_one_id_is_another_question(api):
    async with asking(api) as waiting:
        body = {**PERMISSION, "correlation_id": "p-1", "prompt": "Bash: something harmless"}
        got = await api.post("/questions/ask-blocking", expect=409, **body)
        assert got["detail"]["error"] == "another_question"
        assert not waiting.done()


# -- agents --------------------------------------------------------------------


@pytest.fixture
def as_agent(monkeypatch):
    """Whoever calls descends from this peer's process."""

    def be(peer):
        monkeypatch.setattr(callers, "calling", lambda mesh, request: peer)

    return be


async def test_no_agent_answers_for_itself_or_for_another(api, as_agent):
    ids = [(await api.post("/peers", name=name))["peer_id"] for name in ("ann", "ben")]
    ann, ben = [peers.load(api.mesh.db.conn, peer_id) for peer_id in ids]
    as_agent(ann)
    async with asking(api) as waiting:
        for agent in (ann, ben):
            as_agent(agent)
            for path in ("/answer", "/ack"):
                got = await api.request("POST", path, json={"correlation_id": "p-1", "option_id": "allow"})
                assert got.status in (403, 422)
            assert (await api.post("/answer", correlation_id="p-1", option_id="allow", expect=403))["detail"][
                "error"
            ] == "humans_only"
        assert not waiting.done()
        as_agent(None)
        assert (await api.get("/questions/p-1"))["from_peer_id"] == ann.peer_id


async def test_no_tool_of_mcp_answers_a_permission(api):
    async with asking(api) as waiting:
        for arguments in ({"option_id": "allow"}, {"text": "allow"}, {}):
            assert "humans_only" in await call(api, "answer", error=True, correlation_id="p-1", **arguments)
        assert not waiting.done()


async def test_an_agent_cannot_ask_in_anothers_name_nor_take_back_its_question(api, as_agent):
    ids = [(await api.post("/peers", name=name))["peer_id"] for name in ("ann", "ben")]
    ann, ben = [peers.load(api.mesh.db.conn, peer_id) for peer_id in ids]
    as_agent(ben)
    await api.post("/questions/ask-blocking", **PERMISSION, from_peer="ann", expect=403)
    as_agent(ann)
    async with asking(api) as waiting:
        as_agent(ben)
        await api.post("/questions/withdraw", correlation_id="p-1", expect=403)
        await api.post("/questions/withdraw", metadata=CALL, expect=403)
        await api.get("/questions/p-1", expect=403)
        assert (await api.get("/questions"))["questions"] == []
        await api.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1", expect=409)
        assert not waiting.done()


# -- one call ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"tool_name": "Write"},
        {"tool_input": {"command": "make clean"}},
        {"tool_input": {"command": "make", "x": 1}},
        {"cwd": "/"},
        {"session_id": "s-2"},
    ],
)
async def test_another_call_is_another_question(api, changed):
    other = {**PERMISSION, "metadata": {**CALL, **changed}, "correlation_id": "p-1"}
    async with asking(api) as waiting:
        assert (await api.post("/questions/ask-blocking", **other, expect=409))["detail"]["error"] == "another_question"
        await api.post("/answer", correlation_id="p-1", option_id="allow")
        assert (await waiting)["decision"] == "allow"
    await api.post("/questions/ask-blocking", **other, expect=409)
    apart = await api.post("/questions/ask-blocking", **{**other, "correlation_id": "p-2", "timeout_seconds": -1})
    assert apart["decision"] == "deny"


async def test_a_client_that_does_not_say_the_call_binds_what_it_shows(api):
    async with asking(api, metadata={}) as waiting:
        other = {**PERMISSION, "metadata": {}, "prompt": "rm -rf ~", "correlation_id": "p-1"}
        await api.post("/questions/ask-blocking", **other, expect=409)
        assert not waiting.done()


async def test_a_client_that_says_part_of_the_call_binds_all_that_it_says(api):
    """Also what has a name of its own, which is shown: under one id it cannot become another."""
    part = {"tool_name": "Bash", "tool_input": "make …"}
    async with asking(api, metadata={**part, "command": "make"}) as waiting:
        other = {**PERMISSION, "metadata": {**part, "command": "rm -rf ~"}, "correlation_id": "p-1"}
        await api.post("/questions/ask-blocking", **other, expect=409)
        assert not waiting.done()


ALIKE = [
    "\u00e9",
    "e\u0301",
    "\u212b",
    "\u00c5",
    "1",
    1,
    1.0,
    True,
    0,
    -0.0,
    0.0,
    False,
    None,
    10**30,
    1e30,
    [1],
    {"1": 1},
]


def test_what_only_looks_the_same_is_another_call():
    digests = [Draft("", scope="tool_permission", metadata={**CALL, "tool_input": {"x": one}}).digest for one in ALIKE]
    known = {json.dumps(one) for one in ALIKE}
    assert len(set(digests)) == len(known)


async def test_a_call_is_shown_as_it_came_to_the_last_letter(api):
    given = {
        "a": ALIKE,
        "e\u0301": "\u00e9",
        "\u00e9": "e\u0301\r\n\x00\x1b",
        "big": 10**300,
        "deep": [[[[{"x": [{}]}]]]],
    }
    async with asking(api, metadata={**CALL, "tool_input": given}):
        shown = (await api.get("/questions/p-1"))["metadata"]["tool_input"]
        assert json.dumps(shown) == json.dumps(given)


@pytest.mark.parametrize(
    "said",
    [
        '"tool_input": {"command": "ls", "command": "rm -rf ~"}',
        '"tool_input": {"command": "ls"}, "tool_input": {"command": "rm -rf ~"}',
        '"tool_input": {"a": [{"command": "ls", "\\u0063ommand": "rm -rf ~"}]}',
    ],
)
@pytest.mark.parametrize("path", ["/questions/ask-blocking", "/gates/claude-code/PreToolUse"])
async def test_a_call_with_an_argument_twice_is_refused(api, path, said):
    """One reader takes the first of the two, another the last: what is shown need not be what runs."""
    body = f'{{"tool_name": "Bash", {said}}}'
    if "ask" in path:
        body = json.dumps({**PERMISSION, "metadata": "BODY", "timeout_seconds": -1}).replace('"BODY"', body)
    got = await api.request("POST", path, data=body, headers={"Content-Type": "application/json"})
    assert got.status == 422
    assert "twice" in got.json["detail"]["hint"]
    assert (await api.get("/questions"))["questions"] == []


async def test_a_retry_joins_and_later_gets_what_was_answered(both):
    async with asking(both) as first, asking(both) as second:
        await until_async(lambda: both.mesh.bus.hearers(questions.topic("p-1")) == 2)
        await both.post("/answer", correlation_id="p-1", option_id="allow")
        assert (await first)["decision"] == (await second)["decision"] == "allow"
    assert (await both.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1"))["decision"] == "allow"
    assert len(await events(both, "question.asked")) == 1


@pytest.mark.parametrize("seconds", [61.0, 3600.0, 90_000.0])
async def test_an_allow_cannot_be_replayed(api, clock, seconds):
    async with asking(api, timeout_seconds=55) as waiting:
        await api.post("/answer", correlation_id="p-1", option_id="allow")
        assert (await waiting)["decision"] == "allow"
    clock.advance(seconds)
    questions.tick(api.mesh)
    late = await api.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1", timeout_seconds=-1)
    assert late["decision"] == "deny"


# -- silence -------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-1, 0.05])
async def test_time_that_is_up_denies_and_a_late_answer_hears_so(both, seconds):
    got = await both.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1", timeout_seconds=seconds)
    assert (got["decision"], got["outcome"]) == ("deny", "denied")
    late = await both.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
    assert late["detail"]["winner"]["reason"] == "timed_out"
    [end] = await events(both, *ENDS)
    assert (end["kind"], end["reason"], end["decision"]) == ("question.closed", "timed_out", "deny")


async def test_an_answer_and_the_time_that_is_up_have_one_winner(both):
    """Forty of each, at the same moment: who waits, who answers and the ledger say the same."""

    async def race(number: int) -> None:
        name = f"r-{number}"
        body = {**PERMISSION, "correlation_id": name, "timeout_seconds": 0.2}
        waiting = asyncio.create_task(both.post("/questions/ask-blocking", **body))
        await until_async(lambda: both.mesh.bus.heard(questions.topic(name)))
        await asyncio.sleep(0.15 + number * 0.0025)  # around the moment, and that is what is tried here
        got = await both.request("POST", "/answer", json={"correlation_id": name, "option_id": "allow"})
        told = (await waiting)["decision"]
        assert (got.status, told) in ((200, "allow"), (409, "deny"))
        if got.status == 409:
            assert got.json["detail"]["winner"]["reason"] == "timed_out"

    await asyncio.gather(*(race(number) for number in range(40)))
    ends = [line["correlation_id"] for line in await events(both, *ENDS)]
    assert sorted(ends) == sorted({f"r-{number}" for number in range(40)})


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, 6.0])
async def test_a_clock_that_jumps_denies(api, clock, jump):
    async with asking(api) as waiting:
        clock.set_back_or_forward(jump)
        late = await api.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
        assert late["detail"]["winner"]["reason"] == "clock_jumped"
        assert (await waiting)["decision"] == "deny"


async def test_the_tick_sees_a_clock_that_jumped(api, clock):
    async with asking(api) as waiting:
        clock.set_back_or_forward(-100.0)
        questions.tick(api.mesh)
        assert (await waiting)["decision"] == "deny"


async def test_time_that_is_up_by_the_clock_denies_whatever_the_timer_says(api, clock):
    async with asking(api, timeout_seconds=10) as waiting:
        clock.advance(10.0)
        await api.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
        assert (await waiting)["decision"] == "deny"


async def test_a_client_that_leaves_ends_its_wait(api):
    async with asking(api) as waiting:
        waiting.cancel()
        await until_async(lambda: not api.mesh.bus.heard(questions.topic("p-1")))
    found = await api.get("/questions/p-1")
    assert (found["reason"], found["decision"]) == ("client_left", "deny")
    late = await api.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
    assert late["detail"]["winner"]["reason"] == "client_left"


async def test_one_of_two_clients_may_leave(api):
    async with asking(api) as stays, asking(api) as leaves:
        await until_async(lambda: api.mesh.bus.hearers(questions.topic("p-1")) == 2)
        leaves.cancel()
        await until_async(lambda: api.mesh.bus.hearers(questions.topic("p-1")) == 1)
        await api.post("/answer", correlation_id="p-1", option_id="allow")
        assert (await stays)["decision"] == "allow"


async def test_a_daemon_that_stops_denies(api):
    async with asking(api) as waiting:
        api.mesh.bus.close()
        got = await waiting
    assert (got["decision"], got["outcome"]) == ("deny", "denied")
    assert questions.load(api.mesh.db.conn, "p-1").reason == "shutting_down"


async def test_other_questions_are_asked_again_after_a_stop(api):
    async with asking(api, expect=503, scope="user_question") as waiting:
        api.mesh.bus.close()
        assert (await waiting)["detail"]["error"] == "shutting_down"
    assert questions.load(api.mesh.db.conn, "p-1").closed_at is None


def draft(**fields: Any) -> Draft:
    given = {"prompt": "make", "scope": "tool_permission", "options": (Option("allow", "Allow"),), "metadata": CALL}
    return Draft(**{**given, "correlation_id": "p-1", **fields})


def test_a_restart_denies_every_open_permission_and_no_other(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    with mesh.change() as change:
        blocking.put(change, mesh, draft())
        blocking.put(change, mesh, draft(correlation_id="u-1", scope="user_question"))
        blocking.put(change, mesh, draft(correlation_id="d-1", dialog=True))
    mesh.close()
    again = new_mesh(tmp_path / "home", clock)
    found = {name: questions.load(again.db.conn, name) for name in ("p-1", "u-1", "d-1")}
    assert (found["p-1"].decision, found["p-1"].reason) == ("deny", "restarted")
    assert found["u-1"].closed_at is None
    assert (found["d-1"].decision, found["d-1"].reason) == ("none", "restarted")


def test_nobody_can_allow_what_nobody_waits_for(mesh):
    with mesh.change() as change:
        question = blocking.put(change, mesh, draft())
    with mesh.change() as change:
        said = questions.answer(change, mesh, question, Answer("answered", "allow"), Answerer("human", "cli"))
    assert said is None
    assert questions.load(mesh.db.conn, "p-1").decision == "deny"


def test_old_ones_go(mesh, clock):
    with mesh.change() as change:
        questions.close(change, blocking.put(change, mesh, draft()), "withdrawn")
    clock.advance(86_399)
    questions.tick(mesh)
    assert questions.find(mesh.db.conn, "p-1") is not None
    clock.advance(2)
    questions.tick(mesh)
    assert questions.find(mesh.db.conn, "p-1") is None
    with pytest.raises(Refusal, match="no question"):
        questions.load(mesh.db.conn, "p-1")


async def test_a_fault_of_ours_is_no_allow(api, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("planted")

    async with asking(api, expect=500) as waiting:
        monkeypatch.setattr(questions, "load", broken)
        api.mesh.bus.publish(questions.topic("p-1"))
        assert (await waiting)["detail"]["error"] == "internal"
        monkeypatch.undo()
    assert questions.load(api.mesh.db.conn, "p-1").reason == "failed"


# -- policy --------------------------------------------------------------------


async def test_what_is_not_gated_waits_for_nobody_and_leaves_no_row(api):
    got = await api.post("/questions/ask-blocking", **{**PERMISSION, "metadata": {**CALL, "tool_name": "Read"}})
    assert (got["decision"], got["outcome"], got["option_id"]) == ("none", "acknowledged", None)
    assert (await api.get("/questions"))["questions"] == []


async def test_what_a_rule_lets_through_is_recorded_with_the_rule(new_mesh, new_api, tmp_path, clock):
    rules = json.dumps([{"tool": "Bash", "arguments": {"command": "make"}}])
    api = await new_api(new_mesh(tmp_path / "home", clock, REPOWIRE_APPROVALS__ALLOW=rules))
    got = await api.post("/questions/ask-blocking", **PERMISSION, correlation_id="p-1")
    assert (got["decision"], got["option_id"]) == ("allow", "allow")
    found = await api.get("/questions/p-1")
    assert (found["reason"], found["answered_by"]) == ("rule", "approvals.allow[0]")
    asked, answered = await events(api, "question.asked", *ENDS)
    assert asked["question"]["metadata"] == CALL
    assert answered["by"] == "approvals.allow[0]"
    more = {**CALL, "tool_input": {"command": "make; rm -rf ~"}}
    got = await api.post("/questions/ask-blocking", **{**PERMISSION, "metadata": more, "timeout_seconds": -1})
    assert got["decision"] == "deny"


@pytest.mark.parametrize(
    ("fields", "hold", "seconds"),
    [
        ({}, False, 45.0),
        ({"timeout_seconds": 1000}, False, 55.0),
        ({"timeout_seconds": 1000, "runtime_timeout_seconds": 40}, False, 35.0),
        ({"runtime_timeout_seconds": 4}, False, 2.0),
        ({"runtime_timeout_seconds": 600}, False, 45.0),
        ({"runtime_timeout_seconds": 600}, True, 595.0),
        ({}, True, 45.0),
        ({"runtime_timeout_seconds": 1e9}, True, 7 * 86_400.0),
        ({"runtime_timeout_seconds": 600, "dialog": True}, False, 595.0),
    ],
)
def test_how_long_it_waits(new_mesh, tmp_path, clock, fields, hold, seconds):
    mesh = new_mesh(tmp_path / "home", clock, REPOWIRE_APPROVALS__HOLD_OPEN=str(hold).lower())
    with mesh.change() as change:
        question = blocking.put(change, mesh, draft(**fields))
    assert question.wait_seconds == seconds


# -- dialogs -------------------------------------------------------------------


async def test_an_open_dialog_is_answered_from_elsewhere(api):
    async with asking(api, dialog=True, metadata={**CALL, "tool_name": "Read"}) as waiting:
        await api.post("/answer", correlation_id="p-1", option_id="deny")
        assert (await waiting)["decision"] == "deny"


async def test_silence_leaves_a_dialog_alone(api):
    got = await api.post(
        "/questions/ask-blocking", **PERMISSION, dialog=True, timeout_seconds=-1, runtime_timeout_seconds=0
    )
    assert (got["decision"], got["outcome"]) == ("none", "timed_out")


@pytest.mark.parametrize("named", [{"correlation_id": "p-1"}, {"metadata": CALL}, {"metadata": {"session_id": "s-1"}}])
async def test_what_was_answered_in_the_terminal_is_taken_back_everywhere(api, named):
    async with asking(api, dialog=True) as waiting:
        got = await api.post("/questions/withdraw", **named, reason="answered_in_terminal")
        assert got == {"ok": True, "withdrawn": ["p-1"]}
        assert (await waiting)["decision"] == "none"
    [end] = await events(api, *ENDS)
    assert (end["kind"], end["reason"]) == ("question.closed", "answered_in_terminal")
    late = await api.post("/answer", correlation_id="p-1", option_id="allow", expect=409)
    assert late["detail"]["winner"]["reason"] == "answered_in_terminal"


async def test_taking_back_what_has_no_dialog_denies(api):
    async with asking(api) as waiting:
        assert (await api.post("/questions/withdraw", metadata={"session_id": "s-1"}))["withdrawn"] == []
        assert (await api.post("/questions/withdraw", metadata=CALL))["withdrawn"] == ["p-1"]
        assert (await waiting)["decision"] == "deny"


@pytest.mark.parametrize("body", [{}, {"metadata": {"tool_name": "Bash"}}])
async def test_taking_back_nothing_in_particular_is_refused(api, body):
    await api.post("/questions/withdraw", **body, expect=400)


# -- bodies --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"options": []}, "options"),
        ({"options": [{"id": "a"}, {"id": "a"}]}, "options"),
        ({"options": [{"title": "a"}]}, "id"),
        ({"prompt": ""}, "prompt"),
        ({"correlation_id": "a b"}, "correlation_id"),
        ({"metadata": {"x": "x" * 1_000_000}}, "metadata"),
        ({"scope": "root"}, "scope"),
        ({"scope": None, "dialog": True}, "dialog"),
    ],
)
async def test_a_wrong_field_is_named_and_opens_nothing(api, fields, field):
    got = await api.post("/questions/ask-blocking", **{**PERMISSION, **fields}, expect=422)
    assert got["detail"]["field"] == field
    assert (await api.get("/questions"))["questions"] == []


async def test_the_list_is_of_pages_and_states(api):
    for n in range(3):
        await api.post("/questions/ask-blocking", **PERMISSION, correlation_id=f"p-{n}", timeout_seconds=-1)
    async with asking(api, "p-9"):
        first = await api.get("/questions", limit=2)
        rest = await api.get("/questions", limit=2, cursor=first["next"])
        assert [one["correlation_id"] for one in first["questions"] + rest["questions"]] == ["p-9", "p-2", "p-1", "p-0"]
        assert rest["next"] is None
        assert [one["correlation_id"] for one in (await api.get("/questions", state="open"))["questions"]] == ["p-9"]
        assert len((await api.get("/questions", state="closed"))["questions"]) == 3


async def test_a_client_of_its_own_connection_that_is_cut_is_seen_at_once(api):
    url = api.client.make_url("/questions/ask-blocking")
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {api.token}"}) as session:
        task = asyncio.create_task(session.post(url, json={**PERMISSION, "correlation_id": "p-1"}))
        await until_async(lambda: api.mesh.bus.heard(questions.topic("p-1")))
    task.cancel()
    await until_async(lambda: questions.load(api.mesh.db.conn, "p-1").reason == "client_left")
    await asyncio.gather(task, return_exceptions=True)
