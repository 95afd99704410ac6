"""Launches: an agent brought up in a pane that runs our launcher, whether that is new or one of ours again.

The launcher asks what to become; the pane becomes a peer's and is written down as ours, on the disk; only then is the
launcher told. A start is watched for a moment: what ends at once has failed, is told with what its pane showed, and
leaves nothing behind.
"""

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from repowire import claims, lives, ownership, peers, presence, sessions, survey, tmux, wire
from repowire.agents import runs
from repowire.allowances import Order
from repowire.claims import Claim
from repowire.errors import Refusal, conflict, failed, forbidden, gone
from repowire.login_shell import LoginShell
from repowire.mesh import MESH, Change, Mesh
from repowire.ownership import Owned
from repowire.peers import Peer
from repowire.protocol import clean
from repowire.tmux import Opened, Server

LAUNCHER = Path(__file__).with_name("launcher.py")
LAUNCH_SECONDS = 20.0  # a launcher waits for its order; less than its own patience
LOOKS, LOOK_SECONDS = 10, 0.05  # at a pane whose program has ended, until its exit status is there
SHOWN_LINES = 20  # of a pane whose program ended

# -- model ---------------------------------------------------------------------


class Launch:
    """A start under way: its order, and the process that may have it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.process: tuple[int, float] | None = None  # once it is written down whose it is


class Starts:
    """The starts under way, and the peers that one of them is about."""

    def __init__(self) -> None:
        self.launches: dict[str, Launch] = {}
        self.busy: dict[str, str] = {}  # peer → what is done to it
        self.shell = LoginShell()


class Started(NamedTuple):
    """What came of a start."""

    peer: Peer
    opened: Opened
    warnings: list[str]


STARTS = web.AppKey("starts", Starts)
Window = Callable[[list[str]], Awaitable[Opened]]  # runs a command in a pane

# -- rules -----------------------------------------------------------------------


async def bring_up(
    mesh: Mesh, starts: Starts, spawn_id: str, order: Order, window: Window, again: Peer | None
) -> Started:
    """Have the launcher run in a pane, make that a peer's, and see that the agent stands. What fails leaves no pane."""
    starts.launches[spawn_id] = Launch(order)
    owned = None
    try:
        opened = await window(_launcher(mesh, spawn_id))
        owned = owned_by(mesh, opened)
        if owned is None:
            raise failed("spawn_failed", f"the pane was gone at once; does `{sys.executable} -I -S` run?")
        peer = await _release(mesh, starts, spawn_id, opened, owned, again)
        await settle(mesh, starts, spawn_id, peer, owned, new=again is None)
    except BaseException:
        if owned is None or await _close(owned):
            with mesh.change() as change:
                ownership.disown(change, spawn_id)
        raise
    finally:
        starts.launches.pop(spawn_id, None)
    return Started(peers.load(mesh.db.conn, peer.peer_id), opened, _warnings(starts))


def _launcher(mesh: Mesh, spawn_id: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(mesh.config.home), spawn_id]


def owned_by(mesh: Mesh, opened: Opened) -> Owned | None:
    """The pane with the start of its server and of its process; None where one of them has ended."""
    server_started, started = mesh.procs.started(opened.server_pid), mesh.procs.started(opened.pane_pid)
    if server_started is None or started is None:
        return None
    return Owned(Server(opened.socket, opened.server_pid, server_started), opened.pane_id, opened.pane_pid, started)


async def _release(mesh: Mesh, starts: Starts, spawn_id: str, opened: Opened, owned: Owned, again: Peer | None) -> Peer:
    """Write down whose pane it is, let it stand when its program ends, and tell its launcher what to become."""
    launch = starts.launches[spawn_id]
    try:
        stands = await tmux.remain(owned.server, owned.pane_id, owned.pid, on=True)
    except (tmux.Failed, tmux.Gone, tmux.Hangs) as error:
        raise failed("tmux_failed", f"the pane cannot be kept: {error}") from None
    if not stands:
        raise failed("spawn_failed", "the pane was closed at once, by somebody else")
    with mesh.change() as change:
        peer = admit(change, mesh, launch.order, opened, owned, again)
        own(change, spawn_id, peer, owned)
    claims.watch(mesh, peer)
    await mesh.on_disk()
    launch.process = (owned.pid, owned.started)
    mesh.bus.publish(spawn_id)
    return peer


