"""A peer's life on /ws: connected, cut, connected again, and each message taken once.

It remembers what it took by delivery id and only repeats the receipt when the daemon, unsure after a cut, sends the
same again. It stays the same peer through any number of reconnects.
"""

import asyncio
import inspect
import json
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import aiohttp

from repowire import protocol
from repowire.answers import (
    DaemonConnectionError,
    DaemonError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Json,
    PeerDisconnectedError,
    RepowireError,
    given,
)

log = logging.getLogger(__name__)

REMEMBERED_DELIVERIES = 10_000
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 30.0
LONGEST_HERE_SECONDS = 1.0  # on the Unix socket, where a try costs next to nothing and no other machine anything
HANDSHAKE_SECONDS = 10.0
LEFT = "the peer left before it began"
TAKEN_SECONDS = 5.0  # a handler still at work after this has taken the message; well below the daemon's lease
ENDS = {
    protocol.CLOSE_AUTHENTICATION: "the token is wrong or was rotated",
    protocol.CLOSE_INVALID: "the daemon does not take this name, circle, backend or role",
    protocol.CLOSE_INVALID_PATH: "the daemon does not take this path",
    protocol.CLOSE_RETIRED: "this peer was retired",
    protocol.CLOSE_REPLACED: "another process took this peer's place",
}


# -- a message -----------------------------------------------------------------
@dataclass(frozen=True)
class Message:
    """What a peer was sent. For `kind` "ask" somebody waits for the reply to `correlation_id`."""

    kind: str  # ask, notify or broadcast
    from_peer: str
    text: str  # as the sender wrote it, without the line that says how to answer
    to_peer: str | None = None
    correlation_id: str | None = None
    delivery_id: str | None = None
    reply_to: str | None = None
    attachments: tuple[Json, ...] = ()
    question: Json | None = None
    _receipt: "Callable[[Message, str, str | None], Awaitable[None]] | None" = field(default=None, repr=False)

    async def taken(self) -> None:
        """Send the receipt now. Without this it goes when the handler returns, or is still at work after 5 s."""
        if self._receipt is not None:
            await self._receipt(self, "injected", None)


Handler = Callable[[Message], Awaitable[str | None] | str | None]


class NotTaken(RepowireError):
    """A handler raises it to give a message back: it was not taken, and goes back to the mailbox with these words."""


def _message(frame: Json, receipt: Callable[[Message, str, str | None], Awaitable[None]]) -> Message:
    text, cid = str(frame.get("text", "")), frame.get("correlation_id")
    if frame["type"] == "ask":
        for how in ('ack("{0}") or ack("{0}", "reply")', 'answer("{0}", option_id=...) or answer("{0}", text="...")'):
            text = text.removesuffix("\n↳ " + how.format(cid))
    return Message(
        kind=frame["type"],
        from_peer=str(frame.get("from_peer", "")),
        to_peer=frame.get("to_peer"),
        text=text,
        correlation_id=cid,
        delivery_id=frame.get("delivery_id"),
        reply_to=frame.get("reply_to"),
        attachments=tuple(frame.get("attachments") or ()),
        question=frame.get("question"),
        _receipt=receipt,
    )


# -- a connected peer ----------------------------------------------------------
class Daemon(Protocol):
    """What a connection needs of the client that it belongs to."""

    base_url: str
    where: str
    by_socket: bool

    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def token(self) -> str | None: ...
    def session(self) -> aiohttp.ClientSession: ...
    def translated(self, seconds: float | None = None) -> AbstractAsyncContextManager[None]: ...
    async def ack(self, correlation_id: str, *, from_peer: str | None = None, message: str | None = None) -> object: ...


