"""Survey: every pane of every tmux server of this user, and the processes in them, as they are at one moment.

One call a server and one look at the processes, off the loop. What it guesses of a program is for display, and decides
nothing.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from repowire import agents, sessions, tmux
from repowire.agents import claude_code_hooks as claude
from repowire.mesh import Mesh
from repowire.procs import Procs, Running
from repowire.tmux import Gone, Hangs, Listed

log = logging.getLogger("repowire")


class Agent(NamedTuple):
    """A process in a pane that seems to be an agent."""

    pid: int
    started: float
    backend: str


class Place(NamedTuple):
    """A pane, the server that it is of, and what runs in it."""

    listed: Listed
    server_started: float
    line: tuple[Running, ...]  # the pane's own process and its descendants, the nearest first
    agent: Agent | None

    @property
    def server(self) -> str | None:
        """Its server, in the words of `sessions`."""
        return sessions.server_name(self.listed.socket, self.listed.server_pid, self.server_started)

    @property
    def in_front(self) -> Running | None:
        """The process that the keys go to, the one nearest to the pane of its group."""
        return next((one for one in self.line if one.in_foreground), None)

    def holds(self, pid: int | None, started: float | None) -> bool:
        """Whether that very process runs in it."""
        return any((one.pid, one.started) == (pid, started) for one in self.line)


class Survey(NamedTuple):
    """What was found, and which sockets had nobody behind them who answered in time."""

    places: list[Place]
    silent: list[str]

    def of_server(self, server: str | None) -> "dict[str, Place]":
        """The panes of one server by their ids."""
        return {place.listed.pane_id: place for place in self.places if place.server == server}


# -- looking -------------------------------------------------------------------


async def take(mesh: Mesh, *also: str) -> Survey:
    """Look at all servers whose sockets are in the user's tmux folder, known by a session, or among `also`."""
    known = [socket for socket in (*sessions.tmux_sockets(mesh.db.conn), *also) if tmux.is_socket(socket)]
    return await look(mesh.procs, dict.fromkeys([*known, *tmux.sockets_of_user()]))


async def look(procs: Procs, sockets: Iterable[str]) -> Survey:
    """The panes behind these sockets; a server that is gone has none. The processes are read while tmux answers."""
    asked = list(sockets)
    seeing = asyncio.create_task(asyncio.to_thread(procs.all))
    answers = await asyncio.gather(*map(tmux.panes_of, asked), return_exceptions=True)
    listed, silent, met = list[Listed](), list[str](), set[int]()
    for socket, answer in zip(asked, answers, strict=True):
        if isinstance(answer, Hangs):
            silent.append(socket)
        elif isinstance(answer, Gone):
            log.debug("%s", answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            listed += [pane for pane in answer if pane.server_pid not in met]  # a socket may have several names
            met |= {pane.server_pid for pane in answer}
    return Survey(_placed(procs, listed, await seeing), silent)


def _placed(procs: Procs, listed: list[Listed], running: dict[int, Running]) -> list[Place]:
    """Some 5 µs a pane."""
    children: dict[int, list[Running]] = {}
    for one in running.values():
        children.setdefault(one.parent, []).append(one)
    places = []
    for pane in listed:
        server = running.get(pane.server_pid)
        if server is None:
            continue
        line = () if pane.dead else tuple(_line(pane.pane_pid, running, children))
        places.append(Place(pane, server.started, line, _agent(procs, line)))
    return places


def _line(root: int, running: dict[int, Running], children: dict[int, list[Running]]) -> Iterator[Running]:
    """A process and its descendants, breadth first."""
    ahead = [running[root]] if root in running else []
    while ahead:
        yield from ahead
        ahead = [child for one in ahead for child in children.get(one.pid, ()) if child.started >= one.started]


def _agent(procs: Procs, line: tuple[Running, ...]) -> Agent | None:
    """The agent in a pane: what the keys go to before what runs behind it, a program's name before its script's."""
    found: list[tuple[bool, bool, int, Running, str]] = []
    for one in line:
        backend = agents.backend_of(one.name)
        if backend is None and agents.runs_scripts(one.name):
            backend = agents.backend_of(one.name, procs.arguments(one.pid))
        if backend is not None:
            found.append((not one.in_foreground, one.name not in agents.PROGRAMS, len(found), one, backend))
    if not found:
        return None
    *_, one, backend = min(found, key=lambda each: each[:3])
    return Agent(one.pid, one.started, backend)


def registry_of(procs: Procs, backend: str, pid: int) -> str | None:
    """The file in which such a process says how it is."""
    if backend != "claude-code":
        return None
    folder = procs.variable(pid, "CLAUDE_CONFIG_DIR") or f"{procs.variable(pid, 'HOME') or ''}/.claude"
    return claude.registry(f"{folder}/projects/", pid)
