"""Turns: what was said in a session, read from the end of its transcript: by the page, or where it has some words.

Nothing is copied: a page costs what it holds, whatever the file's size (`scroll`). A turn is known by its session and
the offset of its first line, which is what a cursor says; where the file is another by then, the moment in it counts.
"""

import base64
import binascii
import json
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from repowire.agents import json_text
from repowire.agents.turns import Reader, Turn
from repowire.errors import invalid
from repowire.protocol import clean
from repowire.scroll import Scroll

SEARCH_SECONDS = 5.0  # after which a search says that it has not looked at everything
LATER_LINES = 16  # of a search that are kept, since a turn's lines stand close together
LATER_BYTES = 1 << 20  # a longer line is not kept for it
PLAIN = re.compile(r"[A-Za-z0-9 .,:;_()=+*#@!?-]+")  # what no writer of JSON writes in another way
PAGE_BYTES = 2 << 20  # of a page's lines: what is shown is made on the loop, and a client wants to read it

# -- model ---------------------------------------------------------------------


class Source(NamedTuple):
    """One session's transcript."""

    session: str | None
    path: Path
    repowire_session_id: str | None


class Place(NamedTuple):
    """Where a turn begins; `at` finds it again where the file is another."""

    at: str | None
    session: str | None
    offset: int

    @property
    def cursor(self) -> str:
        return base64.urlsafe_b64encode(json.dumps(self).encode()).decode()


class Told(NamedTuple):
    """A turn, and where it begins."""

    turn: Turn
    place: Place
    size: int = 0  # of its lines in the file, in bytes


def place_of(text: str) -> Place:
    """The place that a cursor says."""
    try:
        at, session, offset = json.loads(base64.urlsafe_b64decode(text.encode()).decode())
        if isinstance(offset, int) and 0 <= offset < 2**62 and all(isinstance(x, str | None) for x in (at, session)):
            return Place(at, session, offset)
    except (ValueError, binascii.Error, TypeError, RecursionError):
        pass
    raise invalid("before", "must be the `next_before` of an earlier page")


# -- queries -------------------------------------------------------------------


def told(reader: Reader, scroll: Scroll, session: str | None, before: int | None = None) -> Iterator[Told]:
    """The turns that begin before an offset, the newest first, each once and whole."""
    open_turn: Told | None = None
    for line in scroll.backwards(before):
        turn = None if line.raw is None else _turn(reader, line.raw)
        if turn is None or line.raw is None:
            continue
        place, size = Place(turn.at, session, line.offset), len(line.raw)
        if open_turn is not None and turn.part is not None and turn.part == open_turn.turn.part:
            said = open_turn.turn if turn.whole else _joined(turn, open_turn.turn)
            open_turn = Told(said, place, open_turn.size + size)
            continue
        if open_turn is not None:
            yield open_turn
        open_turn = Told(turn, place, size)
    if open_turn is not None:
        yield open_turn


def _turn(reader: Reader, raw: bytes) -> Turn | None:
    """A line's turn; None for one that is torn, of another encoding, or no object."""
    try:
        line = json_text.read(raw.decode("utf-8-sig", "replace"))
        return reader.turn(line) if isinstance(line, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _joined(first: Turn, rest: Turn) -> Turn:
    text = "\n".join(part for part in (first.text, rest.text) if part)
    return first._replace(text=text, tool_calls=first.tool_calls + rest.tool_calls)


def walk(reader: Reader, sources: list[Source], before: Place | None) -> Iterator[Told]:
    """All turns, the newest first, from a place on; over all sessions. Reads files: for a thread."""
    names = [source.session for source in sources]
    begin = names.index(before.session) if before is not None and before.session in names else 0
    for number, source in enumerate(sources[begin:]):
        with suppress(OSError):  # it went away meanwhile
            scroll = Scroll(source.path)
            try:
                yield from _from_place(reader, scroll, source.session, before if number == 0 else None)
            finally:
                scroll.close()


def _from_place(reader: Reader, scroll: Scroll, session: str | None, before: Place | None) -> Iterator[Told]:
    if before is None or (before.offset <= scroll.size and scroll.begins_line(before.offset)):
        yield from told(reader, scroll, session, None if before is None else before.offset)
        return
    for one in told(reader, scroll, session):  # the file is another one: the moment says where the page began
        if before.at is None or one.turn.at is None or one.turn.at < before.at:
            yield one


def page(reader: Reader, sources: list[Source], limit: int, before: Place | None) -> tuple[list[Told], str | None]:
    """At most `limit` turns, the newest first, fewer where they are long; and the cursor of those before them."""
    turns: list[Told] = []
    size = 0
    for one in walk(reader, sources, before):
        size += one.size
        if len(turns) == limit or (turns and size > PAGE_BYTES):
            return turns, turns[-1].place.cursor
        turns.append(one)
    return turns, None


def search(
    reader: Reader, sources: list[Source], query: str, limit: int
) -> tuple[list[tuple[Told, re.Match[str]]], bool]:
    """The newest turns whose text has the query in it, and where; and whether all was looked at."""
    wanted = pattern_of(query)
    raw = query.lower().encode() if PLAIN.fullmatch(query) else None  # it stands in the line as it is
    hits, ends_at = list[tuple[Told, re.Match[str]]](), time.monotonic() + SEARCH_SECONDS
    size = 0
    for source in sources:
        with suppress(OSError):  # it went away meanwhile
            scroll = Scroll(source.path)
            try:
                for one in _hits(reader, scroll, source.session, wanted, raw, ends_at):
                    if one is None:
                        return hits, False
                    at = wanted.search(clean(one.turn.text))
                    if at is not None and all(hit.place != one.place for hit, _ in hits):
                        hits.append((one, at))
                        size += len(one.turn.text)
                    if len(hits) == limit:
                        return hits, True
                    if size > PAGE_BYTES:
                        return hits, False
            finally:
                scroll.close()
    return hits, True


def pattern_of(query: str) -> re.Pattern[str]:
    return re.compile(re.escape(query), re.IGNORECASE)


def _hits(
    reader: Reader, scroll: Scroll, session: str | None, wanted: re.Pattern[str], raw: bytes | None, ends_at: float
) -> Iterator[Told | None]:
    """The turns with a line that has it; None when the time is over. Only such lines are taken apart."""
    later: deque[bytes] = deque(maxlen=LATER_LINES)  # the nearest last
    for line in scroll.backwards():
        if time.monotonic() > ends_at:
            yield None
            return
        if line.raw is None:
            continue
        turn = _turn(reader, line.raw) if raw is None or raw in line.raw.lower() else None
        if turn is not None and wanted.search(turn.text):
            yield _around(reader, scroll, session, Told(turn, Place(turn.at, session, line.offset)), later)
        later.append(line.raw if len(line.raw) <= LATER_BYTES else b"")


def _around(reader: Reader, scroll: Scroll, session: str | None, hit: Told, later: deque[bytes]) -> Told:
    """The whole turn that a line is of: what of it stands before the line, and after."""
    part = hit.turn.part
    if part is None:
        return hit
    for before in told(reader, scroll, session, hit.place.offset):
        if before.turn.part == part:
            joined = hit.turn if hit.turn.whole else _joined(before.turn, hit.turn)
            hit = Told(joined, before.place)
        break
    for raw in reversed(later):
        turn = _turn(reader, raw)
        if turn is not None and turn.part != part:
            break
        if turn is not None:
            hit = Told(turn if turn.whole else _joined(hit.turn, turn), hit.place)
    return hit
