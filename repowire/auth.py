"""Who may come in: the private Unix socket by its peer's uid, TCP by Host, Origin and token.

"Comes from loopback" is never trust: every browser page does. What a request says of its own origin, such as
X-Forwarded-For, is not read at all. A guard around the machine's user, not a sandbox between his programs.
"""

import hmac
import ipaddress
import os
import socket
import struct
import sys
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from aiohttp import web

from repowire.config import ConfigError, write_token
from repowire.errors import Refusal, forbidden, unauthorized, unsupported

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PUBLIC_PATHS = ("/", "/dashboard", "/health")
WILDCARDS = ("0.0.0.0", "::")
PEER_CREDENTIALS = struct.Struct("3i")  # Linux: pid, uid, gid
MAC_CREDENTIALS, MAC_PEER_PID = 1, 2  # macOS: LOCAL_PEERCRED (its second word is the uid) and LOCAL_PEERPID


class Caller(NamedTuple):
    """By which door a request came; `pid` is the process that connected, where the kernel tells."""

    via: str  # "unix" or "tcp"
    pid: int | None


TCP = Caller("tcp", None)


class Processes(Protocol):
    """What is needed of `procs.Procs`."""

    def ancestors(self, pid: int) -> list[tuple[int, float]]:
        """The process itself, its parent, and so on, each with its start time."""
        ...

    def variable(self, pid: int, name: str) -> str | None:
        """A variable of its environment."""
        ...


class Auth:
    """The token, and the addresses under which we may be spoken to."""

    def __init__(self, token: str | None, procs: Processes) -> None:
        """Without a token TCP is open; `check_bind` sees to it that this is loopback."""
        self.token = token or None
        self._procs = procs
        self.generation = 0  # counts rotations: what an earlier token let in is to be cut
        self._hosts: set[str] = set()
        self._address = "127.0.0.1"  # what to speak to us by; with its port once we listen
        self._callers: WeakKeyDictionary[BaseTransport, Caller] = WeakKeyDictionary()
        self._lines: WeakKeyDictionary[BaseTransport, list[tuple[int, float]]] = WeakKeyDictionary()
        self._variables: WeakKeyDictionary[BaseTransport, dict[str, str | None]] = WeakKeyDictionary()
        self.allowed_origins: frozenset[str] = frozenset()

    def bind(self, host: str, port: int) -> None:
        """We listen there: its Host is ours, and an Origin of it."""
        names = ["127.0.0.1", "localhost", "[::1]"]
        if host not in WILDCARDS:  # no address to speak to, though some systems take 0.0.0.0 for loopback
            names.append(f"[{host}]" if ":" in host else host.lower())
        self._address = f"{names[0] if host in WILDCARDS else names[-1]}:{port}"
        for name in names:
            self._hosts.add(f"{name}:{port}")
            if port == 80:
                self._hosts.add(name)
        self.allowed_origins = frozenset(f"http://{name}" for name in self._hosts)

    def matches(self, value: object) -> bool:
        """Whether it is the token, in constant time; True for everything when there is none."""
        if self.token is None:
            return True
        if not isinstance(value, str):
            return False
        return hmac.compare_digest(value.encode("utf-8", "surrogatepass"), self.token.encode())

    def rotate(self, home: Path) -> str:
        """Write a new token and ask for that from now on; live sockets are the caller's. Raises ConfigError."""
        self.token = write_token(home)
        self.generation += 1
        return self.token

    def caller(self, request: web.Request) -> Caller:
        """Who is at the other end; asked of the kernel once a connection. Raises Refusal for another user."""
        transport = request.transport
        if transport is None:
            return TCP
        known = self._callers.get(transport)
        if known is None:
            known = self._callers[transport] = _credentials(transport.get_extra_info("socket"))
        return known

    def lineage(self, request: web.Request) -> list[tuple[int, float]]:
        """The calling process and its ancestors, nearest first; empty over TCP. Read once a connection."""
        transport, pid = request.transport, caller(request).pid
        if transport is None or pid is None:
            return []
        line = self._lines.get(transport)
        if line is None:
            line = self._lines[transport] = self._procs.ancestors(pid)
        return line

    def variable(self, request: web.Request, name: str) -> str | None:
        """A variable of the calling process's environment; None over TCP. Read once a connection."""
        transport, pid = request.transport, caller(request).pid
        if transport is None or pid is None:
            return None
        known = self._variables.setdefault(transport, {})
        if name not in known:
            known[name] = self._procs.variable(pid, name)
        return known[name]

    def enter(self, request: web.Request) -> None:
        """Before everything else, unknown paths included: raise Refusal, or note who it is that was let in.

        `request[ADMITTED]` says whether it has proved itself: False leaves that to the first frame of `/ws`.
        """
        request[CALLER] = caller = self.caller(request)
        request[ADMITTED] = caller.via == "unix" or self._admit(request)

    def _admit(self, request: web.Request) -> bool:
        headers = request.headers
        path, _, _ = request.raw_path.partition("?")
        hosts = headers.getall("Host", ())
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts or not path.startswith("/"):
            raise forbidden("forbidden_host", f"speak to the daemon by the address it listens on: {self._address}")
        if "Origin" in headers or "Sec-Fetch-Site" in headers:
            self._admit_page(request, path)
        return self._admit_token(request, path)

    def _admit_page(self, request: web.Request, path: str) -> None:
        """A browser sent it: only our own pages may, and only so that no plain form can imitate them."""
        headers = request.headers
        if any(origin not in self.allowed_origins for origin in headers.getall("Origin", ())):
            raise forbidden("forbidden_origin", "pages of another origin may not call the daemon")
        if any(site not in ("same-origin", "none") for site in headers.getall("Sec-Fetch-Site", ())):
            raise forbidden("forbidden_origin", "pages of another site may not call the daemon")
        if request.method in SAFE_METHODS or request.content_type == "application/json":
            return
        if request.content_type == "multipart/form-data" and (path + "/").startswith("/attachments/"):
            return
        raise unsupported("send Content-Type: application/json (multipart/form-data for /attachments)")

    def _admit_token(self, request: web.Request, path: str) -> bool:
        if self.token is None or _is_public(request.method, path):
            return True
        given = request.headers.get("Authorization")
        if given is None:
            if path == "/ws" and request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket":
                return False
            raise unauthorized("send Authorization: Bearer and the token, or use the Unix socket")
        scheme, _, token = given.partition(" ")
        if scheme.lower() == "bearer" and self.matches(token.strip()):
            return True
        raise unauthorized("this is not the token; `repowire token` shows it")


