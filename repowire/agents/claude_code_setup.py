"""What `repowire setup claude-code` writes into Claude Code's settings, and how it is found again. Text in, text out.

`settings.json` gets one hook for each event of HOOKS, with approvals a gate before the tools besides, `.claude.json`
the MCP server; seen to work with 2.1.330 and 2.1.197. An entry is ours by the path of the script that it runs, whatever
else was changed in it; nothing else is.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from repowire.agents import json_text
from repowire.agents.json_text import Member, Node, NotJson

# Seconds; the script gives up earlier. Without one Claude Code waits 600 s, and 1.5 s at the end of a session.
HOOKS = {
    "SessionStart": 5,
    "UserPromptSubmit": 5,
    "Stop": 5,
    "StopFailure": 5,
    "Notification": 5,
    "PermissionRequest": 5,
    "PostToolUse": 5,
    "SessionEnd": 3,
}
GATE = "PreToolUse"  # runs before a tool, and may refuse it
DIALOG = "PermissionRequest"  # runs while the dialog is on the screen; what it prints answers the dialog
GATE_SECONDS = 86_400  # how long a human may take where the policy holds a question open; Claude Code's own is 600
MARGIN_SECONDS = 10  # the script gives up that much earlier: a hook that Claude Code ends lets the tool run
OR_REFUSE = (
    "|| { [ $? = 2 ] || echo 'repowire refused this: its gate did not run; repair it: repowire setup claude-code' >&2;"
    " exit 2; }"
)
SERVER = "repowire"
OUR_HOOK = re.compile(r"/repowire/(?:hook|gate)_stdio\.py['\"]? claude-code ")
OUR_SERVER = re.compile(r"/repowire/mcp_stdio\.py$")
BOM = "\ufeff"


class Entry(NamedTuple):
    """A hook, and the tools that it runs for: a regular expression, or None for all."""

    hook: dict[str, Any]
    matcher: str | None = None


class Program(NamedTuple):
    """What the entries run: the interpreter, the package's folder, and the home where it is not the usual one.

    `gated` are the names of the tools that ask first, `*` standing for any letters; None without approvals.
    """

    python: str
    folder: str
    home: str | None = None
    gated: tuple[str, ...] | None = None

    def hook(self, event: str) -> dict[str, Any]:
        """The hook of an event."""
        words = self._script("hook_stdio.py", event)
        return {"type": "command", "command": shlex.join(words), "timeout": HOOKS[event]}

    def gate(self, event: str, *flags: str) -> dict[str, Any]:
        """The hook of an event whose answer is a human's."""
        words = [*self._script("gate_stdio.py", event), *flags, "--seconds", str(GATE_SECONDS - MARGIN_SECONDS)]
        return {"type": "command", "command": shlex.join(words), "timeout": GATE_SECONDS}

    def entries(self) -> dict[str, Entry]:
        """All that belongs into `settings.json`, by event."""
        found = {event: Entry(self.hook(event)) for event in HOOKS}
        if self.gated is not None:
            found[DIALOG] = Entry(self.gate(DIALOG, "--open"))
            gate = self.gate(GATE)
            # an older version does not know onFailure; exit code 2 holds for both, also where there is no interpreter
            # any more, or somebody kills it: every other code lets the tool run
            gate |= {"command": f"{gate['command']} {OR_REFUSE}", "onFailure": "block"}
            found[GATE] = Entry(gate, matcher(self.gated))
        return found

    def server(self) -> dict[str, Any]:
        """The MCP server."""
        script = os.path.join(self.folder, "mcp_stdio.py")
        return {"type": "stdio", "command": self.python, "args": ["-I", "-S", script, *self._home], "env": {}}

    def _script(self, name: str, event: str) -> list[str]:
        return [self.python, "-I", "-S", os.path.join(self.folder, name), "claude-code", event, *self._home]

    @property
    def _home(self) -> list[str]:
        return ["--home", self.home] if self.home else []


def matcher(tools: Sequence[str]) -> str:
    """The whole names that these patterns stand for, as Claude Code reads a matcher."""
    names = (".*".join(re.escape(part) for part in tool.split("*")) for tool in tools)
    return f"^(?:{'|'.join(names)})$"


class Drift(NamedTuple):
    """An entry that is not as setup would write it: `missing`, `changed`, `stale path` or `other version`."""

    entry: str
    what: str


# -- settings.json: hooks ------------------------------------------------------


