"""What Gemini CLI writes down of a session (run with gemini-cli 0.61.0): a message whole, each time that it grew.

Lines with `$set` are of the file itself. What its tools answered comes as a user's message without a text.
"""

import glob
import os
from collections.abc import Mapping
from typing import Any

from repowire.agents.turns_model import Turn

FOLDER = "~/.gemini/tmp"
ITS_OWN = "<session_context>"


def turn(line: Mapping[str, Any]) -> Turn | None:
    """What a line says, if it is of a turn."""
    kind, at, turn_id = line.get("type"), line.get("timestamp"), line.get("id")
    if kind not in ("user", "gemini") or not isinstance(turn_id, str):
        return None
    content = line.get("content")
    blocks = [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []
    text = content if isinstance(content, str) else "\n".join(str(b["text"]) for b in blocks if "text" in b)
    calls = line.get("toolCalls")
    made = tuple(
        {"name": str(call.get("name", "")), "input": call.get("args")}
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, Mapping)
    )
    if (not text and not made) or text.startswith(ITS_OWN):
        return None
    role = "user" if kind == "user" else "assistant"
    return Turn(role, text, at if isinstance(at, str) else None, turn_id, made, turn_id, whole=True)


def find(session: str | None, path: str | None) -> str | None:
    """A session's file: its name ends with the first eight letters of the id. Reads folders."""
    if session is None:
        return None
    name = f"session-*{glob.escape(os.path.basename(session)[:8])}.jsonl"
    return max(glob.glob(os.path.join(glob.escape(os.path.expanduser(FOLDER)), "*", "chats", name)), default=None)
