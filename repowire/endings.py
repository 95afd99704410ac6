"""Endings: an agent ended by a request, and the proof without which nothing is ended.

A pane is closed, and a process signalled, only where `ownership` wrote down that we opened it and the kernel and tmux
say that server, pane and process are those very ones. Whatever cannot be proved is left alone: the peer alone goes.
"""

import signal
from typing import Any

from aiohttp import web

from repowire import callers, launches, lives, ownership, peers, presence, reports, tmux, wire
from repowire.errors import Refusal, conflict, failed
from repowire.launches import STARTS, Starts
from repowire.mesh import MESH, Mesh
from repowire.ownership import Owned
from repowire.peers import Peer

HANGUP_SECONDS, TERM_SECONDS, KILL_SECONDS = 3.0, 3.0, 2.0  # what each word is given before the next, harder one

# -- queries -------------------------------------------------------------------


def owned(mesh: Mesh, peer: Peer) -> Owned:
    """The peer's pane, proved to be ours and to live. 409 that says what is lacking."""
    facts: dict[str, Any] = {"peer_id": peer.peer_id, "pane_id": peer.pane_id}
    known = ownership.of_peer(mesh.db.conn, peer.peer_id)
    if known is None or known.pane is None:
        if peer.pane_id is None:
            raise conflict("missing_pane", f"{peer.display_name} lives in no pane that is known", **facts)
        raise conflict(
            "pane_unverified",
            f"pane {peer.pane_id} was not opened by repowire, so it is not ended by it: end {peer.display_name} there",
            **facts,
        )
    pane = known.pane
    if mesh.procs.started(pane.server.pid) != pane.server.started:
        raise conflict("pane_not_live", f"the tmux server of pane {pane.pane_id} has ended", **facts)
    if not mesh.procs.alive(pane.pid, pane.started):
        raise conflict("pane_not_live", f"what was started in pane {pane.pane_id} has ended", **facts)
    if peer.pane_id is not None and peer.pane_id != pane.pane_id:
        raise conflict(
            "pane_metadata_mismatch",
            f"{peer.display_name} says it lives in pane {peer.pane_id}, and repowire opened {pane.pane_id} for it",
            **facts,
        )
    return pane


def behind(mesh: Mesh, peer: Peer, pane: Owned) -> Owned | None:
    """The agent itself, where a script in the pane has started it: it may outlive the script."""
    pid, started = peer.agent_pid, peer.agent_started
    if pid is None or started is None or pid == pane.pid or not mesh.procs.alive(pid, started):
        return None
    return pane._replace(pid=pid, started=started) if (pane.pid, pane.started) in mesh.procs.ancestors(pid) else None


# -- rules ---------------------------------------------------------------------


async def end(mesh: Mesh, peer: Peer, pane: Owned) -> None:
    """Close the pane, and see that its process and the agent end. 500 `kill_failed` when they do not."""
    agent = behind(mesh, peer, pane)
    try:
        await tmux.kill_pane(pane.server, pane.pane_id, pane.pid)
    except tmux.Gone:
        pass  # tmux has it no more; the process is ended below
    except (tmux.Failed, tmux.Hangs) as error:
        raise failed("kill_failed", f"pane {pane.pane_id} could not be closed: {error}") from None
    for process in filter(None, (pane, agent)):
        await end_process(mesh, process, hung_up=True)


async def end_process(mesh: Mesh, pane: Owned, *, hung_up: bool = False) -> None:
    """End the pane's process, with harder and harder words. 500 `kill_failed` when it outlives them."""
    words = ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS))
    if hung_up and await ended(mesh, pane, HANGUP_SECONDS):
        return
    for word, seconds in words:
        try:
            if not mesh.procs.signal(pane.pid, pane.started, word) or await ended(mesh, pane, seconds):
                return
        except PermissionError:
            break
    raise failed("kill_failed", f"process {pane.pid} does not end", pid=pane.pid)


async def ended(mesh: Mesh, pane: Owned, seconds: float) -> bool:
    """Wait until its process has ended; False when it has not in that time."""
    mesh.procs.watch(pane.pid, pane.started)
    with mesh.bus.listen("process.ended") as nudge:
        ends_at = mesh.clock.now() + seconds
        while mesh.procs.alive(pane.pid, pane.started):
            if not await nudge.wait(max(0.0, ends_at - mesh.clock.now())):
                break
    return not mesh.procs.alive(pane.pid, pane.started)


async def kill(mesh: Mesh, starts: Starts, peer: Peer) -> bool | None:
    """End the agent where its pane is proved ours; off the list it goes in any case. None: it was only taken off.

    409 `human` for the person of this machine, whose mail waits there.
    """
    reports.may_end(peer)
    with launches.busy(starts, peer, "ended"):
        return await _kill(mesh, peer)


async def _kill(mesh: Mesh, peer: Peer) -> bool | None:
    killed = None
    try:
        pane = owned(mesh, peer)
    except Refusal:
        pane = None
    if pane is not None:
        await end(mesh, peer, pane)
        killed = True
    known = ownership.of_peer(mesh.db.conn, peer.peer_id)
    with mesh.change() as change:
        if known is not None:
            ownership.disown(change, known.spawn_id)
        peer = peers.load(change.db, peer.peer_id)
        lives.say(change, peer, presence.OFFLINE, "killed", "kill_peer")
        if peer.retired_at is None and killed:
            lives.retire(change, peer, "killed", "kill_peer")
        lives.hide(change, peer, "killed", ended_at=change.now)
    return killed


# -- wire ----------------------------------------------------------------------


def target(mesh: Mesh, request: web.Request, name: str, circle: str | None, from_peer: str | None) -> Peer:
    """Whom the request is about, and may be: an agent ends nobody of another circle."""
    by = callers.spoken_for(mesh, request, from_peer)
    peer = peers.exactly(mesh.db.conn, name, circle)
    if by is not None and (calls := peers.known(mesh.db.conn, by)) is not None:
        peers.check_circle(calls, peer, bypass=False)
    return peer


async def post_kill(request: web.Request) -> web.Response:
    mesh, starts = request.app[MESH], request.app[STARTS]
    body = await wire.read(request)
    name, circle = body.text("peer_identifier", max_chars=128), body.optional_identifier("circle")
    peer = target(mesh, request, name, circle, body.optional_text("from_peer", max_chars=128))
    return wire.reply({"ok": True, "tmux_killed": await kill(mesh, starts, peer)})


ROUTES = [web.post("/kill-peer", post_kill)]
