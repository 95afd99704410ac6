"""Whatever the order: nobody is told allow but for the call that a person allowed, in its time; and each ends once."""

import asyncio
import math
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TOKEN, FakeClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from repowire import blocking, claims, config, daemon, peers, questions
from repowire.blocking import Draft
from repowire.choices import Answer, Option
from repowire.claims import Claim
from repowire.errors import Refusal
from repowire.questions import Answerer

OPTIONS = (Option("allow", "Allow"), Option("deny", "Deny"))
CALLS = st.sampled_from(["make", "rm -rf ~"])
PEERS = st.sampled_from(["ann", "ben"])
SIDES = st.sampled_from(["allow", "deny"])
WAIT_SECONDS = 40.0
ENDS = ("question.answered", "question.closed")


class Line(asyncio.Protocol):
    """The connection of a client, as far as a waiter looks at it."""

    def __init__(self) -> None:
        self.transport: Line | None = self
        self.protocol: asyncio.Protocol = asyncio.Protocol()

    def get_protocol(self) -> asyncio.Protocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return False

    def leave(self) -> None:
        self.transport = None
        self.protocol.connection_lost(None)


@dataclass
class Client:
    """One who asked: for which call, on which connection, and what it was told."""

    call: str
    line: Line
    task: asyncio.Task
    seen: bool = False

    @property
    def waits(self) -> bool:
        return not self.task.done() and self.line.transport is not None


@dataclass
class Asked:
    """What the model knows of one question; `ended` is the one decision that it can have."""

    call: str
    peer: str
    at: float
    passed: float
    dialog: bool
    clients: list[Client] = field(default_factory=list)
    ended: str | None = None
    answered_at: tuple[float, float] | None = None


def any_open(life: "LifeOfQuestions") -> bool:
    return any(one.ended is None for one in life.asked.values())


