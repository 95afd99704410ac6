"""The wire's small words: fields of a body, moments, cursors, and the middleware that writes every refusal."""

import asyncio
import base64
import binascii
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.typedefs import Handler, Middleware

from repowire.clock import new_id
from repowire.errors import Refusal, invalid, too_large
from repowire.protocol import MAX_BODY_BYTES, MAX_METADATA_BYTES, is_identifier

log = logging.getLogger("repowire")

WHOLE = re.compile(r"-?[0-9]{1,18}")  # what fits into SQLite's integers
MAX_DEPTH = 32  # of objects and lists in what is stored as a whole, such as metadata

WHOLE_BYTES = 16 << 10  # a reply up to this is sent at once, whoever reads it slowly

Settle = Callable[[web.Request, web.StreamResponse], Awaitable[None] | None]

# The response whose headers have left already, so that no other one can be sent
STARTED = web.RequestKey("started", web.StreamResponse)


def moment(seconds: float | None) -> str | None:
    """Unix seconds as ISO-8601 in UTC with microseconds; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


class Reply(web.Response):
    """A JSON response. The usual one, 200 on a connection that goes on, is sent as it is, in one write.

    aiohttp makes every header of it anew and asks at each step what else it could be: some 7 % of a request. What is
    another case in any way is left to it, save what no reply of ours has: a cookie, compression, chunks. What
    on_response_prepare is for, the middleware has done by then.
    """

    _sent = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        body, transport = self.body, request.transport
        if (
            self._sent
            or self.status != 200
            or not isinstance(body, bytes)
            or len(body) > WHOLE_BYTES
            or len(self.headers) != 1  # the kind of content
            or not request.keep_alive
            or request.version != HttpVersion11
            or request.method == "HEAD"
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size() > WHOLE_BYTES  # a client that sends and does not read waits for itself
        ):
            return None if self._sent else await super().prepare(request)
        self._sent = True
        transport.write(_HEAD % (len(body), _date(int(time.time())), body))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        if not self._sent:
            await super().write_eof(data)

    @property
    def keep_alive(self) -> bool | None:
        return self._sent or super().keep_alive

    @property
    def prepared(self) -> bool:
        return self._sent or super().prepared


_HEAD = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nDate: %b\r\n"
    f"Server: {SERVER_SOFTWARE}\r\n\r\n%b"
).encode()


@lru_cache(maxsize=1)
def _date(seconds: int) -> bytes:
    """The moment as HTTP says it (RFC 9110, 5.6.7)."""
    return formatdate(seconds, usegmt=True).encode()


def reply(body: Any, status: int = 200) -> web.Response:
    """A JSON response."""
    return raw(json.dumps(body).encode(), status)


def raw(body: bytes, status: int = 200) -> web.Response:
    """A response of what is JSON already."""
    return Reply(body=body, status=status, content_type="application/json")


# -- bodies --------------------------------------------------------------------


class Body:
    """The fields of a JSON object, read one by one with the bound at the call. Every error names its field."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.fields.get(name) is not None

    def text(self, name: str, *, max_chars: int = 1024, least: int = 1) -> str:
        """A required string."""
        value = self.optional_text(name, max_chars=max_chars)
        if value is None:
            raise invalid(name, "is required")
        if len(value) < least:
            raise invalid(name, "must not be empty")
        return value

    def optional_text(self, name: str, *, max_chars: int = 1024) -> str | None:
        """A string or nothing."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid(name, "must be a string")
        if len(value) > max_chars:
            raise invalid(name, f"must be at most {max_chars} characters", limit=max_chars)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid(name, "must be Unicode text without lone surrogates") from None
        return value

    def optional_identifier(self, name: str) -> str | None:
        """A name of a peer or circle, or nothing."""
        value = self.fields.get(name)
        if value is not None and not is_identifier(value):
            raise invalid(name, "must be 1 to 64 of the letters, digits and . _ -")
        return value

    def choice(self, name: str, options: tuple[str, ...], default: str | None = None) -> str | None:
        """One of the words."""
        value = self.fields.get(name)
        if value is None:
            return default
        if value not in options:
            raise invalid(name, f"must be one of {', '.join(options)}")
        return str(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(name, "must be true or false")
        return value

    def optional_whole(self, name: str, *, least: int = 0, most: int = 2**53) -> int | None:
        """A whole number; `true` is not one."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise invalid(name, f"must be a whole number from {least} to {most}")
        return value

    def seconds(self, name: str, *, default: float, at_most: float, cap: bool = False) -> float:
        """A duration. Over `at_most` is an error, or the cap where the route says so."""
        value = self.fields.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
            raise invalid(name, "must be a number of seconds")
        if value > at_most and not cap:
            raise invalid(name, f"must be at most {at_most:g} seconds", limit=at_most)
        return min(float(value), at_most)

    def record(self, name: str, *, max_bytes: int = MAX_METADATA_BYTES) -> dict[str, Any]:
        """An object, {} when absent."""
        value = self.fields.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise invalid(name, "must be an object")
        if len(_kept(name, value)) > max_bytes:
            raise invalid(name, f"must be at most {max_bytes} bytes of JSON", limit=max_bytes)
        return value

    def members(self, name: str, *, most: int = 20) -> list[Any]:
        """A list, [] when absent."""
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise invalid(name, "must be a list")
        if len(value) > most:
            raise invalid(name, f"must have at most {most} members", limit=most)
        if value:
            _kept(name, value)
        return value

    def records(self, name: str, *, most: int = 20) -> list[dict[str, Any]]:
        """A list of objects, [] when absent."""
        value = self.members(name, most=most)
        if not all(isinstance(one, dict) for one in value):
            raise invalid(name, "must be a list of objects")
        return value


