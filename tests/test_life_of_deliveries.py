"""Whatever the far ends do: one injection a delivery id, the mailbox's order, and no state ahead of the truth."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TOKEN, FakeClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repowire import claims, config, daemon, deliveries, intake, leases, mailboxes, receipts
from repowire.claims import Claim
from repowire.deliveries import Delivery
from repowire.doors import Door

SPINS = 15  # turns of the loop after each step: nothing in here waits for a disk or a socket


@dataclass
class Truth:
    """What really happened to one message."""

    number: int
    injections: int = 0
    refusals: int = 0
    cut: bool = False  # while it was being written: only the same instance may be given it again, whenever that is back


@dataclass
class Program:
    """What runs at the far end. With an `instance` it remembers what it took, as long as it lives."""

    instance: str | None
    memory: set[str] = field(default_factory=set)


class Far:
    """One connection of a program: it takes, refuses, blocks, or ends in the middle of a write."""

    def __init__(self, life: "LifeOfDeliveries", program: Program) -> None:
        self.life, self.program = life, program
        self.refuses = self.broken = self.ended = False
        self.arrives_though_cut = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.receipts: list[tuple[str, str]] = []  # not sent yet

    async def hand(self, one: Delivery) -> bool:
        if self.broken:
            return False
        try:
            await self.reading.wait()
        except asyncio.CancelledError:
            self.life.truths[one.delivery_id].cut = True
            if self.arrives_though_cut:  # it stood in a buffer that was flushed
                self.arrive(one)
            raise
        self.arrive(one)
        return True

    def hand_at_once(self, one: Delivery) -> bool:
        if self.broken or not self.reading.is_set():
            return False
        self.arrive(one)
        return True

    def abort(self) -> None:
        self.ended = True

    def arrive(self, one: Delivery) -> None:
        truth = self.life.truths[one.delivery_id]
        if self.program.instance and one.delivery_id in self.program.memory:
            self.receipts.append((one.delivery_id, "injected"))
        elif self.refuses:
            truth.refusals += 1
            self.receipts.append((one.delivery_id, "held"))
        else:
            truth.injections += 1
            self.program.memory.add(one.delivery_id)
            self.life.order.append(one.delivery_id)
            self.receipts.append((one.delivery_id, "injected"))


class LifeOfDeliveries(RuleBasedStateMachine):
    """One mailbox, and the ways to it that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.truths: dict[str, Truth] = {}
        self.order: list[str] = []
        self.programs = [Program(None), Program("a"), Program("b")]
        self.late: list[tuple[str, str]] = []  # receipts of ways that ended before they were sent
        self.far: Far | None = None

    @initialize(shared=st.booleans())
    def begin(self, shared):
        self.shared = shared
        self.run(self.open())

        async def register() -> None:
            with self.mesh.change() as change:
                self.peer_id = claims.register(change, Claim("ben", path="/src/ben"))[0].peer_id

        self.run(register())

    async def open(self) -> None:
        config.prepare_home(self.folder / "home")
        settings_of = config.load(self.folder / "home", {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN})
        self.mesh = daemon.open_mesh(settings_of, self.clock)
        self.mesh.shared = self.shared

        async def soon(*_: object) -> None:
            """The disk is another test's."""
            await asyncio.sleep(0)

        self.mesh.db.on_disk = soon
        self.mesh.db.when_on_disk = lambda call: self.loop.call_soon(call, None)
        self.mesh.doors.due.empty = mailboxes.Flush(self.mesh).begin

    async def close(self) -> None:
        receipts.note(self.mesh)
        self.mesh.close()

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
            self.run(self.cut(False))
            self.run(self.close())
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the ways -------------------------------------------------------------

    @precondition(lambda self: self.far is None)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["reads", "reads", "blocks", "breaks", "refuses"]))
    def come(self, which, how):
        self.run(self.connect(self.programs[which], how))
        self.run(self.notice())

    async def connect(self, program: Program, how: str = "reads") -> None:
        self.far = Far(self, program)
        self.far.broken, self.far.refuses = how == "breaks", how == "refuses"
        if how == "blocks":
            self.far.reading.clear()
        remembers = program.instance is not None
        holder = f"instance:{program.instance}" if remembers else f"socket:{id(self.far)}"
        door = Door(self.peer_id, holder, receipts=True, remembers=remembers)
        door.at_once = self.far.hand_at_once
        self.mesh.doors.open(door)
        self.door, self.worker = door, mailboxes.Worker(self.mesh, door, self.far)
        self.worker.begin()

    async def cut(self, arrives: bool) -> None:
        if self.far is not None:
            self.far.arrives_though_cut = arrives
            await self.worker.end()
            self.late += self.far.receipts
            self.far = None

    @precondition(lambda self: self.far is not None)
    @rule(arrives=st.booleans())
    def hang_up(self, arrives):
        self.run(self.cut(arrives))

    @rule(which=st.integers(1, 2))
    def crash(self, which):
        """A program dies: what it remembered is gone, and so is its instance."""
        if self.far is not None and self.far.program is self.programs[which]:
            self.run(self.cut(False))
        self.programs[which] = Program(f"{self.programs[which].instance}'")

    @precondition(lambda self: self.far is not None)
    @rule()
    def stop_reading(self):
        self.far.reading.clear()

    @precondition(lambda self: self.far is not None)
    @rule()
    def read_on(self):
        self.far.reading.set()
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.far is not None)
    @rule(refuses=st.booleans())
    def shut_or_open_the_gate(self, refuses):
        self.far.refuses = refuses

    @precondition(lambda self: self.far is not None)
    @rule()
    def break_before_the_next_write(self):
        """The worker ends when it has something to write; until then nobody notices."""
        self.far.broken = True

    async def notice(self) -> None:
        if self.far is not None and self.far.ended:
            await self.cut(False)

    # -- messages and receipts ------------------------------------------------

    @rule(count=st.integers(1, 3) | st.just(40))
    def send(self, count):
        async def several() -> None:
            for _ in range(count):
                with self.mesh.change() as change:
                    frame = {"type": "notify", "text": "hi"}
                    one = intake.queue(change, self.peer_id, frame, expires_at=change.now + 9e9, most=10_000)
                self.truths[one.delivery_id] = Truth(len(self.truths))

        self.run(several())
        self.run(self.notice())

    @precondition(lambda self: self.far is not None and self.far.receipts)
    @rule(times=st.integers(1, 2), all_of_them=st.booleans(), newest_first=st.booleans())
    def give_receipts(self, times, all_of_them, newest_first):
        if newest_first:
            self.far.receipts.reverse()
        taken = self.far.receipts if all_of_them else self.far.receipts[:1]
        self.far.receipts = [] if all_of_them else self.far.receipts[1:]
        for _ in range(times):
            self.run(self.say(taken))

    @precondition(lambda self: self.late)
    @rule()
    def give_late_receipts(self):
        """Over a later connection, or by a program whose way ended: they are as true as they were."""
        late, self.late = self.late, []
        self.run(self.say(late))

    async def say(self, said) -> None:
        """As a socket takes them."""
        for delivery_id, status in said:
            if status == "injected" and self.far is not None and mailboxes.injected(self.mesh, self.door, delivery_id):
                continue
            if status == "held" and self.truths[delivery_id].injections:
                continue  # outdated: a program does not take back what it did
            with self.mesh.change() as change:
                receipts.receipt(change, delivery_id, status, peer_id=self.peer_id)
        receipts.note(self.mesh)
        await self.notice()

    @rule(seconds=st.sampled_from([1.0, 61.0]))
    def pass_time(self, seconds):
        async def later() -> None:
            receipts.note(self.mesh)
            self.clock.advance(seconds)
            leases.tick(self.mesh)
            if self.far is not None:
                self.door.nudge.ring()

        self.run(later())
        self.run(self.notice())

    @precondition(lambda self: self.far is not None)
    @rule()
    def say_ready(self):
        async def ready() -> None:
            self.door.retry_at = 0.0
            self.door.mail()

        self.run(ready())
        self.run(self.notice())

    @rule(arrives=st.booleans())
    def restart(self, arrives):
        self.run(self.cut(arrives))
        self.run(self.close())
        self.run(self.open())

    # -- what holds -----------------------------------------------------------

    async def note(self) -> None:
        """What waits to be noted together with its neighbours is noted now."""
        receipts.note(self.mesh)
        self.mesh.commit()

    def states(self) -> dict[str, str]:
        return dict(self.mesh.db.conn.execute("SELECT delivery_id, state FROM deliveries").fetchall())

    @invariant()
    def nothing_is_injected_twice(self):
        assert [truth for truth in self.truths.values() if truth.injections > 1] == []

    @invariant()
    def no_state_is_ahead_of_the_truth(self):
        if not self.truths:
            return
        self.run(self.note())
        states = self.states()
        assert states.keys() == self.truths.keys(), "nothing accepted is gone"
        for delivery_id, state in states.items():
            truth = self.truths[delivery_id]
            if state == "handed":
                assert truth.injections == 1
            elif state in ("queued", "held"):
                assert truth.injections == 0, "it would be sent again"
            else:
                assert state in ("leased", "unknown")
            assert state != "held" or truth.refusals

    @invariant()
    def only_what_was_refused_or_cut_is_overtaken(self):
        for before, after in zip(self.order, self.order[1:], strict=False):
            overtaken = self.truths[after].number < self.truths[before].number
            assert not overtaken or self.truths[after].refusals or self.truths[after].cut

    async def end_well(self) -> None:
        """A program that takes everything leaves nothing waiting: it was taken, or nobody knows, and that is said."""
        await self.cut(False)
        await self.connect(Program("last"))
        for _ in range(2 * len(self.truths) // deliveries.WINDOW + 4):
            for _ in range(SPINS):
                await asyncio.sleep(0)
            receipts, self.far.receipts = self.far.receipts, []
            await self.say(receipts)
        self.clock.advance(1000.0)
        leases.tick(self.mesh)
        self.mesh.commit()
        for delivery_id, state in self.states().items():
            assert state in ("handed", "unknown"), state
            assert state != "handed" or self.truths[delivery_id].injections == 1


TestLifeOfDeliveries = LifeOfDeliveries.TestCase
TestLifeOfDeliveries.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
