"""Restarts: an agent ended and gone on with, as the same peer and by its runtime's own session.

What is open for the peer stays its own; what its last life was given and never showed is given to the next. A daemon
that dies in between leaves a pane that the next one closes (`spawn.mend`), and the peer with its mail.
"""

import asyncio
import json
import socket as host
from pathlib import Path
from typing import Any

from aiohttp import web

from repowire import (
    asks,
    callers,
    endings,
    hooks,
    launches,
    mailboxes,
    messages,
    ownership,
    peers,
    presence,
    receipts,
    resumption,
    sessions,
    spawn,
    tmux,
    transcripts,
    wire,
)
from repowire.agents import runs
from repowire.allowances import Order, order_of
from repowire.claims import SESSION_KEYS
from repowire.errors import Refusal, conflict, failed, invalid, not_found
from repowire.launches import STARTS, Started, Starts
from repowire.mesh import MESH, Change, Mesh
from repowire.messages import Note
from repowire.ownership import Owned
from repowire.peers import Peer
from repowire.protocol import MAX_TEXT_CHARS
from repowire.resumption import Resume
from repowire.sessions import Binding, Session
from repowire.settings import STARTABLE
from repowire.tmux import Opened

WRITTEN_SECONDS, LOOK_SECONDS = 3.0, 0.1
OF_A_KIND = (*SESSION_KEYS, "repowire_cli_fallback", "capabilities", "model_details")  # metadata of one kind of agent

# -- rules ---------------------------------------------------------------------


async def restart_order(mesh: Mesh, starts: Starts, peer: Peer, resume: Resume, transcript: str | None) -> Order:
    """What goes on with the peer's session: its command and its profile, if the config still has them."""
    if peer.path is None:
        raise conflict("missing_path", f"where {peer.display_name} works is not known", peer_id=peer.peer_id)
    known = ownership.of_peer(mesh.db.conn, peer.peer_id)
    by_kind = peer.backend in mesh.config.spawn.commands or known is None
    return await order_of(
        mesh.config,
        starts.shell,
        path=peer.path,
        backend=peer.backend if by_kind else None,
        command=None if by_kind or known is None else known.command,
        profile=known.profile if known else None,
        more=resume.arguments,
        session=resume.session,
        transcript=transcript,
        circle=peer.circle,
        role=peer.role,
        name=peer.display_name,
    )


def check_here(peer: Peer) -> None:
    """409 for a peer of another machine, whose panes are not ours to see."""
    here = host.gethostname()
    if peer.machine not in (None, "unknown", here):
        raise conflict(
            "cross_host",
            f"{peer.display_name} lives on {peer.machine}, this is {here}: ask the daemon there",
            peer_machine=peer.machine,
            self_machine=here,
        )


def unresumable(peer: Peer, resume: Resume, why: str, **facts: Any) -> Refusal:
    return conflict(
        "resume_unavailable",
        f"{peer.display_name} cannot be resumed: {why}",
        peer_id=peer.peer_id,
        display_name=peer.display_name,
        runtime_session_id=resume.session,
        resume_mode="resumed",
        resume_warning=resume.warning,
        **facts,
    )


async def check_unheld(mesh: Mesh, peer: Peer, resume: Resume, transcript: str | None, without: int | None) -> None:
    """409 where another process lives in the session."""
    assert resume.session is not None
    held = await resumption.holders(mesh, peer.backend, resume.session, transcript, without)
    if held:
        raise unresumable(
            peer, resume, f"process {held[0]} lives in its session {resume.session}: end that first", holders=held
        )


