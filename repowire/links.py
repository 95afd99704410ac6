"""Links: a pane that no peer has becomes a peer's, with a live way into it, or nothing of it stays.

What was written for a link stands in `links` until its way in is there. Whatever ends it before, be it the time, the
end of the pane or that of the daemon, everything is undone by that row.
"""

import asyncio
import json
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, claims, lives, panes, peers, presence, sessions, survey, tmux, wire
from repowire.agents import shell
from repowire.claims import Claim
from repowire.errors import conflict, forbidden, invalid, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.panes import Hosts
from repowire.peers import Peer
from repowire.procs import Procs, Running
from repowire.protocol import BACKENDS, CLOSE_RETIRED
from repowire.sockets import SOCKETS, Sockets
from repowire.survey import Place

SHELL = "shell"  # any other program
LINK_SECONDS = 8.0  # within these its way in is there, or it is undone
LINKED, PANE_GONE, AGENT_GONE = "linked", "pane_gone", "agent_gone"
SPAWN_FAILED, UNESTABLISHED, STOPPED = "ws_hook_spawn_failed", "transport_unestablished", "daemon_stopped"
REPAIRS = {
    PANE_GONE: "the pane ended meanwhile: `repowire link` lists those that are there",
    AGENT_GONE: "the program in the pane ended meanwhile: start it again, then link",
    SPAWN_FAILED: "the program that serves the panes did not start: ws-hook.log in the daemon's home says why",
    UNESTABLISHED: "the program that serves the panes did not connect: see ws-hook.log in the daemon's home, try again",
    STOPPED: "the daemon stopped meanwhile: start it and link again",
}

# -- model and table -----------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE links (                             -- those whose way in is not there yet
    peer_id TEXT PRIMARY KEY,
    peer TEXT,                                   -- the peer's row before, as JSON; NULL where there was none
    session TEXT                                 -- its session's row before, likewise
) WITHOUT ROWID;
"""
]


class Asked(NamedTuple):
    """What is to be linked, as whoever asks says it."""

    pane_id: str
    backend: str
    name: str | None = None
    circle: str | None = None
    path: str | None = None
    tmux: str | None = None  # the socket of its server, where several have a pane of that id


@dataclass(frozen=True)
class Linked:
    """How a link ended."""

    pane_id: str
    peer: Peer | None
    reason: str

    def json(self) -> dict[str, Any]:
        """As POST /panes/{pane_id}/link answers (wire.md 1.3)."""
        linked = self.reason == LINKED
        return {
            "linked": linked,
            "pane_id": self.pane_id,
            "peer_id": self.peer.peer_id if self.peer and linked else None,
            "display_name": self.peer.display_name if self.peer and linked else None,
            "transport_connected": linked,
            "reason": self.reason,
            "repair_hint": REPAIRS.get(self.reason),
        }


# -- queries -------------------------------------------------------------------


def holder(db: Connection, place: Place) -> Peer | None:
    """Whose pane it is: by pane and server, or since the peer's own process runs in it."""
    here = (peer for peer in peers.in_pane(db, place.listed.pane_id) if peer.pane_server in (None, place.server))
    lived = (peers.by_process(db, one.pid, one.started) for one in place.line)
    return next(here, None) or next((peer for peer in lived if peer is not None), None)


def orphans(db: Connection, places: Iterable[Place]) -> list[Place]:
    """The panes that nobody has, in one read of the peers."""
    rows = db.execute(
        "SELECT pane_id, pane_server, agent_pid, agent_started FROM peers WHERE hidden_at IS NULL"
        " AND retired_at IS NULL AND (pane_id IS NOT NULL OR agent_pid IS NOT NULL)"
    ).fetchall()
    held = {(pane_id, server) for pane_id, server, _, _ in rows if pane_id is not None}
    lived = {(pid, started) for _, _, pid, started in rows if pid is not None}
    return [
        place
        for place in places
        if not {(place.listed.pane_id, place.server), (place.listed.pane_id, None)} & held
        and not any((one.pid, one.started) in lived for one in place.line)
    ]


def as_json(place: Place) -> dict[str, Any]:
    """A pane as GET /panes/orphans shows it."""
    listed, agent, front = place.listed, place.agent, place.in_front
    return {
        "pane_id": listed.pane_id,
        "pid": listed.pane_pid,
        "command": front.name if front else "",
        "cwd": listed.path,
        "session": listed.session,
        "window": str(listed.window),
        "detected_backend": agent.backend if agent else "unknown",
        "confidence": "hint" if agent else "unknown",
        "agent_pid": agent.pid if agent else None,
        "tmux": listed.socket,
    }


# -- rules: who is in the pane -------------------------------------------------


