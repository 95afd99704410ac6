"""Doctor: how the daemon itself fares, how one peer does, and how the host.

`/health` is cheap and holds no secret: no file read, no search. A report changes nothing: it looks at what is recorded,
at tmux, at the processes and at the agents' settings, and says where these do not agree.
"""

import asyncio
import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from aiohttp import web

from repowire import (
    __version__,
    agents,
    asks,
    contradictions,
    deliveries,
    drift,
    holds,
    links,
    panes,
    peers,
    presence,
    rehooks,
    sessions,
    survey,
    tmux,
    wire,
)
from repowire.contradictions import ERROR, WARNING, Contradiction, Facts
from repowire.deliveries import Delivery
from repowire.mesh import MESH, Mesh
from repowire.panes import Hosts
from repowire.peers import Peer
from repowire.sockets import SOCKETS, Sockets
from repowire.survey import Place, Survey

HELD_MOST = 500


class Known:
    """Which contradictions of each peer a look has found: an event says of each that it came, once."""

    def __init__(self) -> None:
        self._codes: dict[str, set[str]] = {}

    def note(self, mesh: Mesh, peer: Peer, found: Iterable[Contradiction]) -> None:
        """What this look found."""
        before, now = self._codes.get(peer.peer_id, set()), {one.code: one for one in found}
        self._codes[peer.peer_id] = set(now)
        for code in now.keys() - before:
            mesh.announce(
                "peer.contradicted",
                peer_id=peer.peer_id,
                peer_name=peer.display_name,
                code=code,
                severity=now[code].severity,
                detail=now[code].detail,
            )


KNOWN = web.AppKey("known", Known)

# -- the daemon ------------------------------------------------------------------


def health(mesh: Mesh) -> dict[str, Any]:
    """The published fields (wire.md 1.1), and what of the stores needs attention."""
    failure = mesh.ledger.failure
    # anybody may ask, so the reason is shown without the path that it begins with
    troubles = [f"ledger: {failure.rpartition(': ')[2]}"] if failure else []
    return {
        "status": "ok",
        "version": __version__,
        "relay_mode": False,
        "channel": {
            "status": "inactive",
            "configured": False,
            "runtime_available": False,
            "stop_hook_fallback": True,
            "last_error": None,
        },
        "acp_broker": {
            "status": "inactive",
            "enabled": False,
            "sdk_available": False,
            "manager_initialized": False,
            "configured_peers": 0,
            "active_clients": 0,
            "in_flight": 0,
            "last_error": None,
            "last_error_peer_id": None,
            "last_error_at": None,
            "last_success_at": None,
            "sessions": {},
            "permissions": {"pending": 0, "timeout_seconds": None, "last_error": None, "last_error_at": None},
        },
        "degraded": troubles,
    }


# -- looking at one peer -----------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What is looked at once for all peers of a report."""

    mesh: Mesh
    table: Sockets
    survey: Survey
    settings: dict[str, drift.Settings]  # by their folder


async def look(mesh: Mesh, table: Sockets, found: Iterable[Peer]) -> Look:
    """tmux, the processes and the settings, for these peers."""
    asked = list(found)
    known = {peer.peer_id: sessions.find(mesh.db.conn, peer.peer_id) for peer in asked}
    seen = await survey.take(mesh)
    folders = {
        folder for peer in asked if (folder := drift.settings_folder(mesh, peer, known[peer.peer_id])) is not None
    }
    settings = await asyncio.to_thread(lambda: {folder: drift.look_at(mesh, folder) for folder in folders})
    return Look(mesh, table, seen, settings)


def facts(around: Look, peer: Peer, held: list[Delivery]) -> Facts:
    """What is known of a peer, put together."""
    mesh = around.mesh
    db, live = mesh.db.conn, around.table.of(peer.peer_id)
    session, evidence = sessions.find(db, peer.peer_id), presence.evidence(db, peer.peer_id)
    here = not rehooks.elsewhere(peer)
    alive = _alive(mesh, peer) if here else None
    pending, _ = asks.waits_on(db, peer.peer_id)
    folder = drift.settings_folder(mesh, peer, session)
    written = around.settings.get(folder) if folder is not None else None
    answers = _server_answers(around, peer) if here else None
    return Facts(
        peer=peer,
        now=mesh.clock.now(),
        status=presence.status(evidence),
        here=here,
        local=here and (peer.machine == platform.node() or peer.pane_id is not None),
        connected=live is not None,
        channel=presence.CHANNEL in evidence and evidence[presence.CHANNEL].fact == "open",
        ws_pane_id=live.pane_id if live is not None else None,
        place=_place(around.survey, peer) if answers else None,
        server_answers=answers,
        agent_alive=alive,
        agent_stopped=bool(alive and peer.agent_pid and mesh.procs.stopped(peer.agent_pid)),
        says=agents.row(peer.backend).status(session.registry) if session is not None and here else None,
        session=session,
        hook_peer=_hook_peer(db, peer) if here else None,
        pending=pending,
        oldest_ask=asks.oldest_to(db, peer.peer_id),
        held=held,
        drift=written.drift if written is not None else None,
        setup=written.setup if written is not None else drift.SETUP,
        version=peer.details.get("hook_version") if live is not None else None,
    )


