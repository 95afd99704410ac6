"""Intake: how a message comes into a mailbox, or straight through the open door of its peer."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

from repowire import deliveries
from repowire.clock import new_id, new_ids
from repowire.deliveries import WINDOW, Delivery
from repowire.doors import Door
from repowire.errors import Refusal, too_many
from repowire.frames import encode, packed
from repowire.mesh import Change
from repowire.protocol import HELD, HELD_BY_USER, LEASED, QUEUED

_INSERT = f"INSERT INTO deliveries VALUES ({', '.join('?' * len(Delivery._fields))})"
_INSERT_ALL = """
INSERT INTO deliveries SELECT NULL, json_extract(value, '$[0]'), json_extract(value, '$[1]'), ?, ?, ?, ?, 'leased',
    NULL, ?, ?, json_extract(value, '$[2]'), ?, 1, NULL, NULL, NULL, NULL, NULL FROM json_each(?)
"""  # what differs between the copies, as one value: binding every column of each costs as much again as the rows


def queue(
    change: Change,
    peer_id: str,
    frame: dict[str, Any],
    *,
    trace: str | None = None,
    from_peer_id: str | None = None,
    expires_at: float,
    most: int,
    notice: bool = False,
) -> Delivery:
    """Put a frame into a mailbox, behind what is there; 429 `queue_full` when `most` wait already.

    Where a door is open and nothing waits before it, the message is leased at once and goes straight through. When it
    dies its sender is told, save of a `notice`, which tells of another one itself.
    """
    told_at = change.now if notice else None
    delivery = _drafted(change, peer_id, frame["type"], encode(frame), trace, from_peer_id, expires_at, most, told_at)
    change.db.execute(_INSERT, _stored(delivery))
    _put(change, change.mesh.doors.of(peer_id), delivery)
    return delivery


def queue_all(
    change: Change,
    peer_ids: Collection[str],
    frame: dict[str, Any],
    *,
    trace: str,
    from_peer_id: str | None,
    expires_at: float,
    most: int,
) -> tuple[list[Delivery], list[tuple[str, Refusal]]]:
    """`queue` of one frame for several: their deliveries, and whose mailbox refused it. One statement for them all."""
    text, kind, now = encode(frame), frame["type"], change.now
    doors = change.mesh.doors
    made: list[Delivery] = []
    straight: list[tuple[Door, Delivery]] = []
    copies: list[tuple[str, str, str]] = []
    refused: list[tuple[str, Refusal]] = []
    for peer_id, delivery_id in zip(peer_ids, new_ids("notif-delivery", len(peer_ids)), strict=True):
        door = doors.of(peer_id)
        if door is not None and door.straight(WINDOW) and peer_id not in doors.locked:
            row = (0, delivery_id, peer_id, kind, trace, from_peer_id, text, LEASED, None, now, expires_at, door.holder)
            delivery = Delivery._make((*row, now, 1, None, None, None, None, None))
            copies.append((delivery_id, peer_id, door.holder))
            straight.append((door, delivery))
            _expect(door, delivery)
        else:
            try:
                delivery = _drafted(change, peer_id, kind, text, trace, from_peer_id, expires_at, most, None)
            except Refusal as refusal:
                refused.append((peer_id, refusal))
                continue
            change.db.execute(_INSERT, _stored(delivery))
            _put(change, door, delivery)
        made.append(delivery)
    alike = (kind, trace, from_peer_id, packed(text, trace), now, expires_at, now)
    change.db.execute(_INSERT_ALL, (*alike, encode(copies)))
    change.after(partial(_put_straight, straight))
    return made, refused


def _drafted(
    change: Change,
    peer_id: str,
    kind: str,
    text: str,
    trace: str | None,
    from_peer_id: str | None,
    expires_at: float,
    most: int,
    told_at: float | None,
) -> Delivery:
    """The row that is to be: leased where the door stands open, else queued; 429 when the mailbox is full."""
    door, locked = change.mesh.doors.of(peer_id), peer_id in change.mesh.doors.locked
    straight = door is not None and not locked and door.straight(WINDOW)
    if not straight and deliveries.depth(change.db, peer_id) >= most:
        raise too_many(
            "queue_full",
            f"{most} messages wait for this peer already; try again when it has read some",
            peer_id=peer_id,
            limit=most,
        )
    delivery_id = new_id("ask-delivery" if kind == "ask" else "notif-delivery")
    return Delivery(
        0,
        delivery_id,
        peer_id,
        kind,
        trace or delivery_id,
        from_peer_id,
        text,
        LEASED if straight else HELD if locked else QUEUED,
        HELD_BY_USER if locked else None if door else "recipient_offline",
        created_at=(now := change.now),
        expires_at=expires_at,
        leased_by=door.holder if door and straight else None,
        leased_at=now if straight else None,
        attempts=int(straight),
        handed_at=None,
        seen_at=None,
        closed_at=None,
        told_at=told_at,
    )


def _put(change: Change, door: Door | None, delivery: Delivery) -> None:
    """Into the peer's door, where it is open: the message itself after the commit, or word that it waits."""
    if door is None:
        return
    if delivery.state == LEASED:
        _expect(door, delivery)
        change.after(partial(_put_straight, ((door, delivery),)))
    else:
        door.clear = False  # at once: what comes in the same turn queues behind it
        change.after(door.mail)


def _expect(door: Door, delivery: Delivery) -> None:
    """A receipt, where one is promised; published hooks receipt no broadcast."""
    if door.remembers or (door.receipts and delivery.kind != "broadcast"):
        door.in_flight[delivery.delivery_id] = delivery.trace
    elif delivery.leased_at is not None:
        door.unproved.append(delivery.leased_at)


def _put_straight(straight: Iterable[tuple[Door, Delivery]]) -> None:
    for door, delivery in straight:
        door.put(delivery)


def straight_by(delivery: Delivery) -> str | None:
    """Who was given a new message at once, as its event says it: of a plain socket that it was one, which is enough."""
    by = delivery.leased_by
    return "socket" if by is not None and by.startswith("socket:") else by


def tell(change: Change, delivery: Delivery, *, leased: bool = False) -> None:
    """How a new message stands: that it waits, or, where no other event says so, that it was `leased` at once.

    To be told after the event that the message came of, since a trace is read in that order.
    """
    if delivery.state == QUEUED and delivery.reason is not None:
        deliveries.say(change, "queued", delivery, delivery.reason)
    elif delivery.state == HELD:
        deliveries.say(change, "held", delivery, delivery.reason)
    elif delivery.state == LEASED and leased:
        deliveries.say(change, "leased", delivery, by=delivery.leased_by)


def _stored(delivery: Delivery) -> tuple[Any, ...]:
    """The row to insert: a trace of its own is empty, and the frame is short."""
    _, delivery_id, peer_id, kind, trace, from_peer_id, frame, *rest = delivery
    own = trace == delivery_id
    return (None, delivery_id, peer_id, kind, "" if own else trace, from_peer_id, packed(frame, trace), *rest)
