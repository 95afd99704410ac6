"""Claims: how a newcomer becomes a peer, as itself come back or as a new one.

An identity is taken over only with proof (wire.md 16, row 9): a certificate's nonce, the same pane with the same live
process, or, while nobody holds it, the same backend and path. Otherwise the newcomer is a new peer.
"""

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from repowire import callers, certificates, lives, names, peers, presence, sessions, wire
from repowire.errors import conflict, forbidden, invalid
from repowire.mesh import MESH, Change, Mesh
from repowire.peers import Peer
from repowire.protocol import (
    BACKENDS,
    CIRCLE_SOURCES,
    DEFAULT_CIRCLE,
    HUMAN,
    ORCHESTRATOR,
    ROLES,
    TURN_STATES,
    is_identifier,
)

SESSION_KEYS = ("hook_session_id", "runtime_session_id", "session_id")  # where clients put the runtime's session id

# -- model ---------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a newcomer says of itself, over HTTP or in the first frame of a WebSocket."""

    name: str | None
    backend: str = "claude-code"
    role: str = "agent"
    circle: str | None = None
    circle_source: str | None = None
    path: str | None = None
    machine: str | None = None
    tmux_session: str | None = None
    pane_id: str | None = None
    pane_server: str | None = None  # of which tmux, in the words of `sessions`
    model: str | None = None
    agent_pid: int | None = None
    agent_started: float | None = None  # filled in by the daemon, never by the newcomer
    parent_pid: int | None = None
    turn_state: str | None = None
    peer_id: str | None = None
    certificate: object = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def session(self) -> str | None:
        """The runtime's session id, where the metadata has one."""
        for key in SESSION_KEYS:
            if isinstance(self.metadata.get(key), str) and self.metadata[key]:
                return str(self.metadata[key])
        return None


