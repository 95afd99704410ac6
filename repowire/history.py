"""History: what a peer and its user said to each other, by the runtime's own transcripts, read from their ends.

Nothing is copied: a page costs what it holds, whatever the file's size (`scroll`). A turn is known by its session and
the offset of its first line, which is what a cursor says; where the file is another by then, the moment in it counts.
"""

import asyncio
import base64
import binascii
import json
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, peers, sessions, wire
from repowire.agents import json_text
from repowire.agents.turns import READERS, Reader, Turn
from repowire.errors import invalid
from repowire.ledger import Line as LedgerLine
from repowire.mesh import MESH, Mesh
from repowire.peers import Peer
from repowire.protocol import clean
from repowire.scroll import Scroll

READ_AT_ONCE = 2  # threads that read transcripts, so that they leave some to the rest
SEARCH_SECONDS = 5.0  # after which a search says that it has not looked at everything
REALTIME_LINES = 2000  # of the ledger, for what has no transcript, or is not in it yet
MAX_QUERY_CHARS = 200
LATER_LINES = 16  # of a search that are kept, since a turn's lines stand close together
LATER_BYTES = 1 << 20  # a longer line is not kept for it
PLAIN = re.compile(r"[A-Za-z0-9 .,:;_()=+*#@!?-]+")  # what no writer of JSON writes in another way
PAGE_BYTES = 2 << 20  # of a page's lines: what is shown is made on the loop, and a client wants to read it
SNIPPET_CHARS = 60  # on either side of what was found

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


class Found(NamedTuple):
    """The transcripts of a peer, and how they were found."""

    status: str  # available | unavailable | unsupported
    message: str | None
    source: str | None  # session_binding | peer_path
    sources: list[Source]


class Readings:
    """How many may read at once."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(READ_AT_ONCE)


READINGS = web.AppKey("readings", Readings)

# -- queries: where ----------------------------------------------------------------


def sources_of(mesh: Mesh, peer: Peer, session: str | None) -> list[tuple[str | None, str | None, str | None]]:
    """The sessions of a peer, newest first: runtime id, transcript if it is known, and ours."""
    bound = sessions.bindings(mesh.db.conn, peer.peer_id)
    if session is not None:
        bound = [one for one in bound if session in (one.session, one.repowire_session_id)]
    return [(one.session, one.transcript, one.repowire_session_id) for one in bound]


def look(backend: str, path: str | None, known: list[tuple[str | None, str | None, str | None]], asked: bool) -> Found:
    """The files of these sessions, or of the folder where none is known. Reads folders: for a thread."""
    reader = READERS.get(backend)
    if reader is None:
        return Found("unsupported", f"the transcripts of {backend} cannot be read", None, [])
    sources = []
    for session, transcript, ours in known:
        file = transcript if transcript is not None and Path(transcript).is_file() else reader.find(session, path)
        if file is not None:
            sources.append(Source(session, Path(file), ours))
    if sources:
        return Found("available", None, "session_binding", sources)
    if not known and not asked and (file := reader.find(None, path)) is not None:
        return Found("available", None, "peer_path", [Source(None, Path(file), None)])
    return Found("unavailable", "no transcript of it is to be found", None, [])


# -- queries: turns ------------------------------------------------------------------


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


# -- queries: what the mesh heard -----------------------------------------------------


def heard(mesh: Mesh, peer: Peer, session: str | None) -> list[dict[str, Any]]:
    """What runtimes and bots said of the peer's turns, oldest first, as far as the newest lines of the ledger go."""
    lines = mesh.ledger.after(max(0, mesh.ledger.last - REALTIME_LINES), REALTIME_LINES)
    mine = [
        line
        for line in lines
        if line.kind in ("chat.turned", "chat.streamed")
        and line.facts.get("peer_id") == peer.peer_id
        and session in (None, line.facts.get("session_id"))
    ]
    over = {line.facts.get("turn_id") for line in mine if line.kind == "chat.turned"} - {None}
    items: dict[str, dict[str, Any]] = {}
    for line in mine:
        if line.kind == "chat.turned":
            items[f"event:{line.seq}"] = _event_item(peer, line, "turn")
        elif line.facts.get("turn_id") not in over:
            group = f"delta:{line.facts.get('session_id') or ''}:{line.facts.get('turn_id')}"
            _add_chunk(items.setdefault(group, _event_item(peer, line, "delta_group", group)), line)
    return list(items.values())


