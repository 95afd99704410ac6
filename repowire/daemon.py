"""The daemon: the list of concerns and loops, how they start, serve and stop. A rule in here has lost its way."""

import asyncio
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType

from aiohttp import web

from repowire import (
    __version__,
    ask_many,
    asks,
    blocking,
    certificates,
    channels,
    chats,
    claims,
    dead_letters,
    deliveries,
    doctor,
    endings,
    handshakes,
    history,
    holds,
    hooks,
    idempotency,
    identity,
    launches,
    leases,
    lifecycle,
    links,
    lives,
    mailboxes,
    mcp,
    mcp_servers,
    messages,
    openapi,
    ownership,
    panes,
    peers,
    pickups,
    policy,
    presence,
    queries,
    questions,
    rehooks,
    replies,
    reports,
    restarts,
    roles,
    roster,
    sessions,
    sockets,
    spawn,
    succession,
    tool_gates,
    traces,
    wire,
)
from repowire import mesh as mesh_module
from repowire.agents import SESSION_VARIABLES
from repowire.auth import Auth, check_bind
from repowire.barrier import StoreError
from repowire.bus import Bus
from repowire.clock import Clock, SystemClock
from repowire.config import Config, ConfigError, prepare_home, read_token, socket_address, tcp_token, write_token
from repowire.db import Check, Database
from repowire.errors import conflict
from repowire.home_lock import HomeBusy, Lock, lock_home
from repowire.ledger import Ledger, LedgerError
from repowire.mesh import MESH, Mesh, Settling, loop
from repowire.procs import Procs
from repowire.protocol import MAX_BODY_BYTES

log = logging.getLogger("repowire")

TABLES: list[tuple[str, ModuleType]] = [
    ("mesh", mesh_module),
    ("certificates", certificates),
    ("presence", presence),
    ("sessions", sessions),
    ("ownership", ownership),
    ("traces", traces),
    ("idempotency", idempotency),
    ("peers", peers),
    ("deliveries", deliveries),
    ("asks", asks),
    ("ask_many", ask_many),
    ("links", links),
    ("holds", holds),
    ("questions", questions),
]
CONCERNS: list[ModuleType] = [
    ask_many,
    asks,
    blocking,
    chats,
    claims,
    dead_letters,
    doctor,
    holds,
    endings,
    handshakes,
    history,
    hooks,
    identity,
    lifecycle,
    launches,
    links,
    mcp,
    mcp_servers,
    messages,
    openapi,
    panes,
    pickups,
    queries,
    questions,
    rehooks,
    replies,
    reports,
    restarts,
    roles,
    roster,
    spawn,
    tool_gates,
    traces,
]
TICKS: list[ModuleType] = [lives, leases, replies, questions, succession, dead_letters, ask_many, holds]
RECOVERIES: list[Callable[[Mesh], None]] = [
    presence.close_all,
    peers.at_start,
    leases.at_start,
    replies.at_start,
    links.at_start,
    holds.at_start,
    questions.at_start,
]
TOUCHES = frozenset({"/peers/{name}/touch", "/events/chat_delta"})  # a restart may forget them

# Why the daemon may not start: faults of a setting, a file or another daemon, whose text is for people
CANNOT_START = (ConfigError, HomeBusy, StoreError, LedgerError)
BACKLOG = 1024
GC_THRESHOLD = (20_000, 20, 20)  # requests leave few cycles; looking for them every 700 objects costs some 10 % of CPU
SWITCH_SECONDS = 0.001  # the sync thread gets the interpreter back soon after its fdatasync, not after 5 ms
# What asyncio allocates for each `recv`. glibc takes so much from the kernel each time and gives it back, three system
# calls and fresh pages, until one as large was freed; from then on it is kept (mallopt(3), M_MMAP_THRESHOLD).
RECEIVED_BYTES = 256 << 10

STOP = web.AppKey("stop", asyncio.Event)
Loop = Callable[[Mesh], Awaitable[None]]


# -- opening -----------------------------------------------------------------


def open_mesh(
    config: Config,
    clock: Clock | None = None,
    *,
    on_failure: Callable[[BaseException], None] | None = None,
    check: Check | None = None,
) -> Mesh:
    """The stores and edges, opened and brought up to date. The home exists and is ours; `check` has begun before."""
    clock = clock or SystemClock()
    policy.check(config)
    ledger = Ledger(config.traces_dir, segment_bytes=config.ledger.segment_bytes)
    db = Database(
        config.database_path,
        also_sync=[ledger.sync],
        on_failure=on_failure,
        checkpoint_bytes=config.store.checkpoint_bytes,
        checkpoint_seconds=config.store.checkpoint_seconds,
        check=check,
    )
    for concern, module in TABLES:
        db.migrate(concern, module.MIGRATIONS)
    bus = Bus()
    procs = Procs(on_end=partial(_ended, bus))
    mesh = Mesh(clock, config, db, ledger, bus, procs, Auth(tcp_token(config), procs))
    with db.explained():
        ledger.expect(db.conn.execute("SELECT seq FROM ledger_mark").fetchone()[0], clock.now())
        for recover in RECOVERIES:
            recover(mesh)
    return mesh


