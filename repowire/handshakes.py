"""Handshakes: `GET /ws`, from the first frame of a peer to its last.

The request's task reads the frames; the worker of the peer's mailbox writes them. Frames go through the literal dict
`FRAMES`; each calls the same rule as its HTTP twin.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from repowire import asks, claims, lives, mailboxes, names, peers, presence, receipts, replies, wire
from repowire.auth import ADMITTED, caller
from repowire.doors import Door
from repowire.errors import Refusal, invalid, unavailable
from repowire.mesh import MESH, Change, Mesh
from repowire.protocol import (
    BACKENDS,
    CIRCLE_SOURCES,
    CLOSE_AUTHENTICATION,
    CLOSE_INVALID,
    CLOSE_INVALID_PATH,
    CLOSE_NOT_CONNECT,
    CLOSE_REPLACED,
    CLOSE_RETIRED,
    DEDUPE,
    FIRST_FRAME_SECONDS,
    MAX_FRAME_BYTES,
    MAX_TEXT_CHARS,
    RECEIPTS,
    ROLES,
    TURN_STATES,
    is_identifier,
)
from repowire.sockets import SOCKETS, Goodbye, Socket, Sockets, say

log = logging.getLogger("repowire")

# -- the handshake -----------------------------------------------------------


async def get_ws(request: web.Request) -> web.WebSocketResponse:
    mesh, table = request.app[MESH], request.app[SOCKETS]
    limit = mesh.config.daemon.max_sockets
    if table.count >= limit:
        raise unavailable("too_many_sockets", f"{limit} sockets are open already", limit=limit)
    generation = mesh.auth.generation
    ws = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES + 1, compress=False, autoping=True)
    table.count += 1
    try:
        await ws.prepare(request)
        request[wire.STARTED] = ws
        task = asyncio.current_task()
        assert task is not None
        socket = Socket(mesh, ws, request, generation, task)
        try:
            async with _Life(mesh, table, socket):
                await _listen(mesh, socket)
        except Goodbye as goodbye:
            socket.farewell = goodbye
            await socket.say_goodbye(goodbye)
        except asyncio.CancelledError:
            if socket.farewell is None:
                raise
            task.uncancel()
            await socket.say_goodbye(socket.farewell)
        finally:
            socket.gone.ring()
        return ws
    finally:
        table.count -= 1


class _Life:
    """A socket from its first frame to its end: in between, `async with` keeps no coroutine, half a kilobyte each."""

    __slots__ = ("mesh", "socket", "table", "worker")

    def __init__(self, mesh: Mesh, table: Sockets, socket: Socket) -> None:
        self.mesh, self.table, self.socket = mesh, table, socket
        self.worker: mailboxes.Worker | None = None

    async def __aenter__(self) -> None:
        mesh, socket = self.mesh, self.socket
        name = await _connect(mesh, socket)
        before = self.table.live.get(socket.peer_id)
        self.table.live[socket.peer_id] = socket
        try:
            if before is not None:
                await before.close(CLOSE_REPLACED, "replaced")
            await mesh.on_disk()
            await socket.ws.send_str(json.dumps(name))
            _opened(mesh, socket)
            self.worker = mailboxes.Worker(mesh, socket.door, socket)
            self.worker.begin()
        except BaseException:
            await self._end()
            raise
        mesh.forget()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        try:
            if self.worker is not None:
                await self.worker.end()
        finally:
            current = self.table.live.get(self.socket.peer_id) is self.socket
            if current:
                del self.table.live[self.socket.peer_id]
            _closed(self.mesh, self.socket, current)


def _opened(mesh: Mesh, socket: Socket) -> None:
    """From now on the peer is reached through it."""
    mesh.doors.open(socket.door)
    with mesh.change() as change:
        peer = peers.load(change.db, socket.peer_id)
        lives.note(change, peer, presence.SOCKET, "open", "connected", "socket", socket.door.holder)
        change.record("socket.opened", peer_id=socket.peer_id, holder=socket.door.holder)


def _closed(mesh: Mesh, socket: Socket, current: bool) -> None:
    """The socket is gone; another one of the same peer may be there already."""
    mesh.doors.close(socket.door)
    with mesh.change() as change:
        peer = peers.load(change.db, socket.peer_id)
        if current:
            lives.note(change, peer, presence.SOCKET, "closed", "transport_failure", "socket", socket.door.holder)
        change.record("socket.closed", peer_id=socket.peer_id, holder=socket.door.holder)


async def _connect(mesh: Mesh, socket: Socket) -> dict[str, Any]:
    """The first frame, in the published order of checks (wire.md 2.2); returns the `connected` frame."""
    try:
        async with asyncio.timeout(FIRST_FRAME_SECONDS):
            message = await socket.ws.receive()
    except TimeoutError:
        raise Goodbye(CLOSE_AUTHENTICATION, f"no first frame within {FIRST_FRAME_SECONDS:g} s") from None
    frame = _frame(message)
    if frame is None or frame.get("type") != "connect":
        raise Goodbye(CLOSE_NOT_CONNECT, "First message must be connect")
    _authenticate(mesh, socket, frame)
    _validate(frame)
    try:
        return _register(mesh, socket, frame)
    except Refusal as refusal:
        if refusal.error == "peer_retired":
            error = {"type": "error", "code": "peer_retired", "error": refusal.hint}
            raise Goodbye(CLOSE_RETIRED, "Peer retired", error) from None
        raise Goodbye(CLOSE_INVALID, f"Invalid {refusal.facts.get('field', 'frame')}: {refusal.hint}"[:120]) from None


def _frame(message: aiohttp.WSMessage) -> dict[str, Any] | None:
    """A text frame's object; None for the end of the socket and for anything that is no object."""
    if message.type is not aiohttp.WSMsgType.TEXT:
        return None
    try:
        frame = wire.decode(message.data)
    except (ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def _authenticate(mesh: Mesh, socket: Socket, frame: dict[str, Any]) -> None:
    if not socket.request[ADMITTED] and not mesh.auth.matches(frame.get("auth_token")):
        raise Goodbye(CLOSE_AUTHENTICATION, "Authentication failed")
    if socket.generation < mesh.auth.generation and caller(socket.request).via == "tcp":
        raise Goodbye(CLOSE_AUTHENTICATION, "the token was rotated")


def _validate(frame: dict[str, Any]) -> None:
    """The published words for what is wrong, in the published order."""
    checks: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("circle", is_identifier),
        ("circle_source", lambda value: value in CIRCLE_SOURCES),
        ("display_name", is_identifier),
        ("backend", lambda value: value in BACKENDS and value != "mcp-http"),
        ("role", lambda value: value in ROLES),
    )
    for name, valid in checks:
        if (name == "display_name" or frame.get(name) is not None) and not valid(frame.get(name)):
            raise Goodbye(CLOSE_INVALID, f"Invalid {name}")
    path = frame.get("path")
    if isinstance(path, str) and path and not path.strip("/"):
        raise Goodbye(CLOSE_INVALID_PATH, "Invalid path")


