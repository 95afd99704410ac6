"""Whatever a runtime does with what it is given, by its inbox, its hooks and its pane: a message is told once a
session, and no state is ahead of the truth.

The runtime is a fake that swallows, delays, shows twice, is cleared and crashes, and so are its inbox, its hook's
script and its ws-hook. The rules between them, the worker of the inbox and the reading of the transcript are the real
ones.
"""

import asyncio
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from conftest import TOKEN, FakeClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repowire import channels, claims, config, daemon, hooks, intake, leases, mailboxes, protocol, receipts, sessions
from repowire.agents.claude_code_hooks import Said
from repowire.arrivals import Facts
from repowire.claims import Claim
from repowire.doors import Door

SPINS = 15  # turns of the loop after each step


INBOXES = st.sampled_from(["takes", "takes", "swallows", "blocks", "breaks", "breaks late", "is gone"])
SCRIPTS = st.sampled_from(["prints", "prints", "gives up", "prints in vain"])


@dataclass
class Truth:
    """What really became of one message."""

    given: int = 0  # written to an inbox, printed by a hook, or submitted in the pane
    shown: int = 0  # put before a model, in any session


@dataclass
class Runtime:
    """A session of an agent: what its model was told, and the transcript that it writes in order, a little late."""

    life: "LifeOfChannels"
    number: int
    told: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # texts that came into the inbox and wait for their turn
    box: str = ""  # what stands in its pane's input box
    unwritten: list[str] = field(default_factory=list)
    made_by_hook: bool = False
    dialog: bool = False

    @property
    def transcript(self) -> Path:
        return self.life.folder / f"{self.number}.jsonl"

    def tell(self, text: str) -> None:
        for one in protocol.shown(text):
            self.told.append(one)
            self.life.truths[one].shown += 1
        self.writes(text)

    def writes(self, text: str) -> None:
        at = datetime.fromtimestamp(self.life.clock.now(), UTC).isoformat()
        self.unwritten.append(json.dumps({"type": "user", "message": {"content": text}, "timestamp": at}) + "\n")

    def flush(self, lines: int) -> None:
        with self.transcript.open("a") as file:
            file.write("".join(self.unwritten[:lines]))
        del self.unwritten[:lines]

    def holds(self) -> set[str]:
        """What it has, or may still come to have."""
        return {*self.told, *(one for text in (*self.waiting, self.box) for one in protocol.shown(text))}


class Inbox:
    """A connection to the inbox: `asyncio`'s writer, as far as a channel uses it."""

    def __init__(self, life: "LifeOfChannels") -> None:
        self.life, self.text = life, ""

    def write(self, lines: bytes) -> None:
        self.text = json.loads(lines.splitlines()[-1])["message"]["content"]

    def write_eof(self) -> None:
        self._arrive()

    async def drain(self) -> None:
        if self.life.inbox == "breaks":
            raise ConnectionResetError("broken")
        if self.life.inbox == "breaks late":
            self._arrive()
            raise ConnectionResetError("broken")
        if self.life.inbox == "blocks":
            try:
                await asyncio.Event().wait()
            finally:
                if self.life.arrives_though_cut:
                    self._arrive()

    def close(self) -> None:
        pass

    def _arrive(self) -> None:
        for one in protocol.shown(self.text):
            self.life.truths[one].given += 1
        if self.life.inbox != "swallows":
            self.life.runtime.waiting.append(self.text)
        self.text = ""


