"""A turn, as every agent's reader gives it."""

from typing import Any, NamedTuple


class Turn(NamedTuple):
    """What was said, by whom and when; lines with the same `part` are one turn, or with `whole` each says all of it."""

    role: str  # user | assistant
    text: str
    at: str | None  # ISO-8601, as the runtime wrote it
    turn_id: str | None
    tool_calls: tuple[dict[str, Any], ...] = ()
    part: str | None = None
    whole: bool = False
