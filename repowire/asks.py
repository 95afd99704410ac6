"""Asks: a question from one peer to another that stays open until it is answered, declined or expires.

How one ends, and how that reaches who asked, is in `replies.py`.
"""

import json
import time
from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, choices, deliveries, idempotency, intake, mailboxes, names, peers, wire
from repowire.choices import Answer, Question
from repowire.clock import new_id
from repowire.deliveries import Delivery
from repowire.errors import malformed, not_found, unavailable
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HINT, HUMAN, MAX_TEXT_CHARS, how_to_ack

PENDING_MOST = 10

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE asks (
    seq INTEGER PRIMARY KEY, correlation_id TEXT NOT NULL UNIQUE,
    from_peer TEXT NOT NULL, from_peer_id TEXT,               -- a stranger has a name and no id
    to_peer TEXT NOT NULL, to_peer_id TEXT NOT NULL,
    text TEXT NOT NULL, attachments TEXT, reply_to TEXT,
    delivery_id TEXT NOT NULL,
    created_at REAL NOT NULL, expires_at REAL NOT NULL,        -- unix seconds
    closed_at REAL, close_reason TEXT,                         -- both NULL while the ask is open
    reply TEXT, reply_attachments TEXT, replied_by TEXT,
    reply_at_rest INTEGER NOT NULL DEFAULT 1                   -- 0: a waiter is about to take the reply
);
CREATE INDEX asks_open_to ON asks (to_peer_id, seq) WHERE closed_at IS NULL;
CREATE INDEX asks_open_from ON asks (from_peer_id, seq) WHERE closed_at IS NULL;
CREATE INDEX asks_in_hand ON asks (seq) WHERE reply_at_rest = 0;
CREATE VIEW waits AS                                           -- for whom something waits: see peers.waiting
    SELECT peer_id FROM deliveries WHERE state IN ('queued', 'held')
    UNION ALL SELECT to_peer_id FROM asks WHERE closed_at IS NULL
    UNION ALL SELECT from_peer_id FROM asks WHERE closed_at IS NULL;
""",
    """
ALTER TABLE asks ADD COLUMN reminded_at REAL;                  -- unix seconds; the peer was told that it is still open
""",
    """
ALTER TABLE asks ADD COLUMN parent_id TEXT;                    -- the ask-many that it is one of
CREATE INDEX asks_by_parent ON asks (parent_id) WHERE parent_id IS NOT NULL;
""",
    """
ALTER TABLE asks ADD COLUMN reminders INTEGER NOT NULL DEFAULT 0;  -- how often by name: see reminders.py
""",
    """
ALTER TABLE asks ADD COLUMN question TEXT;                     -- what may be answered, as JSON; NULL: a plain ask
ALTER TABLE asks ADD COLUMN answer TEXT;                       -- what was, as JSON
""",
]


class Ask(NamedTuple):
    """A row of `asks`; moments are unix seconds, attachments JSON text."""

    seq: int
    correlation_id: str
    from_peer: str
    from_peer_id: str | None
    to_peer: str
    to_peer_id: str
    text: str
    attachments: str | None
    reply_to: str | None
    delivery_id: str
    created_at: float
    expires_at: float
    closed_at: float | None = None
    close_reason: str | None = None
    reply: str | None = None
    reply_attachments: str | None = None
    replied_by: str | None = None
    reply_at_rest: int = 1
    reminded_at: float | None = None
    parent_id: str | None = None
    reminders: int = 0
    question: str | None = None
    answer: str | None = None

    @property
    def structured(self) -> Question | None:
        """Its structured question, if it has one."""
        return choices.of_text(self.question)

    @property
    def answered(self) -> Answer | None:
        """What was made of that."""
        return choices.answer_of(self.answer)


SOON = "ask.soon"  # one was opened that ends before anybody would look
LOOKED_AT_SECONDS = 60.0


def wait_topic(correlation_id: str) -> str:
    """Who listens to it waits for the ask's reply."""
    return f"wait:{correlation_id}"


# -- queries -----------------------------------------------------------------


def find(db: Connection, correlation_id: str) -> Ask | None:
    """By id."""
    row = db.execute("SELECT * FROM asks WHERE correlation_id = ?", (correlation_id,)).fetchone()
    return Ask(*row) if row else None


def load(db: Connection, correlation_id: str) -> Ask:
    """By id; 404 when there is none, or it was closed more than a day ago."""
    ask = find(db, correlation_id)
    if ask is None:
        raise not_found("ask", correlation_id, f"there is no ask {correlation_id!r}, or it was closed over a day ago")
    return ask