class LifeOfChannels(RuleBasedStateMachine):
    """One agent, the ways to it, and the daemon that may be restarted at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.truths: dict[str, Truth] = {}
        self.runtime = Runtime(self, 1)
        self.inbox, self.arrives_though_cut = "takes", False
        self.worker: asyncio.Task[None] | None = None
        self.door: Door | None = None  # of the pane
        self.journal: dict[str, str] = {}
        self.pane = "takes"
        self.receipts: list[str] = []  # of hooks that printed, not sent yet
        self.whole = asyncio.open_unix_connection, channels.why_held
        asyncio.open_unix_connection = self.connect  # type: ignore[assignment]
        channels.why_held = self.why_held  # type: ignore[assignment]

    async def connect(self, address: str):
        if self.inbox == "is gone":
            raise ConnectionRefusedError
        return None, Inbox(self)

    async def why_held(self, mesh, session):
        return "dialog_open" if self.runtime.dialog else None

    @initialize(shared=st.booleans())
    def begin(self, shared):
        self.shared = shared
        self.run(self.open())

        async def register() -> None:
            with self.mesh.change() as change:
                self.peer = claims.register(change, Claim("ben", path="/src/ben"), connected=True)[0]
            self.bind()

        self.run(register())

    def bind(self) -> None:
        with self.mesh.change() as change:
            facts = {"session": f"s-{self.runtime.number}", "transcript": str(self.runtime.transcript)}
            sessions.bind(change, self.peer.peer_id, **facts, inbox="/inbox")

    async def open(self) -> None:
        config.prepare_home(self.folder / "home")
        settings_of = config.load(self.folder / "home", {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN})
        self.mesh = daemon.open_mesh(settings_of, self.clock)
        self.mesh.shared = self.shared

        async def at_once(*_: object) -> None:
            """The disk is another test's."""

        self.mesh.db.on_disk = at_once

    def run(self, coroutine) -> None:
        """Do it on the loop, and let everything that follows from it happen."""

        async def all_of_it() -> None:
            await coroutine
            for _ in range(SPINS):
                await asyncio.sleep(0)

        self.loop.run_until_complete(all_of_it())

    def teardown(self) -> None:
        if hasattr(self, "mesh"):
            self.run(self.end_well())
            self.run(self.close_ways())
            self.mesh.close()
        self.loop.close()
        asyncio.open_unix_connection, channels.why_held = self.whole
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def reached(self) -> bool:
        return self.worker is not None and not self.worker.done()

    async def close_ways(self, arrives: bool = False) -> None:
        self.arrives_though_cut = arrives
        if self.worker is not None:
            self.worker.cancel()
            with suppress(asyncio.CancelledError, ConnectionResetError):
                await self.worker
        self.worker = self.door = None

    # -- the inbox ------------------------------------------------------------

    @precondition(lambda self: not self.reached)
    @rule(how=INBOXES)
    def open_the_inbox(self, how):
        async def serve() -> None:
            await self.close_ways()
            self.inbox = how
            self.bind()
            channel = channels.Channel(self.mesh, sessions.find(self.mesh.db.conn, self.peer.peer_id))
            self.worker = asyncio.create_task(channel.run())

        self.run(serve())

    @precondition(lambda self: self.reached and self.door is None)
    @rule(how=INBOXES)
    def the_inbox(self, how):
        self.inbox = how

    @precondition(lambda self: self.reached)
    @rule(arrives=st.booleans())
    def the_ways_end(self, arrives):
        self.run(self.close_ways(arrives))

    @precondition(lambda self: self.runtime.waiting)
    @rule(reports=st.integers(0, 2))
    def the_runtime_takes_its_inbox(self, reports):
        """Its prompt hook tells of it, as often as it likes."""
        text = self.runtime.waiting.pop(0)
        self.runtime.tell(text)
        for _ in range(reports):
            self.run(self.hear("UserPromptSubmit", prompt=text))

    @rule()
    def a_dialog_opens_or_closes(self):
        self.runtime.dialog = not self.runtime.dialog

        async def hear() -> None:
            self.mesh.bus.publish(self.peer.peer_id)

        self.run(hear())

    # -- the pane -------------------------------------------------------------

    @precondition(lambda self: not self.reached)
    @rule(how=st.sampled_from(["takes", "holds", "dies before", "dies between", "dies after"]))
    def open_the_pane(self, how):
        async def serve() -> None:
            await self.close_ways()
            self.pane = how
            self.door = Door(self.peer.peer_id, "instance:ws-hook", receipts=True, remembers=True)
            self.door.watches = True
            self.mesh.doors.open(self.door)
            self.worker = asyncio.create_task(mailboxes.serve(self.mesh, self.door, self.type))

        self.run(serve())

    async def type(self, delivery) -> bool:
        """As ws-hook does it: the journal first, and what stands there is looked for and never typed again."""
        one, text = delivery.delivery_id, protocol.render(delivery.payload)
        known = self.journal.get(one)
        if known == "pasting" and one in protocol.shown(self.runtime.box):
            self.submit()
            known = self.journal[one] = "injected"
        elif known == "pasting" and one in self.runtime.told:
            known = self.journal[one] = "injected"
        if known is not None:
            return self.receipted(one, "injected") if known == "injected" else True
        if self.pane == "holds" or self.runtime.box or self.runtime.dialog:
            return self.receipted(one, "held")
        self.journal[one] = "pasting"
        if self.pane == "dies before":
            raise ConnectionResetError("killed")
        self.runtime.box = text
        if self.pane == "dies between":
            raise ConnectionResetError("killed")
        self.submit()
        if self.pane == "dies after":
            raise ConnectionResetError("killed")
        self.journal[one] = "injected"
        return self.receipted(one, "injected")

    def submit(self) -> None:
        text, self.runtime.box = self.runtime.box, ""
        for one in protocol.shown(text):
            self.truths[one].given += 1
        self.runtime.tell(text)

    def receipted(self, one: str, status: str) -> bool:
        if not (status == "injected" and mailboxes.injected(self.mesh, self.door, one)):
            with self.mesh.change() as change:
                receipts.receipt(change, one, status, peer_id=self.peer.peer_id)
        return True

    @precondition(lambda self: self.runtime.box)
    @rule()
    def somebody_presses_enter(self):
        self.submit()

    @precondition(lambda self: self.door is not None)
    @rule()
    def its_gate_opens(self):
        async def ready() -> None:
            self.pane = "takes"
            self.door.retry_at = 0.0
            self.door.mail()

        self.run(ready())

    # -- the end of a turn ----------------------------------------------------

    async def hear(self, event: str, **said) -> hooks.Answer:
        """As `post_hook` does it."""
        if event == "Stop" and not said.get("stop_hook_active"):
            await hooks.take_back(self.mesh, self.peer.peer_id)
        with self.mesh.change() as change:
            answer = hooks.EVENTS[event](change, hooks.Heard(self.mesh, self.peer, Said(**said), Facts()))
        self.mesh.commit()
        return answer

    @rule(script=SCRIPTS, receipt=st.booleans())
    def a_turn_ends(self, script, receipt):
        """Its hook's script prints what it is given, or gave up, or prints to a turn that its user broke off."""

        async def stop() -> None:
            answer = await self.hear("Stop", stop_hook_active=self.runtime.made_by_hook)
            self.runtime.made_by_hook = False
            if not answer.text or script == "gives up":
                return
            text = json.loads(answer.text)["hookSpecificOutput"]["additionalContext"]
            for one in protocol.shown(text):
                self.truths[one].given += 1
            if script == "prints":
                self.runtime.tell(text)
                self.runtime.made_by_hook = True
            if receipt:
                self.receipts.append(answer.holder)

        self.run(stop())

    @rule(
        seconds=st.sampled_from([0.0, 2.0, 4.0, 61.0]), lines=st.integers(0, 4), script=SCRIPTS, receipt=st.booleans()
    )
    def another_turn(self, seconds, lines, script, receipt):
        """Its user's prompt and all that follows; so much of the transcript is on the disk when the turn ends."""
        self.pass_time(seconds)
        self.runtime.made_by_hook = False
        self.runtime.writes("go on")
        self.run(self.hear("UserPromptSubmit", prompt="go on"))
        self.runtime.flush(lines)
        self.a_turn_ends(script, receipt)

    @precondition(lambda self: self.receipts)
    @rule(times=st.integers(1, 2))
    def a_script_says_that_it_printed(self, times):
        """At once, or much later: it is as true as it was."""
        holder = self.receipts.pop(0)

        async def say() -> None:
            for _ in range(times):
                with self.mesh.change() as change:
                    hooks.printed(change, holder)

        self.run(say())

    @precondition(lambda self: self.runtime.unwritten)
    @rule(lines=st.integers(1, 3), looked=st.booleans())
    def the_transcript_is_written(self, lines, looked):
        self.runtime.flush(lines)
        if looked:
            self.run(hooks.look(self.mesh, self.peer.peer_id))

    # -- sessions -------------------------------------------------------------

    @rule()
    def clear(self):
        """Another session of the same process: what waits in its inbox and in its box is still there."""
        old = self.runtime
        self.runtime = Runtime(self, old.number + 1, waiting=old.waiting, box=old.box, dialog=old.dialog)
        self.clock.advance(1)
        self.run(self.on_loop(self.bind))

    async def on_loop(self, call) -> None:
        call()

    @rule(seconds=st.sampled_from([0.0, 2.0]))
    def crash_and_resume(self, seconds):
        """What stood in no transcript is gone; another process goes on with what does."""
        old = self.runtime

        async def resume() -> None:
            await self.close_ways()
            self.receipts.clear()  # its scripts ended with it
            last = sessions.find(self.mesh.db.conn, self.peer.peer_id)
            self.runtime = Runtime(self, old.number)
            if old.transcript.exists():
                for line in old.transcript.read_text().splitlines():
                    self.runtime.told += protocol.shown(json.loads(line)["message"]["content"])
            self.bind()
            self.mesh.commit()
            await hooks.settle_last_life(self.mesh, self.peer.peer_id, last)

        self.clock.advance(seconds)
        self.run(resume())

    # -- messages, time, the daemon -------------------------------------------

    @rule(count=st.integers(1, 3))
    def send(self, count):
        async def several() -> None:
            for _ in range(count):
                with self.mesh.change() as change:
                    frame = {"type": "notify", "from_peer": "ann", "to_peer": "ben", "text": "hi"}
                    one = intake.queue(change, self.peer.peer_id, frame, expires_at=change.now + 9e9, most=10_000)
                self.truths[one.delivery_id] = Truth()

        self.run(several())

    @rule(seconds=st.sampled_from([1.0, 4.0, 61.0]))
    def time_passes(self, seconds):
        self.pass_time(seconds)

    def pass_time(self, seconds):
        async def later() -> None:
            receipts.note(self.mesh)
            self.clock.advance(seconds)
            leases.tick(self.mesh)
            if self.door is not None:
                self.door.nudge.ring()

        self.run(later())

    @rule(arrives=st.booleans())
    def restart(self, arrives):
        self.run(self.close_ways(arrives))
        self.mesh.close()
        self.run(self.open())

    # -- what holds -----------------------------------------------------------

    @invariant()
    def no_session_is_told_the_same_twice(self):
        assert len(self.runtime.told) == len(set(self.runtime.told))

    @invariant()
    def no_state_is_ahead_of_the_truth(self):
        if not self.truths:
            return
        self.run(self.on_loop(self.note))
        rows = self.mesh.db.conn.execute("SELECT delivery_id, state FROM deliveries").fetchall()
        assert {row[0] for row in rows} == self.truths.keys(), "nothing accepted is gone"
        for delivery_id, state in rows:
            truth = self.truths[delivery_id]
            if state == "seen":
                assert truth.shown > 0
            elif state == "handed":
                assert truth.given > 0
            elif state in ("queued", "held"):
                assert delivery_id not in self.runtime.holds(), "it would be told again"
            else:
                assert state in ("leased", "unknown")

    def note(self) -> None:
        receipts.note(self.mesh)
        self.mesh.commit()

    async def end_well(self) -> None:
        """A runtime that takes everything leaves nothing waiting: it was given, or nobody knows, and that is said."""
        await self.close_ways()
        self.runtime.dialog = False
        for _ in range(len(self.truths) + 2):
            answer = await self.hear("Stop")
            if answer.holder is not None:
                with self.mesh.change() as change:
                    for one in hooks.printed(change, answer.holder):
                        self.truths[one.delivery_id].given += 1
        self.clock.advance(1000.0)
        leases.tick(self.mesh)
        self.mesh.commit()
        rows = self.mesh.db.conn.execute("SELECT delivery_id, state FROM deliveries").fetchall()
        assert {state for _, state in rows} <= {"handed", "seen", "unknown"}
        self.no_loss_is_hidden(rows)

    def no_loss_is_hidden(self, rows) -> None:
        for delivery_id, state in rows:
            assert state == "unknown" or self.truths[delivery_id].given > 0


TestLifeOfChannels = LifeOfChannels.TestCase
TestLifeOfChannels.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
