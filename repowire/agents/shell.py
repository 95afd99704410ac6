"""Any other program in a pane: nothing is known of it but what can be seen, that its screen stands still.

What was typed there is `handed` when the screen showed it and Enter was pressed once; that it was read nobody says. A
command interpreter at its prompt is none of these programs: it would run what it is told.
"""

import re
from collections.abc import Sequence

from repowire.agents.claude_code import Screen

STEADY_SECONDS = 1.0  # between two looks that must show the same, before anything is typed
INTERPRETERS = ("sh", "bash", "zsh", "fish", "dash", "ksh", "csh", "tcsh", "ash", "nu", "pwsh", "elvish", "xonsh")
LANGUAGES = re.compile(r"python[\d.]*|pypy[\d.]*|node|deno|bun|lua[\d.]*|julia|R|php|perl|ruby")
ONLY_PROMPTS = ("ipython", "ipython3", "bpython", "ptpython", "irb", "pry", "ghci", "iex")
# options whose next word is no script, of shells and of languages
WITH_VALUE = (
    "-o",
    "+o",
    "-O",
    "+O",
    "-C",
    "--rcfile",
    "--init-file",
    "--init-command",
    "--config",
    "--env-config",
    "--rc",
)
WITH_VALUE_TOO = ("-W", "-X", "--require")


def screen(capture: str) -> Screen:
    """Whatever it shows may be its prompt; whether it stands still, two looks must tell."""
    return Screen("ready", "")


def interprets(name: str, arguments: Sequence[str]) -> bool:
    """Whether it runs what is typed: a shell or a language at its prompt. One that runs a script is that script."""
    name = name.lstrip("-")
    if name in ONLY_PROMPTS:
        return True
    if name not in INTERPRETERS and not LANGUAGES.fullmatch(name):
        return False
    words, with_value = iter(arguments[1:]), WITH_VALUE if name in INTERPRETERS else WITH_VALUE_TOO
    for word in words:
        if word in ("-i", "-s") or word.lower() == "-noexit":
            return True
        if word in with_value:
            next(words, None)
        elif not word.startswith(("-", "+")):
            return False
    return True
