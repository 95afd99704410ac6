"""Roster: what of a peer is shown to others (PeerInfo, wire.md 1.2).

It is kept as JSON until something of the peer changes. That is told by triggers on the tables themselves, not by the
rules that write them: a rule that forgot to tell would have us show what is no longer true.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

from repowire import asks, callers, peers, presence, wire
from repowire.errors import invalid
from repowire.mesh import MESH, Mesh
from repowire.peers import Peer
from repowire.presence import Evidence
from repowire.protocol import BACKENDS, HUMAN, RECEIPTS, is_identifier

MOST = 100_000  # peers in one reply


def info(mesh: Mesh, peer: Peer, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    """One peer as the published PeerInfo, its fields in the published order."""
    db, now = mesh.db.conn, mesh.clock.now()
    status = presence.status(evidence)
    connected = presence.SOCKET in evidence and evidence[presence.SOCKET].fact == "open"
    channel = presence.CHANNEL in evidence and evidence[presence.CHANNEL].fact == "open"
    details = peer.details
    handed_at = _handed_at(mesh, peer.peer_id) or peer.handed_at
    capabilities = details.get("capabilities")  # the peer's own words, so of any type
    promised = isinstance(capabilities, list) and RECEIPTS in capabilities
    receipts = promised or handed_at is not None or peer.failed_at is not None
    pending, oldest = asks.waits_on(db, peer.peer_id)
    return {
        "peer_id": peer.peer_id,
        "name": peer.display_name,
        "display_name": peer.display_name,
        "path": peer.path,
        "machine": peer.machine,
        "tmux_session": peer.tmux_session,
        "backend": peer.backend,
        "model": peer.model,
        "circle": peer.circle,
        "role": peer.role,
        "status": status,
        "turn_state": peer.turn_state,
        "last_seen": wire.moment(peer.last_seen),
        "metadata": details,
        "description": peer.description if now <= peers.lapses_at(mesh, peer) else "",
        "ws_connected": connected,
        "hook_supports_receipts": receipts,
        "last_successful_injection_at": wire.moment(handed_at),
        "last_injection_failure_at": wire.moment(peer.failed_at),
        "pending_ask_count": pending,
        "oldest_pending_age_seconds": _age(now, oldest) if oldest is not None else None,
        "pane_safe": None,
        "inbound_status": _inbound(peer, status, connected or channel, receipts or channel, handed_at),
    }


def _inbound(peer: Peer, status: str, connected: bool, receipts: bool, handed_at: float | None) -> str:
    """Whether mail gets through (wire.md 1.2, first match)."""
    if status == presence.OFFLINE:
        return "offline"
    if not connected:
        return "no_hook"
    if not receipts:
        return "legacy_unverified"
    if peer.failed_at is not None and peer.failed_at > (handed_at or 0.0):
        return "inbound_degraded"
    return "online"


class Shown(NamedTuple):
    """A peer as it was shown: its JSON around the one field that changes by itself, and until when that is true."""

    peer: Peer
    status: str
    head: bytes
    oldest: float | None  # unix seconds: when the oldest of its open asks was opened
    tail: bytes
    until: float  # unix seconds: when its description lapses
    handed_at: float | None  # of its door, which keeps it in memory

    def json(self, now: float) -> bytes:
        """The PeerInfo as JSON text."""
        if self.oldest is None:
            return self.head
        return self.head + repr(_age(now, self.oldest)).encode() + self.tail


AGE = b'"oldest_pending_age_seconds":'
AT_ONCE = 64  # more than these are read in one go

# What a PeerInfo is made of: after which statements, and of whom; the last is whether the list itself may be another.
TRIGGERS = (
    ("INSERT ON main.peers", "new.peer_id, 1"),
    ("DELETE ON main.peers", "old.peer_id, 1"),
    ("UPDATE ON main.peers", "new.peer_id, old.hidden_at IS NOT new.hidden_at"),
    ("INSERT ON main.presence", "new.peer_id, 0"),
    ("UPDATE ON main.presence", "new.peer_id, 0"),
    ("DELETE ON main.presence", "old.peer_id, 0"),
    ("INSERT ON main.asks", "new.to_peer_id, 0"),
    ("UPDATE OF closed_at, to_peer_id ON main.asks", "new.to_peer_id, 0"),
    ("UPDATE OF to_peer_id ON main.asks", "old.to_peer_id, 0"),
    ("DELETE ON main.asks", "old.to_peer_id, 0"),
)


class Roster:
    """What was shown of each peer, and in which order they are listed.

    What changed in a transaction that is still open may be undone yet, so it is shown and not kept.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._kept: dict[str, Shown] = {}
        self._order: list[str] | None = None
        self._unsettled: set[str] = set()
        self._order_unsettled = False
        self.rendered = 0
        name = f"shown_anew_{id(self)}"
        mesh.db.conn.create_function(name, 2, self._changed)
        for number, (statement, facts) in enumerate(TRIGGERS):
            mesh.db.conn.execute(
                f"CREATE TEMP TRIGGER {name}_{number} AFTER {statement} BEGIN SELECT {name}({facts}); END"
            )

    def _changed(self, peer_id: str, listing: int) -> None:
        self._kept.pop(peer_id, None)
        self._unsettled.add(peer_id)
        if listing:
            self._order, self._order_unsettled = None, True

    def _settle(self) -> None:
        if not self.mesh.db.conn.in_transaction:
            self._unsettled.clear()
            self._order_unsettled = False

    def of(self, peer: Peer) -> Shown:
        """One peer."""
        self._settle()
        kept = self._fresh(peer.peer_id, self.mesh.clock.now())
        return kept or self._render(peer, presence.evidence(self.mesh.db.conn, peer.peer_id))

    def all(self) -> list[Shown]:
        """All that are listed, in order of registration."""
        db, now = self.mesh.db.conn, self.mesh.clock.now()
        self._settle()
        order = self._order
        if order is None:
            order = [row[0] for row in db.execute("SELECT peer_id FROM peers WHERE hidden_at IS NULL ORDER BY seq")]
            if not self._order_unsettled:
                self._order = order
        found = {peer_id: self._fresh(peer_id, now) for peer_id in order}
        missing = [peer_id for peer_id, shown in found.items() if shown is None]
        if len(missing) > AT_ONCE:
            rows, evidence = {peer.peer_id: peer for peer in peers.listed(db)}, presence.all_evidence(db)
        else:
            rows = {peer_id: peers.load(db, peer_id) for peer_id in missing}
            evidence = {peer_id: presence.evidence(db, peer_id) for peer_id in missing}
        for peer_id in missing:
            found[peer_id] = self._render(rows[peer_id], evidence.get(peer_id, {}))
        return [shown for shown in found.values() if shown is not None]

    def _fresh(self, peer_id: str, now: float) -> Shown | None:
        shown = self._kept.get(peer_id)
        if shown is None or now > shown.until or shown.handed_at != _handed_at(self.mesh, peer_id):
            return None
        return shown

    def _render(self, peer: Peer, evidence: Mapping[str, Evidence]) -> Shown:
        self.rendered += 1
        facts = info(self.mesh, peer, evidence)
        text = json.dumps(facts).encode()
        oldest = asks.waits_on(self.mesh.db.conn, peer.peer_id)[1]
        head, tail = text, b""
        if oldest is not None:
            head, mark, rest = text.rpartition(AGE)  # the last one: what stands before it may be the peer's own words
            head, tail = head + mark + b" ", rest[rest.index(b",") :]
        lapses = peers.lapses_at(self.mesh, peer)
        shown = Shown(peer, facts["status"], head, oldest, tail, lapses, _handed_at(self.mesh, peer.peer_id))
        if peer.peer_id not in self._unsettled:
            self._kept[peer.peer_id] = shown
        return shown


