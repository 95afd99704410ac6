"""What pi writes down of a session (run with pi 0.73.1): JSON lines, in a folder that is named by where it works."""

import glob
import os
from collections.abc import Mapping
from typing import Any

from repowire.agents.turns_model import Turn

FOLDER = "~/.pi/agent/sessions"


def turn(line: Mapping[str, Any]) -> Turn | None:
    """What a line says, if it is of a turn."""
    message = line.get("message")
    if (
        line.get("type") != "message"
        or not isinstance(message, Mapping)
        or message.get("role")
        not in (
            "user",
            "assistant",
        )
    ):
        return None
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    blocks = [block for block in blocks if isinstance(block, Mapping)] if isinstance(blocks, list) else []
    text = "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    calls = tuple(
        {"name": str(block.get("name", "")), "input": block.get("arguments")}
        for block in blocks
        if block.get("type") == "toolCall"
    )
    if not text and not calls:
        return None
    at, turn_id = line.get("timestamp"), line.get("id")
    return Turn(
        str(message["role"]),
        text,
        at if isinstance(at, str) else None,
        turn_id if isinstance(turn_id, str) else None,
        calls,
    )


def find(session: str | None, path: str | None) -> str | None:
    """A session's file; without a session the newest of the folder that the agent works in. Reads folders."""
    folder = "*" if path is None else glob.escape(f"--{path.strip('/').replace('/', '-')}--")
    name = "*.jsonl" if session is None else f"*_{glob.escape(os.path.basename(session))}.jsonl"
    if session is None and path is None:
        return None
    return max(glob.glob(os.path.join(glob.escape(os.path.expanduser(FOLDER)), folder, name)), default=None)