def _event_item(peer: Peer, line: LedgerLine, kind: str, item_id: str | None = None) -> dict[str, Any]:
    whole = kind == "turn"
    return {
        "id": item_id or f"event:{line.seq}",
        "kind": kind,
        "source": "realtime",
        "timestamp": wire.moment(line.at),
        "session_id": line.facts.get("session_id"),
        "turn_id": line.facts.get("turn_id"),
        "role": line.facts.get("role"),
        "text": line.facts.get("text") if whole else "",
        "tool_calls": list(line.facts.get("tool_calls") or []) if whole else [],
        "peer_id": peer.peer_id,
        "peer": peer.display_name,
        "event_ids": [str(line.seq)] if whole else [],
    }


def _add_chunk(item: dict[str, Any], line: LedgerLine) -> None:
    item["text"] += str(line.facts.get("text") or "")
    if call := line.facts.get("tool_call"):
        item["tool_calls"].append(call)
    item["event_ids"].append(str(line.seq))


# -- shapes ------------------------------------------------------------------------


def as_turn(one: Told) -> dict[str, Any]:
    """A turn as the transcript route shows it."""
    return {
        "role": one.turn.role,
        "text": clean(one.turn.text),
        "timestamp": one.turn.at,
        "session_id": one.place.session,
        "turn_id": one.turn.turn_id,
        "tool_calls": [_call(call) for call in one.turn.tool_calls],
    }


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool's call, in a depth that every JSON reader takes."""
    return {**call, "input": "[nested too deeply]"} if wire.deeper(call, wire.MAX_DEPTH) else call


def as_item(peer: Peer, one: Told) -> dict[str, Any]:
    """A turn as the timeline shows it."""
    return {
        "id": f"{one.place.session or 'transcript'}:{one.place.offset}",
        "kind": "turn",
        "source": "history",
        **as_turn(one),
        "peer_id": peer.peer_id,
        "peer": peer.display_name,
        "event_ids": [],
    }


