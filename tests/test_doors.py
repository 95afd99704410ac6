"""doors.py: a door is passed in order, takes no more than its window, and is closed only by itself."""

import pytest

from repowire.doors import Door, Doors


def clear(**fields):
    door = Door("p1", "h1", **fields)
    door.clear = True
    return door


async def test_what_is_put_into_a_door_stays_in_order_and_rings():
    door = Door("p1", "h1")
    for n in range(5):
        door.put(n)
    assert await door.nudge.wait(0) is True
    assert list(door.items) == list(range(5))
    assert await door.nudge.wait(0) is False


def test_a_new_message_goes_straight_through_a_clear_door_only():
    door = Door("p1", "h1")
    assert door.straight(32) is False
    door.clear = True
    assert door.straight(32) is True
    door.stalled = True
    assert door.straight(32) is False


async def test_mail_makes_a_door_unclear_and_rings():
    door = clear()
    door.mail()
    assert door.straight(32) is False
    assert await door.nudge.wait(0) is True


def test_who_remembers_is_sent_no_more_than_the_window_ahead_of_its_receipts():
    door = clear(remembers=True, receipts=True)
    for n in range(3):
        assert (door.room(3), door.straight(3)) == (3 - n, True)
        door.in_flight[f"d{n}"] = f"t{n}"
    assert (door.room(3), door.straight(3)) == (0, False)
    assert door.receipted("d1") == "t1"
    assert (door.room(3), door.straight(3)) == (1, True)


def test_who_remembers_nothing_is_not_held_to_the_window():
    door = clear(receipts=True)
    door.in_flight.update((f"d{n}", "t") for n in range(50))
    assert (door.room(3), door.straight(3)) == (3, True)


async def test_a_door_is_drained_when_no_receipt_is_owed_or_after_a_time(monkeypatch):
    now, drained = 100.0, []
    monkeypatch.setattr("repowire.doors.time.monotonic", lambda: now)
    door = clear(remembers=True, receipts=True)
    door.in_flight.update(d1="t1", d2="t2")
    assert door.drain(lambda: drained.append("drained"), 10.0) is False
    assert (door.room(32), door.straight(32)) == (0, False)
    door.receipted("d1")
    assert (drained, door.drain(lambda: drained.append("again"), 10.0)) == ([], False)
    now = 111.0
    assert door.drain(lambda: drained.append("again"), 10.0) is True
    door.receipted("d2")
    assert (drained, door.straight(32)) == (["again"], False)
    door.go_on()
    assert (door.straight(32), await door.nudge.wait(0)) == (True, True)
    door.go_on()
    assert await door.nudge.wait(0) is False


@pytest.mark.parametrize("is_clear", [True, False])
async def test_a_receipt_wakes_the_worker_where_mail_may_wait(is_clear):
    door = clear(remembers=True)
    door.clear = is_clear
    door.in_flight["d1"] = "t1"
    assert door.receipted("d1") == "t1"
    assert await door.nudge.wait(0) is not is_clear


def test_a_receipt_that_comes_twice_or_for_nothing_has_no_trace():
    door = clear()
    door.in_flight["d1"] = "t1"
    assert [door.receipted(one) for one in ("d1", "d1", "d2")] == ["t1", None, None]


def test_a_newer_door_of_a_peer_is_not_closed_by_the_end_of_the_older():
    doors, old, new = Doors(), Door("p1", "h1"), Door("p1", "h2")
    doors.open(old)
    doors.open(new)
    doors.close(old)
    assert doors.of("p1") is new
    doors.close(new)
    doors.close(new)
    assert doors.of("p1") is None


def test_the_doors_can_be_closed_while_they_are_looked_through():
    doors = Doors()
    for n in range(3):
        doors.open(Door(f"p{n}", "h"))
    for door in doors:
        doors.close(door)
    assert list(doors) == []
