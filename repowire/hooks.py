"""Hooks: what the agents' own hooks say, and what they are told back.

Each event is one change: who is calling (`arrivals`), what it proves of the peer's life, and, at the end of a turn, the
mail that waited. What a hook was given is `handed` when its script says that it printed it, and `seen` when the runtime
shows the id: in a prompt, or in the transcript of the turn that went on.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from repowire import (
    arrivals,
    chats,
    claims,
    deliveries,
    lives,
    peers,
    presence,
    questions,
    receipts,
    reminders,
    sessions,
    transcripts,
    wire,
)
from repowire.agents import claude_code_hooks as claude
from repowire.agents.claude_code_hooks import Said
from repowire.arrivals import Facts
from repowire.deliveries import Delivery
from repowire.errors import Refusal, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import clean, render, shown
from repowire.sessions import Session

MAIL_MOST, MAIL_CHARS = 10, 20_000  # messages and characters that one Stop carries; the rest waits for the next
TAIL_BYTES = 1 << 20  # of a transcript that is searched for what a hook carried
LOOK_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # between two looks into a transcript
LOOK_TURNS = 6  # beginnings and ends of turns after which what was not shown is not looked for any more
HOOK_SECONDS = 3.0  # its script is gone after 2 s, whatever happens
ROSTER_MOST = 10  # names told to a new session
RECEIPT = "X-Repowire-Receipt"
TURNS = ("UserPromptSubmit", "Stop", "StopFailure")  # the beginnings and ends of turns


class Heard(NamedTuple):
    """One event, and who it is of."""

    mesh: Mesh
    peer: Peer
    said: Said
    facts: Facts


class Answer(NamedTuple):
    """What the hook prints, and the holder of the mail in it, to be receipted when it is printed."""

    text: str = ""
    holder: str | None = None


NOTHING = Answer()

# -- rules: what an event proves -------------------------------------------------


def on_session_start(change: Change, heard: Heard) -> Answer:
    """A session begins, or goes on under another id: the peer is who it was."""
    _dialog(change, heard.peer, "closed")
    turn(change, heard, presence.ONLINE, "idle")
    return Answer(claude.context("SessionStart", _introduction(change, heard.peer)))


def _introduction(change: Change, peer: Peer) -> str:
    """Who it is and who else there is, in a few lines."""
    others = [
        f"@{one.display_name}"
        for one in peers.listed(change.db)
        if one.peer_id != peer.peer_id
        and (one.circle == peer.circle or one.everywhere)
        and presence.of(change.db, one.peer_id) != presence.OFFLINE
    ]
    more = f" and {len(others) - ROSTER_MOST} more" if len(others) > ROSTER_MOST else ""
    around = f"Peers here: {', '.join(others[:ROSTER_MOST])}{more}." if others else "No other peer is here yet."
    return (
        f"[repowire] You are @{peer.display_name} in circle {peer.circle}. {around} Messages from peers come as"
        " [repowire …] blocks; answer an ask with the repowire tool `ack`, ask others with `ask`."
    )


def on_user_prompt(change: Change, heard: Heard) -> Answer:
    """A turn begins, and what its prompt shows was seen."""
    _dialog(change, heard.peer, "closed")
    turn(change, heard, presence.BUSY, "working")
    chats.seen(change, heard.peer.peer_id, shown(heard.said.prompt or ""), "prompt")
    _chat(change, heard, "user", heard.said.prompt)
    return NOTHING


def on_stop(change: Change, heard: Heard) -> Answer:
    """The turn is over: idle, and what waits goes along, once; never into a turn that a stop hook made."""
    _dialog(change, heard.peer, "closed")
    _chat(change, heard, "assistant", heard.said.last_text)
    answer = NOTHING if heard.said.stop_hook_active else _mail(change, heard.peer)
    if answer is NOTHING:
        turn(change, heard, presence.ONLINE, "idle")
    else:
        turn(change, heard, presence.BUSY, "working")  # the model goes on with it
    return answer


def on_stop_failure(change: Change, heard: Heard) -> Answer:
    """The turn ended with an error of the model's service: idle, and nothing is said into it."""
    _dialog(change, heard.peer, "closed")
    turn(change, heard, presence.ONLINE, "idle")
    return NOTHING


