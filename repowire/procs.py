"""Processes: one is (pid, start time), and we are told the moment it ends.

A pid alone proves nothing, since it is given out again; with its start time it names one process until the reboot.
Never polls: Linux tells by a pidfd, macOS by kqueue. A zombie has ended.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

UNKNOWN = 0.0  # the start time of a process that lives, and that we may not look at
TICKS = os.sysconf("SC_CLK_TCK")
MOST = 2**31 - 1  # pid_t
DEEPEST = 64  # ancestors; a shell in a shell in tmux has about ten

Process = tuple[int, float]


class Running(NamedTuple):
    """A process at one moment, as a look at all of them shows it."""

    pid: int
    parent: int
    started: float
    name: str  # of its program, without the folder, cut by the system
    in_foreground: bool  # the keys of its terminal go to its group, and it is not stopped


class Procs:
    """Watch processes from the loop; `on_end(pid, started)` is called once for each that ends."""

    def __init__(self, on_end: Callable[[int, float], None]) -> None:
        self.blind: str | None = None  # why the end of some process will not be told
        self._on_end = on_end
        self._ends = _Ends()
        self._watched: dict[Process, int] = {}  # and what holds it

    def started(self, pid: int) -> float | None:
        """Its start time, good for comparing alone: seconds since the boot, on macOS unix seconds. None when gone."""
        found = _look(pid)
        return found[1] if found else None

    def alive(self, pid: int, started: float) -> bool:
        """Whether that very process runs."""
        return self.started(pid) in (started, UNKNOWN)

    def watch(self, pid: int, started: float) -> bool:
        """Be told when it ends; False when it has ended. Without a watch (see `blind`) True says only that it lives."""
        if (pid, started) in self._watched:
            return True
        if not 0 < pid <= MOST:
            return False
        try:
            handle = self._ends.hold(pid)
        except ProcessLookupError:
            return False
        except OSError as error:  # an old kernel, a sandbox, or too many open files
            self.blind = f"the end of process {pid} cannot be watched: {error.strerror}"
            return self.alive(pid, started)
        if not self.alive(pid, started):  # only now: what is held cannot become another process
            self._ends.let_go(handle)
            return False
        self._watched[pid, started] = handle
        self._ends.tell(handle, partial(self._ended, pid, started))
        return True

    def signal(self, pid: int, started: float, number: int) -> bool:
        """Send a signal to that very process; False when it has ended. Raises PermissionError where it is not ours."""
        try:
            handle = os.pidfd_open(pid) if sys.platform == "linux" else -1
        except ProcessLookupError:
            return False
        try:
            if not self.alive(pid, started):  # only now: what is held is not another process
                return False
            if sys.platform == "linux":
                signal.pidfd_send_signal(handle, signal.Signals(number))
            else:
                os.kill(pid, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            if handle >= 0:
                os.close(handle)

    def ancestors(self, pid: int) -> list[Process]:
        """The process itself, its parent, and so on; empty when it is gone."""
        line: list[Process] = []
        while 0 < pid <= MOST and len(line) < DEEPEST and (found := _look(pid)):
            parent, started = found
            if line and started > line[-1][1]:  # younger than its child: the parent has ended, its pid is another's
                break
            line.append((pid, started))
            pid = parent
        return line

    def name(self, pid: int) -> str | None:
        """The name of its program, without the folder; None when it is gone."""
        return _name(pid) if 0 < pid <= MOST else None

    def arguments(self, pid: int) -> list[str]:
        """Its command line, as well as the system tells; empty when it is gone or not ours."""
        return _arguments(pid) if 0 < pid <= MOST else []

    def opens(self, pid: int, path: str) -> bool:
        """Whether it has that very file open; False where the system does not tell. For a thread."""
        return 0 < pid <= MOST and _opens(pid, path)

    def stopped(self, pid: int) -> bool:
        """Whether it stands still until somebody lets it go on (Ctrl-Z, SIGSTOP)."""
        return 0 < pid <= MOST and _stopped(pid)

    def all(self) -> dict[int, Running]:
        """Every process that runs now; some 15 µs each, so not for the loop."""
        return {one.pid: one for one in _all()}

    def variable(self, pid: int, name: str) -> str | None:
        """What a variable was in its environment when it started; None when it was not there, or we may not look."""
        return _variable(pid, name) if 0 < pid <= MOST else None

    def close(self) -> None:
        """Watch nothing any more."""
        for handle in self._watched.values():
            self._ends.let_go(handle)
        self._watched.clear()
        self._ends.close()

    def _ended(self, pid: int, started: float) -> None:
        self._ends.let_go(self._watched.pop((pid, started)))
        self._on_end(pid, started)


if sys.platform == "linux":

    class _Ends:
        """One pidfd for each process; it becomes readable when the process ends."""

        def __init__(self) -> None:
            self._loops: dict[int, asyncio.AbstractEventLoop] = {}

        def hold(self, pid: int) -> int:
            return os.pidfd_open(pid)

        def tell(self, handle: int, told: Callable[[], None]) -> None:
            self._loops[handle] = asyncio.get_running_loop()
            self._loops[handle].add_reader(handle, told)

        def let_go(self, handle: int) -> None:
            loop = self._loops.pop(handle, None)
            if loop is not None and not loop.is_closed():
                loop.remove_reader(handle)
            os.close(handle)

        def close(self) -> None:
            """Nothing is left to close: each was let go."""

    def _look(pid: int) -> tuple[int, float] | None:
        """Parent and start time; None when the process is gone or a zombie."""
        try:
            with open(f"/proc/{pid:d}/stat", "rb", buffering=0) as file:
                fields = file.read(4_096).rpartition(b")")[2].split()  # the name before may hold blanks and brackets
        except PermissionError:
            return 0, UNKNOWN
        except OSError:  # it is gone; ESRCH when it goes while we read
            return None
        if not fields or (fields[0] in (b"Z", b"X") and int(fields[17]) <= 1):  # more: only its first thread has ended
            return None
        return int(fields[1]), int(fields[19]) / TICKS

    def _name(pid: int) -> str | None:
        try:
            with open(f"/proc/{pid:d}/comm", "rb", buffering=0) as file:
                return file.read(64).decode("utf-8", "replace").rstrip("\n")
        except OSError:
            return None

    def _arguments(pid: int) -> list[str]:
        try:
            with open(f"/proc/{pid:d}/cmdline", "rb", buffering=0) as file:
                return file.read(65_536).decode("utf-8", "replace").rstrip("\0").split("\0")
        except OSError:
            return []

    def _opens(pid: int, path: str) -> bool:
        try:
            wanted, folder = os.stat(path), f"/proc/{pid:d}/fd"
            names = os.listdir(folder)
        except (OSError, ValueError):
            return False
        for name in names:
            with suppress(OSError):  # it was closed meanwhile
                if os.path.samestat(os.stat(f"{folder}/{name}"), wanted):
                    return True
        return False

    def _stopped(pid: int) -> bool:
        try:
            with open(f"/proc/{pid:d}/stat", "rb", buffering=0) as file:
                return file.read(4_096).rpartition(b")")[2].split()[0] in (b"T", b"t")
        except OSError:
            return False

    def _all() -> Iterator[Running]:
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                file = os.open(f"/proc/{entry}/stat", os.O_RDONLY | os.O_CLOEXEC)  # half the time of `open`
                try:
                    said = os.read(file, 4_096)
                finally:
                    os.close(file)
            except OSError:  # it went, or it is hidden from us
                continue
            head, _, rest = said.rpartition(b")")
            fields = rest.split(None, 20)
            if len(fields) < 20 or (fields[0] in (b"Z", b"X") and int(fields[17]) <= 1):
                continue
            name = head.partition(b"(")[2].decode("utf-8", "replace")
            before = fields[2] == fields[5] and fields[0] not in (b"T", b"t")
            yield Running(int(entry), int(fields[1]), int(fields[19]) / TICKS, name, before)

    def _variable(pid: int, name: str) -> str | None:
        try:
            with open(f"/proc/{pid:d}/environ", "rb", buffering=0) as file:
                held = file.read(1 << 20).split(b"\0")
        except OSError:
            return None
        sign = name.encode() + b"="
        found = next((one for one in held if one.startswith(sign)), None)
        return os.fsdecode(found[len(sign) :]) if found is not None else None

else:

    class _Ends:
        """One kqueue for all processes; a handle is the pid."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self._told: dict[int, Callable[[], None]] = {}
            self._loop: asyncio.AbstractEventLoop | None = None

        def hold(self, pid: int) -> int:
            self._change(pid, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
            return pid

        def tell(self, handle: int, told: Callable[[], None]) -> None:
            self._told[handle] = told
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._queue.fileno(), self._drain)

        def let_go(self, handle: int) -> None:
            self._told.pop(handle, None)
            with suppress(OSError):  # it has fired, and so is gone already
                self._change(handle, select.KQ_EV_DELETE)

        def close(self) -> None:
            if self._queue.closed:
                return
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._queue.fileno())
            self._queue.close()

        def _change(self, pid: int, flags: int) -> None:
            self._queue.control([select.kevent(pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)], 0)

        def _drain(self) -> None:
            for event in self._queue.control(None, 64, 0):
                if told := self._told.get(event.ident):
                    told()

    def _look(pid: int) -> tuple[int, float] | None:
        """Parent and start time (in whole seconds, which is all that ps tells)."""
        command = ["/bin/ps", "-o", "ppid=,state=,lstart=", "-p", str(pid)]
        answer = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=5, check=False)
        fields = answer.stdout.split(maxsplit=2)
        if len(fields) < 3 or fields[1].startswith("Z"):
            return None
        return int(fields[0]), time.mktime(time.strptime(fields[2].strip(), "%a %b %d %H:%M:%S %Y"))

    def _opens(pid: int, path: str) -> bool:
        return False  # only lsof tells, in some hundred milliseconds a process

    def _stopped(pid: int) -> bool:
        return _told(pid, "state=").startswith("T")

    def _all() -> Iterator[Running]:
        command = ["/bin/ps", "-axo", "pid=,ppid=,pgid=,tpgid=,state=,lstart=,comm="]
        answer = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=5, check=False)
        for line in answer.stdout.splitlines():
            fields = line.split(maxsplit=10)  # lstart has five words
            if len(fields) < 11 or fields[4].startswith("Z"):
                continue
            started = time.mktime(time.strptime(" ".join(fields[5:10]), "%a %b %d %H:%M:%S %Y"))
            before = fields[2] == fields[3] and not fields[4].startswith("T")
            yield Running(int(fields[0]), int(fields[1]), started, os.path.basename(fields[10]), before)

    def _variable(pid: int, name: str) -> str | None:
        command = ["/bin/ps", "-Eww", "-o", "command=", "-p", str(pid)]
        answer = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=5, check=False)
        sign = f"{name}="
        return next((word[len(sign) :] for word in answer.stdout.split() if word.startswith(sign)), None)

    def _name(pid: int) -> str | None:
        return os.path.basename(_told(pid, "comm=")) or None

    def _arguments(pid: int) -> list[str]:
        return _told(pid, "args=").split()

    def _told(pid: int, column: str) -> str:
        command = ["/bin/ps", "-o", column, "-p", str(pid)]
        answer = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=5, check=False)
        return answer.stdout.strip()