def _alive(mesh: Mesh, peer: Peer) -> bool | None:
    if peer.agent_pid is None:
        return None
    if peer.agent_started is None:
        return mesh.procs.started(peer.agent_pid) is not None
    return mesh.procs.alive(peer.agent_pid, peer.agent_started)


def _place(seen: Survey, peer: Peer) -> Place | None:
    """Its pane, as it is listed now."""
    if peer.pane_server is not None:
        return seen.of_server(peer.pane_server).get(peer.pane_id or "")
    return next((place for place in seen.places if place.listed.pane_id == peer.pane_id), None)


def _server_answers(around: Look, peer: Peer) -> bool | None:
    """Whether the server of its pane still runs; None when it has no pane, or the server did not answer in time."""
    if peer.pane_id is None:
        return None
    if peer.pane_server is None:
        return True if not around.survey.silent else None
    socket, pid, started = peer.pane_server.rsplit(",", 2)
    if socket in around.survey.silent:
        return None
    return pid.isdigit() and around.mesh.procs.alive(int(pid), float(started))


def _hook_peer(db: Connection, peer: Peer) -> Peer | None:
    """For whom the hooks in its pane spoke last, where that one goes on."""
    rows = db.execute(
        "SELECT peer_id FROM sessions WHERE pane_id = ? ORDER BY bound_at DESC", (peer.pane_id,)
    ).fetchall()
    for row in rows:
        other = peers.find(db, row[0])
        if other is None or other.retired_at is not None or other.hidden_at is not None:
            continue
        if peer.pane_server in (None, other.pane_server) or other.pane_server is None:
            return other
    return None


def _held(db: Connection, peer_id: str) -> list[Delivery]:
    rows = db.execute(
        "SELECT * FROM deliveries WHERE peer_id = ? AND state = 'held' ORDER BY seq LIMIT ?", (peer_id, HELD_MOST)
    )
    return [Delivery.of(row) for row in rows]


# -- reports -----------------------------------------------------------------------


def report(around: Look, peer: Peer, found: list[Contradiction], known: Facts) -> dict[str, Any]:
    """The published fields in their order (wire.md 1.2), and ours."""
    place, hook = known.place, known.hook_peer
    probed = known.local and peer.pane_id is not None and known.server_answers is not None
    return {
        "peer_id": peer.peer_id,
        "display_name": peer.display_name,
        "status": known.status,
        "turn_state": peer.turn_state,
        "last_seen": wire.moment(peer.last_seen),
        "machine": peer.machine,
        "backend": peer.backend,
        "circle": peer.circle,
        "role": peer.role,
        "pane_id": peer.pane_id,
        "is_local_machine": known.local,
        "ws_connected": known.connected,
        "ws_pane_id": known.ws_pane_id,
        "tmux_pane_exists": place is not None if probed else None,
        "tmux_evidence": {
            "tmux_session": place.listed.session,
            "current_path": place.listed.path,
            "pane_pid": place.listed.pane_pid,
        }
        if place is not None
        else None,
        "hook_meta_available": hook is not None,
        "hook_meta_peer_id": hook.peer_id if hook else None,
        "hook_meta_display_name": hook.display_name if hook else None,
        "agent_pid": peer.agent_pid,
        "agent_pid_alive": known.agent_alive,
        "pending_inbound_count": known.pending,
        "oldest_pending_age_seconds": round(known.now - known.oldest_ask.created_at, 3) if known.oldest_ask else None,
        "oldest_pending_cid": known.oldest_ask.correlation_id if known.oldest_ask else None,
        "contradictions": [one.json() for one in found],
        "way_in": _way_in(around.mesh, peer),
        "waiting": deliveries.depth(around.mesh.db.conn, peer.peer_id),
        "held": [
            {"delivery_id": one.delivery_id, "reason": one.reason, "since": wire.moment(one.created_at)}
            for one in known.held
        ],
        "hold": hold.json() if (hold := holds.find(around.mesh.db.conn, peer.peer_id)) is not None else None,
        "says": known.says,
        "hook_version": known.version,
        "daemon_version": __version__,
    }


def _way_in(mesh: Mesh, peer: Peer) -> str | None:
    """socket, pane or channel: how a message reaches it now."""
    door = mesh.doors.of(peer.peer_id)
    return door.way if door is not None else None


