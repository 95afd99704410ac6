"""Idempotency: one key of one caller makes one thing, however often it is sent (wire.md 16, row 7).

A key is kept in the very change that makes its subject, so that there is no moment, a crash included, in which the one
is there without the other. The answer is not kept: it is made again from the subject's own row.
"""

import hashlib
import json
from typing import Any, NamedTuple

from aiohttp import web

from repowire.errors import conflict, invalid
from repowire.mesh import Change

HEADER = "Idempotency-Key"
KEPT_SECONDS = 24 * 3600.0
MAX_CHARS = 255

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE idempotency (
    caller TEXT NOT NULL, key TEXT NOT NULL,
    digest TEXT NOT NULL,                      -- SHA-256 of the route and the body
    subject TEXT NOT NULL,                     -- the id of what was made
    made_at REAL NOT NULL,                     -- unix seconds
    PRIMARY KEY (caller, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (made_at);
"""
]


class Claim(NamedTuple):
    """A key as it came with a request."""

    caller: str
    key: str
    digest: str


# -- rules -------------------------------------------------------------------


def first(change: Change, claim: Claim | None) -> str | None:
    """The id of what this key made already; None when it made nothing in the last 24 hours, or there is no key.

    409 `idempotency_conflict` when it was sent with another body, or to another route.
    """
    if claim is None:
        return None
    row = change.db.execute(
        "SELECT digest, subject FROM idempotency WHERE caller = ? AND key = ? AND made_at > ?",
        (claim.caller, claim.key, change.now - KEPT_SECONDS),
    ).fetchone()
    if row is None:
        return None
    if row[0] != claim.digest:
        raise conflict(
            "idempotency_conflict",
            f"{HEADER} {claim.key!r} was sent with another body before: take a new key for a new message",
            subject=row[1],
        )
    return str(row[1])


def keep(change: Change, claim: Claim | None, subject: str) -> None:
    """Remember what the key made, in the change that makes it; keys older than 24 hours are forgotten."""
    if claim is not None:
        change.db.execute("DELETE FROM idempotency WHERE made_at <= ?", (change.now - KEPT_SECONDS,))
        change.db.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)", (*claim, subject, change.now))


# -- wire --------------------------------------------------------------------


def claimed(request: web.Request, fields: dict[str, Any], caller: str) -> Claim | None:
    """The request's key, or None without the header. `caller` is whose key it is: two callers may choose the same."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not (0 < len(key) <= MAX_CHARS and key.isascii() and key.isprintable()):
        raise invalid(HEADER, f"must be 1 to {MAX_CHARS} printable ASCII characters", limit=MAX_CHARS)
    try:
        said = json.dumps([request.method, request.path, fields], sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise invalid("body", "is nested too deep") from None
    return Claim(caller, key, hashlib.sha256(said.encode()).hexdigest())
