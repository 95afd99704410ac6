"""Chats: what runtimes say of their own turns (wire.md 1.6), and what a turn proves of the messages it shows."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from repowire import asks, callers, peers, receipts, sessions, wire
from repowire.errors import invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import MAX_METADATA_BYTES, MAX_TEXT_CHARS, clean, shown

FINISHED_MOST = 4096  # turns remembered as over (wire.md 1.6)
TOOL_CALLS_MOST = 200
ID_CHARS = 128


class Finished:
    """The turns that are over, so that a late chunk of one is dropped. In memory: chunks do not outlive a restart."""

    def __init__(self) -> None:
        self._turns: OrderedDict[tuple[str, str], None] = OrderedDict()

    def add(self, session: str | None, turn: str) -> None:
        self._turns[session or "legacy", turn] = None
        if len(self._turns) > FINISHED_MOST:
            self._turns.popitem(last=False)

    def has(self, session: str | None, turn: str) -> bool:
        return (session or "legacy", turn) in self._turns


FINISHED = web.AppKey("finished", Finished)

# -- rules ---------------------------------------------------------------------


def seen(change: Change, peer_id: str, ids: Iterable[str], by: str) -> None:
    """What the runtime showed: an ask by its correlation id, everything else by its delivery's."""
    for one in ids:
        ask = asks.find(change.db, one)
        receipts.seen(change, peer_id, ask.delivery_id if ask else one, by)


# -- wire ----------------------------------------------------------------------


def _speaker(mesh: Mesh, request: web.Request, body: wire.Body) -> Peer | None:
    """Whose turn it is: by id, else by pane, else by name; None for one that is no peer. 403 for another agent's."""
    db = mesh.db.conn
    peer_id, pane_id = body.optional_text("peer_id", max_chars=ID_CHARS), body.optional_text("pane_id", max_chars=64)
    peer = peers.find(db, peer_id) if peer_id else None
    if peer is None and pane_id:
        peer = peers.by_pane(db, pane_id)
    if peer is None and len(found := peers.named(db, body.text("peer", max_chars=ID_CHARS))) == 1:
        peer = found[0]
    if peer is not None:
        callers.may_read(mesh, request, peer)
    return peer


def _event(body: wire.Body, peer: Peer | None, **facts: Any) -> dict[str, Any]:
    return {
        "peer": peer.display_name if peer else body.text("peer", max_chars=ID_CHARS),
        "peer_id": peer.peer_id if peer else body.optional_text("peer_id", max_chars=ID_CHARS),
        "session_id": body.optional_text("session_id", max_chars=ID_CHARS),
        **facts,
    }


async def post_chat(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    role, text = body.choice("role", ("user", "assistant")), body.text("text", max_chars=MAX_TEXT_CHARS, least=0)
    if role is None:
        raise invalid("role", "is required: user or assistant")
    turn = body.optional_text("turn_id", max_chars=ID_CHARS)
    peer = _speaker(mesh, request, body)
    event = _event(
        body, peer, role=role, text=clean(text), tool_calls=body.records("tool_calls", most=TOOL_CALLS_MOST) or None,
        turn_id=turn,
    )  # fmt: skip
    with mesh.change() as change:
        change.record("chat.turned", **event)
        if peer is not None and role == "user":
            seen(change, peer.peer_id, shown(text), "turn")
        if peer is not None and event["session_id"] is not None:
            sessions.remember(change, peer.peer_id, event["session_id"], anew=False)
    if role == "assistant" and turn is not None:
        request.app[FINISHED].add(event["session_id"], turn)
    return wire.reply({"ok": True})


async def post_chat_delta(request: web.Request) -> web.Response:
    mesh, finished = request.app[MESH], request.app[FINISHED]
    body = await wire.read(request)
    turn, chunk = body.text("turn_id", max_chars=ID_CHARS), body.optional_whole("chunk_index")
    if chunk is None:
        raise invalid("chunk_index", "is required")
    final = body.flag("is_final")
    event = _event(
        body,
        _speaker(mesh, request, body),
        role=body.choice("role", ("user", "assistant"), "assistant"),
        turn_id=turn,
        chunk_index=chunk,
        chunk_kind=body.choice("kind", ("text", "tool_use"), "text"),
        text=clean(body.optional_text("text", max_chars=MAX_TEXT_CHARS) or ""),
        tool_call=body.record("tool_call", max_bytes=MAX_METADATA_BYTES) or None,
        is_final=final,
    )
    if not finished.has(event["session_id"], turn):
        mesh.announce("chat.streamed", **event)
    if final:
        finished.add(event["session_id"], turn)
    return wire.reply({"ok": True})


ROUTES = [web.post("/events/chat", post_chat), web.post("/events/chat_delta", post_chat_delta)]
