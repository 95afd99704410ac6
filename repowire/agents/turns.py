"""What each kind of agent writes down of its sessions, and where: the readers, one a kind."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repowire.agents import claude_code_turns, codex, gemini, pi
from repowire.agents.turns_model import Turn

__all__ = ["READERS", "Reader", "Turn"]


class Reader(NamedTuple):
    """How to read one kind of transcript."""

    turn: Callable[[Mapping[str, Any]], Turn | None]  # what a line says, if it is of a turn
    find: Callable[[str | None, str | None], str | None]  # by session and by folder; reads the disk


READERS = {
    "claude-code": Reader(claude_code_turns.turn, claude_code_turns.find),
    "codex": Reader(codex.turn, codex.find),
    "gemini": Reader(gemini.turn, gemini.find),
    "pi": Reader(pi.turn, pi.find),
}