async def again_in_its_pane(mesh: Mesh, starts: Starts, peer: Peer, pane: Owned, order: Order) -> Started:
    """End what runs in the pane and start it anew there; where its user closes it meanwhile, in a new window."""
    known = ownership.of_peer(mesh.db.conn, peer.peer_id)
    assert known is not None
    last = sessions.find(mesh.db.conn, peer.peer_id)
    if last is not None:
        await written_down(mesh, peer, last)
    with mesh.change() as change:
        about = {"backend": order.backend, "profile": order.profile, "command": order.command}
        ownership.change_columns(change, known.spawn_id, phase=ownership.RESTARTING, remains=1, **about)
    await mesh.on_disk()
    agent = endings.behind(mesh, peer, pane)
    try:
        await tmux.remain(pane.server, pane.pane_id, pane.pid, on=True)
        await endings.end_process(mesh, pane)
        if agent is not None:  # no other one may begin beside it
            await endings.end_process(mesh, agent, hung_up=True)
    except (tmux.Failed, tmux.Gone, tmux.Hangs, Refusal) as error:
        await spawn.mend(mesh, ownership.of_peer(mesh.db.conn, peer.peer_id) or known)
        if isinstance(error, Refusal):
            raise
        raise failed("kill_failed", f"pane {pane.pane_id} cannot be kept: {error}") from None
    if last is not None:
        await hooks.settle_last_life(mesh, peer.peer_id, last)
    if order.backend != peer.backend:
        with mesh.change() as change:
            become(change, peer, order.backend, None)

    async def same_pane(command: list[str]) -> Opened:
        try:
            made = await tmux.respawn(pane.server, pane.pane_id, pane.pid, order.folder.path, command)
        except (tmux.Failed, tmux.Gone):
            made = None
        except tmux.Hangs as error:
            raise failed("tmux_failed", f"the pane cannot be used again: {error}") from None
        return made or await spawn.new_window(pane.server.socket, order, peer, command)

    try:
        return await launches.bring_up(mesh, starts, known.spawn_id, order, same_pane, peer)
    except BaseException:
        if order.backend != peer.backend:  # as it was, so that its session can be gone on with
            with mesh.change() as change:
                become(change, peer, peer.backend, last)
        raise


async def written_down(mesh: Mesh, peer: Peer, last: Session) -> None:
    """Wait a moment for its transcript to hold what it was given just now.

    A prompt stands there a moment after its hook has shown it; an agent that ends in between has read it, and goes on
    without it.
    """
    begun = mesh.clock.now()
    while last.transcript is not None and mesh.clock.now() - begun < WRITTEN_SECONDS:
        given = await mesh.db.read(lambda db: receipts.given_since(db, peer.peer_id, begun - WRITTEN_SECONDS))
        if not given:
            return
        ids = await asyncio.to_thread(transcripts.shown_in, Path(last.transcript), hooks.TAIL_BYTES)
        if all(ids & {one.trace, one.delivery_id} for one in given):
            return
        await mesh.clock.sleep(LOOK_SECONDS)


def become(change: Change, peer: Peer, backend: str, session: Session | None) -> None:
    """The peer is another kind of agent from now on, in this session or in none that is known."""
    kept = {key: value for key, value in peer.details.items() if key not in OF_A_KIND}
    peers.change_columns(
        change,
        peer.peer_id,
        backend=backend,
        session=session.session if session else None,
        model=peer.model if session else None,
        metadata=peer.metadata if session else json.dumps(kept),
    )
    known = dict.fromkeys(("session", "transcript", "mode", "inbox", "inbox_token", "registry", "inbound"))
    facts = {name: getattr(session, name) for name in known} if session else known
    sessions.bind(change, peer.peer_id, **facts)
    change.record("peer.changed", peer_id=peer.peer_id, backend=backend)


async def switched(mesh: Mesh, starts: Starts, peer: Peer, backend: str) -> tuple[Started, Order]:
    """Start another kind of agent in its place, where nothing is in the way of that."""
    if peer.backend == backend:
        raise conflict("same_backend", f"{peer.display_name} is {backend} already", peer_id=peer.peer_id)
    if peer.path is None:
        raise conflict("missing_path", f"where {peer.display_name} works is not known", peer_id=peer.peer_id)
    pane = endings.owned(mesh, peer)
    if waiting := asks.listed(mesh.db.conn, peer.peer_id, "inbound", "open", 50):
        raise conflict(
            "in_flight_asks",
            f"{peer.display_name} has {len(waiting)} open asks, which another kind of agent has not read: have them"
            " answered or declined first",
            peer_id=peer.peer_id,
            open_asks=[one.correlation_id for one in waiting],
        )
    order = await order_of(
        mesh.config,
        starts.shell,
        path=peer.path,
        backend=backend,
        command=None,
        profile=None,
        circle=peer.circle,
        role=peer.role,
        name=peer.display_name,
    )
    return await again_in_its_pane(mesh, starts, peer, pane, order), order


# -- wire ----------------------------------------------------------------------


