"""Mailboxes: how what waits for a peer, and what comes now, leaves through its open door, in order and once.

One worker a door: it leases, waits for the disk, and writes. What it wrote without a receipt is never written again
through a door that remembers nothing; what it provably did not write goes back into the mailbox. While a worker rests,
`Flush` writes for it what came straight through: for all such doors together, after one wait for the disk.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from contextvars import Context
from typing import Any, Protocol

from repowire import deliveries, receipts
from repowire.bus import Nudge
from repowire.deliveries import SENT_SECONDS, WINDOW, Delivery
from repowire.doors import Door
from repowire.errors import Refusal
from repowire.mesh import Mesh
from repowire.protocol import LEASED, QUEUED

log = logging.getLogger("repowire")

LATE_SECONDS = 0.02  # how long a receipt may wait to be noted together with its neighbours
SLICE = 100  # doors that are written to in one turn of the loop: a millisecond or two
WRITE_SECONDS = 2.0  # how long a request waits until its message is written to a live transport

Hand = Callable[[Delivery], Awaitable[bool | None]]  # see `Way.hand`

# -- the worker ----------------------------------------------------------------


class Way(Protocol):
    """What a door leads through: a message is handed to it, and it is cut off when that fails."""

    def hand(self, delivery: Delivery) -> Awaitable[bool | None]:
        """Write one: True when it is written, None when it was handed back and that is noted, False when the way ended
        before a byte of it was written.
        """

    def abort(self) -> None:
        """Cut it off."""


class Worker:
    """The one worker of a door: first what waits in the mailbox, then what is put into the door, in order.

    It is a task while there is something to do, and nothing but this while it rests. When the way ends, what was leased
    and provably not written goes back.
    """

    __slots__ = ("_task", "door", "mesh", "way")

    def __init__(self, mesh: Mesh, door: Door, way: Way) -> None:
        self.mesh, self.door, self.way = mesh, door, way
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Once, when the way is open."""
        self.door.wake = self._start
        self._start(first=True)

    def _start(self, *, first: bool = False) -> None:
        # in a context of its own: what woke it may wait for a change that is no business of its
        self._task = asyncio.get_running_loop().create_task(self._run(first), context=Context())

    async def _run(self, first: bool) -> None:
        door = self.door
        try:
            if first and door.remembers:
                await _write_again(self.mesh, door, self.way.hand)
            await _work(self.mesh, door, self.way.hand)
        except (ConnectionError, Refusal) as gone:
            log.debug("the mailbox of %s: %s", door.peer_id, gone)
            self.way.abort()
        except Exception:
            log.exception("the mailbox of %s failed", door.peer_id)
            self.way.abort()
        else:
            door.resting, self._task = True, None

    async def end(self) -> None:
        """Once, when the way is gone."""
        task, self.door.wake = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        finally:
            _shut(self.mesh, self.door)


async def serve(mesh: Mesh, door: Door, hand: Hand) -> None:
    """The same as a task that lasts as long as the way. Ends with ConnectionResetError when that ends."""
    try:
        if door.remembers:
            await _write_again(mesh, door, hand)
        while True:
            await _work(mesh, door, hand)
            door.resting = True
            await door.nudge.wait()
            door.resting = False
    finally:
        _shut(mesh, door)


async def _write_again(mesh: Mesh, door: Door, hand: Hand) -> None:
    """What one that remembers may not have got: written once before, so it is never released for another taker."""
    with mesh.change() as change:
        again = deliveries.take_again(change, door.peer_id, door.holder)
    door.in_flight.update((one.delivery_id, one.trace) for one in again)
    await mesh.on_disk()
    await _write(mesh, door, again, hand)


async def _work(mesh: Mesh, door: Door, hand: Hand) -> None:
    """Until nothing waits in the mailbox or in the door."""
    unwritten = door.unwritten
    while True:
        if door.clear or door.items or unwritten:
            unwritten += _all_in(door)
            await mesh.db.on_disk()
        elif (left := door.retry_at - mesh.clock.now()) > 0:
            await door.nudge.wait(left)
        elif door.room(WINDOW) > 0:
            unwritten += _lease_for(mesh, door)
            await mesh.on_disk()
        else:
            await door.nudge.wait()
        if unwritten:
            await _write(mesh, door, unwritten, hand)
        elif door.clear and not door.items:
            return


def _all_in(door: Door) -> list[Delivery]:
    taken = list(door.items)
    door.items.clear()
    return taken


