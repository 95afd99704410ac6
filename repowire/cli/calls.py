"""A question as a person reads it before he answers: the whole call, with nothing cut and nothing hidden."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from repowire.cli import command as c

if TYPE_CHECKING:
    from repowire import shapes

ALLOW, DENY = "allow", "deny"
# What no terminal shows, or shows as something else: escapes, controls, bidi marks, letters without width
HIDDEN = re.compile(f"[{c.UNSAFE}\x0b\x0c\r\x85\xad\u200b-\u200d\u2028\u2029\u2060-\u2064]")


def choice(option: str, offered: list[str]) -> dict[str, str]:
    """What to send for an option; a denial needs none of that name."""
    return {"outcome": "denied"} if option == DENY and DENY not in offered else {"option_id": option}


def ended(question: "shapes.Question") -> str:
    """Open until when, or how it ended and by whom."""
    if question["state"] == "open":
        return f"open until {c.local(question['expires_at'], '%H:%M:%S')}"
    words = question["decision"] or question["option_id"] or question["outcome"]
    by = question["answered_by"] or (question["reason"] or "").replace("_", " ")
    where = f", {question['surface']}" if question["surface"] else ""
    return c.clean(f"{words}: answered by {by}{where}" if question["answered_by"] else f"{words}: {by}")


def short(question: "shapes.Question") -> str:
    """One line of it, for a table."""
    call = question["metadata"].get("tool_input")
    tool = question["metadata"].get("tool_name")
    if isinstance(tool, str) and isinstance(call, dict) and call:
        first = next(iter(call.values()))
        return visible(f"{tool}: {first if isinstance(first, str) else json.dumps(first)}").replace("\n", "⏎")
    return visible(question["prompt"]).replace("\n", "⏎")


def whole(question: "shapes.Question") -> Iterator[str]:
    """All of it, nothing cut: who asks, what for, and the call as it would run."""
    about = question["metadata"]
    tool = about.get("tool_name")
    named = [question["correlation_id"], f"@{question['from_peer']}", tool or question["scope"] or "question"]
    yield c.colour(" · ".join(visible(str(one)) for one in named), "bold")
    facts = [(name, about.get(name)) for name in ("cwd", "session_id", "agent_id")]
    facts += [
        ("asked by", question["origin"]),
        ("dialog", "open in the agent's terminal" if question["dialog"] else None),
    ]
    for name, value in facts:
        if value is not None:
            yield f"{c.colour(name, 'dim')} {visible(str(value))}"
    yield from visible(question["prompt"]).split("\n")
    call = about.get("tool_input")
    if isinstance(call, dict):
        yield from _call(call)
    elif call is not None:
        yield from _value("tool_input", call)
        yield c.colour("this is all that its client told of the call; it may be cut", "yellow")
    for option in question["options"]:
        if option["id"] not in (ALLOW, DENY):
            about_it = f" ({visible(option['description'])})" if option["description"] else ""
            yield f"[{visible(option['id'])}] {visible(option['title'])}{about_it}"


def _call(call: dict[str, Any]) -> Iterator[str]:
    """The arguments: what is replaced as a diff, what is written as added lines, all else by its name."""
    left = dict(call)
    if isinstance(left.get("old_string"), str) and isinstance(left.get("new_string"), str):
        change = [(left.pop("old_string"), left.pop("new_string"))]
    else:
        change = []
    content = left.pop("content") if isinstance(left.get("content"), str) else None
    for name, value in left.items():
        yield from _value(name, value)
    for old, new in change:
        yield from _diff(old, new)
    if content is not None:
        yield from (c.colour(f"+ {visible(line)}", "green") for line in content.split("\n"))


def _value(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield c.colour(f"{visible(name)}[{number}]", "dim")
            yield from _call(one)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    first, *rest = visible(text).split("\n")
    yield f"{c.colour(visible(name), 'dim')} {first}"
    yield from (f"  {line}" for line in rest)


def _diff(old: str, new: str) -> Iterator[str]:
    from difflib import ndiff

    paint = {"- ": "red", "+ ": "green"}
    for line in ndiff(old.split("\n"), new.split("\n")):
        if line[:2] != "? ":
            shown = visible(line)
            yield c.colour(shown, paint[line[:2]]) if line[:2] in paint else shown


def visible(text: str) -> str:
    """The text with what a terminal would hide or obey written as escapes; tabs and line ends stay."""
    return text if text.isprintable() else HIDDEN.sub(_escape, text)


def _escape(found: "re.Match[str]") -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
