"""Blocking questions: a program stands still until a person answers, or the time is up; then silence means no.

Each waits in one future, and its row is the truth (`questions.py`). What is allowed is one call: another call is
another question, and an answer lasts no longer than its question could have waited.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, peers, policy, questions, wire
from repowire.bus import Nudge
from repowire.choices import ALLOW, CALL_MOST_BYTES, SCOPES, TOOL_PERMISSION, Option, read_options
from repowire.clock import new_id
from repowire.errors import conflict, forbidden, invalid, malformed, unavailable
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.policy import Ruling
from repowire.protocol import MAX_TEXT_CHARS, is_identifier
from repowire.questions import Question

WAIT_SECONDS = 45.0  # wire.md 5.4
MARGIN_SECONDS = 5.0  # we answer so long before a runtime ends its hook, or half of its time where that is shorter
HOLD_MOST_SECONDS = 7 * 86_400.0
RETRY_SECONDS = 60.0  # an allow is said again to the same call for so long, in case the first reply was lost
NOT_GATED = "this tool waits for nobody here: the runtime's own rules hold"
TITLES = {ALLOW: "Allow", "deny": "Deny"}  # of a tool permission
CONTROL = "__repowire_control__"  # the published recipient: whoever of the human's surfaces answers first

Json = dict[str, Any]

# -- rules ---------------------------------------------------------------------


class Draft(NamedTuple):
    """A blocking question as it was posted, and who asks; `peer` is None where no peer is known."""

    prompt: str
    options: tuple[Option, ...] = ()
    scope: str | None = None
    metadata: Mapping[str, Any] = {}
    origin: str | None = None
    correlation_id: str | None = None
    timeout_seconds: float | None = None  # None: the default
    runtime_timeout_seconds: float | None = None  # after which the runtime ends its hook
    dialog: bool = False
    from_peer: str = "external"
    peer: Peer | None = None

    def fact(self, name: str) -> str | None:
        """A text of the metadata, or nothing."""
        value = self.metadata.get(name)
        return value if isinstance(value, str) else None

    @property
    def from_peer_id(self) -> str | None:
        return self.peer.peer_id if self.peer else None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the call that is to be allowed; None for what is no tool permission."""
        if self.scope != TOOL_PERMISSION:
            return None
        call = [self.metadata.get(name) for name in ("tool_name", "tool_input", "cwd", "session_id")]
        if call[0] is None or not isinstance(call[1], dict):  # it does not say the whole call: all it shows is bound
            call += [self.prompt, self.metadata]
        said = json.dumps(call, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()


def put(change: Change, mesh: Mesh, draft: Draft) -> Question | None:
    """Open a question, or find the one that this is a retry of; None when nobody needs to be asked.

    What a rule of the config allows comes back closed. 409 `another_question` when the id is another one's.
    """
    if draft.correlation_id is not None and (known := questions.find(change.db, draft.correlation_id)) is not None:
        asked = (known.digest, known.from_peer_id, known.scope, known.prompt)
        if asked != (draft.digest, draft.from_peer_id, draft.scope, draft.prompt):
            raise conflict(
                "another_question",
                f"{known.correlation_id} was another question: take a new id, an answer is for one call only",
                correlation_id=known.correlation_id,
                digest=known.digest,
            )
        return known
    ruling = _ruling(mesh, draft)
    if not ruling.gated:
        return None
    question = Question(
        seq=None,
        correlation_id=draft.correlation_id or new_id("ask"),
        from_peer=draft.from_peer,
        from_peer_id=draft.from_peer_id,
        prompt=draft.prompt,
        options=json.dumps([option._asdict() for option in draft.options]),
        scope=draft.scope,
        origin=draft.origin,
        metadata=json.dumps(draft.metadata),
        session=draft.fact("session_id"),
        digest=draft.digest,
        dialog=int(draft.dialog),
        wait_seconds=_seconds(mesh, draft, ruling),
        created_at=change.now,
        opened_at=mesh.clock.monotonic(),
    )
    if ruling.rule is not None:
        question = question._replace(
            closed_at=change.now, outcome="answered", option_id=ALLOW, reason="rule", answered_by=ruling.rule
        )
    change.db.execute(_INSERT, question)
    change.record("question.asked", **_shown(draft, question))
    if ruling.rule is not None:
        change.record("question.answered", **questions.how_it_ended(question))
    return question


_INSERT = f"INSERT INTO questions VALUES ({', '.join('?' * len(Question._fields))})"


def _ruling(mesh: Mesh, draft: Draft) -> Ruling:
    if draft.scope != TOOL_PERMISSION:
        return Ruling(gated=True)
    if draft.dialog:  # the runtime itself wants a person, and has asked one already: no rule speaks for him
        return Ruling(gated=True, hold_open=True)
    given = draft.metadata.get("tool_input")
    peer = draft.peer
    names = _known_as(mesh, peer) if peer else ("", draft.from_peer)
    return policy.ruling(
        mesh.config,
        draft.fact("tool_name") or "",
        given if isinstance(given, dict) else None,
        names=names,
        circle=peer.circle if peer else None,
    )


def _known_as(mesh: Mesh, peer: Peer) -> tuple[str, ...]:
    """Its id and its name. A process that is or was another peer too has chosen who it is: no table is its own then."""
    pid, started = peer.agent_pid, peer.agent_started
    lived = [] if pid is None or started is None else peers.lived_in(mesh.db.conn, pid, started)
    others = [one.peer_id for one in lived if one.peer_id != peer.peer_id]
    return ("", *others, peer.peer_id, peer.display_name) if others else (peer.peer_id, peer.display_name)


def _seconds(mesh: Mesh, draft: Draft, ruling: Ruling) -> float:
    """How long it waits: as long as the runtime does where it is held open, else what was asked for up to the cap."""
    limit = draft.runtime_timeout_seconds
    if limit is not None:
        limit -= min(MARGIN_SECONDS, limit / 2)
        if ruling.hold_open:
            return min(limit, HOLD_MOST_SECONDS)
    wanted = draft.timeout_seconds or WAIT_SECONDS
    seconds = max(0.0, min(wanted, mesh.config.daemon.question_wait_cap_seconds))
    return seconds if limit is None else min(seconds, limit)


def _shown(draft: Draft, question: Question) -> Json:
    """What is asked, as the event tells it: the whole call, since the ledger is to say what was shown."""
    return {
        "correlation_id": question.correlation_id,
        "from": draft.from_peer,
        "to": "human",
        "from_peer_id": draft.from_peer_id,
        "to_peer_id": CONTROL,
        "text": draft.prompt,
        "question": question.asked().as_json(),
        "origin": draft.origin,
        "digest": question.digest,
        "dialog": bool(draft.dialog) or None,
        "from_repowire_session_id": None,
    }


def withdraw(
    change: Change, reason: str, *, correlation_id: str | None = None, call: Draft | None = None, by: Peer | None = None
) -> list[str]:
    """Take back what need not be answered any more: one by its id, or those of a session: of one call, or all dialogs.

    Returns the ids; what is closed already is left as it is. 403 for an agent that takes back another's.
    """
    if correlation_id is not None:
        found = [questions.load(change.db, correlation_id)]
    elif call is not None:
        found = questions.of_session(change.db, call.fact("session_id") or "")
        wanted = call.digest if call.fact("tool_name") is not None else None
        found = [one for one in found if (one.digest == wanted if wanted else one.dialog)]
    else:
        found = []
    for one in found:
        if by is not None and by.peer_id != one.from_peer_id:
            raise forbidden("not_your_question", f"{one.correlation_id} is not of {by.display_name}")
    return [one.correlation_id for one in found if questions.close(change, one, reason)]


# -- waiting -------------------------------------------------------------------


class Waited(NamedTuple):
    """What is answered to who asked: a decision for a tool permission, and the outcome in the published words."""

    correlation_id: str
    outcome: str
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    decision: str | None = None
    digest: str | None = None


def waited(question: Question) -> Waited:
    """What a waiter is told."""
    return Waited(
        question.correlation_id,
        question.outcome or "timed_out",
        question.option_id,
        question.text,
        question.message,
        question.decision,
        question.digest,
    )


def again(mesh: Mesh, question: Question) -> Waited:
    """What a retry is told of a question that is over. An allow does not outlive it: later it is a denial."""
    found = waited(question)
    late = questions.lapsed(question, mesh) or mesh.clock.now() - (question.closed_at or 0.0) > RETRY_SECONDS
    if found.decision != ALLOW or not late:
        return found
    words = "this permission was for an earlier call: ask anew"
    return found._replace(outcome="denied", option_id=None, message=words, decision="deny")


async def ask(mesh: Mesh, draft: Draft, request: web.Request) -> Waited:
    """Ask the human on behalf of a request, and stand still until it is over."""
    with mesh.change() as change:
        question = put(change, mesh, draft)
    if question is None:
        return Waited(draft.correlation_id or new_id("ask"), "acknowledged", message=NOT_GATED, decision="none")
    if question.closed_at is not None:
        return waited(question) if question.seq is None else again(mesh, question)
    del draft  # 10,000 may stand still at once
    return waited(await wait(mesh, question, request))


async def wait(mesh: Mesh, question: Question, request: web.Request) -> Question:
    """Stand still until a question is closed, and close it when its time is up, its asker leaves or the daemon stops.

    Returns when what it returns is on the disk. 503 when the daemon stops and the question may be asked again.
    """
    heard, gone = questions.topic(question.correlation_id), False
    found, reason = question, "failed"  # unless it turns out otherwise
    try:
        with mesh.bus.listen(heard) as nudge, wire.Line(request, nudge.ring) as line:
            try:
                await mesh.committed()
                found, over = await _until_over(mesh, question, nudge, line)
                if found.closed_at is not None:
                    await mesh.seen_on_disk()
                reason = over
            finally:
                gone = line.gone
    finally:
        if gone and reason in ("failed", "client_left"):
            reason = "" if mesh.bus.heard(heard) else "client_left"  # another may wait for the same
        if reason:
            with mesh.change() as change:
                questions.close(change, question, reason)
    if reason:
        await mesh.on_disk()
        found = questions.load(mesh.db.conn, question.correlation_id)
    if found.closed_at is None:
        raise unavailable("shutting_down", "ask again with the same correlation_id: the question stays open")
    return found


async def _until_over(mesh: Mesh, question: Question, nudge: Nudge, line: wire.Line) -> tuple[Question, str]:
    """Wait until it is closed, or there is a reason to close it; neither, where it stays open without this waiter."""
    while (found := questions.load(mesh.db.conn, question.correlation_id)).closed_at is None:
        if line.gone:
            return found, "client_left"
        if mesh.bus.closed:
            return found, "shutting_down" if question.is_permission else ""
        if (late := questions.lapsed(question, mesh)) is not None:
            return found, late
        passed = mesh.clock.monotonic() - question.opened_at
        if not await nudge.wait(max(0.0, question.wait_seconds - passed)):
            return found, "timed_out"
    return found, ""


# -- wire ----------------------------------------------------------------------


async def post_ask_blocking(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    return wire.reply(
        (await ask(mesh, _draft(mesh, request, await wire.read(request, each_once=True)), request))._asdict()
    )


def _draft(mesh: Mesh, request: web.Request, body: wire.Body) -> Draft:
    scope = body.choice("scope", SCOPES)
    permission = scope == TOOL_PERMISSION
    correlation_id = body.optional_text("correlation_id", max_chars=64)
    if correlation_id is not None and not is_identifier(correlation_id):
        raise invalid("correlation_id", "must be 1 to 64 of the letters, digits and . _ -")
    spoken = callers.spoken_for(mesh, request, body.optional_text("from_peer", max_chars=128))
    peer = _peer(mesh, spoken)
    options = read_options(body)
    if permission:  # whatever who asks calls them: a title must not say the opposite of what its option does
        options = tuple(option._replace(title=TITLES.get(option.id, option.title)) for option in options)
        if any(option.id not in TITLES and option.title.casefold().startswith(ALLOW) for option in options):
            raise invalid("options", "only the option allow may be called so: no other lets the tool run")
    draft = Draft(
        prompt=body.text("prompt", max_chars=MAX_TEXT_CHARS),
        options=options,
        scope=scope,
        metadata=body.record("metadata", max_bytes=CALL_MOST_BYTES),
        origin=body.optional_text("origin", max_chars=64),
        correlation_id=correlation_id,
        timeout_seconds=_seconds_of(body, "timeout_seconds"),
        runtime_timeout_seconds=_seconds_of(body, "runtime_timeout_seconds"),
        dialog=body.flag("dialog"),
        from_peer=peer.display_name if peer else spoken or "external",
        peer=peer,
    )
    if permission and not draft.options:
        raise invalid("options", "must name at least one: a tool permission is allowed by the option allow")
    if draft.dialog and not permission:
        raise invalid("dialog", "is for a tool permission")
    return draft


def _seconds_of(body: wire.Body, name: str) -> float | None:
    return body.seconds(name, default=0, at_most=1e15, cap=True) if body.has(name) else None


def _peer(mesh: Mesh, name: str | None) -> Peer | None:
    """The peer of that id, or the only one of that name; a stranger's name is only shown."""
    if name is None:
        return None
    db = mesh.db.conn
    found: Sequence[Peer] = peers.named(db, name)
    return peers.find(db, name) or (found[0] if len(found) == 1 else None)


async def post_withdraw(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    caller = callers.calling(mesh, request)
    correlation_id = body.optional_text("correlation_id", max_chars=64)
    call = Draft("", scope=TOOL_PERMISSION, metadata=body.record("metadata", max_bytes=CALL_MOST_BYTES))
    reason = body.choice("reason", ("answered_in_terminal", "withdrawn"), "withdrawn") or "withdrawn"
    if correlation_id is None and call.fact("session_id") is None:
        raise malformed("give a correlation_id, or metadata with a session_id")
    with mesh.change() as change:
        gone = withdraw(change, reason, correlation_id=correlation_id, call=call, by=caller)
    return wire.reply({"ok": True, "withdrawn": gone})


ROUTES = [web.post("/questions/ask-blocking", post_ask_blocking), web.post("/questions/withdraw", post_withdraw)]
