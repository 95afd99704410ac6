"""Where each kind of agent keeps its MCP servers, and how an entry is read, put in and taken out of that text.

All other bytes stay as they are. JSON is edited by `json_text`; of TOML only whole tables `[mcp_servers.NAME]` are put
in or taken out, and what comes of it must say the same of everything else.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repowire.agents import files, json_text
from repowire.agents.json_text import NotJson

BOM = "\ufeff"
TYPES = ("stdio", "http", "sse")


class CannotEdit(ValueError):
    """The text is not what it should be, or not laid out so that an entry could be put in or taken out."""


class Server(NamedTuple):
    """One MCP server, whoever's it is."""

    name: str
    type: str  # stdio | http | sse
    command: str | None = None
    args: tuple[str, ...] = ()
    url: str | None = None
    env: Mapping[str, str] = {}


class Place(NamedTuple):
    """A file with MCP servers in it, and where in it they stand."""

    scope: str
    file: str
    keys: tuple[str, ...]
    lock: str | None = None  # a folder that the agent's own programs make while they change the file, and take away


class Kind(NamedTuple):
    """How one kind of agent keeps them; `places` takes its config folder (None: the usual one) and its project."""

    places: Callable[[str | None, str | None], list[Place]]  # looks at the disk
    types: tuple[str, ...]
    encode: Callable[[Server], dict[str, Any]]
    decode: Callable[[str, Mapping[str, Any]], Server]
    toml: bool = False


# -- where -----------------------------------------------------------------------


def _claude(folder: str | None, project: str | None) -> list[Place]:
    home = folder or os.environ.get("CLAUDE_CONFIG_DIR")
    usual = home is None or os.path.basename(home) == ".claude"
    main = os.path.join(os.path.dirname(home) if home and usual else home or os.path.expanduser("~"), ".claude.json")
    found = [Place("user", main, ("mcpServers",), f"{main}.lock")]
    if project is not None:
        found.append(Place("project", os.path.join(project, ".mcp.json"), ("mcpServers",)))
        found.append(Place("local", main, ("projects", _repository(project), "mcpServers"), f"{main}.lock"))
    return found


def _repository(folder: str) -> str:
    """What Claude Code calls the project of a folder: the root of its git repository, for a worktree its main one's."""
    at = real = os.path.realpath(folder)
    while at != os.path.dirname(at):
        git = os.path.join(at, ".git")
        if os.path.isdir(git):
            return at
        if os.path.isfile(git):
            return _of_worktree(git) or at
        at = os.path.dirname(at)
    return real


def _of_worktree(git: str) -> str | None:
    """The root of the repository that a worktree's `.git` leads to; None for another kind, such as a submodule's."""
    try:
        inside = os.path.join(os.path.dirname(git), files.text_of(git).removeprefix("gitdir:").strip())
        common = os.path.realpath(os.path.join(inside, files.text_of(os.path.join(inside, "commondir")).strip()))
    except OSError:
        return None
    return os.path.dirname(common) if os.path.basename(common) == ".git" else None


def _codex(folder: str | None, project: str | None) -> list[Place]:
    home = folder or os.environ.get("CODEX_HOME") or os.path.expanduser("~/.codex")
    return [Place("user", os.path.join(home, "config.toml"), ("mcp_servers",))]


def _gemini(folder: str | None, project: str | None) -> list[Place]:
    found = [Place("user", os.path.expanduser("~/.gemini/settings.json"), ("mcpServers",))]
    if project is not None:
        found.append(Place("project", os.path.join(project, ".gemini", "settings.json"), ("mcpServers",)))
    return found


def _opencode(folder: str | None, project: str | None) -> list[Place]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    found = [Place("user", os.path.join(home, "opencode", "opencode.json"), ("mcp",))]
    if project is not None:
        found.append(Place("project", os.path.join(project, "opencode.json"), ("mcp",)))
    return found


# -- entries -----------------------------------------------------------------------