ROSTER = web.AppKey("roster", Roster)


def _handed_at(mesh: Mesh, peer_id: str) -> float | None:
    door = mesh.doors.of(peer_id)
    return door.handed_at if door is not None else None


def _age(now: float, opened_at: float) -> float:
    return round(now - opened_at, 3)


# -- wire --------------------------------------------------------------------


async def get_peers(request: web.Request) -> web.Response:
    roster, now = request.app[ROSTER], request.app[MESH].clock.now()
    backend = wire.word(request, "backend", BACKENDS)
    path, circle = request.query.get("path"), request.query.get("circle")
    if circle not in (None, "*") and not is_identifier(circle):
        raise invalid("circle", "must be 1 to 64 of the letters, digits and . _ -, or * for all")
    if path is not None and "\0" in path:
        raise invalid("path", "must not contain a NUL character")
    most = wire.whole(request, "limit", default=MOST, most=MOST)
    after = wire.cursor(request) or 0
    wanted = _WANTED.get(request.query.get("status", ""))
    at = _at(path) if path is not None else None
    found = roster.all()
    if after or wanted or backend or circle not in (None, "*") or at:
        found = [
            shown
            for shown in found
            if shown.peer.seq > after
            and (wanted is None or shown.status in wanted)
            and (backend is None or shown.peer.backend == backend)
            and (circle in (None, "*") or shown.peer.circle == circle or shown.peer.everywhere)
            and (at is None or at(shown.peer))
        ]
    if path is not None and len(found) <= most:
        found.sort(key=lambda shown: shown.peer.path != path)  # equal as text goes before equal on the disk (1.2)
    page = wire.page(request, found[most - 1].peer.seq if len(found) > most else None)
    end = f', "next": {json.dumps(page["next"])}' if page else ""
    shown = b", ".join([one.json(now) for one in found[:most]])
    return wire.raw(b'{"peers": [%b]%b}' % (shown, end.encode()))


def _at(path: str) -> Callable[[Peer], bool]:
    """Whether a peer is in that folder, as text or on the disk."""
    real = os.path.realpath(path)
    return lambda peer: peer.path is not None and (peer.path == path or os.path.realpath(peer.path) == real)


_WANTED = {"online": ("online", "busy"), "busy": ("busy",), "offline": ("offline",)}


def _one(request: web.Request, peer: Peer) -> web.Response:
    return wire.raw(request.app[ROSTER].of(peer).json(request.app[MESH].clock.now()))


async def get_peer(request: web.Request) -> web.Response:
    db = request.app[MESH].db.conn
    return _one(request, peers.resolve(db, request.match_info["name"], request.query.get("circle")))


async def get_by_pane(request: web.Request) -> web.Response:
    return _one(request, peers.of_pane(request.app[MESH].db.conn, request.match_info["pane_id"]))


async def get_whoami(request: web.Request) -> web.Response:
    """Who calls, by the process that it descends from: an agent's peer, or the human."""
    mesh = request.app[MESH]
    peer = callers.calling(mesh, request)
    if peer is None:
        human = (one for one in peers.named(mesh.db.conn, HUMAN) if one.role == HUMAN)
        kind, peer = "human", next(human, None)
    else:
        kind = "agent"
    shown = request.app[ROSTER].of(peer).json(mesh.clock.now()) if peer is not None else b"null"
    return wire.raw(b'{"kind": "%b", "peer": %b}' % (kind.encode(), shown))


ROUTES = [
    web.get("/whoami", get_whoami),
    web.get("/peers", get_peers),
    web.get("/peers/by-pane/{pane_id}", get_by_pane),
    web.get("/peers/{name}", get_peer),
]
