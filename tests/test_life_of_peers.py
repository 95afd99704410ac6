"""Whatever the order of comings and goings: a mailbox changes hands with proof only, and nothing queued disappears."""

import asyncio
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from conftest import TOKEN, FakeClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from repowire import (
    certificates,
    claims,
    config,
    daemon,
    deliveries,
    intake,
    lifecycle,
    lives,
    names,
    peers,
    presence,
    roles,
    roster,
    succession,
)
from repowire.claims import Claim
from repowire.errors import Refusal

NAMES = st.sampled_from(["ann", "ben", "human", None])
CIRCLES = st.sampled_from(["default", "red"])
PATHS = st.sampled_from(["/a", "/b"])
PANES = st.sampled_from([None, "%1"])
SESSIONS = st.sampled_from([None, None, "s1"])


@dataclass
class Owner:
    """Who runs behind a peer: what it can prove itself with."""

    path: str
    pane_id: str | None
    started: float | None
    certificate: dict | None = None
    mail: list[str] = field(default_factory=list)


class LifeOfPeers(RuleBasedStateMachine):
    """The model knows who owns which id; the mesh must agree."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.owners: dict[str, Owner] = {}
        self.connected: set[str] = set()
        self.lives = 0
        self.sent: list[str] = []
        self.left: set[str] = set()  # who was retired or off the list once: its mail may have moved to who followed it
        self.lapsed: set[str] = set()  # and whose tombstone passed
        self.open()

    def open(self) -> None:
        async def build():
            config.prepare_home(self.folder / "home")
            settings_of = {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN}
            return daemon.open_mesh(config.load(self.folder / "home", settings_of), self.clock)

        self.mesh = self.loop.run_until_complete(build())
        self.mesh.procs.watch = lambda pid, started: True  # the processes are made up, and live until they are retired
        self.roster = roster.Roster(self.mesh)

    def teardown(self) -> None:
        self.mesh.close()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def claim(self, claim: Claim, *, connected: bool = False):
        """A registration, or the first frame of a socket. None when it was refused."""
        self.clock.advance(1)
        try:
            with self.mesh.change() as change:
                peer, _ = claims.register(change, claim, connected=connected)
                certificate = claims.certify(change, peer)
                if connected:
                    lives.note(change, peer, presence.SOCKET, "open", "connected")
        except Refusal as refusal:
            if refusal.error != "peer_retired":
                raise
            return None
        if connected:
            self.connected.add(peer.peer_id)
        return peer, certificate

    def started(self, alive: bool) -> float | None:
        """The start time of a process of its own."""
        self.lives += 1
        return float(self.lives) if alive else None

    def owned(self, peer, certificate, owner: Owner) -> str:
        owner.certificate = certificate
        self.owners[peer.peer_id] = owner
        return peer.peer_id

    def lives_as(self, peer_id: str, socket: bool) -> bool:
        """Whether somebody lives as the peer. One that only registered is no more than a word to a socket."""
        known = presence.evidence(self.mesh.db.conn, peer_id)
        seen = presence.SOCKET in known or presence.PROCESS in known or not socket
        return seen and presence.status(known) != "offline"

    # -- coming ---------------------------------------------------------------

    def lived(self, peer_id: str) -> bool:
        """Whether a socket or a process is known to live as the peer: more than a word, which a session may take."""
        known = presence.evidence(self.mesh.db.conn, peer_id)
        process = known.get(presence.PROCESS)
        return presence.reachable(self.mesh.db.conn, peer_id) or (process is not None and process.fact == "alive")

    @rule(
        target=ids,
        name=NAMES,
        circle=CIRCLES,
        path=PATHS,
        pane=PANES,
        session=SESSIONS,
        alive=st.booleans(),
        socket=st.booleans(),
    )
    def come_as_a_new_one(self, name, circle, path, pane, session, alive, socket):
        """A process nobody knows yet. Only an offline peer of the same name, place and kind may be it, or one of its
        session that nothing is known to live as.
        """
        before = dict(self.owners)
        live = {peer_id for peer_id in before if self.lives_as(peer_id, socket)}
        shown = {peer_id for peer_id in live if peers.load(self.mesh.db.conn, peer_id).hidden_at is None}
        rows = {peer_id: peers.load(self.mesh.db.conn, peer_id) for peer_id in before}
        panes = {peer_id: {row.pane_id, row.last_pane_id} - {None} for peer_id, row in rows.items()}
        started = self.started(alive)
        said = Claim(
            name,
            circle=circle,
            path=path,
            pane_id=pane,
            agent_pid=os.getpid() if alive else None,
            agent_started=started,
            metadata={"hook_session_id": session} if session else {},
        )
        lived = {peer_id for peer_id in before if self.lived(peer_id) and rows[peer_id].retired_at is None}
        held = {peer_id for peer_id in lived if presence.reachable(self.mesh.db.conn, peer_id)}
        peer, certificate = self.claim(said, connected=socket)
        known = rows.get(peer.peer_id)
        of_session = known is not None and session is not None and known.session == session
        if peer.peer_id in live:
            assert of_session, "a live identity was given to a stranger"
            assert peer.peer_id not in (lived if alive else held), "and somebody lives as it"
        for peer_id in shown - {peer.peer_id}:
            assert peers.load(self.mesh.db.conn, peer_id).hidden_at is None, "a live peer lost its name"
        if peer.peer_id in before:
            in_place = pane in panes[peer.peer_id] or (pane is None and rows[peer.peer_id].pane_id is None)
            assert of_session or (before[peer.peer_id].path == path and in_place)
            mail = before[peer.peer_id].mail
            return self.owned(peer, certificate, Owner(path, pane, started, mail=mail))
        return self.owned(peer, certificate, Owner(path, pane, started))

    @rule(peer_id=ids, path=PATHS, socket=st.booleans())
    def steal(self, peer_id, path, socket):
        """Somebody names the id and has nothing to show but the place."""
        held = presence.reachable(self.mesh.db.conn, peer_id)
        retired = peers.load(self.mesh.db.conn, peer_id).retired_at
        got = self.claim(Claim("thief", path=path, peer_id=peer_id), connected=socket)
        if got is None:
            assert retired is not None
            return
        if got[0].peer_id == peer_id:
            assert not held, "a held mailbox changed hands without proof"
            assert retired is None, "a tombstone was lifted without a live process"
            assert path == self.owners[peer_id].path, "another place is no proof"
        else:
            self.owned(*got, Owner(path, None, None))

    @rule(peer_id=ids, other=ids)
    def steal_with_the_certificate_of_another(self, peer_id, other):
        if self.owners[peer_id] is self.owners[other]:
            return
        held = presence.reachable(self.mesh.db.conn, peer_id)
        said = Claim("thief", path="/elsewhere", peer_id=peer_id, certificate=self.owners[other].certificate)
        got = self.claim(said, connected=True)
        if got is not None:
            assert got[0].peer_id != peer_id or not held
            assert got[0].peer_id != peer_id, "a certificate of another, and another place"
            self.owned(*got, Owner("/elsewhere", None, None))

    @rule(peer_id=ids, socket=st.booleans())
    def come_back_with_the_certificate(self, peer_id, socket):
        owner = self.owners[peer_id]
        retired = peers.load(self.mesh.db.conn, peer_id).retired_at
        said = Claim("x", path=owner.path, peer_id=peer_id, certificate=owner.certificate)
        db = self.mesh.db.conn
        lapsed = certificates.holder(db, owner.certificate, self.clock.now() + 1) is None
        refused = lapsed and presence.reachable(db, peer_id)  # where nobody holds it, the place is proof enough
        got = self.claim(said, connected=socket)
        assert (got is None or got[0].peer_id != peer_id) == (retired is not None or refused)
        if got is not None and got[0].peer_id != peer_id:
            self.owned(*got, Owner(owner.path, None, None))
        elif got is not None:
            owner.certificate = got[1]

    @rule(peer_id=ids)
    def come_back_with_the_pane_and_the_process(self, peer_id):
        owner, known = self.owners[peer_id], peers.load(self.mesh.db.conn, peer_id)
        if owner.pane_id is None or owner.started is None or known.pane_id != owner.pane_id:
            return
        said = Claim(
            "x",
            path=owner.path,
            peer_id=peer_id,
            pane_id=owner.pane_id,
            agent_pid=os.getpid(),
            agent_started=owner.started,
        )
        peer, certificate = self.claim(said, connected=True)
        if known.agent_started == owner.started:
            assert peer.peer_id == peer_id
            owner.certificate = certificate
        else:
            self.owned(peer, certificate, Owner(owner.path, owner.pane_id, owner.started))

    @rule(target=ids, peer_id=ids)
    def go_on_elsewhere(self, peer_id):
        """Its session is resumed in another process; while it lives itself, that is another peer."""
        known, session = peers.load(self.mesh.db.conn, peer_id), f"session-of-{peer_id}"
        lived = self.lived(peer_id) and known.retired_at is None
        with self.mesh.change() as change:
            peers.change_columns(change, peer_id, session=session)
            change.record("peer.changed", peer_id=peer_id)
        started = self.started(True)
        said = Claim("fork", path="/f", agent_pid=os.getpid(), agent_started=started)
        peer, certificate = self.claim(replace(said, metadata={"hook_session_id": session}), connected=True)
        assert not (lived and peer.peer_id == peer_id), "a live identity was given to a stranger"
        mail = self.owners[peer.peer_id].mail if peer.peer_id in self.owners else []
        return self.owned(peer, certificate, Owner("/f", None, started, mail=mail))

    # -- leading, and what tmux says ------------------------------------------

    @rule(peer_id=ids)
    def claim_the_role(self, peer_id):
        db = self.mesh.db.conn
        peer = peers.load(db, peer_id)
        others = [one for one in roles.holders(db, peer.circle) if one.peer_id != peer_id]
        fresh = any(lives.fresh(self.mesh, one) for one in others)
        try:
            with self.mesh.change() as change:
                roles.claim_role(change, self.mesh, peer)
            said = None
        except Refusal as refusal:
            said = refusal.error
        gone = peer.hidden_at is not None or peer.retired_at is not None
        assert said == ("peer_gone" if gone else "role_held" if fresh else None)
        if said is None:
            assert [one.peer_id for one in roles.holders(db, peer.circle)] == [peer_id]

    @rule(pane=st.sampled_from(["%1", "%2"]))
    def a_pane_dies(self, pane):
        db = self.mesh.db.conn
        before = {one: presence.of(db, one) for one in self.owners}
        holders = {one.peer_id for one in peers.in_pane(db, pane)}
        with self.mesh.change() as change:
            lifecycle.gone(change, self.mesh, peers.in_pane(db, pane), "pane_died")
        for peer_id, status in before.items():
            now = presence.of(db, peer_id)
            assert now == ("offline" if peer_id in holders else status)
            assert peers.load(db, peer_id).retired_at is None or status == "offline"
        assert peers.in_pane(db, pane) == []

    # -- going ----------------------------------------------------------------

    @rule(peer_id=ids)
    def hang_up(self, peer_id):
        self.clock.advance(1)
        if peer_id in self.connected:
            self.connected.discard(peer_id)
            with self.mesh.change() as change:
                peer = peers.load(change.db, peer_id)
                lives.note(change, peer, presence.SOCKET, "closed", "transport_failure")

    @rule(peer_id=ids, word=st.sampled_from(["online", "busy", "offline"]))
    def say(self, peer_id, word):
        self.clock.advance(1)
        with self.mesh.change() as change:
            lives.say(change, peers.load(change.db, peer_id), word, "session_update")

    @rule(peer_id=ids, settled=st.booleans())
    def retire(self, peer_id, settled):
        self.clock.advance(1)
        with self.mesh.change() as change:
            lives.retire(change, peers.load(change.db, peer_id), "session_end")
        assert presence.of(self.mesh.db.conn, peer_id) == "offline"
        self.hang_up(peer_id)
        if settled:
            self.note_who_ended()
            succession.tick(self.mesh)

    @rule(peer_id=ids, name=st.sampled_from(["ann", "ben", "human"]))
    def rename(self, peer_id, name):
        peer = peers.load(self.mesh.db.conn, peer_id)
        if peer.hidden_at is None:
            with self.mesh.change() as change:
                names.rename(change, peer, name)

    @rule(peer_id=ids, circle=CIRCLES)
    def move(self, peer_id, circle):
        peer = peers.load(self.mesh.db.conn, peer_id)
        if peer.hidden_at is None:
            with self.mesh.change() as change:
                names.set_circle(change, peer, circle)

    def note_who_ended(self):
        for peer_id in self.owners:
            peer = peers.load(self.mesh.db.conn, peer_id)
            if peer.retired_at is not None or peer.hidden_at is not None:
                self.left.add(peer_id)
            if peer.retired_at is not None and self.clock.now() - peer.retired_at >= peers.TOMBSTONE_SECONDS:
                self.lapsed.add(peer_id)

    @rule(seconds=st.sampled_from([1, 700, peers.TOMBSTONE_SECONDS]))
    def reap(self, seconds):
        self.clock.advance(seconds)
        lives.tick(self.mesh)
        self.note_who_ended()
        succession.tick(self.mesh)

    @precondition(lambda self: self.owners)
    @rule()
    def restart(self):
        self.mesh.close()
        self.connected.clear()
        self.open()

    # -- mail -----------------------------------------------------------------

    @rule(peer_id=ids)
    def send(self, peer_id):
        with self.mesh.change() as change:
            frame = {"type": "notify", "text": "hi"}
            one = intake.queue(change, peer_id, frame, expires_at=change.now + 9e9, most=1000)
        self.owners[peer_id].mail.append(one.delivery_id)
        self.sent.append(one.delivery_id)

    # -- what holds -----------------------------------------------------------

    @invariant()
    def no_two_live_peers_of_a_circle_share_a_name(self):
        live = [
            (peer.display_name, peer.circle)
            for peer in peers.listed(self.mesh.db.conn)
            if presence.of(self.mesh.db.conn, peer.peer_id) != "offline"
        ]
        assert len(set(live)) == len(live), live

    @invariant()
    def a_pane_has_one_owner(self):
        panes = [peer.pane_id for peer in peers.listed(self.mesh.db.conn) if peer.pane_id]
        assert len(set(panes)) == len(panes)

    @invariant()
    def every_message_waits_where_it_was_sent_or_with_who_follows_or_failed(self):
        db = self.mesh.db.conn
        for peer_id, owner in self.owners.items():
            for delivery_id in owner.mail:
                found = deliveries.load(db, delivery_id)
                if found.state == "failed":
                    assert peer_id in self.lapsed, "mail was dropped while its peer could come back"
                else:
                    assert found.state == "queued"
                    assert found.peer_id == peer_id or peer_id in self.left

    @invariant()
    def every_mailbox_is_in_the_order_of_sending(self):
        for peer_id in self.owners:
            query = "SELECT delivery_id FROM deliveries WHERE peer_id = ? AND state = 'queued' ORDER BY seq"
            found = [row[0] for row in self.mesh.db.conn.execute(query, (peer_id,))]
            assert found == [one for one in self.sent if one in found]

    @invariant()
    def what_is_kept_of_a_peer_is_what_would_be_shown_anew(self):
        db, now = self.mesh.db.conn, self.clock.now()
        shown = [json.loads(one.json(now)) for one in self.roster.all()]
        anew = [roster.info(self.mesh, peer, presence.evidence(db, peer.peer_id)) for peer in peers.listed(db)]
        assert shown == anew

    @invariant()
    def what_moved_is_with_who_follows(self):
        db = self.mesh.db.conn
        for peer_id, owner in self.owners.items():
            sent = peers.load(db, peer_id)
            for delivery_id in owner.mail:
                found = deliveries.load(db, delivery_id)
                if found.peer_id != peer_id and found.state == "queued":
                    heir = peers.load(db, found.peer_id)
                    assert heir.backend == sent.backend

    @invariant()
    def nobody_who_was_there_is_forgotten(self):
        for peer_id in self.owners:
            assert peers.find(self.mesh.db.conn, peer_id) is not None

    @invariant()
    def the_name_of_the_human_is_the_humans(self):
        for peer in peers.named(self.mesh.db.conn, "human"):
            assert peer.role == "human" or peer.circle != "default"


TestLifeOfPeers = LifeOfPeers.TestCase
TestLifeOfPeers.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
