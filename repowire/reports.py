"""Reports: what is said of a peer over HTTP: seen, at work on something, offline, gone for good.

An agent says it of itself alone. It may take others of its circle off the list, as it may end them; nobody takes the
human off.
"""

from sqlite3 import Connection
from typing import Any

from aiohttp import web

from repowire import callers, peers, presence, wire
from repowire.errors import Refusal, conflict, malformed
from repowire.lives import MAX_DESCRIPTION_CHARS, describe, hide, reap, retire, say, touch, update
from repowire.mesh import MESH
from repowire.peers import Peer
from repowire.protocol import HUMAN, TURN_STATES

# -- rules -------------------------------------------------------------------


def may_end(peer: Peer) -> None:
    """409 `human` for the person of this machine, whose mail waits there."""
    if peer.role == HUMAN:
        raise conflict("human", f"{peer.display_name} is a person and no agent that ends", peer_id=peer.peer_id)


# -- wire --------------------------------------------------------------------


async def delete_peer(request: web.Request) -> web.Response:
    _unregister(request, request.match_info["name"], request.query.get("circle"))
    return wire.reply({"ok": True})


async def post_unregister(request: web.Request) -> web.Response:
    body = await wire.read(request)
    _unregister(request, body.text("name"), body.optional_identifier("circle"))
    return wire.reply({"ok": True})


def _unregister(request: web.Request, name: str, circle: str | None) -> None:
    mesh = request.app[MESH]
    with mesh.change() as change:
        peer = peers.resolve(change.db, name, circle)
        if peer.hidden_at is not None:
            raise peers.unknown(change.db, name)
        may_end(peer)
        if (caller := callers.calling(mesh, request)) is not None:
            peers.check_circle(caller, peer, bypass=False)
        say(change, peer, presence.OFFLINE, "unregistered")
        hide(change, peer, "unregistered", ended_at=change.now)  # what waited for it: `succession`


async def post_prune(request: web.Request) -> web.Response:
    """Who is offline goes off the list now, as it would after `daemon.peer_reap_ttl_seconds`."""
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    dry_run, circle = body.flag("dry_run"), body.optional_identifier("circle")
    with mesh.change() as change:
        found = [
            peer
            for peer in peers.listed(change.db)
            if peer.role != HUMAN
            and circle in (None, peer.circle)
            and presence.of(change.db, peer.peer_id) == presence.OFFLINE
        ]
        pruned = [_pruned(change.db, peer) for peer in found]
        for peer in found if not dry_run else ():
            reap(change, peer, "pruned")
    return wire.reply({"ok": True, "dry_run": dry_run, "pruned": pruned})


def _pruned(db: Connection, peer: Peer) -> dict[str, Any]:
    return {
        "peer_id": peer.peer_id,
        "display_name": peer.display_name,
        "circle": peer.circle,
        "path": peer.path,
        "last_seen": wire.moment(peer.last_seen),
        "waiting": peers.waiting(db, peer.peer_id),
    }


async def post_offline(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    reason = body.optional_text("reason", max_chars=64) or "offline_route"
    source = body.optional_text("source", max_chars=64) or "peers_route"
    detail = body.optional_text("detail", max_chars=1000)
    terminal = body.flag("terminal")
    with mesh.change() as change:
        try:
            peer = peers.resolve(change.db, request.match_info["name"])
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            return wire.reply({"ok": True, "cancelled_queries": 0})
        callers.may_read(mesh, request, peer)
        if terminal:
            may_end(peer)
        say(change, peer, presence.OFFLINE, reason, source, detail)
        if terminal:
            retire(change, peer, reason, source)
    return wire.reply({"ok": True, "cancelled_queries": 0})


async def post_session_update(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    word = body.optional_text("status")
    turn_state = body.choice("turn_state", TURN_STATES)
    model, metadata = body.optional_text("model", max_chars=255), body.record("metadata")
    name, pane_id = body.optional_text("peer_name"), body.optional_text("pane_id", max_chars=64)
    if word not in (None, "online", "busy", "offline", "idle"):
        raise malformed("status must be one of online, busy, idle, offline", field="status")
    if not (word or turn_state or model or metadata):
        raise malformed("nothing to update: give status, turn_state, model or metadata")
    if not (name or pane_id):
        raise malformed("say whose session it is: peer_name or pane_id")
    with mesh.change() as change:
        peer = peers.of_pane(change.db, pane_id) if pane_id else peers.known(change.db, name or "")
        if peer is None:
            return wire.reply({"ok": True})
        callers.may_read(mesh, request, peer)
        update(change, peer, turn_state=turn_state, model=model, metadata=metadata)
        if word:
            say(change, peer, presence.ONLINE if word == "idle" else word, "status_update_offline", "session_update")
    return wire.reply({"ok": True})


async def post_touch(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    with mesh.change() as change:
        peer = peers.resolve(change.db, request.match_info["name"], request.query.get("circle"))
        callers.may_read(mesh, request, peer)
        touch(change, peer.peer_id)
    return wire.reply({"ok": True})


async def post_description(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    text = body.text("description", max_chars=MAX_DESCRIPTION_CHARS, least=0)
    with mesh.change() as change:
        peer = peers.resolve(change.db, request.match_info["name"], request.query.get("circle"))
        callers.may_read(mesh, request, peer)
        describe(change, peer, text)
    return wire.reply({"ok": True})


ROUTES = [
    web.post("/peers/prune", post_prune),
    web.delete("/peers/{name}", delete_peer),
    web.post("/peer/unregister", post_unregister),
    web.post("/peers/{name}/offline", post_offline),
    web.post("/peers/{name}/touch", post_touch),
    web.post("/peers/{name}/description", post_description),
    web.post("/session/update", post_session_update),
]
