"""AsyncRepowireClient: the daemon's routes for asyncio programs, and `connect`, by which one becomes a peer.

A connected peer takes each message once: it remembers what it took by delivery id and only repeats the receipt when
the daemon, unsure after a cut, sends the same again. It stays the same peer through any number of reconnects.
"""

import asyncio
import inspect
import json
import logging
import os
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp

from repowire import config, protocol
from repowire.errors import Refusal

log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]

REMEMBERED_DELIVERIES = 10_000
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 30.0
HANDSHAKE_SECONDS = 10.0
TAKEN_SECONDS = 5.0  # a handler still at work after this has taken the message; well below the daemon's lease
SILENCE_SECONDS = 60.0  # four of the event stream's keepalives
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENDS = {
    protocol.CLOSE_AUTHENTICATION: "the token is wrong or was rotated",
    protocol.CLOSE_INVALID: "the daemon does not take this name, circle, backend or role",
    protocol.CLOSE_INVALID_PATH: "the daemon does not take this path",
    protocol.CLOSE_RETIRED: "this peer was retired",
    protocol.CLOSE_REPLACED: "another process took this peer's place",
}


# -- errors --------------------------------------------------------------------
class RepowireError(Exception):
    """Whatever this client raises."""


class DaemonError(RepowireError):
    """A call to the daemon failed."""


class DaemonConnectionError(DaemonError, ConnectionError):
    """No daemon answers, or it hung up."""


class DaemonTimeoutError(DaemonError, TimeoutError):
    """The daemon took too long."""


class DaemonHTTPError(DaemonError, Refusal):
    """The daemon refused: status, error, hint and facts as in `Refusal`."""


class NotTaken(RepowireError):
    """A handler raises it to give a message back: it was not taken, and goes back to the mailbox with these words."""


class PeerDisconnectedError(RepowireError):
    """A connected peer was ended by the daemon; connecting again would end the same way."""

    def __init__(self, peer_name: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{peer_name}: {reason or 'disconnected'}")
        self.peer_name, self.code, self.reason = peer_name, code, reason


# -- what comes back -----------------------------------------------------------
@dataclass(frozen=True)
class Health:
    """GET /health."""

    status: str
    version: str | None = None
    relay_mode: bool = False
    channel: Json = field(default_factory=dict)
    acp_broker: Json = field(default_factory=dict)


@dataclass(frozen=True)
class ClientPeer:
    """A peer as its client sees it."""

    peer_id: str
    name: str
    display_name: str
    status: str
    path: str | None = None
    machine: str | None = None
    tmux_session: str | None = None
    backend: str | None = None
    model: str | None = None
    circle: str | None = None
    role: str | None = None
    last_seen: str | None = None
    metadata: Json = field(default_factory=dict)
    description: str | None = None


@dataclass(frozen=True)
class RegisterPeerResult:
    """POST /peers."""

    ok: bool
    peer_id: str
    display_name: str
    birth_certificate: Json | None = None


@dataclass(frozen=True)
class AskResult:
    """POST /ask; `state` is the delivery's."""

    correlation_id: str
    error: str | None = None
    delivery_id: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class WaitResult:
    """POST /asks/{id}/wait; `status` is resolved or pending."""

    correlation_id: str
    status: str
    reply: str | None = None
    outcome: str | None = None
    option_id: str | None = None
    message: str | None = None
    close_reason: str | None = None
    responder: str | None = None
    attachments: list[Json] | None = None


@dataclass(frozen=True)
class BroadcastResult:
    """POST /broadcast; `sent_to` are names, each of `failed` has a `peer` and an `error`."""

    ok: bool
    sent_to: list[str]
    failed: list[Json]
    broadcast_id: str | None = None
    deliveries: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class QueryResult:
    """POST /query; `status` is the peer's where it was not asked."""

    text: str | None = None
    error: str | None = None
    status: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True)
class PendingAsk:
    """A row of GET /asks/pending."""

    correlation_id: str
    from_peer: str
    to_peer: str
    text: str
    created_at: str
    direction: str | None = None


@dataclass(frozen=True)
class MeshEvent:
    """A line of the event stream; `extras` is everything else that it says."""

    id: str
    type: str
    timestamp: str
    extras: Json


