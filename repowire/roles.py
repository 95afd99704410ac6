"""Roles and circles on the wire: who leads a circle, and who moves into one.

One orchestrator at a time: a fresh one keeps the role, a stale one loses it. An agent moves itself alone.

Fresh is who is online or busy and was seen within two heartbeats (`daemon.heartbeat_interval_seconds`): it says so with
a touch, a status or a hook. Taking the role from a fresh one is refused whatever is said.
"""

from sqlite3 import Connection
from typing import Any, NamedTuple

from aiohttp import web

from repowire import callers, lives, names, peers, presence, wire
from repowire.errors import conflict, forbidden, invalid, malformed
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN, ORCHESTRATOR

# -- queries -------------------------------------------------------------------


def holders(db: Connection, circle: str) -> list[Peer]:
    """All that have the role in a circle, who was seen last first."""
    rows = db.execute(
        "SELECT * FROM peers WHERE role = 'orchestrator' AND circle = ? AND hidden_at IS NULL ORDER BY last_seen DESC",
        (circle,),
    )
    return [Peer(*row) for row in rows]


def orchestrator(mesh: Mesh, circle: str) -> dict[str, Any]:
    """Who orchestrates a circle, if anybody does and is fresh, as the wire shows it."""
    found = next((one for one in holders(mesh.db.conn, circle) if lives.fresh(mesh, one)), None)
    return {
        "circle": circle,
        "present": found is not None,
        "peer_id": found.peer_id if found else None,
        "peer_name": found.display_name if found else None,
        "last_seen": wire.moment(found.last_seen) if found else None,
        "stale_after_seconds": lives.stale_after(mesh),
    }


# -- rules ---------------------------------------------------------------------


class Claimed(NamedTuple):
    """What became of a claim to the role."""

    peer: Peer
    already_held: bool
    previous: list[dict[str, Any]]  # who had it, as the answer says it


def claim_role(change: Change, mesh: Mesh, peer: Peer) -> Claimed:
    """Make a peer the orchestrator of its circle; stale holders become agents. Seen just now, whoever claims.

    409 `role_held` while a fresh one has it.
    """
    if peer.hidden_at is not None or peer.retired_at is not None:
        raise conflict("peer_gone", f"{peer.display_name} is not here any more: register first", peer_id=peer.peer_id)
    if peer.role == HUMAN:
        raise conflict("role_fixed", "the human is everywhere already, and stays the human", peer_id=peer.peer_id)
    others = [one for one in holders(change.db, peer.circle) if one.peer_id != peer.peer_id]
    for one in others:
        if lives.fresh(mesh, one):
            raise conflict(
                "role_held",
                f"{one.display_name} is the orchestrator of circle {peer.circle!r} and was seen"
                f" {change.now - one.last_seen:.0f} s ago; it loses the role after {lives.stale_after(mesh):g} s of"
                " silence, or when it is unregistered",
                holder=_shown(change.db, one),
                stale_after_seconds=lives.stale_after(mesh),
            )
    previous = [_shown(change.db, one) for one in others]
    for one in others:
        peers.change_columns(change, one.peer_id, role="agent")
        change.record("peer.changed", peer_id=one.peer_id, role="agent")
    held = peer.role == ORCHESTRATOR
    peers.change_columns(change, peer.peer_id, role=ORCHESTRATOR, last_seen=change.now)
    if not held or others:
        change.record(
            "peer.role_claimed",
            peer_id=peer.peer_id,
            peer_name=peer.display_name,
            role=ORCHESTRATOR,
            circle=peer.circle,
            previous_holders=previous,
        )
    return Claimed(peers.load(change.db, peer.peer_id), held, previous)


def _shown(db: Connection, peer: Peer) -> dict[str, Any]:
    return {
        "peer_id": peer.peer_id,
        "display_name": peer.display_name,
        "status": presence.of(db, peer.peer_id),
        "last_seen": wire.moment(peer.last_seen),
    }


# -- wire ----------------------------------------------------------------------


async def post_claim_role(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    role, name = body.text("role", max_chars=64), body.text("peer_name", max_chars=128)
    circle = body.optional_identifier("circle")
    body.flag("force")  # published; it helps nobody against a fresh holder, and a stale one needs none
    if role != ORCHESTRATOR:
        raise malformed(f"only the role {ORCHESTRATOR} can be claimed", field="role")
    named = callers.spoken_for(mesh, request, name)  # an agent claims for itself alone
    with mesh.change() as change:
        peer = peers.resolve(change.db, named or name, None if named != name else circle)
        claimed = claim_role(change, mesh, peer)
    return wire.reply(
        {
            "ok": True,
            "peer_id": claimed.peer.peer_id,
            "peer_name": claimed.peer.display_name,
            "role": claimed.peer.role,
            "circle": claimed.peer.circle,
            "already_held": claimed.already_held,
            "previous_holders": claimed.previous,
        }
    )


async def get_orchestrator(request: web.Request) -> web.Response:
    return wire.reply(orchestrator(request.app[MESH], request.match_info["name"]))


async def post_circle(request: web.Request) -> web.Response:
    body = await wire.read(request)
    name, circle = body.text("peer_name"), body.optional_identifier("circle")
    if circle is None:
        raise invalid("circle", "is required")
    mesh = request.app[MESH]
    caller = callers.calling(mesh, request)
    with mesh.change() as change:
        if (peer := peers.known(change.db, name)) is not None:
            if caller is not None and caller.peer_id != peer.peer_id:
                raise forbidden("not_your_peer", f"you are {caller.display_name}: an agent moves itself alone")
            names.set_circle(change, peer, circle)
    return wire.reply({"ok": True})


ROUTES = [
    web.post("/peers/circle", post_circle),
    web.post("/peers/claim-role", post_claim_role),
    web.get("/circles/{name}/orchestrator", get_orchestrator),
]
