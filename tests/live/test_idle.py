"""A mesh in which nothing happens costs nothing, and a death in it is known at once."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which is Linux's"),
]

IDLE_SECONDS = 3.0
KNOWN_SECONDS = 1.0


def cost(pid: int) -> tuple[int, int]:
    """Clock ticks of CPU, and how often its threads went to sleep and were woken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        switches += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
    return int(fields[11]) + int(fields[12]), switches


@pytest.fixture
def agent() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """`agent()`: a process that does nothing until its stdin ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


async def test_an_idle_mesh_uses_no_cpu(live: Live, agent: Callable[[], subprocess.Popen[bytes]]) -> None:
    """With peers on their sockets, a watched process, queued mail, an open ask, a waiter for it, and a stream."""
    headers = {"Authorization": f"Bearer {live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers) as session:
        sockets = []
        for number in range(20):
            sockets.append(await session.ws_connect("/ws"))
            await sockets[-1].send_json({"type": "connect", "display_name": f"p{number}", "path": f"/srv/{number}"})
            assert (await sockets[-1].receive_json(timeout=DEADLINE_SECONDS))["type"] == "connected"
        live.post("/peers", name="away", path="/srv/away", agent_pid=agent().pid)
        live.post("/notify", to_peer="away", text="later")
        asked = live.post("/ask", to_peer="p0", text="ready?")["correlation_id"]
        waiting = asyncio.create_task(session.post(f"/asks/{asked}/wait", json={"timeout_seconds": 30}))
        events = await session.get("/events/stream", params={"since": "0"})
        await asyncio.sleep(1.5)  # what may be late (ALSO_SYNC_SECONDS) has happened by then
        before = cost(live.pid)
        await asyncio.sleep(IDLE_SECONDS)
        after = cost(live.pid)
        assert after[0] - before[0] <= 1, f"{after[0] - before[0]} ticks of CPU in {IDLE_SECONDS:g} s"
        assert after[1] - before[1] <= 10, f"{after[1] - before[1]} switches in {IDLE_SECONDS:g} s"
        waiting.cancel()
        events.close()


async def death_of(live: Live, watched: subprocess.Popen[bytes], end: Callable[[], Any]) -> float:
    """How many seconds after the end the event came that tells of it."""
    headers = {"Authorization": f"Bearer {live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers) as session:
        events = await session.get("/events/stream")
        peer_id = live.post("/peers", name="ann", path="/srv/ann", agent_pid=watched.pid)["peer_id"]
        began = time.monotonic()
        end()
        while True:
            line = await asyncio.wait_for(events.content.readline(), DEADLINE_SECONDS)
            if line.startswith(b"data: ") and (event := json.loads(line[6:]))["kind"] == "peer.retired":
                assert event["peer_id"] == peer_id
                return time.monotonic() - began


@pytest.mark.parametrize("how", ["it was killed", "it ended by itself"])
async def test_a_dead_agent_is_known_within_a_second(
    live: Live, agent: Callable[[], subprocess.Popen[bytes]], how: str
) -> None:
    """By its pidfd alone: it has no socket, and nobody reaps the zombie."""
    process = agent()
    assert process.stdin is not None
    end = process.kill if how == "it was killed" else process.stdin.close
    assert await death_of(live, process, end) < KNOWN_SECONDS
    assert [peer["status"] for peer in live.get("/peers")["peers"] if peer["display_name"] == "ann"] in (
        [],
        ["offline"],
    )


async def test_a_death_while_the_daemon_was_away_is_known_when_it_is_back(
    live: Live, agent: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = agent()
    live.post("/peers", name="ann", path="/srv/ann", agent_pid=process.pid)
    live.kill()
    process.kill()
    process.wait()
    live.start()
    headers = {"Authorization": f"Bearer {live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers) as session:
        events = await session.get("/events/stream", params={"since": "0"})

        async def told() -> None:
            while b"peer.retired" not in await events.content.readline():
                pass

        await asyncio.wait_for(told(), KNOWN_SECONDS)
        events.close()
