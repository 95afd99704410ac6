"""Questions to the human: what is asked, and how it ends. Whoever asked stands still meanwhile (`blocking.py`).

One is closed by one guarded UPDATE: the first answer of all surfaces wins, and whatever else becomes of a tool
permission (time-out, restart, a client that left, a clock that jumped, a fault of ours) is a denial. A permission is
for one call, whose tool, arguments, folder and session are its digest.
"""

import json
from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, choices, wire
from repowire.auth import caller as door_of
from repowire.choices import ALLOW, TOOL_PERMISSION, Answer, Option
from repowire.errors import Refusal, conflict, forbidden, invalid, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN

JUMP_SECONDS = 5.0  # the clock may drift so far from the time that passed; more is a jump
KEPT_SECONDS = 24 * 3600.0  # how long a closed one can be read here; the ledger has it longer
LISTED = 50
DIGEST_CHARS = 64  # hex digits of SHA-256

Json = dict[str, Any]

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE questions (
    seq INTEGER PRIMARY KEY, correlation_id TEXT NOT NULL UNIQUE,
    from_peer TEXT NOT NULL, from_peer_id TEXT,
    prompt TEXT NOT NULL, options TEXT NOT NULL,               -- options: a JSON list
    scope TEXT, origin TEXT, metadata TEXT NOT NULL,           -- metadata: a JSON object
    session TEXT, digest TEXT,                                 -- of a tool permission: SHA-256 of the call
    dialog INTEGER NOT NULL,                                   -- 1: the runtime shows a dialog of its own meanwhile
    wait_seconds REAL NOT NULL,
    created_at REAL NOT NULL,                                  -- unix seconds
    opened_at REAL NOT NULL,                                   -- the same on the machine's monotonic clock
    closed_at REAL, outcome TEXT, option_id TEXT, text TEXT, message TEXT,
    reason TEXT,                                               -- why it was closed: answered, rule, timed_out, …
    answered_by TEXT, surface TEXT                             -- who answered, and from where
);
CREATE INDEX questions_open ON questions (seq) WHERE closed_at IS NULL;
CREATE INDEX questions_by_session ON questions (session) WHERE session IS NOT NULL AND closed_at IS NULL;
"""
]

# Why a question was closed without an answer, in words for the model and for people
WORDS = {
    "timed_out": "nobody answered it in its time",
    "client_left": "who asked has left",
    "restarted": "the daemon was started anew while it was open",
    "shutting_down": "the daemon stopped while it was open",
    "clock_jumped": "the machine's clock jumped, or it slept, while it was open",
    "failed": "a fault of the daemon's ended it",
    "withdrawn": "it was withdrawn by who asked it",
    "answered_in_terminal": "it was answered in the agent's own dialog",
}


class Question(NamedTuple):
    """A row of `questions`; options and metadata are JSON text."""

    seq: int | None
    correlation_id: str
    from_peer: str
    from_peer_id: str | None
    prompt: str
    options: str
    scope: str | None
    origin: str | None
    metadata: str
    session: str | None
    digest: str | None
    dialog: int
    wait_seconds: float
    created_at: float
    opened_at: float
    closed_at: float | None = None
    outcome: str | None = None
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    reason: str | None = None
    answered_by: str | None = None
    surface: str | None = None

    @property
    def is_permission(self) -> bool:
        return self.scope == TOOL_PERMISSION

    @property
    def decision(self) -> str | None:
        """What a hook is to do: allow, deny, or none (leave it to the runtime); None while it is open."""
        if self.closed_at is None or not self.is_permission:
            return None
        if self.outcome == "answered" and self.option_id == ALLOW:
            return "allow"
        return "none" if self.dialog and self.outcome in ("timed_out", "cancelled") else "deny"

    @property
    def kind(self) -> str:
        return "text" if self.options == "[]" else "choice"

    def offered(self) -> tuple[Option, ...]:
        """The options."""
        return tuple(Option(**option) for option in json.loads(self.options))

    def asked(self) -> choices.Question:
        """In the words of structured questions, which say what may be answered."""
        return choices.Question(
            kind=self.kind,
            prompt=self.prompt,
            options=self.offered(),
            blocking=True,
            timeout_seconds=self.wait_seconds,
            scope=self.scope,
            metadata=json.loads(self.metadata),
        )


def topic(correlation_id: str) -> str:
    """Who listens to it waits for the answer."""
    return f"question:{correlation_id}"


# -- queries -------------------------------------------------------------------


def find(db: Connection, correlation_id: str) -> Question | None:
    """By id."""
    row = db.execute("SELECT * FROM questions WHERE correlation_id = ?", (correlation_id,)).fetchone()
    return Question(*row) if row else None


def load(db: Connection, correlation_id: str) -> Question:
    """By id; 404 when there is none, or it was closed more than a day ago."""
    question = find(db, correlation_id)
    if question is None:
        words = f"there is no question {correlation_id!r}, or it was closed over a day ago"
        raise not_found("question", correlation_id, words)
    return question


def listed(db: Connection, state: str, peer_id: str | None, most: int, before: int) -> list[Question]:
    """The open ones, the closed ones or all, newest first; of one peer, or of everybody."""
    where = {"open": "closed_at IS NULL AND ", "closed": "closed_at IS NOT NULL AND "}.get(state, "")
    mine = "" if peer_id is None else "from_peer_id = :peer AND "
    rows = db.execute(
        f"SELECT * FROM questions WHERE {where}{mine}seq < :before ORDER BY seq DESC LIMIT :most",
        {"peer": peer_id, "before": before, "most": most},
    )
    return [Question(*row) for row in rows]


def of_session(db: Connection, session: str) -> list[Question]:
    """The open ones of a runtime's session, oldest first."""
    rows = db.execute("SELECT * FROM questions WHERE session = ? AND closed_at IS NULL ORDER BY seq", (session,))
    return [Question(*row) for row in rows]


