"""The fixtures themselves: a clock that lies or a server that stays would spoil every other test quietly."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeClock, TmuxServer, gone, until, until_async


async def test_sleepers_wake_when_the_clock_is_moved_and_not_before(clock: FakeClock) -> None:
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("late", 10), ("soon", 5))]
    await until_async(lambda: clock.sleeping == 2)
    clock.advance(4.9)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(20)
    await asyncio.gather(*tasks)
    assert woken == ["soon", "late"]
    assert clock.sleeping == 0


async def test_a_cancelled_sleeper_leaves_no_trace(clock: FakeClock) -> None:
    task = asyncio.create_task(clock.sleep(5))
    await until_async(lambda: clock.sleeping == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.sleeping == 0


def test_until_fails_when_it_never_becomes_so() -> None:
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: False, seconds=0.05)


def test_a_mesh_opens_again_on_the_same_home(new_mesh: Any, tmp_path: Path, clock: FakeClock) -> None:
    first = new_mesh(tmp_path / "home", clock)
    with first.change() as change:
        change.record("peer.changed", peer_id="repow-default-000000000000")
    seq = first.ledger.last
    first.procs.close()
    first.db.close()
    first.ledger.close()
    assert new_mesh(tmp_path / "home", clock).ledger.last == seq


def test_the_live_daemon_comes_back_on_its_home_and_ends_by_itself(live: Any) -> None:
    pid, token = live.pid, live.token
    assert live.get("/health")["status"] == "ok"
    live.kill()
    assert gone(pid)
    live.start()
    assert (live.token, live.pid == pid) == (token, False)
    assert live.cli("status", "--json").returncode == 0
    assert live.term() == 0


def test_tmux_runs_a_command_in_a_window_of_a_private_server(tmux: TmuxServer, tmp_path: Path) -> None:
    pane = tmux.window("sh", "-c", "echo $GREETING from $PWD; exec cat", cwd=tmp_path, GREETING="hello")
    until(lambda: f"hello from {tmp_path}" in tmux.screen(pane))
    assert not gone(tmux.pid(pane))
    assert tmux.socket.is_socket()


def test_the_tmux_server_of_the_test_before_is_gone(tmux: TmuxServer) -> None:
    assert tmux.run("list-windows", "-a", "-F", "#{window_index}").split() == ["0"]
