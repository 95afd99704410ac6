"""MCP servers of a peer's own configuration: shown, put in and taken out. What an environment holds is never shown.

A file is edited as text, written whole beside itself, synced and put in place; where somebody else wrote meanwhile it
is done anew. A change is for the agent's next start, as its own programs have it.
"""

import asyncio
import errno
import os
import re
import socket as host
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, peers, sessions, wire
from repowire.agents import claude_code_hooks as claude
from repowire.agents.files import TRIES, TRY_SECONDS, Locked, locked
from repowire.agents.mcp_config import KINDS, CannotEdit, Kind, Place, Server, added, removed, servers
from repowire.clock import Clock
from repowire.config import sync_folder
from repowire.errors import Refusal, conflict, invalid, malformed, not_found
from repowire.mesh import MESH, Mesh
from repowire.peers import Peer

NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
NOT_NAMES = ("__proto__", "constructor", "prototype")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
TYPES = ("stdio", "http", "sse")
MOST_BYTES = 32 << 20
MAX_CHARS, MOST_WORDS = 8192, 200

# -- model ---------------------------------------------------------------------


class Config(NamedTuple):
    """Where a peer's servers stand."""

    kind: Kind
    places: list[Place]


class Editing:
    """One edit at a time."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()


EDITING = web.AppKey("editing", Editing)

# -- rules ---------------------------------------------------------------------


async def config_of(mesh: Mesh, peer: Peer) -> Config:
    """The configuration of a peer of this machine; 501 where its kind has none that we can edit, 409 elsewhere."""
    kind = KINDS.get(peer.backend)
    if kind is None:
        raise Refusal(501, "unsupported_backend", f"the MCP servers of {peer.backend} cannot be edited by repowire")
    row = sessions.find(mesh.db.conn, peer.peer_id)
    folder = claude.config_dir(row.transcript) if row is not None and peer.backend == "claude-code" else None
    project = peer.path if peer.path and os.path.isabs(peer.path) else None
    config = Config(kind, await asyncio.to_thread(kind.places, folder, project))
    here = host.gethostname()
    if peer.machine not in (None, "unknown", here):
        raise conflict(
            "cross_host",
            f"{peer.display_name} lives on {peer.machine}, this is {here}: ask the daemon there",
            peer_machine=peer.machine,
            self_machine=here,
            config_scope=scope_of(peer, config, "user"),
        )
    return config


def scope_of(peer: Peer, config: Config, scope: str) -> dict[str, Any]:
    """What a scope is, in the published words."""
    names = [place.scope for place in config.places]
    words = {
        "user": ("User", "for every session of this user"),
        "project": ("Project", "for everybody who works in this folder"),
        "local": ("Local", "for this user in this folder"),
    }
    label, description = words[scope]
    here = host.gethostname()
    return {
        "backend": peer.backend,
        "owner": "project" if scope == "project" else "user",
        "effective_scope": scope,
        "label": label,
        "description": description,
        "supported_scopes": names,
        "default_scope": "user",
        "is_global": scope == "user",
        "peer_id": peer.peer_id,
        "peer_name": peer.display_name,
        "project_path": peer.path,
        "peer_machine": peer.machine,
        "self_machine": here,
        "same_host": peer.machine in (None, "unknown", here),
    }


def place_of(peer: Peer, config: Config, scope: str) -> Place:
    """The place of a scope; 409 for one that this kind of agent, or a peer without a folder, has not."""
    for place in config.places:
        if place.scope == scope:
            return place
    raise conflict(
        "unsupported_scope",
        f"{peer.backend} has no scope {scope!r} for {peer.display_name}",
        supported_scopes=[place.scope for place in config.places],
        config_scope=scope_of(peer, config, "user"),
    )


def read(place: Place) -> str:
    """The file's text, empty where there is none. 502 for what is no plain text file. For a thread."""
    try:
        with open(place.file, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                raise _unusable(place, "is no file, or too large")
            return file.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise _unusable(place, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _unusable(place, f"is not UTF-8 (byte {error.start})") from None


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def listed(config: Config) -> list[tuple[str, Server]]:
    """All of them with their scopes. For a thread."""
    found = []
    for place in config.places:
        try:
            found += [(place.scope, one) for one in servers(config.kind, place, read(place))]
        except CannotEdit as why:
            raise _unusable(place, str(why)) from None
    return found


async def edit(clock: Clock, place: Place, change: Callable[[str], str]) -> None:
    """Change a file, whole and on the disk; its mode stays, a link too. 502 when it cannot be."""
    for _ in range(TRIES):
        if await asyncio.to_thread(_edited, place, change, clock.now()):
            return
        await clock.sleep(TRY_SECONDS)
    raise _unusable(place, "is being changed by another program: try again")


def _edited(place: Place, change: Callable[[str], str], now: float) -> bool:
    """Change it while nobody else does; False where somebody does."""
    try:
        with locked(place.lock, now):
            before = read(place)
            return _replaced(place, before, change(before))
    except Locked:
        return False
    except CannotEdit as why:
        raise _unusable(place, f"{why}; it was not touched") from None
    except RecursionError:  # it can be read, but what is compared goes deeper
        raise _unusable(place, "nested too deeply; it was not touched") from None
    except OSError as error:
        raise _unusable(place, f"cannot be written: {error.strerror}") from None


def _replaced(place: Place, before: str, after: str) -> bool:
    """Put the new text in place; False where the old one is another by now."""
    target = os.path.realpath(place.file)
    folder = os.path.dirname(target)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o600
    if not mode & stat.S_IWUSR:
        raise PermissionError(errno.EACCES, "it is read-only")
    fresh = os.path.join(folder, f".{os.path.basename(target)}.repowire-{os.getpid()}-{os.urandom(4).hex()}")
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as writing:
            writing.write(after.encode())
            writing.flush()
            os.fchmod(writing.fileno(), mode)
            os.fsync(writing.fileno())
        if read(place) != before:
            return False
        os.replace(fresh, target)
        fresh = ""
    finally:
        if fresh:
            os.unlink(fresh)
    sync_folder(Path(folder))
    return True


def _unusable(place: Place, why: str) -> Refusal:
    return Refusal(502, "config_unusable", f"{place.file} {why}", file=place.file)


# -- wire ----------------------------------------------------------------------


async def _asked(request: web.Request) -> tuple[Peer, Config]:
    """Whose configuration it is; 403 for another agent's."""
    mesh = request.app[MESH]
    peer = peers.resolve(mesh.db.conn, request.match_info["name"], request.query.get("circle"))
    callers.may_read(mesh, request, peer)
    return peer, await config_of(mesh, peer)


def _shown(scope: str, server: Server) -> dict[str, Any]:
    return {
        "name": server.name,
        "scope": scope,
        "type": server.type,
        "command": server.command,
        "args": list(server.args),
        "url": server.url,
        "env_keys": sorted(server.env),
    }


def _named(name: str) -> str:
    if not NAME.fullmatch(name) or name in NOT_NAMES:
        raise malformed("a server's name is 1 to 128 of the letters, digits, _ and -", field="name")
    return name


def _server(body: wire.Body, kind: Kind) -> Server:
    """The server of a request; 400 for a name or a variable that is none, as published."""
    name = body.text("name", max_chars=MAX_CHARS)
    type_ = body.choice("type", TYPES, "stdio") or "stdio"
    command, url = body.optional_text("command", max_chars=MAX_CHARS), body.optional_text("url", max_chars=MAX_CHARS)
    args, env = body.members("args", most=MOST_WORDS), body.record("env")
    if not all(isinstance(one, str) for one in args):
        raise invalid("args", "must be a list of texts")
    if not all(isinstance(one, str) for one in env.values()):
        raise invalid("env", "must be an object of texts")
    for field, texts in (("command", [command or ""]), ("args", args), ("env", env.values())):
        if any("\0" in text for text in texts):
            raise invalid(field, "must not contain a NUL character")
    _named(name)
    if wrong := [key for key in env if not VARIABLE.fullmatch(key)]:
        raise malformed(f"{wrong[0][:64]!r} is no name of an environment variable", field="env")
    if type_ not in kind.types:
        raise conflict("unsupported_type", f"this kind of agent takes {', '.join(kind.types)}", types=list(kind.types))
    if type_ == "stdio" and not command:
        raise invalid("command", "is required for a server of type stdio")
    if type_ != "stdio" and not re.fullmatch(r"https?://\S+", url or "", re.IGNORECASE):
        raise invalid("url", f"must be an http(s) address for a server of type {type_}")
    return Server(name, type_, command, tuple(args), url, env)


async def get_servers(request: web.Request) -> web.Response:
    peer, config = await _asked(request)
    found = await asyncio.to_thread(listed, config)
    return wire.reply(
        {"servers": [_shown(scope, one) for scope, one in found], "config_scope": scope_of(peer, config, "user")}
    )


async def post_server(request: web.Request) -> web.Response:
    body = await wire.read(request)
    peer, config = await _asked(request)
    server = _server(body, config.kind)
    place = place_of(peer, config, request.query.get("scope", "user"))
    if place.scope == "project" and not await asyncio.to_thread(os.path.isdir, peer.path or ""):
        raise conflict("missing_path", f"there is no folder {peer.path} here", peer_id=peer.peer_id, path=peer.path)

    def change(text: str) -> str:
        if any(one.name == server.name for one in servers(config.kind, place, text)):
            raise conflict("duplicate", f"{place.file} has a server {server.name!r}: delete it first", name=server.name)
        return added(config.kind, place, text, server)

    async with request.app[EDITING].turn:
        await edit(request.app[MESH].clock, place, change)
    request.app[MESH].announce(
        "mcp.changed", peer_id=peer.peer_id, server=server.name, scope=place.scope, change="added"
    )
    return wire.reply({"ok": True, "config_scope": scope_of(peer, config, place.scope)})


async def delete_server(request: web.Request) -> web.Response:
    peer, config = await _asked(request)
    name, scope = _named(request.match_info["server"]), request.query.get("scope")
    places = config.places if scope is None else [place_of(peer, config, scope)]
    found = await asyncio.to_thread(listed, Config(config.kind, places))
    having = [one for one, server in found if server.name == name]
    if not having:
        raise not_found("server", name, f"{peer.display_name} has no MCP server {name!r}")
    if len(having) > 1:
        raise conflict("ambiguous_scope", f"{name!r} stands in several scopes: say which with scope=", scopes=having)
    place = place_of(peer, config, having[0])

    def change(text: str) -> str:
        if not any(one.name == name for one in servers(config.kind, place, text)):
            raise not_found("server", name)
        return removed(config.kind, place, text, name)

    async with request.app[EDITING].turn:
        await edit(request.app[MESH].clock, place, change)
    request.app[MESH].announce("mcp.changed", peer_id=peer.peer_id, server=name, scope=place.scope, change="removed")
    return wire.reply({"ok": True, "config_scope": scope_of(peer, config, place.scope)})


ROUTES = [
    web.get("/peers/{name}/mcp", get_servers),
    web.post("/peers/{name}/mcp", post_server),
    web.delete("/peers/{name}/mcp/{server}", delete_server),
]
