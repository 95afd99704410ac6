"""The mesh: what a rule may reach, the change that it runs in, and the barrier between a commit and a 2xx.

A change is one transaction with one moment and the events that it leaves. Events reach the ledger and the bus only
after the commit; on any exception neither happens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from aiohttp import web

from repowire.auth import Auth
from repowire.bus import Bus
from repowire.clock import Clock
from repowire.config import Config
from repowire.db import Database
from repowire.ledger import Ledger
from repowire.procs import Procs
from repowire.protocol import topics

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
    """One transaction: its connection, its moment (unix seconds), and the events it will leave."""

    __slots__ = ("db", "events", "now", "rings")

    def __init__(self, db: Connection, now: float) -> None:
        self.db, self.now = db, now
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.rings: list[str] = []

    def record(self, kind: str, **facts: Any) -> None:
        """Leave an event, written and published after the commit. Facts that are None are left out."""
        self.events.append((kind, {name: fact for name, fact in facts.items() if fact is not None}))

    def ring(self, topic: str) -> None:
        """Wake who listens to the topic after the commit, without an event."""
        self.rings.append(topic)


@dataclass(frozen=True)
class Mesh:
    """The infrastructure that handlers, rules and loops share; never business."""

    clock: Clock
    config: Config
    db: Database
    ledger: Ledger
    bus: Bus
    procs: Procs
    auth: Auth

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Commit, then write and publish the events. Never await inside."""
        with self.db.transaction() as db:
            change = Change(db, self.clock.now())
            yield change
            if change.events:
                db.execute("UPDATE ledger_mark SET seq = ?", (self.ledger.last + len(change.events),))
        for kind, facts in change.events:
            self._announce(kind, change.now, facts)
        if change.rings:
            self.bus.publish(change.rings)

    def announce(self, kind: str, **facts: Any) -> None:
        """An event that belongs to no row: a line and a nudge. Never raises."""
        self._announce(kind, self.clock.now(), {name: fact for name, fact in facts.items() if fact is not None})

    def _announce(self, kind: str, at: float, facts: dict[str, Any]) -> None:
        seq = self.ledger.append(kind, at, facts)
        self.bus.publish(topics(kind, facts))
        if seq % INDEX_LINES == 0:
            self.bus.publish(("ledger.grown",))


MESH = web.AppKey("mesh", Mesh)
FORGIVEN = web.AppKey("forgiven", frozenset[str])  # paths whose change a restart forgives, such as a touch

Tick = Callable[[Mesh], float]


async def settle(request: web.Request, response: web.StreamResponse) -> None:
    """on_response_prepare: no header of an unsafe request leaves before what was committed is on the disk."""
    if request.method in ("GET", "HEAD"):
        return
    route = request.match_info.route.resource
    if route is None or route.canonical not in request.app[FORGIVEN]:
        await request.app[MESH].db.on_disk()


async def loop(mesh: Mesh, tick: Tick, wakes: tuple[str, ...]) -> None:
    """Tick when something is due (the tick says in how many seconds) or when one of the kinds was published."""
    with mesh.bus.listen(*wakes) as nudge:
        while True:
            await nudge.wait(min(tick(mesh), 60.0))
