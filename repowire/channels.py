"""Channels: native doors of runtimes. Facts are in `agents/`, the I/O is here.

Claude Code's inbox is a Unix socket that takes JSON lines and says nothing back, so what was written to it is `handed`
and not more. While a dialog is open there nothing is written: it would stand in front of the human's decision.
"""

import asyncio
import logging
from pathlib import Path

from repowire import deliveries, lives, mailboxes, peers, presence, receipts, sessions
from repowire.agents import claude_code_hooks as claude
from repowire.agents import files
from repowire.config import socket_address
from repowire.deliveries import Delivery
from repowire.doors import Door
from repowire.errors import Refusal
from repowire.mesh import Mesh
from repowire.peers import Peer
from repowire.protocol import QUEUED, render
from repowire.sessions import Session

log = logging.getLogger("repowire")

CONNECT_SECONDS = 2.0
LOOK_FIRST_SECONDS, LOOK_MOST_SECONDS = 1.0, 10.0  # wire.md 16, row 15
RECEIVER_POLICY = "receiver_policy"  # the runtime would show it to its user alone, or drop it
YEAR_SECONDS = 366 * 86_400.0
WAKES = ("session.bound", "peer.registered", "peer.returned", "peer.retired", "peer.unregistered", "peer.reaped")

ROUTES = ()

# -- rules ---------------------------------------------------------------------


def inbox_of(mesh: Mesh, peer: Peer) -> Session | None:
    """The session with the inbox that takes the peer's messages, if that is its way.

    By its user's settings, or without permission prompts, the runtime may keep messages from its model; its pane is
    the better way then, where it has one.
    """
    session = sessions.find(mesh.db.conn, peer.peer_id)
    if not mesh.config.delivery.inbox or session is None or session.inbox is None:
        return None
    if peer.retired_at is not None or peer.hidden_at is not None or peer.agent_started is None:
        return None
    if peer.pane_id is not None and not claude.takes_messages(session.mode, session.inbound):
        return None
    return session


async def why_held(mesh: Mesh, session: Session) -> str | None:
    """Why nothing may be put in front of the agent now: its user's settings, the runtime's own word, or its hooks'."""
    session = sessions.find(mesh.db.conn, session.peer_id) or session
    if not claude.takes_messages(session.mode, session.inbound):
        return RECEIVER_POLICY
    status = await asyncio.to_thread(_asks_its_user, session.registry)
    if status is None:
        known = presence.evidence(mesh.db.conn, session.peer_id).get(presence.DIALOG)
        status = known is not None and known.fact == "open"
    return "dialog_open" if status else None


def _asks_its_user(registry: str | None) -> bool | None:
    if registry is None:
        return None
    try:
        return claude.waits_for_user(files.text_of(registry))
    except (OSError, RecursionError):
        return None


# -- one channel -----------------------------------------------------------------


