"""One aiohttp session to the daemon, and its errors as ours."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from repowire import config
from repowire.answers import (
    DaemonConnectionError,
    DaemonError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Json,
    MeshEvent,
    given,
    made,
)

T = TypeVar("T")

SILENCE_SECONDS = 60.0  # four of the event stream's keepalives
NO_SOCKET = {503: "as many are open as daemon.max_sockets allows", 403: "it wants another Host or Origin"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Transport:
    """Over the home's Unix socket unless a URL is given here or in REPOWIRE_DAEMON_URL."""

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
        except aiohttp.WSServerHandshakeError as no:
            why = NO_SOCKET.get(no.status, f"status {no.status}")
            raise DaemonConnectionError(f"the daemon at {self.where} opened no socket: {why}") from None
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

    async def _made(self, kind: type[T], method: str, path: str, body: Any = None, **options: Any) -> T:
        return made(kind, await self.request(method, path, body, **options))

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
                        yield event_of(json.loads(value))
        raise DaemonConnectionError(f"the event stream of {self.where} ended")


def event_of(said: Json) -> MeshEvent:
    extras = {name: value for name, value in said.items() if name not in ("id", "type", "timestamp")}
    return MeshEvent(str(said.get("id")), str(said.get("type")), str(said.get("timestamp")), extras)