def examined(around: Look, peer: Peer) -> tuple[Facts, list[Contradiction]]:
    """One peer, and what is wrong with it."""
    known = facts(around, peer, _held(around.mesh.db.conn, peer.peer_id))
    return known, contradictions.found(known)


@dataclass(frozen=True)
class Check:
    """Something of the host; `severity` counts when it is not `ok`."""

    name: str
    ok: bool
    severity: str
    detail: str
    repair: str | None = None

    def json(self) -> dict[str, Any]:
        return {"check": self.name, **{key: fact for key, fact in vars(self).items() if key != "name"}}


def checks(mesh: Mesh, hosts: Hosts, around: Look) -> list[Check]:
    """How the host is, besides its peers."""
    failure, wanted = mesh.ledger.failure, panes.wanted(mesh, hosts)
    found, silent = shutil.which(tmux.PROGRAM), around.survey.silent
    installed = installed_version()
    many = f"{len(wanted)} pane{'s' * (len(wanted) != 1)}"
    agents_alone = [place for place in links.orphans(mesh.db.conn, around.survey.places) if place.agent is not None]
    return [
        Check("ledger", failure is None, ERROR, f"cannot be written: {failure}" if failure else "is written"),
        Check(
            "version",
            installed == __version__,
            WARNING,
            f"the daemon is {__version__}, installed is {installed}",
            None if installed == __version__ else "repowire daemon restart",
        ),
        Check("processes", mesh.procs.blind is None, WARNING, mesh.procs.blind or "the end of each is told at once"),
        Check("tmux", found is not None, WARNING, found or "there is no tmux: no pane can be served"),
        *[Check("tmux", False, ERROR, f"the server on {one} does not answer", f"tmux -S {one} info") for one in silent],
        Check(
            "ws-hook",
            bool(hosts.following) or not wanted,
            ERROR,
            f"serves {many}" if hosts.following else f"does not run, and is wanted for {many}",
            None if hosts.following or not wanted else f"less {mesh.config.home / 'ws-hook.log'}",
        ),
        Check(
            "orphans",
            not agents_alone,
            WARNING,
            f"panes that look like an agent's and are nobody's: {len(agents_alone)}"
            if agents_alone
            else "no agent is nobody's",
            "repowire link" if agents_alone else None,
        ),
    ]


def installed_version() -> str:
    """What stands in the package's files now: an update replaces them under a running daemon."""
    try:
        said = re.search(r'__version__ = "([^"]+)"', (drift.PACKAGE / "__init__.py").read_text("utf-8", "replace"))
    except OSError:
        return "gone"
    return said[1] if said else "unknown"


# -- wire --------------------------------------------------------------------------


async def get_health(request: web.Request) -> web.Response:
    return wire.reply(health(request.app[MESH]))


async def get_report(request: web.Request) -> web.Response:
    mesh, table = request.app[MESH], request.app[SOCKETS]
    peer = peers.resolve(mesh.db.conn, request.match_info["name"], request.query.get("circle"))
    around = await look(mesh, table, [peer])
    peer = peers.load(mesh.db.conn, peer.peer_id)  # as it is now that all was looked at
    known, found = examined(around, peer)
    request.app[KNOWN].note(mesh, peer, found)
    return wire.reply(report(around, peer, found, known))


async def get_host(request: web.Request) -> web.Response:
    """The host, and each peer that is not offline. `ok` when nothing of it is an error."""
    mesh, table = request.app[MESH], request.app[SOCKETS]
    live = [peer for peer in peers.listed(mesh.db.conn) if presence.of(mesh.db.conn, peer.peer_id) != presence.OFFLINE]
    around = await look(mesh, table, live)
    told = checks(mesh, request.app[panes.HOSTS], around)
    rows, bad = [], any(not one.ok and one.severity == ERROR for one in told)
    for before in live:
        peer = peers.find(mesh.db.conn, before.peer_id)  # as it is now that all was looked at
        if peer is None:
            continue
        _, found = examined(around, peer)
        request.app[KNOWN].note(mesh, peer, found)
        bad = bad or any(one.severity == ERROR for one in found)
        if found:
            rows.append(
                {
                    "peer_id": peer.peer_id,
                    "display_name": peer.display_name,
                    "contradictions": [one.json() for one in found],
                }
            )
        await asyncio.sleep(0)  # a host has many peers
    return wire.reply(
        {
            "ok": not bad,
            "version": __version__,
            "machine": platform.node(),
            "checks": [one.json() for one in told],
            "peers_looked_at": len(live),
            "peers": rows,
        }
    )


ROUTES = [
    web.get("/health", get_health),
    web.get("/doctor", get_host),
    web.get("/peers/{name}/doctor", get_report),
]
