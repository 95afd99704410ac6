"""The ledger: what happened, as JSON lines in numbered segments, `trace-000042.jsonl`.

A line is written whole or not at all, and numbers only grow: where one is missing, something was lost and can be seen
to be. Closed segments never change. Used on the loop's thread, save `sync`.
"""

import json
import mmap
import os
import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from repowire.config import sync_file, sync_folder

NAME = re.compile(r"trace-(\d{6,})\.jsonl")
KEPT_BYTES = (
    4096  # of a line kept in memory; a longer one is read from its file, since a text may have 64,000 characters
)
RESERVED = frozenset(("seq", "at", "kind"))
encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class LedgerError(Exception):
    """A trace file is damaged or gone; the text names it and the byte."""


class Line(NamedTuple):
    """One event: its number, its moment (unix seconds), its kind, its facts, and where it stands."""

    seq: int
    at: float
    kind: str
    facts: dict[str, Any]
    segment: int
    offset: int


@dataclass
class Segment:
    """A trace file that holds at least one line."""

    number: int
    first: int
    newest_at: float
    size: int


class Place(NamedTuple):
    """Where a line stands that is too long to be kept in memory."""

    seq: int
    segment: int
    offset: int


def _text(seq: int, at: float, kind: str, facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A line as it is written, and the facts as they will be read again."""
    if not RESERVED.isdisjoint(facts):
        facts = {f"{key}_" if key in RESERVED else key: value for key, value in facts.items()}
    try:
        text = encode({"seq": seq, "at": at, "kind": kind, **facts})
    except (TypeError, ValueError, RecursionError) as error:
        facts = {"unwritable": f"{error}: {facts!r}"[:1000]}
        text = encode({"seq": seq, "at": at, "kind": kind, **facts})
    # a lone surrogate becomes \\udc80, which JSON reads as the same
    return text.encode("utf-8", "backslashreplace") + b"\n", facts


class Ledger:
    """Append, follow from a number, rotate, prune. One process at a time: the lock of the home sees to it."""

    def __init__(self, folder: Path, *, segment_bytes: int, ring: int = 1024) -> None:
        """Cuts a torn last line; `expect` then says so in the ledger itself. Raises LedgerError or OSError."""
        self.folder = folder
        self.last = 0  # the newest number, written or spent
        self.lost = 0  # numbers spent in vain since the start
        self.cut_bytes = 0
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []  # by number; the current one joins with its first line
        self._ring: deque[Line | Place] = deque()  # every line newer than `_floor`
        self._ring_lines = ring
        self._write_failure: str | None = None
        self._sync_failure: str | None = None
        self._torn = False  # a piece of a line stands at the end and could not be cut
        self._lock = threading.Lock()  # held to swap or copy the descriptor, never during a sync
        self._folder_stale = True
        os.makedirs(folder, mode=0o700, exist_ok=True)
        numbers = sorted(int(found[1]) for name in os.listdir(folder) if (found := NAME.fullmatch(name)))
        self._number = numbers[-1] if numbers else 1
        self._file = self._open(self._number)
        try:
            self._size = self._cut()
            self._learn(numbers)
        except BaseException:
            os.close(self._file)
            raise
        self._floor = self.last
        self._rotate_at = segment_bytes

    # -- writing ---------------------------------------------------------------

    def append(self, kind: str, at: float, facts: dict[str, Any]) -> int:
        """Write one line, return its number. Never raises: what cannot be written is `lost`, and `failure` says why."""
        self.extend(at, ((kind, facts),))
        return self.last

    def extend(self, at: float, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Append several lines of one moment with one write: all of them or none. Never raises."""
        if self._size >= self._rotate_at:
            self._rotate()
        texts: list[bytes] = []
        lines: list[Line | Place] = []
        size = self._size
        for kind, facts in events:
            self.last += 1
            text, facts = _text(self.last, at, kind, facts)
            texts.append(text)
            if len(text) <= KEPT_BYTES:
                lines.append(Line(self.last, at, kind, facts, self._number, size))
            else:
                lines.append(Place(self.last, self._number, size))
            size += len(text)
        try:
            if self._torn:
                self._cut_back()
            if os.write(self._file, b"".join(texts)) != size - self._size:
                raise OSError(None, "only a part of what was to be written")
        except OSError as error:
            self.lost += len(lines)
            self._write_failure = f"{self._path(self._number)}: {error.strerror}"
            with suppress(OSError):
                self._cut_back()
            return
        self._write_failure = None
        self._remember(lines, at, size)

    def _remember(self, lines: list[Line | Place], at: float, size: int) -> None:
        """What was just written: the newest lines, of one moment, and where the segment ends now."""
        self._ring += lines
        while len(self._ring) > self._ring_lines:
            self._forget()
        if not self._size:
            self._segments.append(Segment(lines[0].segment, lines[0].seq, at, 0))
        self._size = self._segments[-1].size = size
        self._segments[-1].newest_at = at

    def _forget(self) -> None:
        """Drop the oldest line from the memory."""
        self._floor = self._ring.popleft().seq

    def _cut_back(self) -> None:
        self._torn = True
        os.ftruncate(self._file, self._size)
        self._torn = False

    def _rotate(self) -> None:
        """Close the segment, on the disk first: after a power cut only the last one may be torn."""
        try:
            if self._torn:
                self._cut_back()
            sync_file(self._file)
            fresh = self._open(self._number + 1)
        except OSError as error:  # go on in the old one, and try again some lines later
            self._write_failure = f"{self._path(self._number + 1)}: {error.strerror}"
            self._rotate_at = self._size + self._segment_bytes // 16
            return
        with self._lock:
            old, self._file = self._file, fresh
            self._folder_stale = True
        os.close(old)
        self._number, self._size, self._rotate_at = self._number + 1, 0, self._segment_bytes

    def sync(self) -> None:
        """Put what is written on the disk; any thread may call it. Raises OSError."""
        with self._lock:
            if self._file < 0:
                return
            file, folder_stale, self._folder_stale = os.dup(self._file), self._folder_stale, False
        try:
            sync_file(file)
            if folder_stale:
                sync_folder(self.folder)
        except OSError as error:
            self._folder_stale = True
            self._sync_failure = f"{self.folder}: {error.strerror}"
            raise
        finally:
            os.close(file)
        self._sync_failure = None

    @property
    def failure(self) -> str | None:
        """Why the last line or sync did not reach its file; None when it did."""
        return self._write_failure or self._sync_failure

    def expect(self, seq: int, at: float) -> None:
        """At start, with the last number the database remembers: write down what of it is missing here."""
        if self.last < seq:
            first, self.last = self.last + 1, seq
            self.append(
                "ledger.gap", at, {"first": first, "last": seq, "reason": "the ledger ended before the database"}
            )
        if self.cut_bytes:
            self.append("ledger.cut", at, {"bytes": self.cut_bytes})
            self.cut_bytes = 0

    def prune(self, now: float, retention_seconds: float, retention_bytes: int) -> list[int]:
        """Remove the oldest closed segments, too old or too many; return their numbers."""
        total = sum(segment.size for segment in self._segments)
        removed = []
        while self._segments and (oldest := self._segments[0]).number != self._number:
            if now - oldest.newest_at <= retention_seconds and total <= retention_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(self._path(oldest.number))
            total -= oldest.size
            removed.append(self._segments.pop(0).number)
        while removed and self._ring and self._ring[0].seq < self.first:
            self._forget()
        return removed

    def close(self) -> None:
        """Sync and close; a second call does nothing. A sync that fails is told in `failure`."""
        if self._file < 0:
            return
        with suppress(OSError):
            self.sync()
        with self._lock:
            os.close(self._file)
            self._file = -1

    # -- reading ---------------------------------------------------------------

    @property
    def first(self) -> int:
        """The oldest number kept; the next one to come when there is none."""
        return self._segments[0].first if self._segments else self.last + 1

    def after(self, seq: int, limit: int = 1000) -> list[Line]:
        """The lines that follow a number, oldest first, at most `limit`. Raises LedgerError."""
        if seq >= self.last:
            return []
        if seq >= self._floor:
            return self._after_in_ring(seq, limit)
        lines: list[Line] = []
        at = max(0, bisect_right(self._segments, seq, key=lambda segment: segment.first) - 1)
        for segment in self._segments[at:]:
            with self._view(segment.number) as view:
                offset = self._find(view, segment, seq)
                while offset < segment.size and len(lines) < limit:
                    end = view.find(b"\n", offset) + 1
                    lines.append(self._parse(view[offset:end], segment.number, offset))
                    offset = end
            if len(lines) >= limit:
                break
        return lines

    def read(self, segment: int, offset: int) -> Line | None:
        """The line that stands at a place, None when it was pruned. Raises LedgerError when no line begins there."""
        if segment < (self._segments[0].number if self._segments else self._number):
            return None
        file = self._reopen(segment)
        try:
            raw = os.pread(file, 4_096, max(0, offset - 1))
            while b"\n" not in raw[1:] and (more := os.pread(file, 65_536, max(0, offset - 1) + len(raw))):
                raw += more
        finally:
            os.close(file)
        if offset > 0 and raw[:1] != b"\n":
            raise self._damaged(segment, offset, "no line begins there")
        start = 1 if offset > 0 else 0
        return self._parse(raw[start : raw.find(b"\n", start) + 1], segment, offset)

    def _after_in_ring(self, seq: int, limit: int) -> list[Line]:
        found = []
        for line in reversed(self._ring):
            if line.seq <= seq:
                break
            found.append(line)
        found.reverse()
        return [self._whole(line) for line in found[:limit]]

    def _whole(self, kept: Line | Place) -> Line:
        line = kept if isinstance(kept, Line) else self.read(kept.segment, kept.offset)
        if line is None:
            raise self._damaged(kept.segment, kept.offset, "was removed while it was read")
        return line

    def _find(self, view: mmap.mmap, segment: Segment, seq: int) -> int:
        """The offset of the first line after a number, by halving the bytes."""
        low, high = 0, segment.size
        while low < high:
            middle = (low + high) // 2
            start = view.rfind(b"\n", low, middle) + 1 or low
            end = view.find(b"\n", middle) + 1
            if self._parse(view[start:end], segment.number, start).seq <= seq:
                low = end
            else:
                high = start
        return low

    def _parse(self, raw: bytes, segment: int, offset: int) -> Line:
        try:
            facts = json.loads(raw)
            seq, at, kind = facts.pop("seq"), facts.pop("at"), facts.pop("kind")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(segment, offset, str(error)) from None
        if type(seq) is not int or not isinstance(at, (int, float)) or not isinstance(kind, str):
            raise self._damaged(segment, offset, "seq, at or kind is of a wrong type")
        return Line(seq, at, kind, facts, segment, offset)

    def _reopen(self, segment: int) -> int:
        try:
            return os.open(self._path(segment), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise LedgerError(f"{self._path(segment)}: cannot be read: {error.strerror}") from error

    @contextmanager
    def _view(self, segment: int) -> Iterator[mmap.mmap]:
        file = self._reopen(segment)
        try:
            view = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise LedgerError(f"{self._path(segment)}: cannot be read: {error}") from error
        finally:
            os.close(file)
        with view:
            yield view

    # -- opening ---------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.folder / f"trace-{number:06}.jsonl"

    def _open(self, number: int) -> int:
        return os.open(self._path(number), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _cut(self) -> int:
        """Cut what follows the last newline of the last segment; return the size that stays."""
        size = os.fstat(self._file).st_size
        keep = self._rfind_newline(self._file, size) + 1
        if keep < size:
            self.cut_bytes = size - keep
            os.ftruncate(self._file, keep)
        return keep

    @staticmethod
    def _rfind_newline(file: int, size: int) -> int:
        """Where the last newline before `size` stands, -1 when there is none; read from behind."""
        while size > 0:
            start = max(0, size - 65_536)
            found = os.pread(file, size - start, start).rfind(b"\n")
            if found >= 0:
                return start + found
            size = start
        return -1

    def _learn(self, numbers: list[int]) -> None:
        """Check the first and the last line of each segment, and that one follows the other."""
        for before, number in pairwise(numbers):
            if number != before + 1:
                raise LedgerError(f"{self._path(before + 1)}: is missing; put it back, or move the older ones aside")
        for number in numbers:
            if number == self._number and not self._size:
                break
            with self._view(number) as view:
                size = len(view)
                if view[size - 1] != 10:
                    raise self._damaged(number, size, "the last line does not end")
                first = self._parse(view[: view.find(b"\n") + 1], number, 0)
                start = view.rfind(b"\n", 0, size - 1) + 1
                newest = self._parse(view[start:], number, start)
            if not self.last < first.seq <= newest.seq:
                raise self._damaged(number, 0, f"number {first.seq} after {self.last}")
            self._segments.append(Segment(number, first.seq, newest.at, size))
            self.last = newest.seq

    def _damaged(self, segment: int, offset: int, why: str) -> LedgerError:
        path = self._path(segment)
        return LedgerError(f"{path}: damaged at byte {offset} ({why}); restore it, or move it and the older ones aside")
