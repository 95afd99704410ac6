"""Peers: who there is. A peer's id is its mailbox's address and outlives its process; a name is how others call it.

How a newcomer becomes a peer is in `claims.py`; what decides whether one lives is in `presence.py`.
"""

import difflib
import json
from collections.abc import Mapping
from sqlite3 import Connection, Row
from typing import Any, NamedTuple, cast

from aiohttp import web

from repowire import presence, wire
from repowire.clock import new_id
from repowire.errors import Refusal, conflict, forbidden, invalid, malformed, not_found
from repowire.mesh import MESH, Change, Mesh
from repowire.protocol import (
    BYPASS_ROLES,
    DEFAULT_CIRCLE,
    HUMAN,
    MAX_METADATA_BYTES,
    TURN_STATES,
)

TOMBSTONE_SECONDS = 72 * 3600.0  # wire.md 4, retirement
MAX_DESCRIPTION_CHARS = 2_000
KEPT_METADATA_BYTES = 2 * MAX_METADATA_BYTES  # what the peer said, and what its socket and sessions added
MEMO_MOST = 10_000  # names kept in memory between two events of a peer
SESSION_KEYS = ("hook_session_id", "runtime_session_id", "session_id")  # where clients put the runtime's session id

# -- model and table ---------------------------------------------------------

MIGRATIONS = [
    """
CREATE TABLE peers (
    peer_id TEXT PRIMARY KEY, seq INTEGER NOT NULL,            -- seq: order of registration
    display_name TEXT NOT NULL, circle TEXT NOT NULL, role TEXT NOT NULL, backend TEXT NOT NULL,
    path TEXT, machine TEXT, tmux_session TEXT, pane_id TEXT, model TEXT,
    agent_pid INTEGER, agent_started REAL, parent_pid INTEGER, -- the runtime's process, by pid and start
    session TEXT,                                              -- the runtime's own session id
    metadata TEXT NOT NULL, description TEXT NOT NULL, described_at REAL,
    turn_state TEXT, last_seen REAL NOT NULL,                  -- unix seconds
    handed_at REAL, failed_at REAL,                            -- newest receipt of either kind
    retired_at REAL,                                           -- its identity ended; a claim needs a live process
    hidden_at REAL                                             -- reaped or unregistered: not listed, its mail stays
) WITHOUT ROWID;
CREATE INDEX peers_by_name ON peers (display_name) WHERE hidden_at IS NULL;
CREATE INDEX peers_by_pane ON peers (pane_id) WHERE pane_id IS NOT NULL;
CREATE INDEX peers_by_path ON peers (path, backend);
CREATE INDEX peers_by_session ON peers (session) WHERE session IS NOT NULL;
CREATE INDEX peers_by_process ON peers (agent_pid) WHERE agent_pid IS NOT NULL;
CREATE UNIQUE INDEX peers_by_seq ON peers (seq);
""",
    """
ALTER TABLE peers ADD COLUMN pane_server TEXT;                 -- the tmux server of pane_id: its socket, pid and start
""",
]


