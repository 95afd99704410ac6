"""Names: what a peer is called and in which circle, and which pane is its own. Each of them has one live holder."""

from sqlite3 import Connection
from typing import Any

from repowire import lives, peers, presence
from repowire.clock import new_id
from repowire.mesh import Change
from repowire.peers import Peer
from repowire.protocol import DEFAULT_CIRCLE, HUMAN

# -- rules -------------------------------------------------------------------


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
        (peers.newest(change.db) + 1, *row.values()),
    )
    return peers.load(change.db, peer_id)


def free_name(change: Change, wanted: str, circle: str, peer_id: str) -> str:
    """`wanted`, or `wanted-2`, `-3` … while a live peer of the circle has it, or an offline one for whom mail waits.

    An offline holder for whom nothing waits loses the name and is hidden.
    """
    number, name = 1, wanted
    while True:
        others = _others(change.db, name, circle, peer_id)
        if not any(_keeps_name(change.db, one) for one in others):
            for one in others:
                lives.hide(change, one, "name_reused")
            return name
        number += 1
        name = f"{wanted[: 63 - len(str(number))]}-{number}"


def _others(db: Connection, name: str, circle: str, peer_id: str) -> list[Peer]:
    """Who else has the name in the circle. The human's is his in every one."""
    others = [one for one in peers.named(db, name) if one.peer_id != peer_id]
    return [one for one in others if one.circle == circle or one.role == HUMAN]


def _keeps_name(db: Connection, peer: Peer) -> bool:
    return presence.of(db, peer.peer_id) != presence.OFFLINE or peers.waiting(db, peer.peer_id) or peer.role == HUMAN


def displace(change: Change, owner: Peer, pane_id: str) -> None:
    """A pane has one owner: whoever held it before goes offline (wire.md 4, pane ownership).

    Two tmux servers have panes of the same id; who does not say which server is his may mean either.
    """
    rows = change.db.execute("SELECT * FROM peers WHERE pane_id = ? AND peer_id != ?", (pane_id, owner.peer_id))
    for other in [Peer(*row) for row in rows]:
        if None not in (servers := (other.pane_server, owner.pane_server)) and servers[0] != servers[1]:
            continue
        peers.let_go_of_pane(change, other.peer_id)
        change.record("peer.displaced", peer_id=other.peer_id, pane_id=pane_id, by=owner.peer_id)
        lives.say(change, other, presence.OFFLINE, "pane_displaced")


def ensure_human(change: Change) -> Peer:
    """The lasting peer of whoever sits at the machine, made at its first use (wire.md 16, row 29)."""
    for peer in peers.named(change.db, HUMAN):
        if peer.role == HUMAN:
            return peer
    peer = insert(change, HUMAN, DEFAULT_CIRCLE, role=HUMAN, backend="mcp-http")
    lives.say(change, peer, presence.ONLINE, "registered")
    change.record(
        "peer.registered", peer_id=peer.peer_id, name=peer.display_name, circle=peer.circle, backend=peer.backend
    )
    return peer


def meant(change: Change, name: str, circle: str | None = None) -> Peer:
    """Whom a message is for. The human is there before its first use too: agents ask first, as often as not."""
    if name == HUMAN:
        ensure_human(change)
    return peers.meant(change, name, circle)


def keep_for_human(change: Change, wanted: str, role: str) -> None:
    """The human's name is the human's, before its first use too: to be called before another role may get it."""
    if wanted == HUMAN and role != HUMAN:
        ensure_human(change)


def rename(change: Change, peer: Peer, name: str) -> bool:
    """Give the peer another name; False when a live peer of its circle has it."""
    keep_for_human(change, name, peer.role)
    others = _others(change.db, name, peer.circle, peer.peer_id)
    if any(_keeps_name(change.db, one) for one in others):
        return False
    for one in others:
        lives.hide(change, one, "name_reused")
    change.db.execute("UPDATE peers SET display_name = ? WHERE peer_id = ?", (name, peer.peer_id))
    change.record("peer.changed", peer_id=peer.peer_id, name=name)
    return True


def set_circle(change: Change, peer: Peer, circle: str) -> None:
    """Move the peer; its id stays, and its name too unless a live peer of that circle has it."""
    keep_for_human(change, peer.display_name, peer.role)
    name = free_name(change, peer.display_name, circle, peer.peer_id)
    peers.change_columns(change, peer.peer_id, circle=circle, display_name=name)
    change.record("peer.changed", peer_id=peer.peer_id, circle=circle, name=name if name != peer.display_name else None)
