"""AsyncRepowireClient: the daemon's routes for asyncio programs, and `connect`, by which one becomes a peer."""

import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp

from repowire import config, protocol
from repowire.answers import (
    AskResult,
    BroadcastResult,
    ClientPeer,
    DaemonConnectionError,
    DaemonError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Health,
    Json,
    MeshEvent,
    PeerDisconnectedError,
    PendingAsk,
    QueryResult,
    RegisterPeerResult,
    RepowireError,
    WaitResult,
    given,
    made,
)
from repowire.connection import Connection, Handler, Message, NotTaken

__all__ = [
    "AskResult",
    "AsyncRepowireClient",
    "BroadcastResult",
    "ClientPeer",
    "Connection",
    "DaemonConnectionError",
    "DaemonError",
    "DaemonHTTPError",
    "DaemonTimeoutError",
    "Handler",
    "Health",
    "MeshEvent",
    "Message",
    "NotTaken",
    "PeerDisconnectedError",
    "PendingAsk",
    "QueryResult",
    "RegisterPeerResult",
    "RepowireError",
    "WaitResult",
]

SILENCE_SECONDS = 60.0  # four of the event stream's keepalives
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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

    @property
    def token(self) -> str | None:
        """The bearer; None over the Unix socket, or where nothing is known of one."""
        return self._token

    def session(self) -> aiohttp.ClientSession:
        """The aiohttp session of every call, made at the first."""
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
            async with self.session().request(
                method,
                self.base_url + path,
                json=body,
                params={name: str(value) for name, value in given(query or {}).items()},
                headers={**self.headers, **given({"Idempotency-Key": idempotency_key})},
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
        return made(Health, await self.request("GET", "/health"))

    async def list_peers(
        self, *, status: str | None = None, path: str | None = None, backend: str | None = None
    ) -> list[ClientPeer]:
        """GET /peers; `status="online"` counts the busy in."""
        query = {"status": status, "path": path, "backend": backend}
        return [made(ClientPeer, peer) for peer in (await self.request("GET", "/peers", query=query))["peers"]]

    async def get_peer(self, identifier: str, *, circle: str | None = None) -> ClientPeer:
        """One peer by id or name."""
        answer = await self.request("GET", f"/peers/{quote(identifier, safe='')}", query={"circle": circle})
        return made(ClientPeer, answer)

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
        answer = await self.request("POST", "/peers", {"name": name, **given(named), **given(more)})
        return made(RegisterPeerResult, answer)

    async def unregister_peer(self, name: str, *, circle: str | None = None) -> None:
        """DELETE /peers/{name}."""
        await self.request("DELETE", f"/peers/{quote(name, safe='')}", query={"circle": circle})

    async def mark_peer_offline(self, name: str) -> int:
        """Say that a peer is gone; how many of its queries ended with it."""
        answer = await self.request("POST", f"/peers/{quote(name, safe='')}/offline")
        return int(answer["cancelled_queries"])

    async def session_update(self, **values: Any) -> None:
        """Note status, turn_state, model or metadata of the peer that `peer_name` or `pane_id` names."""
        await self.request("POST", "/session/update", given(values))

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
        return made(AskResult, await self.request("POST", "/ask", given(body), idempotency_key=idempotency_key))

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
        more = given({"from_peer": from_peer, "circle": circle})
        answer = await self.request("POST", "/query", {**body, **more}, seconds=self.timeout + timeout)
        return made(QueryResult, answer)

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
        await self.request("POST", "/ack", given(body))

    async def decline(self, correlation_id: str, reason: str) -> None:
        """Close an ask that will not be answered; the asker gets the reason. The same again is no error."""
        await self.request("POST", "/decline", {"correlation_id": correlation_id, "reason": reason})

    async def respond(self, pane_id: str, text: str, *, correlation_id: str | None = None) -> None:
        """Answer as the peer of a pane: the ask that is named, else the oldest open one (the legacy way)."""
        body = {"pane_id": pane_id, "text": text, "correlation_id": correlation_id}
        await self.request("POST", "/response", given(body))

    async def wait_ask(
        self, correlation_id: str, *, peer_id: str | None = None, timeout_seconds: float | None = None
    ) -> WaitResult:
        """Wait once for the reply, at most as long as the daemon's cap allows."""
        body = given({"peer_id": peer_id, "timeout_seconds": timeout_seconds})
        path = f"/asks/{quote(correlation_id, safe='')}/wait"
        answer = await self.request("POST", path, body, seconds=self.timeout + (timeout_seconds or 60))
        return made(WaitResult, answer)

    async def pending_asks(
        self, *, pane_id: str | None = None, peer_id: str | None = None, direction: str | None = None
    ) -> list[PendingAsk]:
        """Open asks of one peer, newest first."""
        query = {"pane_id": pane_id, "peer_id": peer_id, "direction": direction}
        answer = await self.request("GET", "/asks/pending", query=query)
        return [made(PendingAsk, each) for each in answer["asks"]]

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
        await self.request("POST", "/notify", given(body), idempotency_key=idempotency_key)

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
        return made(BroadcastResult, await self.request("POST", "/broadcast", given(body)))

    async def trace(self, trace_id: str) -> Json:
        """The stages of an ask or a message."""
        answer: Json = await self.request("GET", f"/traces/{quote(trace_id, safe='')}")
        return answer

    async def stream(self, *, since: int | str | None = None, replay: int | None = None) -> AsyncIterator[MeshEvent]:
        """Live events until the daemon hangs up (DaemonConnectionError); go on with `since=` the last id."""
        query = {name: str(value) for name, value in given({"since": since, "replay": replay}).items()}
        quiet = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        async with self.translated(SILENCE_SECONDS):
            async with self.session().get(
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
        handler: Handler,
        circle: str | None = None,
        role: str = "agent",
        backend: str = "claude-code",
        path: str | Path | None = None,
        agent_pid: int | None = None,
        capabilities: tuple[str, ...] = (),
        concurrency: int = 1,
    ) -> Connection:
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
        return Connection(self, given(hello), handler, concurrency)

    def connect_as(self, hello: Json, frames: Callable[[Json], None]) -> Connection:
        """Be the peer that this first frame says. Messages go to `frames` as they come; receipts are the caller's."""
        return Connection(self, given({"type": "connect", **hello}), lambda message: None, 0, frames)


def _event(said: Json) -> MeshEvent:
    extras = {name: value for name, value in said.items() if name not in ("id", "type", "timestamp")}
    return MeshEvent(str(said.get("id")), str(said.get("type")), str(said.get("timestamp")), extras)
