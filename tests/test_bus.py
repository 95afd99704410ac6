"""bus.py: topics to nudges; a nudge that rang before it was waited for is not lost."""

import asyncio

from repowire.bus import Bus


async def test_a_nudge_that_rang_before_the_wait_is_kept():
    bus = Bus()
    with bus.listen("ask-1") as nudge:
        bus.publish("ask-1")
        assert await nudge.wait(0.0) is True
        assert await nudge.wait(0.0) is False


async def test_only_listeners_of_the_topic_wake():
    bus = Bus()
    with bus.listen("a") as a, bus.listen("b") as b, bus.listen("*") as every:
        bus.publish("a")
        assert (await a.wait(0.0), await b.wait(0.0), await every.wait(0.0)) == (True, False, True)


async def test_a_waiter_wakes_at_the_publish():
    bus = Bus()
    with bus.listen("a") as nudge:
        waiting = asyncio.create_task(nudge.wait(5))
        await asyncio.sleep(0)
        bus.publish("a")
        assert await waiting is True


async def test_who_left_is_not_heard():
    bus = Bus()
    with bus.listen("a"):
        assert bus.heard("a")
    assert not bus.heard("a")


async def test_closing_wakes_everybody():
    bus = Bus()
    with bus.listen("a") as nudge:
        waiting = asyncio.create_task(nudge.wait(5))
        await asyncio.sleep(0)
        bus.close()
        assert await waiting is True
    assert bus.closed
