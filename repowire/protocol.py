"""Names that both sides of the wire must spell alike: event kinds, frames, close codes, headers, limits.

One table maps our event kinds to the published event types and to the stages of a trace (wire.md 3, 6, 16).
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

BACKENDS = ("claude-code", "opencode", "codex", "gemini", "antigravity", "pi", "mcp-http", "shell")
ROLES = ("agent", "service", "orchestrator", "human")
BYPASS_ROLES = ("service", "orchestrator", "human")  # as sender or as target they are in every circle
TURN_STATES = ("idle", "working", "awaiting_input", "pending_first_turn")
CIRCLE_SOURCES = ("tmux", "spawn_hint", "fallback")

IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")
DEFAULT_CIRCLE = "default"
ORCHESTRATOR = "orchestrator"  # the one role of which a circle has one at most
HUMAN = "human"  # the lasting peer of whoever sits at the machine (wire.md 16, row 29)

MAX_TEXT_CHARS = 64_000
MAX_BODY_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 20
MAX_METADATA_BYTES = 16 << 10
FIRST_FRAME_SECONDS = 5.0  # measured from the connect, not from the first byte

HINT = "\n↳ "  # between the text of an ask and the line that says how to answer it (wire.md 2.4)

# Close codes of /ws (wire.md 2.2 and 16, row 10)
CLOSE_NOT_CONNECT = 4000
CLOSE_AUTHENTICATION = 4001
CLOSE_INVALID = 4002
CLOSE_INVALID_PATH = 4003
CLOSE_RETIRED = 4004
CLOSE_REPLACED = 4005

# What a client can promise in its connect frame
RECEIPTS = "delivery_receipts"  # it answers every frame that has a delivery_id with a delivery_ack
DEDUPE = "dedupe"  # it remembers the delivery ids it took, so that the same one may be sent again

# States of a delivery, weakest proof first (wire.md 16, row 15)
QUEUED, LEASED, HELD, HANDED, SEEN, ANSWERED = "queued", "leased", "held", "handed", "seen", "answered"
FAILED, EXPIRED, UNKNOWN = "failed", "expired", "unknown"
HELD_BY_USER = "held_by_user"  # the gate that a person closes and opens


class Stage(NamedTuple):
    """One step of a trace as GET /traces shows it."""

    name: str
    ok: bool = True


class Kind(NamedTuple):
    """What an event kind is to readers: its published type, if it has one, and the stages that it stands for."""

    event: str | None = None
    stages: tuple[Stage, ...] = ()


def _stages(*names: str) -> tuple[Stage, ...]:
    return tuple(Stage(name) for name in names)


# What goes straight through an open door is leased in the change that takes it: one line, with `by`, says both.
LEASED_AT_ONCE = _stages("routed", "leased")

# What a receipt over a socket proves beside `handed`, in the published words: that its hook had it, and where the peer
# has a pane, that the text is in it.
RECEIVED = _stages("hook_received")
INJECTED = _stages("hook_received", "pane_injected")

KINDS: dict[str, Kind] = {
    "daemon.started": Kind(),
    "daemon.stopped": Kind(),
    "task.crashed": Kind(),
    "token.rotated": Kind(),
    "ledger.gap": Kind(),
    "ledger.cut": Kind(),
    "ledger.grown": Kind(),
    "peer.registered": Kind(),
    "peer.returned": Kind(),
    "peer.claim_refused": Kind(),
    "peer.changed": Kind(),
    "peer.displaced": Kind(),
    "peer.online": Kind(),
    "peer.offline": Kind("peer_offline"),
    "peer.retired": Kind(),
    "peer.unregistered": Kind(),
    "peer.reaped": Kind("peer_reaped"),
    "peer.forgotten": Kind(),
    "peer.role_claimed": Kind("role_claimed"),
    "peer.held": Kind(),
    "peer.released": Kind(),
    "peer.contradicted": Kind("peer_contradiction"),
    "presence.changed": Kind(),
    "session.bound": Kind(),
    "channel.opened": Kind(),
    "channel.closed": Kind(),
    "pane.host": Kind(),
    "pane.linked": Kind(),
    "pane.rehooked": Kind(),
    "pane.unlinked": Kind(),
    "mcp.changed": Kind(),
    "spawn.opened": Kind(),
    "spawn.failed": Kind(),
    "chat.turned": Kind("chat_turn"),
    "chat.streamed": Kind("chat_turn_delta"),
    "socket.opened": Kind(),
    "socket.closed": Kind(),
    "ask.opened": Kind("ask", _stages("created", "resolved_peer")),
    "ask.acked": Kind("ack", _stages("acked", "closed", "answered")),
    "ask.handed_over": Kind(None, _stages("handed_over")),
    "ask.closed": Kind(None, _stages("closed")),
    "fanout.opened": Kind(None, _stages("created")),
    "question.asked": Kind("ask", _stages("created")),
    "question.answered": Kind("ack", _stages("answered", "closed")),
    "question.closed": Kind(None, _stages("closed")),
    "notify.accepted": Kind("notification", _stages("created", "resolved_peer")),
    "broadcast.accepted": Kind("broadcast", _stages("created", "resolved_peer")),
    "broadcast.leased": Kind(None, _stages("routed", "leased")),
    "broadcast.sent": Kind(None, _stages("websocket_sent")),
    "delivery.queued": Kind(None, _stages("pending")),
    "delivery.leased": Kind(None, _stages("routed", "leased")),
    "delivery.sent": Kind(None, _stages("websocket_sent")),
    "delivery.held": Kind(None, _stages("held")),
    "delivery.handed": Kind(None, _stages("handed")),
    "delivery.seen": Kind(None, _stages("seen")),
    "delivery.failed": Kind(None, (Stage("hook_received"), Stage("injection_failed", ok=False))),
    "delivery.expired": Kind(None, (Stage("expired", ok=False),)),
    "delivery.unknown": Kind(None, (Stage("unknown", ok=False),)),
}

ID_FACTS = ("trace", "delivery_id", "correlation_id", "peer_id", "from_peer_id", "to_peer_id")


def topics(facts: dict[str, Any]) -> list[str]:
    """The ids among an event's facts: beside its kind, what it rings on the bus."""
    return [facts[key] for key in ID_FACTS if key in facts]