class LifeOfQuestions(RuleBasedStateMachine):
    """Two agents ask; people answer from several surfaces, now and then too late or too often."""

    cids = Bundle("cids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.asked: dict[str, Asked] = {}
        self.decided: dict[str, str] = {}
        self.open()
        self.mesh.shared = False
        with self.mesh.change() as change:
            made = {name: claims.register(change, Claim(name, path=f"/src/{name}"))[0] for name in ("ann", "ben")}
        self.mesh.shared, self.mesh.rest_seconds = True, math.inf  # so that two can be lost together
        self.peers = {name: peers.load(self.mesh.db.conn, peer.peer_id) for name, peer in made.items()}

    def open(self) -> None:
        async def build():
            config.prepare_home(self.folder / "home")
            environ = {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN}
            return daemon.open_mesh(config.load(self.folder / "home", environ), self.clock)

        self.mesh = self.loop.run_until_complete(build())
        self.mesh.shared, self.mesh.rest_seconds = True, math.inf  # so that two can be lost together

    def teardown(self) -> None:
        self.drop()
        self.mesh.close()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def do(self, act):
        """On the loop, and then until all is on the disk and whoever was woken has spoken."""

        async def run():
            try:
                return act()
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
                    await self.mesh.db.on_disk()
                for _ in range(10):
                    await asyncio.sleep(0)

        return self.loop.run_until_complete(run())

    def drop(self) -> None:
        """Every client of the old daemon is gone, told nothing more."""
        tasks = [client.task for one in self.asked.values() for client in one.clients if not client.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))

    # -- what holds --------------------------------------------------------------

    def late(self, one: Asked) -> bool:
        by_clock, passed = self.clock.now() - one.at, self.clock.monotonic() - one.passed
        return abs(by_clock - passed) > questions.JUMP_SECONDS or max(by_clock, passed) >= WAIT_SECONDS

    def silence(self, one: Asked) -> str:
        return "none" if one.dialog else "deny"

    def lapse(self) -> None:
        """What a look at the clock finds."""
        for one in self.asked.values():
            if one.ended is None and self.late(one):
                one.ended = self.silence(one)

    def heard(self, one: Asked) -> bool:
        return any(client.waits for client in one.clients)

    # -- asking ------------------------------------------------------------------

    def draft(self, cid: str, call: str, peer: str, dialog: bool) -> Draft:
        return Draft(
            prompt="may I?",
            options=OPTIONS,
            scope="tool_permission",
            metadata={"tool_name": "Bash", "tool_input": {"command": call}, "cwd": "/src", "session_id": peer},
            correlation_id=cid,
            timeout_seconds=WAIT_SECONDS,
            runtime_timeout_seconds=WAIT_SECONDS + 5 if dialog else None,
            dialog=dialog,
            peer=self.peers[peer],
        )

    def start(self, cid: str, call: str, peer: str, dialog: bool) -> Client:
        line = Line()

        def begin():
            return self.loop.create_task(blocking.ask(self.mesh, self.draft(cid, call, peer, dialog), line))

        return Client(call, line, self.do(begin))

    @rule(target=cids, call=CALLS, peer=PEERS, dialog=st.booleans())
    def ask(self, call, peer, dialog):
        cid = f"p-{len(self.asked)}"
        client = self.start(cid, call, peer, dialog)
        assert not client.task.done()
        self.asked[cid] = Asked(call, peer, self.clock.now(), self.clock.monotonic(), dialog, [client])
        return cid

    @rule(cid=cids, after=st.sampled_from([0.0, 0.0, 61.0]))
    def ask_again(self, cid, after):
        """A retry joins, or is told what became of it; an allow only soon."""
        one = self.asked[cid]
        self.clock.advance(after)
        one.clients.append(self.start(cid, one.call, one.peer, one.dialog))
        if one.ended is None and self.late(one):  # its own look at the clock
            one.ended = self.silence(one)
        assert one.clients[-1].task.done() == (one.ended is not None)

    @rule(cid=cids, call=CALLS, peer=PEERS)
    def ask_another_call(self, cid, call, peer):
        one = self.asked[cid]
        if (one.call, one.peer) != (call, peer):
            client = self.start(cid, call, peer, one.dialog)
            assert client.task.exception().error == "another_question"

    @rule(cid=cids, which=st.integers(0, 5))
    def leave(self, cid, which):
        one = self.asked[cid]
        waiting = [client for client in one.clients if client.waits]
        if not waiting:
            return
        self.do(waiting[which % len(waiting)].line.leave)
        if one.ended is None and not self.heard(one):
            one.ended = self.silence(one)

    # -- answering ---------------------------------------------------------------

    def answer(self, cid: str, side: str, digest: str | None = None) -> bool:
        """As /answer does, in a change of its own; whether it won."""
        question = questions.load(self.mesh.db.conn, cid)
        with suppress(Refusal), self.mesh.change() as change:
            who = Answerer("human", "cli", digest)
            return questions.answer(change, self.mesh, question, Answer("answered", side), who) is not None
        return False

    @rule(cid=cids, sides=st.lists(SIDES, min_size=1, max_size=4))
    def answers_at_once(self, cid, sides):
        """One of them at most wins, and just when it could."""
        one = self.asked[cid]
        could = one.ended is None and not self.late(one) and self.heard(one)
        won = self.do(lambda: [side for side in sides if self.answer(cid, side)])
        assert len(won) == int(could), (won, one)
        if won:
            one.ended = won[0]
            one.answered_at = (self.clock.now(), self.clock.monotonic())
        elif one.ended is None:
            one.ended = self.silence(one)

    @rule(cid=cids, side=SIDES)
    def answer_of_another_call(self, cid, side):
        """A surface that showed something else."""
        assert self.do(lambda: self.answer(cid, side, "0" * 64)) is False

    @rule(cid=cids, side=SIDES)
    def answer_in_a_turn_that_is_lost(self, cid, side):
        """The disk is full just then: nothing of it happened, and nobody may be told, though some look meanwhile."""
        one = self.asked[cid]
        if one.ended is not None or self.late(one):
            return

        def act():
            self.mesh.bus.publish(questions.topic(cid))
            self.answer(cid, side)
            with suppress(ZeroDivisionError), self.mesh.change() as change:
                change.db.execute("UPDATE peers SET last_seen = last_seen + 1")
                raise ZeroDivisionError

        waited = self.heard(one)
        self.do(act)
        if waited:
            assert questions.load(self.mesh.db.conn, cid).reason == "failed"
            one.ended = self.silence(one)

    @rule(cid=cids)
    def withdraw(self, cid):
        one = self.asked[cid]

        def act():
            with self.mesh.change() as change:
                return blocking.withdraw(change, "withdrawn", correlation_id=cid)

        assert self.do(act) == ([cid] if one.ended is None else [])
        one.ended = one.ended or self.silence(one)

    # -- time, ends ----------------------------------------------------------------

    @precondition(lambda self: self.asked)
    @rule(seconds=st.sampled_from([1.0, 20.0, 39.0, 70.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @precondition(any_open)
    @rule(seconds=st.sampled_from([-3600.0, -4.0, 4.0, 6.0, 3600.0]))
    def the_clock_is_set(self, seconds):
        self.clock.set_back_or_forward(seconds)

    @precondition(any_open)
    @rule()
    def tick(self):
        self.do(lambda: questions.tick(self.mesh))
        self.lapse()

    @precondition(any_open)
    @rule()
    def kill(self):
        """As kill -9 does: no client hears anything more, and what was committed stays."""
        self.mesh.commit()
        self.mesh.db.close()
        self.drop()
        self.mesh.close()
        self.open()
        for one in self.asked.values():
            one.ended = one.ended or self.silence(one)

    @precondition(any_open)
    @rule()
    def stop(self):
        """As SIGTERM does: whoever waits is told now."""
        self.do(self.mesh.bus.close)
        for one in self.asked.values():
            if self.heard(one):
                raise AssertionError("somebody still waits")
        self.mesh.close()
        self.open()
        for one in self.asked.values():
            one.ended = one.ended or self.silence(one)

    # -- always ----------------------------------------------------------------------

    @invariant()
    def nobody_is_told_more_than_was_decided(self):
        for cid, one in self.asked.items():
            for client in one.clients:
                if client.seen or not client.task.done():
                    continue
                client.seen = True
                if client.task.cancelled() or client.task.exception() is not None:
                    continue
                told = client.task.result().decision
                assert told in {one.ended, "deny"}, (cid, one)
                if told == "allow":
                    assert (one.ended, one.call) == ("allow", client.call)
                    now, passed = one.answered_at
                    assert self.clock.monotonic() - passed <= blocking.RETRY_SECONDS
                    assert self.clock.now() - now <= blocking.RETRY_SECONDS

    @invariant()
    def what_is_decided_stays_and_is_written_once(self):
        lines = self.mesh.ledger.after(0, 100_000)
        ends = Counter(
            line.facts["correlation_id"] for line in lines if line.kind in ("question.answered", "question.closed")
        )
        for cid, one in self.asked.items():
            found = questions.find(self.mesh.db.conn, cid)
            if found is None:
                continue
            assert found.decision == one.ended, (found, one)
            assert ends[cid] == int(one.ended is not None)
            if found.decision is not None:
                assert self.decided.setdefault(cid, found.decision) == found.decision


TestLifeOfQuestions = LifeOfQuestions.TestCase
TestLifeOfQuestions.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
