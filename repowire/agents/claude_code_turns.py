"""What Claude Code writes down of a session (run with 2.1.330 and 2.1.197): a line of JSON for each content block.

Several lines of one answer have the same message id. Beside the turns there are many other types of lines, tool
results, and the sidechains of its own helpers, none of which is a turn.
"""

import glob
import os
import re
from collections.abc import Mapping
from typing import Any

from repowire.agents.turns_model import Turn

FOLDER = "~/.claude/projects"


def turn(line: Mapping[str, Any]) -> Turn | None:
    """What a line says, if it is of a turn."""
    if line.get("isSidechain") or line.get("isMeta"):
        return None
    at, kind = _text(line.get("timestamp")), line.get("type")
    if kind == "attachment":
        return _queued(line, at)
    message = line.get("message")
    if kind not in ("user", "assistant") or not isinstance(message, Mapping):
        return None
    blocks = _blocks(message.get("content"))
    if any(block.get("type") == "tool_result" for block in blocks):
        return None
    text = "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    calls = tuple(
        {"name": str(block.get("name", "")), "input": block.get("input")}
        for block in blocks
        if block.get("type") == "tool_use"
    )
    if not text and not calls:
        return None
    if kind == "user":
        return Turn("user", text, at, _text(line.get("promptId")) or _text(line.get("uuid")))
    part = _text(message.get("id"))
    return Turn("assistant", text, at, part, calls, part)


def _queued(line: Mapping[str, Any], at: str | None) -> Turn | None:
    """What its user said while it worked."""
    attachment = line.get("attachment")
    if not isinstance(attachment, Mapping) or attachment.get("type") != "queued_command":
        return None
    text = "\n".join(str(block.get("text", "")) for block in _blocks(attachment.get("prompt")))
    return Turn("user", text, at, _text(line.get("uuid"))) if text else None


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def find(session: str | None, path: str | None) -> str | None:
    """A session's file; without a session the newest of the folder that the agent works in. Reads folders."""
    if path is None:
        return None
    folder = os.path.join(os.path.expanduser(FOLDER), re.sub(r"[^A-Za-z0-9]", "-", path))
    if session is not None:
        file = os.path.join(folder, f"{os.path.basename(session)}.jsonl")
        return file if os.path.isfile(file) else None
    files = glob.glob(os.path.join(glob.escape(folder), "*.jsonl"))
    return max(files, key=os.path.getmtime, default=None)
