"""What is known of each agent program: facts and pure functions, one module an agent.

What an agent's screen shows is answered by a row of a table; where nothing is known the answer is `unknown`, and
whoever asks does nothing.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from repowire.agents import claude_code, shell
from repowire.agents.claude_code import Screen

__all__ = ["ROWS", "SESSION_VARIABLES", "Row", "Screen", "backend_of", "row", "runs_scripts", "screen"]


class Row(NamedTuple):
    """What can be told about one backend's pane."""

    screen: Callable[[str], Screen]  # from a capture with its colours
    holds: Callable[[str, str, bool], bool]  # whether a box holds exactly this text
    submitted: Callable[[str, str], bool]  # whether a capture shows the block of this code as a prompt that was sent
    status: Callable[[str | None], str | None]  # what the agent says of itself in its registry file
    steady_seconds: float = 0.0  # what its screen shows must stand still for so long before anything is typed
    plain: bool = False  # it is not known how a text stands in its box: Enter once, when the screen shows it


ROWS = {
    "claude-code": Row(claude_code.screen, claude_code.holds, claude_code.submitted, claude_code.registry_status),
    "shell": Row(
        shell.screen,
        lambda box, text, fresh: False,
        lambda capture, code: False,
        lambda path: "idle",
        steady_seconds=shell.STEADY_SECONDS,
        plain=True,
    ),
}
NOTHING_KNOWN = Row(
    lambda capture: Screen("unknown", ""),
    lambda box, text, fresh: False,
    lambda capture, code: False,
    lambda path: None,
)
# The variable by which all that an agent starts knows the agent's session
SESSION_VARIABLES = {"claude-code": "CLAUDE_CODE_SESSION_ID"}


def row(backend: str) -> Row:
    """The backend's row; for one of which nothing is known, one that knows nothing."""
    return ROWS.get(backend, NOTHING_KNOWN)


def screen(backend: str, capture: str) -> Screen:
    """What the pane of such an agent shows."""
    return row(backend).screen(capture)


# -- which program it is -----------------------------------------------------------

# The agents' programs by name, and the packages whose script an interpreter runs
PROGRAMS = {
    "claude": "claude-code",
    "claude.exe": "claude-code",
    "codex": "codex",
    "gemini": "gemini",
    "opencode": "opencode",
    "antigravity": "antigravity",
    "pi": "pi",
}
PACKAGES = {
    "claude-code": "claude-code",
    "gemini-cli": "gemini",
    "opencode-ai": "opencode",
    "pi-coding-agent": "pi",
}
INTERPRETER = re.compile(r"node(js)?|bun|deno|python[\d.]*|MainThread")  # the last is how node calls itself at times


def runs_scripts(name: str) -> bool:
    """Whether a program of this name runs another one, which its arguments name."""
    return INTERPRETER.fullmatch(name) is not None


def backend_of(name: str, arguments: Sequence[str] = ()) -> str | None:
    """The agent that a process seems to be, by its program's name and, where that runs a script, by the script."""
    if name in PROGRAMS:
        return PROGRAMS[name]
    script = next((word for word in arguments[1:] if not word.startswith("-")), None)
    if script is None or not runs_scripts(name):
        return None
    program = re.sub(r"\.[cm]?js$", "", os.path.basename(script))
    of_package = (PACKAGES[part] for part in script.split("/") if part in PACKAGES)
    return PROGRAMS.get(program) or next(of_package, None)
