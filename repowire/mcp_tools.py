"""The tools by which an agent speaks to its peers, a row of TOOLS each (wire.md 12); `mcp.py` carries them.

Every result is one text. What a tool refuses is told to the agent as its result, with what to do.
"""

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from repowire import ask_many as groups
from repowire import (
    asks,
    choices,
    deliveries,
    endings,
    launches,
    lives,
    mailboxes,
    messages,
    peers,
    presence,
    questions,
    replies,
    roles,
    roster,
    spawn,
    wire,
)
from repowire.choices import Answer
from repowire.errors import forbidden
from repowire.mesh import Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN, MAX_TEXT_CHARS, clean

WAIT_SECONDS, WAIT_CAP_SECONDS = 600.0, 3_600.0

Json = dict[str, Any]


# -- a tool ------------------------------------------------------------------


class Call(NamedTuple):
    """One call of a tool, and on whose behalf."""

    mesh: Mesh
    request: web.Request
    peer: Peer
    given: wire.Body


class Tool(NamedTuple):
    """A row of the table: `fields` are the JSON schemas of its arguments, `needs` those that must be given."""

    name: str
    words: str
    fields: dict[str, Json]
    needs: tuple[str, ...]
    run: Callable[[Call], Awaitable[str]]

    def as_json(self) -> Json:
        """The row as tools/list shows it."""
        schema = {"type": "object", "properties": self.fields, "required": list(self.needs)}
        return {"name": self.name, "description": self.words, "inputSchema": schema | {"additionalProperties": False}}


def _text(words: str) -> Json:
    return {"type": "string", "description": words}


def _flag(words: str) -> Json:
    return {"type": "boolean", "default": False, "description": words}


PEER_NAME = _text("Its name or peer_id, as list_peers shows it.")
CIRCLE = _text("The circle to look for the name in; only needed where two circles have the same name.")
IF_OFFLINE: Json = {
    "type": "string",
    "enum": ["refuse", "queue"],
    "default": "refuse",
    "description": "What becomes of it when the peer is not there: refused, or kept until it is.",
}
CROSS = _flag("Cross into another circle.")
COLUMNS = ("peer_id", "name", "project", "circle", "role", "status", "path", "machine", "description", "backend",
           "last_seen", "turn_state", "model")  # fmt: skip


async def list_peers(call: Call) -> str:
    mesh, me = call.mesh, call.peer
    offline, myself = call.given.flag("show_offline"), call.given.flag("include_self")
    circle = call.given.optional_text("circle", max_chars=64) or ("*" if me.everywhere else me.circle)
    evidence = presence.all_evidence(mesh.db.conn)
    found = [
        peer
        for peer in peers.listed(mesh.db.conn)
        if (circle == "*" or peer.circle == circle or peer.everywhere)
        and (myself or peer.peer_id != me.peer_id)
        and (offline or presence.status(evidence.get(peer.peer_id, {})) != presence.OFFLINE)
    ]
    return _table(mesh, found)


async def whoami(call: Call) -> str:
    return _table(call.mesh, [call.peer])


def _table(mesh: Mesh, shown: list[Peer]) -> str:
    """Tab-separated, a line each. What peers say of themselves cannot end its column or its line."""
    lines = ["\t".join(COLUMNS)]
    for peer in shown:
        facts = roster.info(mesh, peer, presence.evidence(mesh.db.conn, peer.peer_id))
        project = facts["metadata"].get("project")
        facts["project"] = project if isinstance(project, str) else os.path.basename(peer.path or "")
        lines.append("\t".join(_line(facts[name] or "") for name in COLUMNS))
    return "\n".join(lines)


async def ask(call: Call) -> str:
    given = call.given
    draft = asks.Draft(
        from_peer=call.peer.peer_id,
        to_peer=given.text("peer_name"),
        text=given.text("query", max_chars=MAX_TEXT_CHARS),
        circle=given.optional_identifier("circle"),
        bypass_circle=given.flag("bypass_circle"),
        reply_to=given.optional_text("reply_to", max_chars=64),
        keep_if_offline=given.choice("if_offline", ("queue", "refuse"), "refuse") == "queue",
    )
    with call.mesh.change() as change:
        replies.check_reply_to(change, draft, call.peer)
        opened, _ = asks.open_ask(change, call.mesh, draft)
    return opened.correlation_id


