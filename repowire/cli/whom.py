"""Names and ids on the command line that are looked up before anything is sent: the wire takes unknown ones in silence.

Published programs rely on that (wire.md 1.4, 1.5); a person who mistyped one wants to hear of it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repowire.cli import command as c
from repowire.client import RepowireClient
from repowire.errors import Refusal
from repowire.protocol import HUMAN

if TYPE_CHECKING:
    from repowire import shapes


def spared(daemon: RepowireClient, names: Sequence[str]) -> None:
    """Refuse a peer to be spared that there is none of: it would be told what it was not to hear."""
    for name in names:
        if name != HUMAN and (no := _missing(daemon, name)) is not None:
            c.fail(f"--exclude: {c.refused(no)}; nothing was sent", c.USAGE)


def stranger(daemon: RepowireClient, name: str | None) -> str | None:
    """What to say of a sender that is no peer; None for one that is, and where none was named."""
    if name is None or (no := _missing(daemon, name)) is None:
        return None
    near = " or ".join(no.facts.get("near") or ())
    return c.clean(f"--from: there is no peer {name!r}" + (f" (did you mean {near}?)" if near else ""))


def _missing(daemon: RepowireClient, name: str) -> Refusal | None:
    """The refusal of a name that nobody has; one of several is somebody's."""
    try:
        daemon.get_peer(name)
    except Refusal as no:
        if no.error == "peer_not_found":
            return no
        if no.error != "ambiguous_peer":
            raise
    return None


def to_answer(daemon: RepowireClient, ask_id: str) -> "shapes.TracedMessage":
    """The ask that another one is to answer; refused where there is none."""
    try:
        first = daemon.message(ask_id)
    except Refusal as no:
        if no.error != "message_not_found":
            raise
        c.fail(f"--reply-to: there is no ask {ask_id!r}, or it was closed over a day ago; nothing was sent", c.USAGE)
    if first["kind"] != "ask":
        c.fail(f"--reply-to: {ask_id} is a {first['kind']}, which no ask answers; nothing was sent", c.USAGE)
    return first


def unanswered(daemon: RepowireClient, first: "shapes.TracedMessage") -> str | None:
    """What to say of an ask that the other one did not answer; None where it did (wire.md 5.1)."""
    name = c.clean(first["id"])
    if first.get("ask_state") == "closed":
        return f"{name} was closed before ({c.clean(first.get('close_reason'))}): this ask answers nothing"
    if daemon.message(first["id"]).get("ask_state") == "closed":
        return None
    way = c.clean(f"from {first['to_peer']} to {first['from_peer']}")
    return f"{name} stays open: only an ask {way} answers it; answer it with: repowire ack {name}"
