"""The architecture page as a test: who may import whom, proved by a walk over the syntax trees.

A room is a module of `repowire`, or one of its two folders (`agents`, `cli`). A room of the daemon imports strictly
lower ranks; a process outside the daemon names only the rooms listed for it. Rooms not built yet have their place.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "repowire"

RANKS = (
    "settings",
    "errors protocol config clock cron bus",
    "barrier",
    "frames db ledger blobs doors tmux wire auth procs login_shell scroll agents policy",
    "home_lock mesh turns",
    "idempotency certificates sessions ownership allowances presence attachments reviews traces recurring choices",
    "peers survey",
    "lives resumption",
    "names",
    "callers",
    "claims roles reports lifecycle deliveries questions transcripts mcp_servers",
    "receipts intake",
    "leases mailboxes",
    "asks pickups dead_letters channels blocking",
    "replies reminders chats",
    "sockets",
    "handshakes jobs launches roster arrivals queries messages ask_many succession",
    "spawn",
    "panes identity endings history executors schedules acp",
    "links rehooks contradictions mcp_tools holds",
    "drift",
    "hooks mcp doctor openapi",
    "restarts",
    "tool_gates",
    "daemon",
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms.split()}

# A process outside the daemon meets it over HTTP and WebSocket alone: these are the rooms each may name.
OUTSIDE = {
    "__init__": "",
    "__main__": "cli hook_stdio",
    "hook_stdio": "",
    "launcher": "",
    "gate_stdio": "hook_stdio",
    "transport": "config errors protocol",
    "shapes": "shapes",
    "client": "shapes transport",
    "answers": "answers errors",
    "connection": "answers protocol",
    "async_client": "answers async_client config connection errors protocol",
    "mcp_stdio": "client config",
    "gates": "agents clock procs tmux",
    "journal": "",
    "ws_hook": "agents async_client clock config gates journal procs protocol tmux",
    "cli": "client shapes async_client config errors protocol clock agents cli daemon db mcp_stdio ws_hook",
}

# Edges that exist once, so that a foreign tool's quirks live in one file. What SQLite's own words for a connection, a
# row and a refused insert are, every concern with a table must be able to say; opening the file they cannot.
ONLY_IN = {"sqlite3": "db", "libtmux": "tmux"}
WORDS = {"sqlite3": {"Connection", "IntegrityError", "Row"}}

# Rooms that must start fast, or that anybody may build on: nothing but the standard library under them.
STANDARD_LIBRARY_ONLY = {
    *RANKS[0].split(),
    *RANKS[1].split(),
    "agents",
    "hook_stdio",
    "launcher",
    "gate_stdio",
    "transport",
    "client",
    "mcp_stdio",
    "cli",
    "__init__",
    "__main__",
}

# The CLI's table noun -> module is the one place that imports rooms late: a command pays for its own noun only. What
# every command line loads may put off the standard library's slow modules; that hides no edge of the drawing.
MAY_IMPORT_LATE = "cli/__init__.py"
MAY_PUT_OFF_THE_LIBRARY = {"config", "settings", "cli"}


def room_of(module: str) -> str:
    """`repowire.cli.asks` -> `cli`; the package itself and foreign modules have none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "repowire" and len(parts) > 1 else ""