def on_notification(change: Change, heard: Heard) -> Answer:
    """It waits for its user: for a decision, or just for the next prompt."""
    if heard.said.notification == "permission_prompt":
        _dialog(change, heard.peer, "open")
        turn(change, heard, presence.BUSY, "awaiting_input")
    elif heard.said.notification == "idle_prompt":
        turn(change, heard, presence.ONLINE, "awaiting_input")
    return NOTHING


def on_permission_request(change: Change, heard: Heard) -> Answer:
    """A dialog is on the screen: until it is gone nothing is put in front of the agent."""
    _dialog(change, heard.peer, "open")
    turn(change, heard, presence.BUSY, "awaiting_input")
    return NOTHING


def on_post_tool_use(change: Change, heard: Heard) -> Answer:
    """A tool ran, so no dialog is in its way any more."""
    known = presence.evidence(change.db, heard.peer.peer_id).get(presence.DIALOG)
    if heard.peer.turn_state != "working" or (known is not None and known.fact == "open"):
        _dialog(change, heard.peer, "closed")
        turn(change, heard, presence.BUSY, "working")
    return NOTHING


def on_session_end(change: Change, heard: Heard) -> Answer:
    """The session is over; where its process goes on with another one, the peer does too."""
    if heard.said.reason not in claude.CONTINUES:
        lives.retire(change, heard.peer, "session_end", "session_end_hook")
    return NOTHING


EVENTS: dict[str, Callable[[Change, Heard], Answer]] = {
    "SessionStart": on_session_start,
    "UserPromptSubmit": on_user_prompt,
    "Stop": on_stop,
    "StopFailure": on_stop_failure,
    "Notification": on_notification,
    "PermissionRequest": on_permission_request,
    "PostToolUse": on_post_tool_use,
    "SessionEnd": on_session_end,
}


def turn(change: Change, heard: Heard, word: str, turn_state: str) -> None:
    """What the event says of the peer's status; only what is new leaves an event."""
    peer = heard.peer
    lives.say(change, peer, word, "hook", "hook")
    if peer.turn_state != turn_state or (heard.said.model and heard.said.model != peer.model):
        lives.update(change, peer, turn_state=turn_state, model=heard.said.model, metadata={})
    else:
        lives.touch(change, peer.peer_id)


def _dialog(change: Change, peer: Peer, fact: str) -> None:
    known = presence.evidence(change.db, peer.peer_id).get(presence.DIALOG)
    if known is None or known.fact != fact:
        presence.note(change, peer.peer_id, presence.DIALOG, fact)


def _answered_there(change: Change, event: str, heard: Heard) -> None:
    """What the event proves to be answered in the terminal need not be answered anywhere else.

    A tool that ran had its dialog answered; a turn that began or ended has none, save for those of its sub-agents.
    """
    said = heard.said
    if said.session is None:
        return
    for one in questions.of_session(change.db, said.session):
        shown = json.loads(one.metadata)
        ran = (shown.get("tool_name"), shown.get("tool_input")) == (said.tool, said.given)
        over = event == "SessionEnd" or (event in TURNS and not shown.get("agent_id"))
        if one.dialog and (ran if event == "PostToolUse" else over):
            questions.close(change, one, "answered_in_terminal")


def _chat(change: Change, heard: Heard, role: str, text: str | None) -> None:
    if text:
        change.record(
            "chat.turned",
            peer_id=heard.peer.peer_id,
            peer=heard.peer.display_name,
            role=role,
            text=clean(text)[: claude.MAX_TURN_CHARS],
            session_id=heard.said.session,
            turn_id=heard.said.turn,
        )


