"""What Claude Code's hooks say, and how they want to be answered (run with 2.1.330 and 2.1.197).

Facts of one agent, no I/O. Both versions send the same fields; the newer one has the inbox and CLAUDE_PID besides.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

PROGRAMS = ("claude", "claude.exe")  # its processes' name: a native binary, the second where npm installed it
CONTINUES = ("clear", "resume")  # reasons of a SessionEnd after which the same process begins another session
BYPASS = "bypassPermissions"
MAX_TURN_CHARS = 64_000  # of a chat turn that is kept


class Said(NamedTuple):
    """What an event says; every field may be missing, since a version may leave it out."""

    session: str | None = None
    transcript: str | None = None
    cwd: str | None = None
    mode: str | None = None
    model: str | None = None
    turn: str | None = None
    prompt: str | None = None
    last_text: str | None = None
    source: str | None = None
    reason: str | None = None
    notification: str | None = None
    tool: str | None = None
    given: Mapping[str, Any] | None = None  # the arguments of the tool
    agent: str | None = None  # the sub-agent that it speaks of
    stop_hook_active: bool = False


def parse(body: Mapping[str, Any]) -> Said:
    """The fields that we use, each only in its own type."""

    def text(name: str) -> str | None:
        value = body.get(name)
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) and value else None

    return Said(
        session=text("session_id"),
        transcript=text("transcript_path"),
        cwd=text("cwd"),
        mode=text("permission_mode"),
        model=text("model"),
        turn=text("prompt_id"),
        prompt=text("prompt"),
        last_text=text("last_assistant_message"),
        source=text("source"),
        reason=text("reason"),
        notification=text("notification_type"),
        tool=text("tool_name"),
        given=body["tool_input"] if isinstance(body.get("tool_input"), dict) else None,
        agent=text("agent_id"),
        stop_hook_active=body.get("stop_hook_active") is True,
    )


def context(event: str, text: str) -> str:
    """An answer that puts a text into the model's context, once; after a Stop the model goes on with it.

    `decision: block` would do that too, but the model gets its reason twice, and the human reads of an error.
    """
    facts = {"hookEventName": event, "additionalContext": text}
    return json.dumps({"hookSpecificOutput": facts}, ensure_ascii=False)


def config_dir(transcript: str | None) -> str | None:
    """Claude's folder (`~/.claude`, or CLAUDE_CONFIG_DIR), from the path of a transcript in it."""
    head, found, _ = (transcript or "").rpartition("/projects/")
    return head if found and os.path.isabs(head) and "\0" not in head else None


def usual_dir() -> str:
    """Claude's folder where no transcript says it."""
    return os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")


def registry(transcript: str | None, pid: int | None) -> str | None:
    """The file in which a running session says how it is: idle, busy or waiting."""
    folder = config_dir(transcript)
    return os.path.join(folder, "sessions", f"{pid}.json") if folder and pid else None


def settings_files(transcript: str | None, cwd: str | None) -> list[str]:
    """The settings that a session goes by, its user's first, then its project's. Others (--settings) are not known."""
    folder = config_dir(transcript)
    project = [os.path.join(cwd, ".claude", name) for name in ("settings.json", "settings.local.json")] if cwd else []
    return [os.path.join(folder, "settings.json"), *project] if folder else []


def inbound(settings: Sequence[str]) -> str:
    """What becomes of a message in the inbox by `crossSessionInbound`: accept, hold, refuse, or unset.

    Takes the texts of `settings_files`, empty where there is none. A project may only tighten what its user set.
    """
    said = []
    for text in settings:
        try:
            said.append(json.loads(text).get("crossSessionInbound"))
        except (ValueError, AttributeError, RecursionError):
            said.append(None)
    strict = next((word for word in ("refuse", "hold") if word in said), None)
    return strict or ("accept" if said[:1] == ["accept"] else "unset")


def takes_messages(mode: str | None, inbound: str | None) -> bool:
    """Whether the inbox puts a message before the model; else it is shown to the user, or dropped without a word."""
    return inbound not in ("hold", "refuse") and (mode != BYPASS or inbound == "accept")


def bypasses(arguments: Sequence[str]) -> bool:
    """Whether a command line starts it without permission prompts, where each inbox message opens a dialog."""
    pairs = zip(arguments, (*arguments[1:], ""), strict=True)
    return any(
        word == "--dangerously-skip-permissions"
        or word == f"--permission-mode={BYPASS}"
        or (word == "--permission-mode" and value == BYPASS)
        for word, value in pairs
    )


def inbox_lines(text: str, token: str | None) -> bytes:
    """A message as the inbox socket takes it: one JSON object a line, the token first where there is one.

    We do not state a permission mode on a sender's behalf.
    """
    said = [{"type": "user", "message": {"role": "user", "content": text}}]
    lines = ([{"type": "auth", "token": token}] if token else []) + said
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def shows(line: Mapping[str, Any]) -> bool:
    """Whether a line of the transcript is what the model was given; a queued message stands in one that is not."""
    return line.get("type") in ("user", "attachment")


def written_at(line: bytes) -> float | None:
    """The moment that a line of the transcript says of itself, in unix seconds."""
    try:
        return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def waits_for_user(registry_text: str) -> bool | None:
    """Whether the registry file says that a dialog is open; None when it does not say."""
    try:
        status = json.loads(registry_text).get("status")
    except (ValueError, AttributeError):
        return None
    return {"waiting": True, "idle": False, "busy": False}.get(status) if isinstance(status, str) else None
