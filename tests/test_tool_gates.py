"""tool_gates.py: what an agent's gate is told, and that nothing but a human's own allow lets a gated tool run."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from conftest import until_async

from repowire import questions
from repowire.agents.claude_code_gates import headline

CALL = {"tool_name": "Bash", "tool_input": {"command": "make"}}
SESSION = {"session_id": "s-1", "cwd": "/src/proj"}


class Agent:
    """A session of Claude Code's whose hooks call us."""

    def __init__(self, api, clock) -> None:
        self.api, self.clock = api, clock

    async def hook(self, event, **said):
        await self.ask(event, said, "hooks", {})

    async def ask(self, event, said, route="gates", headers=None):
        return await self.api.request(
            "POST",
            f"/{route}/claude-code/{event}",
            headers={"X-Repowire-Session": "s-1", **(headers or {"X-Repowire-Waits": "590"})},
            json={**SESSION, "hook_event_name": event, **said},
        )

    @asynccontextmanager
    async def asking(self, event="PreToolUse", **said):
        """A gate that waits; yields its task and the question."""
        task = asyncio.create_task(self.ask(event, {**CALL, **said}))
        try:
            yield task, await self.question(task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def question(self, task):
        rows = await until_async(lambda: task.done() or self.open())
        assert rows is not True, task.result()
        return rows[0]

    def open(self):
        return [
            row[0]
            for row in self.api.mesh.db.conn.execute("SELECT correlation_id FROM questions WHERE closed_at IS NULL")
        ]

    async def turn_state(self):
        return (await self.api.get("/peers/proj"))["turn_state"]

    async def events(self, *kinds):
        return [line for line in await self.api.get("/events", limit=500) if line["kind"] in kinds]


@pytest.fixture
async def agent(api, clock):
    one = Agent(api, clock)
    await one.hook("SessionStart", source="startup")
    await one.hook("UserPromptSubmit", prompt="go")
    return one


def said(got):
    """The verdict in the header and in the agent's words, which must be the same."""
    assert got.status == 200
    if not got.body:
        return got.headers["X-Repowire-Verdict"]
    facts = json.loads(got.body)["hookSpecificOutput"]
    word = facts["permissionDecision"] if facts["hookEventName"] == "PreToolUse" else facts["decision"]["behavior"]
    assert word == got.headers["X-Repowire-Verdict"]
    return word


async def answer(agent, cid, option, **more):
    await agent.api.post("/answer", correlation_id=cid, option_id=option, surface="cli", **more)


# -- before a tool ------------------------------------------------------------------


async def test_a_human_allows_it_and_the_peer_is_shown_to_wait_meanwhile(agent):
    async with agent.asking() as (task, cid):
        assert await agent.turn_state() == "awaiting_input"
        asked = await agent.api.get(f"/questions/{cid}")
        assert (asked["from_peer"], asked["prompt"], asked["origin"]) == ("proj", "Bash: make", "pretooluse")
        assert asked["metadata"] == {**CALL, **SESSION}
        await answer(agent, cid, "allow")
        got = await task
    assert said(got) == "allow"
    assert "allowed by human" in got.body.decode()
    assert await agent.turn_state() == "working"


async def test_a_denial_carries_its_reason_to_the_model(agent):
    async with agent.asking() as (task, cid):
        await agent.api.post("/answer", correlation_id=cid, outcome="denied", message="not on main", surface="cli")
        got = await task
    assert said(got) == "deny"
    assert "denied by human: not on main" in got.body.decode()


async def test_a_tool_that_is_not_gated_is_answered_at_once(agent):
    for tool in ("Read", "Grep", "Glob", "WebSearch"):
        assert said(await agent.ask("PreToolUse", {"tool_name": tool, "tool_input": {"file_path": "a"}})) == "none"
    assert await agent.turn_state() == "working"
    assert await agent.events("question.asked") == []


async def test_silence_is_a_denial(agent, clock):
    async with agent.asking() as (task, _):
        clock.advance(56)
        questions.tick(agent.api.mesh)
        got = await task
    assert said(got) == "deny"
    assert "nobody answered" in got.body.decode()


@pytest.mark.parametrize("waits", ["30", "nonsense", "-5", "9" * 30])
async def test_it_never_waits_longer_than_the_runtime_or_the_cap(agent, clock, waits):
    task = asyncio.create_task(agent.ask("PreToolUse", CALL, headers={"X-Repowire-Waits": waits}))
    await agent.question(task)
    clock.advance(26 if waits == "30" else 56)
    questions.tick(agent.api.mesh)
    assert said(await task) == "deny"


async def test_a_gate_that_left_is_not_allowed_any_more(agent):
    async with agent.asking() as (task, cid):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until_async(lambda: not agent.open())
        await agent.api.post("/answer", expect=409, correlation_id=cid, option_id="allow")
    (closed,) = await agent.events("question.closed")
    assert (closed["reason"], closed["decision"]) == ("client_left", "deny")


async def test_each_call_is_a_question_of_its_own(agent):
    async with agent.asking() as (first, cid):
        await answer(agent, cid, "allow")
        assert said(await first) == "allow"
    async with agent.asking() as (again, other):
        assert other != cid
        await answer(agent, other, "deny")
        assert said(await again) == "deny"


async def test_a_sub_agents_call_waits_like_any_other_and_says_whose_it_is(agent):
    async with agent.asking(agent_id="sub-7", agent_type="general-purpose") as (task, cid):
        assert (await agent.api.get(f"/questions/{cid}"))["metadata"]["agent_id"] == "sub-7"
        await answer(agent, cid, "deny")
        assert said(await task) == "deny"


@pytest.mark.parametrize(
    ("event", "body"),
    [
        ("PreToolUse", {}),
        ("PreToolUse", {"tool_name": ""}),
        ("PreToolUse", {"tool_name": 5, "tool_input": {}}),
        ("PreToolUse", {"tool_name": "x" * 300, "tool_input": {}}),
        ("PreToolUse", {"tool_name": "Bash", "tool_input": "make"}),
        ("PermissionRequest", {"tool_name": None}),
    ],
)
async def test_a_call_that_cannot_be_read_is_refused(agent, event, body):
    assert (await agent.ask(event, body)).status == 422
    assert agent.open() == []


async def test_nobody_knows_the_gate_of_another_agent(agent):
    got = await agent.api.request("POST", "/gates/no-agent/PreToolUse", json=CALL)
    assert (got.status, got.json["detail"]["error"]) == (404, "gate_not_found")
    got = await agent.api.request("POST", "/gates/claude-code/Stop", json=CALL)
    assert got.status == 404


async def test_a_stranger_with_no_token_asks_nothing(agent):
    got = await agent.api.request("POST", "/gates/claude-code/PreToolUse", token=None, json=CALL)
    assert (got.status, agent.open()) == (401, [])


# -- while the agent's own dialog is open ----------------------------------------------


async def test_a_dialog_is_answered_from_elsewhere(agent):
    async with agent.asking("PermissionRequest") as (task, cid):
        assert await agent.turn_state() == "awaiting_input"
        assert (await agent.api.get(f"/questions/{cid}"))["dialog"] is True
        await answer(agent, cid, "allow")
        assert said(await task) == "allow"
    assert await agent.turn_state() == "working"


async def test_a_dialog_is_denied_from_elsewhere(agent):
    async with agent.asking("PermissionRequest") as (task, cid):
        await agent.api.post("/answer", correlation_id=cid, outcome="denied", message="no")
        got = await task
    assert said(got) == "deny"
    assert json.loads(got.body)["hookSpecificOutput"]["decision"]["message"] == "repowire: denied by human: no"


async def test_silence_leaves_the_dialog_to_its_user(agent, clock):
    async with agent.asking("PermissionRequest") as (task, _):
        clock.advance(586)
        questions.tick(agent.api.mesh)
        assert said(await task) == "none"
    assert await agent.turn_state() == "awaiting_input"


@pytest.mark.parametrize("event", ["PostToolUse", "Stop", "StopFailure", "UserPromptSubmit", "SessionEnd"])
async def test_answered_in_the_terminal_it_is_withdrawn_everywhere_else(agent, event):
    async with agent.asking("PermissionRequest") as (task, cid):
        await agent.hook(event, **CALL)
        assert said(await task) == "none"
        await agent.api.post("/answer", expect=409, correlation_id=cid, option_id="allow")
    (closed,) = await agent.events("question.closed")
    assert closed["reason"] == "answered_in_terminal"


async def test_another_tool_that_ran_says_nothing_of_this_dialog(agent):
    async with agent.asking("PermissionRequest") as (task, cid):
        await agent.hook("PostToolUse", tool_name="Bash", tool_input={"command": "ls"})
        assert agent.open() == [cid]
        await answer(agent, cid, "deny")
        assert said(await task) == "deny"


async def test_the_dialog_of_a_sub_agent_outlives_the_turn_that_began_it(agent):
    async with agent.asking("PermissionRequest", agent_id="sub-7") as (task, cid):
        await agent.hook("Stop")
        assert agent.open() == [cid]
        await agent.hook("SessionEnd", reason="prompt_input_exit")
        assert said(await task) == "none"


async def test_the_gate_before_a_tool_stays_whatever_the_hooks_say(agent):
    async with agent.asking() as (task, cid):
        for event in ("PostToolUse", "Stop", "UserPromptSubmit"):
            await agent.hook(event, **CALL)
        assert agent.open() == [cid]
        await answer(agent, cid, "allow")
        assert said(await task) == "allow"


# -- in one line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "given", "line"),
    [
        ("Bash", {"command": "make test", "description": "d"}, "Bash: make test"),
        ("Bash", {"command": "a\nb"}, "Bash: a … (3 characters)"),
        ("Write", {"file_path": "/x", "content": "y"}, "Write: /x"),
        ("mcp__git__push", {"remote": "origin"}, 'mcp__git__push: {"remote": "origin"}'),
        ("Odd", {}, "Odd"),
        ("Bash", {"command": "x" * 600}, f"Bash: {'x' * 500} … (600 characters)"),
    ],
)
def test_the_headline_says_when_there_is_more(tool, given, line):
    assert headline(tool, given) == line
