"""The bus: topics to nudges, and the only home of futures.

A topic is an event's kind or an id among its facts. A nudge carries nothing and is never queued, so nothing can
overflow and a lost one costs a second look at the table, never an answer. To wait for a fact: listen, look, wait.
"""

import asyncio

EVERYTHING = "*"


class Nudge:
    """One listener's bell. Rung before it is waited for, it stays rung until the next `wait`."""

    __slots__ = ("_future", "_rung")

    def __init__(self) -> None:
        self._rung = False
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the waiter, or the next one."""
        self._rung = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until rung, at most `seconds`; True when it was rung. Clears the bell. One waiter at a time."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            # a plain timer: asyncio.timeout costs as much again as all the rest of a nudge
            timer = loop.call_later(seconds, self._give_up) if seconds is not None else None
            try:
                await self._future
            finally:
                self._future = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung

    def _give_up(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Bus:
    """Publish and listen by topic; used on the loop's thread only."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Nudge]] = {}
        self.closed = False

    def close(self) -> None:
        """The daemon stops: everybody is woken, and whoever waits in a request looks at `closed`."""
        self.closed = True
        for heard in list(self._listeners.values()):
            for nudge in heard:
                nudge.ring()

    def publish(self, *topics: str) -> None:
        """Ring everybody who listens to one of the topics. Never raises."""
        for topic in topics:
            for nudge in self._listeners.get(topic, ()):
                nudge.ring()
        for nudge in self._listeners.get(EVERYTHING, ()):
            nudge.ring()

    def listen(self, *topics: str) -> "Listening":
        """`with bus.listen(topic) as nudge:` a nudge that rings for the topics as long as the block lasts."""
        return Listening(self._listeners, topics)

    def heard(self, topic: str) -> bool:
        """Whether somebody listens to the topic now."""
        return topic in self._listeners

    def hearers(self, topic: str) -> int:
        """How many listen to the topic now."""
        return len(self._listeners.get(topic, ()))


class Listening:
    """The `with` of `Bus.listen`; a class, since a generator costs more than what it does."""

    __slots__ = ("_listeners", "_nudge", "_topics")

    def __init__(self, listeners: dict[str, set[Nudge]], topics: tuple[str, ...]) -> None:
        self._listeners, self._topics = listeners, topics

    def __enter__(self) -> Nudge:
        self._nudge = Nudge()
        for topic in self._topics:
            self._listeners.setdefault(topic, set()).add(self._nudge)
        return self._nudge

    def __exit__(self, *_: object) -> None:
        for topic in self._topics:
            heard = self._listeners[topic]
            heard.discard(self._nudge)
            if not heard:
                del self._listeners[topic]
