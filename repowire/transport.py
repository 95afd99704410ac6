"""HTTP/1.1 to the daemon on a plain socket: one request after the other, and the event stream.

The Unix socket of the home by default, TCP when `REPOWIRE_DAEMON_URL` names one. Every short-lived process of ours
starts with this file, so it imports next to nothing: `http.client` alone would cost more than its 60 lines here.
A refusal comes back as the same `Refusal` that the daemon raised.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from repowire import __version__, config
from repowire.errors import Refusal

Json = dict[str, Any]

MAX_LINE_BYTES = 65_536
MAX_BODY_BYTES = 64 * 1024 * 1024  # far above any reply of ours: a bound, so that garbage cannot fill the memory
KEEPALIVE_SECONDS = 15  # the event stream's comment, wire.md 3
UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class DaemonAway(ConnectionError):
    """Nothing answers. `asked` is True when the request had gone out, so that it may have been taken."""

    def __init__(self, words: str, *, asked: bool = False) -> None:
        super().__init__(words)
        self.asked = asked


# -- pieces of HTTP ---------------------------------------------------------------
def quote(text: str) -> str:
    """Percent-encode with nothing but the unreserved left, as the daemon's path segments want it."""
    return "".join(chr(b) if b in UNRESERVED else f"%{b:02X}" for b in text.encode("utf-8", "surrogateescape"))


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of `http://host[:port]`; ConfigError for anything else."""
    scheme, _, rest = url.partition("://")
    place = rest.rstrip("/")
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, "80"
    if scheme != "http" or not host or "/" in place or "@" in place or not (port.isascii() and port.isdigit()):
        raise config.ConfigError(f"REPOWIRE_DAEMON_URL must look like http://127.0.0.1:8377, not {url!r}")
    return host.strip("[]"), int(port)


def own_token(host: str, home: Path) -> str | None:
    """The bearer for TCP: REPOWIRE_AUTH_TOKEN, else the home's own, which no other machine shall see."""
    token = os.environ.get("REPOWIRE_AUTH_TOKEN")
    if token and not all("!" <= letter <= "~" for letter in token):
        raise config.ConfigError("REPOWIRE_AUTH_TOKEN must be printable ASCII without spaces")
    return token if token or host not in LOOPBACK else config.read_token(home)