def folder_name(path: str | None) -> str:
    """A name from the last part of a path: other characters become `-`, runs collapse (wire.md 4)."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path or "").name).strip("-")
    return cleaned[:64] or "peer"


# -- rules ---------------------------------------------------------------------


def register(
    change: Change,
    claim: Claim,
    *,
    circles: str = "one",
    connected: bool = False,
    proved: Peer | None = None,
    awaited: bool = False,
) -> tuple[Peer, bool]:
    """Let a newcomer in, as itself come back or as a new peer; the flag says whether it got its pane.

    `connected` is for a claim by something alive, a socket or a hook, which is online whatever it says, `awaited` for
    one whose way in is only to come, which is offline until then; `proved` is who it was shown to be already. 409
    `peer_retired` when it names an identity that ended and shows no live process.
    """
    circle = _circle(claim, circles)
    peer = proved or _same(change, claim, circle, connected)
    granted = _granted(change, claim, peer)
    assigned, claim = granted == claim, granted
    names.keep_for_human(change, claim.name or folder_name(claim.path), claim.role)
    back = peer is not None
    at_work = peer is not None and _at_work(change, peer, claim)
    moved = peer is None or peer.session != claim.session
    its_own = claim.session is not None and not _anothers_session(change, claim, peer)
    peer = _refresh(change, peer, claim) if peer else _insert(change, claim, circle)
    if claim.pane_id:
        names.displace(change, peer, claim.pane_id)
    if claim.agent_started is not None:
        presence.note(change, peer.peer_id, presence.PROCESS, "alive", f"pid {claim.agent_pid}")
    elif not presence.lives(change.db, peer.peer_id):
        presence.forget(change, peer.peer_id, presence.PROCESS)  # what ended was an earlier life
    # A pane's agent is online when its ws-hook is (wire.md 1.2, initial status).
    held_back = awaited or (claim.pane_id is not None and claim.session is not None and not connected)
    if not at_work and not (held_back and presence.reachable(change.db, peer.peer_id)):
        lives.say(change, peer, presence.OFFLINE if held_back else presence.ONLINE, "registered")
    if claim.session is not None and its_own:
        sessions.remember(change, peer.peer_id, claim.session, anew=moved)
    change.record(
        "peer.returned" if back else "peer.registered",
        peer_id=peer.peer_id,
        name=peer.display_name,
        circle=peer.circle,
        backend=peer.backend,
        path=peer.path,
        pid=claim.agent_pid,
    )
    return peer, assigned


def _granted(change: Change, claim: Claim, peer: Peer | None) -> Claim:
    """The claim, without its pane where a fresh orchestrator keeps that (wire.md 4, pane ownership).

    409 `pane_held` for a child of the live agent in the pane: what an agent starts there is not the pane's agent.
    """
    if claim.pane_id is None:
        return claim
    for holder in peers.in_pane(change.db, claim.pane_id):
        elsewhere = None not in (claim.pane_server, holder.pane_server) and claim.pane_server != holder.pane_server
        if elsewhere or (peer is not None and peer.peer_id == holder.peer_id):
            continue
        there = lives.fresh(change.mesh, holder) or presence.reachable(change.db, holder.peer_id)
        if there and holder.agent_pid is not None and holder.agent_pid == claim.parent_pid:
            raise conflict(
                "pane_held",
                f"pane {claim.pane_id} is {holder.display_name}'s, which started you (pid {holder.agent_pid}):"
                " register without a pane_id",
                pane=claim.pane_id,
                peer_id=holder.peer_id,
            )
        if holder.role == ORCHESTRATOR and lives.fresh(change.mesh, holder):
            return replace(claim, pane_id=None, pane_server=None)
    return claim


def _circle(claim: Claim, circles: str) -> str:
    if claim.circle_source in ("tmux", "fallback") and circles == "one":
        return DEFAULT_CIRCLE  # a tmux session is no circle unless the config says so (wire.md 16, row 28)
    if claim.circle is None and circles == "tmux" and claim.tmux_session and is_identifier(claim.tmux_session):
        return claim.tmux_session
    return claim.circle or DEFAULT_CIRCLE


def _same(change: Change, claim: Claim, circle: str, connected: bool) -> Peer | None:
    """The identity that the newcomer proves to be its own, or None."""
    if claim.peer_id is not None and (peer := peers.find(change.db, claim.peer_id)) is not None:
        return peer if _proved(change, peer, claim) else None
    named = None  # whose session it is in, by its own word: then that is who it is, or nobody
    if claim.session is not None:
        named = peer = peers.by_session(change.db, claim.session, claim.backend)
        if peer is not None and (_same_pane(peer, claim) or not _lived_by_another(change, peer, claim)):
            return peer  # a live one is known by more than its session, which everybody can read
    for peer in peers.at_path(change.db, claim.backend, claim.path):
        if peer.retired_at is not None and claim.agent_started is None:
            continue  # its identity ended, and nothing shows a new life
        if (
            _same_pane(peer, claim)
            or _same_name(change, peer, claim, circle, connected)
            or (named is None and _back_in_pane(change, peer, claim, connected))
        ):
            return peer
    return None


def _proved(change: Change, peer: Peer, claim: Claim) -> bool:
    """Whether a claim by id holds; one that does not leaves an event, and the newcomer becomes a new peer."""
    if peer.retired_at is not None and claim.agent_started is None:
        if change.now - peer.retired_at < peers.TOMBSTONE_SECONDS:
            raise conflict(
                "peer_retired",
                f"{peer.peer_id} ended; register without a peer_id, or with the agent_pid of a live process",
                peer_id=peer.peer_id,
            )
        return False
    if certificates.holder(change.db, claim.certificate, change.now) == peer.peer_id:
        return True
    held = presence.reachable(change.db, peer.peer_id)
    same_place = peer.backend == claim.backend and (not peer.path or not claim.path or peer.path == claim.path)
    if _same_pane(peer, claim) or (same_place and not held):
        return True
    change.record("peer.claim_refused", peer_id=peer.peer_id, reason="held" if held else "another backend or path")
    return False


def _lived_by_another(change: Change, peer: Peer, claim: Claim) -> bool:
    """Whether a socket, or another process than the newcomer's, has the identity now; none has one that ended."""
    if peer.retired_at is not None:
        return False
    if presence.reachable(change.db, peer.peer_id):
        return True
    process = presence.evidence(change.db, peer.peer_id).get(presence.PROCESS)
    same = (peer.agent_pid, peer.agent_started) == (claim.agent_pid, claim.agent_started)
    return process is not None and process.fact == "alive" and claim.agent_started is not None and not same


