"""Lifecycle: what tmux says of its panes, sessions and windows by its own hooks (wire.md 1.16).

A pane or session id says little by itself: each tmux server counts anew (field.md B 21). So an event moves only whom it
fits: never a peer whose process provably lives, and of several holders of one pane id none. Nobody is retired by it.
"""

import logging
from collections.abc import Iterable

from aiohttp import web

from repowire import lives, names, peers, presence, wire
from repowire.errors import invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import is_identifier

log = logging.getLogger("repowire")

MOST_PANES = 1000

# -- rules ---------------------------------------------------------------------


def gone(change: Change, mesh: Mesh, found: Iterable[Peer], reason: str) -> None:
    """Their pane or session is said to be gone: offline, until they are heard of again."""
    for peer in found:
        if _lives(mesh, peer):
            continue
        if presence.of(change.db, peer.peer_id) != presence.OFFLINE:
            lives.say(change, peer, presence.OFFLINE, reason, "lifecycle_hook")
        if peer.pane_id is not None:
            peers.let_go_of_pane(change, peer.peer_id)
            change.record("peer.changed", peer_id=peer.peer_id, reason=reason)


def _lives(mesh: Mesh, peer: Peer) -> bool:
    """Whether the very process of the peer is there now, by the kernel's word."""
    return (
        peer.agent_pid is not None
        and peer.agent_started is not None
        and mesh.procs.started(peer.agent_pid) == peer.agent_started
    )


def rename_session(change: Change, mesh: Mesh, found: Iterable[Peer], name: str) -> None:
    """The tmux session of these has another name; where a session is a circle, they are in another circle."""
    for peer in found:
        _, colon, window = (peer.tmux_session or "").partition(":")
        if peer.tmux_session != (session := f"{name}{colon}{window}"):
            peers.change_columns(change, peer.peer_id, tmux_session=session)
            change.record("peer.changed", peer_id=peer.peer_id, tmux_session=session)
        if mesh.config.mesh.circles == "tmux" and is_identifier(name) and peer.circle != name:
            names.set_circle(change, peer, name)


# -- wire ----------------------------------------------------------------------


async def post_pane_died(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    pane_id = body.text("pane_id", max_chars=64)
    with mesh.change() as change:
        found = peers.in_pane(change.db, pane_id)
        gone(change, mesh, found if len(found) == 1 else [], "pane_died")
    return wire.reply({"ok": True})


async def post_session_closed(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    name = body.text("session_name", max_chars=64)
    with mesh.change() as change:
        found = peers.in_session(change.db, name, is_circle=mesh.config.mesh.circles == "tmux")
        servers = {peer.pane_server for peer in found if peer.pane_server is not None}
        gone(change, mesh, found if len(servers) <= 1 else [], "session_closed")
    return wire.reply({"ok": True})


async def post_session_renamed(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    name, pane_ids = body.text("new_name", max_chars=64), _pane_ids(body)
    with mesh.change() as change:
        holders = [peers.in_pane(change.db, pane_id) for pane_id in dict.fromkeys(pane_ids)]
        rename_session(change, mesh, [found[0] for found in holders if len(found) == 1], name)
    return wire.reply({"ok": True})


async def post_window_renamed(request: web.Request) -> web.Response:
    body = await wire.read(request)
    body.text("session_name", max_chars=64)
    body.text("new_name", max_chars=64)
    _pane_ids(body)
    return wire.reply({"ok": True})  # a window is nothing to us


async def post_client_detached(request: web.Request) -> web.Response:
    body = await wire.read(request)
    log.info("a client left the tmux session %r", body.text("session_name", max_chars=64))
    return wire.reply({"ok": True})


def _pane_ids(body: wire.Body) -> list[str]:
    found = body.members("pane_ids", most=MOST_PANES)
    if not all(isinstance(one, str) and 0 < len(one) <= 64 for one in found):
        raise invalid("pane_ids", "must be texts of 1 to 64 characters")
    return found


ROUTES = [
    web.post("/hooks/lifecycle/pane-died", post_pane_died),
    web.post("/hooks/lifecycle/session-closed", post_session_closed),
    web.post("/hooks/lifecycle/session-renamed", post_session_renamed),
    web.post("/hooks/lifecycle/window-renamed", post_window_renamed),
    web.post("/hooks/lifecycle/client-detached", post_client_detached),
]