def add_hooks(text: str, program: Program) -> str:
    """With every hook of ours once, as it should be. Raises NotJson for what cannot be edited."""
    mark, text = _opened(text)
    entries = program.entries()
    for event in (*HOOKS, GATE):
        entry, found = entries.get(event), list(_our_hooks(text, event))
        stays = found[:1] if found and entry and _matches(text, event, found[0], entry) else []
        for place in reversed(found[len(stays) :]):
            text = _without(text, event, *place)
        if entry is None:
            continue
        if not stays:
            text = _with_hook(text, event, entry)
        elif _hook_at(text, event, *stays[0]) != entry.hook:
            group, number = stays[0]
            hook = _hooks_of(_groups(text, event)[group], text).members[number]
            text = json_text.replace(text, hook, entry.hook)
    return mark + text


def drop_hooks(text: str) -> str:
    """Without any hook of ours, and without what held nothing else. Raises NotJson for what cannot be edited."""
    if not text.removeprefix(BOM).strip():
        return text
    mark, text = _opened(text)
    hooks = json_text.find(text, "hooks")
    for member in hooks.members if hooks else ():
        for place in reversed(list(_our_hooks(text, str(member.key)))):
            text = _without(text, str(member.key), *place)
    return mark + text


def hooks_drift(text: str, program: Program) -> list[Drift]:
    """Which hooks are not as they should be."""
    _, text = _opened(text)
    drifts = []
    for event, wanted in program.entries().items():
        places, entry = list(_our_hooks(text, event)), f"hooks.{event}"
        found = [_hook_at(text, event, *place) for place in places]
        if not found:
            drifts.append(Drift(entry, "missing"))
        elif len(found) > 1:
            drifts.append(Drift(entry, "changed"))
        elif found[0] != wanted.hook:
            drifts.append(Drift(entry, _difference(shlex.split(str(found[0]["command"])), program)))
        elif not _matches(text, event, places[0], wanted):
            drifts.append(Drift(entry, "other tools than the config says"))
    return drifts


def has_approvals(text: str) -> bool:
    """Whether a gate of ours stands before the tools. Raises NotJson for what cannot be read."""
    _, text = _opened(text)
    return any(_our_hooks(text, GATE))


def hooks_are_off(text: str) -> bool:
    """Whether these settings, the user's or a project's, make Claude Code run no hook at all (2.1.330 and 2.1.197)."""
    _, text = _opened(text)
    return json_text.parse(text).get("disableAllHooks") is True


def _opened(text: str) -> tuple[str, str]:
    """The byte order mark if there is one, and the document behind it, which is an object that may hold hooks."""
    mark = BOM if text.startswith(BOM) else ""
    body = text.removeprefix(BOM)
    if not body.strip():
        return mark, "{}\n"
    if not isinstance(json_text.parse(body), dict):
        raise NotJson("the whole must be an object { … }")
    return mark, body


def _of_kind(found: Node | None, kind: str, name: str) -> Node | None:
    if found is not None and found.kind != kind:
        raise NotJson(f"{name} must be {'an object { … }' if kind == '{' else 'a list [ … ]'}")
    return found


def _groups(text: str, event: str) -> list[Node]:
    """The matcher groups of an event."""
    _of_kind(json_text.find(text, "hooks"), "{", "hooks")
    groups = _of_kind(json_text.find(text, "hooks", event), "[", f"hooks.{event}")
    return [json_text.node(text, one.value_at) for one in groups.members] if groups else []


def _hooks_of(group: Node, text: str) -> Node:
    """The list of hooks in a group; an empty one where it has none."""
    inside = next((one for one in group.members if one.key == "hooks"), None)
    found = json_text.node(text, inside.value_at) if inside else None
    return found if found is not None and found.kind == "[" else Node("[", group.begin, group.begin)


def _our_hooks(text: str, event: str) -> Iterator[tuple[int, int]]:
    """Which of the event's hooks are ours: the number of the group, and of the hook in it."""
    for number, group in enumerate(_groups(text, event)):
        for place, member in enumerate(_hooks_of(group, text).members):
            hook = json.loads(text[member.value_at : member.end])
            if isinstance(hook, dict) and OUR_HOOK.search(str(hook.get("command"))):
                yield number, place


def _hook_at(text: str, event: str, group: int, number: int) -> dict[str, Any]:
    member = _hooks_of(_groups(text, event)[group], text).members[number]
    found: dict[str, Any] = json.loads(text[member.value_at : member.end])
    return found


