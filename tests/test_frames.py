"""frames.py: what is stored comes out letter for letter, and is shorter than what is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repowire.deliveries import Delivery
from repowire.frames import encode, on_the_wire, packed
from repowire.protocol import how_to_ack


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3))
def test_a_frame_comes_out_of_the_table_letter_for_letter(text, more):
    for kind in ("ask", "notify", "broadcast", "response"):
        trace = "ask-0123456789ab"
        frame = {"type": kind, "correlation_id": trace, "text": text + how_to_ack(trace) * 2, **more}
        whole = encode({key: value for key, value in frame.items() if kind == "ask" or key != "correlation_id"})
        row = [None] * len(Delivery._fields)
        row[Delivery._fields.index("trace")] = trace
        row[Delivery._fields.index("frame")] = packed(whole, trace)
        assert Delivery.of(row).frame == whole
        row[Delivery._fields.index("frame")] = whole  # as it was stored before
        assert Delivery.of(row).frame == whole


def test_an_ask_is_stored_without_what_all_asks_have_alike():
    trace = "ask-0123456789ab"
    frame = encode({"type": "ask", "correlation_id": trace, "from_peer": "a", "text": how_to_ack(trace)})
    assert packed(frame, trace) == '\x01"from_peer":"a","text":"\x03"}'


@pytest.mark.parametrize("size", [0, 1, 125, 126, 255, 256, 65_535])
def test_a_text_is_one_whole_frame_whatever_its_size(size):
    """RFC 6455, 5.2: FIN and opcode 1, no mask, seven bits of length or sixteen after 126."""
    frame = on_the_wire("é" * (size // 2) + "x" * (size % 2))
    assert frame[0] == 0x81
    assert frame[1] == min(size, 126)
    begins = 2 if size < 126 else 4
    assert size < 126 or int.from_bytes(frame[2:4], "big") == size
    assert frame[begins:].decode() == "é" * (size // 2) + "x" * (size % 2)
