"""Traces: what happened to one message, read from the ledger through a derived index; and the stream of events.

The index (which lines belong to which trace, and where they lie) is rebuilt from the lines when it is lost.
"""

import asyncio
import hashlib
import json
import re
from typing import Any

from aiohttp import web

from repowire import wire
from repowire.auth import caller
from repowire.bus import EVERYTHING
from repowire.errors import not_found
from repowire.ledger import Line
from repowire.mesh import MESH, Mesh
from repowire.protocol import INJECTED, KINDS, LEASED_AT_ONCE, RECEIVED, Stage

KEEPALIVE_SECONDS = 15.0
SLICE, SLICE_SECONDS = 256, 0.02  # the index takes this many lines, 1 ms of loop, this often: they are in memory yet
PAGE = 1000  # lines read at once, so that a long catch-up lets others run in between
REPLAY_MOST = 5000
HEX = re.compile("[0-9a-f]{12}")
WINDOW = 500  # events that GET /events looks back (wire.md 1.6)

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE trace_lines (
    trace TEXT NOT NULL, seq INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (trace, seq)
) WITHOUT ROWID;
CREATE TABLE trace_mark (seq INTEGER NOT NULL);     -- one row: indexed so far
INSERT INTO trace_mark VALUES (0);
""",
    """
DROP TABLE trace_lines;                             -- by a number instead of the whole id: half the size
CREATE TABLE trace_lines (
    trace INTEGER NOT NULL,                         -- key_of(trace): two traces may share one
    seq INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (trace, seq)
) WITHOUT ROWID;
UPDATE trace_mark SET seq = 0;                      -- it is read back from the lines
""",
]


def trace_of(line: Line) -> str | None:
    """Which trace a line belongs to: the ask's, else the delivery's own."""
    found = line.facts.get("trace") or line.facts.get("correlation_id") or line.facts.get("delivery_id")
    return found if isinstance(found, str) else None


def key_of(trace: str) -> int:
    """A trace's number in the index: the hex digits of its id, so that neighbours in time stay neighbours in the table.

    Not unique: who looks something up compares the whole id of each line.
    """
    digits = trace.rpartition("-")[2]
    if HEX.fullmatch(digits):
        return int(digits, 16)
    return int.from_bytes(hashlib.blake2b(trace.encode("utf-8", "replace"), digest_size=6).digest())


# -- index -------------------------------------------------------------------


def catch_up(mesh: Mesh, most: int = PAGE) -> bool:
    """Index the next lines; True when there are more."""
    mark = mesh.db.conn.execute("SELECT coalesce(max(seq), 0) FROM trace_mark").fetchone()[0]
    if mark >= mesh.ledger.last:
        return False
    lines = mesh.ledger.after(mark, most)
    rows = [(key_of(trace), line.seq, line.segment, line.offset) for line in lines if (trace := trace_of(line))]
    # what was indexed of numbers that a power cut took: other lines stand at their places now
    lost = [(line.facts["first"], line.facts["last"]) for line in lines if line.kind == "ledger.gap"]
    with mesh.change() as change:
        db = change.db
        db.executemany("DELETE FROM trace_lines WHERE seq BETWEEN ? AND ?", lost)
        db.executemany("INSERT OR REPLACE INTO trace_lines VALUES (?, ?, ?, ?)", rows)
        newest = lines[-1].seq if lines else mesh.ledger.last
        db.execute("INSERT OR REPLACE INTO trace_mark (rowid, seq) VALUES (1, ?)", (newest,))
    return bool(lines) and lines[-1].seq < mesh.ledger.last


async def catch_up_all(mesh: Mesh) -> None:
    """Index every line there is, a page at a time."""
    more = catch_up(mesh)
    while more:
        await asyncio.sleep(0)
        more = catch_up(mesh)


async def run(mesh: Mesh) -> None:
    """Keep the index near the end of the ledger, a slice at a time: messages go before their index.

    Looks when enough lines came, and once a minute; drops the lines that retention took.
    """
    ledger = mesh.config.ledger
    with mesh.bus.listen("ledger.grown") as nudge:
        while True:
            while catch_up(mesh, SLICE):
                await mesh.clock.sleep(SLICE_SECONDS)
            removed = mesh.ledger.prune(mesh.clock.now(), ledger.retention_days * 86400.0, ledger.retention_bytes)
            if removed:
                with mesh.change() as change:
                    change.db.execute("DELETE FROM trace_lines WHERE segment <= ?", (max(removed),))
            await nudge.wait(60.0)


# -- queries -----------------------------------------------------------------


async def lines_of(mesh: Mesh, trace: str) -> list[Line]:
    """The lines of one trace, oldest first; a line that retention took is left out."""
    await catch_up_all(mesh)
    rows = mesh.db.conn.execute(
        "SELECT segment, offset FROM trace_lines WHERE trace = ? ORDER BY seq", (key_of(trace),)
    )
    lines = (mesh.ledger.read(segment, offset) for segment, offset in rows)
    return [line for line in lines if line is not None and trace_of(line) == trace]


def stages_of(lines: list[Line]) -> list[dict[str, Any]]:
    """The lines as published stages (wire.md 6), ours beside them."""
    stages: list[dict[str, Any]] = []
    for line in lines:
        for facts in _each(line):
            for stage in _stages(line):
                stages.append(
                    {
                        "seq": len(stages),
                        "stage": stage.name,
                        "status": "ok" if stage.ok else "fail",
                        "peer_id": facts.get("peer_id") or facts.get("to_peer_id"),
                        "from_peer_id": facts.get("from_peer_id"),
                        "ts": wire.moment(facts.get("sent_at", line.at)),  # said later than it happened
                        "detail": {
                            "kind": line.kind,
                            "line": line.seq,
                            **{key: fact for key, fact in facts.items() if key not in _SHOWN},
                        },
                    }
                )
    return stages


def _each(line: Line) -> list[dict[str, Any]]:
    """The facts of a line: of one that speaks of several copies of a broadcast, those of each."""
    facts = line.facts
    if line.kind not in ("broadcast.leased", "broadcast.sent"):
        return [facts]
    return [
        {"delivery_id": delivery_id, "peer_id": peer_id}
        for delivery_id, peer_id in zip(facts["deliveries"], facts["peers"], strict=True)
    ]


def _stages(line: Line) -> tuple[Stage, ...]:
    kind = KINDS.get(line.kind)
    at_once = LEASED_AT_ONCE if line.kind in ("ask.opened", "notify.accepted") and "by" in line.facts else ()
    received = _RECEIPTS.get(line.facts.get("by", ""), ()) if line.kind == "delivery.handed" else ()
    return received + (kind.stages if kind else ()) + at_once


_RECEIPTS = {"socket": RECEIVED, "pane": INJECTED}
_SHOWN = {"sent_at", "peer_id", "from_peer_id", "to_peer_id", "trace", "text", "attachments"}


def as_event(line: Line) -> dict[str, Any]:
    """A line as an event: the published body, its `id` the ledger's seq, and our kind beside the published type."""
    kind = KINDS.get(line.kind)
    event: dict[str, Any] = {
        "id": str(line.seq),
        "type": kind.event if kind and kind.event else line.kind,
        "timestamp": wire.moment(line.at),
        "kind": line.kind,
    }
    if "chunk_kind" in line.facts:  # a published field of this event, and a word that every line of ours has
        event["kind"] = line.facts["chunk_kind"]
    return event | {key: fact for key, fact in line.facts.items() if key not in event}


