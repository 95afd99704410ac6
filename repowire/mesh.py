"""The mesh: what a rule may reach, the change that it runs in, and the barrier between a commit and a 2xx.

A change is all or nothing, with one moment and the events that it leaves. While the disk is busy the changes of one
turn of the loop share a transaction: they are committed together when the turn ends, and only then do their events
reach the ledger and the bus. While it rests there is nobody to share with, and each is committed at once. Whoever must
know that his change lasts awaits `Mesh.on_disk`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

from aiohttp import web

from repowire.auth import Auth
from repowire.barrier import StoreError
from repowire.bus import Bus, Nudge
from repowire.clock import Clock
from repowire.config import Config
from repowire.db import Database
from repowire.doors import Doors
from repowire.errors import Refusal, unavailable
from repowire.ledger import Ledger
from repowire.procs import Procs
from repowire.protocol import topics

log = logging.getLogger("repowire")

REST_SECONDS = 0.0005  # after so long without a commit a change is committed at once: what comes next comes much later
CALM_SECONDS = 0.02  # and after so long where several shared the last commit
INDEX_LINES = 512  # the ledger's index catches up after this many lines: 2 ms of loop, and always within the ring

MIGRATIONS = [
    """
CREATE TABLE ledger_mark (      -- one row: the last line that a committed change was going to write
    seq INTEGER NOT NULL
);
INSERT INTO ledger_mark VALUES (0);
"""
]


class Change:
    """All or nothing: its connection, its moment (unix seconds), and what it will leave after the commit."""

    __slots__ = ("afterwards", "db", "events", "mesh", "now")

    def __init__(self, mesh: "Mesh") -> None:
        self.mesh, self.db, self.now = mesh, mesh.db.conn, mesh.clock.now()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.afterwards: list[Callable[[], None]] = []

    def record(self, kind: str, **facts: Any) -> None:
        """Leave an event, written and published after the commit. Facts that are None are left out."""
        self.events.append((kind, _given(facts)))
        if kind.startswith("peer."):
            self.mesh.memo.clear()

    def ring(self, topic: str) -> None:
        """Wake who listens to the topic after the commit, without an event."""
        self.afterwards.append(partial(self.mesh.bus.publish, topic))

    def after(self, call: Callable[[], None]) -> None:
        """Do this after the commit; it must not raise."""
        self.afterwards.append(call)


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if fact is not None} if None in facts.values() else facts


class Turn:
    """What is committed together, and who waits for it. `lost` is why it was not."""

    __slots__ = ("before", "broken", "changes", "hopeful", "lost", "number", "over", "scheduled", "waiters")

    def __init__(self, before: int) -> None:
        self.before = before  # rows changed on the connection before it
        self.changes: list[Change] = []
        self.number = 0  # of its commit, once it has one
        self.broken = False  # a change failed after it had written
        self.over = self.scheduled = False  # it is committed; it will be, when the loop's turn ends
        self.waiters: list[Nudge] = []
        self.hopeful: list[Nudge] = []  # of who waits for what comes of it, and must hear when nothing will
        self.lost: BaseException | None = None

    def end(self) -> None:
        """Let go of all but how it ended: a task keeps the turn that it changed something in last."""
        self.changes = self.waiters = self.hopeful = _NOTHING


_NOTHING: list[Any] = []  # shared by all that are over; nobody adds to them


class Mesh:
    """The infrastructure that handlers, rules and loops share; never business.

    With `shared` the changes of one turn of the loop are committed together while the disk is busy; else each is
    committed by itself.
    """

    def __init__(
        self,
        clock: Clock,
        config: Config,
        db: Database,
        ledger: Ledger,
        bus: Bus,
        procs: Procs,
        auth: Auth,
        *,
        shared: bool = False,
    ) -> None:
        self.clock, self.config, self.db, self.ledger = clock, config, db, ledger
        self.bus, self.procs, self.auth, self.shared = bus, procs, auth, shared
        self.doors = Doors()
        self.memo: dict[str, Any] = {}  # rows that were read; emptied by every event of a peer and every lost change
        self.rest_seconds = REST_SECONDS
        self._committed_at = -math.inf  # monotonic seconds
        self._crowded = False  # several changes shared the last commit
        self._turn: Turn | None = None
        self._inside = False
        self._written = 0  # rows changed on the connection before the open change

    # -- changes ---------------------------------------------------------------

    def change(self) -> "_Changing":
        """`with mesh.change() as change:`; on an exception nothing of it happened. Never await inside."""
        return _Changing(self)

    def _begin(self) -> None:
        if self._inside:
            raise RuntimeError("a change is open already: never await inside one, and never open one in another")
        if self._turn is None:
            self.db.transaction().__enter__()
            self._turn = Turn(self.db.conn.total_changes)
        elif self._turn.broken and not self.db.conn.in_transaction:  # SQLite undid it by itself, as on a full disk
            self.db.transaction().__enter__()
        self._written = self.db.conn.total_changes
        self._inside = True

    def _end(self, change: Change | None) -> None:
        """Keep a change. One that failed is undone, which is nothing to do where it refused before it wrote.

        Rules refuse before they write; where a fault of ours or a full disk comes later, the whole turn is undone and
        everybody in it is told to try again: a savepoint for each change would cost more than its statements.
        """
        self._inside = False
        turn = self._turn
        if turn is None:
            return
        if change is not None:
            turn.changes.append(change)
            if (mine := _MINE.get()) is None or mine.lost is None:  # a loss that was not told yet is not forgotten
                _MINE.set(turn)
        else:
            self.memo.clear()
            if self.db.conn.total_changes != self._written or not self.db.conn.in_transaction:
                turn.broken = True
        if not self.shared or (not turn.scheduled and self._is_alone()):
            self.commit()
        elif not turn.scheduled:
            turn.scheduled = True
            asyncio.get_running_loop().call_soon(self.commit)

    def _is_alone(self) -> bool:
        """Whether there is nobody to share a commit with: nobody waits for the disk, and the last is a while ago.

        After one that several shared more than one will come again.
        """
        past = time.monotonic() - self._committed_at
        return not self.db.busy and past > self.rest_seconds and (not self._crowded or past > CALM_SECONDS)

    def commit(self) -> None:
        """Commit the open turn, then write and publish its events. When that fails all of it is lost.

        Who waits for a shared turn learns of the loss; alone, the failure is raised.
        """
        turn, self._turn = self._turn, None
        if turn is None:
            return
        changes = turn.changes
        events = changes[0].events if len(changes) == 1 else [event for change in changes for event in change.events]
        transaction = self.db.transaction()
        try:
            if turn.broken:
                raise StoreError("a change failed half way")
            if events or self.db.conn.total_changes != turn.before:  # the ledger's index must not get ahead of the mark
                self.db.conn.execute("UPDATE ledger_mark SET seq = ?", (self.ledger.last + len(events),))
            transaction.__exit__(None, None, None)
            turn.number = self.db.committed
            self._committed_at, self._crowded = time.monotonic(), len(changes) > 1
            if turn.waiters:
                self.db.sync_now()
        except (self.db.conn.Error, StoreError) as error:
            transaction.__exit__(type(error), error, None)
            self.memo.clear()
            turn.lost = error.with_traceback(None)  # whose frames would keep the changes, as long as it is not told
            turn.changes = _NOTHING
            for nudge in turn.hopeful:
                nudge.ring()
            if self.shared:
                log.error("%d changes were undone: %s", len(changes), error)
            elif changes:
                raise
            return
        finally:
            turn.over = True
            for nudge in turn.waiters:
                nudge.ring()
        if events:
            self._tell(changes[-1].now, events)
        turn.end()
        try:
            for change in changes:
                for call in change.afterwards:
                    call()
        finally:  # also where one has a fault: what was put into doors is committed
            self.doors.due.tell()

    async def committed(self) -> None:
        """Wait until what this task changed last is committed; 503 when it was lost."""
        turn = _MINE.get()
        if turn is not None:
            if not turn.over:
                turn.waiters.append(nudge := Nudge())
                await nudge.wait()
            if turn.lost is not None:
                _MINE.set(None)  # told once: a later request of the same connection is not answered for it
                raise unavailable("store_failed", f"nothing was kept, try again: {turn.lost}")

    def ring_if_lost(self, nudge: Nudge) -> None:
        """Ring it too when what this task changed last is lost: whoever waits for its effect would wait for ever."""
        turn = _MINE.get()
        if turn is not None and not turn.over:
            turn.hopeful.append(nudge)
        elif turn is not None and turn.lost is not None:
            nudge.ring()

    async def on_disk(self) -> None:
        """Wait until what this task changed last survives a power cut; 503 when it was lost."""
        turn = _MINE.get()
        if turn is not None and not self.is_settled():
            await self.committed()
            await self.db.on_disk(turn.number)

    def forget(self) -> None:
        """This task will wait for nothing that it changed so far; one that lasts would keep it in memory."""
        _MINE.set(None)

    def is_settled(self) -> bool:
        """Whether `on_disk` has nothing to wait for, and nothing to tell."""
        turn = _MINE.get()
        return turn is None or (0 < turn.number <= self.db.synced and self.db.failure is None)

    async def seen_on_disk(self) -> None:
        """Wait until all that could be read just now survives a power cut; 503 when it was lost.

        A row that another task wrote in the open turn can be read already, and may still be undone.
        """
        if self._turn is not None:
            _MINE.set(self._turn)
            await self.on_disk()
        else:
            await self.db.on_disk()

    # -- events ----------------------------------------------------------------

    def announce(self, kind: str, **facts: Any) -> None:
        """An event that belongs to no row: a line and a nudge. Never raises."""
        self.db.sync_soon()
        self._tell(self.clock.now(), ((kind, _given(facts)),))

    def announce_all(self, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """`announce` for several at once: one write."""
        self.db.sync_soon()
        self._tell(self.clock.now(), events)

    def _tell(self, at: float, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        before = self.ledger.last
        self.ledger.extend(at, events)
        for kind, facts in events:
            self.bus.publish(kind, *topics(facts))
        if self.ledger.last // INDEX_LINES > before // INDEX_LINES:
            self.bus.publish("ledger.grown")

    def close(self) -> None:
        """Commit what is open and let go of the files; a second call changes nothing."""
        self.commit()
        self.procs.close()
        self.ledger.close()
        self.db.close()


class _Changing:
    """The `with` of `Mesh.change`; a class, since a generator costs as much again as the statements."""

    __slots__ = ("change", "mesh")

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def __enter__(self) -> Change:
        self.mesh._begin()
        self.change = Change(self.mesh)
        return self.change

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.mesh._end(self.change if kind is None else None)


# The turn that this task changed something in last: what a reply has to wait for, and nothing else
_MINE: ContextVar[Turn | None] = ContextVar("turn", default=None)

MESH = web.AppKey("mesh", Mesh)

Tick = Callable[[Mesh], float]


class Settling:
    """No header of an unsafe request leaves before what was committed is on the disk.

    The middleware asks, where a loss can still become a refusal; on_response_prepare waits, which streams pass too.
    """

    def __init__(self, mesh: Mesh, forgiven: frozenset[str]) -> None:
        """`forgiven` are paths whose change a restart may forget, such as a touch."""
        self._mesh, self._forgiven = mesh, forgiven

    def due(self, request: web.Request, response: web.StreamResponse) -> Awaitable[None] | None:
        """What to wait for before the response; None when there is nothing."""
        if request.method in ("GET", "HEAD") or self._mesh.is_settled():
            return None
        route = request.match_info.route.resource
        return None if route is not None and route.canonical in self._forgiven else self._wait(response)

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Wait for it."""
        if (due := self.due(request, response)) is not None:
            await due

    async def _wait(self, response: web.StreamResponse) -> None:
        try:
            await self._mesh.on_disk()
        except Refusal:
            if response.status < 400:
                raise  # a refusal promises nothing, so it may leave


async def loop(mesh: Mesh, tick: Tick, wakes: tuple[str, ...]) -> None:
    """Tick when something is due (the tick says in how many seconds) or when one of the kinds was published."""
    with mesh.bus.listen(*wakes) as nudge:
        while True:
            await nudge.wait(min(tick(mesh), 60.0))