def _anothers_session(change: Change, claim: Claim, peer: Peer | None) -> bool:
    """Whether another peer lives in it: an agent's helper may say the session of whoever started it."""
    return any(
        other.hidden_at is None and (peer is None or other.peer_id != peer.peer_id)
        for other in peers.in_runtime_session(change.db, claim.session or "", claim.backend)
        if _lived_by_another(change, other, claim)
    )


def _same_pane(peer: Peer, claim: Claim) -> bool:
    return (
        claim.pane_id is not None
        and (peer.pane_id, peer.agent_pid, peer.agent_started) == (claim.pane_id, claim.agent_pid, claim.agent_started)
        and claim.agent_started is not None
    )


def _back_in_pane(change: Change, peer: Peer, claim: Claim, connected: bool) -> bool:
    """The next agent of its kind in the pane and folder of one that is gone (wire.md 16, row 8: pane proof)."""
    return (
        claim.pane_id is not None
        and claim.pane_id in (peer.pane_id, peer.last_pane_id)
        and claim.pane_server == peer.pane_server
        and claim.path is not None
        and not _held(change, peer, connected)
    )


def _at_work(change: Change, peer: Peer, claim: Claim) -> bool:
    """Whether it is busy and the very process comes again: its transport broke, its turn did not."""
    same = (peer.agent_pid, peer.agent_started) == (claim.agent_pid, claim.agent_started)
    return same and claim.agent_started is not None and presence.of(change.db, peer.peer_id) == presence.BUSY


def _same_name(change: Change, peer: Peer, claim: Claim, circle: str, connected: bool) -> bool:
    """A script without a pane comes back under its name while nobody holds it: its mail is its own (wire.md 16, 8)."""
    wanted = claim.name or folder_name(claim.path)
    return (
        (peer.display_name, peer.circle) == (wanted, circle)
        and peer.pane_id is None
        and claim.pane_id is None
        and not _held(change, peer, connected)
        and not _lived_by_another(change, peer, claim)
    )


def _held(change: Change, peer: Peer, connected: bool) -> bool:
    """Whether somebody lives as this peer. One that only registered is no more than a word: a socket may have it."""
    known = presence.evidence(change.db, peer.peer_id)
    if connected and presence.SOCKET not in known and presence.PROCESS not in known:
        return False
    return presence.status(known) != presence.OFFLINE


def _refresh(change: Change, peer: Peer, claim: Claim) -> Peer:
    """The peer that came back: what it says now replaces what it said; its name and circle stay.

    Another process stands where it says it does: the pane of the earlier one is not its own.
    """
    moved = claim.agent_started is not None and claim.agent_started != peer.agent_started
    peers.change_columns(
        change,
        peer.peer_id,
        display_name=names.free_name(change, peer.display_name, peer.circle, peer.peer_id),
        role=peer.role if claim.role == "agent" else claim.role,
        path=claim.path or peer.path,
        machine=claim.machine or peer.machine,
        tmux_session=claim.tmux_session or peer.tmux_session,
        pane_id=claim.pane_id or (None if moved else peer.pane_id),
        pane_server=claim.pane_server or (None if moved else peer.pane_server),
        model=claim.model or peer.model,
        agent_pid=claim.agent_pid or peer.agent_pid,
        agent_started=claim.agent_started if claim.agent_pid else peer.agent_started,
        parent_pid=claim.parent_pid or peer.parent_pid,
        session=claim.session or peer.session,
        metadata=_merged(peer, claim),
        turn_state=claim.turn_state or peer.turn_state,
        last_seen=change.now,
        retired_at=None,
        hidden_at=None,
        ended_at=None,
    )
    if peer.retired_at is not None:
        presence.note(change, peer.peer_id, presence.IDENTITY, "current")
    return peers.load(change.db, peer.peer_id)


def _merged(peer: Peer, claim: Claim) -> str:
    """The old metadata under the new; the old goes where both together are too much."""
    merged = json.dumps({**peer.details, **claim.metadata})
    return merged if len(merged) <= lives.KEPT_METADATA_BYTES else json.dumps(claim.metadata)


