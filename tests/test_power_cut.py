"""A power cut at any moment: what `on_disk` has returned for is there afterwards, whole, and nothing is torn.

Two ways to cut. `strace` records what the threads of a real writer tell the kernel, checkpoints in the middle; a cut
keeps what an fdatasync covered and a random half of the 512-byte sectors of everything else. Where there is no strace,
the same is done to images taken between the steps of one thread.
"""

import asyncio
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from repowire import barrier, db
from repowire.config import sync_file
from repowire.db import Database

TABLE = ["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"]
SECTOR = 512
Image = dict[str, bytes]

WRITER = """
import asyncio, os, random, sys
from pathlib import Path
from repowire import barrier, db

async def main(folder, seed, honest):
    if not honest:
        barrier.sync_file = lambda descriptor: None
    dice = random.Random(seed)
    # a checkpoint syncs the log by itself, which would cover up most of the lies
    store = db.Database(Path(folder) / "state.db", checkpoint_bytes=65_536 if honest else 1 << 30)
    store.migrate("t", ["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"])

    async def write():
        for _ in range(30):
            with store.transaction() as conn:
                text = chr(dice.randint(97, 122)) * dice.randint(1, 3_000)
                row = conn.execute("INSERT INTO t (v) VALUES (?)", (text,)).lastrowid
            await store.on_disk()
            os.write(1, b"ack %d\\n" % row)

    await asyncio.gather(*[write() for _ in range(4)])
    os._exit(0)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "honest"))
"""


def sectors(old: bytearray, offset: int, data: bytes, dice: random.Random) -> None:
    """Write over `old` as a disk does that loses its power: some sectors, and one of them may be garbage."""
    old.extend(bytes(max(0, offset + len(data) - len(old))))
    for at in range(0, len(data), SECTOR):
        piece = bytearray(data[at : at + SECTOR])
        if dice.random() < 0.5:
            if dice.random() < 0.02:
                piece[dice.randrange(len(piece))] ^= 0xFF
            old[offset + at : offset + at + len(piece)] = piece


def check(folder: Path, image: Image, acknowledged: set[int]) -> set[int]:
    """Open the image as the next start does; return the acknowledged rows that are lost. Rows come in order, whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("state.db", "state.db-wal"):
        (folder / name).write_bytes(image[name])
    store = Database(folder / "state.db")
    try:
        assert store.conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        store.migrate("t", TABLE)  # as a start does; an image that lost the table has lost its rows
        found = [(row["id"], row["v"]) for row in store.conn.execute("SELECT id, v FROM t ORDER BY id")]
    finally:
        store.close()
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    assert all(text == text[0] * len(text) for _, text in found)
    return acknowledged - {number for number, _ in found}


# -- what the kernel was told --------------------------------------------------


class Call(NamedTuple):
    """One call to the kernel: from which line of the record to which it ran, on which file."""

    kind: str
    name: str
    began: int
    ended: int
    offset: int
    data: bytes


CALL = re.compile(r'(\d+) +(\w+)\(\d+<([^>]*)>(?:, "([^"]*)")?(.*)')
RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>")


def raw(text: str) -> bytes:
    """`-xx` writes each byte of a string as \\x2f."""
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()


def calls(record: str) -> list[Call]:
    """The calls of all threads, in the order in which they began."""
    found: list[Call] = []
    running: dict[str, int] = {}
    for line, text in enumerate(record.splitlines()):
        if resumed := RESUMED.match(text):
            at = running.pop(resumed[1])
            found[at] = found[at]._replace(ended=line)
        elif called := CALL.match(text):
            thread, kind, path, data, rest = called.groups()
            numbers = [int(number) for number in re.findall(r", (\d+)", rest.partition(")")[0].partition("<")[0])]
            if rest.endswith("<unfinished ...>"):
                running[thread] = len(found)
            offset = numbers[-1] if kind in ("pwrite64", "ftruncate") else 0
            found.append(Call(kind, os.path.basename(raw(path).decode()), line, line, offset, raw(data or "")))
    assert not running or all(found[at].kind != "fdatasync" for at in running.values())
    return found


def cut(done: list[Call], moment: int, dice: random.Random) -> tuple[Image, set[int]]:
    """The disk when the power goes at that line of the record, and what had been acknowledged until then."""
    image = {"state.db": bytearray(), "state.db-wal": bytearray()}
    acknowledged: set[int] = set()
    syncs = [call for call in done if call.kind in ("fdatasync", "fsync") and call.ended <= moment]
    covered = {name: max((s.began for s in syncs if s.name == name), default=-1) for name in image}
    for call in done:
        if call.began > moment:
            break
        if call.data.startswith(b"ack ") and call.kind == "write":
            acknowledged.add(int(call.data[4:]))
        if call.name not in image or call.kind not in ("pwrite64", "ftruncate"):
            continue
        file, safe = image[call.name], call.ended < covered[call.name]
        if call.kind == "pwrite64" and safe:
            file.extend(bytes(max(0, call.offset + len(call.data) - len(file))))
            file[call.offset : call.offset + len(call.data)] = call.data
        elif call.kind == "pwrite64":
            sectors(file, call.offset, call.data, dice)
        elif safe or dice.random() < 0.5:
            del file[call.offset :]
    return {name: bytes(file) for name, file in image.items()}, acknowledged


def recorded(folder: Path, seed: int, word: str) -> list[Call]:
    """Run the writer under strace."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    record = folder / "record"
    traced = "trace=pwrite64,write,fdatasync,fsync,ftruncate"
    strace = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", traced, "-e", "signal=none", "-o", str(record)]
    writer = [sys.executable, "-c", WRITER, str(folder), str(seed), word]
    subprocess.run([*strace, *writer], check=True, capture_output=True, timeout=60)
    return calls(record.read_text())


