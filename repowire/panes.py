"""Panes: which panes the host's ws-hook shall serve, and that there is one while any shall.

Nothing is stored: a pane is wanted while its peer lives in it and no better way leads there. `GET /panes/hosted` says
so anew at each change, so either side may restart and they agree again (wire.md 16, row 32).
"""

import asyncio
import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import web

from repowire import callers, channels, deliveries, peers, sessions
from repowire.errors import forbidden
from repowire.mesh import MESH, Mesh
from repowire.procs import Process

log = logging.getLogger("repowire")

KEEPALIVE_SECONDS = 15.0
HELD_ELSEWHERE = 75  # ws-hook's exit code when another one serves this home: it will open the stream
AGAIN_FIRST_SECONDS, AGAIN_MOST_SECONDS = 1.0, 30.0
STOP_SECONDS = 2.0
LEAVE_SECONDS = 10.0  # three times what a paste may take, see ws_hook
SETTLE_SECONDS = 45.0  # for a ws-hook that was killed to be there again and to say what became of what it took
WAKES = (
    "session.bound",
    "peer.registered",
    "peer.returned",
    "peer.retired",
    "peer.unregistered",
    "peer.reaped",
    "peer.displaced",
    "peer.changed",
    "channel.opened",
    "channel.closed",
    "pane.unlinked",
)


def _instance(home: Path) -> str:
    """By which ws-hook calls itself; nothing where there was none yet."""
    try:
        return (home / "ws-hook" / "instance").read_text().strip()
    except FileNotFoundError:
        return ""