def _register(mesh: Mesh, socket: Socket, frame: dict[str, Any]) -> dict[str, Any]:
    body = wire.Body(frame)
    claim = claims.claim_of(mesh, body, name="display_name")
    capabilities = [one for one in body.members("capabilities") if isinstance(one, str)]
    instance = body.optional_text("instance", max_chars=64)
    metadata = {**claim.metadata, "capabilities": capabilities}
    for name in ("hook_version", "model_details"):
        if frame.get(name) is not None:
            metadata[name] = frame[name]
    if len(json.dumps(metadata)) > 2 * (16 << 10):
        raise invalid("metadata", "is too large")
    claims.may_claim(mesh, socket.request, claim)
    if frame.get("hosted") is True and not _is_there(mesh, claim):
        raise Goodbye(CLOSE_RETIRED, "Peer retired")
    with mesh.change() as change:
        claim = replace(claim, metadata=metadata)
        peer, _ = claims.register(change, claim, circles=mesh.config.mesh.circles, connected=True)
        certificate = claims.certify(change, peer) if DEDUPE in capabilities else None
    remembers = DEDUPE in capabilities and instance is not None
    holder = f"instance:{instance}" if remembers else f"socket:{secrets.token_hex(6)}"
    receipts = RECEIPTS in capabilities or remembers
    way = "pane" if peer.pane_id is not None else "socket"
    socket.door = Door(peer.peer_id, holder, way=way, receipts=receipts, remembers=remembers)
    socket.door.at_once = socket.hand_at_once
    socket.pane_id, socket.hosted = claim.pane_id, frame.get("hosted") is True
    socket.door.hosted, socket.door.cut = socket.hosted, socket.abort
    claims.watch(mesh, peer)
    reply = {"type": "connected", "session_id": peer.peer_id, "display_name": peer.display_name}
    return reply | ({"birth_certificate": certificate} if certificate else {})