# -- wire --------------------------------------------------------------------


async def get_trace(request: web.Request) -> web.Response:
    trace = request.match_info["trace_id"]
    lines = await lines_of(request.app[MESH], trace)
    if not lines:
        raise not_found("trace", trace, f"nothing is recorded of {trace!r}: the id may be wrong, or too old")
    nouns = {line.kind.partition(".")[0] for line in lines}
    kind = next((noun for noun in ("ask", "fanout", "broadcast", "question") if noun in nouns), "notify")
    return wire.reply({"trace_id": trace, "kind": kind, "stages": stages_of(lines)})


async def get_events(request: web.Request) -> web.Response:
    """The newest events, at most 500 (`limit`), oldest first; `since` is an id, and what follows it is returned."""
    ledger = request.app[MESH].ledger
    most = wire.whole(request, "limit", default=WINDOW)
    since = request.query.get("since", "")
    known = (
        since.isascii() and since.isdigit() and len(since) < 16 and ledger.last - WINDOW <= int(since) <= ledger.last
    )
    lines = ledger.after(int(since) if known else max(0, ledger.last - most), most)
    return wire.reply([as_event(line) for line in lines])


async def get_stream(request: web.Request) -> web.StreamResponse:
    """Server-sent events. `Last-Event-ID` or `?since=` resume without loss or repeat; else `?replay=N` goes N back.

    A rotation of the token ends the stream that an old one opened over TCP."""
    mesh = request.app[MESH]
    at, generation = _start(request, mesh), mesh.auth.generation
    by_token = caller(request).via == "tcp"
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)
    request[wire.STARTED] = response
    await response.write(b": repowire\n\n")
    with mesh.bus.listen(EVERYTHING) as nudge:
        while not (by_token and mesh.auth.generation != generation):
            while lines := mesh.ledger.after(at, PAGE):
                await response.write("".join(map(_sse, lines)).encode())
                at = lines[-1].seq
            if mesh.bus.closed:
                return response
            if not await nudge.wait(KEEPALIVE_SECONDS):
                await response.write(b": keepalive\n\n")
    return response


def _start(request: web.Request, mesh: Mesh) -> int:
    newest = mesh.ledger.last
    text = request.headers.get("Last-Event-ID") or request.query.get("since")
    if text is None:  # a browser that reconnects sends the id and the same query: the id wins
        return max(0, newest - wire.whole(request, "replay", default=0, least=0, most=REPLAY_MOST))
    # an id that was never given out is of another ledger: to wait for it would lose all events until then
    return min(int(text), newest) if text.isascii() and text.isdigit() and len(text) < 16 else newest


def _sse(line: Line) -> str:
    return f"id: {line.seq}\ndata: {json.dumps(as_event(line), ensure_ascii=False)}\n\n"


ROUTES = [
    web.get("/traces/{trace_id}", get_trace),
    web.get("/events", get_events),
    web.get("/events/stream", get_stream),
]
