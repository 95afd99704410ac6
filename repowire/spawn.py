"""Spawn: an agent started in a tmux window of its own, by what the config allows and nothing else.

What is about to be opened is written down before it is, and brought up by `launches`. So a daemon that dies anywhere in
between leaves a launcher that ends by itself, or an agent that is a peer (`ownership`); what is half done is mended.
"""

from aiohttp import web

from repowire import callers, claims, launches, messages, ownership, tmux, wire
from repowire.agents import runs
from repowire.allowances import Order, lines_of, order_of
from repowire.clock import new_id
from repowire.errors import failed, invalid, too_many
from repowire.launches import LAUNCHER, STARTS, Launch, Started, Starts
from repowire.mesh import MESH, Change, Mesh
from repowire.messages import Note
from repowire.ownership import Spawn
from repowire.peers import Peer
from repowire.protocol import DEFAULT_CIRCLE, MAX_TEXT_CHARS
from repowire.tmux import Opened, Server

ROLES = ("agent", "service", "orchestrator")  # the human is nobody's to start
WINDOW_CHARS = 32

# -- rules: starting -------------------------------------------------------------


async def start(mesh: Mesh, starts: Starts, order: Order, *, again: Peer | None = None) -> Started:
    """Start it in a new window; `again`: as a peer that there was. Raises `tmux_failed` and `spawn_failed` (500)."""
    spawn_id = new_id("spawn")
    socket = mesh.config.spawn.tmux_socket or tmux.default_socket()

    async def window(command: list[str]) -> Opened:
        return await new_window(socket, order, again, command)

    starts.launches[spawn_id] = Launch(order)  # before it is written down: `run` mends what nobody is at
    try:
        with mesh.change() as change:
            most = mesh.config.spawn.max_agents
            if ownership.standing(change.db, mesh.procs) >= most:
                raise too_many(
                    "too_many_agents",
                    f"{most} started agents run already; end one, or raise spawn.max_agents",
                    limit=most,
                )
            ownership.open_one(change, _opening(change, spawn_id, order, socket, again))
        await mesh.on_disk()
        return await launches.bring_up(mesh, starts, spawn_id, order, window, again)
    finally:
        starts.launches.pop(spawn_id, None)


def _opening(change: Change, spawn_id: str, order: Order, socket: str, again: Peer | None) -> Spawn:
    return Spawn(
        spawn_id=spawn_id,
        peer_id=again.peer_id if again else None,
        phase=ownership.OPENING,
        backend=order.backend,
        profile=order.profile,
        command=order.command,
        path=order.folder.path,
        tmux=socket,
        server_pid=None,
        server_started=None,
        pane_id=None,
        pane_pid=None,
        pane_started=None,
        remains=1,
        made_at=change.now,
    )


async def new_window(socket: str, order: Order, again: Peer | None, command: list[str]) -> Opened:
    """A window for it; 500 `tmux_failed` when tmux does not open one."""
    session = order.circle.replace(".", "_")  # tmux would do it
    name = again.display_name if again else order.name or claims.folder_name(order.folder.path)
    try:
        return await tmux.open_window(socket, session, name[:WINDOW_CHARS], order.folder.path, command)
    except (tmux.Failed, tmux.Gone, tmux.Hangs) as error:
        raise failed("tmux_failed", f"no window could be opened on {socket}: {error}", socket=socket) from None


# -- loop ------------------------------------------------------------------------


async def run(mesh: Mesh, starts: Starts) -> None:
    """Mend what was left half done, by a daemon that died or for a tmux that hung; forget panes whose program ends."""
    with mesh.bus.listen("process.ended") as nudge:
        while True:
            for spawn in ownership.unsettled(mesh.db.conn):
                if spawn.spawn_id not in starts.launches and spawn.peer_id not in starts.busy:
                    await mend(mesh, spawn)
            for spawn in ownership.ended(mesh.db.conn, mesh.procs):
                with mesh.change() as change:
                    ownership.disown(change, spawn.spawn_id)
            await nudge.wait()