class Peer(NamedTuple):
    """A row of `peers`; moments are unix seconds, `metadata` is JSON text."""

    peer_id: str
    seq: int
    display_name: str
    circle: str
    role: str
    backend: str
    path: str | None
    machine: str | None
    tmux_session: str | None
    pane_id: str | None
    model: str | None
    agent_pid: int | None
    agent_started: float | None
    parent_pid: int | None
    session: str | None
    metadata: str
    description: str
    described_at: float | None
    turn_state: str | None
    last_seen: float
    handed_at: float | None
    failed_at: float | None
    retired_at: float | None
    hidden_at: float | None
    pane_server: str | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The metadata as an object."""
        found: dict[str, Any] = json.loads(self.metadata)
        return found

    @property
    def everywhere(self) -> bool:
        """Whether its role puts it into every circle."""
        return self.role in BYPASS_ROLES


# -- queries -----------------------------------------------------------------


def _peer(row: Row | None) -> Peer | None:
    return None if row is None else Peer(*row)


def find(db: Connection, peer_id: str) -> Peer | None:
    """By id, hidden ones too."""
    return _peer(db.execute("SELECT * FROM peers WHERE peer_id = ?", (peer_id,)).fetchone())


def load(db: Connection, peer_id: str) -> Peer:
    """By id; 404 when there is none."""
    peer = find(db, peer_id)
    if peer is None:
        raise not_found("peer", peer_id)
    return peer


def listed(db: Connection) -> list[Peer]:
    """All that are shown, in order of registration."""
    return [Peer(*row) for row in db.execute("SELECT * FROM peers WHERE hidden_at IS NULL ORDER BY seq")]


def named(db: Connection, name: str) -> list[Peer]:
    """All that are shown under a display name, oldest first."""
    rows = db.execute("SELECT * FROM peers WHERE display_name = ? AND hidden_at IS NULL ORDER BY seq", (name,))
    return [Peer(*row) for row in rows]


def by_pane(db: Connection, pane_id: str) -> Peer | None:
    """The peer that holds a pane."""
    return _peer(db.execute("SELECT * FROM peers WHERE pane_id = ? AND hidden_at IS NULL", (pane_id,)).fetchone())


def by_session(db: Connection, session: str, backend: str) -> Peer | None:
    """The peer of a runtime's own session."""
    rows = db.execute("SELECT * FROM peers WHERE session = ? AND backend = ? ORDER BY seq DESC", (session, backend))
    return _peer(rows.fetchone())


def at_path(db: Connection, backend: str, path: str | None) -> list[Peer]:
    """All of a backend that work, or worked, in a folder, the newest first."""
    rows = db.execute("SELECT * FROM peers WHERE path IS ? AND backend = ? ORDER BY seq DESC", (path, backend))
    return [Peer(*row) for row in rows]