# -- rules: what a Stop carries ------------------------------------------------------


def _mail(change: Change, peer: Peer) -> Answer:
    """Lease what waits in the mailbox; what that leaves of the turn's budget is for reminders."""
    holder = f"hook:{secrets.token_urlsafe(18)}"
    parts: list[str] = []
    while len(parts) < MAIL_MOST and sum(map(len, parts)) < MAIL_CHARS:
        leased = deliveries.lease(change, peer.peer_id, holder)
        if not leased:
            break
        parts += [render(one.payload) for one in leased]
    left = change.mesh.config.daemon.reminder_budget_bytes - sum(len(part.encode()) for part in parts)
    if reminded := reminders.remind(change, peer.peer_id, left):
        parts.append(reminded)
    if not parts:
        return NOTHING
    return Answer(claude.context("Stop", "\n\n".join(parts)), holder)


def printed(change: Change, holder: str) -> list[Delivery]:
    """The hook's script printed what it was given."""
    taken = deliveries.taken_by(change.db, holder)
    for delivery in taken:
        receipts.receipt(change, delivery.delivery_id, "injected", peer_id=delivery.peer_id, by="hook")
    return taken


class Carried:
    """Whose turns went on with what a hook carried. The runtime writes its transcript a moment later than it runs the
    next hook, so it is looked at a few times, and again when the peer's hooks say more, until all of it is shown.
    """

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}
        self._given: dict[str, int] = {}  # how many more turns are worth a look

    def expect(self, mesh: Mesh, peer_id: str) -> None:
        """The transcript of this peer is about to show something."""
        self._given[peer_id] = LOOK_TURNS
        self._look_at(mesh, peer_id)

    def heard(self, mesh: Mesh, peer_id: str) -> None:
        """A turn of this peer began or ended: what it was given before may stand there now."""
        if self._given.get(peer_id, 0) > 0:
            self._given[peer_id] -= 1
            self._look_at(mesh, peer_id)

    def _look_at(self, mesh: Mesh, peer_id: str) -> None:
        self._tries[peer_id] = len(LOOK_SECONDS)
        mesh.bus.publish("hook.carried")

    async def run(self, mesh: Mesh) -> None:
        with mesh.bus.listen("hook.carried") as nudge:
            while True:
                for peer_id in list(self._tries):
                    await look(mesh, peer_id)
                    left = self._tries[peer_id] - 1
                    waits = await mesh.db.read(partial(receipts.unshown, peer_id=peer_id))
                    if not waits:
                        self._given.pop(peer_id, None)
                    if left < 0 or not waits:
                        del self._tries[peer_id]
                    else:
                        self._tries[peer_id] = left
                most = max(self._tries.values(), default=None)
                await nudge.wait(None if most is None else LOOK_SECONDS[-1 - most])


CARRIED = web.AppKey("carried", Carried)


async def look(mesh: Mesh, peer_id: str) -> None:
    """Search the end of the transcript for what a hook carried: it stands there and in no prompt."""
    session = sessions.find(mesh.db.conn, peer_id)
    if session is None or session.transcript is None:
        return
    ids = await asyncio.to_thread(transcripts.shown_in, Path(session.transcript), TAIL_BYTES)
    if ids:
        with mesh.change() as change:
            chats.seen(change, peer_id, ids, "transcript")


async def settle_last_life(mesh: Mesh, peer_id: str, last: Session) -> None:
    """A peer came back in another process: what the one before was given and never showed goes to the new one.

    The process is gone and its transcript lacks it, so nobody read it and nobody will. That tells of its last session
    alone: what it was given before a /clear stays what it is. So does what a pane was given: its ws-hook would not type
    it again.
    """
    given = await mesh.db.read(lambda db: receipts.unshown(db, peer_id))
    given += [one for one in receipts.unprinted(mesh.db.conn, peer_id) if one not in given]
    if not given:
        return
    ids = set() if last.transcript is None else await asyncio.to_thread(transcripts.shown_in, Path(last.transcript))
    with mesh.change() as change:
        chats.seen(change, peer_id, ids, "transcript")
        for one in given:
            if (one.leased_at or 0.0) >= last.bound_at:
                deliveries.again(change, one, "the session ended before it was shown")


