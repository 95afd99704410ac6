"""A file backwards: its lines are the same as forwards, whatever is in it, and a page costs no more than it holds."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repowire import scroll
from repowire.scroll import Line, Scroll


def forwards(content: bytes) -> list[Line]:
    """The lines as anybody would read them."""
    found, at = [], 0
    for piece in content.split(b"\n"):
        if piece:
            found.append(Line(at, piece))
        at += len(piece) + 1
    return found


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], Scroll]:
    file = tmp_path / "lines"

    def write(content: bytes) -> Scroll:
        file.write_bytes(content)
        return Scroll(file)

    return write


pieces = st.lists(st.one_of(st.binary(max_size=40), st.just(b"\n"), st.binary(min_size=90, max_size=200)), max_size=30)


@given(parts=pieces, block=st.integers(1, 64), data=st.data())
def test_the_lines_are_the_same_from_either_end(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block: int, data: st.DataObject
) -> None:
    content = b"".join(parts)
    file = tmp_path_factory.mktemp("s") / "f"
    file.write_bytes(content)
    kept = scroll.BLOCK_BYTES
    scroll.BLOCK_BYTES = block
    try:
        opened = Scroll(file)
        lines = forwards(content)
        assert list(opened.backwards()) == lines[::-1]
        assert all(opened.begins_line(line.offset) for line in lines)
        if lines:
            at = data.draw(st.sampled_from(lines)).offset
            assert list(opened.backwards(at)) == [line for line in lines if line.offset < at][::-1]
        opened.close()
    finally:
        scroll.BLOCK_BYTES = kept


def test_a_page_of_a_large_file_costs_what_the_page_holds(opened: Callable[[bytes], Scroll]) -> None:
    line = b"x" * 999 + b"\n"
    large = opened(line * 200_000)  # 200 MB
    lines = large.backwards()
    last = [next(lines) for _ in range(50)]
    assert last[-1].offset == large.size - 50 * 1000
    assert large.bytes_read <= scroll.BLOCK_BYTES
    middle = list(zip(range(50), large.backwards(100_000_000), strict=False))
    assert middle[0][1].offset == 100_000_000 - 1000
    assert large.bytes_read <= 2 * scroll.BLOCK_BYTES
    large.close()


def test_a_line_of_ten_megabytes_is_read_and_one_that_is_too_long_is_passed_over(
    opened: Callable[[bytes], Scroll], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b"y" * 10_000_000
    file = opened(b"first\n" + long + b"\nlast\n")
    assert [line.raw for line in file.backwards()] == [b"last", long, b"first"]
    monkeypatch.setattr(scroll, "LONGEST_BYTES", 9_000_000)
    assert [line.raw for line in file.backwards()] == [b"last", None, b"first"]
    file.close()


def test_a_file_that_is_cut_while_it_is_read_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"z" * 99 + b"\n" + b"w" * 1_000_000)
    file = Scroll(path)
    os.truncate(path, 0)
    assert list(file.backwards()) == []
    file.close()