def own(change: Change, spawn_id: str, peer: Peer, owned: Owned) -> None:
    """The pane is ours, and this peer's."""
    ownership.change_columns(
        change,
        spawn_id,
        peer_id=peer.peer_id,
        phase=ownership.RUNNING,
        tmux=owned.server.socket,
        server_pid=owned.server.pid,
        server_started=owned.server.started,
        pane_id=owned.pane_id,
        pane_pid=owned.pid,
        pane_started=owned.started,
        remains=1,
    )
    change.record("spawn.opened", peer_id=peer.peer_id, spawn_id=spawn_id, pane_id=owned.pane_id)


def admit(change: Change, mesh: Mesh, order: Order, opened: Opened, owned: Owned, again: Peer | None) -> Peer:
    """The peer of a pane that is about to run its agent: a new one, or the one that was."""
    proved = peers.load(change.db, again.peer_id) if again else None  # as it is since its last agent ended
    metadata: dict[str, Any] = {} if runs.RUNS[order.backend].tells else {"repowire_cli_fallback": True}
    goes_on = {"session": order.session, "transcript": order.transcript} if order.session else {}
    if order.session:  # nobody else may go on with it from now on, whether it says of itself which it lives in or not
        metadata["hook_session_id"] = order.session
    claim = Claim(
        name=order.name,
        backend=order.backend,
        role=order.role,
        circle=order.circle,
        path=order.folder.path,
        tmux_session=f"{opened.session}:{opened.window}",
        pane_id=owned.pane_id,
        pane_server=sessions.server_name(*owned.server),
        agent_pid=owned.pid,
        agent_started=owned.started,
        turn_state="pending_first_turn",
        metadata=metadata,
    )
    peer, _ = claims.register(change, claim, circles=mesh.config.mesh.circles, connected=True, proved=proved)
    place = {"tmux": owned.server.socket, "server_pid": owned.server.pid, "server_started": owned.server.started}
    ways = {"pane_id": owned.pane_id, "inbox": None, "inbox_token": None, "registry": None}
    sessions.bind(change, peer.peer_id, **place, **ways, **goes_on)
    return peer


async def settle(mesh: Mesh, starts: Starts, spawn_id: str, peer: Peer, owned: Owned, *, new: bool) -> None:
    """Watch it for a moment, then leave the pane to its user. Raises `spawn_failed` when its program ends."""
    ends_at = mesh.clock.now() + mesh.config.spawn.settle_seconds
    with mesh.bus.listen("process.ended", peer.peer_id) as nudge:
        while mesh.procs.alive(owned.pid, owned.started):
            known = peers.find(mesh.db.conn, peer.peer_id)
            left = ends_at - mesh.clock.now()
            if left <= 0 or known is None or known.turn_state != "pending_first_turn":
                break  # its hooks speak of it, or it has stood long enough
            if not await nudge.wait(left):
                break
    if mesh.procs.alive(owned.pid, owned.started):
        given_back = False
        with suppress(tmux.Failed, tmux.Gone, tmux.Hangs):  # then it stays as it is until `mend`
            given_back = await tmux.remain(owned.server, owned.pane_id, owned.pid, on=False)
        if mesh.procs.alive(owned.pid, owned.started):
            with mesh.change() as change:
                if given_back:
                    ownership.change_columns(change, spawn_id, remains=0)
                note_registry(change, mesh, peer.peer_id, owned)
            return
    raise await _failure(mesh, starts.launches[spawn_id].order, peer, owned, new=new)


def note_registry(change: Change, mesh: Mesh, peer_id: str, owned: Owned) -> None:
    """Where the agent says how it is, unless its hooks have told; they may have spoken while no daemon was there."""
    peer, known = peers.find(change.db, peer_id), sessions.find(change.db, peer_id)
    if peer is None or known is None or known.registry is not None or peer.agent_pid != owned.pid:
        return
    if registry := survey.registry_of(mesh.procs, peer.backend, owned.pid):
        sessions.bind(change, peer_id, registry=registry)