def _log(home: Path) -> BinaryIO:
    """The home's ws-hook.log, for its owner alone."""
    descriptor = os.open(home / "ws-hook.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return open(descriptor, "ab")


class Hosts:
    """The ws-hooks that follow the stream now; more than one only while one takes over from another."""

    def __init__(self) -> None:
        self.following: dict[int, Process | None] = {}  # by stream: the process at its other end, where that is known
        self.hurried = False  # one is wanted at once, however often it ended before
        self.mending = asyncio.Lock()  # one rehook after the other: the second finds what the first did
        self._again: dict[str, int] = {}
        self._owing: dict[str, float] = {}  # peers that ws-hook left without a receipt: since when, monotonic seconds

    def let_go_of_the_dead(self, mesh: Mesh) -> None:
        """A stream that nobody reads any more ends only when it is written to; its reader's end is known before."""
        for stream, process in list(self.following.items()):
            if process is not None and not mesh.procs.alive(*process):
                del self.following[stream]

    def owing(self, mesh: Mesh) -> set[str]:
        """The peers that a ws-hook may tell more of: it knows what it took, and the next one reads that too."""
        owing = deliveries.owing(mesh.db.conn, f"instance:{_instance(mesh.config.home)}")
        now = time.monotonic()
        gone = {one for one in owing if (door := mesh.doors.of(one)) is None or not door.hosted}
        self._owing = {one: self._owing.get(one, now) for one in owing if one in gone or one in self._owing}
        return {one for one, since in self._owing.items() if now - since < SETTLE_SECONDS}

    def again(self, peer_id: str) -> int:
        """How often its pane was asked to be served anew; a row that differs in this is served from the start."""
        return self._again.get(peer_id, 0)

    def serve_again(self, mesh: Mesh, peer_id: str) -> None:
        """Have the peer's pane served anew, by a ws-hook that is started now if there is none."""
        self._again[peer_id] = self.again(peer_id) + 1
        self.hurried = True
        mesh.bus.publish("pane.again", "pane.host")


HOSTS = web.AppKey("hosts", Hosts)

# -- rules -----------------------------------------------------------------------


def wanted(mesh: Mesh, hosts: Hosts) -> list[dict[str, Any]]:
    """The panes to be served, with all that proves that a pane is still the one that was meant."""
    found, db, owing = [], mesh.db.conn, hosts.owing(mesh)
    for peer in filter(None, (peers.find(db, peer_id) for peer_id in sessions.with_pane(db))):
        if (
            peer.pane_id is None
            or peer.pane_server is None
            or peer.retired_at is not None
            or peer.hidden_at is not None
        ):
            continue
        session = sessions.find(mesh.db.conn, peer.peer_id)
        if session is None or session.tmux is None:
            continue
        elsewhere = channels.inbox_of(mesh, peer) is not None
        if is_left(mesh, peer.peer_id, elsewhere=elsewhere, owing=peer.peer_id in owing):
            continue
        found.append(
            {
                "peer_id": peer.peer_id,
                "display_name": peer.display_name,
                "backend": peer.backend,
                "circle": peer.circle,
                "path": peer.path,
                "pane_id": peer.pane_id,
                "tmux": session.tmux,
                "server_pid": session.server_pid,
                "server_started": session.server_started,
                "agent_pid": peer.agent_pid,
                "agent_started": peer.agent_started,
                "registry": session.registry,
                "again": hosts.again(peer.peer_id),
            }
        )
    return found


def is_left(mesh: Mesh, peer_id: str, *, elsewhere: bool, owing: bool) -> bool:
    """Whether a pane is wanted no more, since its peer is reached elsewhere.

    It is served until what was sent there is receipted: of a ws-hook that left nobody would hear what became of it. One
    that was killed meanwhile, or whose daemon was, is to come again for that. Not for ever, since what a pane swallowed
    has no receipt; it is `unknown` in the end.
    """
    door = mesh.doors.of(peer_id)
    if door is None or not door.hosted:
        return elsewhere and not owing
    if not elsewhere:
        door.go_on()
        return False
    drained = door.drain(partial(mesh.bus.publish, "pane.again"), LEAVE_SECONDS)
    if drained and time.monotonic() > door.drain_until + LEAVE_SECONDS and door.cut is not None:
        door.cut()  # it was told to leave and is still there, so it hangs; the inbox waits for its place
    return drained


# -- loop ------------------------------------------------------------------------


class Keeper:
    """Starts ws-hook with the first pane that is wanted, and again when it ends; ends it with the daemon."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts

    async def run(self, mesh: Mesh) -> None:
        again = AGAIN_FIRST_SECONDS
        with mesh.bus.listen(*WAKES, "pane.host", "process.ended") as nudge:
            while True:
                self.hosts.let_go_of_the_dead(mesh)
                if self.hosts.following or not wanted(mesh, self.hosts):
                    await nudge.wait(60.0)
                    continue
                self.hosts.hurried = False
                started = mesh.clock.now()
                await self._serve(mesh)
                if mesh.clock.now() - started > AGAIN_MOST_SECONDS:
                    again = AGAIN_FIRST_SECONDS
                due = mesh.clock.now() + again
                again = min(2 * again, AGAIN_MOST_SECONDS)
                while not (self.hosts.following or self.hosts.hurried) and (left := due - mesh.clock.now()) > 0:
                    await nudge.wait(left)

    async def _serve(self, mesh: Mesh) -> None:
        """Run one ws-hook to its end. What it says goes into the home's ws-hook.log."""
        home = mesh.config.home
        with _log(home) as said:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "repowire",
                "ws-hook",
                "--home",
                str(home),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=said,
                cwd=home,
                start_new_session=True,
            )
        mesh.announce("pane.host", pid=process.pid, running=True)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await self._ended(process)
        self.hosts.let_go_of_the_dead(mesh)
        mesh.announce("pane.host", pid=process.pid, running=False, code=code)
        if code not in (0, HELD_ELSEWHERE):
            log.warning("ws-hook ended with %d; see %s", code, home / "ws-hook.log")

    @staticmethod
    async def _ended(process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()


# -- wire ------------------------------------------------------------------------


async def get_hosted(request: web.Request) -> web.StreamResponse:
    """The wanted panes as a line of JSON, at once and at each change; an empty line says that we are still here."""
    mesh, hosts = request.app[MESH], request.app[HOSTS]
    if callers.calling(mesh, request) is not None:
        raise forbidden("ours_alone", "this stream is for the host's ws-hook")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-cache"})
    await response.prepare(request)
    follower = next(iter(mesh.auth.lineage(request)), None)
    hosts.following[id(request)] = follower
    if follower is not None:
        mesh.procs.watch(*follower)
    mesh.bus.publish("pane.host")
    told = b""
    try:
        with mesh.bus.listen(*WAKES, "pane.again") as nudge:
            while not mesh.bus.closed:
                line = _line(mesh, hosts)
                await response.write(line if line != told else b"\n")
                told = line
                while await nudge.wait(KEEPALIVE_SECONDS) and not mesh.bus.closed and _line(mesh, hosts) == told:
                    continue
    except ConnectionError:
        pass  # it left
    finally:
        hosts.following.pop(id(request), None)
        mesh.bus.publish("pane.host")
    return response


def _line(mesh: Mesh, hosts: Hosts) -> bytes:
    return json.dumps({"panes": wanted(mesh, hosts)}).encode() + b"\n"


ROUTES = [web.get("/panes/hosted", get_hosted)]