ADMITTED = web.RequestKey("admitted", bool)
CALLER = web.RequestKey("caller", Caller)  # as it was let in: it may leave before its request is through


def caller(request: web.Request) -> Caller:
    """Who is at the other end, as it was let in: the client may have left since."""
    return request[CALLER]


def check_bind(host: str, token: str | None) -> None:
    """Raise ConfigError for an address that others reach while there is no token."""
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"daemon.host: {host} can be reached from other machines, so it needs a token: set daemon.auth_token, "
            "or leave it out for the one in the home; without a token only 127.0.0.1, ::1 or localhost is allowed"
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may point anywhere
        return False


def _is_public(method: str, path: str) -> bool:
    """By the path as it was sent: an encoded or dotted one is nobody's."""
    if method not in ("GET", "HEAD"):
        return False
    return path in PUBLIC_PATHS or (path.startswith("/static/") and not any(odd in path for odd in ("..", "%", "//")))


def _credentials(link: socket.socket | None) -> Caller:
    """What the kernel says of the peer. Raises Refusal when a Unix socket's belongs to another user."""
    if link is None or link.family != socket.AF_UNIX:
        return TCP
    try:
        if sys.platform == "linux":
            option = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
            pid, uid, _ = PEER_CREDENTIALS.unpack(option)
        else:
            uid = struct.unpack_from("2I", link.getsockopt(0, MAC_CREDENTIALS, 76))[1]
            pid = link.getsockopt(0, MAC_PEER_PID)
    except OSError:  # the peer has left
        raise Refusal(403, "forbidden_user", "the kernel does not say whose process this is") from None
    if uid != os.getuid():
        raise forbidden("forbidden_user", "the socket is for the programs of the user who runs the daemon")
    return Caller("unix", pid or None)  # 0: a process outside our pid namespace
