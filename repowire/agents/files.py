"""Files that an agent keeps or names, read as what they may be: another program's, a pipe, or without an end."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

MOST_BYTES = 4 * 1024 * 1024  # settings and registry files have some kilobytes
TRIES, TRY_SECONDS = 50, 0.05  # at a file that others write too
STALE_SECONDS = 10.0  # a lock that is older was left behind, as Claude Code has it


class Locked(Exception):
    """Another program changes the file just now."""


def opened(path: str) -> BinaryIO:
    """A file to read. Raises OSError when it cannot be read, or is a pipe or a device; never waits for a writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a path may hold what no path may
        raise OSError(str(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("is no file")
    return open(descriptor, "rb")


def text_of(path: str) -> str:
    """A file's text. Raises OSError as `opened`, and for one that is too large."""
    with opened(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError("is too large")
    return data.decode("utf-8", "replace")


@contextmanager
def locked(lock: str | None, now: float) -> Iterator[None]:
    """Hold the lock of the agent's own programs, a folder, where they have one. Raises Locked while one has it."""
    if lock is None:
        yield
        return
    os.makedirs(os.path.dirname(lock), mode=0o700, exist_ok=True)
    try:
        os.mkdir(lock)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if now - os.stat(lock).st_mtime > STALE_SECONDS:
                os.rmdir(lock)
        raise Locked from None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # taken for left behind
            os.rmdir(lock)
