"""Any other program in a pane: nothing is known of it but what can be seen, that its screen stands still.

What was typed there is `handed` when the screen showed it and Enter was pressed once; that it was read nobody says. A
command interpreter at its prompt is none of these programs: it would run what it is told.
"""

from collections.abc import Sequence

from repowire.agents.claude_code import Screen

STEADY_SECONDS = 1.0  # between two looks that must show the same, before anything is typed
INTERPRETERS = ("sh", "bash", "zsh", "fish", "dash", "ksh", "csh", "tcsh", "ash", "nu", "pwsh", "elvish", "xonsh")


def screen(capture: str) -> Screen:
    """Whatever it shows may be its prompt; whether it stands still, two looks must tell."""
    return Screen("ready", "")


def interprets(name: str, arguments: Sequence[str]) -> bool:
    """Whether it is a shell that reads commands from its terminal; one that runs a script is that script."""
    return name.lstrip("-") in INTERPRETERS and all(word.startswith("-") for word in arguments[1:])