def is_identifier(text: object) -> bool:
    """Whether it can name a peer or a circle: letters, digits, `._-`, at most 64."""
    return isinstance(text, str) and IDENTIFIER.fullmatch(text) is not None


# -- what an agent reads -------------------------------------------------------

# Everything that a terminal or a model could take for more than text: C0 save newline and tab, DEL, C1, the line and
# paragraph separators, and the marks that turn the direction of writing (wire.md 16, row 30; field.md E2, paste escape)
UNSAFE = re.compile(
    "\x1b\\[20[01]~|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
BLOCK = re.compile(
    r"\[repowire ([0-9a-f]{4})\] [^\n]*? #((?:ask|notif-delivery|ask-delivery|qd)-[0-9a-f]+)\n.*?\n\[/repowire \1\]",
    re.DOTALL,
)
FROM_AGENT, FROM_HUMAN = "from a peer agent, not your user", "from your user, by repowire"


def how_to_ack(correlation_id: str) -> str:
    """The end of an ask's text on the wire (wire.md 2.4)."""
    return f'{HINT}ack("{correlation_id}") or ack("{correlation_id}", "reply")'


def clean(text: str) -> str:
    """The text without what is no text; all else letter for letter."""
    return UNSAFE.sub("", text.replace("\r\n", "\n"))


def render(frame: Mapping[str, Any]) -> str:
    """The one text that an agent reads, whatever way it comes in, from a frame of /ws.

    The code of the fence is new each time and stands nowhere in the text, so that no text can close it.
    """
    text = str(frame.get("text") or "")
    if frame["type"] == "ask" and HINT in text:
        text = text.rpartition(HINT)[0]
    body = "\n".join([clean(text).strip("\n"), *_options(frame), *_attached(frame)])
    code = _code(body)
    ask = frame.get("correlation_id") if frame["type"] == "ask" else None
    end = FROM_HUMAN if frame.get("from_peer") == HUMAN else FROM_AGENT  # a name that nobody else is given
    answer = f" · answer with {_call(ask, frame.get('question'))}" if ask else ""
    known = ask or frame.get("delivery_id")
    return (
        f"[repowire {code}] @{_name(frame.get('from_peer'))} → @{_name(frame.get('to_peer') or 'all')}"
        f" · {frame['type']}{f' #{known}' if known else ''}\n{body}\n[/repowire {code}] {end}{answer}"
    )


def _call(ask: str, question: Any) -> str:
    """The call of a tool that answers it."""
    if not isinstance(question, dict):
        return f'ack("{ask}", "…")'
    kind = question.get("kind")
    if kind == "choice":
        return f'answer("{ask}", option_id="…")'
    return f'ack("{ask}")' if kind == "acknowledge" else f'answer("{ask}", text="…")'


def _options(frame: Mapping[str, Any]) -> list[str]:
    """What a structured question asks beside its text, and a line for each answer to choose from."""
    question = frame.get("question")
    if frame["type"] != "ask" or not isinstance(question, dict):
        return []
    prompt = clean(str(question.get("prompt") or "")).strip("\n")
    lines = [prompt] if prompt and prompt != str(frame.get("text") or "").rpartition(HINT)[0] else []
    for option in question.get("options") or ():
        title, about = option.get("title"), option.get("description")
        more = f": {_line(title)}" if title and title != option.get("id") else ""
        lines.append(f"[option {_line(option.get('id'))}{more}{f' ({_line(about)})' if about else ''}]")
    return lines


def _code(body: str) -> str:
    """Four hex digits that the body does not have."""
    while (code := os.urandom(2).hex()) in body:  # ends: MAX_TEXT_CHARS cannot hold every code
        continue
    return code


def _name(name: object) -> str:
    """A name that cannot end its line, nor look like another's."""
    return re.sub(r"[^\w.\-]+", "-", clean(str(name or "")))[:64] or "?"


def _attached(frame: Mapping[str, Any]) -> list[str]:
    """A line for each attachment."""
    lines = []
    for one in frame.get("attachments") or ():
        name = _line(one.get("filename") or one.get("id") or "file")
        where = f" at {_line(one['path'])}" if one.get("path") else ""
        size = f", {one['size']} bytes" if isinstance(one.get("size"), int) else ""
        lines.append(f"[attachment {name}{where}{size}]")
    return lines


def _line(text: object) -> str:
    return clean(str(text)).replace("\n", " ")[:1024]


def shown(text: str) -> list[str]:
    """The ids of the whole blocks in a text: what its reader was shown. What stands inside a block is its text."""
    return [match[2] for match in BLOCK.finditer(text)]