def chosen(places: Iterable[Place], asked: Asked) -> Place:
    """The pane that is meant. 404 when there is none, 409 when several servers have one of that id."""
    found = [place for place in places if place.listed.pane_id == asked.pane_id and not place.listed.dead]
    if asked.tmux is not None:
        found = [place for place in found if place.listed.socket == asked.tmux]
    if not found:
        where = f" on {asked.tmux}" if asked.tmux else ""
        raise not_found(
            "pane", asked.pane_id, f"tmux has no live pane {asked.pane_id}{where}: `repowire link` lists them"
        )
    if len(found) > 1:
        raise conflict(
            "ambiguous_pane",
            f"{len(found)} tmux servers have a pane {asked.pane_id}: say which with `tmux` (CLI: --tmux):"
            f" {', '.join(place.listed.socket for place in found)}",
            pane_id=asked.pane_id,
            candidates=[{"tmux": place.listed.socket, "session": place.listed.session} for place in found],
        )
    return found[0]


def agent_in(procs: Procs, place: Place, backend: str) -> Running:
    """The process in the pane that is to be the peer's. 409 when no program of that kind runs there.

    An agent that is known by its program must be found; for any other program the person who links says what it is, so
    that is the one which the keys go to.
    """
    if place.agent is not None and place.agent.backend == backend:
        return next(one for one in place.line if one.pid == place.agent.pid)
    pane_id, front = place.listed.pane_id, place.in_front
    if backend == SHELL and front is not None:
        if not shell.interprets(front.name, procs.arguments(front.pid)):
            return front
        hint = f"{front.name} in pane {pane_id} runs the commands that it is told: start a program there first"
        raise conflict("no_agent", hint, pane_id=pane_id)
    said = f"where {front.name} has the keys: start it there first" if front else "where nothing reads the keys now"
    raise conflict("no_agent", f"no {backend} runs in pane {pane_id}, {said}", pane_id=pane_id)


# -- rules: linking and undoing ------------------------------------------------


def open_link(change: Change, place: Place, agent: Running, asked: Asked, registry: str | None) -> Peer:
    """Register the peer and have its pane served; 409 `already_linked` when the pane is somebody's already."""
    mesh, listed = change.mesh, place.listed
    if (held := holder(change.db, place)) is not None and _keeps(change, held):
        raise conflict(
            "already_linked",
            f"pane {listed.pane_id} is {held.display_name}'s: `repowire peer doctor {held.peer_id}` says how it is",
            peer_id=held.peer_id,
        )
    path = claims.normal_path(asked.path or listed.path or None)
    before = {peer.peer_id: peer for peer in peers.at_path(change.db, asked.backend, path)}
    claim = Claim(
        name=asked.name,
        backend=asked.backend,
        circle=asked.circle,
        circle_source=None if asked.circle else "tmux",
        path=path,
        machine=platform.node() or None,
        tmux_session=listed.session,
        pane_id=listed.pane_id,
        pane_server=place.server,
        agent_pid=agent.pid,
        agent_started=agent.started,
    )
    peer, _ = claims.register(change, claim, circles=mesh.config.mesh.circles, awaited=True)
    known, session = before.get(peer.peer_id), sessions.find(change.db, peer.peer_id)
    change.db.execute(
        "INSERT OR IGNORE INTO links VALUES (?, ?, ?)",
        (
            peer.peer_id,
            json.dumps(known._asdict()) if known else None,
            json.dumps(session._asdict()) if session else None,
        ),
    )
    sessions.bind(
        change,
        peer.peer_id,
        registry=registry,
        tmux=listed.socket,
        server_pid=listed.server_pid,
        server_started=place.server_started,
        pane_id=listed.pane_id,
        inbox=None,
        inbox_token=None,
    )
    return peer


def _keeps(change: Change, held: Peer) -> bool:
    """Whether who has the pane lives in it, or is being linked to it."""
    linking = change.db.execute("SELECT 1 FROM links WHERE peer_id = ?", (held.peer_id,)).fetchone() is not None
    return (
        linking
        or presence.of(change.db, held.peer_id) != presence.OFFLINE
        or presence.reachable(change.db, held.peer_id)
    )


