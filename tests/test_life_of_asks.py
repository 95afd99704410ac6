"""Whatever the order: an ask is open exactly until its first close, and exactly one reply reaches the asker."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TOKEN, FakeClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from repowire import ask_many, asks, claims, config, daemon, deliveries, peers, receipts, replies
from repowire.asks import Draft
from repowire.claims import Claim
from repowire.errors import Refusal
from repowire.replies import Reply

TTL_SECONDS = 1000.0
REPLIES = st.sampled_from([None, "yes", "no"])


@dataclass
class Asked:
    """What the model knows of one ask."""

    asker: str
    to: str
    at: float
    closed: str | None = None
    reply: str | None = None
    heard: list[str] = field(default_factory=list)  # what came into the asker's mailbox and was read there
    taken: str | None = None  # what its waiters were told; several share one answer
    waiters: list["Waiter"] = field(default_factory=list)


@dataclass
class Waiter:
    """Somebody in POST /asks/{id}/wait; `gone` when its connection is."""

    task: asyncio.Task | None = None
    gone: bool = False


class LifeOfAsks(RuleBasedStateMachine):
    """Ann and ben ask each other; a third, the stranger, has no mailbox."""

    cids = Bundle("cids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.asked: dict[str, Asked] = {}
        self.seen: set[str] = set()
        self.groups: dict[str, list[str]] = {}
        self.open()
        with self.mesh.change() as change:
            self.ids = {
                name: claims.register(change, Claim(name, path=f"/src/{name}"))[0].peer_id for name in ("ann", "ben")
            }

    def open(self) -> None:
        async def build():
            config.prepare_home(self.folder / "home")
            environ = {"REPOWIRE_DAEMON__AUTH_TOKEN": TOKEN, "REPOWIRE_DAEMON__ASK_TTL_SECONDS": str(TTL_SECONDS)}
            return daemon.open_mesh(config.load(self.folder / "home", environ), self.clock)

        self.mesh = self.loop.run_until_complete(build())

    def teardown(self) -> None:
        self.let_waiters_go()
        self.mesh.close()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def turn(self) -> None:
        """Let whoever can run do so."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    # -- asking and answering -------------------------------------------------

    @rule(target=cids, asker=st.sampled_from(["ann", "ben", "stranger"]), back=st.none() | cids)
    def ask(self, asker, back):
        to = "ann" if asker == "ben" else "ben"
        with self.mesh.change() as change:
            draft = Draft(asker, to, "ready?", reply_to=back, keep_if_offline=True)
            asked, _ = asks.open_ask(change, self.mesh, draft)
        self.asked[asked.correlation_id] = Asked(asker, to, self.clock.now())
        first = self.asked[back] if back else None
        if first and first.closed is None and (first.to, first.asker) == (asker, to):
            first.closed = "reply_to"
        self.turn()
        return asked.correlation_id

    @rule(target=cids, asker=st.sampled_from(["ann", "ben", "stranger"]))
    def ask_many(self, asker):
        """Everybody, one of them twice and one who does not exist; nobody may ask himself twice over either."""
        plan = ask_many.Plan(Draft(asker, "", "ready?", keep_if_offline=True), ("ann", "ben", "nobody", "ben"), 60.0)
        with self.mesh.change() as change:
            group, opened = ask_many.open_all(change, self.mesh, plan)
        children = [child for child, _ in opened]
        assert [(child.peer, child.correlation_id is None) for child in children] == [
            ("ann", False),
            ("ben", False),
            ("nobody", True),
        ]
        made = [child.correlation_id for child in children if child.correlation_id]
        for child in children[:2]:
            self.asked[child.correlation_id] = Asked(asker, child.peer, self.clock.now())
        self.groups[group.parent_id] = made
        self.turn()
        return multiple(*made)

    @rule(cid=cids, text=REPLIES)
    def ack(self, cid, text):
        one = self.asked[cid]
        try:
            with self.mesh.change() as change:
                replies.ack(change, self.mesh, cid, Reply(text))
        except Refusal as refusal:
            expected = 404 if one.closed == "forgotten" else 410
            same = text is None or (text == one.reply and one.closed != "declined")
            if refusal.status != expected or (expected == 410 and (one.closed is None or same)):
                raise
            return
        if one.closed is None:
            one.closed, one.reply = "ack" if text is None else "ack_with_msg", text
        self.turn()

    @rule(cid=cids, reason=st.sampled_from(["no", "not mine"]))
    def decline(self, cid, reason):
        one = self.asked[cid]
        try:
            with self.mesh.change() as change:
                replies.decline(change, self.mesh, cid, reason)
        except Refusal as refusal:
            expected = 404 if one.closed == "forgotten" else 410
            same = (one.closed, one.reply) == ("declined", reason)
            if refusal.status != expected or (expected == 410 and (one.closed is None or same)):
                raise
            return
        if one.closed is None:
            one.closed, one.reply = "declined", reason
        self.turn()

    @rule(cid=cids)
    def fail(self, cid):
        found = asks.find(self.mesh.db.conn, cid)
        if found is not None:
            with self.mesh.change() as change:
                replies.end(change, self.mesh, found, "failed", "no pane")
            self.asked[cid].closed = self.asked[cid].closed or "failed"
            self.turn()

    @rule(seconds=st.sampled_from([1.0, TTL_SECONDS / 2, replies.CLOSED_SECONDS]))
    def pass_time(self, seconds):
        self.clock.advance(seconds)
        replies.tick(self.mesh)
        ask_many.tick(self.mesh)
        at = self.mesh.ledger.last
        replies.tick(self.mesh)
        ask_many.tick(self.mesh)
        assert self.mesh.ledger.last == at, "a second tick has nothing to do"
        self.turn()
        now = self.clock.now()
        for cid, one in self.asked.items():
            if one.closed is None and now - one.at >= TTL_SECONDS:
                one.closed = "expired"
            if one.closed and asks.find(self.mesh.db.conn, cid) is None:
                one.closed = "forgotten"

    # -- waiting --------------------------------------------------------------

    @rule(cid=cids)
    def wait(self, cid):
        """What POST /asks/{id}/wait does, with a client that may have left when the answer comes."""
        one = self.asked[cid]
        if one.closed is None:
            waiter = Waiter()
            waiter.task = self.loop.create_task(self.waits(one, cid, waiter))
            one.waiters.append(waiter)
            self.turn()

    async def waits(self, one: Asked, cid: str, waiter: Waiter) -> None:
        """As `post_wait` ends: the reply is taken, or pushed when the last waiter has left."""
        ask = await asks.wait(self.mesh, cid, 3600.0)
        one.waiters.remove(waiter)
        if not waiter.gone and ask.reply:
            one.taken = ask.reply
        if not ask.reply_at_rest and not waiter.gone:
            with self.mesh.change() as change:
                replies.taken(change, cid)
        elif not ask.reply_at_rest and not self.mesh.bus.heard(asks.wait_topic(cid)):
            with self.mesh.change() as change:
                replies.push_reply(change, self.mesh, ask)

    def awaited(self):
        """The asks for which somebody waits."""
        return [cid for cid, one in self.asked.items() if one.waiters and one.closed is None]

    @precondition(awaited)
    @rule(data=st.data())
    def leave(self, data):
        self.asked[data.draw(st.sampled_from(self.awaited()))].waiters[0].gone = True

    # -- the mailbox and the restart ------------------------------------------

    @rule(name=st.sampled_from(["ann", "ben"]))
    def read_mail(self, name):
        with self.mesh.change() as change:
            for one in deliveries.lease(change, self.ids[name], "socket:x", 100):
                receipts.receipt(change, one.delivery_id, "injected", peer_id=self.ids[name])
                assert one.delivery_id not in self.seen, "sent twice"
                self.seen.add(one.delivery_id)
                if one.kind == "notify":
                    asked = self.asked[one.trace]
                    assert asked.asker == name
                    asked.heard.append(one.payload["text"].partition("] ")[2])

    def let_waiters_go(self) -> None:
        tasks = [waiter.task for one in self.asked.values() for waiter in one.waiters]
        for task in tasks:
            task.cancel()

        async def end() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        self.loop.run_until_complete(end())
        for one in self.asked.values():
            one.waiters.clear()

    @rule()
    def restart(self):
        """The waiters are cut off, and did not take what was on its way to them."""
        self.let_waiters_go()
        self.mesh.close()
        self.open()

    @precondition(awaited)
    @rule(data=st.data())
    def crash_between_the_ack_and_its_waiter(self, data):
        cid = data.draw(st.sampled_from(self.awaited()))
        with self.mesh.change() as change:
            replies.ack(change, self.mesh, cid, Reply("at the last moment"))
        self.asked[cid].closed, self.asked[cid].reply = "ack_with_msg", "at the last moment"
        self.restart()

    # -- what holds -----------------------------------------------------------

    @invariant()
    def an_ask_is_open_until_its_first_close(self):
        for cid, one in self.asked.items():
            found = asks.find(self.mesh.db.conn, cid)
            if one.closed == "forgotten":
                assert found is None
            else:
                assert (found.close_reason, found.reply) == (one.closed, one.reply)
                assert (found.closed_at is None) == (one.closed is None)

    @invariant()
    def a_roll_up_says_what_its_asks_say(self):
        db = self.mesh.db.conn
        words = {None: "pending", "ack": "acked", "ack_with_msg": "replied", "reply_to": "acked"}
        for parent_id, made in self.groups.items():
            models = [self.asked[cid] for cid in made]
            if any(one.closed == "forgotten" for one in models):
                assert all(one.closed for one in models), "forgotten while a sister is open"
                continue
            children = ask_many.children(db, parent_id)
            got = [ask_many.status(child, asks.find(db, child.correlation_id)) for child in children[:2]]
            assert got == [words.get(one.closed, "failed") for one in models]
            assert ask_many.status(children[2], None) == "failed"

    @invariant()
    def the_lists_show_what_is_open(self):
        for name, peer_id in self.ids.items():
            shown = {one.correlation_id for one in asks.listed(self.mesh.db.conn, peer_id, "both", "open", 1000)}
            expected = {cid for cid, one in self.asked.items() if one.closed is None and name in (one.asker, one.to)}
            assert shown == expected
            assert peers.waiting(self.mesh.db.conn, peer_id) >= bool(expected)

    @invariant()
    def one_reply_reaches_the_asker(self):
        """Heard already, or on its way in the mailbox: exactly once. Nobody but a waiter hears for the stranger."""
        for cid, one in self.asked.items():
            query = "SELECT count(*) FROM deliveries WHERE trace = ? AND kind = 'notify' AND state = 'queued'"
            coming = self.mesh.db.conn.execute(query, (cid,)).fetchone()[0]
            times = len(one.heard) + coming + (one.taken is not None)
            told = one.reply is not None or one.closed in ("failed", "expired")
            if one.asker == "stranger" or one.closed == "forgotten":
                assert times <= 1
            else:
                assert times == int(told), one
            assert one.taken in (None, one.reply)
            assert one.reply is None or one.heard in ([], [one.reply])


TestLifeOfAsks = LifeOfAsks.TestCase
TestLifeOfAsks.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