async def post_restart(request: web.Request) -> web.Response:
    mesh, starts = request.app[MESH], request.app[STARTS]
    body = await wire.read(request, empty_ok=True)
    circle, from_peer = body.optional_identifier("circle"), body.optional_text("from_peer", max_chars=128)
    dry_run, message = body.flag("dry_run"), body.optional_text("message", max_chars=MAX_TEXT_CHARS)
    peer = endings.target(mesh, request, request.match_info["name"], circle, from_peer)
    check_here(peer)
    with launches.busy(starts, peer, "restarted"):
        session, transcript = resumption.place_of(mesh, peer)
        resume = resumption.resume_of(peer.backend, session, transcript)
        pane = endings.owned(mesh, peer)
        if resume.why_not is not None:
            raise unresumable(peer, resume, resume.why_not)
        order = await restart_order(mesh, starts, peer, resume, transcript)
        await check_unheld(mesh, peer, resume, transcript, peer.agent_pid)
        if not dry_run:
            by = spawn.sender(mesh, request)
            peer = (await again_in_its_pane(mesh, starts, peer, pane, order)).peer
            spawn.tell(mesh, by, peer, message)
    return wire.reply(
        {
            "ok": True,
            "status": "restart_available" if dry_run else "restarted",
            "restarted": not dry_run,
            "peer_id": peer.peer_id,
            "display_name": peer.display_name,
            "backend": peer.backend,
            "path": peer.path,
            "circle": peer.circle,
            "tmux_session": peer.tmux_session,
            "resume_mode": "resumed",
            "resume_warning": resume.warning,
            "unsupported_reason": None,
            "command": order.line,
        }
    )


async def post_switch(request: web.Request) -> web.Response:
    mesh, starts = request.app[MESH], request.app[STARTS]
    body = await wire.read(request)
    backend = body.choice("new_backend", STARTABLE)
    if backend is None:
        raise invalid("new_backend", "is required")
    peer = endings.target(mesh, request, request.match_info["name"], request.query.get("circle"), None)
    check_here(peer)
    with launches.busy(starts, peer, "switched"):
        started, order = await switched(mesh, starts, peer, backend)
    return wire.reply(
        {
            "ok": True,
            "display_name": started.peer.display_name,
            "tmux_session": started.peer.tmux_session,
            "old_backend": peer.backend,
            "new_backend": backend,
            "command": order.line,
        }
    )


# -- wire: sessions ----------------------------------------------------------------


def bound(mesh: Mesh, request: web.Request) -> tuple[Binding, Peer]:
    """The session that the path names, and the peer that lives or lived in it."""
    binding = sessions.binding(mesh.db.conn, request.match_info["repowire_session_id"])
    peer = peers.find(mesh.db.conn, binding.peer_id) if binding is not None else None
    if binding is None or peer is None:
        raise not_found("session", request.match_info["repowire_session_id"])
    return binding, peer


def lived_in(mesh: Mesh, binding: Binding, peer: Peer) -> bool:
    """Whether the peer lives in this session now."""
    if peer.retired_at is not None or peer.hidden_at is not None or peer.session != binding.session:
        return False
    return presence.of(mesh.db.conn, peer.peer_id) != presence.OFFLINE or resumption.lives(mesh, peer)


def _conflict(error: str, hint: str, /, **facts: Any) -> Refusal:
    """409 in the published words, which have a `status` of their own."""
    return Refusal(409, error, hint, body={"detail": {"error": error, "hint": hint, **facts}})