def _tcp(place: tuple[str, int], timeout: float) -> socket.socket:
    sock = socket.create_connection(place, timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(config.socket_address(path))  # blocking: with a timeout, a full backlog is EAGAIN at once
    except BaseException:
        sock.close()
        raise
    return sock


def _ended(sock: socket.socket) -> bool:
    """Whether an idle connection is over: there is something to read, be it the end or an error."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _head(stream: BinaryIO) -> tuple[int, dict[str, str]]:
    """Status and headers of the next final reply; EOFError when there is none, ValueError for what is not HTTP."""
    while True:
        line = stream.readline(MAX_LINE_BYTES)
        if not line:
            raise EOFError
        if not line.startswith(b"HTTP/1."):
            raise ValueError("not HTTP")
        status, headers = int(line.split(None, 2)[1]), {}
        while field := stream.readline(MAX_LINE_BYTES).strip():
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status >= 200:
            return status, headers


def _exactly(stream: BinaryIO, size: int) -> bytes:
    if not 0 <= size <= MAX_BODY_BYTES:
        raise ValueError("impossible length")
    piece = stream.read(size)
    if len(piece) < size:
        raise EOFError
    return piece


def _pieces(stream: BinaryIO, headers: dict[str, str]) -> Iterator[bytes]:
    """The body as it comes: by chunks, by its length, or up to the end of the connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(stream.readline(MAX_LINE_BYTES).split(b";")[0], 16):
            yield _exactly(stream, size)
            _exactly(stream, 2)
        while stream.readline(MAX_LINE_BYTES).strip():  # trailers
            continue
    elif "content-length" in headers:
        yield _exactly(stream, int(headers["content-length"]))
    else:
        while piece := stream.read(MAX_LINE_BYTES):
            yield piece


# -- the connection ----------------------------------------------------------
class Transport:
    """One connection to the daemon, kept alive between calls. Not for use by two threads at once."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        auth_token: str | None = None,
        home: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        url = base_url or os.environ.get("REPOWIRE_DAEMON_URL")
        self.home = home or config.home_of()
        self.timeout = timeout  # seconds without a byte
        self.place = parse_url(url) if url else None
        self.where = url or str(self.home / "daemon.sock")
        self._token = (auth_token or own_token(self.place[0], self.home)) if self.place else None
        self._sock: socket.socket | None = None
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next call connects again."""
        for end in (self._stream, self._sock):
            if end is not None:
                with suppress(OSError):
                    end.close()
        self._sock = self._stream = None

    def _connect(self, timeout: float) -> BinaryIO:
        """A live connection: the kept one unless the daemon has closed it meanwhile."""
        if self._sock is not None and self._stream is not None and _ended(self._sock):
            self.close()
        if self._sock is None or self._stream is None:
            self._sock = self._dial()
            self._stream = self._sock.makefile("rb")
        self._sock.settimeout(timeout)
        return self._stream

    def _dial(self) -> socket.socket:
        try:
            return _tcp(self.place, self.timeout) if self.place else _unix(self.home / "daemon.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            raise DaemonAway(f"no daemon answers at {self.where}: start one with `repowire daemon --detach`") from None
        except OSError as exc:
            raise DaemonAway(f"cannot reach the daemon at {self.where}: {exc.strerror or exc}") from None

    def _send(self, method: str, target: str, body: Any, headers: dict[str, str], timeout: float) -> BinaryIO:
        stream = self._connect(timeout)
        host = "localhost"
        if self.place:
            name, port = self.place
            host = (f"[{name}]" if ":" in name else name) + ("" if port == 80 else f":{port}")
        lines = {"Host": host, "User-Agent": f"repowire/{__version__}", **headers}
        if self._token:
            lines["Authorization"] = f"Bearer {self._token}"
        raw = b""
        if body is not None:
            raw = json.dumps(body).encode()
            lines["Content-Type"] = "application/json"
        if body is not None or method != "GET":
            lines["Content-Length"] = str(len(raw))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        assert self._sock is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # refused while we spoke: the answer may be there to read
            self._sock.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + raw)
        return stream

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, Any] | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """One call: the reply's JSON. Raises Refusal, DaemonAway, or TimeoutError after `timeout` silent seconds."""
        whole = False
        try:
            headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
            stream = self._send(method, with_query(path, query), body, headers, timeout or self.timeout)
            status, headers = _head(stream)
            raw = b"".join(_pieces(stream, headers)) if status not in (204, 304) else b""
            whole = headers.get("connection", "").lower() != "close" and bool(
                raw == b"" or "content-length" in headers or "transfer-encoding" in headers
            )
            if status >= 300:
                raise Refusal.of_reply(status, raw)
            return json.loads(raw) if raw else None
        except TimeoutError:
            raise TimeoutError(f"the daemon at {self.where} is silent since {timeout or self.timeout:g} s") from None
        except (EOFError, ConnectionResetError):
            raise DaemonAway(f"the daemon at {self.where} hung up before it answered", asked=True) from None
        except ValueError:
            raise DaemonAway(f"what answers at {self.where} is no repowire daemon", asked=True) from None
        finally:
            if not whole:
                self.close()

    def stream(
        self, *, since: int | str | None = None, replay: int | None = None, patience: float = 30.0
    ) -> Iterator[Json]:
        """Live events for ever, on a connection of their own. A cut is mended from the last id seen, without loss or
        repeat; DaemonAway when no daemon has come back for `patience` seconds."""
        last, lost_at, delay = (None if since is None else str(since)), None, 0.1
        while True:
            try:
                query = {"since": last, "replay": replay if last is None else None}
                for event in self._stream_once(query):
                    last, lost_at, delay = str(event.get("id", last)), None, 0.1
                    yield event
            except (DaemonAway, TimeoutError) as exc:
                asked = not isinstance(exc, DaemonAway) or exc.asked
                if lost_at is None and not asked:
                    raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > patience:
                    raise DaemonAway(f"the daemon at {self.where} has not come back for {patience:g} s") from None
                time.sleep(delay)  # between two attempts to connect there is nothing to wait for
                delay = min(delay * 2, 2.0)

    def _stream_once(self, query: Json) -> Iterator[Json]:
        own = Transport(home=self.home, timeout=KEEPALIVE_SECONDS * 4)
        own.place, own.where, own._token = self.place, self.where, self._token
        with closing(own):
            try:
                accept = {"Accept": "text/event-stream"}
                stream = own._send("GET", with_query("/events/stream", query), None, accept, own.timeout)
                status, headers = _head(stream)
                if status != 200:
                    raise Refusal.of_reply(status, b"".join(_pieces(stream, headers)))
                yield from parse_events(_pieces(stream, headers))
            except (EOFError, ConnectionResetError, ValueError):
                pass
        raise DaemonAway(f"the event stream of {self.where} ended", asked=True)

    def _object(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The answer, which is an object; of which shape, the method says."""
        answer = self.request(method, path, body, **options)
        if not isinstance(answer, dict):
            raise DaemonAway(f"what answers at {self.where} is no repowire daemon", asked=True)
        return answer


# -- small words ---------------------------------------------------------------
def given(fields: Json) -> Json:
    """The fields that say something: an absent one takes the daemon's default."""
    return {name: value for name, value in fields.items() if value is not None}


def with_query(path: str, query: dict[str, Any] | None) -> str:
    """Path and query, without what is None."""
    pairs = "&".join(f"{name}={quote(str(value))}" for name, value in given(query or {}).items())
    return f"{path}?{pairs}" if pairs else path


def parse_events(pieces: Iterator[bytes]) -> Iterator[Json]:
    """Events from an SSE body however it is cut: `data:` lines up to a blank one, comments skipped."""
    held, data, last_id = b"", list[str](), ""
    for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        for raw in lines:
            name, _, value = raw.rstrip(b"\r").decode("utf-8", "replace").partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif name == "id":
                last_id = value.strip()
            elif not name and not value and data:
                event = json.loads("\n".join(data))
                data.clear()
                yield {**event, "id": str(event.get("id") or last_id)}