def _made(kind: type[T], answer: Mapping[str, Any]) -> T:
    """The fields that `kind` knows; a newer daemon may say more."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in answer.items() if name in known})
    except TypeError as exc:
        raise DaemonError(f"the daemon's answer lacks a field: {exc}") from None


def _given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}


# -- the client ----------------------------------------------------------------
class AsyncRepowireClient:
    """The routes as coroutines. Over the home's Unix socket unless a URL is given here or in REPOWIRE_DAEMON_URL."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        auth_token: str | None = None,
        timeout: float = 30.0,
        client: aiohttp.ClientSession | None = None,
        home: Path | None = None,
    ) -> None:
        self.home = home or config.home_of()
        url = base_url or os.environ.get("REPOWIRE_DAEMON_URL")
        self.base_url = (url or "http://localhost").rstrip("/")
        self.by_socket = url is None
        self.where = url or str(self.home / "daemon.sock")
        self.timeout = timeout
        self._token = None if self.by_socket else auth_token or self._own_token()
        self._session, self._owned = client, client is None

    def _own_token(self) -> str | None:
        """The home's own token goes to no other machine."""
        token = os.environ.get("REPOWIRE_AUTH_TOKEN")
        local = urlsplit(self.base_url).hostname in LOOPBACK
        return token if token or not local else config.read_token(self.home)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the session, if it is ours."""
        if self._session is not None and self._owned:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            address = config.socket_address(self.home / "daemon.sock") if self.by_socket else None
            connector = aiohttp.UnixConnector(path=address) if address else aiohttp.TCPConnector()
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    @asynccontextmanager
    async def translated(self, seconds: float | None = None) -> AsyncIterator[None]:
        """aiohttp's errors as ours."""
        try:
            yield
        except aiohttp.ClientConnectorError:
            raise DaemonConnectionError(
                f"no daemon answers at {self.where}: start one with `repowire daemon --detach`"
            ) from None
        except TimeoutError:
            raise DaemonTimeoutError(f"the daemon at {self.where} took longer than {seconds or 0:g} s") from None
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise DaemonConnectionError(f"the daemon at {self.where} hung up: {exc or type(exc).__name__}") from None

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """One call: JSON parsed, other bodies as bytes, nothing as None. Raises DaemonError."""
        seconds = seconds or self.timeout
        async with self.translated(seconds):
            async with self._open().request(
                method,
                self.base_url + path,
                json=body,
                params={name: str(value) for name, value in _given(query or {}).items()},
                headers={**self.headers, **_given({"Idempotency-Key": idempotency_key})},
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as reply:
                raw = await reply.read()
                if reply.status >= 300:
                    raise DaemonHTTPError.of_reply(reply.status, raw)
                try:
                    return (json.loads(raw) if reply.content_type.endswith("json") else raw) if raw else None
                except ValueError:
                    raise DaemonError(f"the daemon at {self.where} answers with broken JSON") from None

    # -- the daemon and its peers --------------------------------------------
    async def health(self) -> Health:
        """GET /health; needs no token."""
        return _made(Health, await self.request("GET", "/health"))

    async def list_peers(
        self, *, status: str | None = None, path: str | None = None, backend: str | None = None
    ) -> list[ClientPeer]:
        """GET /peers; `status="online"` counts the busy in."""
        query = {"status": status, "path": path, "backend": backend}
        return [_made(ClientPeer, peer) for peer in (await self.request("GET", "/peers", query=query))["peers"]]

    async def get_peer(self, identifier: str, *, circle: str | None = None) -> ClientPeer:
        """One peer by id or name."""
        answer = await self.request("GET", f"/peers/{quote(identifier, safe='')}", query={"circle": circle})
        return _made(ClientPeer, answer)

    async def register_peer(
        self,
        name: str,
        *,
        path: str | None = None,
        machine: str | None = None,
        tmux_session: str | None = None,
        pane_id: str | None = None,
        backend: str | None = None,
        circle: str | None = None,
        circle_source: str | None = None,
        role: str | None = None,
        metadata: Json | None = None,
        **more: Any,
    ) -> RegisterPeerResult:
        """POST /peers; `more` as in wire.md 1.2."""
        named = {
            "path": path,
            "machine": machine,
            "tmux_session": tmux_session,
            "pane_id": pane_id,
            "backend": backend,
            "circle": circle,
            "circle_source": circle_source,
            "role": role,
            "metadata": metadata,
        }
        answer = await self.request("POST", "/peers", {"name": name, **_given(named), **_given(more)})
        return _made(RegisterPeerResult, answer)

    async def unregister_peer(self, name: str, *, circle: str | None = None) -> None:
        """DELETE /peers/{name}."""
        await self.request("DELETE", f"/peers/{quote(name, safe='')}", query={"circle": circle})

    async def mark_peer_offline(self, name: str) -> int:
        """Say that a peer is gone; how many of its queries ended with it."""
        answer = await self.request("POST", f"/peers/{quote(name, safe='')}/offline")
        return int(answer["cancelled_queries"])

    async def session_update(self, **values: Any) -> None:
        """Note status, turn_state, model or metadata of the peer that `peer_name` or `pane_id` names."""
        await self.request("POST", "/session/update", _given(values))

    # -- asks and messages ---------------------------------------------------
    async def ask(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        attachments: list[Json] | None = None,
        reply_to: str | None = None,
        bypass_circle: bool = False,
        circle: str | None = None,
        if_offline: str | None = None,
        idempotency_key: str | None = None,
    ) -> AskResult:
        """Open an ask; `if_offline="queue"` keeps it for a peer that is away. The same key again opens no second."""
        more = {"from_peer": from_peer, "attachments": attachments, "reply_to": reply_to, "circle": circle}
        body = {"to_peer": to_peer, "text": text, "bypass_circle": bypass_circle, "if_offline": if_offline, **more}
        return _made(AskResult, await self.request("POST", "/ask", _given(body), idempotency_key=idempotency_key))

    async def query(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        timeout: float = 300.0,  # noqa: ASYNC109 - the published name
        bypass_circle: bool = False,
        circle: str | None = None,
    ) -> QueryResult:
        """Ask and wait for the reply, at most `timeout` seconds: `text`, or `error`."""
        body = {"to_peer": to_peer, "text": text, "timeout": timeout, "bypass_circle": bypass_circle}
        more = _given({"from_peer": from_peer, "circle": circle})
        answer = await self.request("POST", "/query", {**body, **more}, seconds=self.timeout + timeout)
        return _made(QueryResult, answer)

    async def ack(
        self,
        correlation_id: str,
        *,
        from_peer: str | None = None,
        message: str | None = None,
        attachments: list[Json] | None = None,
    ) -> None:
        """Close an ask, with a reply or bare. The same again is no error."""
        body = {
            "correlation_id": correlation_id,
            "from_peer": from_peer,
            "message": message,
            "attachments": attachments,
        }
        await self.request("POST", "/ack", _given(body))

    async def decline(self, correlation_id: str, reason: str) -> None:
        """Close an ask that will not be answered; the asker gets the reason. The same again is no error."""
        await self.request("POST", "/decline", {"correlation_id": correlation_id, "reason": reason})

    async def respond(self, pane_id: str, text: str, *, correlation_id: str | None = None) -> None:
        """Answer as the peer of a pane: the ask that is named, else the oldest open one (the legacy way)."""
        body = {"pane_id": pane_id, "text": text, "correlation_id": correlation_id}
        await self.request("POST", "/response", _given(body))

    async def wait_ask(
        self, correlation_id: str, *, peer_id: str | None = None, timeout_seconds: float | None = None
    ) -> WaitResult:
        """Wait once for the reply, at most as long as the daemon's cap allows."""
        body = _given({"peer_id": peer_id, "timeout_seconds": timeout_seconds})
        path = f"/asks/{quote(correlation_id, safe='')}/wait"
        answer = await self.request("POST", path, body, seconds=self.timeout + (timeout_seconds or 60))
        return _made(WaitResult, answer)

    async def pending_asks(
        self, *, pane_id: str | None = None, peer_id: str | None = None, direction: str | None = None
    ) -> list[PendingAsk]:
        """Open asks of one peer, newest first."""
        query = {"pane_id": pane_id, "peer_id": peer_id, "direction": direction}
        answer = await self.request("GET", "/asks/pending", query=query)
        return [_made(PendingAsk, each) for each in answer["asks"]]

    async def notify(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        attachments: list[Json] | None = None,
        bypass_circle: bool = False,
        circle: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Tell a peer something that wants no answer; it waits for one that is offline. A key again sends no second."""
        more = {"from_peer": from_peer, "attachments": attachments, "circle": circle}
        body = {"to_peer": to_peer, "text": text, "bypass_circle": bypass_circle, **more}
        await self.request("POST", "/notify", _given(body), idempotency_key=idempotency_key)

    async def broadcast(
        self,
        text: str,
        *,
        from_peer: str | None = None,
        exclude: list[str] | None = None,
        bypass_circle: bool = False,
    ) -> BroadcastResult:
        """Tell all that are connected, save the excluded names."""
        body = {"text": text, "from_peer": from_peer, "exclude": exclude, "bypass_circle": bypass_circle}
        return _made(BroadcastResult, await self.request("POST", "/broadcast", _given(body)))

    async def trace(self, trace_id: str) -> Json:
        """The stages of an ask or a message."""
        answer: Json = await self.request("GET", f"/traces/{quote(trace_id, safe='')}")
        return answer

    async def stream(self, *, since: int | str | None = None, replay: int | None = None) -> AsyncIterator[MeshEvent]:
        """Live events until the daemon hangs up (DaemonConnectionError); go on with `since=` the last id."""
        query = {name: str(value) for name, value in _given({"since": since, "replay": replay}).items()}
        quiet = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        async with self.translated(SILENCE_SECONDS):
            async with self._open().get(
                f"{self.base_url}/events/stream", params=query, headers=self.headers, timeout=quiet
            ) as reply:
                if reply.status != 200:
                    raise DaemonHTTPError.of_reply(reply.status, await reply.read())
                async for raw in reply.content:
                    name, _, value = raw.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                    if name == "data":
                        yield _event(json.loads(value))
        raise DaemonConnectionError(f"the event stream of {self.where} ended")

    # -- being a peer --------------------------------------------------------
    def connect(
        self,
        name: str,
        *,
        handler: "Handler",
        circle: str | None = None,
        role: str = "agent",
        backend: str = "claude-code",
        path: str | Path | None = None,
        agent_pid: int | None = None,
        capabilities: tuple[str, ...] = (),
        concurrency: int = 1,
    ) -> "Connection":
        """Become a peer: `async with client.connect("build", handler=handle) as peer: await peer.wait_closed()`.

        Messages go to `handler` in order, `concurrency` at a time; what it returns for an ask is the reply."""
        hello: Json = {
            "type": "connect",
            "display_name": name,
            "circle": circle,
            "role": role,
            "backend": backend,
            "path": os.path.abspath(path or os.getcwd()),
            "agent_pid": agent_pid,
            "capabilities": sorted({protocol.RECEIPTS, protocol.DEDUPE, *capabilities}),
            "instance": secrets.token_hex(16),
        }
        return Connection(self, _given(hello), handler, concurrency)

    def connect_as(self, hello: Json, frames: Callable[[Json], None]) -> "Connection":
        """Be the peer that this first frame says. Messages go to `frames` as they come; receipts are the caller's."""
        return Connection(self, _given({"type": "connect", **hello}), lambda message: None, 0, frames)


def _event(said: Json) -> MeshEvent:
    extras = {name: value for name, value in said.items() if name not in ("id", "type", "timestamp")}
    return MeshEvent(str(said.get("id")), str(said.get("type")), str(said.get("timestamp")), extras)


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
class Connection:
    """One peer's life: connected, cut, connected again, until it is closed or the daemon ends it."""

    def __init__(
        self,
        client: AsyncRepowireClient,
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
        """Leave the mesh. A handler at work is cancelled."""
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
            for task in (*workers, reading):
                task.cancel()
            await asyncio.gather(*workers, reading, return_exceptions=True)
            await self._hang_up()

    async def _stay(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Read until the cut, connect again, and so on; only an end that the daemon means gets out."""
        delay = FIRST_DELAY_SECONDS
        while True:
            await self._read(socket)
            log.info("%s: the connection was cut; trying again", self.display_name)
            while True:
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
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
                    socket = await self.client._open().ws_connect(
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
                    await socket.send_json({**self._hello, **_given({"auth_token": self.client._token})})
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
                await socket.send_json({**receipt, **_given({"detail": detail})})

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
