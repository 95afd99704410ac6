"""Doors: the live ways to peers, in memory. What is put into a door leaves it in that order, by one worker."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from repowire.bus import Nudge


class Door:
    """A live way to one peer; `way` names its kind: socket, pane or channel.

    `clear` says that nothing waits in the peer's mailbox, so that a new message may go straight through; until then it
    queues behind what waits. `holder` names who is at the far end, `remembers` that it knows what it took already.
    """

    __slots__ = (
        "at_once",
        "clear",
        "cut",
        "drain_until",
        "drained",
        "due",
        "handed_at",
        "holder",
        "hosted",
        "in_flight",
        "in_hand",
        "items",
        "nudge",
        "peer_id",
        "receipts",
        "remembers",
        "resting",
        "retry_at",
        "stalled",
        "unproved",
        "unwritten",
        "wake",
        "watches",
        "way",
    )

    def __init__(
        self, peer_id: str, holder: str, *, way: str = "socket", receipts: bool = False, remembers: bool = False
    ) -> None:
        self.peer_id, self.holder, self.way = peer_id, holder, way
        self.hosted = False  # the far end is ws-hook, which goes when its pane is wanted no more
        self.cut: Callable[[], None] | None = None  # close it without a word
        self.drained: Callable[[], None] | None = None  # what `drain` is to call
        self.drain_until = 0.0  # monotonic seconds
        self.watches = False  # the far end says itself when what it handed back may be tried again
        self.receipts, self.remembers = receipts, remembers
        self.clear = False
        self.stalled = False  # the far end does not read: what is put into it would wait
        self.items: list[Any] = []
        self.unwritten: list[Any] = []  # what was taken out of it to be written
        self.in_hand: Any = None  # and is writing just now
        self.nudge = Nudge()
        self.resting = False  # its worker has nothing to do: what is put in may be written by another
        self.wake: Callable[[], None] | None = None  # start the worker anew, where it ends when it rests
        self.at_once: Callable[[Any], bool] | None = None  # write one now, without waiting; False: the worker must
        self.due: Due | None = None  # where it says that something was put in, while it is the peer's door
        self.retry_at = 0.0  # unix seconds; what was handed back is not tried before
        self.in_flight: dict[str, str] = {}  # leased and not receipted, where receipts are promised: delivery to trace
        self.unproved: list[float] = []  # unix seconds at which it was given what no receipt is promised of
        self.handed_at: float | None = None  # unix seconds of the newest receipt

    def put(self, item: Any) -> None:
        """Behind what is in it already."""
        self.items.append(item)
        if self.resting and self.due is not None and self.at_once is not None:
            self.due.add(self)
        else:
            self.ring()

    def ring(self) -> None:
        """There is something to do for the worker."""
        if self.resting and self.wake is not None:
            self.resting = False
            self.wake()
        else:
            self.nudge.ring()

    def straight(self, window: int) -> bool:
        """Whether a new message may go in at once."""
        return self.clear and not self.stalled and self.room(window) > 0

    def room(self, window: int) -> int:
        """How many more may be sent before a receipt comes; one that remembers nothing is not held to the window."""
        if self.drained is not None:
            return 0
        return window - len(self.in_flight) if self.remembers else window

    def receipted(self, delivery_id: str) -> str | None:
        """One of those in flight came to its end; returns its trace."""
        trace = self.in_flight.pop(delivery_id, None)
        if not self.clear:
            self.ring()
        if self.drained is not None and not self.in_flight:
            self.drained()
        return trace

    def drain(self, drained: Callable[[], None], seconds: float) -> bool:
        """Let nothing more in. True when no receipt is owed any more, or so many seconds have passed since the first
        call; `drained` is called when the last receipt comes.
        """
        if self.drained is None:
            self.drain_until = time.monotonic() + seconds
        self.drained = drained
        return not self.in_flight or time.monotonic() > self.drain_until

    def go_on(self) -> None:
        """It is no longer drained."""
        if self.drained is not None:
            self.drained = None
            self.ring()

    def mail(self) -> None:
        """Something waits in the mailbox."""
        self.clear = False
        self.ring()


class Due:
    """The doors whose worker rests and that something was put into since: they are emptied together."""

    def __init__(self) -> None:
        self.doors: list[Door] = []
        self.empty: Callable[[], None] | None = None  # whoever empties them, called when a turn is committed

    def add(self, door: Door) -> None:
        """Something was put into this one."""
        self.doors.append(door)

    def tell(self) -> None:
        """All of a turn was put into them."""
        if self.doors and self.empty is not None:
            self.empty()

    def take(self) -> list[Door]:
        """All of them, each as often as something was put into it."""
        taken, self.doors = self.doors, []
        return taken


class Doors:
    """The live table, one door a peer."""

    def __init__(self) -> None:
        self._open: dict[str, Door] = {}
        self.locked: set[str] = set()  # the peers whose mail a person holds: see `holds`
        self.due = Due()
        self.receipts: list[tuple[str, str, Door]] = []  # delivery, trace and door, to be noted in one change
        # written, and no receipt yet: delivery to its trace, and when, in unix seconds and in monotonic ones
        self.sent: dict[str, tuple[str, float, float]] = {}
        self.noting: asyncio.TimerHandle | None = None  # the one timer that has both noted

    def of(self, peer_id: str) -> Door | None:
        """The peer's door, if one is open."""
        return self._open.get(peer_id)

    def open(self, door: Door) -> None:
        """From now on the peer is reached through it."""
        self._open[door.peer_id] = door
        door.due = self.due

    def close(self, door: Door) -> None:
        """No longer through this one; another one of the same peer stays."""
        door.due = None
        if self._open.get(door.peer_id) is door:
            del self._open[door.peer_id]

    def __iter__(self) -> "Iterator[Door]":
        return iter(list(self._open.values()))
