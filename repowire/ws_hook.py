"""ws-hook: the hands at the panes; one process a host and home.

The daemon says which panes to serve (`GET /panes/hosted`); for each of them there is a WebSocket, and what comes over
it is pasted into the pane when every gate is open (`gates`), or given back as held with the reason. A delivery is
pasted at most once, whatever dies in between (`journal`), and called injected only when Enter was seen to take it.
"""

import argparse
import asyncio
import fcntl
import json
import logging
import os
import re
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from repowire import __version__, agents, config, gates, protocol
from repowire.async_client import AsyncRepowireClient, Connection, DaemonError, PeerDisconnectedError, RepowireError
from repowire.clock import Clock, SystemClock
from repowire.gates import Seen, Wanted
from repowire.journal import INJECTED, PASTING, REFUSED, Journal
from repowire.procs import Procs
from repowire.tmux import Gone, Hangs, Pane, Server

log = logging.getLogger("repowire")

Json = dict[str, Any]
CODE = re.compile(r"\[repowire ([0-9a-f]{4})\]")
AGAIN_FIRST_SECONDS, AGAIN_MOST_SECONDS = 1.0, 10.0  # looks at a closed gate (wire.md 16, row 15)
SEEN_STEP_SECONDS = 0.02
SEEN_SECONDS = 3.0  # for pasted text to be seen, and for Enter to take it
ENTER_AGAIN_SECONDS, ENTERS = 1.0, 3
UNSETTLED_LOOKS = 20
LEAVE_SECONDS = 5.0  # for a paste that has begun to come to its end, and for what waits to be given back
LINK_FIRST_SECONDS, LINK_MOST_SECONDS = 0.2, 1.0  # between two tries to reach the daemon, which is on this host
WITHOUT_DAEMON_SECONDS = 60.0  # then it ends: the next daemon starts its own
KEEPALIVES_MISSED_SECONDS = 45.0
HELD_ELSEWHERE = 75
FOLDED = "Pasted text"


