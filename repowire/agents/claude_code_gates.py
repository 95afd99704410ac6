"""How Claude Code's hooks want a verdict on a tool (run with 2.1.330 and 2.1.197). Facts of one agent, no I/O.

A denial before a tool holds also with `--dangerously-skip-permissions`; a verdict on a PermissionRequest closes the
dialog that is on the screen.
"""

import json
from collections.abc import Mapping
from typing import Any

HEADLINE_CHARS = 500  # the whole call stands beside it
SUBJECTS = ("command", "file_path", "notebook_path", "url", "pattern", "prompt")  # what a tool's call is mainly about


def headline(tool: str, given: Mapping[str, Any]) -> str:
    """A call in one line: the tool, and the argument that says most."""
    subject = next((given[name] for name in SUBJECTS if isinstance(given.get(name), str)), None)
    if subject is None:
        subject = json.dumps(given, ensure_ascii=False) if given else ""
    line, _, more = subject.strip().partition("\n")
    if more or len(line) > HEADLINE_CHARS:
        line = f"{line[:HEADLINE_CHARS]} … ({len(subject)} characters)"
    return f"{tool}: {line}" if line else tool


def tool_verdict(decision: str, reason: str, given: Mapping[str, Any]) -> str:
    """What a PreToolUse hook prints; `decision` is allow or deny. Allowed is the call that was shown, with arguments
    `given`: another hook may have written it anew meanwhile, and the word of who ends last is what runs."""
    shown = {"updatedInput": given} if decision == "allow" else {}
    return _answer("PreToolUse", permissionDecision=decision, permissionDecisionReason=reason, **shown)


def dialog_verdict(decision: str, reason: str, given: Mapping[str, Any]) -> str:
    """What a PermissionRequest hook prints; `decision` is allow or deny."""
    said = {"behavior": decision} | ({"message": reason} if decision == "deny" else {})
    return _answer("PermissionRequest", decision=said)


def _answer(event: str, **facts: Any) -> str:
    return json.dumps({"hookSpecificOutput": {"hookEventName": event, **facts}}, ensure_ascii=False)