async def take_back(mesh: Mesh, peer_id: str) -> None:
    """What an earlier Stop was to carry and nobody printed: the script gave up before our answer came.

    To be called when a turn ends that no hook made. The runtime has ended that hook then; and where its transcript, of
    the same session, goes on after the hook's time and lacks the id, nobody read it and nobody will.
    """
    session = sessions.find(mesh.db.conn, peer_id)
    given = receipts.unprinted(mesh.db.conn, peer_id)
    if not given or session is None or session.transcript is None:
        return
    transcript = Path(session.transcript)
    newest = await asyncio.to_thread(
        transcripts.newest_at, transcript
    )  # before its ids: what comes meanwhile is in both
    over = (newest or 0.0) - HOOK_SECONDS
    late = [one for one in given if session.bound_at <= (one.leased_at or 0.0) < over]
    ids = await asyncio.to_thread(transcripts.shown_in, transcript) if late else set()
    with mesh.change() as change:
        chats.seen(change, peer_id, ids, "transcript")
        for one in late:
            deliveries.again(change, one, "the hook gave up before it had it")


# -- wire --------------------------------------------------------------------------------


async def post_hook(request: web.Request) -> web.StreamResponse:
    mesh, event = request.app[MESH], request.match_info["event"]
    rule = EVENTS.get(event) if request.match_info["backend"] == arrivals.BACKEND else None
    if rule is None:
        raise not_found("hook", event, f"no hook {event!r} of {request.match_info['backend']!r} is known here")
    said = await _said(request)
    facts = arrivals.facts(mesh, request)
    if event == "SessionEnd" and arrivals.known(mesh, request, facts) is None:
        return web.Response()  # of somebody who was never here, or has gone already
    if event == "Stop" and not said.stop_hook_active and (met := arrivals.known(mesh, request, facts)) is not None:
        await take_back(mesh, met.peer_id)
    if request.transport is None or request.transport.is_closing():
        return web.Response()  # the hook gave up: what is leased to it now would be lost
    with mesh.change() as change:
        peer, last = arrivals.arrive(change, mesh, request, facts, said)
        heard = Heard(mesh, peer, said, facts)
        answer = rule(change, heard)
        _answered_there(change, event, heard)
    claims.watch(mesh, peer)
    if last is not None:
        await settle_last_life(mesh, peer.peer_id, last)
    if said.stop_hook_active:
        request.app[CARRIED].expect(mesh, peer.peer_id)
    elif event in ("Stop", "UserPromptSubmit", "SessionEnd"):
        request.app[CARRIED].heard(mesh, peer.peer_id)
    if not answer.text:
        return web.Response()
    headers = {RECEIPT: answer.holder.partition(":")[2]} if answer.holder else {}
    return web.Response(body=answer.text.encode(), headers=headers, content_type="application/json")


async def _said(request: web.Request) -> Said:
    """What the event says. One too large for us is still an event: a tool's output may be huge."""
    try:
        return claude.parse((await wire.read(request, empty_ok=True)).fields)
    except Refusal as refusal:
        if refusal.status != 413:
            raise
        return Said()


async def post_receipt(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    with mesh.change() as change:
        taken = printed(change, f"hook:{request.match_info['token']}")
    for peer_id in {one.peer_id for one in taken}:
        request.app[CARRIED].expect(mesh, peer_id)
    return wire.reply({"ok": True, "handed": [one.delivery_id for one in taken]})


ROUTES = [
    web.post("/hooks/receipts/{token}", post_receipt),
    web.post("/hooks/{backend}/{event}", post_hook),
]
