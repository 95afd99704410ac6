"""Scroll: the lines of a file that others write, from its end backwards, in memory bounded by its longest line.

A page of a long transcript costs what the page holds, not what the file does: lines are found by where they begin, and
nothing before the page is read. The file may grow, be cut or be replaced meanwhile: it is opened once, and what is read
is what stood there then. For a thread.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 1 << 16  # read at once; doubled while a line goes on, up to MOST_AT_ONCE_BYTES
MOST_AT_ONCE_BYTES = 1 << 22
LONGEST_BYTES = 32 << 20  # a longer line is passed over


class Line(NamedTuple):
    """A line and where it begins; None for one that is too long for us. The last one may be torn."""

    offset: int
    raw: bytes | None


class Scroll:
    """A file that is read backwards. `bytes_read` says what it cost."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = os.fstat(self._file).st_size
        self.bytes_read = 0

    def close(self) -> None:
        """Let go of it; a second call changes nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def begins_line(self, offset: int) -> bool:
        """Whether a line begins there."""
        return offset == 0 or (0 < offset < self.size and os.pread(self._file, 1, offset - 1) == b"\n")

    def backwards(self, before: int | None = None) -> Iterator[Line]:
        """The lines that begin before an offset (the end, without one), the last of them first; empty ones are not."""
        end = self.size if before is None else min(before, self.size)
        kept: list[bytes] = []  # of the line whose beginning is not found yet, the end first
        length, block = 0, BLOCK_BYTES
        while end > 0:
            start = max(0, end - block)
            data = os.pread(self._file, end - start, start)
            if not data:
                return  # it was cut meanwhile
            self.bytes_read += len(data)
            cut = len(data)
            while (newline := data.rfind(b"\n", 0, cut)) >= 0:
                if length or newline + 1 < cut:
                    yield Line(start + newline + 1, _whole(data[newline + 1 : cut], kept, length))
                kept, length, cut = [], 0, newline
                block = BLOCK_BYTES
            length += cut
            if length <= LONGEST_BYTES:
                kept.append(data[:cut])
            else:
                kept = []
            if cut == len(data):
                block = min(2 * block, MOST_AT_ONCE_BYTES)
            end = start
        if length:
            yield Line(0, _whole(b"", kept, length))


def _whole(first: bytes, kept: list[bytes], length: int) -> bytes | None:
    if length + len(first) > LONGEST_BYTES:
        return None
    return b"".join([first, *reversed(kept)])