def lost(folder: Path, seed: int, word: str, cuts: int) -> tuple[int, int]:
    """Cut the record of one run many times; how many cuts lost something, and how many came after a checkpoint."""
    done, dice = recorded(folder / "run", seed, word), random.Random(seed)
    first = next(call.began for call in done if call.data.startswith(b"ack "))
    checkpoint = min((call.began for call in done if call.name == "state.db" and call.began > first), default=math.inf)
    losses = after_checkpoint = 0
    for _ in range(cuts):
        moment = dice.randint(first, done[-1].ended)
        after_checkpoint += moment > checkpoint
        image, acknowledged = cut(done, moment, dice)
        losses += bool(check(folder / "after", image, acknowledged))
    return losses, after_checkpoint


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="strace is missing, or may not trace here")


@needs_strace
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_acknowledged_is_lost_whatever_the_threads_do(tmp_path: Path, seed: int) -> None:
    losses, after_checkpoint = lost(tmp_path, seed, "honest", cuts=50)
    assert losses == 0
    assert after_checkpoint > 10


@needs_strace
def test_a_store_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    losses, _ = lost(tmp_path, 1, "lying", cuts=30)
    assert losses > 0


# -- the same without strace ---------------------------------------------------


class Steps:
    """Stands in for the checkpoint's connection: it commits between the steps, and keeps what each left on the disk."""

    def __init__(self, conn: Any, between: Callable[[], None], keep: Callable[[], None]) -> None:
        self._conn, self._between, self._keep = conn, between, keep

    def execute(self, statement: str) -> Any:
        answer = self._conn.execute(statement)
        self._keep()  # a checkpoint ends with both files synced
        self._between()
        return answer


class Trial:
    """One store whose synced image is known at every moment. Reads only the files that SQLite does not lock."""

    def __init__(self, folder: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dice, self.folder = dice, folder
        self.sync = sync_file
        monkeypatch.setattr(barrier, "sync_file", self._sync)
        self.store = Database(folder / "state.db", checkpoint_bytes=1 << 30)
        self.store.migrate("t", TABLE)
        self.written = 0
        self.checkpoint()

    def _sync(self, descriptor: int) -> None:
        log = self._log()  # what is there when the sync starts
        self.sync(descriptor)
        self.image["state.db-wal"] = log

    def _log(self) -> bytes:
        return (self.folder / "state.db-wal").read_bytes()

    def _main(self) -> bytes:
        # by another process: to close a descriptor of this file here would drop SQLite's locks
        return subprocess.run(["cat", self.folder / "state.db"], check=True, capture_output=True).stdout

    def write(self) -> None:
        with self.store.transaction() as conn:
            text = chr(self.dice.randint(97, 122)) * self.dice.randint(1, 3_000)
            conn.execute("INSERT INTO t (v) VALUES (?)", (text,))
        self.written += 1

    def keep(self) -> None:
        self.image = {"state.db": self._main(), "state.db-wal": self._log()}

    def checkpoint(self) -> None:
        conn = db._connect(self.folder / "state.db", db.CHECKPOINT_WAIT_MS)
        self.store._checkpoint(Steps(conn, self.write, self.keep))  # type: ignore[arg-type]
        conn.close()

    def cut(self) -> Image:
        """Of what came after the last sync, any sectors may have arrived."""
        log, now = bytearray(self.image["state.db-wal"]), self._log()
        for at in range(0, len(now), SECTOR):
            if now[at : at + SECTOR] != log[at : at + SECTOR]:
                sectors(log, at, now[at : at + SECTOR], self.dice)
        return {"state.db": self.image["state.db"], "state.db-wal": bytes(log)}


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Trial]]:
    made: list[Trial] = []

    def build(seed: int) -> Trial:
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.undo()
        made.append(Trial(folder, random.Random(seed), monkeypatch))
        return made[-1]

    yield build
    for trial in made:
        trial.store.close()


async def test_nothing_acknowledged_is_lost_in_a_hundred_cuts(tmp_path: Path, trials: Callable[[int], Trial]) -> None:
    for seed in range(100):
        trial = trials(seed)
        acknowledged = 0
        for _ in range(trial.dice.randint(1, 25)):
            trial.write()
            if trial.dice.random() < 0.3:
                await asyncio.wait_for(trial.store.on_disk(), 10)
                acknowledged = trial.written
            if trial.dice.random() < 0.1:
                trial.checkpoint()
        assert check(tmp_path / "after", trial.cut(), set(range(1, acknowledged + 1))) == set(), seed
        trial.store.close()