def _ended(bus: Bus, pid: int, started: float) -> None:
    """A watched process ended: `lives.tick` looks which."""
    bus.publish("process.ended")


def build_app(mesh: Mesh, stop: asyncio.Event | None = None) -> web.Application:
    """Every route of every concern behind the door and the one shape of refusals."""
    settling = Settling(mesh, TOUCHES)
    app = web.Application(middlewares=[wire.refusals(mesh.auth.enter, settling.due)], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(settling.prepare)
    app[MESH] = mesh
    mesh.doors.due.empty = mailboxes.Flush(mesh).begin
    app[panes.HOSTS], app[hooks.CARRIED], app[chats.FINISHED] = panes.Hosts(), hooks.Carried(), chats.Finished()
    app[launches.STARTS] = launches.Starts()
    app[history.READINGS] = history.Readings()
    app[mcp_servers.EDITING] = mcp_servers.Editing()
    app[doctor.KNOWN] = doctor.Known()
    app[roster.ROSTER] = roster.Roster(mesh)
    app[sockets.SOCKETS], app[STOP] = sockets.Sockets(), stop or asyncio.Event()
    app.on_shutdown.append(_let_go)
    for concern in CONCERNS:
        app.add_routes(concern.ROUTES)
    app.add_routes([web.post("/shutdown", post_shutdown), web.post("/auth/rotate", post_rotate)])
    _add_dashboard(app)
    return app


async def _let_go(app: web.Application) -> None:
    """Whoever waits in a request answers now, and every peer's socket is closed."""
    app[MESH].bus.close()
    await app[sockets.SOCKETS].close_all()


def _add_dashboard(app: web.Application) -> None:
    """The dashboard's files as they lie: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).parent
    folder = next((one for one in (here / "dashboard", here.parent / "dashboard") if one.is_dir()), None)
    if folder is None:
        return

    async def get_page(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / "index.html", headers=PAGE_HEADERS)

    app.add_routes([web.get("/", get_page), web.get("/dashboard", get_page)])
    static = web.Application()
    static.on_response_prepare.append(_guard_page)
    static.router.add_static("/", folder)
    app.add_subapp("/static/", static)


async def _guard_page(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(PAGE_HEADERS)


PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def post_shutdown(request: web.Request) -> web.Response:
    request.app[STOP].set()
    return wire.reply({"status": "shutting_down"})


async def post_rotate(request: web.Request) -> web.Response:
    """A new token; every socket that came with the old one is closed at once."""
    mesh = request.app[MESH]
    if mesh.config.daemon.auth_token is not None:
        raise conflict("token_in_config", "the token is set in the config (daemon.auth_token): change it there")
    mesh.auth.rotate(mesh.config.home)
    mesh.announce("token.rotated")
    return wire.reply({"ok": True, "token_file": str(mesh.config.token_path)})


# -- serving -----------------------------------------------------------------


async def keep(mesh: Mesh, run: Loop, name: str) -> None:
    """Run a loop for ever: a crash is logged and recorded, and the loop starts again a second later."""
    while True:
        try:
            await run(mesh)
        except Exception as exc:
            log.exception("%s crashed", name)
            mesh.announce("task.crashed", task=name, error=repr(exc))
        await mesh.clock.sleep(1)


def loops(app: web.Application) -> list[tuple[str, Loop]]:
    """What runs beside the requests."""
    ticks: list[tuple[str, Loop]] = [(concern.__name__, partial(_ticking, concern=concern)) for concern in TICKS]
    return [
        ("repowire.sockets", app[sockets.SOCKETS].run),
        ("repowire.channels", channels.run),
        ("repowire.hooks", app[hooks.CARRIED].run),
        ("repowire.panes", panes.Keeper(app[panes.HOSTS]).run),
        ("repowire.spawn", partial(spawn.run, starts=app[launches.STARTS])),
        ("repowire.traces", traces.run),
        *ticks,
    ]


async def _ticking(mesh: Mesh, concern: ModuleType) -> None:
    await loop(mesh, concern.tick, concern.WAKES)


async def serve(config: Config, *, as_json: bool = False, check: Check | None = None) -> int:
    """Serve until SIGTERM, SIGINT or POST /shutdown; returns the exit code.

    Raises ConfigError, HomeBusy (another daemon has this home) and StoreError, whose texts are for people.
    """
    for name in SESSION_VARIABLES.values():  # whoever started us: we and what we start are nobody's
        os.environ.pop(name, None)
    prepare_home(config.home)
    lock = lock_home(config)
    try:
        if config.daemon.auth_token is None and read_token(config.home) is None:
            write_token(config.home)
        check_bind(config.daemon.host, tcp_token(config))
        failed: list[BaseException] = []
        stop = asyncio.Event()

        def disk_failed(error: BaseException) -> None:
            failed.append(error)
            stop.set()

        mesh = open_mesh(config, on_failure=disk_failed, check=check)
        mesh.shared = True
        try:
            await _run(mesh, lock, stop, as_json)
        finally:
            mesh.close()
        return 1 if failed else 0
    finally:
        lock.release()


async def _run(mesh: Mesh, lock: Lock, stop: asyncio.Event, as_json: bool) -> None:
    """Listen, say so, run the loops until told to stop; then stop listening, finish requests, cancel the loops."""
    config = mesh.config
    app = build_app(mesh, stop)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=config.daemon.drain_seconds, handle_signals=False)
    await runner.setup()
    try:
        port = await _listen(runner, config)
        mesh.auth.bind(config.daemon.host, port)
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(keep(mesh, run, name), name=name) for name, run in loops(app)]
            mesh.announce("daemon.started", pid=os.getpid(), port=port, version=__version__)
            await mesh.on_disk()
            lock.write(config.daemon.host, port, mesh.clock.now())
            _say_ready(config, port, as_json)
            await stop.wait()
            await runner.cleanup()
            for task in running:
                task.cancel()
    finally:
        await runner.cleanup()
        with suppress(FileNotFoundError):
            config.socket_path.unlink()
        mesh.announce("daemon.stopped", pid=os.getpid())


async def _listen(runner: web.AppRunner, config: Config) -> int:
    """TCP and the private Unix socket at once; returns the TCP port."""
    with suppress(FileNotFoundError):
        config.socket_path.unlink()  # the home's lock is ours, so a socket file is a dead daemon's
    umask = os.umask(0o177)
    try:
        await web.UnixSite(runner, socket_address(config.socket_path), backlog=BACKLOG).start()
    finally:
        os.umask(umask)
    site = web.TCPSite(runner, config.daemon.host, config.daemon.port, backlog=BACKLOG)
    try:
        await site.start()
    except UnicodeError:
        raise ConfigError(f"cannot listen on {config.daemon.host}: it is no host name; choose another --host") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "it is in use; stop what listens there, or choose another --port"
        elif error.errno in (errno.EACCES, errno.EPERM):
            why = "you may not; choose another --port"
        else:  # an unknown name, or an address of others
            text = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            why = f"{text}; choose another --host"
        shown = f"[{config.daemon.host}]" if ":" in config.daemon.host else config.daemon.host
        raise ConfigError(f"cannot listen on {shown}:{config.daemon.port}: {why}") from None
    server = site._server
    assert isinstance(server, asyncio.Server)
    return int(server.sockets[0].getsockname()[1])


def _say_ready(config: Config, port: int, as_json: bool) -> None:
    """The line that says the store is open and both sockets serve; who is to read it may have left already."""
    host, path = config.daemon.host, str(config.socket_path)
    facts = {"ready": True, "port": port, "host": host, "socket": path, "pid": os.getpid()}
    shown = f"[{host}]" if ":" in host else host
    line = f"repowire {__version__} ready on http://{shown}:{port} and {path} (pid {os.getpid()})"
    if as_json:
        line = json.dumps({**facts, "home": str(config.home), "version": __version__})
    if sys.stdout is not None:  # None: it was closed, and its number may be another file's by now
        with suppress(OSError):  # written past the buffer, which would fail again at exit
            os.write(sys.stdout.fileno(), os.fsencode(f"{line}\n"))


def main(config: Config, *, json: bool = False, check: Check | None = None) -> int:
    """Run the daemon in this process; `check` of its database has begun already."""
    level = config.daemon.log_level.upper()
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    bytes(2 * RECEIVED_BYTES)  # made and freed: see there
    gc.freeze()  # what is imported stays: the collector need not look at it
    gc.set_threshold(*GC_THRESHOLD)
    return asyncio.run(serve(config, as_json=json, check=check))
