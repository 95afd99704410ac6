"""The ledger: whole lines, numbers that only grow, and nothing lost in silence."""

import errno
import json
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from repowire import ledger as ledger_module
from repowire.ledger import Ledger, LedgerError, Line

SMALL = 512  # bytes of a segment, so that a few lines rotate it
Open = Callable[..., Ledger]

facts = st.dictionaries(
    st.text(max_size=8),
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=30)
    | st.lists(st.integers(), max_size=3),
    max_size=4,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "traces"


@pytest.fixture
def opened(folder: Path) -> Iterator[Open]:
    made: list[Ledger] = []

    def build(segment_bytes: int = SMALL, **more: Any) -> Ledger:
        made.append(Ledger(folder, segment_bytes=segment_bytes, **more))
        return made[-1]

    yield build
    for one in made:
        one.close()


def fill(ledger: Ledger, lines: int) -> None:
    for _ in range(lines):
        ledger.append("ask.opened", 1.0, {"ask": "ask-9f3c0a7d21be"})


def events(ledger: Ledger, seq: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    """Everything after a number, read a few lines at a time."""
    found: list[Line] = []
    while lines := ledger.after(found[-1].seq if found else seq, limit=7):
        found += lines
    return [(line.seq, line.kind, line.facts) for line in found]


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def whole_lines(folder: Path) -> bool:
    """Whether every byte of every segment belongs to a line of JSON."""
    texts = [(folder / name).read_bytes() for name in files(folder)]
    return all(not text or text.endswith(b"\n") for text in texts) and all(
        json.loads(line) for text in texts for line in text.splitlines()
    )


class Pen:
    """Stands in for `os.write`: the next calls do what `faults` says, later ones write."""

    def __init__(self, faults: list[int | OSError]) -> None:
        self.faults, self.write, self.calls = faults, os.write, 0

    def __call__(self, descriptor: int, data: bytes) -> int:
        self.calls += 1
        if not self.faults:
            return self.write(descriptor, data)
        fault = self.faults.pop(0)
        if isinstance(fault, OSError):
            raise fault
        return self.write(descriptor, data[:fault])


# -- appending -----------------------------------------------------------------


def test_a_line_is_compact_json_in_its_file(opened: Open, folder: Path) -> None:
    assert opened().append("ask.opened", 12.5, {"ask": "ask-1", "text": "süß"}) == 1
    text = (folder / "trace-000001.jsonl").read_text()
    assert text == '{"seq":1,"at":12.5,"kind":"ask.opened","ask":"ask-1","text":"süß"}\n'


def test_files_and_folder_are_private(opened: Open, folder: Path) -> None:
    fill(opened(), 20)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_each_line_is_one_write(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, pen = opened(), Pen([])
    monkeypatch.setattr(os, "write", pen)
    fill(ledger, 3)
    assert pen.calls == 3


@pytest.mark.parametrize(
    "given_facts",
    [{"what": object()}, {"deep": {1, 2}}, {("a", "b"): 1}, {"text": "\ud800"}, {"nan": float("nan")}],
)
def test_append_never_raises(opened: Open, folder: Path, given_facts: dict[Any, Any]) -> None:
    ledger = opened()
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert ledger.append("odd", 1.0, given_facts) == 1
    assert ledger.append("loop", 1.0, loop) == 2
    assert whole_lines(folder)
    assert [line.seq for line in opened().after(0)] == [1, 2]


def test_a_fact_cannot_forge_the_number_moment_or_kind(opened: Open) -> None:
    ledger = opened(ring=1)
    ledger.append("true.kind", 1.0, {"seq": 99, "at": 0, "kind": "forged"})
    fill(ledger, 1)
    assert ledger.after(0)[0][:4] == (1, 1.0, "true.kind", {"seq_": 99, "at_": 0, "kind_": "forged"})


@given(written=st.lists(st.tuples(st.text(min_size=1, max_size=8), facts), max_size=30), ring=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_was_appended(written: list[tuple[str, dict[str, Any]]], ring: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        ledger = Ledger(Path(name), segment_bytes=SMALL, ring=ring)
        plain = [(kind, {k: v for k, v in some.items() if k not in ledger_module.RESERVED}) for kind, some in written]
        for kind, some in plain:
            ledger.append(kind, 1.0, some)
        expected = [(number, kind, some) for number, (kind, some) in enumerate(plain, 1)]
        assert events(ledger) == expected
        ledger.close()
        ledger = Ledger(Path(name), segment_bytes=SMALL, ring=ring)
        assert events(ledger) == expected
        for line in ledger.after(0):
            assert ledger.read(line.segment, line.offset) == line
        ledger.close()


# -- full disks ----------------------------------------------------------------


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), 0, 1, 20])
def test_a_line_that_does_not_fit_leaves_whole_lines_and_a_gap(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: int | OSError
) -> None:
    ledger = opened()
    fill(ledger, 2)
    monkeypatch.setattr(os, "write", Pen([fault, fault]))
    fill(ledger, 2)
    assert (ledger.last, ledger.lost) == (4, 2)
    assert ledger.failure is not None
    assert "trace-000001.jsonl" in ledger.failure
    assert whole_lines(folder)
    fill(ledger, 1)
    assert ledger.failure is None
    assert [seq for seq, _, _ in events(ledger)] == [1, 2, 5]
    assert [seq for seq, _, _ in events(opened())] == [1, 2, 5]


def test_a_torn_piece_that_cannot_be_cut_at_once_is_cut_later(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened()
    fill(ledger, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Pen([10]))
        patch.setattr(os, "ftruncate", Pen([OSError(errno.EIO, "Input/output error")]))
        fill(ledger, 1)
    assert not whole_lines(folder)
    assert [seq for seq, _, _ in events(ledger)] == [1]
    fill(ledger, 1)
    assert whole_lines(folder)
    assert [seq for seq, _, _ in events(ledger)] == [1, 3]


def test_a_new_segment_that_cannot_be_made_is_made_later(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened()
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_open", _fail)
        fill(ledger, 12)
        assert files(folder) == ["trace-000001.jsonl"]
    fill(ledger, 8)
    assert files(folder)[:2] == ["trace-000001.jsonl", "trace-000002.jsonl"]
    assert [seq for seq, _, _ in events(ledger)] == list(range(1, 21))


def _fail(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_sync_that_fails_is_told_until_one_succeeds(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened()
    fill(ledger, 1)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "sync_file", _fail)
        with pytest.raises(OSError, match="No space"):
            ledger.sync()
    fill(ledger, 1)
    assert ledger.failure is not None
    ledger.sync()
    assert ledger.failure is None


# -- opening -------------------------------------------------------------------


@given(lines=st.integers(1, 12), cut=st.integers(0, 600), segment_bytes=st.sampled_from([SMALL, 1 << 20]))
@settings(max_examples=120, deadline=None)
def test_a_ledger_cut_anywhere_opens_with_whole_lines(lines: int, cut: int, segment_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger = Ledger(folder, segment_bytes=segment_bytes)
        fill(ledger, lines)
        ledger.close()
        last = folder / files(folder)[-1]
        keep = max(0, last.stat().st_size - cut)
        os.truncate(last, keep)
        torn = keep - (last.read_bytes().rfind(b"\n") + 1)
        ledger = Ledger(folder, segment_bytes=segment_bytes)
        kept = [seq for seq, _, _ in events(ledger)]
        assert kept == list(range(1, len(kept) + 1))
        assert (ledger.last, ledger.cut_bytes) == (len(kept), torn)
        assert whole_lines(folder)
        ledger.expect(lines, 2.0)
        tail = [(kind, some) for _, kind, some in events(ledger, max(lines, len(kept)))]
        gap = {"first": len(kept) + 1, "last": lines, "reason": "the ledger ended before the database"}
        assert tail == [("ledger.gap", gap)] * (len(kept) < lines) + [("ledger.cut", {"bytes": torn})] * bool(torn)
        ledger.close()


def test_a_gap_takes_the_number_after_it(opened: Open) -> None:
    fill(opened(), 3)
    ledger = opened()
    ledger.expect(7, 2.0)
    assert ledger.last == 8
    assert [(line.seq, line.at, line.kind) for line in ledger.after(3)] == [(8, 2.0, "ledger.gap")]
    assert ledger.after(3)[0].facts["first"] == 4
    assert ledger.after(3)[0].facts["last"] == 7


def test_a_ledger_that_has_everything_says_nothing(opened: Open) -> None:
    fill(opened(), 3)
    ledger = opened()
    ledger.expect(3, 2.0)
    ledger.expect(1, 2.0)
    assert ledger.last == 3


def damaged(opened: Open, *words: str) -> None:
    with pytest.raises(LedgerError) as caught:
        events(opened())
    assert all(word in str(caught.value) for word in words), caught.value


def test_corruption_in_an_old_place_is_refused_by_file_and_byte(opened: Open, folder: Path) -> None:
    fill(opened(), 30)
    path = folder / "trace-000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"x" * (len(lines[3]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    damaged(opened, "trace-000002.jsonl", f"byte {sum(map(len, lines[:3]))}", "restore it")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda lines: [b"\0" * 20 + b"\n", *lines[1:]], "byte 0"),
        (lambda lines: [*lines[:-1], b'{"seq":"1"}\n'], "byte"),
        (lambda lines: [*lines[:-1], b'{"seq":"1","at":1,"kind":"x"}\n'], "wrong type"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "does not end"),
        (lambda lines: lines[::-1], "number"),
        (lambda lines: [], "cannot be read"),
    ],
)
def test_the_ends_of_an_old_segment_are_checked_at_open(
    opened: Open, folder: Path, spoil: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    fill(opened(), 30)
    path = folder / "trace-000002.jsonl"
    path.write_bytes(b"".join(spoil(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(LedgerError, match=words) as caught:
        opened()
    assert str(path) in str(caught.value)


def test_a_missing_segment_is_named(opened: Open, folder: Path) -> None:
    fill(opened(), 40)
    (folder / "trace-000002.jsonl").unlink()
    with pytest.raises(LedgerError, match=r"trace-000002\.jsonl: is missing"):
        opened()


def test_opening_reads_only_the_ends(opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(segment_bytes=100_000)
    fill(ledger, 20_000)
    parsed: list[int] = []
    parse = Ledger._parse

    def note(self: Ledger, raw: bytes, segment: int, offset: int) -> Line:
        parsed.append(offset)
        return parse(self, raw, segment, offset)

    monkeypatch.setattr(Ledger, "_parse", note)
    again = opened(segment_bytes=100_000)
    assert len(parsed) == 2 * len(files(folder))
    parsed.clear()
    assert [line.seq for line in again.after(9_000, limit=3)] == [9_001, 9_002, 9_003]
    assert len(parsed) < 20  # found by halving


# -- reading -------------------------------------------------------------------


def test_a_place_where_no_line_begins_is_an_error(opened: Open) -> None:
    ledger = opened()
    fill(ledger, 2)
    with pytest.raises(LedgerError, match="no line begins there"):
        ledger.read(1, 5)
    with pytest.raises(LedgerError, match=r"trace-000009\.jsonl: cannot be read"):
        ledger.read(9, 0)
    with pytest.raises(LedgerError, match="damaged at byte"):
        ledger.read(1, ledger._size)


@pytest.mark.parametrize("ring", [1, 3])
def test_a_long_line_is_read_whole_whether_it_is_new_or_old(opened: Open, ring: int) -> None:
    ledger = opened(segment_bytes=1 << 20, ring=ring)
    for size in (1, 5_000, 300_000):
        ledger.append("long", 1.0, {"text": "x" * size})
    lines = ledger.after(0)
    assert [len(line.facts["text"]) for line in lines] == [1, 5_000, 300_000]
    assert [ledger.read(line.segment, line.offset) for line in lines] == lines
    ledger.close()
    assert opened(segment_bytes=1 << 20).last == 3


def test_limits_and_numbers_yet_to_come(opened: Open) -> None:
    ledger = opened(ring=5)
    fill(ledger, 50)
    assert [line.seq for line in ledger.after(10, limit=4)] == [11, 12, 13, 14]
    assert [line.seq for line in ledger.after(47, limit=2)] == [48, 49]
    assert ledger.after(50) == ledger.after(51) == []
    assert len(ledger.after(0, limit=1)) == 1


# -- retention -----------------------------------------------------------------


def test_old_segments_go_by_age_but_never_the_current_one(opened: Open, folder: Path) -> None:
    ledger = opened()
    for at in range(40):
        ledger.append("tick", float(at), {"text": "x" * 40})
    newest = [segment.newest_at for segment in ledger._segments]
    assert ledger.prune(newest[1] + 100.0, 100.0, 1 << 40) == [1]
    assert ledger.prune(newest[1] + 100.5, 100.0, 1 << 40) == [2]
    assert ledger.first == ledger.after(0)[0].seq == int(newest[1]) + 2  # the numbers begin at 1, the moments at 0
    removed = ledger.prune(1e9, 100.0, 1 << 40)
    assert removed == list(range(3, ledger._number))
    assert files(folder) == [f"trace-{ledger._number:06}.jsonl"]
    assert ledger.read(1, 0) is None
    ledger.close()
    again = opened()
    assert (again.last, again.first) == (40, ledger.first)


def test_old_segments_go_by_size(opened: Open, folder: Path) -> None:
    ledger = opened()
    fill(ledger, 60)
    total = sum((folder / name).stat().st_size for name in files(folder))
    first = (folder / "trace-000001.jsonl").stat().st_size
    assert ledger.prune(1.0, 1e9, total) == []
    assert ledger.prune(1.0, 1e9, total - first) == [1]
    assert ledger.prune(1.0, 1e9, 0) == list(range(2, ledger._number))


def test_an_empty_ledger(opened: Open) -> None:
    ledger = opened()
    assert (ledger.last, ledger.first, ledger.after(0)) == (0, 1, [])
    assert ledger.prune(1e12, 0.0, 0) == []
    ledger.expect(0, 1.0)
    assert ledger.last == 0


# -- threads -------------------------------------------------------------------


def test_sync_may_run_while_lines_are_written_and_segments_change(opened: Open, folder: Path) -> None:
    ledger, stop, errors = opened(), threading.Event(), []

    def sync() -> None:
        try:
            while not stop.is_set():
                ledger.sync()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    fill(ledger, 500)
    ledger.close()
    stop.set()
    thread.join()
    assert errors == []
    assert len(events(opened())) == 500


# -- any order of it all -------------------------------------------------------


class LifeOfALedger(RuleBasedStateMachine):
    """Whatever the order of appends, faults, reopenings and prunings: `after` gives what was written and is kept."""

    @initialize(ring=st.integers(1, 6))
    def begin(self, ring: int) -> None:
        self.home = tempfile.TemporaryDirectory()
        self.ring, self.last = ring, 0
        self.model: list[tuple[int, str, dict[str, Any]]] = []
        self.ledger = self.open()

    def open(self) -> Ledger:
        return Ledger(Path(self.home.name), segment_bytes=300, ring=self.ring)

    @rule(text=st.text(max_size=60))
    def append(self, text: str) -> None:
        self.last += 1
        assert self.ledger.append("said", float(self.last), {"text": text}) == self.last
        self.model.append((self.last, "said", {"text": text}))

    @rule(fault=st.integers(0, 30) | st.just(OSError(errno.ENOSPC, "No space left on device")))
    def append_in_vain(self, fault: int | OSError) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", Pen([fault]))
            self.ledger.append("lost", 1.0, {"text": "x" * 30})
        self.last += 1

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = self.open()
        kept = self.model[-1][0] if self.model else 0
        self.ledger.expect(self.last, 1.0)  # what was spent last, only the database knows
        if kept < self.last:
            reason = "the ledger ended before the database"
            gap = {"first": kept + 1, "last": self.last, "reason": reason}
            self.last += 1
            self.model.append((self.last, "ledger.gap", gap))

    @rule(keep_bytes=st.integers(0, 3_000))
    def prune(self, keep_bytes: int) -> None:
        self.ledger.prune(1.0, 1e9, keep_bytes)
        self.model = [event for event in self.model if event[0] >= self.ledger.first]

    @rule(seq=st.integers(0, 60), limit=st.integers(1, 9))
    def look(self, seq: int, limit: int) -> None:
        kept = [event for event in self.model if event[0] > seq]
        found = [(line.seq, line.kind, line.facts) for line in self.ledger.after(seq, limit)]
        assert found == kept[:limit]

    @invariant()
    def numbers_grow_and_lines_are_whole(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.last == self.last
            assert whole_lines(Path(self.home.name))

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.home.cleanup()


TestLifeOfALedger = LifeOfALedger.TestCase
TestLifeOfALedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