class Hosted:
    """One pane and its peer."""

    def __init__(self, wanted: Wanted, host: "Host") -> None:
        self.wanted, self.host = wanted, host
        server = Server(wanted.tmux, wanted.server_pid, wanted.server_started)
        self.pane = Pane(server, wanted.pane_id, owner=host.instance)
        self.frames: asyncio.Queue[Json] = asyncio.Queue()
        self.link: Connection | None = None
        self.unsettled: dict[str, tuple[Json, int]] = {}  # pasted, and nobody saw yet what became of it
        self.holding = False
        self.leaving = False  # what was not pasted yet is given back
        self._closed = asyncio.Event()  # some gate is: whoever watches looks again
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Serve the pane until the daemon ends its peer for good."""
        async with asyncio.TaskGroup() as group:
            for work in (self._work(), self._watch()):
                group.create_task(work)
            await self._connected()
            await self._finished()
            raise PeerDisconnectedError(self.wanted.display_name)

    async def _connected(self) -> None:
        """Be connected, again and again; returns when the daemon wants this peer no more."""
        delay = LINK_FIRST_SECONDS
        while True:
            link = self.host.client.connect_as(self._hello(), self.frames.put_nowait)
            try:
                await link.start()
                if link.peer_id != self.wanted.peer_id:
                    log.warning("%s: the daemon gave another identity, so it is left", self.wanted.display_name)
                    return
                self.link, delay = link, LINK_FIRST_SECONDS
                await link.wait_closed()
            except PeerDisconnectedError as ended:
                log.info("%s", ended)
                return
            except RepowireError as exc:
                log.info("%s: %s", self.wanted.display_name, exc)
            finally:
                await link.close()
            await asyncio.sleep(delay)
            delay = min(2 * delay, LINK_MOST_SECONDS)

    async def _finished(self) -> None:
        """What stands in the box is sent off, whatever became of its peer; what came after it is given back."""
        self.leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.frames.join()

    async def leave(self, serving: "asyncio.Task[None]") -> None:
        """The pane is wanted no more: nobody would ask here again, so it ends while the daemon still listens."""
        finishing = asyncio.ensure_future(self._finished())
        try:
            await asyncio.wait([finishing, serving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            finishing.cancel()
            serving.cancel()
            await asyncio.gather(finishing, serving, return_exceptions=True)

    def _hello(self) -> Json:
        wanted = self.wanted
        return {
            "display_name": wanted.display_name,
            "peer_id": wanted.peer_id,
            "pane_id": wanted.pane_id,
            "agent_pid": wanted.agent_pid if wanted.agent_pid > 0 else None,
            "backend": wanted.backend,
            "circle": wanted.circle,
            "path": wanted.path,
            "capabilities": [protocol.RECEIPTS, protocol.DEDUPE],
            "instance": self.host.instance,
            "hosted": True,
            "hook_version": __version__,
        }

    async def _work(self) -> None:
        while True:
            frame = await self.frames.get()
            async with self._turn:
                await self._take(frame)
            self.frames.task_done()

    async def _watch(self) -> None:
        """Only while something is held or unsettled: look again, ever more seldom."""
        while True:
            await self._closed.wait()
            self._closed.clear()
            delay = AGAIN_FIRST_SECONDS
            while self.holding or self.unsettled:
                await asyncio.sleep(delay)
                delay = min(2 * delay, AGAIN_MOST_SECONDS)
                async with self._turn:
                    for delivery_id, (frame, looks) in list(self.unsettled.items()):
                        if await self._settle(frame) or looks >= UNSETTLED_LOOKS:
                            self.unsettled.pop(delivery_id, None)
                        else:
                            self.unsettled[delivery_id] = frame, looks + 1
                    if self.holding and (await self._look()).reason is None:
                        self.holding = False
                        await self._say({"type": "ready"})

    # -- one message ---------------------------------------------------------
    async def _take(self, frame: Json) -> None:
        delivery_id = str(frame.get("delivery_id") or f"broadcast-{secrets.token_hex(6)}")
        entry = self.host.journal.find(delivery_id)
        if entry is not None and entry.state == INJECTED:
            await self._receipt(frame, "injected")
        elif entry is not None:
            if not await self._settle(frame):
                self._unsettled(delivery_id, frame)
        elif self.leaving:
            await self._hold(frame, gates.PANE_LEFT)
        elif reason := (seen := await self._look(now=frame.get("now") is True)).reason:
            await self._hold(frame, reason)
        else:
            await self._paste(frame, delivery_id, seen)

    async def _paste(self, frame: Json, delivery_id: str, seen: Seen) -> None:
        assert seen.look is not None
        text = protocol.render(frame)
        self.host.journal.note(delivery_id, PASTING, _code(text))
        try:
            pasted = await self.pane.paste(text, seen.look)
        except (Hangs, Gone) as exc:  # it may be there, or not
            log.warning("%s: %s: %s", self.wanted.display_name, delivery_id, exc)
            self._unsettled(delivery_id, frame)
            return
        if not pasted:
            self.host.journal.note(delivery_id, REFUSED)
            await self._hold(frame, (await self._look()).reason or gates.SCREEN_UNKNOWN)
        elif await self._entered(text, now=frame.get("now") is True):
            await self._injected(frame, delivery_id)
        else:
            self._unsettled(delivery_id, frame)

    async def _entered(self, text: str, *, now: bool) -> bool:
        if agents.row(self.wanted.backend).plain:
            return await self._enter_once(text)
        return await self._enter(text, fresh=True, now=now)

    async def _enter_once(self, text: str) -> bool:
        """Press Enter once, when the screen shows the text: of such a program no more is known, so never again."""
        loop = asyncio.get_running_loop()
        deadline, shows = loop.time() + SEEN_SECONDS, f"repowire {_code(text)}"
        while loop.time() < deadline:
            seen = await self._look(at_work_too=True, now=True)
            if seen.look is None:
                return False
            if seen.reason is None and shows in seen.look.screen:
                try:
                    return await self.pane.enter(seen.look, shows)
                except (Hangs, Gone):
                    return False
            await asyncio.sleep(SEEN_STEP_SECONDS)
        return False

    async def _enter(self, text: str, *, fresh: bool, now: bool = False) -> bool:
        """Press Enter on exactly our text; True when it was seen to leave the box. Again only while it still stands."""
        known = agents.row(self.wanted.backend)
        loop = asyncio.get_running_loop()
        deadline, pressed, pressed_at = loop.time() + SEEN_SECONDS, 0, 0.0
        while loop.time() < deadline:
            seen = await self._look(at_work_too=True, now=now)
            box = seen.screen.box
            if seen.look is None:
                return False
            if known.holds(box, text, fresh):
                due = not pressed or (pressed < ENTERS and loop.time() - pressed_at > ENTER_AGAIN_SECONDS)
                shows = FOLDED if FOLDED in box else f"repowire {_code(text)}"
                if seen.reason == gates.DRAFT and due:
                    try:
                        pressed += await self.pane.enter(seen.look, shows)
                    except (Hangs, Gone):
                        return False
                    pressed_at = loop.time()
            elif pressed and seen.screen.verdict != "unknown" and _code(text) not in box:
                return True
            await asyncio.sleep(SEEN_STEP_SECONDS)
        return False

    async def _settle(self, frame: Json) -> bool:
        """Find out what became of a text that was pasted, or was about to be; False while nobody knows."""
        delivery_id = str(frame.get("delivery_id"))
        entry = self.host.journal.find(delivery_id)
        if entry is None or entry.state != PASTING:
            return True
        fresh_text = protocol.render(frame)
        text = fresh_text.replace(f"repowire {_code(fresh_text)}]", f"repowire {entry.code}]")
        known = agents.row(self.wanted.backend)
        seen = await self._look(at_work_too=True)
        if seen.look is None or seen.reason in (gates.SERVER_CHANGED, gates.PANE_GONE, gates.NOT_THE_AGENT):
            return False
        if known.holds(seen.screen.box, text, False):
            if seen.reason != gates.DRAFT or not await self._enter(text, fresh=False):
                return False
        elif not known.submitted(await self._history(), entry.code):
            return False
        await self._injected(frame, delivery_id)
        return True

    async def _history(self) -> str:
        try:
            return (await self.pane.look(history=True)).screen
        except (Hangs, Gone):
            return ""

    def _unsettled(self, delivery_id: str, frame: Json) -> None:
        self.unsettled[delivery_id] = frame, 0
        self._closed.set()

    async def _look(self, *, at_work_too: bool = False, now: bool = False) -> Seen:
        procs, clock = self.host.procs, self.host.clock
        return await gates.look(self.wanted, self.pane, procs, clock, at_work_too=at_work_too, now=now)

    # -- what the daemon is told -----------------------------------------------
    async def _injected(self, frame: Json, delivery_id: str) -> None:
        self.host.journal.note(delivery_id, INJECTED)
        await self._receipt(frame, "injected")

    async def _hold(self, frame: Json, reason: str) -> None:
        if frame.get("delivery_id") is None:
            log.info("%s: a message without an id found the pane closed: %s", self.wanted.display_name, reason)
            return
        await self._receipt(frame, "held", detail=reason)
        self.holding = True
        self._closed.set()

    async def _receipt(self, frame: Json, status: str, **more: str) -> None:
        if frame.get("delivery_id") is not None:
            said = {"delivery_id": frame["delivery_id"], "message_type": frame["type"], "status": status}
            await self._say({"type": "delivery_ack", **said, **more})

    async def _say(self, frame: Json) -> None:
        if self.link is not None:
            await self.link.send(frame)


def _code(text: str) -> str:
    found = CODE.match(text)
    assert found is not None
    return found[1]


class Host:
    """All panes of a home."""

    def __init__(self, home: Path, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.home, self.clock = home, clock
        self.client = AsyncRepowireClient(home=home, client=session)
        self.session = session
        self.procs = Procs(lambda pid, started: None)
        folder = home / "ws-hook"
        self.journal = Journal(folder / "journal.jsonl")
        self.instance = _lasting_id(folder / "instance")
        self.panes: dict[str, tuple[Hosted, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Follow the daemon's list; ends when no daemon was there for a minute."""
        loop = asyncio.get_running_loop()
        heard_at, delay = loop.time(), LINK_FIRST_SECONDS
        try:
            while loop.time() - heard_at < WITHOUT_DAEMON_SECONDS:
                try:
                    await self._follow()
                except (DaemonError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
                    log.info("the list of panes: %s", exc)
                else:
                    heard_at, delay = loop.time(), LINK_FIRST_SECONDS
                await asyncio.sleep(delay)
                delay = min(2 * delay, LINK_MOST_SECONDS)
        finally:
            await self._serve([])
            self.journal.close()

    async def _follow(self) -> None:
        quiet = aiohttp.ClientTimeout(total=None, sock_read=KEEPALIVES_MISSED_SECONDS)
        async with self.session.get("http://localhost/panes/hosted", timeout=quiet) as reply:
            if reply.status != 200:
                raise DaemonError(f"the daemon answers {reply.status}")
            async for line in reply.content:
                if line.strip():
                    await self._serve([Wanted.of(row) for row in json.loads(line)["panes"]])

    async def _serve(self, wanted: list[Wanted]) -> None:
        """Begin what is new, end what is wanted no more; what the daemon ended stays ended until it leaves the list."""
        now = {one.peer_id: one for one in wanted}
        ended = [name for name, (hosted, _) in self.panes.items() if now.get(name) != hosted.wanted]
        await asyncio.gather(*(hosted.leave(task) for hosted, task in map(self.panes.pop, ended)))
        for name, one in now.items():
            if name not in self.panes:
                hosted = Hosted(one, self)
                self.panes[name] = hosted, asyncio.create_task(_kept(hosted))


async def _kept(hosted: Hosted) -> None:
    name = hosted.wanted.display_name
    try:
        await hosted.run()
    except* PeerDisconnectedError:
        log.info("%s is served no more", name)
    except* (OSError, ValueError) as group:
        log.error("%s: %s", name, group.exceptions)


def _lasting_id(path: Path) -> str:
    """Made once; the journal beside it is what it promises to remember."""
    with suppress(FileNotFoundError):
        if found := path.read_text().strip():
            return found
    made = secrets.token_hex(16)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, made.encode())
    os.close(descriptor)
    return made


async def _hosting(home: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connector = aiohttp.UnixConnector(path=config.socket_address(home / "daemon.sock"), limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        running = asyncio.create_task(Host(home, session, SystemClock()).run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)


def main(argv: list[str]) -> int:
    """`ws-hook [--home DIR]`; 75 when another one serves this home."""
    parser = argparse.ArgumentParser(prog="repowire ws-hook", description=__doc__)
    parser.add_argument("--home", type=Path, default=None)
    home = (parser.parse_args(argv[1:]).home or config.home_of()).absolute()
    os.environ.pop("REPOWIRE_DAEMON_URL", None)  # panes are this host's: its daemon is the one behind the home's socket
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config.prepare_home(home)
    lock = os.open(home / "ws-hook.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return HELD_ELSEWHERE
    asyncio.run(_hosting(home))
    return 0
