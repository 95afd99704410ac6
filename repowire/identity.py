"""Identity: a birth certificate shown again, by who wants to know whether it still is the peer that it was."""

from typing import Any

from aiohttp import web

from repowire import certificates, claims, lives, peers, roster, wire
from repowire.claims import Claim
from repowire.errors import Refusal, conflict, invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import BACKENDS

# -- rules ---------------------------------------------------------------------


def validate(change: Change, mesh: Mesh, certificate: dict[str, Any], caller: Claim) -> Peer:
    """The peer that the certificate is of. One that was only off the list is back on it.

    409 when it is not as it was given out, or not of this caller; 404 when the peer was forgotten. An identity that
    ended comes back with a live process alone.
    """
    given = certificates.envelope(change.db, certificate, change.now)
    if given is None:
        raise _refused("certificate_invalid", "this certificate is unknown, expired or altered: register again")
    peer = peers.load(change.db, given["peer_id"])
    for name, shown, known in (
        ("backend", caller.backend, given["backend"]),
        ("path", caller.path or "", given["project_path"]),
        ("pane_id", caller.pane_id, given["pane_id"]),
        ("agent_pid", caller.agent_pid, given["agent_pid"]),
    ):
        if None not in (shown, known) and shown != known:
            raise _refused("certificate_of_another", f"the certificate is of another {name}: {known!r}", field=name)
    same = caller.agent_pid == peer.agent_pid and caller.agent_pid is not None
    if same and peer.agent_started is not None and caller.agent_started not in (None, peer.agent_started):
        raise _refused("certificate_of_another", "the process is another one of the same number", field="agent_pid")
    ended = peer.retired_at is not None or peer.ended_at is not None
    if ended and caller.agent_started is None:
        raise _refused("peer_retired", f"{peer.peer_id} ended; show the agent_pid of a live process, or register anew")
    if ended or peer.hidden_at is not None:
        return claims.register(change, caller, circles=mesh.config.mesh.circles, proved=peer)[0]
    lives.touch(change, peer.peer_id)
    return peers.load(change.db, peer.peer_id)


def _refused(error: str, hint: str, **facts: Any) -> Refusal:
    return conflict(error, hint, **facts)


# -- wire ----------------------------------------------------------------------


async def post_validate(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    certificate, backend = body.record("birth_certificate"), body.choice("backend", BACKENDS)
    if not body.has("birth_certificate"):
        raise invalid("birth_certificate", "is required")
    if backend is None:
        raise invalid("backend", "is required")
    pid = body.optional_whole("agent_pid", least=1)
    caller = Claim(
        name=None,
        backend=backend,
        path=claims.normal_path(body.optional_text("path", max_chars=4096)),
        pane_id=body.optional_text("pane_id", max_chars=64),
        agent_pid=pid,
        agent_started=mesh.procs.started(pid) if pid else None,
    )
    with mesh.change() as change:
        peer = validate(change, mesh, certificate, caller)
    claims.watch(mesh, peer)
    shown = request.app[roster.ROSTER].of(peer).json(mesh.clock.now())
    head = wire.reply({"ok": True, "peer_id": peer.peer_id, "display_name": peer.display_name}).body
    assert isinstance(head, bytes)
    return wire.raw(head[:-1] + b', "peer": ' + shown + b"}")


ROUTES = [web.post("/peers/identity/validate", post_validate)]