def _is_there(mesh: Mesh, claim: claims.Claim) -> bool:
    """Whether the peer of a pane is still who ws-hook was told of: it serves peers, and makes none and revives none."""
    peer = peers.find(mesh.db.conn, claim.peer_id or "")
    return (
        peer is not None
        and peer.retired_at is None
        and peer.hidden_at is None
        and (peer.pane_id, peer.agent_pid, peer.agent_started) == (claim.pane_id, claim.agent_pid, claim.agent_started)
    )


# -- frames ------------------------------------------------------------------


async def _listen(mesh: Mesh, socket: Socket) -> None:
    """Read frames until the socket ends; a frame that is wrong is answered, one that is no object ends the socket."""
    async for message in socket.ws:
        frame = _frame(message)
        if frame is None:
            socket.abort()  # the published server drops a socket that sends no JSON object (wire.md 2)
            return
        kind = frame.get("type")
        if kind == "delivery_ack" and frame.get("status") == "injected":
            delivery_id = frame.get("delivery_id")
            if isinstance(delivery_id, str) and mailboxes.injected(mesh, socket.door, delivery_id):
                continue
        rule = FRAMES.get(kind) if isinstance(kind, str) else None
        if rule is None:
            log.debug("%s sent a frame of type %r, which nobody handles", socket.peer_id, frame.get("type"))
            continue
        try:
            with mesh.change() as change:
                rule(change, mesh, socket, wire.Body(frame))
        except Refusal as refusal:
            await say(socket.ws, {"type": "error", "error": refusal.hint, "code": refusal.error})


def on_status(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    word = frame.optional_text("status") or "online"
    turn_state = frame.fields.get("turn_state")
    peer = peers.load(change.db, socket.peer_id)
    if turn_state in TURN_STATES:
        lives.update(change, peer, turn_state=turn_state, model=None, metadata={})
    lives.touch(change, socket.peer_id)
    status = word if word in (presence.BUSY, presence.OFFLINE) else presence.ONLINE
    lives.say(change, peer, status, "status_update_offline", "socket")


def on_pong(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    for pong in socket.pongs:
        pong.ring()
    if frame.fields.get("pane_alive") is False:
        change.record("presence.changed", peer_id=socket.peer_id, source="pane", fact="missing")


def on_delivery_ack(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    status = frame.choice("status", ("injected", "rejected", "failed", "held"))
    if status is None:
        raise invalid("status", "is required")  # without it nothing is known, and a repeat would be a second injection
    delivery_id = frame.text("delivery_id", max_chars=64)
    detail = frame.optional_text("detail", max_chars=1000)
    receipts.receipt(change, delivery_id, status, detail, peer_id=socket.peer_id)


def on_ready(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    """The gate of a pane opened: what was held may be tried again. Who says it once will say it again."""
    socket.door.watches, socket.door.retry_at = True, 0.0
    change.after(socket.door.mail)


def on_response(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    """The legacy answer to a query: an ack with a message."""
    correlation_id = frame.text("correlation_id", max_chars=64)
    if asks.load(change.db, correlation_id).to_peer_id == socket.peer_id:
        replies.ack(change, mesh, correlation_id, replies.Reply(frame.text("text", max_chars=MAX_TEXT_CHARS)))


def on_error(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    """The legacy failure of a query: the ask ends, and the asker learns why."""
    correlation_id, words = (
        frame.optional_text("correlation_id", max_chars=64),
        frame.optional_text("error", max_chars=1000),
    )
    ask = asks.find(change.db, correlation_id) if correlation_id else None
    if ask is not None and ask.to_peer_id == socket.peer_id:
        replies.end(change, mesh, ask, "failed", words or "the peer reported an error")


def on_set_circle(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    circle = frame.optional_identifier("circle")
    if circle is not None:
        names.set_circle(change, peers.load(change.db, socket.peer_id), circle)


def on_update_display_name(change: Change, mesh: Mesh, socket: Socket, frame: wire.Body) -> None:
    name = frame.optional_identifier("display_name")
    if name is not None:
        names.rename(change, peers.load(change.db, socket.peer_id), name)


FRAMES = {
    "status": on_status,
    "pong": on_pong,
    "delivery_ack": on_delivery_ack,
    "ready": on_ready,
    "response": on_response,
    "error": on_error,
    "set_circle": on_set_circle,
    "update_display_name": on_update_display_name,
}

ROUTES = [web.get("/ws", get_ws)]
