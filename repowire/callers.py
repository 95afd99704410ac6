"""Callers: on whose behalf a request speaks (wire.md 16, rows 27 and 29).

A caller on the Unix socket whose process descends from a registered agent is that agent, and so is one that an agent
left running, whose environment still names the agent's session. Everybody else who was let in is the human. A guard
against mistakes and confused agents, not a sandbox between programs of one user.
"""

from aiohttp import web

from repowire import names, peers
from repowire.agents import SESSION_VARIABLES
from repowire.auth import caller as door_of
from repowire.errors import forbidden
from repowire.mesh import Mesh
from repowire.peers import Peer
from repowire.procs import DEEPEST


def calling(mesh: Mesh, request: web.Request) -> Peer | None:
    """The agent on whose behalf a Unix socket caller speaks: it was started by that agent. None: the human.

    What was a peer's process stays the peer's until it ends, also when the peer was unregistered, retired or moved on:
    no route that an agent can call makes what it started the human's. 403 where nobody knows who it is: its process was
    gone before we could look, is of another namespace, or hides behind more ancestors than we look at.
    """
    if door_of(request).via != "unix":
        return None
    peer = met(mesh, request)
    if peer is None and not _is_there(mesh, mesh.auth.lineage(request)):
        raise forbidden(
            "unknown_caller",
            "the kernel does not say on whose behalf you call: keep your process there until the answer comes, or use"
            " TCP and the token",
        )
    return peer


def _is_there(mesh: Mesh, line: list[tuple[int, float]]) -> bool:
    """Whether what was read of a caller and its ancestors is all there is: it lives still, after the reading."""
    return 0 < len(line) < DEEPEST and mesh.procs.alive(*line[0])


def met(mesh: Mesh, request: web.Request) -> Peer | None:
    """`calling` for what gives nobody a right: None for the human, and for whom nobody knows."""
    for pid, started in mesh.auth.lineage(request):
        if (peer := of_process(mesh, pid, started)) is not None:
            return peer
    for backend, name in SESSION_VARIABLES.items():
        session = mesh.auth.variable(request, name)
        peer = _of_session(mesh, session, backend) if session else None
        if peer is not None:
            return peer
    return None


def of_process(mesh: Mesh, pid: int, started: float) -> Peer | None:
    """The peer that this very process is, or was last."""
    peer = peers.by_process(mesh.db.conn, pid, started)
    if peer is None and (lived := peers.lived_in(mesh.db.conn, pid, started)):
        peer = lived[-1]
    return peer


def _of_session(mesh: Mesh, session: str, backend: str) -> Peer | None:
    """The peer that lives in this session, or whose living process had it before; a tmux server outlives them."""
    peer = peers.by_session(mesh.db.conn, session, backend)
    if peer is not None and peer.retired_at is None:
        return peer
    for pid, started, peer in peers.lived_with(mesh.db.conn, session, backend):
        if pid is None or started is None:
            if peer.retired_at is None:
                return peer
        elif mesh.procs.alive(pid, started):
            return peer
    return None


def started_by(mesh: Mesh, request: web.Request, pid: int) -> bool:
    """Whether a process is the agent's that calls: from the caller up to the agent's own, or started by one of them."""
    line = []
    for one in mesh.auth.lineage(request):
        line.append(one)
        if of_process(mesh, *one) is not None:
            return any(ancestor in line for ancestor in mesh.procs.ancestors(pid))
    names = [name for name in SESSION_VARIABLES.values() if mesh.auth.variable(request, name)]
    return any(mesh.procs.variable(pid, name) == mesh.auth.variable(request, name) for name in names)


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
