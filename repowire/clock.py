"""Time and ids, injected so that every rule can be tested with a clock that stands still.

`now()` is unix seconds UTC; ISO-8601 exists only on the wire. Nothing else calls `time.time()`.
"""

import asyncio
import itertools
import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """What a rule may know of time."""

    def now(self) -> float:
        """Unix seconds, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that no setting of the clock moves; since when, the machine says."""
        ...

    async def sleep(self, seconds: float) -> None:
        """The only sleep."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_ORDINALS = itertools.count(secrets.randbits(24))


def new_id(prefix: str) -> str:
    """`ask-9f3c0a7d21be`: the prefix is the noun, then 12 hex digits (wire.md 16, row 31), never the same twice.

    Six digits are the quarter of a second (they come round after 48 days), six an ordinal with a random start:
    neighbours in time are neighbours in an index, so that a commit touches one page of it and not one a message.
    """
    return f"{prefix}-{int(time.time() * 4) & 0xFFFFFF:06x}{next(_ORDINALS) & 0xFFFFFF:06x}"


def new_ids(prefix: str, count: int) -> list[str]:
    """So many at once."""
    head = f"{prefix}-{int(time.time() * 4) & 0xFFFFFF:06x}"
    return [f"{head}{ordinal & 0xFFFFFF:06x}" for ordinal in itertools.islice(_ORDINALS, count)]
