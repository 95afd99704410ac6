"""Ask-many: one question put to several peers at once, each by an ask of its own, and the roll-up of their answers.

A child is an ask like any other: it is acked, waited for and expires as such. The group keeps only who was asked; the
state of each child is read from its ask, so it cannot contradict it.
"""

from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import asks, callers, deliveries, idempotency, mailboxes, names, peers, wire
from repowire.asks import Ask, Draft
from repowire.clock import new_id
from repowire.deliveries import Delivery
from repowire.errors import Refusal, forbidden, invalid, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.protocol import DEFAULT_CIRCLE, MAX_TEXT_CHARS

CHILDREN_MOST = 50  # wire.md 1.4
TIMEOUT_SECONDS, TIMEOUT_MOST_SECONDS = 300.0, 7 * 86_400.0
KEPT_SECONDS = 24 * 3600.0  # after the last of its asks is gone
ENDS_WELL = ("ack", "ack_with_msg", "answered", "reply_to")  # close reasons, wire.md 5.1; all others mean no answer

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE ask_groups (
    parent_id TEXT PRIMARY KEY, from_peer TEXT NOT NULL, from_peer_id TEXT, text TEXT NOT NULL,
    created_at REAL NOT NULL, deadline_at REAL NOT NULL        -- unix seconds
) WITHOUT ROWID;
CREATE TABLE ask_children (
    parent_id TEXT NOT NULL, place INTEGER NOT NULL,           -- place: as they were named
    peer TEXT NOT NULL, peer_id TEXT,
    correlation_id TEXT,                                       -- NULL: it could not be asked, and
    error TEXT,                                                -- this is why
    PRIMARY KEY (parent_id, place)
) WITHOUT ROWID;
CREATE INDEX ask_groups_by_age ON ask_groups (created_at);
CREATE INDEX ask_children_by_ask ON ask_children (correlation_id) WHERE correlation_id IS NOT NULL;
"""
]


class Group(NamedTuple):
    """A row of `ask_groups`; moments are unix seconds."""

    parent_id: str
    from_peer: str
    from_peer_id: str | None
    text: str
    created_at: float
    deadline_at: float


class Child(NamedTuple):
    """A row of `ask_children`: one who was asked, or why not."""

    parent_id: str
    place: int
    peer: str
    peer_id: str | None
    correlation_id: str | None
    error: str | None


# -- queries -------------------------------------------------------------------


def load(db: Connection, parent_id: str) -> Group:
    """By id; 404 when there is none, or it ended more than a day ago."""
    row = db.execute("SELECT * FROM ask_groups WHERE parent_id = ?", (parent_id,)).fetchone()
    if row is None:
        raise not_found("ask_many", parent_id, f"there is no ask-many {parent_id!r}, or it ended over a day ago")
    return Group(*row)


def children(db: Connection, parent_id: str) -> list[Child]:
    """Who was asked, in the order of the request."""
    rows = db.execute("SELECT * FROM ask_children WHERE parent_id = ? ORDER BY place", (parent_id,))
    return [Child(*row) for row in rows]


# -- rules ---------------------------------------------------------------------


class Plan(NamedTuple):
    """An ask-many as it was posted."""

    draft: Draft  # of which `to_peer` is each of `to_peers`
    to_peers: tuple[str, ...]
    seconds: float


def open_all(change: Change, mesh: Mesh, plan: Plan) -> tuple[Group, list[tuple[Child, Delivery | None]]]:
    """Ask everybody, all in one change. Who cannot be asked is a child with an error and holds back nobody.

    A peer that is meant twice, by two names of it, is asked once. 409 for an ambiguous sender, before anybody is asked.
    """
    sender = peers.sender(change, plan.draft.from_peer, plan.draft.circle or DEFAULT_CIRCLE)
    group = Group(
        parent_id=new_id("askm"),
        from_peer=sender.display_name if sender else plan.draft.from_peer,
        from_peer_id=sender.peer_id if sender else None,
        text=plan.draft.text,
        created_at=change.now,
        deadline_at=change.now + plan.seconds,
    )
    asked: list[tuple[Child, Delivery | None]] = []
    met: set[str] = set()
    for name in dict.fromkeys(plan.to_peers):
        try:
            target = names.meant(change, name, plan.draft.circle)
            if target.peer_id in met:
                continue
            met.add(target.peer_id)
            ask, delivery = asks.open_ask(change, mesh, plan.draft._replace(to_peer=target.peer_id), group.parent_id)
            child = Child(group.parent_id, len(asked), ask.to_peer, ask.to_peer_id, ask.correlation_id, None)
            asked.append((child, delivery))
        except Refusal as refusal:
            asked.append((Child(group.parent_id, len(asked), name, None, None, refusal.hint), None))
    change.record(
        "fanout.opened",
        trace=group.parent_id,
        **{"from": group.from_peer},
        from_peer_id=group.from_peer_id,
        text=group.text,
        children=[{"peer": child.peer, "correlation_id": child.correlation_id} for child, _ in asked],
    )
    change.db.execute("INSERT INTO ask_groups VALUES (?, ?, ?, ?, ?, ?)", group)
    change.db.executemany("INSERT INTO ask_children VALUES (?, ?, ?, ?, ?, ?)", [child for child, _ in asked])
    return group, asked


def status(child: Child, ask: Ask | None) -> str:
    """What became of one who was asked: acked, replied, pending or failed (wire.md 1.4)."""
    if ask is not None and ask.closed_at is None:
        return "pending"
    if ask is None or ask.close_reason not in ENDS_WELL:
        return "failed"
    return "replied" if ask.reply is not None or ask.reply_attachments else "acked"


def rollup(db: Connection, group: Group, now: float) -> dict[str, Any]:
    """What came of all of them, as the wire shows it."""
    rows = [_answer(db, child) for child in children(db, group.parent_id)]
    count = {word: sum(row["status"] == word for row in rows) for word in ("acked", "replied", "pending", "failed")}
    late = now >= group.deadline_at and count["pending"] > 0
    return {
        "parent_id": group.parent_id,
        "from_peer": group.from_peer,
        "text": group.text,
        "created_at": wire.moment(group.created_at),
        "deadline": wire.moment(group.deadline_at),
        "state": "partial" if late else "pending" if count["pending"] else "complete",
        "timed_out": late,
        "rollup": {"total": len(rows), **count},
        "children": rows,
    }


# -- loop ----------------------------------------------------------------------

WAKES = ()


def tick(mesh: Mesh) -> float:
    """Forget groups that are over: none of their asks is there any more."""
    old = mesh.clock.now() - KEPT_SECONDS
    rows = mesh.db.conn.execute(
        "SELECT parent_id FROM ask_groups WHERE created_at <= ? AND NOT EXISTS (SELECT 1 FROM ask_children"
        " JOIN asks USING (correlation_id) WHERE ask_children.parent_id = ask_groups.parent_id) LIMIT 500",
        (old,),
    ).fetchall()
    if rows:
        with mesh.change() as change:
            for table in ("ask_groups", "ask_children"):
                change.db.executemany(f"DELETE FROM {table} WHERE parent_id = ?", [(row[0],) for row in rows])
    return 60.0


# -- wire ----------------------------------------------------------------------


async def post_ask_many(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    if body.has("question"):
        raise invalid("question", "is not for several: put it to each of them with POST /ask")
    draft = Draft(
        from_peer=asks.speaker(mesh, request, body),
        to_peer="",
        text=body.text("text", max_chars=MAX_TEXT_CHARS),
        circle=body.optional_identifier("circle"),
        bypass_circle=body.flag("bypass_circle"),
        attachments=tuple(body.records("attachments")),
        keep_if_offline=body.choice("if_offline", ("queue", "refuse"), "refuse") == "queue",
    )
    plan = Plan(draft, names_of(body, "to_peers"), max(0.0, body.seconds("timeout_seconds", default=TIMEOUT_SECONDS,
                                                             at_most=TIMEOUT_MOST_SECONDS)))  # fmt: skip
    claim = idempotency.claimed(request, body.fields, draft.from_peer)
    with mesh.change() as change:
        if (made := idempotency.first(change, claim)) is not None:
            asked = [(child, _delivery(change.db, child)) for child in children(change.db, made)]
            return _opened(load(change.db, made), asked)
        group, opened = open_all(change, mesh, plan)
        idempotency.keep(change, claim, group.parent_id)
    sent = await mailboxes.all_written(mesh, [delivery for _, delivery in opened if delivery is not None])
    written = {one.delivery_id: one for one in sent}
    return _opened(group, [(child, written[one.delivery_id] if one else None) for child, one in opened])


def names_of(body: wire.Body, field: str) -> tuple[str, ...]:
    """Who is to be asked."""
    names = body.members(field, most=CHILDREN_MOST)
    if not names or not all(isinstance(name, str) and 0 < len(name) <= 128 for name in names):
        raise invalid(field, f"must be a list of 1 to {CHILDREN_MOST} peers' names or ids", limit=CHILDREN_MOST)
    return tuple(names)


def _delivery(db: Connection, child: Child) -> Delivery | None:
    ask = asks.find(db, child.correlation_id) if child.correlation_id else None
    return deliveries.find(db, ask.delivery_id) if ask else None


def _opened(group: Group, asked: list[tuple[Child, Delivery | None]]) -> web.Response:
    return wire.reply(
        {
            "parent_id": group.parent_id,
            "children": [
                {
                    "peer": child.peer,
                    "correlation_id": child.correlation_id,
                    "delivered": delivery is not None and deliveries.standing(delivery)["delivered"],
                    "state": delivery.state if delivery else None,
                    "error": child.error,
                }
                for child, delivery in asked
            ],
        }
    )


async def get_ask_many(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    db, now = mesh.db.conn, mesh.clock.now()
    group = load(db, request.match_info["parent_id"])
    caller = callers.calling(mesh, request)
    if caller is not None and caller.peer_id != group.from_peer_id:
        raise forbidden("not_the_asker", f"only {group.from_peer} reads the answers", asker=group.from_peer)
    return wire.reply(rollup(db, group, now))


def _answer(db: Connection, child: Child) -> dict[str, Any]:
    ask = asks.find(db, child.correlation_id) if child.correlation_id else None
    return {
        "peer": child.peer,
        "peer_id": child.peer_id,
        "correlation_id": child.correlation_id,
        "status": status(child, ask),
        "reply": ask.reply if ask else None,
        "close_reason": ask.close_reason if ask else None,
        "error": child.error,
    }


ROUTES = [
    web.post("/ask-many", post_ask_many),
    web.get("/ask-many/{parent_id}", get_ask_many),
]