def undo(change: Change, peer_id: str) -> None:
    """As if it had not been linked; what was sent to it meanwhile ends, and its senders are told."""
    row = change.db.execute("DELETE FROM links WHERE peer_id = ? RETURNING peer, session", (peer_id,)).fetchone()
    if row is None:
        return
    peer, before, session = peers.load(change.db, peer_id), row[0], row[1]
    lives.say(change, peer, presence.OFFLINE, "link_failed", "link")
    change.db.execute("DELETE FROM sessions WHERE peer_id = ?", (peer_id,))
    if before is None:
        lives.hide(change, peer, "link_failed", ended_at=change.now)
    else:
        old = Peer(**json.loads(before))
        columns = old._asdict()
        del columns["peer_id"], columns["seq"]
        peers.change_columns(change, peer_id, **columns)
        presence.forget(change, peer_id, presence.PROCESS)
        if old.retired_at is not None:
            presence.note(change, peer_id, presence.IDENTITY, "retired")
        if session is not None:
            sessions.restore(change, sessions.Session(**json.loads(session)))
        change.record("peer.changed", peer_id=peer_id, reason="link_failed")
    change.record("pane.unlinked", peer_id=peer_id, pane_id=peer.pane_id)


def at_start(mesh: Mesh) -> None:
    """Whoever was to answer for these links is gone."""
    with mesh.change() as change:
        for (peer_id,) in change.db.execute("SELECT peer_id FROM links").fetchall():
            undo(change, peer_id)


async def link(mesh: Mesh, hosts: Hosts, table: Sockets, asked: Asked) -> Linked:
    """Make the pane a peer's, and return when its way in is open, or all is undone."""
    found = await survey.take(mesh, *([asked.tmux] if asked.tmux else []))
    place = chosen(found.places, asked)
    agent = agent_in(mesh.procs, place, asked.backend)
    registry = await asyncio.to_thread(survey.registry_of, mesh.procs, asked.backend, agent.pid)
    with mesh.change() as change:
        peer = open_link(change, place, agent, asked, registry)
    reason = STOPPED  # what a task that is cancelled here leaves behind
    try:
        await mesh.on_disk()
        claims.watch(mesh, peer)
        hosts.serve_again(mesh, peer.peer_id)
        reason = await _way_in(mesh, hosts, peer.peer_id)
        if reason == LINKED and not await _is_there(mesh, place, agent):
            reason = PANE_GONE
    finally:
        with mesh.change() as change:
            if reason == LINKED:
                change.db.execute("DELETE FROM links WHERE peer_id = ?", (peer.peer_id,))
                change.record("pane.linked", peer_id=peer.peer_id, pane_id=asked.pane_id)
            else:
                undo(change, peer.peer_id)
        if reason != LINKED and (live := table.of(peer.peer_id)) is not None:
            live.part(CLOSE_RETIRED, "the link was undone")
    return Linked(asked.pane_id, peer, reason)


async def _way_in(mesh: Mesh, hosts: Hosts, peer_id: str) -> str:
    """Wait until a live transport leads to the peer; LINKED, or why none will."""
    end_at = time.monotonic() + LINK_SECONDS
    with mesh.bus.listen(peer_id) as nudge:
        while not presence.reachable(mesh.db.conn, peer_id):
            peer = peers.load(mesh.db.conn, peer_id)
            if peer.retired_at is not None or peer.hidden_at is not None:
                return AGENT_GONE
            if mesh.bus.closed:
                return STOPPED
            if (left := end_at - time.monotonic()) <= 0:
                return UNESTABLISHED if hosts.following else SPAWN_FAILED
            await nudge.wait(left)
    return LINKED


async def _is_there(mesh: Mesh, before: Place, agent: Running) -> bool:
    """Whether the pane is still the one that was looked at, with that very process in it."""
    now = await survey.look(mesh.procs, [before.listed.socket])
    place = now.of_server(before.server).get(before.listed.pane_id)
    return (
        place is not None and place.listed.pane_pid == before.listed.pane_pid and place.holds(agent.pid, agent.started)
    )


# -- wire ----------------------------------------------------------------------


async def get_orphans(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    also = request.query.get("tmux")
    found = await survey.take(mesh, *([also] if also else []))
    return wire.reply(
        {"panes": [as_json(place) for place in orphans(mesh.db.conn, found.places)], "silent": found.silent}
    )


async def post_link(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    pane_id, backend = request.match_info["pane_id"], body.choice("backend", BACKENDS)
    if not tmux.PANE_ID.fullmatch(pane_id):
        raise invalid("pane_id", "must be a tmux pane, such as %42")
    if backend is None:
        raise invalid("backend", "is required")
    asked = Asked(
        pane_id,
        backend,
        name=body.optional_identifier("name"),
        circle=body.optional_identifier("circle"),
        path=body.optional_text("cwd", max_chars=4096),
        tmux=body.optional_text("tmux", max_chars=4096),
    )
    if backend == SHELL and callers.calling(mesh, request) is not None:
        raise forbidden("human_only", "what no agent is known to run in is linked by a person alone")
    done = await link(mesh, request.app[panes.HOSTS], request.app[SOCKETS], asked)
    return wire.reply(done.json())


ROUTES = [web.get("/panes/orphans", get_orphans), web.post("/panes/{pane_id}/link", post_link)]
