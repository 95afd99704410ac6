"""The daemon as a process: who gets the home, what a dead one leaves, and how it stops while everybody waits."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live, gone, until, until_async

from repowire.config import read_lock

pytestmark = pytest.mark.live

DRAIN_SECONDS = 5.0
MARGIN_SECONDS = 1.5  # closing the store, on a machine that does other things too


def popen(live: Live, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """`repowire daemon --port 0 --json`, unwatched."""
    return subprocess.Popen(
        live.command("daemon", "--port", "0", "--json", *arguments),
        env={**live.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def clear_refusal(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1, nothing on stdout, one line on stderr with these words."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# -- one home, one daemon ------------------------------------------------------


@pytest.mark.parametrize("before", ["a new home", "a home whose daemon was killed"])
def test_of_several_daemons_at_the_same_moment_one_serves_and_the_others_name_it(
    new_live: Callable[..., Live], before: str
) -> None:
    live = new_live()
    if before != "a new home":
        live.start().kill()
    rivals = [popen(live) for _ in range(4)]
    try:
        until(lambda: sum(one.poll() is not None for one in rivals) == 3, 20)
        (winner,) = [one for one in rivals if one.poll() is None]
        assert winner.stdout is not None
        ready = json.loads(winner.stdout.readline())
        assert (ready["ready"], ready["pid"]) == (True, winner.pid)
        for loser in rivals:
            if loser is not winner:
                out, err = loser.communicate(timeout=DEADLINE_SECONDS)
                assert (loser.returncode, out, err.count("\n")) == (1, "", 1), err
                assert f"pid {winner.pid}," in err
        assert live.cli("peer", "list").returncode == 0
        winner.terminate()
        assert winner.wait(DEADLINE_SECONDS) == 0
    finally:
        for one in rivals:
            if one.poll() is None:
                one.kill()
            one.communicate(timeout=DEADLINE_SECONDS)


def test_what_a_killed_daemon_left_hinders_nobody(live: Live) -> None:
    live.kill()
    assert (live.home / "daemon.sock").is_socket()
    assert (read_lock(live.home) or {})["pid"] == live.pid
    live.start()
    assert live.cli("peer", "list").returncode == 0
    assert live.term() == 0
    assert not (live.home / "daemon.sock").exists()
    assert read_lock(live.home) is None


def test_a_file_where_the_socket_belongs_is_replaced(new_live: Callable[..., Live]) -> None:
    live = new_live()
    live.home.mkdir(mode=0o700)
    (live.home / "daemon.sock").write_text("left by a copy of the home")
    live.start()
    assert live.cli("peer", "list").returncode == 0


def test_a_refused_daemon_leaves_the_first_one_whole(live: Live) -> None:
    clear_refusal(live.cli("daemon", "--port", "0"), f"pid {live.pid},", f"port {live.port}")
    assert live.cli("peer", "list").returncode == 0
    assert live.get("/health")["status"] == "ok"
    assert (read_lock(live.home) or {})["pid"] == live.pid


# -- where it may listen ---------------------------------------------------------


def test_a_port_in_use_is_named_and_the_home_is_free_afterwards(new_live: Callable[..., Live]) -> None:
    live = new_live()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        clear_refusal(live.cli("daemon", "--port", port), port, "in use", "choose another --port")
    assert not (live.home / "daemon.sock").exists()
    live.start("--port", port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_an_address_of_others_is_refused_without_a_token(new_live: Callable[..., Live], host: str) -> None:
    live = new_live()
    clear_refusal(live.cli("daemon", "--port", "0", "--host", host, REPOWIRE_DAEMON__AUTH_TOKEN=""), host, "token")
    assert not (live.home / "daemon.sock").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid", "a..b", "::ffff:192.0.2.1"])
def test_an_address_that_is_not_ours_is_named(new_live: Callable[..., Live], host: str) -> None:
    refused = new_live().cli("daemon", "--port", "0", "--host", host)
    clear_refusal(refused, host, "choose another --host")
    assert "--port" not in refused.stderr
    assert "attempting" not in refused.stderr


def test_a_database_that_another_program_holds_is_told_in_one_line(live: Live) -> None:
    live.term()
    with closing(sqlite3.connect(live.home / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        clear_refusal(live.cli("daemon", "--port", "0"), "state.db", "held by another program")
    live.start()


def test_localhost_is_one_port(new_live: Callable[..., Live]) -> None:
    """It is two addresses, and port 0 would be two ports, of which only one is told."""
    live = new_live().start("--host", "localhost")
    listening = (
        subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
        if Path("/usr/bin/ss").exists()
        else None
    )
    assert live.get("/health")["status"] == "ok"
    if listening is not None:
        ports = {
            line.split()[3].rpartition(":")[2] for line in listening.stdout.splitlines() if f"pid={live.pid}," in line
        }
        assert ports == {str(live.port)}


# -- the ready line --------------------------------------------------------------


@pytest.mark.parametrize("stdout", ["of a reader that left", "closed", "full"])
def test_nobody_may_be_there_to_read_the_ready_line(new_live: Callable[..., Live], stdout: str) -> None:
    """`repowire daemon | head -0`, `>&-`, `>/dev/full`: the daemon serves all the same."""
    live = new_live()
    redirect = {"of a reader that left": "", "closed": ">&-", "full": ">/dev/full"}[stdout]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *live.command("daemon", "--port", "0", "--json")],
        env=live.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.close()
        until(lambda: (read_lock(live.home) or {}).get("port") or process.poll() is not None)
        assert live.cli("peer", "list").returncode == 0
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
    assert said == ""


def test_the_ready_line_for_people(new_live: Callable[..., Live]) -> None:
    live = new_live()
    process = subprocess.Popen(
        live.command("serve", "--port", "0"),
        env=live.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = (read_lock(live.home) or {})["port"]
        assert line.startswith("repowire ")
        assert line.endswith(f" ready on http://127.0.0.1:{port} and {live.home / 'daemon.sock'} (pid {process.pid})\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=DEADLINE_SECONDS) == ("", "")
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# -- stopping --------------------------------------------------------------------


async def ask_of_ben(live: Live, session: aiohttp.ClientSession) -> tuple[aiohttp.ClientWebSocketResponse, str]:
    """A peer on its socket that answers nothing, and an open ask for it."""
    ben = await session.ws_connect("/ws")
    await ben.send_json({"type": "connect", "display_name": "ben", "path": "/srv/ben"})
    assert (await ben.receive_json(timeout=DEADLINE_SECONDS))["type"] == "connected"
    async with session.post("/ask", json={"to_peer": "ben", "text": "ready?"}) as asked:
        assert asked.status == 200
        correlation_id = (await asked.json())["correlation_id"]
    assert (await ben.receive_json(timeout=DEADLINE_SECONDS))["correlation_id"] == correlation_id
    return ben, correlation_id


def session_of(live: Live, traces: aiohttp.TraceConfig | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"http://127.0.0.1:{live.port}",
        headers={"Authorization": f"Bearer {live.token}"},
        trace_configs=[traces] if traces else [],
    )


async def stopped(live: Live, began: float) -> int:
    """Its exit code; it must have come within the drain."""
    assert live.process is not None
    code = await asyncio.to_thread(live.process.wait, DRAIN_SECONDS + 10)
    took = time.monotonic() - began
    assert took < DRAIN_SECONDS + MARGIN_SECONDS, f"{took:.1f} s"
    return code


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "POST /shutdown"])
async def test_a_stop_answers_whoever_waits(live: Live, how: str) -> None:
    sent, traces = asyncio.Semaphore(0), aiohttp.TraceConfig()

    async def on_sent(*about: Any) -> None:
        if about[2].url.path.endswith("/wait"):
            sent.release()

    traces.on_request_chunk_sent.append(on_sent)
    async with session_of(live, traces) as session:
        ben, correlation_id = await ask_of_ben(live, session)
        events = await session.get("/events/stream", params={"since": "0"})
        assert (await events.content.readuntil(b"\n\n")).startswith(b":")
        waiting = [
            asyncio.create_task(session.post(f"/asks/{correlation_id}/wait", json={"timeout_seconds": 55}))
            for _ in range(3)
        ]
        idle = await asyncio.open_connection("127.0.0.1", live.port)  # a connection that says nothing at all
        for _ in waiting:
            await asyncio.wait_for(sent.acquire(), DEADLINE_SECONDS)
        async with session.get("/health") as health:  # the daemon reads in the order of sending: it has them too
            assert health.status == 200
        while b"ask.opened" not in await asyncio.wait_for(events.content.readuntil(b"\n\n"), DEADLINE_SECONDS):
            pass
        began = time.monotonic()
        if how == "POST /shutdown":
            async with session.post("/shutdown") as shutdown:
                assert (shutdown.status, await shutdown.json()) == (200, {"status": "shutting_down"})
        else:
            os.kill(live.pid, getattr(signal, how))
        for answer in await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_SECONDS):
            assert answer.status == 200
            assert (await answer.json())["status"] == "pending"
        goodbye = await ben.receive(timeout=DEADLINE_SECONDS)
        assert (goodbye.type, goodbye.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        await asyncio.wait_for(events.read(), DEADLINE_SECONDS)  # raises unless the stream is ended in order
        assert await stopped(live, began) == 0
        assert time.monotonic() - began < 2, "nobody had to be waited for"
        idle[1].close()
    assert live.stderr() == ""


async def test_a_stop_waits_no_longer_than_the_drain(live: Live) -> None:
    """For sockets that answer no goodbye, streams that are not read, and a body that never ends."""
    _, writer = await asyncio.open_connection("127.0.0.1", live.port)
    head = f"POST /notify HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nAuthorization: Bearer {live.token}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
    await writer.drain()
    async with session_of(live) as session:
        ben, _ = await ask_of_ben(live, session)
        events = await session.get("/events/stream", params={"since": "0"})
        began = time.monotonic()
        os.kill(live.pid, signal.SIGTERM)
        os.kill(live.pid, signal.SIGTERM)  # twice is once
        assert await stopped(live, began) == 0
        events.close()
        await ben.close()
    writer.close()
    assert "Traceback" not in live.stderr()


async def test_what_came_before_a_stop_is_there_after_it(live: Live) -> None:
    """A stop in the middle of many requests: each was answered with a 2xx and is kept, or was not accepted."""
    accepted: list[str] = []
    live.post("/peers", name="ben", path="/srv/ben", backend="claude-code")

    async def send(session: aiohttp.ClientSession, number: int) -> None:
        for count in range(1000):
            try:
                async with session.post("/notify", json={"to_peer": "ben", "text": f"{number}.{count}"}) as answer:
                    if answer.status == 200:
                        accepted.append(f"{number}.{count}")
                    else:
                        assert answer.status == 503, await answer.text()
            except aiohttp.ClientError:
                return

    live.term()
    live.start(REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER="100000")
    async with session_of(live) as session:
        sending = [asyncio.create_task(send(session, number)) for number in range(8)]
        await until_async(lambda: len(accepted) >= 50)
        began = time.monotonic()
        os.kill(live.pid, signal.SIGTERM)
        assert await stopped(live, began) == 0
        await asyncio.gather(*sending)
    live.start()
    kept: list[str] = []
    while some := live.get("/deliveries/pending?peer_id=ben&max_results=1000")["deliveries"]:
        kept += [one["text"] for one in some]
    assert set(accepted) <= set(kept)
    assert len(kept) == len(set(kept))
    for number in range(8):
        counts = [int(text.partition(".")[2]) for text in kept if text.startswith(f"{number}.")]
        assert counts == sorted(counts)


# -- in the background -----------------------------------------------------------


def test_a_daemon_in_the_background_outlives_its_terminal(new_live: Callable[..., Live]) -> None:
    """Its own session, nothing open of the terminal's, and a working directory that hinders no unmount."""
    live = new_live()
    started = live.cli("daemon", "--detach", "--port", "0", "--json")
    assert started.returncode == 0, started.stderr
    pid = json.loads(started.stdout)["pid"]
    try:
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == str(live.home)
        targets = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in "012"}
        assert targets == {"0": "/dev/null", "1": str(live.home / "daemon.log"), "2": str(live.home / "daemon.log")}
        assert stat.S_IMODE((live.home / "daemon.log").stat().st_mode) == 0o600
        live.ready = json.loads(started.stdout)
        many: dict[str, Any] = live.get("/health")
        assert many["status"] == "ok"
        again = live.cli("daemon", "restart", "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["port"] == live.port
        assert gone(pid)
        pid = json.loads(again.stdout)["pid"]
        assert live.cli("daemon", "status").returncode == 0
        assert live.cli("daemon", "stop").returncode == 0
        assert gone(pid)
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)
            until(lambda: gone(pid))
