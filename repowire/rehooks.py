"""Rehooks: the way into a peer's pane is tried, and where it is proved dead it is opened anew.

Nothing in the pane is touched, and a way that answers is left alone: what is replaced is a socket whose program does
not answer a ping, and the program itself only when it answers for none of its panes.
"""

import asyncio
import os
import platform
import signal
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from repowire import callers, panes, peers, presence, sessions, survey, wire
from repowire.errors import conflict
from repowire.mesh import MESH, Mesh
from repowire.panes import Hosts
from repowire.peers import Peer
from repowire.procs import Process
from repowire.sockets import SOCKETS, Socket, Sockets
from repowire.survey import Place

PING_SECONDS = 2.0
SOON_SECONDS, AGAIN_SECONDS = 3.0, 8.0  # for a living ws-hook to come back, and for a new one to be there
HEALTHY, DRY_RUN, RESPAWNED = "already_healthy", "dry_run", "respawned"
SKIPPED = "respawn_skipped_pid_alive_or_contested"


@dataclass(frozen=True)
class Rehooked:
    """How it went: `detail` is what was found, in words."""

    peer: Peer
    reason: str
    connected: bool
    ping_ok: bool | None
    detail: str

    def json(self) -> dict[str, Any]:
        """As POST /peers/{name}/rehook answers (wire.md 1.2)."""
        return {
            "ok": True,
            "acted": self.reason in (RESPAWNED, SKIPPED),
            "peer_id": self.peer.peer_id,
            "display_name": self.peer.display_name,
            "pane_id": self.peer.pane_id,
            "ws_was_connected": self.connected,
            "ping_ok": self.ping_ok,
            "pane_verified": True,
            "ws_hook_respawned": self.reason == RESPAWNED,
            "reason": self.reason,
            "detail": self.detail,
        }


# -- queries -------------------------------------------------------------------


def elsewhere(peer: Peer) -> bool:
    """Whether it says that it lives on another host."""
    return peer.machine not in (None, "", "unknown", platform.node())


async def proved(mesh: Mesh, peer: Peer) -> Place:
    """The peer's pane, in which its very process runs. 409 that says what is lacking."""
    if elsewhere(peer):
        raise conflict(
            "cross_host",
            f"{peer.display_name} is on {peer.machine}; ask the daemon there",
            peer_machine=peer.machine,
            self_machine=platform.node(),
        )
    if peer.pane_id is None:
        raise conflict("missing_pane", f"{peer.display_name} has no pane: `repowire link` shows those that nobody has")
    session = sessions.find(mesh.db.conn, peer.peer_id)
    found = await survey.take(mesh, *([session.tmux] if session and session.tmux else []))
    for place in found.places:
        here = place.listed.pane_id == peer.pane_id and peer.pane_server in (None, place.server)
        if here and peer.agent_started is not None and place.holds(peer.agent_pid, peer.agent_started):
            return place
    lacks = "its process is not known" if peer.agent_started is None else f"process {peer.agent_pid} does not run in it"
    raise conflict(
        "pane_unverified",
        f"nothing proves that pane {peer.pane_id} is {peer.display_name}'s: {lacks}",
        pane_id=peer.pane_id,
    )


# -- rules ---------------------------------------------------------------------


async def rehook(mesh: Mesh, hosts: Hosts, table: Sockets, peer: Peer, *, apply: bool) -> Rehooked:
    """Try the way into the peer's pane; where it is dead and `apply` says so, open another."""
    place = await proved(mesh, peer)
    live = table.of(peer.peer_id)
    if live is not None and await live.ping(PING_SECONDS):
        return Rehooked(peer, HEALTHY, True, True, "the program that serves its pane answers")
    if live is None and presence.reachable(mesh.db.conn, peer.peer_id):
        return Rehooked(peer, HEALTHY, False, None, "its runtime takes messages itself")
    detail = _finding(hosts, live)
    ping_ok = None if live is None else False
    if not apply:
        return Rehooked(peer, DRY_RUN, live is not None, ping_ok, detail)
    async with hosts.mending:
        back = await _open_anew(mesh, hosts, table, peer, place, live)
    return Rehooked(peer, RESPAWNED if back else SKIPPED, live is not None, ping_ok, detail)


