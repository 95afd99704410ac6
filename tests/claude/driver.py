"""Real Claude Codes in a real tmux: a user's HOME in which no dialog comes at start, and one Claude in one pane of it.

Nothing of the caller's environment reaches a Claude (`env -i`), and it talks to nobody but the scripted model on
loopback. Nothing here waits for a duration: `until` with a condition on the screen, the registry file, the transcript.
"""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TmuxServer, gone, until

from claude.model import Model

NEWEST, WITHOUT_INBOX = "2.1.330", "2.1.197"
CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 30.0  # a start takes 1.5 s; four at once on two busy cores take longer
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EMPTY_BOX = re.compile(r"^─{20,}.*\n❯[\s\u00a0]*\n─{20,}", re.MULTILINE)
BOX = re.compile(r"^─{20,}.*\n(❯.*(?:\n(?!─{20,}).*)*)\n─{20,}", re.MULTILINE)


def binary(version: str) -> Path:
    """The program; skips the test with a line that says how to get it."""
    found = CHECKOUT / ".agents" / f"claude-{version}" / "node_modules" / ".bin" / "claude"
    if not found.exists():
        pytest.skip(f"Claude Code {version} is not installed here: `make agents` gets it")
    return found


class User:
    """A HOME of its own with everything answered that Claude Code asks a new user."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder, self.model = folder, model
        self.home = folder / "user"
        (self.home / ".claude").mkdir(parents=True)
        (folder / "tmp").mkdir()
        self.state = self.home / ".claude.json"
        self.settings = self.home / ".claude" / "settings.json"
        self.write(self.settings, SETTINGS)
        self.write(self.state, STATE)

    @staticmethod
    def write(file: Path, content: dict[str, Any]) -> None:
        file.write_text(json.dumps(content, indent=2) + "\n")

    @staticmethod
    def read(file: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def key(self, name: str) -> str:
        """A made-up key that names its Claude to the scripted model."""
        return f"sk-ant-api03-{'made-up-' * 3}{name}"

    def trust(self, name: str) -> Path:
        """A project folder for one Claude, trusted, and its key approved; before that Claude starts."""
        project = self.folder / name
        project.mkdir()
        state = self.read(self.state)
        answered = {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
        state["projects"][str(project)] = {**answered, "projectOnboardingSeenCount": 9, "allowedTools": []}
        state["customApiKeyResponses"]["approved"].append(self.key(name)[-20:])
        self.write(self.state, state)
        return project

    def change_settings(self, **settings: Any) -> None:
        self.write(self.settings, {**self.read(self.settings), **settings})

    def environ(self, name: str) -> dict[str, str]:
        """All that a Claude of this user gets, besides what tmux tells it."""
        return {
            **ENVIRON,
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_RUNTIME_DIR": str(self.folder / "tmp"),
            "ANTHROPIC_API_KEY": self.key(name),
            "ANTHROPIC_BASE_URL": self.model.url,
        }


class Claude:
    """One Claude Code in one pane. `start` again after it ended goes on in a new pane."""

    def __init__(self, tmux: TmuxServer, user: User, name: str, version: str = NEWEST) -> None:
        self.tmux, self.user, self.name, self.version = tmux, user, name, version
        self.binary = binary(version)
        self.project = user.trust(name)
        self.pane, self.pid = "", 0

    def start(self, *arguments: str, bypass: bool = True, ready: bool = True, **environ: str) -> "Claude":
        """Start it in a new window, and unless told otherwise wait until its empty input box is there."""
        assert not self.pid or gone(self.pid), "it runs already"
        settings = {**self.user.environ(self.name), **environ}
        given = " ".join(f"{key}={shlex.quote(value)}" for key, value in settings.items())
        asked = [str(self.binary), *(["--dangerously-skip-permissions"] if bypass else []), *arguments]
        tmux_facts = 'TMUX="$TMUX" TMUX_PANE="$TMUX_PANE"'
        line = f"exec env -i {tmux_facts} {given} {shlex.join(asked)}"
        self.tmux.run("set-option", "-g", "remain-on-exit", "on")
        self.pane = self.tmux.window("/bin/sh", "-c", line, cwd=self.project)
        self.pid = self.tmux.pid(self.pane)
        if ready:
            self.until(self.idle, "it started")
        return self

    # -- what it shows

    def screen(self) -> str:
        """The visible part of the pane."""
        return self.tmux.run("capture-pane", "-p", "-t", self.pane)

    def shows(self, text: str) -> bool:
        """The text is somewhere in the pane or its history; spaces and line ends do not count."""
        return squeezed(text) in squeezed(self.tmux.screen(self.pane))

    def box(self) -> str | None:
        """What stands in the input box; None when there is no box (a dialog is open, or it has not started)."""
        found = BOX.findall(self.screen())
        return found[-1].removeprefix("❯").strip(" \u00a0") if found else None

    def idle(self) -> bool:
        """Its box is there and empty, and it says of itself that it is idle."""
        return bool(EMPTY_BOX.search(self.screen())) and self.status() == "idle"

    def until(self, condition: Callable[[], Any], what: str = "", seconds: float = PATIENCE_SECONDS) -> Any:
        """`until`, and on failure the screen is in the message."""
        try:
            return until(condition, seconds)
        except AssertionError as late:
            raise AssertionError(
                f"{what or late}: not within {seconds} s; {self.name} shows:\n{self.screen()}"
            ) from None

    def until_shows(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        self.until(lambda: self.shows(text), f"{text!r} is shown", seconds)

    def until_idle(self, seconds: float = PATIENCE_SECONDS) -> None:
        self.until(self.idle, "it is idle", seconds)

    # -- what it writes

    def registry(self) -> dict[str, Any]:
        """What it says of itself in its registry file; empty when there is none."""
        try:
            found: dict[str, Any] = json.loads((self.user.home / ".claude/sessions" / f"{self.pid}.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def status(self) -> str:
        return str(self.registry().get("status"))

    @property
    def session(self) -> str:
        return str(self.registry()["sessionId"])

    def transcript(self, session: str = "") -> list[dict[str, Any]]:
        """The lines of its transcript file, of the session of now unless told otherwise."""
        file = self._transcripts / f"{session or self.session}.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def sessions(self) -> list[str]:
        """Its sessions so far, the oldest first."""
        files = sorted(self._transcripts.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
        return [file.stem for file in files]

    @property
    def _transcripts(self) -> Path:
        return self.user.home / ".claude/projects" / re.sub(r"[^A-Za-z0-9]", "-", str(self.project))

    def said(self, session: str = "") -> list[str]:
        """The texts of its own replies, as its transcript has them."""
        blocks = (b for line in self.transcript(session) if line["type"] == "assistant" for b in content(line))
        return [block["text"] for block in blocks if block["type"] == "text"]

    # -- what a user does

    def keys(self, *keys: str) -> None:
        self.tmux.run("send-keys", "-t", self.pane, *keys)

    def draft(self, text: str) -> None:
        """Type without Enter, and wait until it stands in the box."""
        self.tmux.run("send-keys", "-t", self.pane, "-l", text)
        self.until(lambda: squeezed(text) in squeezed(self.box() or ""), f"{text!r} is in the box")

    def type(self, text: str) -> None:
        """Type a prompt and send it."""
        self.draft(text)
        self.keys("Enter")

    def leave(self) -> None:
        """/exit, and wait for the end."""
        self.type("/exit")
        self.until(lambda: gone(self.pid), "it left")

    def kill(self) -> None:
        """kill -9; a second call changes nothing."""
        if self.pid and not gone(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            until(lambda: gone(self.pid))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def content(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The content blocks of a transcript line."""
    found = line["message"]["content"]
    return [{"type": "text", "text": found}] if isinstance(found, str) else list(found)


SETTINGS = {
    "skipDangerousModePermissionPrompt": True,
    "skipAutoPermissionPrompt": True,
    # 2.1.330 would start in a mode whose safety check is a service of the vendor
    "permissions": {"defaultMode": "default", "disableAutoMode": "disable"},
}
STATE = {
    "numStartups": 3,
    "autoUpdates": False,
    "theme": "dark",
    "hasCompletedOnboarding": True,
    "lastOnboardingVersion": "9.9.9",
    "lastReleaseNotesSeen": "9.9.9",
    "bypassPermissionsModeAccepted": True,
    "hasResetAutoModeOptInForDefaultOffer": True,
    "officialMarketplaceAutoInstallAttempted": True,
    "hasSeenTasksHint": True,
    "customApiKeyResponses": {"approved": [], "rejected": []},
    "projects": {},
}
ENVIRON = {
    "PATH": PATH,
    "TERM": "xterm-256color",
    "LANG": "C.UTF-8",
    "SHELL": "/bin/sh",
    "USER": "someone",
    "IS_SANDBOX": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_BUG_COMMAND": "1",
}
