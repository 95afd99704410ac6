"""Lives: how peers fare. What is said of them is noted; who ended is retired, who is long gone is hidden.

A peer's state itself is `presence`'s; here stands what follows from it.
"""

import json
from collections.abc import Mapping
from sqlite3 import Connection
from typing import Any

from repowire import peers, presence
from repowire.errors import invalid
from repowire.mesh import Change, Mesh
from repowire.peers import Peer
from repowire.protocol import HUMAN, MAX_METADATA_BYTES

MAX_DESCRIPTION_CHARS = 2_000
HIDDEN_SECONDS = 30 * 24 * 3600.0  # how long the row of a hidden peer stays: as long as its traces do by default
KEPT_METADATA_BYTES = 2 * MAX_METADATA_BYTES  # what the peer said, and what its socket and sessions added

# -- queries -----------------------------------------------------------------


def stale_after(mesh: Mesh) -> float:
    """Seconds of silence after which a role or a pane is not kept for its holder: two heartbeats."""
    return 2 * mesh.config.daemon.heartbeat_interval_seconds


def fresh(mesh: Mesh, peer: Peer) -> bool:
    """Whether it is online or busy, and was seen within `stale_after`."""
    seen = mesh.clock.now() - peer.last_seen <= stale_after(mesh)
    return seen and presence.of(mesh.db.conn, peer.peer_id) != presence.OFFLINE


# -- rules -------------------------------------------------------------------


def say(change: Change, peer: Peer, word: str, reason: str, source: str = "daemon", detail: str | None = None) -> None:
    """What the peer or a route says of its status."""
    note(change, peer, presence.WORD, word, reason, source, detail)


def note(
    change: Change, peer: Peer, source: str, fact: str, reason: str, by: str = "daemon", detail: str | None = None
) -> None:
    """Note a fact of the peer's life; going offline or coming back leaves an event that names the reason."""
    before, after = presence.note(change, peer.peer_id, source, fact, detail)
    if before == after or presence.OFFLINE not in (before, after):
        return
    change.record(
        "peer.offline" if after == presence.OFFLINE else "peer.online",
        peer_id=peer.peer_id,
        display_name=peer.display_name,
        backend=peer.backend,
        path=peer.path,
        pane_id=peer.pane_id,
        old_status=before,
        new_status=after,
        reason=reason,
        source=by,
        detail=detail,
    )


def touch(change: Change, peer_id: str) -> None:
    """Seen just now."""
    change.db.execute("UPDATE peers SET last_seen = ? WHERE peer_id = ?", (change.now, peer_id))


def retire(change: Change, peer: Peer, reason: str, source: str = "daemon") -> None:
    """The identity ended: offline, a tombstone for 72 h, its mail stays (wire.md 16, row 26)."""
    peers.change_columns(change, peer.peer_id, retired_at=change.now)
    peers.let_go_of_pane(change, peer.peer_id)
    note(change, peer, presence.IDENTITY, "retired", reason, source)
    change.record("peer.retired", peer_id=peer.peer_id, reason=reason)


def hide(change: Change, peer: Peer, reason: str, **columns: float) -> None:
    """No longer listed; asks and mail stay until they end."""
    peers.change_columns(change, peer.peer_id, hidden_at=change.now, **columns)
    peers.let_go_of_pane(change, peer.peer_id)
    change.record("peer.unregistered", peer_id=peer.peer_id, name=peer.display_name, reason=reason)


def describe(change: Change, peer: Peer, text: str) -> None:
    """What the peer says that it is at, shown for `daemon.description_ttl_seconds`."""
    peers.change_columns(change, peer.peer_id, description=text, described_at=change.now, last_seen=change.now)
    change.record("peer.changed", peer_id=peer.peer_id, description=text)


def update(
    change: Change, peer: Peer, *, turn_state: str | None, model: str | None, metadata: Mapping[str, Any]
) -> None:
    """What a session says of itself; only what is given changes."""
    details = json.dumps({**peer.details, **metadata}) if metadata else peer.metadata
    if len(details) > KEPT_METADATA_BYTES and metadata:
        raise invalid("metadata", f"with what is kept already it is over {KEPT_METADATA_BYTES} bytes of JSON")
    change.db.execute(
        "UPDATE peers SET turn_state = coalesce(?, turn_state), model = coalesce(?, model), metadata = ?, last_seen = ?"
        " WHERE peer_id = ?",
        (turn_state, model, details, change.now, peer.peer_id),
    )
    change.record("peer.changed", peer_id=peer.peer_id, turn_state=turn_state, model=model)


# -- loop --------------------------------------------------------------------

WAKES = ("process.ended",)


def process_ended(mesh: Mesh, pid: int, started: float) -> None:
    """A watched process is gone: whoever it was is retired, at once."""
    with mesh.change() as change:
        peers.forget_process(change, pid, started)
        peer = peers.by_process(change.db, pid, started)
        if peer is None:
            return
        note(change, peer, presence.PROCESS, "ended", "agent_exited", "process", f"pid {pid}")
        retire(change, peer, "agent_exited", "process")


def tick(mesh: Mesh) -> float:
    """Watch every process that a peer lives in; who died unwatched is retired; who is long gone is hidden."""
    rows = mesh.db.conn.execute(
        "SELECT agent_pid, agent_started FROM peers"
        " WHERE agent_pid IS NOT NULL AND retired_at IS NULL AND hidden_at IS NULL AND agent_started IS NOT NULL"
    ).fetchall()
    for pid, started in rows:
        if not mesh.procs.watch(pid, started):
            process_ended(mesh, pid, started)
    now, ttl = mesh.clock.now(), mesh.config.daemon.peer_reap_ttl_seconds
    for peer in peers.unheard_of(mesh.db.conn, now - ttl):
        if _reapable(mesh.db.conn, peer, now, ttl):
            with mesh.change() as change:
                reap(change, peer, "offline_ttl")
    return min(ttl, 60.0)


def reap(change: Change, peer: Peer, reason: str) -> None:
    """Off the list: it was offline for long, or is to be cleared away. What waits for it stays."""
    change.record(
        "peer.reaped",
        peer_id=peer.peer_id,
        display_name=peer.display_name,
        backend=peer.backend,
        path=peer.path,
        pane_id=peer.pane_id,
        reason=reason,
    )
    hide(change, peer, reason)


def forget(mesh: Mesh) -> None:
    """The rows of who was hidden long ago, and for whom nothing waits, go. Its traces keep its name."""
    rows = mesh.db.conn.execute(
        "SELECT peer_id FROM peers WHERE hidden_at <= ? AND role != 'human' LIMIT 500",
        (mesh.clock.now() - HIDDEN_SECONDS,),
    ).fetchall()
    gone = [row[0] for row in rows if not peers.waiting(mesh.db.conn, row[0])]
    if gone:
        with mesh.change() as change:
            for table in ("presence", "sessions", "session_bindings", "certificates", "holds", "lived", "peers"):
                change.db.executemany(f"DELETE FROM {table} WHERE peer_id = ?", [(peer_id,) for peer_id in gone])
            change.record("peer.forgotten", peers=gone)


def _reapable(db: Connection, peer: Peer, now: float, ttl: float) -> bool:
    """Offline for the whole time: proved by the newest evidence, not by silence alone."""
    known = presence.evidence(db, peer.peer_id)
    newest = max((one.at for one in known.values()), default=peer.last_seen)
    return presence.status(known) == presence.OFFLINE and now - newest >= ttl and peer.role != HUMAN
