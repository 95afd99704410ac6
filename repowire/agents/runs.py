"""How each agent is started and resumed: the names of its program, and the words that go on with a session.

Facts of the versions that were run (Claude Code 2.1.330, codex 0.169, gemini-cli 0.61, opencode 1.18, pi 0.73).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """What is known of starting one kind of agent."""

    programs: tuple[str, ...]  # what its command is called
    resume: tuple[str, ...] = ()  # before the session's id; empty where it cannot be resumed
    tells: bool = True  # by hooks, or by being found: whether it says of itself that it is there

    def resumed(self, session: str) -> list[str]:
        """The arguments that go on with a session; [] where that cannot be done."""
        return [*self.resume, session] if self.resume else []


RUNS = {
    "claude-code": Run(("claude",), ("--resume",)),
    "codex": Run(("codex",), ("resume",)),
    "gemini": Run(("gemini",), ("--resume",)),
    "opencode": Run(("opencode",), ("-s",)),
    "pi": Run(("pi",), ("--session",)),
    "antigravity": Run(("antigravity", "agy"), tells=False),
}

# What a session may be called that is put into a command line: no option, no path, and nothing to be searched for
SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

# By these an agent knows that it runs inside another one; they are of whoever started the tmux server.
OF_ANOTHER = (
    "CLAUDECODE",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_CHILD_SESSION",
    "CLAUDE_CODE_SESSION_ATTENDED",
    "CLAUDE_CODE_MESSAGING_SOCKET",
    "CLAUDE_CODE_MESSAGING_TOKEN",
    "CLAUDE_CODE_CHILD_NOTES_DIR",
    "CLAUDE_PROJECT_DIR",
    "CLAUDE_ENV_FILE",
    "CLAUDE_EFFORT",
    "CLAUDE_PID",
    "AI_AGENT",
    "CODEX_THREAD_ID",
    "CODEX_SESSION_ID",
    "GEMINI_CLI",
    "GEMINI_SESSION_ID",
    "GEMINI_PROJECT_DIR",
    "OPENCODE",
    "OPENCODE_PID",
)


def by_program(words: Sequence[str]) -> str | None:
    """The kind of agent that a command line starts, by its program's name."""
    name = words[0].rpartition("/")[2] if words else ""
    return next((backend for backend, run in RUNS.items() if name in run.programs), None)
