"""Birth certificates: the nonce that proves a caller is the peer it names (wire.md 1.2, 16 row 9)."""

import secrets
from sqlite3 import Connection
from typing import Any

from repowire.mesh import Change
from repowire.wire import moment

LIFETIME_SECONDS = 24 * 3600.0

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE certificates (
    nonce TEXT PRIMARY KEY, peer_id TEXT NOT NULL,
    issued_at REAL NOT NULL, expires_at REAL NOT NULL      -- unix seconds
) WITHOUT ROWID;
CREATE INDEX certificates_by_expiry ON certificates (expires_at);
"""
]

# -- queries -----------------------------------------------------------------


def holder(db: Connection, certificate: object, now: float) -> str | None:
    """The peer that a certificate's nonce belongs to, if it is ours and still valid."""
    nonce = certificate.get("nonce") if isinstance(certificate, dict) else None
    if not isinstance(nonce, str) or not nonce.isascii():
        return None
    row = db.execute("SELECT peer_id FROM certificates WHERE nonce = ? AND expires_at > ?", (nonce, now)).fetchone()
    return row[0] if row else None


# -- rules -------------------------------------------------------------------


def issue(change: Change, peer_id: str, envelope: dict[str, Any]) -> dict[str, Any]:
    """A new certificate for the peer; expired ones of all peers go with it."""
    nonce, expires_at = secrets.token_urlsafe(32), change.now + LIFETIME_SECONDS
    change.db.execute("DELETE FROM certificates WHERE expires_at <= ?", (change.now,))
    change.db.execute("INSERT INTO certificates VALUES (?, ?, ?, ?)", (nonce, peer_id, change.now, expires_at))
    return {
        "nonce": nonce,
        "peer_id": peer_id,
        **envelope,
        "issued_at": moment(change.now),
        "expires_at": moment(expires_at),
    }