_SIDES = {
    "inbound": "to_peer_id = :peer",
    "outbound": "from_peer_id = :peer",
    "both": "(to_peer_id = :peer OR from_peer_id = :peer)",
}
_STATES = {
    "open": "closed_at IS NULL",
    "closed": "closed_at IS NOT NULL",
    "answered": "reply IS NOT NULL AND close_reason != 'declined'",
}


def listed(
    db: Connection, peer_id: str | None, direction: str, state: str | None, most: int, before: int | None = None
) -> list[Ask]:
    """Asks to a peer (inbound), from it (outbound) or both, or of all; newest first, older than seq `before`."""
    sides = [_SIDES[direction]] if peer_id is not None else []
    where = " AND ".join(["seq < :before", *sides, *([_STATES[state]] if state else [])])
    rows = db.execute(
        f"SELECT * FROM asks WHERE {where} ORDER BY seq DESC LIMIT :most",
        {"peer": peer_id, "most": most, "before": 2**62 if before is None else before},
    )
    return [Ask(*row) for row in rows]


def oldest_to(db: Connection, peer_id: str) -> Ask | None:
    """The open ask that a peer was asked first."""
    row = db.execute(
        "SELECT * FROM asks WHERE to_peer_id = ? AND closed_at IS NULL ORDER BY seq", (peer_id,)
    ).fetchone()
    return Ask(*row) if row else None


def waits_on(db: Connection, peer_id: str) -> tuple[int, float | None]:
    """How many open asks a peer has to answer (counted up to 50, wire.md 1.2), and when the oldest was opened."""
    row = db.execute(
        "SELECT count(*), min(created_at) FROM"
        " (SELECT created_at FROM asks WHERE to_peer_id = ? AND closed_at IS NULL ORDER BY seq LIMIT 50)",
        (peer_id,),
    ).fetchone()
    return row[0], row[1]


# -- rules -------------------------------------------------------------------


class Draft(NamedTuple):
    """An ask as it was posted."""

    from_peer: str
    to_peer: str
    text: str
    circle: str | None = None
    bypass_circle: bool = False
    reply_to: str | None = None
    attachments: tuple[dict[str, Any], ...] = ()
    keep_if_offline: bool = False
    question: Question | None = None


def open_ask(change: Change, mesh: Mesh, draft: Draft, parent_id: str | None = None) -> tuple[Ask, Delivery]:
    """Open an ask and put it into the recipient's mailbox; `parent_id` is the ask-many that it is one of.

    404 and 409 for the recipient, 403 across circles, 503 `no_live_transport` when nobody would get it now and it was
    not asked to be kept (wire.md 16, row 12), 429 when the mailbox is full.
    """
    target = names.meant(change, draft.to_peer, draft.circle)
    sender = peers.sender(change, draft.from_peer, target.circle)
    peers.check_circle(sender, target, bypass=draft.bypass_circle)
    if not (draft.keep_if_offline or mesh.doors.of(target.peer_id) or keeps_asks(target)):
        raise unavailable(
            "no_live_transport",
            f'{target.display_name} is not connected; send with if_offline: "queue" (CLI: --queue) to leave it there',
            peer_id=target.peer_id,
        )
    config = mesh.config.daemon
    question = draft.question
    seconds = config.ask_ttl_seconds if question is None else question.timeout_seconds or config.ask_ttl_seconds
    correlation_id, expires_at = new_id("ask"), change.now + min(seconds, config.ask_ttl_seconds)
    from_peer, from_peer_id = (sender.display_name, sender.peer_id) if sender else (draft.from_peer, None)
    delivery = intake.queue(
        change,
        target.peer_id,
        _frame(correlation_id, from_peer, target.display_name, draft),
        trace=correlation_id,
        from_peer_id=from_peer_id,
        expires_at=expires_at,
        most=config.delivery_queue_max_per_peer,
    )
    change.record(
        "ask.opened",
        correlation_id=correlation_id,
        **{"from": from_peer, "to": target.display_name},
        from_peer_id=from_peer_id,
        to_peer_id=target.peer_id,
        text=draft.text,
        reply_to=draft.reply_to,
        parent_id=parent_id,
        by=intake.straight_by(delivery),
        attachments=list(draft.attachments) or None,
        question=question.as_json() if question else None,
    )
    intake.tell(change, delivery)
    ask = Ask(
        seq=0,
        correlation_id=correlation_id,
        from_peer=from_peer,
        from_peer_id=from_peer_id,
        to_peer=target.display_name,
        to_peer_id=target.peer_id,
        text=draft.text,
        attachments=json.dumps(draft.attachments) if draft.attachments else None,
        reply_to=draft.reply_to,
        delivery_id=delivery.delivery_id,
        created_at=change.now,
        expires_at=expires_at,
        parent_id=parent_id,
        question=json.dumps(question.as_json()) if question else None,
    )
    change.db.execute(_INSERT, (None, *ask[1:]))
    if expires_at - change.now < LOOKED_AT_SECONDS:
        change.ring(SOON)
    if draft.reply_to:
        _close_by_reply(change, draft.reply_to, ask)
    return ask, delivery