async def _failure(mesh: Mesh, order: Order, peer: Peer, owned: Owned, *, new: bool) -> Refusal:
    """What is to be said of a program that ended at once. A peer that was made for it is off the list."""
    screen, status = "", None
    with suppress(tmux.Gone, tmux.Hangs):  # its user closed it, or tmux does not answer
        for _ in range(LOOKS):
            screen, status = await tmux.shown(owned.server, owned.pane_id)
            if status is not None:
                break
            # tmux 3.3a at times overhears that a child has ended, and looks when it is told so once more
            mesh.procs.signal(owned.server.pid, owned.server.started, signal.SIGCHLD)
            await mesh.clock.sleep(LOOK_SECONDS)
    lines = [line.rstrip() for line in clean(screen).splitlines() if line.strip()]
    with mesh.change() as change:
        known = peers.find(change.db, peer.peer_id)
        if known is not None and new:
            lives.say(change, known, presence.OFFLINE, "spawn_failed")
            lives.hide(change, known, "spawn_failed", ended_at=change.now)
        change.record("spawn.failed", peer_id=peer.peer_id, status=status)
    how = f" with status {status}" if status is not None else ""
    return failed(
        "spawn_failed",
        f"`{order.line}` ended at once{how}{': ' + _last(lines) if lines else ''}",
        exit_status=status,
        screen="\n".join(lines[-SHOWN_LINES:]),
        command=order.line,
    )


def _last(lines: list[str]) -> str:
    """The last line that is not tmux's own."""
    own = [line for line in lines if not line.startswith("Pane is dead")]
    return (own or lines)[-1][:200]


async def _close(owned: Owned) -> bool:
    """Close a pane whose start did not come off; False when it may be there yet, for `mend` to look at."""
    try:
        await tmux.kill_pane(owned.server, owned.pane_id, owned.pid)
    except tmux.Gone:
        return True
    except (tmux.Failed, tmux.Hangs):
        return False
    return True


def _warnings(starts: Starts) -> list[str]:
    return [f"the PATH is the daemon's own: {starts.shell.trouble}"] if starts.shell.trouble else []


@contextmanager
def busy(starts: Starts, peer: Peer, what: str) -> Iterator[None]:
    """Have the peer to oneself; 409 where something is being done to it already.

    To be begun before the first wait: what was seen of the peer must still be so when it is ended or started.
    """
    if (does := starts.busy.get(peer.peer_id)) is not None:
        error = {"switched": "switch_in_progress"}.get(does, "restart_in_progress")
        raise conflict(error, f"{peer.display_name} is being {does} just now: try again", peer_id=peer.peer_id)
    starts.busy[peer.peer_id] = what
    try:
        yield
    finally:
        del starts.busy[peer.peer_id]


# -- wire ------------------------------------------------------------------------


async def post_launch(request: web.Request) -> web.Response:
    """What a launcher is to become: told to the first process of the pane that was opened for it, and to no other."""
    mesh, starts, spawn_id = request.app[MESH], request.app[STARTS], request.match_info["spawn_id"]
    ends_at = mesh.clock.now() + LAUNCH_SECONDS
    with mesh.bus.listen(spawn_id) as nudge:
        while (launch := starts.launches.get(spawn_id)) is not None and launch.process is None:
            if mesh.bus.closed or not await nudge.wait(max(0.0, ends_at - mesh.clock.now())):
                break
    if launch is None or launch.process is None:
        raise gone("spawn_over", f"nothing is being started as {spawn_id}")
    if mesh.auth.lineage(request)[:1] != [launch.process]:
        raise forbidden("not_your_spawn", "this is told to the pane that was opened for it alone")
    order = launch.order
    return wire.reply(
        {
            "path": order.folder.path,
            "device": order.folder.device,
            "inode": order.folder.inode,
            "program": order.program,
            "command": order.arguments,
            "env": order.environ,
            "unset": list(runs.OF_ANOTHER),
        }
    )


ROUTES = [web.post("/spawn/{spawn_id}/launch", post_launch)]
