"""AsyncRepowireClient: the daemon's routes for asyncio programs, a method each, and `connect`: to become a peer."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from repowire import protocol
from repowire.answers import (
    Acked,
    Ask,
    AskManyAnswer,
    AskManyChild,
    AskManyResult,
    AskManyStatus,
    AskPage,
    AskResult,
    Blocked,
    BroadcastResult,
    ClientPeer,
    DaemonConnectionError,
    DaemonError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Delivery,
    DeliveryPage,
    DeliveryStanding,
    Health,
    Json,
    KillPeerResult,
    LinkedPane,
    MeshEvent,
    MessagePage,
    NotifyResult,
    OrphanPane,
    PeerDisconnectedError,
    PendingAsk,
    PickedUp,
    PickUp,
    QueryResult,
    Question,
    QuestionPage,
    RegisterPeerResult,
    Rehooked,
    RepowireError,
    RestartPeerResult,
    SaidMessage,
    SessionNotifyResult,
    SessionResumeResult,
    SpawnConfigInfo,
    SpawnResult,
    Stage,
    Trace,
    TracedMessage,
    Transcript,
    Turn,
    WaitResult,
    Withdrawn,
    given,
)
from repowire.async_client.asks import Asks
from repowire.async_client.history import History
from repowire.async_client.messages import Messages
from repowire.async_client.panes import Panes
from repowire.async_client.peers import Peers
from repowire.async_client.questions import Questions
from repowire.async_client.spawn import Spawns
from repowire.connection import Connection, Handler, Message, NotTaken

__all__ = [
    "Acked",
    "Ask",
    "AskManyAnswer",
    "AskManyChild",
    "AskManyResult",
    "AskManyStatus",
    "AskPage",
    "AskResult",
    "AsyncRepowireClient",
    "Blocked",
    "BroadcastResult",
    "ClientPeer",
    "Connection",
    "DaemonConnectionError",
    "DaemonError",
    "DaemonHTTPError",
    "DaemonTimeoutError",
    "Delivery",
    "DeliveryPage",
    "DeliveryStanding",
    "Handler",
    "Health",
    "KillPeerResult",
    "LinkedPane",
    "MeshEvent",
    "Message",
    "MessagePage",
    "NotTaken",
    "NotifyResult",
    "OrphanPane",
    "PeerDisconnectedError",
    "PendingAsk",
    "PickUp",
    "PickedUp",
    "QueryResult",
    "Question",
    "QuestionPage",
    "RegisterPeerResult",
    "Rehooked",
    "RepowireError",
    "RestartPeerResult",
    "SaidMessage",
    "SessionNotifyResult",
    "SessionResumeResult",
    "SpawnConfigInfo",
    "SpawnResult",
    "Stage",
    "Trace",
    "TracedMessage",
    "Transcript",
    "Turn",
    "WaitResult",
    "Withdrawn",
]


class AsyncRepowireClient(Peers, Panes, Spawns, Asks, Questions, Messages, History):
    """The routes as coroutines. Over the home's Unix socket unless a URL is given here or in REPOWIRE_DAEMON_URL.

    Durations are seconds, moments ISO-8601; what is None is left to the daemon's default. Raises `DaemonHTTPError` for
    a refusal, `DaemonConnectionError` where nobody answers, and `DaemonTimeoutError`.
    """

    def connect(
        self,
        name: str,
        *,
        handler: Handler,
        circle: str | None = None,
        role: str = "agent",
        backend: str = "claude-code",
        path: str | Path | None = None,
        agent_pid: int | None = None,
        capabilities: tuple[str, ...] = (),
        concurrency: int = 1,
    ) -> Connection:
        """Become a peer: `async with client.connect("build", handler=handle) as peer: await peer.wait_closed()`.

        Messages go to `handler` in order, `concurrency` at a time; what it returns for an ask is the reply."""
        hello: Json = {
            "type": "connect",
            "display_name": name,
            "circle": circle,
            "role": role,
            "backend": backend,
            "path": os.path.abspath(path or os.getcwd()),
            "agent_pid": agent_pid,
            "capabilities": sorted({protocol.RECEIPTS, protocol.DEDUPE, *capabilities}),
            "instance": secrets.token_hex(16),
        }
        return Connection(self, given(hello), handler, concurrency)

    def connect_as(self, hello: Json, frames: Callable[[Json], None]) -> Connection:
        """Be the peer that this first frame says. Messages go to `frames` as they come; receipts are the caller's."""
        return Connection(self, given({"type": "connect", **hello}), lambda message: None, 0, frames)
