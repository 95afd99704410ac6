"""Callers: on whose behalf a request speaks (wire.md 16, rows 27 and 29).

A caller on the Unix socket whose process descends from a registered agent is that agent, and so is one that an agent
left running, whose environment still names the agent's session. Everybody else who was let in is the human. A guard
against mistakes and confused agents, not a sandbox between programs of one user.
"""

from aiohttp import web

from repowire import names, peers
from repowire.agents import SESSION_VARIABLES
from repowire.errors import forbidden
from repowire.mesh import Mesh
from repowire.peers import Peer


def calling(mesh: Mesh, request: web.Request) -> Peer | None:
    """The agent on whose behalf a Unix socket caller speaks: it was started by that agent. None: the human."""
    for pid, started in mesh.auth.lineage(request):
        if (peer := peers.by_process(mesh.db.conn, pid, started)) is not None:
            return peer
    for backend, name in SESSION_VARIABLES.items():
        session = mesh.auth.variable(request, name)
        peer = peers.by_session(mesh.db.conn, session, backend) if session else None
        if peer is not None and peer.retired_at is None:  # a tmux server that it started outlives it
            return peer
    return None


def spoken_for(mesh: Mesh, request: web.Request, named_peer: str | None) -> str | None:
    """The `from_peer` to use: the caller's own where it is an agent (naming another is 403), else what was named."""
    peer = calling(mesh, request)
    if peer is None:
        return named_peer
    if named_peer not in (None, peer.peer_id, peer.display_name):
        raise forbidden(
            "not_your_peer",
            f"you are {peer.display_name} ({peer.peer_id}): leave from_peer out, or name yourself",
            peer_id=peer.peer_id,
        )
    return peer.peer_id


def may_read(mesh: Mesh, request: web.Request, peer: Peer) -> None:
    """403 when one agent would read or take what is another's."""
    reader = calling(mesh, request)
    if reader is not None and reader.peer_id != peer.peer_id:
        raise forbidden("not_your_peer", f"you are {reader.display_name}; this is {peer.display_name}'s")


def human(mesh: Mesh) -> Peer:
    """The human's peer, for a caller who is nobody else."""
    with mesh.change() as change:
        return names.ensure_human(change)
