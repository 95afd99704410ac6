"""Edit JSON as text: find the span of a member or element, put one in, take one out. All other bytes stay as they are.

People's settings have their own order, indent and line ends, which reading and writing anew would lose. JSON alone: a
comment or a trailing comma is an error with its line and column.
"""

import json
import math
from typing import Any, NamedTuple

SPACE = " \t\r\n"
DECODER = json.JSONDecoder()


class NotJson(ValueError):
    """The text is not JSON, or not of the shape that is needed; says where."""


class Member(NamedTuple):
    """A member of an object or an element of an array, `begin` to `end`; its value begins at `value_at`."""

    key: str | None
    begin: int
    value_at: int
    end: int


class Node(NamedTuple):
    """A value: its kind (`{`, `[`, or "" for the rest), its span, and its members."""

    kind: str
    begin: int
    end: int
    members: tuple[Member, ...] = ()


def parse(text: str) -> Any:
    """The whole document's value; raises NotJson with line and column, also where an object has one key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise NotJson(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise NotJson("nested too deeply") from None


def _finite(word: str) -> float | None:
    return value if math.isfinite(value := float(word)) else None


# What a program wrote for itself: NaN and Infinity (which 1e999 is too), which no other JSON reader takes, are null
read = json.JSONDecoder(parse_constant=lambda word: None, parse_float=_finite).decode


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NotJson(f"the key {json.dumps(twice)} stands twice in one object")
    return found


def _no_constant(word: str) -> Any:
    raise NotJson(f"{word} is not JSON")


def skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def node(text: str, at: int) -> Node:
    """The value that begins there, in a text that `parse` has taken."""
    kind = text[at]
    if kind not in "{[":
        return Node("", at, _end(text, at))
    members, place = [], skip(text, at + 1)
    while text[place] not in "}]":
        begin, key, value_at = place, None, place
        if kind == "{":
            key, key_end = DECODER.raw_decode(text, place)
            value_at = skip(text, skip(text, key_end) + 1)
        end = _end(text, value_at)
        members.append(Member(key, begin, value_at, end))
        place = skip(text, end)
        if text[place] == ",":
            place = skip(text, place + 1)
    return Node(kind, at, place + 1, tuple(members))


def _end(text: str, at: int) -> int:
    """Where the value that begins there ends."""
    end: int = DECODER.raw_decode(text, at)[1]
    return end


def find(text: str, *path: str) -> Node | None:
    """The value under these keys; None where one is missing or what should be an object is none."""
    found = root(text)
    for key in path:
        member = next((one for one in found.members if one.key == key), None)
        if member is None:
            return None
        found = node(text, member.value_at)
    return found


def root(text: str) -> Node:
    """The document's own value."""
    return node(text, skip(text, 0))


# -- edits -------------------------------------------------------------------


def insert(text: str, holder: Node, key: str | None, value: Any) -> str:
    """Put a member (an element where `key` is None) at the end of an object or array, in the document's style."""
    style = _style(text)
    label = f"{json.dumps(key, ensure_ascii=False)}: " if key is not None else ""
    deep = _depth(text, holder.begin, style)
    if not holder.members:
        inside, tail = style.line + style.indent * (deep + 1), style.line + style.indent * deep
        fresh = label + _dump(value, style, deep + 1)
        return text[: holder.begin + 1] + inside + fresh + tail + text[holder.end - 1 :]
    last = holder.members[-1]
    gap = text[_after_comma(text, holder) : last.begin]
    if "\n" in gap:
        fresh = gap + label + _dump(value, style, deep + 1)
    else:  # its neighbours stand on one line
        fresh = (gap if len(holder.members) > 1 else " ") + label + json.dumps(value, ensure_ascii=False)
    return text[: last.end] + "," + fresh + text[last.end :]


def _after_comma(text: str, holder: Node) -> int:
    """Where the white space before the last member begins."""
    place = holder.members[-1].begin
    while text[place - 1] in SPACE:
        place -= 1
    return place


def remove(text: str, holder: Node, member: Member) -> str:
    """Take out a member with its comma and the white space that came with it; the undoing of `insert`."""
    at = holder.members.index(member)
    if len(holder.members) == 1:
        return text[: holder.begin + 1] + text[holder.end - 1 :]
    if at:
        return text[: holder.members[at - 1].end] + text[member.end :]
    return text[: member.begin] + text[holder.members[1].begin :]


def replace(text: str, member: Member, value: Any) -> str:
    """Put another value in a member's place."""
    style = _style(text)
    fresh = _dump(value, style, _depth(text, member.begin, style))
    return text[: member.value_at] + fresh + text[member.end :]


class Style(NamedTuple):
    """How a document is laid out: what ends a line (nothing when all is on one), and one step of its indent."""

    line: str
    indent: str


def _style(text: str) -> Style:
    line = "\r\n" if "\r\n" in text else "\n"
    body = text.strip(SPACE)
    if body in ("", "{}"):
        return Style(line, "  ")
    for one in body.splitlines()[1:]:
        spaces = one[: len(one) - len(one.lstrip(" \t"))]
        if spaces and one.strip():
            return Style(line, spaces)
    return Style(line, "  ") if "\n" in body else Style("", "")


def _depth(text: str, at: int, style: Style) -> int:
    """How many steps the line is indented on which a value begins."""
    begin = text.rfind("\n", 0, at) + 1
    spaces = text[begin : len(text[begin:]) - len(text[begin:].lstrip(" \t")) + begin]
    return len(spaces) // len(style.indent) if style.indent else 0


def _dump(value: Any, style: Style, deep: int) -> str:
    if not style.line:
        return json.dumps(value, ensure_ascii=False)
    lines = json.dumps(value, indent=style.indent, ensure_ascii=False).split("\n")
    return (style.line + style.indent * deep).join(lines)