def imported(node: ast.AST) -> list[str]:
    """The full names that an import statement brings in, or []."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        return ["." * node.level + (node.module or "")]
    if node.module == "repowire":
        return [f"repowire.{alias.name}" for alias in node.names if alias.name != "__version__"]
    if {alias.name for alias in node.names} <= WORDS.get(node.module or "", set()):
        return []
    return [node.module or ""]


def ranked(room: str) -> str:
    return f"{room} (rank {RANK.get(room, 'none')})"


def fault(me: str, module: str) -> str | None:
    """Why this room may not import that module, or None."""
    if module.startswith("."):
        return f"{me} imports {module} relatively"
    other, top = room_of(module), module.split(".")[0]
    if other:
        if me in OUTSIDE:
            allowed = other in OUTSIDE[me].split()
        else:
            allowed = other == me or RANK.get(other, len(RANKS)) < RANK.get(me, -1)
        return (
            None if allowed else f"{me} (rank {RANK.get(me, 'none')}) imports {other} (rank {RANK.get(other, 'none')})"
        )
    if ONLY_IN.get(top, me) != me:
        return f"{me} imports {top}, which only {ONLY_IN[top]} may"
    if me in STANDARD_LIBRARY_ONLY and top != "repowire" and top not in sys.stdlib_module_names:
        return f"{me} imports {top}, but has only the standard library"
    return None


def faults(package: Path = PACKAGE) -> Iterator[str]:
    """Every import in the package that breaks the drawing."""
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package)
        me = where.parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text())
        late = {
            inner
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            at = f"{where}:{getattr(node, 'lineno', 0)}"
            for module in imported(node):
                if why := fault(me, module):
                    yield f"{at}: {why}"
                if where.as_posix() == MAY_IMPORT_LATE:
                    continue
                put_off = me in MAY_PUT_OFF_THE_LIBRARY and module.split(".")[0] in sys.stdlib_module_names
                if node in late and not put_off:
                    yield f"{at}: {me} imports {module} inside a function"
                if module.split(".")[0] == "importlib" and module != "importlib.metadata":
                    yield f"{at}: {me} imports by name"
            if isinstance(node, ast.Name) and node.id == "__import__":
                yield f"{at}: {me} imports by name"


def test_everything_imports_lower_ranks_only() -> None:
    assert list(faults()) == []


def test_every_room_has_its_place() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert rooms - set(RANK) - set(OUTSIDE) == set()


def test_no_room_stands_twice() -> None:
    assert len(" ".join(RANKS).split()) == len(RANK)
    assert set(RANK) & set(OUTSIDE) == set()


def test_the_outside_lists_name_real_rooms() -> None:
    assert {room for rooms in OUTSIDE.values() for room in rooms.split()} <= set(RANK) | set(OUTSIDE)


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("peers.py", "from repowire import asks", f"{ranked('peers')} imports {ranked('asks')}"),
        ("peers.py", "from repowire.asks import Ask", f"{ranked('peers')} imports {ranked('asks')}"),
        ("asks.py", "import repowire.pickups as pickups", f"{ranked('asks')} imports {ranked('pickups')}"),
        ("wire.py", "from repowire import mesh", f"{ranked('wire')} imports {ranked('mesh')}"),
        ("asks.py", "from repowire import client", f"{ranked('asks')} imports {ranked('client')}"),
        ("client.py", "from repowire import peers", f"{ranked('client')} imports {ranked('peers')}"),
        ("cli/asks.py", "from repowire.asks import Ask", f"{ranked('cli')} imports {ranked('asks')}"),
        ("asks.py", "from . import peers", "asks imports . relatively"),
        ("peers.py", "import sqlite3", "peers imports sqlite3, which only db may"),
        ("peers.py", "from sqlite3 import Connection, connect", "peers imports sqlite3, which only db may"),
        ("agents/codex.py", "import aiohttp", "agents imports aiohttp, but has only the standard library"),
        ("client.py", "from aiohttp import web", "client imports aiohttp, but has only the standard library"),
        ("peers.py", "def f():\n    from repowire import clock", "peers imports repowire.clock inside a function"),
        ("config.py", "def f():\n    from repowire import clock", f"{ranked('config')} imports {ranked('clock')}"),
        ("peers.py", "import importlib", "peers imports by name"),
        ("peers.py", "clock = __import__('repowire.clock')", "peers imports by name"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, said: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"import json\n\n{line}\n")
    found = list(faults(tmp_path))
    assert found
    assert found[0].endswith(said)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("asks.py", "from repowire import deliveries, peers, wire"),
        ("db.py", "import sqlite3"),
        ("asks.py", "from sqlite3 import Connection, Row"),
        ("cli/asks.py", "from repowire.cli import table"),
        ("cli/__init__.py", "def run():\n    from repowire.cli import asks"),
        ("daemon.py", "from repowire import __version__"),
        ("config.py", "def f():\n    import tomllib"),
        ("async_client.py", "import aiohttp"),
    ],
)
def test_what_the_drawing_allows_is_not_a_fault(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{line}\n")
    assert list(faults(tmp_path)) == []


def test_the_two_that_import_nothing_spell_the_same_headers() -> None:
    from repowire import hook_stdio, mcp_stdio

    assert [(name.decode(), variable.decode()) for name, variable in hook_stdio.HEADERS] == list(mcp_stdio.HEADERS)