class Channel:
    """The worker of one peer's inbox."""

    def __init__(self, mesh: Mesh, session: Session) -> None:
        self.mesh, self.session = mesh, session
        self.peer_id = session.peer_id
        self.door = Door(self.peer_id, f"channel:{session.inbox}", way="channel", receipts=True)
        self.door.watches = True
        self._held = asyncio.Event()

    async def run(self) -> None:
        """Serve the mailbox until the inbox is gone or the task is cancelled."""
        mesh = self.mesh
        before = mesh.doors.of(self.peer_id)
        if before is not None:
            return  # a socket of its own is there; when it closes we are asked again
        mesh.doors.open(self.door)
        self._note("open")
        try:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(self._look())
                await self._serve()
                looking.cancel()
        finally:
            mesh.doors.close(self.door)
            self._note("closed")

    async def _serve(self) -> None:
        try:
            await mailboxes.serve(self.mesh, self.door, self.hand)
        except (ConnectionError, Refusal) as gone:
            log.debug("the inbox of %s: %s", self.peer_id, gone)

    def _note(self, fact: str) -> None:
        with self.mesh.change() as change:
            peer = peers.find(change.db, self.peer_id)
            if peer is not None:
                lives.note(change, peer, presence.CHANNEL, fact, f"channel_{fact}", "channel")
                change.record("channel.opened" if fact == "open" else "channel.closed", peer_id=self.peer_id)

    async def hand(self, delivery: Delivery) -> bool | None:
        """Write one message into the inbox; None when it is held, False when nobody listens there."""
        try:
            reason = await why_held(self.mesh, self.session)
            if reason is not None:
                self._hold(delivery, reason)
                return None
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_unix_connection(socket_address(Path(self.session.inbox or "")))
        except (OSError, TimeoutError) as error:
            self._forget(repr(error))
            return False
        except asyncio.CancelledError:  # its agent has another inbox: not a byte went into this one
            self.door.unwritten.insert(0, delivery)
            raise
        try:
            writer.write(claude.inbox_lines(render(delivery.payload), self.session.inbox_token))
            async with asyncio.timeout(CONNECT_SECONDS):
                await writer.drain()
                writer.write_eof()
                await writer.drain()
        except (OSError, TimeoutError) as error:  # some of it may have arrived
            with self.mesh.change() as change:
                deliveries.unknown(change, delivery, f"the inbox broke off: {error!r}")
            return None
        finally:
            writer.close()
        mailboxes.injected(self.mesh, self.door, delivery.delivery_id)
        return True

    def _hold(self, delivery: Delivery, reason: str) -> None:
        with self.mesh.change() as change:
            receipts.receipt(change, delivery.delivery_id, "held", reason, peer_id=self.peer_id)
        if reason == RECEIVER_POLICY:
            self.door.retry_at = self.mesh.clock.now() + YEAR_SECONDS  # trying does not change it; `_look` will tell
        self._held.set()

    async def _look(self) -> None:
        """While something is held, and only then: look at the gate when something was seen of the peer, and by time."""
        mesh = self.mesh
        while True:
            await self._held.wait()
            seconds = LOOK_FIRST_SECONDS
            with mesh.bus.listen(self.peer_id) as nudge:
                while (reason := await why_held(mesh, self.session)) is not None:
                    if reason == RECEIVER_POLICY:
                        await nudge.wait(60.0)  # it changes with an event of the session alone
                        self._say_of_the_next()
                    elif not await nudge.wait(seconds):
                        seconds = min(2 * seconds, LOOK_MOST_SECONDS)
            self._held.clear()
            self.door.retry_at = 0.0
            self.door.mail()

    def _say_of_the_next(self) -> None:
        """A message that came to the head of the mailbox meanwhile is to be held too, with the reason."""
        first = deliveries.first(self.mesh.db.conn, self.peer_id)
        if first is not None and first.state == QUEUED:
            self.door.retry_at = 0.0
            self.door.mail()

    def _forget(self, why: str) -> None:
        """Nobody listens at the inbox: another way is to be found, until the session says that it has one."""
        log.info("the inbox of %s is gone: %s", self.peer_id, why)
        with self.mesh.change() as change:
            sessions.bind(change, self.peer_id, inbox=None, inbox_token=None)


# -- loop ------------------------------------------------------------------------


def _wanted(mesh: Mesh) -> dict[str, Session]:
    """The sessions that have an inbox to be served, by peer; looks at those alone, since many peers have none."""
    found = (peers.find(mesh.db.conn, peer_id) for peer_id in sessions.with_inbox(mesh.db.conn))
    return {
        peer.peer_id: session
        for peer in found
        if peer is not None and peer.backend == "claude-code" and (session := inbox_of(mesh, peer)) is not None
    }


async def run(mesh: Mesh) -> None:
    """Keep one worker for each peer whose way is its inbox."""
    workers: dict[str, tuple[Channel, asyncio.Task[None]]] = {}
    async with asyncio.TaskGroup() as group:
        with mesh.bus.listen(*WAKES, "socket.opened", "socket.closed") as nudge:
            while True:
                wanted = _wanted(mesh)
                for peer_id, (channel, task) in list(workers.items()):
                    now = wanted.get(peer_id)
                    replaced = mesh.doors.of(peer_id) is not channel.door  # by a socket of its own
                    if task.done() or replaced or now is None or now.inbox != channel.session.inbox:
                        task.cancel()
                        await asyncio.wait([task])
                        del workers[peer_id]
                    else:
                        channel.session = now
                for peer_id, session in wanted.items():
                    if peer_id not in workers:
                        channel = Channel(mesh, session)
                        workers[peer_id] = channel, group.create_task(channel.run(), name=f"channel {peer_id}")
                await nudge.wait(60.0)