_INSERT = f"INSERT INTO asks VALUES ({', '.join('?' * len(Ask._fields))})"


def keeps_asks(peer: Peer) -> bool:
    """A peer without a socket that fetches its mail, and the human, have asks kept for them (wire.md 1.11, 8)."""
    return peer.role == HUMAN or peer.details.get("repowire_cli_fallback") is True


def _frame(correlation_id: str, from_peer: str, to_peer: str, draft: Draft) -> dict[str, Any]:
    hint = how_to_ack(correlation_id)
    if draft.question is not None:
        hint = f'{HINT}answer("{correlation_id}", option_id=...) or answer("{correlation_id}", text="...")'
    frame: dict[str, Any] = {
        "type": "ask",
        "correlation_id": correlation_id,
        "from_peer": from_peer,
        "to_peer": to_peer,
        "text": draft.text.rstrip() + hint,
    }
    if draft.attachments:
        frame["attachments"] = list(draft.attachments)
    if draft.reply_to:
        frame["reply_to"] = draft.reply_to
    if draft.question is not None:
        frame["question"] = draft.question.as_json()
    return frame


def _close_by_reply(change: Change, correlation_id: str, later: Ask) -> None:
    """A later ask of the one who was asked, back to the asker, answers the open one (wire.md 5.1)."""
    first = find(change.db, correlation_id)
    if first is None or (first.to_peer_id, first.from_peer_id) != (later.from_peer_id, later.to_peer_id):
        return
    if close(change, correlation_id, "reply_to"):
        change.record("ask.closed", correlation_id=correlation_id, reason="reply_to")
        deliveries.answered(change, first.delivery_id)
        change.ring(wait_topic(correlation_id))


def close(change: Change, correlation_id: str, reason: str, **columns: Any) -> bool:
    """The guarded UPDATE; False when the ask was closed before."""
    more = "".join(f", {name} = ?" for name in columns)
    done = change.db.execute(
        f"UPDATE asks SET closed_at = ?, close_reason = ?{more} WHERE correlation_id = ? AND closed_at IS NULL",
        (change.now, reason, *columns.values(), correlation_id),
    )
    return done.rowcount == 1


async def wait(mesh: Mesh, correlation_id: str, seconds: float) -> Ask:
    """Wait until an ask is closed, at most `seconds`; the row is the truth, the nudge only the wake-up."""
    with mesh.bus.listen(wait_topic(correlation_id)) as nudge:
        ask, end_at = load(mesh.db.conn, correlation_id), time.monotonic() + seconds
        while ask.closed_at is None and not mesh.bus.closed and (left := end_at - time.monotonic()) > 0:
            await nudge.wait(left)
            ask = load(mesh.db.conn, correlation_id)
        return ask


# -- wire --------------------------------------------------------------------


def as_json(db: Connection, ask: Ask) -> dict[str, Any]:
    """An ask as the lists show it."""
    delivery = deliveries.find(db, ask.delivery_id)
    return {
        "correlation_id": ask.correlation_id,
        "from_peer": ask.from_peer,
        "to_peer": ask.to_peer,
        "from_peer_id": ask.from_peer_id,
        "to_peer_id": ask.to_peer_id,
        "text": ask.text,
        "reply_to": ask.reply_to,
        "parent_id": ask.parent_id,
        "created_at": wire.moment(ask.created_at),
        "state": "open" if ask.closed_at is None else "closed",
        "closed_at": wire.moment(ask.closed_at),
        "close_reason": ask.close_reason,
        "reply": ask.reply,
        "replied_by": ask.replied_by,
        "question": json.loads(ask.question) if ask.question else None,
        "outcome": ask.answered.outcome if ask.answered else None,
        "option_id": ask.answered.option_id if ask.answered else None,
        "delivery_state": delivery.state if delivery else None,
        "delivery_reason": delivery.reason if delivery else None,
    }


