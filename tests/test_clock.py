"""clock.py: the moments and ids that everything else is given."""

import asyncio
import itertools
import re
import subprocess
import sys
import time

import pytest

from repowire import clock
from repowire.clock import SystemClock, new_id


def test_an_id_is_its_noun_and_twelve_hex_digits():
    for noun in ("ask", "notif-delivery", "repow-red"):
        assert re.fullmatch(rf"{noun}-[0-9a-f]{{12}}", new_id(noun))


def test_a_hundred_thousand_ids_are_all_different():
    assert len({new_id("ask") for _ in range(100_000)}) == 100_000


def test_ids_are_sorted_by_the_time_of_their_making(monkeypatch):
    monkeypatch.setattr(clock, "_ORDINALS", itertools.count())
    at = itertools.count(1_750_000_000 * 1000)
    monkeypatch.setattr(clock.time, "time", lambda: next(at) / 1000)  # a millisecond each
    made = [new_id("ask") for _ in range(100_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_differ_where_the_time_stands_still_and_the_ordinal_comes_round(monkeypatch):
    monkeypatch.setattr(clock, "_ORDINALS", itertools.count(0xFFFFFF - 500))
    monkeypatch.setattr(clock.time, "time", lambda: 1_750_000_000.0)
    made = [new_id("ask") for _ in range(1_000)]
    assert len(set(made)) == 1_000
    assert {len(one) for one in made} == {16}


def test_another_process_begins_elsewhere():
    code = "from repowire.clock import new_id; print(new_id('x')[-6:])"
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(2))
    assert first.stdout != second.stdout


async def test_the_machines_clock_is_unix_seconds_and_sleeps():
    system = SystemClock()
    before, steady = time.time(), time.monotonic()
    assert before <= system.now() <= time.time()
    await asyncio.wait_for(system.sleep(0.01), 5)
    assert time.monotonic() - steady >= 0.009


async def test_the_clock_of_the_tests_moves_only_when_told(clock):
    order, at = [], clock.now()

    async def sleeper(seconds):
        await clock.sleep(seconds)
        order.append(seconds)

    sleeping = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2)]
    await asyncio.sleep(0)
    assert (clock.now(), clock.sleeping, order) == (at, 3, [])
    clock.advance(2)
    await asyncio.wait(sleeping[1:])
    assert (order, clock.now(), sleeping[0].done()) == ([1, 2], at + 2, False)
    clock.advance(1)
    await asyncio.wait_for(sleeping[0], 5)
    assert clock.sleeping == 0


@pytest.mark.parametrize("seconds", [0, -1])
async def test_a_sleep_of_nothing_lets_the_others_run(clock, seconds):
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await clock.sleep(seconds)
    assert ran == [1]
