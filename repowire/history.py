"""History: what a peer and its user said to each other, by the runtime's own transcripts, and by what was heard of it.

Which transcripts a peer has is found here; how they are read is in `turns.py`.
"""

import asyncio
import re
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, peers, sessions, turns, wire
from repowire.agents.turns import READERS
from repowire.errors import invalid
from repowire.ledger import Line as LedgerLine
from repowire.mesh import MESH, Mesh
from repowire.peers import Peer
from repowire.protocol import clean
from repowire.turns import Place, Source, Told

READ_AT_ONCE = 2  # threads that read transcripts, so that they leave some to the rest
REALTIME_LINES = 2000  # of the ledger, for what has no transcript, or is not in it yet
MAX_QUERY_CHARS = 200
SNIPPET_CHARS = 60  # on either side of what was found

# -- model ---------------------------------------------------------------------


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


async def _page(
    request: web.Request, peer: Peer, found: Found, limit: int, before: Place | None
) -> tuple[list[Told], str | None]:
    if not found.sources:
        return [], None
    async with request.app[READINGS].turns:
        return await asyncio.to_thread(turns.page, READERS[peer.backend], found.sources, limit, before)


async def get_transcript(request: web.Request) -> web.Response:
    peer, session = _asked(request)
    limit, before = wire.whole(request, "limit", default=50), request.query.get("before")
    place = None if before is None else turns.place_of(before)
    found = await _found(request, peer, session)
    told, cursor = await _page(request, peer, found, limit, place)
    head = {"turns": [as_turn(one) for one in told], "next_before": cursor}
    return wire.reply({**head, **_history(request.app[MESH], peer, found)})


async def get_timeline(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    peer, session = _asked(request)
    limit = wire.whole(request, "limit", default=100)
    found = await _found(request, peer, session)
    told, _ = await _page(request, peer, found, limit, None)
    items = merged([as_item(peer, one) for one in told], heard(mesh, peer, session), limit)
    return wire.reply({**_whose(peer, session), **_history(mesh, peer, found), "items": items})


async def get_search(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    peer, session = _asked(request)
    limit, query = wire.whole(request, "limit", default=20, most=100), request.query.get("q", "")
    if not 0 < len(query) <= MAX_QUERY_CHARS:
        raise invalid("q", f"must be 1 to {MAX_QUERY_CHARS} characters", limit=MAX_QUERY_CHARS)
    found = await _found(request, peer, session)
    wanted = turns.pattern_of(query)
    hits: list[tuple[Told, re.Match[str]]] = []
    whole = True
    if found.sources:
        async with request.app[READINGS].turns:
            hits, whole = await asyncio.to_thread(turns.search, READERS[peer.backend], found.sources, query, limit)
    results = [_result(as_item(peer, one), one.place.cursor, at) for one, at in hits]
    seen = [(one["item"]["role"], _squeezed(one["item"]["text"])) for one in results]
    for item in reversed(heard(mesh, peer, session)):
        at = wanted.search(item["text"] or "")
        if at is not None and len(results) < limit and not _stands(item, seen):
            results.append(_result(item, item["id"], at))
    most = f"{turns.SEARCH_SECONDS:g} s, or {turns.PAGE_BYTES >> 20} MiB of turns that have it"
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