async def mend(mesh: Mesh, spawn: Spawn) -> None:
    """Close the panes of a start that was cut off; give back to its user the pane of one that came off."""
    owned = spawn.pane
    lives_on = owned is not None and mesh.procs.alive(owned.pid, owned.started)
    try:
        for found in await tmux.find(spawn.tmux, LAUNCHER.name, spawn.spawn_id):
            started = mesh.procs.started(found.server_pid)
            server = Server(spawn.tmux, found.server_pid, started or 0.0)
            if owned is not None and lives_on and (found.pane_id, found.pane_pid) == (owned.pane_id, owned.pid):
                await tmux.remain(server, found.pane_id, found.pane_pid, on=False)
            else:
                await tmux.kill_pane(server, found.pane_id, found.pane_pid)
    except (tmux.Failed, tmux.Gone, tmux.Hangs):
        lives_on = lives_on or owned is None  # to be looked at again at the next start
        if lives_on:
            return
    with mesh.change() as change:
        if lives_on:
            ownership.change_columns(change, spawn.spawn_id, phase=ownership.RUNNING, remains=0)
            if owned is not None and spawn.peer_id is not None:
                launches.note_registry(change, mesh, spawn.peer_id, owned)
        else:
            ownership.disown(change, spawn.spawn_id)


# -- wire ------------------------------------------------------------------------


async def get_config(request: web.Request) -> web.Response:
    may = request.app[MESH].config.spawn
    profiles = {
        backend: {
            name: {"args": list(one.get("args", [])), "description": one.get("description")}
            for name, one in known.items()
        }
        for backend, known in may.profiles.items()
    }
    lines = lines_of(request.app[MESH].config)
    return wire.reply(
        {
            "enabled": bool(lines and may.allowed_paths),
            "commands": dict(may.commands),
            "profiles": profiles,
            "allowed_commands": lines,
            "allowed_paths": list(may.allowed_paths),
        }
    )


async def post_spawn(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    started, order = await asked(mesh, request.app[STARTS], body, sender(mesh, request))
    return wire.reply(
        {
            "ok": True,
            "display_name": started.peer.display_name,
            "tmux_session": started.peer.tmux_session,
            "peer_id": started.peer.peer_id,
            "registration_state": "pending_hook" if runs.RUNS[order.backend].tells else "cli_fallback",
            "warnings": started.warnings,
            "pane_id": started.opened.pane_id,
            "command": order.line,
        }
    )


async def asked(mesh: Mesh, starts: Starts, body: wire.Body, by: str) -> tuple[Started, Order]:
    """Start what the fields ask for, and leave it its first message in that peer's name."""
    path = body.text("path", max_chars=4096)
    backend, command = body.optional_text("backend", max_chars=64), body.optional_text("command", max_chars=4096)
    profile, message = body.optional_identifier("profile"), body.optional_text("message", max_chars=MAX_TEXT_CHARS)
    if profile is not None and backend is None:
        raise invalid("profile", "needs a backend")
    order = await order_of(
        mesh.config,
        starts.shell,
        path=path,
        backend=backend,
        command=command,
        profile=profile,
        circle=body.optional_identifier("circle") or DEFAULT_CIRCLE,
        role=body.choice("role", ROLES, "agent"),
        name=body.optional_identifier("name"),
    )
    started = await start(mesh, starts, order)
    tell(mesh, by, started.peer, message)
    return started, order


def sender(mesh: Mesh, request: web.Request) -> str:
    """In whose name the first message is given: the calling agent's, or the human's."""
    return callers.spoken_for(mesh, request, None) or callers.human(mesh).peer_id


def tell(mesh: Mesh, by: str, peer: Peer, message: str | None) -> None:
    """Leave the first message in its mailbox: it is delivered when the agent is ready for it."""
    if message:
        with mesh.change() as change:
            messages.notify(change, mesh, Note(by, peer.peer_id, message, bypass_circle=True))


ROUTES = [
    web.get("/spawn/config", get_config),
    web.post("/spawn", post_spawn),
]