async def wait_on_ack(call: Call) -> str:
    mesh = call.mesh
    correlation_id = call.given.text("correlation_id", max_chars=64)
    seconds = call.given.seconds("timeout_seconds", default=WAIT_SECONDS, at_most=WAIT_CAP_SECONDS, cap=True)
    asked = asks.load(mesh.db.conn, correlation_id)
    if call.peer.role != HUMAN and call.peer.peer_id != asked.from_peer_id:
        raise forbidden("not_the_asker", f"{correlation_id} was asked by {asked.from_peer}, who alone waits for it")
    asked = await asks.wait(mesh, correlation_id, max(0.0, seconds))
    if asked.closed_at is None:
        return json.dumps({"correlation_id": correlation_id, "status": "pending"})
    if not asked.reply_at_rest:
        _take(call, asked)
    return json.dumps(
        {
            "correlation_id": correlation_id,
            "status": "resolved",
            "reply": asked.reply,
            "close_reason": asked.close_reason,
            "responder": asked.replied_by or asked.to_peer,
            "attachments": json.loads(asked.reply_attachments) if asked.reply_attachments else [],
            **({"outcome": said.outcome, "option_id": said.option_id} if (said := asked.answered) else {}),
        },
        ensure_ascii=False,
    )


def _take(call: Call, asked: asks.Ask) -> None:
    """The reply is in hand; where the waiter has left meanwhile it is pushed, unless another is there to take it."""
    left = call.request.transport is None or call.request.transport.is_closing()
    if left and call.mesh.bus.heard(asks.wait_topic(asked.correlation_id)):
        return
    with call.mesh.change() as change:
        if left:
            replies.push_reply(change, call.mesh, asked)
        else:
            replies.taken(change, asked.correlation_id)


async def ack(call: Call) -> str:
    correlation_id = call.given.text("correlation_id", max_chars=64).removeprefix("#")
    reply = replies.Reply(call.given.optional_text("message", max_chars=MAX_TEXT_CHARS) or None)
    with call.mesh.change() as change:
        _must_be_asked(call, asks.load(change.db, correlation_id))
        replies.ack(change, call.mesh, correlation_id, reply)
    return f"acked #{correlation_id}" + ("" if reply.bare else " with reply")


async def answer(call: Call) -> str:
    given = call.given
    correlation_id = given.text("correlation_id", max_chars=64).removeprefix("#")
    option_id = given.optional_text("option_id", max_chars=choices.ID_CHARS)
    text = given.optional_text("text", max_chars=MAX_TEXT_CHARS)
    outcome = "acknowledged" if option_id is None and text is None else "answered"
    if questions.find(call.mesh.db.conn, correlation_id) is not None:
        raise forbidden("humans_only", f"{correlation_id} is put to the human: no agent answers it")
    with call.mesh.change() as change:
        asked = asks.load(change.db, correlation_id)
        _must_be_asked(call, asked)
        question = asked.structured
        if question is not None and question.is_permission:
            raise forbidden("humans_only", f"{correlation_id} is a tool permission: a person answers it, and no agent")
        replies.answer(change, call.mesh, correlation_id, Answer(outcome, option_id, text))
    return f"answered #{correlation_id} ({option_id or ('with text' if text else outcome)})"


def _must_be_asked(call: Call, asked: asks.Ask) -> None:
    if call.peer.role != HUMAN and call.peer.peer_id != asked.to_peer_id:
        raise forbidden(
            "not_the_asked",
            f"{asked.correlation_id} was asked of {asked.to_peer}, you are {call.peer.display_name}",
        )


async def ask_many(call: Call) -> str:
    given, mesh = call.given, call.mesh
    draft = asks.Draft(
        from_peer=call.peer.peer_id,
        to_peer="",
        text=given.text("query", max_chars=MAX_TEXT_CHARS),
        circle=given.optional_identifier("circle"),
        bypass_circle=given.flag("bypass_circle"),
        keep_if_offline=given.choice("if_offline", ("queue", "refuse"), "refuse") == "queue",
    )
    seconds = given.seconds(
        "timeout_seconds", default=groups.TIMEOUT_SECONDS, at_most=groups.TIMEOUT_MOST_SECONDS, cap=True
    )
    plan = groups.Plan(draft, groups.names_of(given, "peer_names"), max(0.0, seconds))
    with mesh.change() as change:
        group, opened = groups.open_all(change, mesh, plan)
    sent = await mailboxes.all_written(mesh, [delivery for _, delivery in opened if delivery is not None])
    delivered = sum(deliveries.standing(one)["delivered"] for one in sent)
    lines = [f"{group.parent_id} ({delivered}/{len(opened)} delivered)"]
    lines += [f"{_line(child.peer)}: {_line(child.error)}" for child, _ in opened if child.error is not None]
    return "\n".join(lines)