def lapsed(question: Question, mesh: Mesh) -> str | None:
    """Why an answer comes too late, by either clock; None while it is in time."""
    by_clock = mesh.clock.now() - question.created_at
    passed = mesh.clock.monotonic() - question.opened_at
    if question.is_permission and abs(by_clock - passed) > JUMP_SECONDS:
        return "clock_jumped"
    return "timed_out" if max(by_clock, passed) >= question.wait_seconds else None


# -- rules ---------------------------------------------------------------------


def how_it_ended(question: Question) -> Json:
    """How it ended, as the event tells it."""
    return {
        "correlation_id": question.correlation_id,
        "from": question.answered_by,
        "to": question.from_peer,
        "to_peer_id": question.from_peer_id,
        "status": "answered" if question.reason in ("answered", "rule") else question.reason,
        "outcome": question.outcome,
        "option_id": question.option_id,
        "text": question.text,
        "message": question.message,
        "reason": question.reason,
        "by": question.answered_by,
        "surface": question.surface,
        "decision": question.decision,
        "scope": question.scope,
        "digest": question.digest,
    }


class Answerer(NamedTuple):
    """Who answers, and from where; `digest` is the call that was shown there, where the surface says so."""

    name: str
    surface: str
    digest: str | None = None


def answer(change: Change, mesh: Mesh, question: Question, said: Answer, who: Answerer) -> Question | None:
    """Answer a question, by the one guarded UPDATE; None when it came too late and was closed as that instead.

    409 `already_answered` with the winner when it is closed, 409 `another_question` for another call than was shown,
    422 when the answer does not fit.
    """
    if question.closed_at is not None:
        raise already(question)
    if who.digest is not None and who.digest != question.digest:
        raise conflict(
            "another_question",
            "what was shown to you is not what is asked: look again before you answer",
            digest=question.digest,
        )
    if question.is_permission and said.outcome == "answered" and said.option_id is None:
        raise invalid("option_id", "is required: a tool permission is allowed by the option allow, or denied")
    choices.check(question.kind, question.offered(), said)
    late = lapsed(question, mesh)
    if late is None and question.is_permission and not mesh.bus.heard(topic(question.correlation_id)):
        late = "client_left"  # nobody would hear it, so it must not stand as a permission
    if late is not None:
        close(change, question, late)
        return None
    ended = question._replace(
        closed_at=change.now,
        outcome=said.outcome,
        option_id=said.option_id,
        text=said.text,
        message=said.message,
        reason="answered",
        answered_by=who.name,
        surface=who.surface,
    )
    if not _close(change, ended):  # in this very turn another was first
        raise already(load(change.db, question.correlation_id))
    change.record("question.answered", **how_it_ended(ended))
    return ended


def _close(change: Change, ended: Question) -> bool:
    """The one guarded UPDATE: False when the question was closed before. Who waits for it is woken."""
    done = change.db.execute(_CLOSE, (*ended[_CLOSED_AT:], ended.correlation_id)).rowcount == 1
    if done:
        change.ring(topic(ended.correlation_id))
    return done


_CLOSED_AT = Question._fields.index("closed_at")
_CLOSE = (
    f"UPDATE questions SET {', '.join(f'{name} = ?' for name in Question._fields[_CLOSED_AT:])}"
    " WHERE correlation_id = ? AND closed_at IS NULL"
)


def already(question: Question) -> Refusal:
    """409 for whoever comes later: who won, when, and with what."""
    by = question.answered_by or WORDS.get(question.reason or "", question.reason)
    when = wire.moment(question.closed_at)
    words = question.decision or question.option_id or question.outcome
    return conflict(
        "already_answered",
        f"{question.correlation_id} is over since {when}: {words}, {by}",
        winner={
            "outcome": question.outcome,
            "option_id": question.option_id,
            "decision": question.decision,
            "reason": question.reason,
            "answered_by": question.answered_by,
            "surface": question.surface,
            "closed_at": when,
        },
    )