def _lease_for(mesh: Mesh, door: Door) -> list[Delivery]:
    """The next of the mailbox; when nothing is left there the door is clear."""
    most = door.room(WINDOW) if door.remembers else 1
    with mesh.change() as change:
        found = deliveries.lease(change, door.peer_id, door.holder, most)
        door.clear = not found
    if door.receipts:
        door.in_flight.update((one.delivery_id, one.trace) for one in found)
    elif found:
        door.unproved.append(change.now)
    return found


async def _write(mesh: Mesh, door: Door, batch: list[Delivery], hand: Hand) -> None:
    """Hand over a batch whose lease is on the disk; each that is written leaves the batch."""
    while batch:
        delivery = door.in_hand = batch.pop(0)  # while it is being written nothing proves that it was not
        done = await hand(delivery)
        if done is False:
            batch.insert(0, delivery)
            raise ConnectionResetError("the way ended")
        door.in_hand = None
        if done and door.way != "channel":  # of which `handed` is said at once, and which is no WebSocket
            mesh.announce("delivery.sent", **_sent(delivery))
        mesh.bus.publish(_written_topic(delivery.delivery_id))


def _sent(delivery: Delivery) -> dict[str, Any]:
    part_of = {} if delivery.trace == delivery.delivery_id else {"trace": delivery.trace}
    return {"delivery_id": delivery.delivery_id, **part_of, "verified": False}


