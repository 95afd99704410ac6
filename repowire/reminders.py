"""Reminders: the open asks of a peer, said at the end of a turn; on an edge, and never twice for the same fact.

The first edge is the end of the turn that saw the ask and left it open; then it is how long the ask has waited since
it was last said. One turn's reminders keep within a budget of bytes: what does not fit is counted, and named first the
next time.
"""

from sqlite3 import Connection

from repowire.asks import Ask
from repowire.mesh import Change
from repowire.protocol import clean

AGAIN_SECONDS = (900.0, 3_600.0, 14_400.0)  # since it was said once, twice, and every time after that
LINE_CHARS = 150  # of an ask's text (wire.md 5.5)
LINE_BYTES_LEAST = 30  # no line is shorter
HEAD = "[repowire] You have not answered yet (answer with the tool ack):"

# -- queries -------------------------------------------------------------------


def due(db: Connection, peer_id: str, now: float) -> list[Ask]:
    """The open asks to be said now: the least often named first, then the oldest.

    What was handed and never shown counts as shown once it lies there as long as between two reminders: its ids may
    stand where no transcript of ours tells.
    """
    first, second, later = (now - seconds for seconds in AGAIN_SECONDS)
    rows = db.execute(
        "SELECT asks.* FROM asks JOIN deliveries USING (delivery_id)"
        " WHERE to_peer_id = :peer AND asks.closed_at IS NULL AND (reminded_at IS NULL"
        " OR reminded_at <= CASE reminders WHEN 0 THEN :first WHEN 1 THEN :first WHEN 2 THEN :second ELSE :later END)"
        " AND (deliveries.state IN ('seen', 'unknown') OR deliveries.state = 'handed' AND handed_at <= :first)"
        " ORDER BY reminders, asks.seq",
        {"peer": peer_id, "first": first, "second": second, "later": later},
    )
    return [Ask(*row) for row in rows]


# -- rules ---------------------------------------------------------------------


def remind(change: Change, peer_id: str, budget_bytes: int) -> str:
    """The text that says what is due, at most that many bytes of UTF-8, and its asks noted as said.

    Empty when nothing is due, or not even the count fits: then all stay due.
    """
    asks = due(change.db, peer_id, change.now)
    lines = [
        f"#{ask.correlation_id} from @{ask.from_peer}, {_age(change.now - ask.created_at)}: {_short(ask.text)}"
        for ask in asks
    ]
    most = min(len(asks), max(0, budget_bytes) // LINE_BYTES_LEAST)
    for named in range(most if asks else -1, -1, -1):
        rest = [_rest(asks[named:], change.now)] if named < len(asks) else []
        text = "\n".join([HEAD, *lines[:named], *rest])
        if len(text.encode()) <= budget_bytes:
            _said(change, asks[:named], asks[named:])
            return text
    return ""


def _rest(asks: list[Ask], now: float) -> str:
    oldest = min(asks, key=lambda ask: ask.seq)
    more = "more, oldest" if len(asks) > 1 else "more,"
    return f"and {len(asks)} {more} {_age(now - oldest.created_at)}: #{oldest.correlation_id} from @{oldest.from_peer}"


def _said(change: Change, named: list[Ask], counted: list[Ask]) -> None:
    for asks, one in ((named, 1), (counted, 0)):
        change.db.executemany(
            "UPDATE asks SET reminded_at = ?, reminders = reminders + ? WHERE seq = ?",
            [(change.now, one, ask.seq) for ask in asks],
        )


def _short(text: str) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= LINE_CHARS else f"{line[: LINE_CHARS - 1]}…"


def _age(seconds: float) -> str:
    """In the largest unit of which there is one."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(0.0, seconds))} s"