async def post_session_notify(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    said = body.optional_text("from_peer", max_chars=128)
    text = body.text("text", max_chars=MAX_TEXT_CHARS)
    bypass = body.flag("bypass_circle", default=True)
    attachments = tuple(body.records("attachments"))
    by = callers.spoken_for(mesh, request, said) or "dashboard"
    binding, peer = bound(mesh, request)
    if not lived_in(mesh, binding, peer):
        raise _conflict(
            "session_executor_unavailable",
            f"nobody lives in this session now: resume it (`repowire session resume {binding.repowire_session_id}`)",
            repowire_session_id=binding.repowire_session_id,
            session_status="ended",
            status="executor_unavailable",
            executor_peer_id=peer.peer_id,
            capability="active_executor",
            message=f"{peer.display_name} is {presence.of(mesh.db.conn, peer.peer_id)}",
        )
    with mesh.change() as change:
        note = Note(by, peer.peer_id, text, bypass_circle=bypass, attachments=attachments)
        delivery, _, _ = messages.notify(change, mesh, note)
    words = messages.standing(await mailboxes.written(mesh, delivery))
    return wire.reply(
        {
            "ok": True,
            "repowire_session_id": binding.repowire_session_id,
            "session_status": "active",
            "capability": "active_executor",
            "executor_peer_id": peer.peer_id,
            "executor_peer_name": peer.display_name,
            **words,
            "hook_delivery": None,
            "delivery_id": delivery.delivery_id,
        }
    )


async def post_session_resume(request: web.Request) -> web.Response:
    mesh, starts = request.app[MESH], request.app[STARTS]
    body = await wire.read(request, empty_ok=True)
    callers.spoken_for(mesh, request, body.optional_text("from_peer", max_chars=128))
    dry_run, profile = body.flag("dry_run", default=True), body.optional_identifier("profile")
    message = body.optional_text("message", max_chars=MAX_TEXT_CHARS)
    binding, peer = bound(mesh, request)
    resume = resumption.resume_of(peer.backend, binding.session, binding.transcript)
    active = lived_in(mesh, binding, peer)
    status, words = _standing(peer, resume, active=active)
    shown = {
        "ok": True,
        "repowire_session_id": binding.repowire_session_id,
        "session_status": "active" if active else "ended",
        "status": status,
        "capability": "resume",
        "message": words,
        "backend": peer.backend,
        "runtime_session_id": binding.session,
        "runtime_source_uri": None if binding.transcript is None else f"file://{binding.transcript}",
        "executor_peer_id": peer.peer_id if active else None,
        "executor_peer_name": peer.display_name if active else None,
        "resume_capability": {"supported": status == "resume_available", "arguments": resume.arguments},
        "action": "inspect",
        "spawned_display_name": None,
        "tmux_session": None,
        "pane_id": None,
    }
    if dry_run:
        return wire.reply(shown)
    if (caller := callers.calling(mesh, request)) is not None:  # as who would end or restart it
        peers.check_circle(caller, peer, bypass=False)
    facts = {key: shown[key] for key in ("repowire_session_id", "session_status", "status", "capability", "message")}
    if active:
        raise _conflict("active_executor", f"{peer.display_name} lives in this session: notify it instead", **facts)
    if status != "resume_available":
        raise _conflict("resume_unavailable", words, **facts, resume_warning=resume.warning)
    check_here(peer)
    with launches.busy(starts, peer, "resumed"):
        started = await _resumed(mesh, starts, binding, peer, resume, profile)
    spawn.tell(mesh, spawn.sender(mesh, request), started.peer, message)
    return wire.reply(
        {
            **shown,
            "session_status": "active",
            "executor_peer_id": started.peer.peer_id,
            "executor_peer_name": started.peer.display_name,
            "action": "spawned",
            "spawned_display_name": started.peer.display_name,
            "tmux_session": started.peer.tmux_session,
            "pane_id": started.opened.pane_id,
        }
    )


def _standing(peer: Peer, resume: Resume, *, active: bool) -> tuple[str, str]:
    if active:
        return "active_executor", f"{peer.display_name} lives in it"
    if peer.backend not in runs.RUNS or not runs.RUNS[peer.backend].resume:
        return "unsupported", resume.why_not or ""
    if resume.why_not is not None or peer.path is None:
        return "binding_unavailable", resume.why_not or f"where {peer.display_name} worked is not known"
    return "resume_available", f"it can be gone on with as {peer.display_name}"


async def _resumed(
    mesh: Mesh, starts: Starts, binding: Binding, peer: Peer, resume: Resume, profile: str | None
) -> Started:
    """Start an agent on the session: as the peer that lived in it, unless that lives in another one by now."""
    elsewhere = presence.of(mesh.db.conn, peer.peer_id) != presence.OFFLINE or resumption.lives(mesh, peer)
    assert peer.path is not None
    order = await order_of(
        mesh.config,
        starts.shell,
        path=peer.path,
        backend=peer.backend,
        command=None,
        profile=profile,
        more=resume.arguments,
        session=binding.session,
        transcript=binding.transcript,
        circle=peer.circle,
        role=peer.role,
        name=None if elsewhere else peer.display_name,
    )
    await check_unheld(mesh, peer, resume, binding.transcript, None)
    if not elsewhere and (last := sessions.find(mesh.db.conn, peer.peer_id)) is not None:
        await hooks.settle_last_life(mesh, peer.peer_id, last)
    return await spawn.start(mesh, starts, order, again=None if elsewhere else peer)


ROUTES = [
    web.post("/peers/{name}/restart", post_restart),
    web.post("/peers/{name}/switch-backend", post_switch),
    web.post("/sessions/{repowire_session_id}/controls/notify", post_session_notify),
    web.post("/sessions/{repowire_session_id}/controls/resume", post_session_resume),
]