def _kept(name: str, value: Any) -> bytes:
    """An object as JSON; 422 for one that could not be stored, or not be shown again."""
    if deeper(value, MAX_DEPTH):
        raise invalid(name, f"must not be nested deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid(name, "must be Unicode text without lone surrogates") from None


def deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists stand in it below so many others."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(deeper(one, levels - 1) for one in inside)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    return value if math.isfinite(value := float(word)) else _no_number(word)


# NaN and Infinity (which 1e999 is too) would come out again where no other JSON reader takes them
decode = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite).decode


class _TwiceError(ValueError):
    """A name that stands twice in one object."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _TwiceError(next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1))
    return fields


_decode_once = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once).decode


async def read(request: web.Request, *, empty_ok: bool = False, each_once: bool = False) -> Body:
    """The JSON object of a request; a body of another kind is refused with words that say what to send.

    `each_once` also refuses a name that stands twice in an object: one reader takes the first, another the last.
    """
    if request.headers.get("Content-Type") != "application/json" and not (
        request.content_type in ("application/json", "application/octet-stream")
        or request.content_type.endswith("+json")
    ):
        raise invalid("body", f"must be sent as application/json, not {request.content_type}")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(f"the body must be at most {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES) from None
    if not raw and empty_ok:
        return Body({})
    try:
        fields = (_decode_once if each_once else decode)(raw.decode())
    except _TwiceError as twice:
        raise invalid(
            "body", f"names {str(twice)[:64]!r} twice in one object: nobody could say which is meant"
        ) from None
    except (ValueError, RecursionError):
        raise invalid("body", "must be JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise invalid("body", "must be a JSON object")
    return Body(fields)


# -- connections ---------------------------------------------------------------


class Line(asyncio.Protocol):
    """The connection of a request, for who waits long: `with Line(request, ring):` rings when the client leaves.

    aiohttp runs a handler to its end when the client has left, and says nothing. So this stands in front of aiohttp's
    own protocol for so long, and hands everything on.
    """

    __slots__ = ("_inner", "_request", "_ring")

    def __init__(self, request: web.Request, ring: Callable[[], None]) -> None:
        self._request, self._ring = request, ring
        self._inner: asyncio.Protocol | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody would hear a reply."""
        return self._request.transport is None or self._request.transport.is_closing()

    def __enter__(self) -> Self:
        transport = self._request.transport
        if transport is not None:
            inner = transport.get_protocol()
            assert isinstance(inner, asyncio.Protocol)
            self._inner = inner
            transport.set_protocol(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        transport = self._request.transport
        if transport is not None and self._inner is not None and transport.get_protocol() is self:
            transport.set_protocol(self._inner)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._inner is not None
        self._inner.connection_lost(exc)
        self._ring()

    def data_received(self, data: bytes) -> None:
        assert self._inner is not None
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        assert self._inner is not None
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        assert self._inner is not None
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        assert self._inner is not None
        self._inner.resume_writing()


# -- queries -------------------------------------------------------------------


def whole(request: web.Request, name: str, *, default: int, least: int = 1, most: int = 500) -> int:
    """A whole number of the query string."""
    text = request.query.get(name)
    if text is None:
        return default
    if not WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise invalid(name, f"must be a whole number from {least} to {most}")
    return int(text)


def word(request: web.Request, name: str, options: tuple[str, ...], default: str | None = None) -> str | None:
    """One of the words, from the query string."""
    text = request.query.get(name, default)
    if text is not None and text not in options:
        raise invalid(name, f"must be one of {', '.join(options)}")
    return text


def cursor(request: web.Request) -> int | None:
    """Where the last page of a list ended: an opaque text from its `next`."""
    text = request.query.get("cursor")
    if text is None:
        return None
    try:
        seq = base64.urlsafe_b64decode(text.encode()).decode()
    except (ValueError, binascii.Error):
        seq = ""
    if not WHOLE.fullmatch(seq):
        raise invalid("cursor", "must be the `next` of an earlier page")
    return int(seq)


def next_cursor(seq: int) -> str:
    """The opaque text that `cursor` reads."""
    return base64.urlsafe_b64encode(str(seq).encode()).decode()


def page(request: web.Request, last: int | None) -> dict[str, Any]:
    """The `next` of a list where pages were asked for; the published shape stays without it."""
    if "limit" not in request.query and "cursor" not in request.query:
        return {}
    return {"next": None if last is None else next_cursor(last)}


# -- refusals ------------------------------------------------------------------


def _response(refusal: Refusal) -> web.Response:
    response = reply(refusal.as_json(), refusal.status)
    response.headers.update(refusal.headers)
    return response


def _from_aiohttp(failure: web.HTTPException) -> Refusal:
    if failure.status in (403, 404):  # 403: a folder of the static files
        return Refusal(404, "not_found", "there is no such path; docs/api.md lists them")
    if isinstance(failure, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(failure.allowed_methods))
        return Refusal(405, "method_not_allowed", f"this path takes {allowed}", headers={"Allow": allowed})
    if failure.status == 413:
        return too_large(f"the body must be at most {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES)
    return Refusal(failure.status, "bad_request", failure.text or failure.reason)


def refusals(admit: Callable[[web.Request], None], settle: Settle | None = None) -> Middleware:
    """The one middleware: whom `admit` refuses gets no further, and every refusal and failure has the one shape.

    `settle` says what must be on the disk before the reply, where something must.

    One for both, since each costs a coroutine a request. A failure of ours is logged with the id that it shows.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            admit(request)
            response = await handler(request)
            if settle is not None and (settling := settle(request, response)) is not None:
                await settling
            return response
        except Refusal as refusal:
            return _response(refusal)
        except web.HTTPException as failure:
            if failure.status < 400:
                raise
            return _response(_from_aiohttp(failure))
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:
            trace = new_id("err")
            # the path as it was sent: decoded, it could hold the end of a line
            log.exception("%s: %s %s failed", trace, request.method, request.rel_url.raw_path)
            if STARTED in request:
                if request.transport is not None:
                    request.transport.abort()
                return request[STARTED]
            hint = f"a fault of ours; the daemon's log has it as {trace}"
            return _response(Refusal(500, "internal", hint, trace=trace))

    return middleware