def _matches(text: str, event: str, place: tuple[int, int], entry: Entry) -> bool:
    """Whether the hook's group is for the right tools; a matcher of the user's own on another event is left alone."""
    if entry.matcher is None:
        return True
    group = _groups(text, event)[place[0]]
    inside = next((one for one in group.members if one.key == "matcher"), None)
    return inside is not None and json.loads(text[inside.value_at : inside.end]) == entry.matcher


def _with_hook(text: str, event: str, entry: Entry) -> str:
    group = ({} if entry.matcher is None else {"matcher": entry.matcher}) | {"hooks": [entry.hook]}
    if (groups := json_text.find(text, "hooks", event)) is not None:
        return json_text.insert(text, groups, None, group)
    if (hooks := json_text.find(text, "hooks")) is not None:
        return json_text.insert(text, hooks, event, [group])
    return json_text.insert(text, json_text.root(text), "hooks", {event: [group]})


def _without(text: str, event: str, group: int, number: int) -> str:
    """Take out one hook, and upward what then holds nothing more."""
    top, hooks, groups = json_text.root(text), json_text.find(text, "hooks"), json_text.find(text, "hooks", event)
    assert hooks is not None
    assert groups is not None
    found = _groups(text, event)[group]
    inner = _hooks_of(found, text)
    if len(inner.members) > 1 or {one.key for one in found.members} - {"hooks", "matcher"}:
        return json_text.remove(text, inner, inner.members[number])
    if len(groups.members) > 1:
        return json_text.remove(text, groups, groups.members[group])
    if len(hooks.members) > 1:
        return json_text.remove(text, hooks, _member(hooks, event))
    return json_text.remove(text, top, _member(top, "hooks"))


def _member(holder: Node, key: str) -> Member:
    return next(one for one in holder.members if one.key == key)


# -- .claude.json: the MCP server ------------------------------------------------


def add_server(text: str, program: Program) -> str:
    """With our MCP server. Raises NotJson for what cannot be edited, also where the name is another program's."""
    mark, text = _opened(text)
    servers = _of_kind(json_text.find(text, "mcpServers"), "{", "mcpServers")
    there = _server(text)
    if there is None:
        if servers is None:
            text = json_text.insert(text, json_text.root(text), "mcpServers", {SERVER: program.server()})
        else:
            text = json_text.insert(text, servers, SERVER, program.server())
    elif not _ours(there):
        raise NotJson(
            f"mcpServers.{SERVER} runs another program; take it out first: claude mcp remove --scope user {SERVER}"
        )
    elif there != program.server():
        assert servers is not None
        text = json_text.replace(text, _member(servers, SERVER), program.server())
    return mark + text


def drop_server(text: str) -> str:
    """Without our MCP server, and without an object that held nothing else."""
    if not text.removeprefix(BOM).strip():
        return text
    mark, text = _opened(text)
    servers, there = json_text.find(text, "mcpServers"), _server(text)
    if servers is None or there is None or not _ours(there):
        return mark + text
    if len(servers.members) > 1:
        return mark + json_text.remove(text, servers, _member(servers, SERVER))
    top = json_text.root(text)
    return mark + json_text.remove(text, top, _member(top, "mcpServers"))


def server_drift(text: str, program: Program) -> list[Drift]:
    """Whether the MCP server is not as it should be."""
    _, text = _opened(text)
    there, entry = _server(text), f"mcpServers.{SERVER}"
    if there is None:
        return [Drift(entry, "missing")]
    if there == program.server():
        return []
    if not _ours(there):
        return [Drift(entry, "changed")]
    return [Drift(entry, _difference([str(there.get("command")), *map(str, there["args"])], program))]


def _server(text: str) -> Any:
    found = json_text.find(text, "mcpServers", SERVER)
    return None if found is None else json.loads(text[found.begin : found.end])


def _ours(server: Any) -> bool:
    words = server.get("args") if isinstance(server, dict) else None
    return isinstance(words, list) and any(OUR_SERVER.search(str(word)) for word in words)


def _difference(words: list[str], program: Program) -> str:
    """Why a command of ours is another one than this program's."""
    script = next((word for word in words if word.endswith("_stdio.py")), "")
    if not (words and os.path.exists(words[0]) and os.path.exists(script)):
        return "stale path"
    if os.path.dirname(script) != program.folder or words[0] != program.python:
        return "other version"
    return "changed"
