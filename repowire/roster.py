"""Roster: what of a peer is shown to others (PeerInfo, wire.md 1.2)."""

import os
from collections.abc import Mapping
from sqlite3 import Connection
from typing import Any

from aiohttp import web

from repowire import asks, peers, presence, wire
from repowire.errors import invalid, not_found
from repowire.mesh import MESH, Mesh
from repowire.peers import Peer
from repowire.presence import Evidence
from repowire.protocol import BACKENDS, RECEIPTS

MOST = 100_000  # peers in one reply


def info(mesh: Mesh, peer: Peer, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    """One peer as the published PeerInfo, its fields in the published order."""
    db, now = mesh.db.conn, mesh.clock.now()
    status = presence.status(evidence)
    connected = presence.SOCKET in evidence and evidence[presence.SOCKET].fact == "open"
    channel = presence.CHANNEL in evidence and evidence[presence.CHANNEL].fact == "open"
    details = peer.details
    door = mesh.doors.of(peer.peer_id)
    handed_at = (door and door.handed_at) or peer.handed_at
    capabilities = details.get("capabilities")  # the peer's own words, so of any type
    promised = isinstance(capabilities, list) and RECEIPTS in capabilities
    receipts = promised or handed_at is not None or peer.failed_at is not None
    pending, oldest = asks.waits_on(db, peer.peer_id)
    return {
        "peer_id": peer.peer_id,
        "name": peer.display_name,
        "display_name": peer.display_name,
        "path": peer.path,
        "machine": peer.machine,
        "tmux_session": peer.tmux_session,
        "backend": peer.backend,
        "model": peer.model,
        "circle": peer.circle,
        "role": peer.role,
        "status": status,
        "turn_state": peer.turn_state,
        "last_seen": wire.moment(peer.last_seen),
        "metadata": details,
        "description": _description(mesh, peer, now),
        "ws_connected": connected,
        "hook_supports_receipts": receipts,
        "last_successful_injection_at": wire.moment(handed_at),
        "last_injection_failure_at": wire.moment(peer.failed_at),
        "pending_ask_count": pending,
        "oldest_pending_age_seconds": round(now - oldest, 3) if oldest is not None else None,
        "pane_safe": None,
        "inbound_status": _inbound(peer, status, connected or channel, receipts or channel, handed_at),
    }


def _description(mesh: Mesh, peer: Peer, now: float) -> str:
    """A description is shown for its lifetime only."""
    ttl = mesh.config.daemon.description_ttl_seconds
    stale = peer.described_at is not None and now - peer.described_at > ttl
    return "" if stale else peer.description


def _inbound(peer: Peer, status: str, connected: bool, receipts: bool, handed_at: float | None) -> str:
    """Whether mail gets through (wire.md 1.2, first match)."""
    if status == presence.OFFLINE:
        return "offline"
    if not connected:
        return "no_hook"
    if not receipts:
        return "legacy_unverified"
    if peer.failed_at is not None and peer.failed_at > (handed_at or 0.0):
        return "inbound_degraded"
    return "online"


def _at(peer: Peer, path: str) -> bool:
    return peer.path is not None and (peer.path == path or os.path.realpath(peer.path) == os.path.realpath(path))


async def get_peers(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    status = request.query.get("status")
    backend = wire.word(request, "backend", BACKENDS)
    path, circle = request.query.get("path"), request.query.get("circle")
    if path is not None and "\0" in path:
        raise invalid("path", "must not contain a NUL character")
    most = wire.whole(request, "limit", default=MOST, most=MOST)
    after = wire.cursor(request) or 0
    evidence = presence.all_evidence(mesh.db.conn)
    wanted = _WANTED.get(status or "")
    found = [
        peer
        for peer in peers.listed(mesh.db.conn)
        if peer.seq > after
        and (wanted is None or presence.status(evidence.get(peer.peer_id, {})) in wanted)
        and (backend is None or peer.backend == backend)
        and (circle in (None, "*") or peer.circle == circle or peer.everywhere)
        and (path is None or _at(peer, path))
    ]
    if path is not None and len(found) <= most:
        found.sort(key=lambda peer: peer.path != path)  # wire.md 1.2: equal as text goes before equal on the disk
    shown = [info(mesh, peer, evidence.get(peer.peer_id, {})) for peer in found[:most]]
    return wire.reply({"peers": shown} | wire.page(request, found[most - 1].seq if len(found) > most else None))


_WANTED = {"online": ("online", "busy"), "busy": ("busy",), "offline": ("offline",)}


def _one(db: Connection, mesh: Mesh, peer: Peer) -> web.Response:
    return wire.reply(info(mesh, peer, presence.evidence(db, peer.peer_id)))


async def get_peer(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    db = mesh.db.conn
    return _one(db, mesh, peers.resolve(db, request.match_info["name"], request.query.get("circle")))


async def get_by_pane(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    pane_id = request.match_info["pane_id"]
    peer = peers.by_pane(mesh.db.conn, pane_id)
    if peer is None:
        raise not_found("pane", pane_id, f"no peer holds pane {pane_id}")
    return _one(mesh.db.conn, mesh, peer)


ROUTES = [
    web.get("/peers", get_peers),
    web.get("/peers/by-pane/{pane_id}", get_by_pane),
    web.get("/peers/{name}", get_peer),
]