class Connection:
    """One peer's life: connected, cut, connected again, until it is closed or the daemon ends it."""

    def __init__(
        self,
        client: Daemon,
        hello: Json,
        handler: Handler,
        concurrency: int,
        frames: Callable[[Json], None] | None = None,
    ) -> None:
        self.client, self.handler, self.concurrency, self.frames = client, handler, concurrency, frames
        self.display_name: str = hello["display_name"]
        self.peer_id: str | None = None
        self.connected = asyncio.Event()  # set while the socket is up
        self._hello = hello
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._known: set[str] = set()  # delivery ids that came, in the order of _order
        self._order: deque[str] = deque()
        self._taken: set[str] = set()  # those of them whose receipt went out
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect for the first time; raises when that fails. Later cuts are mended without a word."""
        self._life = asyncio.create_task(self._live(await self._handshake()))

    async def close(self) -> None:
        """Leave the mesh. A handler at work is cancelled, and what none has begun is given back."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError, RepowireError):
                await self._life
        await self._hang_up()

    async def send(self, frame: Json) -> bool:
        """Send a frame of one's own; False when the socket is down, and then it is gone."""
        socket = self._socket
        if socket is None:
            return False
        try:
            await socket.send_json(frame)
        except (aiohttp.ClientError, ConnectionError):
            return False
        return True

    async def wait_closed(self) -> None:
        """Until the daemon ends this peer: PeerDisconnectedError says why."""
        assert self._life is not None, "not started"
        await asyncio.shield(self._life)

    async def run(self) -> None:
        """Be this peer until the daemon ends it or this is cancelled."""
        async with self:
            await self.wait_closed()

    # -- the socket ----------------------------------------------------------
    async def _live(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(self.concurrency)]
        reading = asyncio.create_task(self._stay(socket))
        try:
            done, _ = await asyncio.wait([*workers, reading], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            while not self._inbox.empty():
                await self._receipt(self._inbox.get_nowait(), "held", LEFT)
            last = self._socket  # whoever stops reading forgets it
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if last is not None:
                await last.close()

    async def _stay(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Read until the cut, connect again, and so on; only an end that the daemon means gets out."""
        delay = FIRST_DELAY_SECONDS
        longest = LONGEST_HERE_SECONDS if self.client.by_socket else LONGEST_DELAY_SECONDS
        while True:
            await self._read(socket)
            log.info("%s: the connection was cut; trying again", self.display_name)
            while True:
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))
                delay = min(delay * 2, longest)
                try:
                    socket = await self._handshake()
                except (DaemonConnectionError, DaemonTimeoutError) as exc:
                    log.info("%s: %s", self.display_name, exc)
                else:
                    log.info("%s: connected again", self.display_name)
                    delay = FIRST_DELAY_SECONDS
                    break

    async def _handshake(self) -> aiohttp.ClientWebSocketResponse:
        """Connect and say who we are. Raises PeerDisconnectedError when the daemon does not want us."""
        async with self.client.translated(HANDSHAKE_SECONDS):
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                try:
                    socket = await self.client.session().ws_connect(
                        f"{self.client.base_url}/ws",
                        headers=self.client.headers,
                        heartbeat=None if self.client.by_socket else LONGEST_DELAY_SECONDS,
                        max_msg_size=2 * protocol.MAX_FRAME_BYTES,
                    )
                except aiohttp.WSServerHandshakeError as exc:
                    if exc.status >= 500:
                        raise
                    raise DaemonHTTPError(exc.status, "not_admitted", f"the daemon refused: {exc.message}") from None
                try:
                    await socket.send_json({**self._hello, **given({"auth_token": self.client.token})})
                    self._welcome(await self._first(socket))
                except BaseException:
                    await socket.close()
                    raise
        self._socket = socket
        self.connected.set()
        return socket

    async def _first(self, socket: aiohttp.ClientWebSocketResponse) -> Json:
        error = ""
        while True:
            came = await socket.receive()
            if came.type is not aiohttp.WSMsgType.TEXT:
                self._end_if_meant(socket.close_code, error)
                raise DaemonConnectionError(f"the daemon at {self.client.where} hung up during the handshake: {error}")
            frame = _frame(came.data)
            if frame.get("type") == "connected":
                return frame
            error = str(frame.get("error", error))

    def _welcome(self, frame: Json) -> None:
        self.peer_id, self.display_name = frame["session_id"], frame["display_name"]
        self._hello["peer_id"] = self.peer_id
        if frame.get("birth_certificate"):
            self._hello["birth_certificate"] = frame["birth_certificate"]

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        error = ""
        try:
            async for came in socket:
                if came.type is aiohttp.WSMsgType.TEXT:
                    frame = _frame(came.data)
                    if frame.get("type") == "error":
                        error = str(frame.get("error", ""))
                        log.warning("%s: the daemon says: %s", self.display_name, error)
                    else:
                        await self._take(socket, frame)
        except (aiohttp.ClientError, ConnectionError) as exc:
            log.info("%s: %s", self.display_name, exc)
        finally:
            self.connected.clear()
            self._socket = None
        self._end_if_meant(socket.close_code, error)

    def _end_if_meant(self, code: int | None, error: str) -> None:
        if code in ENDS:
            raise PeerDisconnectedError(self.display_name, code, error or ENDS[code])

    async def _hang_up(self) -> None:
        self.connected.clear()
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    # -- messages ------------------------------------------------------------
    async def _take(self, socket: aiohttp.ClientWebSocketResponse, frame: Json) -> None:
        kind, delivery_id = frame.get("type"), frame.get("delivery_id")
        if kind == "ping":
            await socket.send_json({"type": "pong"})
        elif kind in ("ask", "notify", "broadcast") and self.frames is not None:
            self.frames(frame)
        elif kind in ("ask", "notify", "broadcast"):
            message = _message(frame, self._receipt)
            if delivery_id is None or self._remember(delivery_id):
                self._inbox.put_nowait(message)
            elif delivery_id in self._taken:
                await self._receipt(message, "injected", None, again=True)

    def _remember(self, delivery_id: str) -> bool:
        """True the first time."""
        if delivery_id in self._known:
            return False
        self._known.add(delivery_id)
        self._order.append(delivery_id)
        if len(self._order) > REMEMBERED_DELIVERIES:
            oldest = self._order.popleft()
            self._known.discard(oldest)
            self._taken.discard(oldest)
        return True

    async def _receipt(self, message: Message, status: str, detail: str | None, *, again: bool = False) -> None:
        """Once a message; while the socket is down it is kept as taken, and goes out when the daemon asks again."""
        delivery_id = message.delivery_id
        if delivery_id is None or (delivery_id in self._taken and not again):
            return
        if status == "injected":
            self._taken.add(delivery_id)
        else:  # it goes back to the queue, and may come again
            self._known.discard(delivery_id)
            with suppress(ValueError):
                self._order.remove(delivery_id)
        receipt = {"type": "delivery_ack", "delivery_id": delivery_id, "message_type": message.kind, "status": status}
        socket = self._socket
        if socket is not None:
            with suppress(aiohttp.ClientError, ConnectionError):
                await socket.send_json({**receipt, **given({"detail": detail})})

    async def _work(self) -> None:
        while True:
            message = await self._inbox.get()
            try:
                reply = await self._handled(message)
            except NotTaken as no:
                await self._receipt(message, "failed", str(no)[:500])
                continue
            except Exception:  # it has the message, whatever it made of it: giving that back would be a loop
                log.exception("%s: the handler failed on %s", self.display_name, message.delivery_id)
                reply = None
            await message.taken()
            if message.kind == "ask" and message.correlation_id and reply is not None:
                await self._reply(message.correlation_id, reply)

    async def _handled(self, message: Message) -> str | None:
        answer = self.handler(message)
        if not inspect.isawaitable(answer):
            return answer
        work = asyncio.ensure_future(answer)
        try:
            done, _ = await asyncio.wait({work}, timeout=TAKEN_SECONDS)
            if not done:
                await message.taken()
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # its own cleanup is part of it

    async def _reply(self, correlation_id: str, reply: str) -> None:
        """Ack until the daemon has it: the same ack again is harmless, so a cut in between loses nothing."""
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                await self.client.ack(correlation_id, message=reply, from_peer=self.peer_id)
            except DaemonError as exc:
                # 503 says that nothing was kept, for now: a full disk, a daemon that stops
                if isinstance(exc, DaemonHTTPError) and exc.status != 503:
                    log.warning("%s: the reply to %s was refused: %s", self.display_name, correlation_id, exc)
                    return
                log.info("%s: the reply to %s waits: %s", self.display_name, correlation_id, exc)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
            else:
                return


def _frame(text: str) -> Json:
    """A frame's object; what is none says nothing."""
    try:
        frame = json.loads(text)
    except ValueError:
        return {}
    return frame if isinstance(frame, dict) else {}
