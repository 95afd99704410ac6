"""A question as a person reads it before he answers: the whole call, with nothing cut and nothing hidden.

What others wrote stands on lines that begin with what we wrote: an argument's name, `+ `, `- ` or blanks. So it never
looks like the head of another question, nor like the line that names the keys.
"""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from repowire.cli import command as c

if TYPE_CHECKING:
    from repowire import shapes

ALLOW, DENY = "allow", "deny"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
IN_HEAD = ("tool_name", "cwd", "session_id", "agent_id", "tool_input")  # of the metadata, shown in a place of their own
DEEPER = "  "


class Line(NamedTuple):
    """A line: what we call it, what was said, and their colours."""

    head: str
    text: str = ""
    tint: str | None = None
    head_tint: str | None = "dim"

    def rows(self, columns: int | None) -> Iterator[str]:
        """As the rows of a terminal that wide; the later ones begin with blanks, as no line of ours does."""
        whole = f"{self.head} {self.text}" if self.head and self.text else self.head or self.text
        first, *rest = _folded(whole, columns)
        size = len(self.head)
        if self.head and self.head_tint and first.startswith(self.head):
            said = first[size:]
            yield c.colour(self.head, self.head_tint) + (c.colour(said, self.tint) if said and self.tint else said)
        else:
            yield c.colour(first, self.tint) if self.tint else first
        yield from (c.colour(row, self.tint) if self.tint else row for row in rest)


def _folded(text: str, columns: int | None) -> list[str]:
    """Cut into rows, with nothing lost."""
    if columns is None or columns <= 2 * len(DEEPER) or c.width_of(text) <= columns:
        return [text]
    rows, row, used = [], "", 0
    for letter in text:
        wide = 8 if letter == "\t" else c.width_of(letter)
        if used + wide > columns:
            rows.append(row)
            row, used = DEEPER * 2, 2 * len(DEEPER)
        row, used = row + letter, used + wide
    return [*rows, row]


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
    return inline(f"{words}: answered by {by}{where}" if question["answered_by"] else f"{words}: {by}")


def short(question: "shapes.Question") -> str:
    """One line of it, for a table."""
    call, tool = question["metadata"].get("tool_input"), question["metadata"].get("tool_name")
    if isinstance(tool, str) and isinstance(call, dict) and call and not question["prompt"].startswith(f"{tool}: "):
        values = list(call.values())
        one = values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(call, ensure_ascii=False)
        return inline(f"{tool}: {one}")
    return inline(question["prompt"])


def whole(question: "shapes.Question", columns: int | None = None) -> Iterator[str]:
    """All of it, nothing cut: who asks, what for, and the call as it would run; in rows of that many columns."""
    for line in _lines(question):
        yield from line.rows(columns)


def _lines(question: "shapes.Question") -> Iterator[Line]:
    about = question["metadata"]
    tool = about.get("tool_name")
    named = [question["correlation_id"], f"@{question['from_peer']}", tool or question["scope"] or "question"]
    yield Line(" · ".join(inline(str(one)) for one in named), head_tint="bold")
    facts = [(name, about.get(name)) for name in ("cwd", "session_id", "agent_id")]
    facts += [
        ("asked by", question["origin"]),
        ("dialog", "open in the agent's terminal" if question["dialog"] else None),
    ]
    for name, value in facts:
        if value is not None:
            yield Line(name, inline(value if isinstance(value, str) else _json(value)))
    first, *rest = c.visible(question["prompt"]).split("\n")
    yield Line("", first)
    yield from (Line("", DEEPER + line) for line in rest)
    for name, value in about.items():
        if name not in IN_HEAD:
            yield from _value(name, value)
    call = about.get("tool_input")
    if isinstance(call, dict):
        yield from _call(call)
    elif call is not None:
        yield from _value("tool_input", call)
        yield Line("", "this is all that its client told of the call; it may be cut", "yellow")
    for option in question["options"]:
        if option["id"] not in (ALLOW, DENY):
            about_it = f" ({inline(option['description'])})" if option["description"] else ""
            yield Line("", f"[{inline(option['id'])}] {inline(option['title'])}{about_it}")


def _call(call: dict[str, Any], deeper: str = "") -> Iterator[Line]:
    """The arguments: what is replaced as a diff, what is written as added lines, all else by its name."""
    left = dict(call)
    if isinstance(left.get("old_string"), str) and isinstance(left.get("new_string"), str):
        change = [(left.pop("old_string"), left.pop("new_string"))]
    else:
        change = []
    content = left.pop("content") if isinstance(left.get("content"), str) else None
    for name, value in left.items():
        yield from _value(name, value, deeper)
    for old, new in change:
        yield from (line._replace(text=deeper + line.text) for line in _diff(old, new))
    if content is not None:
        yield from (Line("", f"{deeper}+ {line}", "green") for line in c.visible(content).split("\n"))


def _value(name: str, value: Any, deeper: str = "") -> Iterator[Line]:
    head = deeper + (name if PLAIN_NAME.fullmatch(name) else inline(_json(name)))
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        for number, one in enumerate(value):
            yield Line(f"{head}[{number}]")
            yield from _call(one, deeper + DEEPER)
        return
    first, *rest = c.visible(value if isinstance(value, str) else _json(value)).split("\n")
    yield Line(head, first)
    yield from (Line("", f"{deeper}{DEEPER}{line}") for line in rest)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _diff(old: str, new: str) -> Iterator[Line]:
    """By whole lines; never by letters, which takes minutes for a long text."""
    from difflib import SequenceMatcher

    before, after = c.visible(old).split("\n"), c.visible(new).split("\n")
    raw = SequenceMatcher(None, old.split("\n"), new.split("\n"))
    for tag, begin, end, first, last in raw.get_opcodes():
        if tag == "equal":
            yield from (Line("", f"  {line}") for line in before[begin:end])
        else:
            yield from (Line("", f"- {line}", "red") for line in before[begin:end])
            yield from (Line("", f"+ {line}", "green") for line in after[first:last])


def inline(text: str) -> str:
    """`visible`, on one line."""
    return c.visible(text).replace("\n", "⏎").replace("\t", "\\t")