async def ask_many_result(call: Call) -> str:
    db = call.mesh.db.conn
    group = groups.load(db, call.given.text("parent_id", max_chars=64))
    if call.peer.role != HUMAN and call.peer.peer_id != group.from_peer_id:
        raise forbidden("not_the_asker", f"only {group.from_peer} reads the answers")
    found = groups.rollup(db, group, call.mesh.clock.now())
    counts = ", ".join(f"{count} {word}" for word, count in found["rollup"].items())
    lines = [f"{group.parent_id} {found['state']}: {counts}"]
    for one in found["children"]:
        words = one["reply"] or one["error"] or (one["close_reason"] if one["status"] == "failed" else None)
        lines.append(f"@{_line(one['peer'])} {one['status']}" + (f": {clean(words)}" if words else ""))
    return "\n".join(lines)


async def broadcast(call: Call) -> str:
    shout = messages.Shout(call.peer.peer_id, call.given.text("message", max_chars=MAX_TEXT_CHARS))
    with call.mesh.change() as change:
        spread = messages.broadcast(change, call.mesh, shout)
    words = f"{spread.broadcast_id}: told {len(spread.sent)}"
    return words + "".join(f"\n{_line(name)}: {_line(no.hint)}" for name, no in spread.failed)


async def orchestrator_status(call: Call) -> str:
    mesh, circle = call.mesh, call.given.optional_identifier("circle") or call.peer.circle
    found = roles.orchestrator(mesh, circle)
    columns = ("circle", "present", "peer_name", "peer_id", "last_seen", "stale_after_seconds")
    return "\n".join(("\t".join(columns), "\t".join(_line(found[name]) for name in columns)))


def _line(value: object) -> str:
    """On one line, in one column."""
    return " ".join(clean("" if value is None else str(value)).split())


async def notify_peer(call: Call) -> str:
    note = messages.Note(
        from_peer=call.peer.peer_id,
        to_peer=call.given.text("peer_name"),
        text=call.given.text("message", max_chars=MAX_TEXT_CHARS),
        circle=call.given.optional_identifier("circle"),
        bypass_circle=call.given.flag("bypass_circle"),
    )
    with call.mesh.change() as change:
        delivery, _, _ = messages.notify(change, call.mesh, note)
    return delivery.delivery_id


async def set_description(call: Call) -> str:
    text = call.given.text("description", max_chars=lives.MAX_DESCRIPTION_CHARS, least=0)
    with call.mesh.change() as change:
        lives.describe(change, call.peer, text)
    return f"others now see: {text}" if text else "others see no description now"


async def spawn_peer(call: Call) -> str:
    starts = call.request.app[launches.STARTS]
    started, _ = await spawn.asked(call.mesh, starts, call.given, call.peer.peer_id)
    peer, told = started.peer, "; your message waits for it" if call.given.has("message") else ""
    return f"{peer.display_name} ({peer.peer_id}) was started in tmux {peer.tmux_session}{told}"


