"""Sockets: the live WebSockets of peers. One peer has one; a second one closes the first with 4005."""

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from repowire import mailboxes, peers
from repowire.auth import caller
from repowire.bus import Nudge
from repowire.deliveries import Delivery
from repowire.doors import Door
from repowire.frames import on_the_wire
from repowire.mesh import Mesh
from repowire.protocol import CLOSE_AUTHENTICATION, CLOSE_RETIRED

log = logging.getLogger("repowire")

ROOM_BYTES = 32 << 10  # below this in the write buffer nothing waits for the reader (asyncio pauses at 64 KiB)
GOODBYE_SECONDS = 1.0
DRAIN_SECONDS = 30.0  # a reader that takes nothing for this long is cut off; what it was not sent waits


async def say(ws: web.WebSocketResponse, frame: dict[str, Any]) -> None:
    """Send one frame, to a socket that may be gone."""
    try:
        await ws.send_str(json.dumps(frame, ensure_ascii=False))
    except (ConnectionError, RuntimeError) as gone:
        log.debug("a frame was not said: %s", gone)


class Goodbye(Exception):
    """End the socket with a code and, where there is one, an error frame before it."""

    def __init__(self, code: int, reason: str, frame: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason
        self.frame = {"type": "error", "error": reason} if frame is None else frame


@dataclass(slots=True)
class Socket:
    """One live socket, and the door that it is to its peer."""

    mesh: Mesh
    ws: web.WebSocketResponse
    request: web.Request
    generation: int  # of the token that let it in; a rotation cuts it, unless it came over the Unix socket
    task: asyncio.Task[Any]  # which reads it, and alone says goodbye
    door: Door = field(default_factory=lambda: Door("", ""))
    farewell: Goodbye | None = None  # what another task wants it to end with
    gone: Nudge = field(default_factory=Nudge)
    pane_id: str | None = None  # the pane that it said it is of
    hosted: bool = False  # at its far end is the ws-hook of this host
    pongs: tuple[Nudge, ...] = ()  # of who waits for an answer to a ping

    @property
    def peer_id(self) -> str:
        return self.door.peer_id

    async def hand(self, delivery: Delivery) -> bool:
        """Write one frame; False when it was provably not written. What fails later may have been: it is unknown.

        A slow reader is waited for, DRAIN_SECONDS at most; then the socket is cut.
        """
        text, transport = delivery.wire_text, self.request.transport
        if self.ws.closed or transport is None or transport.is_closing():
            return False
        try:
            if transport.get_write_buffer_size() + 4 * len(text) < ROOM_BYTES:
                await self.ws.send_str(text)  # there is room for it, so this does not wait
            else:
                await self._hand_slowly(text)
        except (ConnectionError, TimeoutError, RuntimeError):
            self.abort()
        return True

    def hand_at_once(self, delivery: Delivery) -> bool:
        """Write one frame without waiting; False when there is no room for it or no socket any more: `hand` decides.

        Straight to the transport, behind what aiohttp wrote to it: a frame needs nothing of aiohttp's writer but its
        checks and its waiting, which cost more than the frame.
        """
        text, transport = delivery.wire_text, self.request.transport
        if self.ws.closed or transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + 4 * len(text) >= ROOM_BYTES:
            return False
        transport.write(on_the_wire(text))
        return True

    async def _hand_slowly(self, text: str) -> None:
        stalling = asyncio.get_running_loop().call_later(mailboxes.WRITE_SECONDS, mailboxes.stall, self.mesh, self.door)
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.ws.send_str(text)
            self.door.stalled = False
        finally:
            stalling.cancel()

    async def ping(self, seconds: float) -> bool:
        """Whether the program at the far end answers in time, and not only its kernel."""
        pong = Nudge()
        self.pongs += (pong,)
        try:
            async with asyncio.timeout(seconds):
                await self.ws.send_str('{"type": "ping"}')
                return await pong.wait()
        except (ConnectionError, RuntimeError, TimeoutError):
            return False
        finally:
            self.pongs = tuple(one for one in self.pongs if one is not pong)

    def part(self, code: int, reason: str) -> None:
        """Have it end with this goodbye, soon; what comes second is ignored.

        Its own task must say it. aiohttp's `close` from another one closes the connection without waiting for the
        client's answer; what the client had sent meanwhile lies unread then, so that it is told of a reset and not of
        the code, and comes back as if nothing had been said.
        """
        if self.farewell is None and not self.task.done():
            self.farewell = Goodbye(code, reason, {})
            self.task.cancel()

    async def close(self, code: int, reason: str) -> None:
        """`part`, and wait until it is gone: a reader that does not answer is cut after a second."""
        self.part(code, reason)
        await self.gone.wait(2 * GOODBYE_SECONDS)

    async def say_goodbye(self, goodbye: Goodbye) -> None:
        """To be called by its own task, at its end."""
        try:
            if goodbye.frame and not self.ws.closed:
                await say(self.ws, goodbye.frame)
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.ws.close(code=goodbye.code, message=goodbye.reason.encode())
        except (ConnectionError, TimeoutError, RuntimeError):
            self.abort()

    def abort(self) -> None:
        """Cut it off."""
        if self.request.transport is not None:
            self.request.transport.abort()


class Sockets:
    """The live table, by peer id."""

    def __init__(self) -> None:
        self.live: dict[str, Socket] = {}
        self.count = 0  # sockets that wait for their first frame included

    def of(self, peer_id: str) -> Socket | None:
        """The peer's socket."""
        return self.live.get(peer_id)

    async def close_all(self) -> None:
        """The daemon stops: every peer is told, and comes back later."""
        going_away = aiohttp.WSCloseCode.GOING_AWAY
        await asyncio.gather(*(socket.close(going_away, "the daemon stops") for socket in list(self.live.values())))

    async def run(self, mesh: Mesh) -> None:
        """Close the sockets of peers that were retired or unregistered, and those of a token that was rotated."""
        with mesh.bus.listen("peer.retired", "peer.unregistered", "token.rotated") as nudge:
            while True:
                for peer_id, socket in list(self.live.items()):
                    peer = peers.find(mesh.db.conn, peer_id)
                    if peer is None or peer.retired_at is not None or peer.hidden_at is not None:
                        socket.part(CLOSE_RETIRED, "peer retired")
                    elif socket.generation < mesh.auth.generation and caller(socket.request).via == "tcp":
                        socket.part(CLOSE_AUTHENTICATION, "the token was rotated")
                await nudge.wait(60.0)


SOCKETS = web.AppKey("sockets", Sockets)
