"""kill -9 at any moment: what was answered with a 2xx arrives once, in its order, whoever was killed meanwhile.

The seed of every run is printed; `REPOWIRE_TEST_SEED` repeats one.
"""

import asyncio
import itertools
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from conftest import DEADLINE_SECONDS, Live, until_async

from repowire import connection
from repowire.async_client import (
    AsyncRepowireClient,
    Connection,
    DaemonConnectionError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Message,
)
from repowire.config import read_lock
from repowire.ledger import Ledger

pytestmark = pytest.mark.live

KILLS = 20
NAMES = ("ann", "ben", "cat")
SENDERS = 4
SETTLE_SECONDS = 30.0
REPLY = "[ack #"


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("REPOWIRE_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"REPOWIRE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty restarts in half a minute: whoever was cut tries again at once."""
    monkeypatch.setattr(connection, "FIRST_DELAY_SECONDS", 0.02)
    monkeypatch.setattr(connection, "LONGEST_DELAY_SECONDS", 0.2)


class Storm:
    """Peers that answer every ask, senders that never stop, and a daemon that is killed under them."""

    def __init__(self, live: Live, dice: random.Random) -> None:
        self.live, self.dice = live, dice
        self.up = asyncio.Event()
        self.over = False
        self.came: dict[str, list[Message]] = {name: [] for name in NAMES}
        self.connections: dict[str, Connection] = {}
        self.clients = AsyncExitStack()
        self.accepted: dict[str, str] = {}  # text of a notify or ask to its recipient
        self.asked: dict[str, tuple[str, str]] = {}  # correlation id to (text, asker)
        self.refused: list[tuple[str, DaemonHTTPError]] = []
        self.cut: set[str] = set()  # texts of which nobody said what became of them
        self.texts = 0

    # -- the daemon ----------------------------------------------------------
    async def start(self) -> None:
        # what waits for a peer that is away must not be refused here
        arguments = ("--port", str(self.live.port)) if self.live.ready else ()
        await asyncio.to_thread(self.live.start, *arguments, REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER="1000000")
        self.up.set()

    async def kill(self) -> None:
        """In mid-stream: at a moment that the dice choose among the next requests."""
        if self.connections and self.dice.random() < 0.7:
            await until_async(lambda: all(one.connected.is_set() for one in self.connections.values()))
        begun = self.texts + self.dice.randint(0, 80)
        await until_async(lambda: self.texts >= begun)
        for _ in range(self.dice.randint(0, 40)):
            await asyncio.sleep(0)
        self.up.clear()
        await asyncio.to_thread(self.live.kill)

    # -- the peers -----------------------------------------------------------
    async def client(self, *, tcp: bool = False) -> AsyncRepowireClient:
        url = f"http://127.0.0.1:{self.live.port}" if tcp else None
        made = AsyncRepowireClient(url, home=self.live.home, timeout=10.0)
        return await self.clients.enter_async_context(made)

    async def connect(self, name: str, *, tcp: bool = False) -> None:
        def take(message: Message) -> str | None:
            self.came[name].append(message)
            return f"re {message.text}" if message.kind == "ask" else None

        made = (await self.client(tcp=tcp)).connect(name, handler=take, path=f"/srv/{name}")
        self.connections[name] = await self.clients.enter_async_context(made)

    def cut_one(self) -> None:
        """A peer's socket ends under it, without a goodbye."""
        socket = self.connections[self.dice.choice(list(self.connections))]._socket
        if socket is not None and (connection := socket._response.connection) is not None:
            assert connection.transport is not None
            connection.transport.abort()

    # -- the senders ---------------------------------------------------------
    async def send(self, number: int) -> None:
        client, dice = await self.client(tcp=number % 2 == 0), random.Random(self.dice.random())
        for count in itertools.count():
            await self.up.wait()
            if self.over:
                return
            to, kind = dice.choice(NAMES), dice.choice(("notify", "ask"))
            asker = dice.choice([name for name in NAMES if name != to])
            text = f"{kind} {count} of {number} to {to} " + "x" * dice.choice((1, 800, 20_000))
            self.texts += 1
            try:
                if kind == "ask":
                    asked = await client.ask(to, text, from_peer=asker, if_offline="queue")
                    self.asked[asked.correlation_id] = text, asker
                else:
                    await client.notify(to, text, from_peer=asker)
                self.accepted[text] = to
            except (DaemonConnectionError, DaemonTimeoutError):
                self.cut.add(text)
            except DaemonHTTPError as refusal:
                self.refused.append((text, refusal))

    # -- afterwards ----------------------------------------------------------
    def arrived(self, name: str) -> list[str]:
        return [message.text for message in self.came[name] if not message.text.startswith(REPLY)]

    def replies(self, name: str) -> Counter[str]:
        """Of which asks the replies came, by correlation id."""
        return Counter(
            message.text.removeprefix(REPLY).partition(" ")[0]
            for message in self.came[name]
            if message.text.startswith(REPLY)
        )

    def missing(self) -> list[str]:
        here = {name: set(self.arrived(name)) for name in NAMES}
        lost = [text for text, name in self.accepted.items() if text not in here[name]]
        replies = {name: self.replies(name) for name in NAMES}
        return lost + [f"reply {cid}" for cid, (_, asker) in self.asked.items() if cid not in replies[asker]]

    async def all_here(self) -> None:
        with suppress(AssertionError):
            await until_async(lambda: not self.missing(), SETTLE_SECONDS)
        assert not self.missing(), f"{len(self.missing())} are lost: {[text[:60] for text in self.missing()][:5]}"

    def waiting(self) -> int:
        """Deliveries that are neither handed nor answered, by the daemon's own file, once it has stopped."""
        with sqlite3.connect(self.live.home / "state.db") as db:
            states = "('queued', 'held', 'leased', 'unknown')"
            return int(db.execute(f"SELECT count(*) FROM deliveries WHERE state IN {states}").fetchone()[0])

    def check(self) -> None:
        for name in NAMES:
            arrived = self.arrived(name)
            twice = [text[:60] for text, count in Counter(arrived).items() if count > 1]
            assert not twice, f"{name} got twice: {twice[:5]}"
            answered_twice = [cid for cid, count in self.replies(name).items() if count > 1]
            assert not answered_twice, f"{name} got two replies to {answered_twice[:5]}"
            strangers = set(arrived) - {text for text, to in self.accepted.items() if to == name} - self.cut
            assert not strangers, f"{name} got what was never accepted: {[text[:60] for text in strangers][:5]}"
            for number in range(SENDERS):
                counts = [int(text.split()[1]) for text in arrived if text.split()[3] == str(number)]
                assert counts == sorted(counts), f"{name} got those of sender {number} in another order: {counts}"
        for cid, (text, asker) in self.asked.items():
            reply = next(one.text for one in self.came[asker] if one.text.startswith(f"{REPLY}{cid} "))
            assert reply.endswith(f"] re {text}")


async def stop_in_order(storm: Storm) -> None:
    """No new messages; what is under way arrives, and a last restart brings nothing a second time."""
    storm.over = True
    await storm.all_here()
    await asyncio.to_thread(storm.live.kill)
    await storm.start()
    marks = await storm.client()
    for name in NAMES:  # behind everything else in its mailbox
        await marks.notify(name, f"mark 0 of mark to {name} ")
        storm.accepted[f"mark 0 of mark to {name} "] = name
    await storm.all_here()


async def after_all(storm: Storm) -> None:
    """The files that were written under so many kills are whole."""
    await storm.clients.aclose()
    assert await asyncio.to_thread(storm.live.term) == 0, storm.live.stderr()
    storm.check()
    with sqlite3.connect(storm.live.home / "state.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        mark = db.execute("SELECT seq FROM ledger_mark").fetchone()[0]
    assert storm.waiting() == 0
    ledger = Ledger(storm.live.home / "traces", segment_bytes=1 << 30)
    try:
        assert ledger.cut_bytes == 0
        assert ledger.last >= mark
    finally:
        ledger.close()
    assert "Traceback" not in storm.live.stderr()
    assert len(storm.accepted) > 10 * KILLS, "too few messages to prove anything"


async def test_twenty_kills_in_mid_stream(new_live: Callable[..., Live], dice: random.Random) -> None:
    storm = Storm(new_live(), dice)
    await storm.start()
    async with storm.clients, asyncio.TaskGroup() as group:
        for name in NAMES:
            await storm.connect(name, tcp=name == "cat")
        for number in range(SENDERS):
            group.create_task(storm.send(number))
        for _ in range(KILLS):
            if dice.random() < 0.5:
                storm.cut_one()
            await storm.kill()
            await storm.start()
        await stop_in_order(storm)
        await after_all(storm)
    assert not storm.refused, storm.refused[:3]


async def test_twenty_kills_while_half_of_the_time_nobody_is_there(
    new_live: Callable[..., Live], dice: random.Random
) -> None:
    """What was queued for peers that are away survives ten kills, and ten more while it is fetched."""
    storm = Storm(new_live(), dice)
    await storm.start()
    async with storm.clients, asyncio.TaskGroup() as group:
        for name in NAMES:
            await storm.connect(name)
            await storm.connections.pop(name).close()
        for number in range(SENDERS):
            group.create_task(storm.send(number))
        for kills in range(KILLS):
            if kills == KILLS // 2:
                assert not any(storm.came.values())
                for name in NAMES:
                    await storm.connect(name)
            await storm.kill()
            await storm.start()
        await stop_in_order(storm)
        await after_all(storm)
    assert not storm.refused, storm.refused[:3]


STEPS: dict[str, Callable[[Live], Any]] = {
    "the home is there": lambda live: live.home.exists(),
    "the lock is taken": lambda live: (read_lock(live.home) or {}).get("pid") == live.pid,
    "the token is there": lambda live: (live.home / "token").exists(),
    "the database is there": lambda live: (live.home / "state.db").exists(),
    "its log is there": lambda live: (live.home / "state.db-wal").exists(),
    "the ledger is there": lambda live: (live.home / "traces" / "trace-000001.jsonl").exists(),
    "the socket is there": lambda live: (live.home / "daemon.sock").exists(),
    "the port is said": lambda live: (read_lock(live.home) or {}).get("port"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_daemon_that_is_killed_while_it_starts_starts_the_next_time(new_live: Callable[..., Live], step: str) -> None:
    """On a home that it is about to make, when each of its files appears; and what it left hinders nobody."""
    live = new_live()
    live.process = subprocess.Popen(
        live.command("daemon", "--port", "0"), env=live.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not STEPS[step](live):  # without a pause: the moment is short
        assert time.monotonic() < deadline
    live.kill()
    live.start()
    live.post("/peers", name="ann", path="/srv/ann")
    assert [peer["display_name"] for peer in live.get("/peers")["peers"]] == ["ann"]
    assert live.term() == 0
    assert live.stderr() == ""