async def kill_peer(call: Call) -> str:
    name, circle = call.given.text("peer_identifier", max_chars=128), call.given.optional_identifier("circle")
    peer = peers.exactly(call.mesh.db.conn, name, circle)
    peers.check_circle(call.peer, peer, bypass=False)
    killed = await endings.kill(call.mesh, call.request.app[launches.STARTS], peer)
    left = "" if killed else "; what it runs in was not opened by repowire and was left alone"
    return f"{peer.display_name} was {'ended and ' if killed else ''}taken off the list{left}"


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "list_peers",
            "Who can be asked or told something: one line each, tab-separated, the first line names the columns.",
            {
                "show_offline": _flag("Those who left, too."),
                "include_self": _flag("Yourself, too."),
                "circle": _text("Another circle than your own; * for all."),
            },
            (),
            list_peers,
        ),
        Tool("whoami", "Your own name, peer_id and circle, as others see them.", {}, (), whoami),
        Tool(
            "ask",
            "Put a question to a peer. Returns the correlation_id at once; wait_on_ack waits for the reply, and"
            " without it the reply comes to you as a message.",
            {
                "peer_name": PEER_NAME,
                "query": _text("The question."),
                "reply_to": _text("correlation_id of an open ask to you that this question answers."),
                "circle": CIRCLE,
                "bypass_circle": CROSS,
                "if_offline": IF_OFFLINE,
            },
            ("peer_name", "query"),
            ask,
        ),
        Tool(
            "wait_on_ack",
            "Wait until an ask of yours is answered. Returns JSON with status resolved and the reply, or pending.",
            {
                "correlation_id": _text("What ask returned."),
                "timeout_seconds": {"type": "number", "minimum": 0, "maximum": WAIT_CAP_SECONDS, "default": 600},
            },
            ("correlation_id",),
            wait_on_ack,
        ),
        Tool(
            "ack",
            "Answer an ask that was put to you, or close it without words.",
            {"correlation_id": _text("The ask's id, ask-..."), "message": _text("Your answer.")},
            ("correlation_id",),
            ack,
        ),
        Tool(
            "answer",
            "Answer an ask that has options, or wants text: by the id of an option, or in words. Without either it is"
            " acknowledged.",
            {
                "correlation_id": _text("The ask's id, ask-..."),
                "option_id": _text("The id of the option you choose."),
                "text": _text("Your answer in words, where words are wanted."),
            },
            ("correlation_id",),
            answer,
        ),
        Tool(
            "notify_peer",
            "Tell a peer something that wants no answer; kept for a peer that is not there. Returns the message's id.",
            {
                "peer_name": PEER_NAME,
                "message": _text("What to tell."),
                "circle": CIRCLE,
                "bypass_circle": CROSS,
            },
            ("peer_name", "message"),
            notify_peer,
        ),
        Tool(
            "ask_many",
            "Put one question to several peers at once. Returns the parent_id and how many were reached, and who could"
            " not be asked; ask_many_result says what they answered.",
            {
                "peer_names": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": groups.CHILDREN_MOST,
                    "description": "Their names or peer_ids, as list_peers shows them.",
                },
                "query": _text("The question."),
                "circle": CIRCLE,
                "bypass_circle": CROSS,
                "if_offline": IF_OFFLINE,
                "timeout_seconds": {"type": "number", "minimum": 0, "default": 300},
            },
            ("peer_names", "query"),
            ask_many,
        ),
        Tool(
            "ask_many_result",
            "What came of an ask_many: a line each, replied, acked, pending or failed, with the reply.",
            {"parent_id": _text("What ask_many returned, askm-...")},
            ("parent_id",),
            ask_many_result,
        ),
        Tool(
            "broadcast",
            "Tell everybody who is connected and in your circle something that wants no answer.",
            {"message": _text("What to tell.")},
            ("message",),
            broadcast,
        ),
        Tool(
            "orchestrator_status",
            "Who orchestrates a circle, if anybody does: tab-separated, the first line names the columns.",
            {"circle": _text("Another circle than your own.")},
            (),
            orchestrator_status,
        ),
        Tool(
            "set_description",
            "Say in a sentence what you work on, for other peers to see; it fades after some minutes.",
            {"description": _text("At most 2000 characters; empty takes it back.")},
            ("description",),
            set_description,
        ),
        Tool(
            "spawn_peer",
            "Start another agent in a tmux window of its own, where and as what your user's config allows it.",
            {
                "path": _text("The folder it works in, absolute."),
                "backend": _text("Its kind, such as claude-code or codex; this or command."),
                "command": _text("Instead: a command line that the config allows word for word."),
                "profile": _text("A set of arguments that the config has a name for."),
                "circle": _text("Its circle; without one, default."),
                "name": _text("What it is called; without one, as its folder."),
                "message": _text("What it is told first."),
            },
            ("path",),
            spawn_peer,
        ),
        Tool(
            "kill_peer",
            "End an agent that repowire started, for good. What waits for it ends too.",
            {"peer_identifier": PEER_NAME, "circle": CIRCLE},
            ("peer_identifier",),
            kill_peer,
        ),
    )
}
