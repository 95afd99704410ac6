"""Birth certificates: the nonce that proves a caller is the peer it names (wire.md 1.2, 16 row 9)."""

import json
import secrets
from collections.abc import Mapping
from sqlite3 import Connection
from typing import Any

from repowire.mesh import Change
from repowire.wire import moment

LIFETIME_SECONDS = 24 * 3600.0
KEPT = 8  # of one peer, the newest: who registers again and again uses its latest

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE certificates (
    nonce TEXT PRIMARY KEY, peer_id TEXT NOT NULL,
    issued_at REAL NOT NULL, expires_at REAL NOT NULL      -- unix seconds
) WITHOUT ROWID;
CREATE INDEX certificates_by_expiry ON certificates (expires_at);
""",
    """
ALTER TABLE certificates ADD COLUMN envelope TEXT;         -- as it was given out, JSON
CREATE INDEX certificates_by_peer ON certificates (peer_id, issued_at);
""",
]

# -- queries -----------------------------------------------------------------


def holder(db: Connection, certificate: object, now: float) -> str | None:
    """The peer that a certificate's nonce belongs to, if it is ours and still valid."""
    nonce = certificate.get("nonce") if isinstance(certificate, dict) else None
    if not isinstance(nonce, str) or not nonce.isascii():
        return None
    row = db.execute("SELECT peer_id FROM certificates WHERE nonce = ? AND expires_at > ?", (nonce, now)).fetchone()
    return row[0] if row else None


def envelope(db: Connection, certificate: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    """The certificate as it was given out, if it is ours, still valid, and what is shown is the same in every field."""
    if holder(db, certificate, now) is None:
        return None
    row = db.execute("SELECT envelope FROM certificates WHERE nonce = ?", (certificate["nonce"],)).fetchone()
    if row[0] is None:
        return None
    given: dict[str, Any] = json.loads(row[0])
    return given if all(name in certificate and certificate[name] == value for name, value in given.items()) else None


# -- rules -------------------------------------------------------------------


def issue(change: Change, peer_id: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A new certificate for the peer; expired ones of all peers go with it, and its own older ones past KEPT."""
    nonce, expires_at = secrets.token_urlsafe(32), change.now + LIFETIME_SECONDS
    given = {
        "nonce": nonce,
        "peer_id": peer_id,
        **facts,
        "issued_at": moment(change.now),
        "expires_at": moment(expires_at),
    }
    change.db.execute("DELETE FROM certificates WHERE expires_at <= ?", (change.now,))
    change.db.execute(
        "DELETE FROM certificates WHERE nonce IN (SELECT nonce FROM certificates WHERE peer_id = ?"
        " ORDER BY issued_at DESC LIMIT -1 OFFSET ?)",
        (peer_id, KEPT - 1),
    )
    change.db.execute(
        "INSERT INTO certificates VALUES (?, ?, ?, ?, ?)", (nonce, peer_id, change.now, expires_at, json.dumps(given))
    )
    return given
