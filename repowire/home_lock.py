"""The lock of the home: one daemon serves it, and who comes second is told which."""

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from repowire import __version__
from repowire.barrier import StoreError
from repowire.config import Config, read_lock

NAMED_SECONDS = 0.5  # how long the lock is tried while nobody who runs stands in it


class HomeBusy(Exception):
    """Another daemon serves this home."""

    def __init__(self, home: Path, pid: int | None, port: int | None) -> None:
        super().__init__(f"{home}: another daemon serves it (pid {pid or 'unknown'}, port {port or 'unknown'})")
        self.pid, self.port = pid, port


class Lock:
    """The home is ours until `release`, or until this process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.write(None, None)

    def write(self, host: str | None, port: int | None, started_at: float | None = None) -> None:
        """Say where we listen, for `config.read_lock`."""
        about = {"pid": os.getpid(), "host": host, "port": port, "started_at": started_at, "version": __version__}
        text = json.dumps(about).encode() + b"\n"
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def release(self) -> None:
        """Empty the file and let go; the file stays, since removing it would let two daemons hold two files."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def lock_home(config: Config) -> Lock:
    """Take the home for this process. Raises HomeBusy, or StoreError when the file cannot be made."""
    path = config.lock_path
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
    deadline = time.monotonic() + NAMED_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(descriptor)
        except BlockingIOError:
            about = read_lock(config.home) or {}
            if _runs(about.get("pid")) or time.monotonic() > deadline:
                os.close(descriptor)
                raise HomeBusy(config.home, about.get("pid"), about.get("port")) from None
        # A daemon writes itself down a moment after it has the lock, and who only looks (`status`) has it for a moment.
        time.sleep(NAMED_SECONDS / 100)


def _runs(pid: object) -> bool:
    with suppress(ProcessLookupError, PermissionError):  # another user's: the number was given out again
        if isinstance(pid, int):
            os.kill(pid, 0)
            return True
    return False