def newest(db: Connection) -> int:
    """The seq of who was registered last."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM peers").fetchone()[0])


def by_process(db: Connection, pid: int, started: float) -> Peer | None:
    """The peer whose runtime is this process."""
    rows = db.execute("SELECT * FROM peers WHERE agent_pid = ? AND hidden_at IS NULL AND retired_at IS NULL", (pid,))
    return next((peer for peer in (Peer(*row) for row in rows) if peer.agent_started == started), None)


def resolve(db: Connection, name: str, circle: str | None = None) -> Peer:
    """The one peer that is meant by an id or a display name (wire.md 4, lookup order).

    404 with near names when nobody is; 409 with the candidates when it could be several.
    """
    peer = find(db, name)
    if peer is not None:
        return peer
    found = named(db, name)
    if circle is not None:
        found = [peer for peer in found if peer.circle == circle or peer.everywhere]
    if len(found) > 1:
        found = [peer for peer in found if presence.of(db, peer.peer_id) != presence.OFFLINE] or found
    if len(found) > 1 and circle is None:
        found = [peer for peer in found if peer.pane_id] if sum(1 for peer in found if peer.pane_id) == 1 else found
    if len(found) > 1 and circle is not None:
        found = sorted(
            found, key=lambda peer: (presence.reachable(db, peer.peer_id), bool(peer.pane_id), peer.last_seen)
        )
        return found[-1]
    if not found:
        raise _unknown(db, name)
    if len(found) > 1:
        raise conflict(
            "ambiguous_peer",
            f"{len(found)} peers are called {name!r}: use a peer_id, or name the circle",
            peer=name,
            candidates=[{"peer_id": one.peer_id, "display_name": name, "circle": one.circle} for one in found],
        )
    return found[0]


def _unknown(db: Connection, name: str) -> Refusal:
    names = {row[0] for row in db.execute("SELECT display_name FROM peers WHERE hidden_at IS NULL LIMIT 2000")}
    near = difflib.get_close_matches(name[:64], sorted(names), n=3, cutoff=0.6)
    hint = f"there is no peer {name[:64]!r}: " + (f"did you mean {', '.join(near)}? " if near else "")
    return not_found("peer", name, hint + "`repowire peer list` shows who there is", near=near)


def remembered(change: Change, peer_id: str) -> Peer | None:
    """`find`, from memory where no event of a peer came since."""
    memo, key = change.mesh.memo, f"id {peer_id}"
    if key not in memo:
        memo[key] = find(change.db, peer_id)
    return cast(Peer | None, memo[key])


def meant(change: Change, name: str, circle: str | None = None) -> Peer:
    """`resolve`, from memory where no event of a peer came since. Presence decides between several only."""
    memo, key = change.mesh.memo, f"name {name}" if circle is None else f"name {name} in {circle}"
    if key not in memo:
        peer = resolve(change.db, name, circle)
        if len(memo) < MEMO_MOST and (peer.peer_id == name or len(named(change.db, name)) == 1):
            memo[key] = peer
        return peer
    return cast(Peer, memo[key])


def sender(change: Change, name: str, circle: str) -> Peer | None:
    """Who a `from_peer` is: looked up in the target's circle first, then everywhere; None for a stranger's name."""
    try:
        found = meant(change, name)
    except Refusal as refusal:
        if refusal.status == 404:
            return None
        found = None
    if found is not None and (found.peer_id == name or found.circle == circle):
        return found
    if any(one.circle == circle for one in named(change.db, name)):
        return resolve(change.db, name, circle)
    return found or resolve(change.db, name)


def waiting(db: Connection, peer_id: str) -> bool:
    """Whether mail or asks wait for the peer, so that its name must not be given away. The view is of `asks.py`."""
    return db.execute("SELECT 1 FROM waits WHERE peer_id = ? LIMIT 1", (peer_id,)).fetchone() is not None


def check_circle(sender: Peer | None, target: Peer, *, bypass: bool) -> None:
    """403 when a message would leave its circle (wire.md 4, circle check)."""
    if sender is None or bypass or sender.everywhere or target.everywhere or sender.circle == target.circle:
        return
    raise forbidden(
        "circle_boundary",
        f"{target.display_name} is in circle {target.circle!r}, {sender.display_name} in {sender.circle!r}:"
        " send with bypass_circle (CLI: --bypass-circle) to cross",
        circle=target.circle,
        from_circle=sender.circle,
    )


def insert(change: Change, wanted: str, circle: str, **columns: Any) -> Peer:
    """A new peer, under the name it wants or the next free one; `columns` are those of the row."""
    peer_id = new_id(f"repow-{circle}")
    row = {
        "peer_id": peer_id,
        "display_name": free_name(change, wanted, circle, peer_id),
        "circle": circle,
        "metadata": "{}",
        "description": "",
        "last_seen": change.now,
        **columns,
    }
    change.db.execute(
        f"INSERT INTO peers (seq, {', '.join(row)}) VALUES (?, {', '.join('?' for _ in row)})",
        (newest(change.db) + 1, *row.values()),
    )
    return load(change.db, peer_id)


def change_columns(change: Change, peer_id: str, **columns: Any) -> None:
    """Set columns of the row."""
    marks = ", ".join(f"{name} = ?" for name in columns)
    change.db.execute(f"UPDATE peers SET {marks} WHERE peer_id = ?", (*columns.values(), peer_id))


def free_name(change: Change, wanted: str, circle: str, peer_id: str) -> str:
    """`wanted`, or `wanted-2`, `-3` … while a live peer of the circle has it, or an offline one for whom mail waits.

    An offline holder for whom nothing waits loses the name and is hidden.
    """
    number, name = 1, wanted
    while True:
        others = [one for one in named(change.db, name) if one.peer_id != peer_id]
        others = [
            one for one in others if one.circle == circle or one.role == HUMAN
        ]  # whose name is his in every circle
        if not any(_keeps_name(change.db, one) for one in others):
            for one in others:
                hide(change, one, "name_reused")
            return name
        number += 1
        name = f"{wanted[: 63 - len(str(number))]}-{number}"


def _keeps_name(db: Connection, peer: Peer) -> bool:
    return presence.of(db, peer.peer_id) != presence.OFFLINE or waiting(db, peer.peer_id) or peer.role == HUMAN


def displace(change: Change, owner: Peer, pane_id: str) -> None:
    """A pane has one owner: whoever held it before goes offline (wire.md 4, pane ownership).

    Two tmux servers have panes of the same id; who does not say which server is his may mean either.
    """
    rows = change.db.execute("SELECT * FROM peers WHERE pane_id = ? AND peer_id != ?", (pane_id, owner.peer_id))
    for other in [Peer(*row) for row in rows]:
        if None not in (servers := (other.pane_server, owner.pane_server)) and servers[0] != servers[1]:
            continue
        change.db.execute("UPDATE peers SET pane_id = NULL WHERE peer_id = ?", (other.peer_id,))
        change.record("peer.displaced", peer_id=other.peer_id, pane_id=pane_id, by=owner.peer_id)
        say(change, other, presence.OFFLINE, "pane_displaced")


def ensure_human(change: Change) -> Peer:
    """The lasting peer of whoever sits at the machine, made at its first use (wire.md 16, row 29)."""
    for peer in named(change.db, HUMAN):
        if peer.role == HUMAN:
            return peer
    peer = insert(change, HUMAN, DEFAULT_CIRCLE, role=HUMAN, backend="mcp-http")
    say(change, peer, presence.ONLINE, "registered")
    change.record(
        "peer.registered", peer_id=peer.peer_id, name=peer.display_name, circle=peer.circle, backend=peer.backend
    )
    return peer


def keep_for_human(change: Change, wanted: str, role: str) -> None:
    """The human's name is the human's, before its first use too: to be called before another role may get it."""
    if wanted == HUMAN and role != HUMAN:
        ensure_human(change)


# -- rules: how they fare ----------------------------------------------------


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
    change.db.execute("UPDATE peers SET retired_at = ?, pane_id = NULL WHERE peer_id = ?", (change.now, peer.peer_id))
    note(change, peer, presence.IDENTITY, "retired", reason, source)
    change.record("peer.retired", peer_id=peer.peer_id, reason=reason)


def hide(change: Change, peer: Peer, reason: str) -> None:
    """No longer listed; asks and mail stay until they end."""
    change.db.execute("UPDATE peers SET hidden_at = ?, pane_id = NULL WHERE peer_id = ?", (change.now, peer.peer_id))
    change.record("peer.unregistered", peer_id=peer.peer_id, name=peer.display_name, reason=reason)


def rename(change: Change, peer: Peer, name: str) -> bool:
    """Give the peer another name; False when a live peer of its circle has it."""
    keep_for_human(change, name, peer.role)
    others = [one for one in named(change.db, name) if one.circle == peer.circle and one.peer_id != peer.peer_id]
    if any(_keeps_name(change.db, one) for one in others):
        return False
    for one in others:
        hide(change, one, "name_reused")
    change.db.execute("UPDATE peers SET display_name = ? WHERE peer_id = ?", (name, peer.peer_id))
    change.record("peer.changed", peer_id=peer.peer_id, name=name)
    return True


def set_circle(change: Change, peer: Peer, circle: str) -> None:
    """Move the peer; its id stays, and its name too unless a live peer of that circle has it."""
    keep_for_human(change, peer.display_name, peer.role)
    name = free_name(change, peer.display_name, circle, peer.peer_id)
    change_columns(change, peer.peer_id, circle=circle, display_name=name)
    change.record("peer.changed", peer_id=peer.peer_id, circle=circle, name=name if name != peer.display_name else None)


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
        peer = by_process(change.db, pid, started)
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
    for peer in listed(mesh.db.conn):
        if now - peer.last_seen >= ttl and _reapable(mesh.db.conn, peer, now, ttl):
            with mesh.change() as change:
                change.record(
                    "peer.reaped",
                    peer_id=peer.peer_id,
                    display_name=peer.display_name,
                    backend=peer.backend,
                    path=peer.path,
                    pane_id=peer.pane_id,
                    reason="offline_ttl",
                )
                hide(change, peer, "offline_ttl")
    return 60.0


def _reapable(db: Connection, peer: Peer, now: float, ttl: float) -> bool:
    """Offline for the whole time: proved by the newest evidence, not by silence alone."""
    known = presence.evidence(db, peer.peer_id)
    newest = max((one.at for one in known.values()), default=peer.last_seen)
    return presence.status(known) == presence.OFFLINE and now - newest >= ttl and peer.role != HUMAN


# -- wire --------------------------------------------------------------------


async def delete_peer(request: web.Request) -> web.Response:
    _unregister(request.app[MESH], request.match_info["name"], request.query.get("circle"))
    return wire.reply({"ok": True})


async def post_unregister(request: web.Request) -> web.Response:
    body = await wire.read(request)
    _unregister(request.app[MESH], body.text("name"), body.optional_identifier("circle"))
    return wire.reply({"ok": True})


def _unregister(mesh: Mesh, name: str, circle: str | None) -> None:
    with mesh.change() as change:
        peer = resolve(change.db, name, circle)
        if peer.hidden_at is not None:
            raise _unknown(change.db, name)
        say(change, peer, presence.OFFLINE, "unregistered")
        hide(change, peer, "unregistered")


async def post_offline(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request, empty_ok=True)
    reason = body.optional_text("reason", max_chars=64) or "offline_route"
    source = body.optional_text("source", max_chars=64) or "peers_route"
    detail = body.optional_text("detail", max_chars=1000)
    terminal = body.flag("terminal")
    with mesh.change() as change:
        try:
            peer = resolve(change.db, request.match_info["name"])
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            return wire.reply({"ok": True, "cancelled_queries": 0})
        say(change, peer, presence.OFFLINE, reason, source, detail)
        if terminal:
            retire(change, peer, reason, source)
    return wire.reply({"ok": True, "cancelled_queries": 0})


async def post_session_update(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    word = body.optional_text("status")
    turn_state = body.choice("turn_state", TURN_STATES)
    model, metadata = body.optional_text("model", max_chars=255), body.record("metadata")
    name, pane_id = body.optional_text("peer_name"), body.optional_text("pane_id", max_chars=64)
    if word not in (None, "online", "busy", "offline", "idle"):
        raise malformed("status must be one of online, busy, idle, offline", field="status")
    if not (word or turn_state or model or metadata):
        raise malformed("nothing to update: give status, turn_state, model or metadata")
    if not (name or pane_id):
        raise malformed("say whose session it is: peer_name or pane_id")
    with mesh.change() as change:
        peer = by_pane(change.db, pane_id) if pane_id else _known(change.db, name or "")
        if peer is None and not pane_id:
            return wire.reply({"ok": True})
        if peer is None:
            raise not_found("pane", pane_id or "", f"no peer holds pane {pane_id}")
        update(change, peer, turn_state=turn_state, model=model, metadata=metadata)
        if word:
            say(change, peer, presence.ONLINE if word == "idle" else word, "status_update_offline", "session_update")
    return wire.reply({"ok": True})


def _known(db: Connection, name: str) -> Peer | None:
    try:
        return resolve(db, name)
    except Refusal as refusal:
        if refusal.status == 404:
            return None
        raise


async def post_touch(request: web.Request) -> web.Response:
    with request.app[MESH].change() as change:
        touch(change, resolve(change.db, request.match_info["name"], request.query.get("circle")).peer_id)
    return wire.reply({"ok": True})


async def post_description(request: web.Request) -> web.Response:
    body = await wire.read(request)
    text = body.text("description", max_chars=MAX_DESCRIPTION_CHARS, least=0)
    with request.app[MESH].change() as change:
        peer = resolve(change.db, request.match_info["name"], request.query.get("circle"))
        change.db.execute(
            "UPDATE peers SET description = ?, described_at = ?, last_seen = ? WHERE peer_id = ?",
            (text, change.now, change.now, peer.peer_id),
        )
        change.record("peer.changed", peer_id=peer.peer_id, description=text)
    return wire.reply({"ok": True})


async def post_circle(request: web.Request) -> web.Response:
    body = await wire.read(request)
    name, circle = body.text("peer_name"), body.optional_identifier("circle")
    if circle is None:
        raise invalid("circle", "is required")
    with request.app[MESH].change() as change:
        if (peer := _known(change.db, name)) is not None:
            set_circle(change, peer, circle)
    return wire.reply({"ok": True})


ROUTES = [
    web.post("/peers/circle", post_circle),
    web.delete("/peers/{name}", delete_peer),
    web.post("/peer/unregister", post_unregister),
    web.post("/peers/{name}/offline", post_offline),
    web.post("/peers/{name}/touch", post_touch),
    web.post("/peers/{name}/description", post_description),
    web.post("/session/update", post_session_update),
]