def _finding(hosts: Hosts, live: Socket | None) -> str:
    if live is not None:
        return f"its socket is open, and what is behind it does not answer a ping within {PING_SECONDS:g} s"
    return "no socket is open for it" if hosts.following else "nothing serves the panes of this host"


async def _open_anew(mesh: Mesh, hosts: Hosts, table: Sockets, peer: Peer, place: Place, dead: Socket | None) -> bool:
    """Whether a live way into the pane is there in the end."""
    end_at = time.monotonic() + AGAIN_SECONDS
    known = sessions.find(mesh.db.conn, peer.peer_id)
    registry = known.registry if known else None
    if registry is None and peer.agent_pid is not None:
        registry = await asyncio.to_thread(survey.registry_of, mesh.procs, peer.backend, peer.agent_pid)
    with mesh.change() as change:
        peers.change_columns(change, peer.peer_id, pane_server=place.server)
        sessions.bind(
            change,
            peer.peer_id,
            registry=registry,
            tmux=place.listed.socket,
            server_pid=place.listed.server_pid,
            server_started=place.server_started,
            pane_id=peer.pane_id,
        )
        change.record("pane.rehooked", peer_id=peer.peer_id, pane_id=peer.pane_id)
    if dead is not None and table.of(peer.peer_id) is dead:
        dead.abort()
    hosts.serve_again(mesh, peer.peer_id)
    if await _answers(mesh, table, peer, dead, SOON_SECONDS):
        return True
    if not await _others_answer(table, peer):
        for process in hosts.following.values():
            if process is not None and _is_ws_hook(mesh, process):
                os.kill(process[0], signal.SIGKILL)
        hosts.serve_again(mesh, peer.peer_id)
    return await _answers(mesh, table, peer, dead, end_at - time.monotonic())


async def _answers(mesh: Mesh, table: Sockets, peer: Peer, dead: Socket | None, seconds: float) -> bool:
    """Wait for another socket of the peer, and for its answer to a ping."""
    end_at = time.monotonic() + seconds
    with mesh.bus.listen(peer.peer_id) as nudge:
        while not mesh.bus.closed:
            live = table.of(peer.peer_id)
            left = end_at - time.monotonic()
            if live is not None and live is not dead and presence.reachable(mesh.db.conn, peer.peer_id):
                return await live.ping(max(0.1, left))
            if left <= 0:
                return False
            await nudge.wait(left)
    return False


async def _others_answer(table: Sockets, peer: Peer) -> bool:
    """Whether the program that serves the panes answers for another one: then it is not dead."""
    others = [one for one in table.live.values() if one.hosted and one.peer_id != peer.peer_id]
    return any(await asyncio.gather(*(one.ping(PING_SECONDS) for one in others)))


def _is_ws_hook(mesh: Mesh, process: Process) -> bool:
    """Whether that very process still runs, and serves the panes of this home."""
    words = mesh.procs.arguments(process[0])
    return mesh.procs.alive(*process) and "ws-hook" in words and str(mesh.config.home) in words


# -- wire ----------------------------------------------------------------------


async def post_rehook(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    callers.spoken_for(mesh, request, body.optional_text("from_peer"))
    peer = peers.exactly(mesh.db.conn, request.match_info["name"], body.optional_identifier("circle"))
    apply = body.flag("apply")
    done = await rehook(mesh, request.app[panes.HOSTS], request.app[SOCKETS], peer, apply=apply)
    return wire.reply(done.json())


ROUTES = [web.post("/peers/{name}/rehook", post_rehook)]
