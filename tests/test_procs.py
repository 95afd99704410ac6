"""A process is (pid, start time); its end is told at once, once, and by the kernel alone."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from repowire import procs as procs_module
from repowire.procs import Procs

SECONDS = 10
linux = pytest.mark.skipif(sys.platform != "linux", reason="about /proc and pidfd")


class Ends:
    """Who was told to have ended, and when (monotonic seconds)."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []
        self.at = 0.0
        self.bell = asyncio.Event()

    def __call__(self, pid: int, started: float) -> None:
        self.told.append((pid, started))
        self.at = time.monotonic()
        self.bell.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self.bell.wait(), SECONDS)
        self.bell.clear()


@pytest.fixture
async def ends() -> Ends:
    return Ends()


@pytest.fixture
async def procs(ends: Ends) -> AsyncIterator[Procs]:
    made = Procs(ends)
    yield made
    made.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(["sleep", "1000"])
    yield made
    made.kill()
    made.wait()


def start(*command: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().removesuffix("\n")


def born(procs: Procs, pid: int) -> float:
    started = procs.started(pid)
    assert started is not None
    return started


async def test_an_end_is_told_well_within_a_second(procs: Procs, ends: Ends, child: subprocess.Popen[bytes]) -> None:
    started = born(procs, child.pid)
    assert procs.watch(child.pid, started)
    killed = time.monotonic()
    child.kill()
    await ends.wait()
    assert ends.told == [(child.pid, started)]
    assert ends.at - killed < 0.5


async def test_a_zombie_has_ended(procs: Procs, ends: Ends, child: subprocess.Popen[bytes]) -> None:
    started = born(procs, child.pid)
    procs.watch(child.pid, started)
    child.kill()
    await ends.wait()  # nobody has called wait(2) yet
    assert procs.started(child.pid) is None
    assert not procs.alive(child.pid, started)
    assert not procs.watch(child.pid, started)


async def test_two_watches_are_told_once(procs: Procs, ends: Ends, child: subprocess.Popen[bytes]) -> None:
    started = born(procs, child.pid)
    assert procs.watch(child.pid, started)
    assert procs.watch(child.pid, started)
    child.kill()
    await ends.wait()
    for _ in range(3):
        await asyncio.sleep(0)  # the loop looks at every descriptor each time
    assert ends.told == [(child.pid, started)]


async def test_many_ends_are_all_told(procs: Procs, ends: Ends) -> None:
    children = [start("sleep", "1000") for _ in range(30)]
    watched = {(one.pid, born(procs, one.pid)) for one in children}
    assert all(procs.watch(pid, started) for pid, started in watched)
    for one in children:
        one.kill()
    while len(ends.told) < len(children):
        await ends.wait()
    for one in children:
        one.communicate()
    assert set(ends.told) == watched


async def test_a_pid_with_another_start_time_is_another_process(
    procs: Procs, ends: Ends, child: subprocess.Popen[bytes]
) -> None:
    started = born(procs, child.pid)
    assert not procs.alive(child.pid, started - 1)
    assert not procs.watch(child.pid, started - 1)
    assert procs.watch(child.pid, started)
    child.kill()
    await ends.wait()
    assert ends.told == [(child.pid, started)]


@linux
async def test_a_refused_watch_keeps_no_descriptor(procs: Procs, child: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert not procs.watch(child.pid, -1.0)
    assert len(os.listdir("/proc/self/fd")) == before


@linux
async def test_nothing_is_left_after_an_end_and_after_close(
    procs: Procs, ends: Ends, child: subprocess.Popen[bytes]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    procs.watch(child.pid, born(procs, child.pid))
    procs.watch(os.getpid(), born(procs, os.getpid()))
    child.kill()
    await ends.wait()
    procs.close()
    procs.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("pid", [0, -1, 2**31, 10**18])
async def test_what_is_no_pid_is_gone(procs: Procs, pid: int) -> None:
    assert not procs.watch(pid, 1.0)
    assert procs.ancestors(pid) == []
    assert procs.started(pid) is None


async def test_one_that_ended_before_is_not_watched(procs: Procs) -> None:
    gone = start("true")
    gone.communicate()
    assert procs.started(gone.pid) is None
    assert not procs.watch(gone.pid, 1.0)


@linux
async def test_a_name_with_brackets_and_blanks_does_not_confuse(procs: Procs, tmp_path: Path) -> None:
    odd = tmp_path / ") R 1 (x"
    odd.symlink_to("/bin/sleep")
    named = start(odd, "1000")
    try:
        deadline = time.monotonic() + SECONDS
        while name(named.pid) != odd.name:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        assert procs.ancestors(named.pid)[1][0] == os.getpid()
        assert abs(born(procs, named.pid) - born(procs, os.getpid())) < 3_600
    finally:
        named.kill()
        named.communicate()


async def test_ancestors_come_nearest_first(procs: Procs) -> None:
    shell = start("sh", "-c", "sh -c 'echo $$; read x; exit'; exit")
    assert shell.stdout is not None
    grandchild = int(shell.stdout.readline())
    line = procs.ancestors(grandchild)
    shell.communicate(b"\n")
    assert [pid for pid, _ in line[:3]] == [grandchild, shell.pid, os.getpid()]
    assert all(started >= parent for (_, started), (_, parent) in pairwise(line))


async def test_a_parent_younger_than_its_child_is_another_process(
    procs: Procs, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = {30: (20, 5.0), 20: (10, 4.0), 10: (1, 9.0), 1: (0, 0.5)}
    monkeypatch.setattr(procs_module, "_look", family.get)
    assert procs.ancestors(30) == [(30, 5.0), (20, 4.0)]


async def test_a_circle_of_parents_ends(procs: Procs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procs_module, "_look", {7: (7, 1.0)}.get)
    assert len(procs.ancestors(7)) == procs_module.DEEPEST


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOSYS, errno.EPERM])
async def test_where_the_kernel_gives_no_watch_it_says_so_and_looks(
    procs: Procs, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(procs._ends, "hold", refuse)
    started = born(procs, child.pid)
    assert procs.watch(child.pid, started)
    assert procs.blind is not None
    assert os.strerror(error) in procs.blind
    assert not procs.watch(child.pid, started + 1)


@linux
async def test_one_that_may_not_be_looked_at_is_alive(
    procs: Procs, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    alive, watched = procs.alive(child.pid, 5.0), procs.watch(child.pid, 5.0)
    monkeypatch.undo()
    assert (alive, watched) == (True, True)


@linux
async def test_a_watch_is_a_descriptor_no_timer_and_no_thread(procs: Procs, child: subprocess.Popen[bytes]) -> None:
    loop, threads = asyncio.get_running_loop(), threading.active_count()
    timers = list(loop._scheduled)  # type: ignore[attr-defined]
    assert procs.watch(child.pid, born(procs, child.pid))
    assert list(loop._scheduled) == timers  # type: ignore[attr-defined]
    assert threading.active_count() == threads
