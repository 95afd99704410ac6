"""What Codex writes down of a session (run with codex 0.169.0): a rollout of JSON lines, named by the session's id.

A user's message that begins with a tag is what Codex put there itself: the environment, instructions, skills.
"""

import glob
import os
import re
from collections.abc import Mapping
from typing import Any

from repowire.agents import json_text
from repowire.agents.turns_model import Turn

ITS_OWN = re.compile(r"<(?:environment_context|user_instructions|skills_instructions|permissions\w*|turn_aborted)\b")


def turn(line: Mapping[str, Any]) -> Turn | None:
    """What a line says, if it is of a turn."""
    payload = line.get("payload")
    if line.get("type") != "response_item" or not isinstance(payload, Mapping):
        return None
    passed = payload.get("internal_chat_message_metadata_passthrough")
    turn_id = passed.get("turn_id") if isinstance(passed, Mapping) else None
    at = line.get("timestamp") if isinstance(line.get("timestamp"), str) else None
    turn_id = turn_id if isinstance(turn_id, str) else None
    kind, role = payload.get("type"), payload.get("role")
    if kind == "function_call":
        call = {"name": str(payload.get("name", "")), "input": _arguments(payload.get("arguments"))}
        return Turn("assistant", "", at, turn_id, (call,))
    if kind != "message" or role not in ("user", "assistant"):
        return None
    content = payload.get("content")
    blocks = [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []
    text = "\n".join(str(block["text"]) for block in blocks if block.get("type") in ("input_text", "output_text"))
    if not text or (role == "user" and ITS_OWN.match(text)):
        return None
    return Turn(str(role), text, at, turn_id)


def _arguments(given: Any) -> Any:
    try:
        return json_text.read(given)
    except (TypeError, ValueError, RecursionError):
        return given


def find(session: str | None, path: str | None) -> str | None:
    """A session's file, by its id alone. Reads folders."""
    if session is None:
        return None
    home = os.environ.get("CODEX_HOME") or os.path.expanduser("~/.codex")
    name = f"rollout-*-{glob.escape(os.path.basename(session))}.jsonl"
    files = glob.glob(os.path.join(glob.escape(home), "sessions", "*", "*", "*", name))
    return max(files, default=None)
