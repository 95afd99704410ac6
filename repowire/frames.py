"""Frames: a frame of `/ws` as it is sent, and what is stored of it, which is less.

What nearly every frame has alike is kept as one control character, which JSON text never holds: at its beginning the
kind and the id of the ask, and the line that tells how to answer it.
"""

import json

from repowire.protocol import how_to_ack

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_NOTIFY = '{"type":"notify",'
_ASK_BEGINS, _NOTIFY_BEGINS, _HINT = "\x01", "\x02", "\x03"


def packed(frame: str, trace: str) -> str:
    """A frame as it is stored: some 120 bytes less for an ask."""
    begins = f'{{"type":"ask","correlation_id":"{trace}",'
    if frame.startswith(begins):
        return _ASK_BEGINS + frame[len(begins) :].replace(_hint(trace), _HINT, 1)
    return _NOTIFY_BEGINS + frame[len(_NOTIFY) :] if frame.startswith(_NOTIFY) else frame


def unpacked(stored: str, trace: str) -> str:
    """The frame that was stored, as JSON text."""
    if stored.startswith(_ASK_BEGINS):
        rest = stored[1:].replace(_HINT, _hint(trace), 1)
        return f'{{"type":"ask","correlation_id":"{trace}",{rest}'
    return _NOTIFY + stored[1:] if stored.startswith(_NOTIFY_BEGINS) else stored


def on_the_wire(text: str) -> bytes:
    """A text below 64 KiB as one WebSocket frame of a server: whole, unmasked, not compressed (RFC 6455, 5.2)."""
    data = text.encode()
    size = len(data)
    return (b"\x81%c" % size if size < 126 else b"\x81\x7e%b" % size.to_bytes(2)) + data


def _hint(trace: str) -> str:
    """`how_to_ack` as it stands in JSON text."""
    return encode(how_to_ack(trace))[1:-1]
