"""hooks.py on the wire: what becomes of the mail that a Stop was to carry, by what is printed and what is shown."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import DEADLINE_SECONDS, until_async

from repowire import hooks, protocol

HOOK_IS_OVER_SECONDS = 3.5


class Session:
    """A runtime's session: its hooks, and the transcript that it writes."""

    def __init__(self, api, folder: Path, clock) -> None:
        self.api, self.clock = api, clock
        self.transcript = folder / ".claude/projects/p/s-1.jsonl"
        self.transcript.parent.mkdir(parents=True)

    async def hook(self, event, **said):
        facts = {"session_id": "s-1", "transcript_path": str(self.transcript), "cwd": "/src/proj"}
        headers = {"X-Repowire-Session": "s-1"}
        got = await self.api.request("POST", f"/hooks/claude-code/{event}", headers=headers, json={**facts, **said})
        assert got.status == 200
        return got

    async def stop(self, *, printed=True, **said):
        """A turn ends; the text that the hook prints, where it is still there to print."""
        got = await self.hook("Stop", **said)
        receipt = got.headers.get("X-Repowire-Receipt")
        if printed and receipt:
            await self.api.post(f"/hooks/receipts/{receipt}")
        return json.loads(got.body)["hookSpecificOutput"]["additionalContext"] if got.body else ""

    def writes(self, text, kind="user"):
        at = datetime.fromtimestamp(self.clock.now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"type": kind, "message": {"role": kind, "content": text}, "timestamp": at}
        with self.transcript.open("a") as file:
            file.write(json.dumps(line) + "\n")

    async def note(self, text):
        return (await self.api.post("/notify", to_peer="proj", text=text))["delivery_id"]

    async def state(self, delivery_id):
        return (await self.api.get(f"/deliveries/{delivery_id}"))["state"]


@pytest.fixture
async def session(api, tmp_path, clock):
    one = Session(api, tmp_path, clock)
    await one.hook("SessionStart", source="startup")
    return one


async def test_what_no_hook_printed_goes_along_with_the_next_turn(session, clock):
    lost = [await session.note("one"), await session.note("two")]
    assert protocol.shown(await session.stop(printed=False)) == lost
    clock.advance(HOOK_IS_OVER_SECONDS)
    session.writes("the next prompt")
    after = await session.note("three")
    assert protocol.shown(await session.stop()) == [*lost, after], "in its old place"
    assert [await session.state(one) for one in lost] == ["handed", "handed"]


async def test_another_permission_mode_is_the_same_session(session, clock):
    lost = await session.note("one")
    await session.stop(printed=False)
    clock.advance(HOOK_IS_OVER_SECONDS)
    session.writes("the next prompt")
    await session.hook("UserPromptSubmit", prompt="the next prompt", permission_mode="plan")
    assert protocol.shown(await session.stop()) == [lost]


async def test_settings_of_a_project_that_are_a_pipe_keep_nobody_waiting(session, tmp_path):
    (tmp_path / "proj/.claude").mkdir(parents=True)
    os.mkfifo(tmp_path / "proj/.claude/settings.json")
    await session.hook("SessionStart", source="resume", cwd=str(tmp_path / "proj"))
    assert (await session.api.get("/health"))["status"] == "ok"


async def test_the_session_that_comes_after_is_given_what_no_hook_printed(session, clock):
    lost = await session.note("one")
    await session.stop(printed=False)
    clock.advance(1)
    await session.hook("SessionEnd", reason="prompt_input_exit")
    await session.hook("SessionStart", source="resume")
    assert protocol.shown(await session.stop()) == [lost]


async def test_but_not_what_a_session_before_that_was_given(session, clock):
    old = await session.note("one")
    session.writes(await session.stop())
    clock.advance(1)
    session.transcript = session.transcript.with_name("s-2.jsonl")
    await session.hook("SessionStart", source="clear")
    await session.hook("SessionEnd", reason="prompt_input_exit")
    await session.hook("SessionStart", source="resume")
    assert await session.stop() == ""
    assert await session.state(old) in ("handed", "seen")


async def test_also_when_its_lease_has_run_out(session, clock, api):
    lost = await session.note("one")
    await session.stop(printed=False)
    clock.advance(61)
    session.writes("the next prompt")
    api.mesh.bus.publish("delivery.stale")
    await until_async(lambda: api.mesh.db.conn.execute("SELECT state FROM deliveries").fetchone()[0] == "unknown")
    assert protocol.shown(await session.stop()) == [lost]


async def test_what_was_printed_is_not_said_again_though_its_receipt_was_lost(session, clock):
    sent = await session.note("one")
    session.writes(await session.stop(printed=False))  # it printed, and the daemon never heard of it
    clock.advance(HOOK_IS_OVER_SECONDS)
    session.writes("the next prompt")
    assert await session.stop() == ""
    assert await session.state(sent) == "seen"


@pytest.mark.parametrize(
    "why", ["the transcript says nothing yet", "nothing later stands in it", "a hook made the turn", "another session"]
)
async def test_without_proof_it_is_not_said_again(session, clock, why):
    sent = await session.note("one")
    await session.stop(printed=False)
    if why != "nothing later stands in it":
        clock.advance(HOOK_IS_OVER_SECONDS)
    if why == "another session":
        await session.hook("SessionEnd", reason="clear")
        session.transcript = session.transcript.with_name("s-2.jsonl")
        await session.hook("SessionStart", source="clear", session_id="s-1")
    if why != "the transcript says nothing yet":
        session.writes("the next prompt")
    assert await session.stop(stop_hook_active=why == "a hook made the turn") == ""
    assert await session.state(sent) == "leased"


async def test_two_hooks_of_one_turn_carry_it_once(session):
    sent = await session.note("one")
    session.writes("a prompt")
    first, second = await session.stop(printed=False), await session.stop()  # set up twice: they run side by side
    assert (protocol.shown(first), second) == ([sent], "")


async def test_it_is_seen_as_soon_as_the_transcript_shows_it(session):
    sent = await session.note("one")
    text = await session.stop()
    assert await session.state(sent) == "handed"
    session.writes(text)
    await until_async(lambda: session.api.mesh.db.conn.execute("SELECT state FROM deliveries").fetchone()[0] == "seen")


async def test_a_later_turn_looks_again_for_what_was_not_shown_then(session, monkeypatch):
    monkeypatch.setattr("repowire.hooks.LOOK_SECONDS", (0.01,))
    sent = await session.note("one")
    text = await session.stop()
    carried = session.api.client.app[hooks.CARRIED]
    await until_async(lambda: not carried._tries)
    session.writes(text)
    await session.hook("UserPromptSubmit", prompt="go on")
    await until_async(lambda: session.api.mesh.db.conn.execute("SELECT state FROM deliveries").fetchone()[0] == "seen")
    assert await session.state(sent) == "seen"


async def test_a_pipe_that_is_named_as_a_transcript_holds_no_turn_up(session):
    """Nobody writes into it: who opened it would wait for ever, and so would the agent."""
    os.mkfifo(session.transcript)
    await session.note("one")
    assert await asyncio.wait_for(session.stop(printed=False), DEADLINE_SECONDS)
    assert await asyncio.wait_for(session.stop(), DEADLINE_SECONDS) == ""