def _insert(change: Change, claim: Claim, circle: str) -> Peer:
    return names.insert(
        change,
        claim.name or folder_name(claim.path),
        circle,
        role=claim.role,
        backend=claim.backend,
        path=claim.path,
        machine=claim.machine,
        tmux_session=claim.tmux_session,
        pane_id=claim.pane_id,
        pane_server=claim.pane_server,
        model=claim.model,
        agent_pid=claim.agent_pid,
        agent_started=claim.agent_started,
        parent_pid=claim.parent_pid,
        session=claim.session,
        metadata=json.dumps(claim.metadata),
        turn_state=claim.turn_state,
    )


# -- wire ----------------------------------------------------------------------


def claim_of(mesh: Mesh, body: wire.Body, *, name: str) -> Claim:
    """A claim from a registration or a connect frame; `name` is the field that carries the name."""
    pid = body.optional_whole("agent_pid", least=1)
    path = body.optional_text("path", max_chars=4096)
    return Claim(
        name=body.optional_identifier(name),
        backend=body.choice("backend", BACKENDS, "claude-code") or "claude-code",
        role=body.choice("role", ROLES, "agent") or "agent",
        circle=body.optional_identifier("circle"),
        circle_source=body.choice("circle_source", CIRCLE_SOURCES),
        path=normal_path(path),
        machine=body.optional_text("machine", max_chars=255),
        tmux_session=body.optional_text("tmux_session", max_chars=255),
        pane_id=body.optional_text("pane_id", max_chars=64),
        model=body.optional_text("model", max_chars=255),
        agent_pid=pid,
        agent_started=mesh.procs.started(pid) if pid else None,
        parent_pid=body.optional_whole("parent_pid", least=1),
        turn_state=body.choice("turn_state", TURN_STATES),
        peer_id=body.optional_text("peer_id", max_chars=128),
        certificate=body.fields.get("birth_certificate"),
        metadata=body.record("metadata"),
    )


def normal_path(text: str | None) -> str | None:
    """A path as we keep it."""
    if text and "\0" in text:
        raise invalid("path", "must not contain a NUL character")
    return os.path.normpath(text) if text else None


def certify(change: Change, peer: Peer) -> dict[str, Any]:
    """A birth certificate in the published shape (wire.md 1.2)."""
    return certificates.issue(
        change,
        peer.peer_id,
        {
            "display_name": peer.display_name,
            "backend": peer.backend,
            "project_path": peer.path or "",
            "runtime_session_id": peer.session,
            "pane_id": peer.pane_id,
            "agent_pid": peer.agent_pid,
            "parent_pid": peer.parent_pid,
            "metadata": {"circle": peer.circle, "role": peer.role},
        },
    )


async def post_peer(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    body.text("name", max_chars=64)
    claim = claim_of(mesh, body, name="name")
    may_claim(mesh, request, claim)
    with mesh.change() as change:
        peer, assigned = register(change, claim, circles=mesh.config.mesh.circles)
        certificate = certify(change, peer)
    watch(mesh, peer)
    return wire.reply(
        {
            "ok": True,
            "peer_id": peer.peer_id,
            "display_name": peer.display_name,
            "pane_assigned": assigned,
            "birth_certificate": certificate,
        }
    )


def may_claim(mesh: Mesh, request: web.Request, claim: Claim) -> None:
    """An agent makes neither itself the human, whose role answers approvals (wire.md 16, row 27), nor the human's own
    processes an agent, which could answer none."""
    if claim.role != HUMAN and claim.agent_pid is None:
        return
    caller = callers.calling(mesh, request)
    if caller is None:
        return
    if claim.role == HUMAN:
        raise forbidden("role_human", "an agent cannot register as the human; use role agent or service")
    if claim.agent_pid is not None and not callers.started_by(mesh, request, claim.agent_pid):
        raise forbidden(
            "not_your_process",
            f"you are {caller.display_name}, which did not start process {claim.agent_pid}: name your own, or leave"
            " agent_pid out",
            agent_pid=claim.agent_pid,
        )


def watch(mesh: Mesh, peer: Peer) -> None:
    """Be told when the peer's process ends; it may have ended already."""
    if peer.agent_pid and peer.agent_started is not None and not mesh.procs.watch(peer.agent_pid, peer.agent_started):
        lives.process_ended(mesh, peer.agent_pid, peer.agent_started)


ROUTES = [web.post("/peers", post_peer), web.post("/peer/register", post_peer)]