def merged(history: list[dict[str, Any]], realtime: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Both in order of time, the newest `limit`; what stands in the transcript is not said twice."""
    known = [(one["role"], _squeezed(one["text"])) for one in history]
    news = [one for one in realtime if one["kind"] != "turn" or not _stands(one, known)]
    return sorted([*history, *news], key=lambda one: _moment(one["timestamp"]))[-limit:]


def _stands(item: dict[str, Any], known: list[tuple[str, str]]) -> bool:
    """Whether what was heard is in the transcript: hooks say of an answer its last part alone."""
    text = _squeezed(item["text"])
    return any(role == item["role"] and said.endswith(text) for role, said in known)


def _squeezed(text: str | None) -> str:
    return " ".join((text or "").split())


def _moment(text: str | None) -> str:
    """For comparing: Z and +00:00 are the same, and a moment without a fraction is the first of its second."""
    return (text or "").replace("Z", "").replace("+00:00", "")


def place_of(text: str) -> Place:
    """The place that a cursor says."""
    try:
        at, session, offset = json.loads(base64.urlsafe_b64decode(text.encode()).decode())
        if isinstance(offset, int) and 0 <= offset < 2**62 and all(isinstance(x, str | None) for x in (at, session)):
            return Place(at, session, offset)
    except (ValueError, binascii.Error, TypeError, RecursionError):
        pass
    raise invalid("before", "must be the `next_before` of an earlier page")


# -- wire --------------------------------------------------------------------------


def _asked(request: web.Request) -> tuple[Peer, str | None]:
    """Whose history it is, and of which session; 403 for another agent's."""
    mesh = request.app[MESH]
    peer = peers.resolve(mesh.db.conn, request.match_info["name"], request.query.get("circle"))
    callers.may_read(mesh, request, peer)
    return peer, request.query.get("session_id")


async def _found(request: web.Request, peer: Peer, session: str | None) -> Found:
    known = sources_of(request.app[MESH], peer, session)
    return await asyncio.to_thread(look, peer.backend, peer.path, known, session is not None)


def _history(mesh: Mesh, peer: Peer, found: Found) -> dict[str, Any]:
    first = found.sources[0] if found.sources else None
    ours = first.repowire_session_id if first else sessions.binding_id(mesh.db.conn, peer.peer_id)
    return {
        "history_status": found.status,
        "history_backend": peer.backend,
        "history_message": found.message,
        "history_source": found.source,
        "repowire_session_id": ours,
        "binding_status": "bound" if ours is not None else "unbound",
        "runtime_session_id": (first.session if first else None) or peer.session,
    }


async def get_transcript(request: web.Request) -> web.Response:
    peer, session = _asked(request)
    limit, before = wire.whole(request, "limit", default=50), request.query.get("before")
    place = None if before is None else place_of(before)
    found = await _found(request, peer, session)
    turns: list[Told] = []
    cursor = None
    if found.sources:
        async with request.app[READINGS].turns:
            reader = READERS[peer.backend]
            turns, cursor = await asyncio.to_thread(page, reader, found.sources, limit, place)
    head = {"turns": [as_turn(one) for one in turns], "next_before": cursor}
    return wire.reply({**head, **_history(request.app[MESH], peer, found)})


async def get_timeline(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    peer, session = _asked(request)
    limit = wire.whole(request, "limit", default=100)
    found = await _found(request, peer, session)
    turns: list[Told] = []
    if found.sources:
        async with request.app[READINGS].turns:
            turns, _ = await asyncio.to_thread(page, READERS[peer.backend], found.sources, limit, None)
    items = merged([as_item(peer, one) for one in turns], heard(mesh, peer, session), limit)
    return wire.reply({**_whose(peer, session), **_history(mesh, peer, found), "items": items})


async def get_search(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    peer, session = _asked(request)
    limit, query = wire.whole(request, "limit", default=20, most=100), request.query.get("q", "")
    if not 0 < len(query) <= MAX_QUERY_CHARS:
        raise invalid("q", f"must be 1 to {MAX_QUERY_CHARS} characters", limit=MAX_QUERY_CHARS)
    found = await _found(request, peer, session)
    wanted = pattern_of(query)
    hits: list[tuple[Told, re.Match[str]]] = []
    whole = True
    if found.sources:
        async with request.app[READINGS].turns:
            hits, whole = await asyncio.to_thread(search, READERS[peer.backend], found.sources, query, limit)
    results = [_result(as_item(peer, one), one.place.cursor, at) for one, at in hits]
    seen = [(one["item"]["role"], _squeezed(one["item"]["text"])) for one in results]
    for item in reversed(heard(mesh, peer, session)):
        at = wanted.search(item["text"] or "")
        if at is not None and len(results) < limit and not _stands(item, seen):
            results.append(_result(item, item["id"], at))
    most = f"{SEARCH_SECONDS:g} s, or {PAGE_BYTES >> 20} MiB of turns that have it"
    why = None if whole else f"not everything was searched, the newest first: at most {most}"
    return wire.reply(
        {
            **_whose(peer, session),
            **_history(mesh, peer, found),
            "query": query,
            "degraded": not whole,
            "degradation_message": why,
            "results": results,
        }
    )


def _whose(peer: Peer, session: str | None) -> dict[str, Any]:
    return {"peer_id": peer.peer_id, "peer_name": peer.display_name, "session_id": session}


def _result(item: dict[str, Any], cursor: str, at: re.Match[str]) -> dict[str, Any]:
    snippet = item["text"][max(0, at.start() - SNIPPET_CHARS) : at.end() + SNIPPET_CHARS]
    return {
        "cursor": cursor,
        "target_id": item["id"],
        "item": item,
        "match": {"start": at.start(), "end": at.end(), "snippet": snippet},
    }


ROUTES = [
    web.get("/peers/{name}/transcript", get_transcript),
    web.get("/peers/{name}/timeline", get_timeline),
    web.get("/peers/{name}/timeline/search", get_search),
]