def _words(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


def _env(value: Any) -> Mapping[str, str]:
    return {str(name): str(one) for name, one in value.items()} if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _encode_claude(server: Server) -> dict[str, Any]:
    if server.type != "stdio":
        return {"type": server.type, "url": server.url}
    return {"type": "stdio", "command": server.command, "args": list(server.args), "env": dict(server.env)}


def _decode_claude(name: str, entry: Mapping[str, Any]) -> Server:
    kind = _text(entry.get("type")) or ("stdio" if "command" in entry else "http")
    return Server(
        name,
        kind,
        _text(entry.get("command")),
        _words(entry.get("args")),
        _text(entry.get("url")),
        _env(entry.get("env")),
    )


def _encode_gemini(server: Server) -> dict[str, Any]:
    if server.type != "stdio":
        return {"httpUrl" if server.type == "http" else "url": server.url}
    return {"command": server.command, "args": list(server.args), "env": dict(server.env)}


def _decode_gemini(name: str, entry: Mapping[str, Any]) -> Server:
    kind = "http" if "httpUrl" in entry else "sse" if "url" in entry else "stdio"
    url = _text(entry.get("httpUrl")) or _text(entry.get("url"))
    return Server(name, kind, _text(entry.get("command")), _words(entry.get("args")), url, _env(entry.get("env")))


def _encode_opencode(server: Server) -> dict[str, Any]:
    if server.type != "stdio":
        return {"type": "remote", "url": server.url}
    return {"type": "local", "command": [server.command, *server.args], "environment": dict(server.env)}


def _decode_opencode(name: str, entry: Mapping[str, Any]) -> Server:
    words = _words(entry.get("command"))
    kind = "http" if entry.get("type") == "remote" else "stdio"
    return Server(
        name, kind, words[0] if words else None, words[1:], _text(entry.get("url")), _env(entry.get("environment"))
    )


def _encode_codex(server: Server) -> dict[str, Any]:
    if server.type != "stdio":
        return {"url": server.url}
    env = {"env": dict(server.env)} if server.env else {}
    return {"command": server.command, "args": list(server.args), **env}


KINDS = {
    "claude-code": Kind(_claude, TYPES, _encode_claude, _decode_claude),
    "codex": Kind(_codex, ("stdio", "http"), _encode_codex, _decode_claude, toml=True),
    "gemini": Kind(_gemini, TYPES, _encode_gemini, _decode_gemini),
    "opencode": Kind(_opencode, ("stdio", "http"), _encode_opencode, _decode_opencode),
}

# -- the text ------------------------------------------------------------------------


def servers(kind: Kind, place: Place, text: str) -> list[Server]:
    """What stands there. Raises CannotEdit."""
    found: Any = _parsed(kind, text)
    for key in place.keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return []
    return [kind.decode(name, entry) for name, entry in found.items() if isinstance(entry, Mapping)]


def _parsed(kind: Kind, text: str) -> dict[str, Any]:
    plain = text.removeprefix(BOM)
    try:
        if kind.toml:
            return tomllib.loads(plain)
        found = json_text.parse(plain) if plain.strip() else {}
    except (NotJson, tomllib.TOMLDecodeError) as wrong:
        raise CannotEdit(str(wrong)) from None
    except RecursionError:  # of tomllib
        raise CannotEdit("nested too deeply") from None
    if not isinstance(found, dict):
        raise CannotEdit("it holds no object")
    return found


def added(kind: Kind, place: Place, text: str, server: Server) -> str:
    """The text with the server in it, which it has not yet. Raises CannotEdit."""
    entry = kind.encode(server)
    before = _parsed(kind, text)
    after = _toml_with(text, server.name, entry) if kind.toml else _json_with(text, place.keys, server.name, entry)
    wanted = _deep_copy(before)
    inner = wanted
    for number, key in enumerate(place.keys):
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise CannotEdit(f"{'.'.join(place.keys[: number + 1])} is no object")
    inner[server.name] = entry
    return _same(kind, after, wanted)


def removed(kind: Kind, place: Place, text: str, name: str) -> str:
    """The text without the server of that name, which it has. Raises CannotEdit."""
    wanted = _deep_copy(_parsed(kind, text))
    inner = wanted
    for key in place.keys:
        inner = inner[key]
    del inner[name]
    return _same(kind, _toml_without(text, name) if kind.toml else _json_without(text, place.keys, name), wanted)


def _same(kind: Kind, text: str, wanted: dict[str, Any]) -> str:
    """The text, if it says that and nothing else."""
    found = _parsed(kind, text)
    for side in (found, wanted) if kind.toml else ():
        if not side.get("mcp_servers", True):
            del side["mcp_servers"]  # a table that is empty need not be said
    if found != wanted:
        raise CannotEdit("it is laid out so that the entry cannot be changed alone: edit it by hand")
    return text


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(one) for key, one in value.items()}
    return [_deep_copy(one) for one in value] if isinstance(value, list) else value


def _json_with(text: str, keys: tuple[str, ...], name: str, entry: dict[str, Any]) -> str:
    mark = BOM if text.startswith(BOM) else ""
    plain = text.removeprefix(BOM)
    plain = plain if plain.strip() else "{}\n"
    for depth in range(len(keys), -1, -1):
        holder = json_text.find(plain, *keys[:depth])
        if holder is None:
            continue
        if holder.kind != "{":
            raise CannotEdit(f"{'.'.join(keys[:depth]) or 'it'} is no object")
        value: Any = entry
        missing = [*keys[depth:], name]
        for key in reversed(missing[1:]):
            value = {key: value}
        return mark + json_text.insert(plain, holder, missing[0], value)
    raise CannotEdit("it holds no object")


def _json_without(text: str, keys: tuple[str, ...], name: str) -> str:
    mark = BOM if text.startswith(BOM) else ""
    plain = text.removeprefix(BOM)
    holder = json_text.find(plain, *keys)
    member = next((one for one in holder.members if one.key == name), None) if holder is not None else None
    if holder is None or member is None:
        raise CannotEdit("the entry is not there")
    return mark + json_text.remove(plain, holder, member)


def _toml_with(text: str, name: str, entry: dict[str, Any]) -> str:
    line = "\r\n" if "\r\n" in text else "\n"
    gap = "" if not text.strip() else line if text.endswith(("\n", "\r")) else line * 2
    rows = [f"[mcp_servers.{name}]", *(f"{key} = {_toml(value)}" for key, value in entry.items())]
    return text + gap + line.join(rows) + line


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_without(text: str, name: str) -> str:
    """Without the tables of that server; what `_same` finds to be more or less than that is refused."""
    word = re.escape(name)
    ours = re.compile(rf"\s*\[\s*[\"']?mcp_servers[\"']?\s*\.\s*[\"']?{word}[\"']?\s*[.\]]")
    kept, inside = list[str](), False
    for line in text.splitlines(keepends=True):
        if re.match(r"\s*\[", line):
            begins = ours.match(line) is not None
            if begins and not inside and kept and not kept[-1].strip():
                kept.pop()  # the blank line that came with it
            inside = begins
        if not inside:
            kept.append(line)
    return "".join(kept)