class Flush:
    """Write, for the doors whose worker rests, what was put into them since: one wait for the disk serves them all.

    It is called when a turn is committed and when the disk has it, which costs less than a task that waits for both.
    What cannot be written at once is left to the worker, which can wait.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._doors: list[Door] = []  # which wait for the disk; what is put in from now on comes after them

    def begin(self) -> None:
        """Wait for the disk with what was put in, unless that is done already: then `_end` looks again."""
        if self._doors:
            return
        self._doors = self.mesh.doors.due.take()
        for door in self._doors:
            if door.resting and door.items:
                door.unwritten += door.items
                door.items.clear()
        self.mesh.db.when_on_disk(self._end)

    def _end(self, failure: BaseException | None) -> None:
        """A slice of the doors; others have their turn of the loop in between, such as the reply to a broadcast."""
        doors, self._doors = self._doors[:SLICE], self._doors[SLICE:]
        try:
            if failure is None:
                _write_at_once(self.mesh, doors)
        except Exception:
            log.exception("what was put into %d doors could not be written at once", len(doors))
        for door in doors:
            if door.unwritten:
                door.ring()
        if self._doors:
            asyncio.get_running_loop().call_soon(self._end, failure)
        else:
            self.mesh.doors.due.tell()


def _write_at_once(mesh: Mesh, doors: list[Door]) -> None:
    """No await in here: nobody sees an item that is neither in its door nor written."""
    written: list[Delivery] = []
    try:
        for door in doors:
            unwritten, at_once = door.unwritten, door.at_once
            while unwritten and door.resting and at_once is not None and at_once(unwritten[0]):
                written.append(unwritten.pop(0))
    finally:  # also where a door has a fault: whoever waits for what left before is told
        for delivery in written:
            if mesh.bus.heard(topic := _written_topic(delivery.delivery_id)):  # nobody waits for a broadcast's copy
                mesh.bus.publish(topic)
        _say_sent(mesh, written)


def _say_sent(mesh: Mesh, written: list[Delivery]) -> None:
    """A line for each message, and one for all copies of a broadcast that are written together.

    Where receipts are promised the line is put off for SENT_SECONDS: most come before, and a receipt says as much.
    """
    lines: list[tuple[str, dict[str, Any]]] = []
    copies: dict[str, list[Delivery]] = {}
    sent = mesh.doors.sent
    for delivery in written:
        if delivery.kind == "broadcast":
            copies.setdefault(delivery.trace, []).append(delivery)
        elif mesh.shared and (door := mesh.doors.of(delivery.peer_id)) is not None and door.receipts:
            sent[delivery.delivery_id] = (delivery.trace, mesh.clock.now(), time.monotonic())
        else:
            lines.append(("delivery.sent", _sent(delivery)))
    for trace, all_of_it in copies.items():
        facts = {"deliveries": [one.delivery_id for one in all_of_it], "peers": [one.peer_id for one in all_of_it]}
        lines.append(("broadcast.sent", {"trace": trace, **facts}))
    if lines:
        mesh.announce_all(lines)
    if sent:
        _note_in(mesh, SENT_SECONDS)


def _note_in(mesh: Mesh, seconds: float) -> None:
    """Note what is to be noted so soon, if nothing does it earlier."""
    loop, timer = asyncio.get_running_loop(), mesh.doors.noting
    if timer is None or timer.when() > loop.time() + seconds:
        if timer is not None:
            timer.cancel()
        mesh.doors.noting = loop.call_later(seconds, _note, mesh)


def _note(mesh: Mesh) -> None:
    """Note the receipts that came and say what was sent a while ago, and look again as long as there is more."""
    mesh.doors.noting = None
    receipts.note(mesh)
    if mesh.doors.sent:
        _note_in(mesh, max(0.0, receipts.unsaid_until(mesh) - time.monotonic()))


def stall(mesh: Mesh, door: Door) -> None:
    """The far end does not read: nobody waits for what stands before it any more, and new mail queues."""
    door.stalled, door.clear = True, False
    _wake(mesh, door)


def _wake(mesh: Mesh, door: Door) -> None:
    """Whoever waits for something in the door looks at it now."""
    for delivery in (door.in_hand, *door.unwritten, *door.items):
        if delivery is not None:
            mesh.bus.publish(_written_topic(delivery.delivery_id))


def _shut(mesh: Mesh, door: Door) -> None:
    """The worker ends: nothing goes into the door any more, and what did not leave it goes back."""
    door.resting = False
    mesh.doors.close(door)
    mesh.commit()  # what was leased to the door in this turn is put into it now
    door.stalled = True  # for who still waits: it was not written
    _wake(mesh, door)
    unwritten = door.unwritten + _all_in(door)
    with mesh.change() as change:
        receipts.take(change)
        if unwritten:
            deliveries.release(change, unwritten, "way_closed")
        if not door.remembers:
            deliveries.lost(change, door.peer_id, door.holder, tuple(door.in_flight), door.unproved)
        if door.handed_at is not None:
            change.db.execute("UPDATE peers SET handed_at = ? WHERE peer_id = ?", (door.handed_at, door.peer_id))


async def written(mesh: Mesh, delivery: Delivery) -> Delivery:
    """Wait until a message for a reachable peer is written to its transport, so that the reply may say so.

    A peer that does not read, or has much to read first, is not waited for longer than WRITE_SECONDS: the message stays
    in the mailbox and the reply says that.
    """
    with mesh.bus.listen(_written_topic(delivery.delivery_id)) as nudge:
        return await _until_written(mesh, delivery, nudge)


async def all_written(mesh: Mesh, batch: Sequence[Delivery]) -> list[Delivery]:
    """`written` for several at once. Listens to all of them before any other task runs."""
    with ExitStack() as listening:
        nudges = [listening.enter_context(mesh.bus.listen(_written_topic(one.delivery_id))) for one in batch]
        waiting = (_until_written(mesh, one, nudge) for one, nudge in zip(batch, nudges, strict=True))
        return await asyncio.gather(*waiting)


async def _until_written(mesh: Mesh, delivery: Delivery, nudge: Nudge) -> Delivery:
    door = mesh.doors.of(delivery.peer_id)
    if door is None:
        await mesh.committed()
        return delivery
    if delivery.state == QUEUED and (door.stalled or door.room(WINDOW) <= 0 or door.retry_at > mesh.clock.now()):
        await mesh.committed()  # its turn is not soon, and nothing is gained by waiting for it
        return delivery
    # Straight through: the worker writes it, stalls or ends, and rings in each case, and so does the loss of the turn.
    mesh.ring_if_lost(nudge)
    rung = await nudge.wait(None if delivery.state == LEASED else WRITE_SECONDS)
    await mesh.committed()
    if rung and not door.stalled and door.way != "channel":  # whose hand knows more than that it was written
        straight = delivery.state == LEASED and delivery.reason is None
        return delivery if straight else delivery._replace(state=LEASED, reason=None)
    found = deliveries.load(mesh.db.conn, delivery.delivery_id)  # the way may have ended in the middle of a write
    return found if found.state != LEASED else delivery._replace(state=QUEUED, reason="slow_reader")


def _written_topic(delivery_id: str) -> str:
    return f"written:{delivery_id}"


# -- receipts ------------------------------------------------------------------


def injected(mesh: Mesh, door: Door, delivery_id: str) -> bool:
    """The receipt that comes for nearly every message: noted together with its neighbours, soon.

    False when the door knows of no such delivery, which `receipt` then looks up. A crash before it is noted leaves a
    weaker word than the truth, never a stronger one.
    """
    trace = door.receipted(delivery_id)
    if trace is None:
        return False
    mesh.doors.sent.pop(delivery_id, None)
    came = mesh.doors.receipts
    came.append((delivery_id, trace, door))
    if not mesh.shared:
        receipts.note(mesh)
    elif len(came) == 1:
        _note_in(mesh, LATE_SECONDS)
    return True