async def post_ask(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    draft = Draft(
        from_peer=speaker(mesh, request, body),
        to_peer=body.text("to_peer"),
        text=body.text("text", max_chars=MAX_TEXT_CHARS),
        circle=body.optional_identifier("circle"),
        bypass_circle=body.flag("bypass_circle"),
        reply_to=body.optional_text("reply_to", max_chars=64),
        attachments=tuple(body.records("attachments")),
        keep_if_offline=body.choice("if_offline", ("queue", "refuse"), "refuse") == "queue",
        question=choices.read(body),
    )
    claim = idempotency.claimed(request, body.fields, draft.from_peer)
    with mesh.change() as change:
        if (made := idempotency.first(change, claim)) is not None:
            return _asked(ask := load(change.db, made), deliveries.load(change.db, ask.delivery_id))
        ask, delivery = open_ask(change, mesh, draft)
        idempotency.keep(change, claim, ask.correlation_id)
    return _asked(ask, await mailboxes.written(mesh, delivery))


def _asked(ask: Ask, delivery: Delivery) -> web.Response:
    return wire.reply(
        {
            "correlation_id": ask.correlation_id,
            "error": None,
            "to_peer": ask.to_peer,
            "to_peer_id": ask.to_peer_id,
            "delivery_id": delivery.delivery_id,
            **deliveries.standing(delivery),
        }
    )


def speaker(mesh: Mesh, request: web.Request, body: wire.Body) -> str:
    """Who sends: the named peer, the agent that calls, or the human."""
    spoken = callers.spoken_for(mesh, request, body.optional_text("from_peer", max_chars=128))
    return spoken if spoken is not None else callers.human(mesh).peer_id


async def get_pending(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    pane_id, name = request.query.get("pane_id"), request.query.get("peer_id")
    direction = request.query.get("direction", "inbound")
    if (pane_id is None) == (name is None):
        raise malformed("give exactly one of pane_id and peer_id")
    if direction not in _SIDES:
        raise malformed("direction must be inbound, outbound or both")
    db = mesh.db.conn
    peer = peers.of_pane(db, pane_id) if pane_id else peers.resolve(db, name or "")
    callers.may_read(mesh, request, peer)
    most = wire.whole(request, "limit", default=PENDING_MOST)
    found = listed(db, peer.peer_id, direction, "open", most + 1, wire.cursor(request))
    return wire.reply(
        wire.page(request, found[most - 1].seq if len(found) > most else None)
        | {
            "asks": [
                {
                    "correlation_id": ask.correlation_id,
                    "from_peer": ask.from_peer,
                    "to_peer": ask.to_peer,
                    "text": ask.text,
                    "created_at": wire.moment(ask.created_at),
                    "direction": "inbound" if ask.to_peer_id == peer.peer_id else "outbound",
                }
                for ask in found[:most]
            ]
        }
    )


async def get_history(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    direction = wire.word(request, "direction", tuple(_SIDES), "both") or "both"
    state = wire.word(request, "state", tuple(_STATES))
    most, before = wire.whole(request, "limit", default=50), wire.cursor(request)
    name = request.query.get("peer_id")
    peer = peers.resolve(mesh.db.conn, name) if name else callers.calling(mesh, request)  # an agent sees its own
    if peer is not None:
        callers.may_read(mesh, request, peer)
    found = listed(mesh.db.conn, peer.peer_id if peer else None, direction, state, most + 1, before)
    return wire.reply(
        {
            "asks": [as_json(mesh.db.conn, ask) for ask in found[:most]],
            "next": wire.next_cursor(found[most - 1].seq) if len(found) > most else None,
        }
    )


async def post_noted(request: web.Request) -> web.Response:
    """Published, and without effect (wire.md 1.4): what was picked up or reminded of is known by evidence."""
    await wire.read(request)
    return wire.reply({"ok": True})


ROUTES = [
    web.post("/ask", post_ask),
    web.post("/asks/{correlation_id}/picked_up", post_noted),
    web.post("/asks/{correlation_id}/mark_reminded", post_noted),
    web.get("/asks/pending", get_pending),
    web.get("/asks/history", get_history),
]
