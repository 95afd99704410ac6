"""The journal of a ws-hook: which deliveries went into a pane, so that none goes in twice.

Before the first byte of a paste its line is in the file, and after Enter was confirmed another; a kill -9 in between
leaves `pasting`, and what is `pasting` is never pasted again. A power cut ends the panes too, so nothing waits for the
disk.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

PASTING, INJECTED, REFUSED = "pasting", "injected", "refused"
KEPT = 10_000  # newest deliveries
LINES_AT_MOST = 3 * KEPT


class Entry(NamedTuple):
    """What is known of one delivery; `code` is the one of its fence, by which its text is found again."""

    state: str
    code: str


class Journal:
    """One file, one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self._lines = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._read()
        self._compact()

    def find(self, delivery_id: str) -> Entry | None:
        """What became of it here; None when it may be pasted."""
        entry = self._entries.get(delivery_id)
        return entry if entry is not None and entry.state != REFUSED else None

    def note(self, delivery_id: str, state: str, code: str = "") -> None:
        """In the file when this returns. REFUSED takes PASTING back: tmux itself said that nothing was pasted."""
        entry = Entry(state, code or self._entries.get(delivery_id, Entry("", "")).code)
        line = json.dumps({"id": delivery_id, "state": entry.state, "code": entry.code}) + "\n"
        if (wrote := os.write(self._file, line.encode())) != len(line.encode()):
            os.write(self._file, b"\n")  # so that the next line stands by itself
            raise OSError(f"{self.path}: only {wrote} bytes of a line were written")
        self._remember(delivery_id, entry)
        self._lines += 1
        if self._lines > LINES_AT_MOST:
            os.close(self._file)
            self._compact()

    def close(self) -> None:
        os.close(self._file)

    def _remember(self, delivery_id: str, entry: Entry) -> None:
        self._entries.pop(delivery_id, None)
        self._entries[delivery_id] = entry
        if len(self._entries) > KEPT:
            del self._entries[next(iter(self._entries))]

    def _read(self) -> None:
        """What a crash cut off says nothing; its paste had not begun."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in raw.splitlines():
            try:
                said = json.loads(line)
                self._remember(said["id"], Entry(said["state"], said.get("code", "")))
            except (ValueError, KeyError, TypeError):
                continue

    def _compact(self) -> None:
        """Put a file of the newest in place of the old one, and write on there."""
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        lines = [
            json.dumps({"id": name, "state": entry.state, "code": entry.code}) for name, entry in self._entries.items()
        ]
        fresh.unlink(missing_ok=True)
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        raw = "".join(f"{line}\n" for line in lines).encode()
        while raw:
            raw = raw[os.write(file, raw) :]
        os.replace(fresh, self.path)
        self._file, self._lines = file, len(lines)