def close(change: Change, question: Question, reason: str) -> bool:
    """End it without an answer: a tool permission is denied, unless a dialog of the runtime still stands there.

    False when it was closed before.
    """
    if question.is_permission and not question.dialog:
        outcome = "denied"
    else:
        outcome = "timed_out" if reason in ("timed_out", "restarted", "clock_jumped") else "cancelled"
    ended = question._replace(closed_at=change.now, outcome=outcome, message=WORDS.get(reason, reason), reason=reason)
    if not _close(change, ended):
        return False
    change.record("question.closed", **how_it_ended(ended))
    return True


# -- loop ----------------------------------------------------------------------

WAKES = ()


def at_start(mesh: Mesh) -> None:
    """Who waited is gone: every open tool permission is denied. Other questions stay open for who asks again."""
    with mesh.change() as change:
        rows = change.db.execute(
            "SELECT * FROM questions WHERE closed_at IS NULL AND scope = ? ORDER BY seq", (TOOL_PERMISSION,)
        )
        for row in rows.fetchall():
            close(change, Question(*row), "restarted")


def tick(mesh: Mesh) -> float:
    """Close what is over and nobody closed, such as after the machine slept; old closed ones go."""
    db, now = mesh.db.conn, mesh.clock.now()
    rows = db.execute("SELECT * FROM questions WHERE closed_at IS NULL ORDER BY seq").fetchall()
    late = [(question, why) for question in (Question(*row) for row in rows) if (why := lapsed(question, mesh))]
    if late:
        with mesh.change() as change:
            for question, why in late:
                close(change, question, why)
    oldest = db.execute("SELECT created_at FROM questions ORDER BY seq LIMIT 1").fetchone()
    if oldest is not None and oldest[0] <= now - KEPT_SECONDS:
        with mesh.change() as change:
            change.db.execute("DELETE FROM questions WHERE closed_at <= ?", (now - KEPT_SECONDS,))
    return 60.0


# -- wire ----------------------------------------------------------------------


def as_json(question: Question) -> Json:
    """A question as the lists show it: the whole call, never cut."""
    return {
        "correlation_id": question.correlation_id,
        "from_peer": question.from_peer,
        "from_peer_id": question.from_peer_id,
        "prompt": question.prompt,
        "kind": question.kind,
        "options": json.loads(question.options),
        "scope": question.scope,
        "origin": question.origin,
        "metadata": json.loads(question.metadata),
        "digest": question.digest,
        "dialog": bool(question.dialog),
        "state": "open" if question.closed_at is None else "closed",
        "created_at": wire.moment(question.created_at),
        "expires_at": wire.moment(question.created_at + question.wait_seconds),
        "closed_at": wire.moment(question.closed_at),
        "outcome": question.outcome,
        "option_id": question.option_id,
        "text": question.text,
        "message": question.message,
        "reason": question.reason,
        "answered_by": question.answered_by,
        "surface": question.surface,
        "decision": question.decision,
    }


def answer_from(request: web.Request, question: Question, said: Answer, who: Answerer) -> web.Response:
    """Answer a question that stands alone: from one of the human's surfaces, and from nowhere else."""
    mesh = request.app[MESH]
    only_human(callers.calling(mesh, request), question)
    with mesh.change() as change:
        answered = answer(change, mesh, question, said, who)  # read in this very turn, and guarded by the UPDATE
    if answered is None:
        raise already(load(mesh.db.conn, question.correlation_id))
    return wire.reply({"ok": True})


def only_human(caller: Peer | None, question: Question) -> None:
    """403 for an agent: what is put to the human no agent answers, for itself or for another."""
    if caller is not None:
        raise forbidden(
            "humans_only",
            f"{question.correlation_id} is put to the human: {caller.display_name} is an agent and cannot answer it",
        )


def answerer(request: web.Request, surface: str | None = None, digest: str | None = None) -> Answerer:
    """Who answers from there: the surface's own word, and what the kernel says of its connection."""
    door = door_of(request)
    process = f" pid {door.pid}" if door.pid else ""
    return Answerer(HUMAN, f"{surface or 'client'} ({door.via}{process})", digest)


async def get_questions(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    state = wire.word(request, "state", ("open", "closed", "all"), "all") or "all"
    most, before = wire.whole(request, "limit", default=LISTED), wire.cursor(request)
    reader = callers.calling(mesh, request)  # an agent sees its own
    whose = reader.peer_id if reader else None
    found = listed(mesh.db.conn, state, whose, most + 1, 2**62 if before is None else before)
    last = found[most - 1].seq if len(found) > most else None
    return wire.reply(
        {
            "questions": [as_json(question) for question in found[:most]],
            "next": None if last is None else wire.next_cursor(last),
        }
    )


async def get_question(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    question = load(mesh.db.conn, request.match_info["correlation_id"])
    reader = callers.calling(mesh, request)
    if reader is not None and reader.peer_id != question.from_peer_id:
        raise forbidden("not_your_question", f"{question.correlation_id} is not of {reader.display_name}")
    return wire.reply(as_json(question))


ROUTES = [web.get("/questions", get_questions), web.get("/questions/{correlation_id}", get_question)]
