"""What is known of each agent program: facts and pure functions, one module an agent.

What an agent's screen shows is answered by a row of a table; where nothing is known the answer is `unknown`, and
whoever asks does nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from repowire.agents import claude_code
from repowire.agents.claude_code import Screen

__all__ = ["ROWS", "Row", "Screen", "row", "screen"]


class Row(NamedTuple):
    """What can be told about one backend's pane."""

    screen: Callable[[str], Screen]  # from a capture with its colours
    holds: Callable[[str, str, bool], bool]  # whether a box holds exactly this text
    submitted: Callable[[str, str], bool]  # whether a capture shows the block of this code as a prompt that was sent
    status: Callable[[str | None], str | None]  # what the agent says of itself in its registry file


ROWS = {
    "claude-code": Row(claude_code.screen, claude_code.holds, claude_code.submitted, claude_code.registry_status),
}
NOTHING_KNOWN = Row(
    lambda capture: Screen("unknown", ""),
    lambda box, text, fresh: False,
    lambda capture, code: False,
    lambda path: None,
)


def row(backend: str) -> Row:
    """The backend's row; for one of which nothing is known, one that knows nothing."""
    return ROWS.get(backend, NOTHING_KNOWN)


def screen(backend: str, capture: str) -> Screen:
    """What the pane of such an agent shows."""
    return row(backend).screen(capture)
