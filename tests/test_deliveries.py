"""deliveries.py: in order, to one taker, at most once, and never a stronger word than the proof."""

import asyncio
import math
from dataclasses import dataclass, field

import pytest
from conftest import until_async

from repowire import claims, deliveries, intake, leases, mailboxes, receipts
from repowire.claims import Claim
from repowire.deliveries import Delivery
from repowire.doors import Door
from repowire.errors import Refusal
from repowire.mesh import Mesh

MOST = 5


def peer(mesh, name="ben", **fields):
    with mesh.change() as change:
        return claims.register(change, Claim(name, path=f"/src/{name}", **fields))[0]


def queue(mesh, ben, text="hi", *, most=MOST, seconds=3600.0, kind="notify"):
    with mesh.change() as change:
        frame = {"type": kind, "from_peer": "ann", "to_peer": "ben", "text": text}
        return intake.queue(change, ben.peer_id, frame, expires_at=change.now + seconds, most=most)


def lease(mesh, ben, holder="socket:a", most=1):
    with mesh.change() as change:
        return deliveries.lease(change, ben.peer_id, holder, most)


def receipt(mesh, ben, one, status="injected", detail=None):
    with mesh.change() as change:
        receipts.receipt(change, one.delivery_id, status, detail, peer_id=ben.peer_id)


def state(mesh, one):
    found = deliveries.load(mesh.db.conn, one.delivery_id)
    return found.state, found.reason


@pytest.fixture
def ben(mesh):
    return peer(mesh)


# -- the mailbox --------------------------------------------------------------


async def test_what_became_unknown_in_a_long_stop_is_taken_again_by_who_remembers(mesh, ben, clock):
    one = queue(mesh, ben)
    lease(mesh, ben, "instance:a")
    clock.advance(mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(mesh)
    assert state(mesh, one)[0] == "unknown"
    with mesh.change() as change:
        assert deliveries.take_again(change, ben.peer_id, "instance:b") == []
        again = deliveries.take_again(change, ben.peer_id, "instance:a")
    assert ([it.delivery_id for it in again], state(mesh, one)) == ([one.delivery_id], ("leased", None))


async def test_what_waits_behind_a_slow_write_does_not_become_unknown(mesh, ben, clock):
    """It was never written: when the way ends it goes back into the mailbox."""

    class Slow:
        async def hand(self, _):
            await asyncio.Event().wait()

        def abort(self):
            raise AssertionError("nothing failed")

    first, second = queue(mesh, ben), queue(mesh, ben)
    door = Door(ben.peer_id, "socket:a")
    mesh.doors.open(door)
    worker = mailboxes.Worker(mesh, door, Slow())
    worker.begin()
    await until_async(lambda: door.in_hand is not None)
    third = queue(mesh, ben)
    with mesh.change() as change:
        door.unwritten += deliveries.lease(change, ben.peer_id, door.holder, most=1)
    clock.advance(mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(mesh)
    assert [state(mesh, one)[0] for one in (first, second, third)] == ["unknown", "leased", "queued"]
    await worker.end()
    assert [state(mesh, one) for one in (first, second)] == [
        ("unknown", "no receipt came within the lease"),
        ("queued", "way_closed"),
    ]


@pytest.mark.parametrize("promised", [False, True])
async def test_what_a_way_without_memory_was_given_is_unknown_when_it_ends(mesh, ben, clock, promised):
    """What waited, what went straight through, and its copy of a broadcast, each at a moment of its own."""
    waits = queue(mesh, ben, "waits")
    door = Door(ben.peer_id, "socket:a", receipts=promised)
    mesh.doors.open(door)
    far = Far()
    worker = mailboxes.Worker(mesh, door, far)
    worker.begin()
    await until_async(lambda: door.clear)
    clock.advance(1)
    straight = queue(mesh, ben, "straight")
    clock.advance(1)
    with mesh.change() as change:
        frame = {"type": "broadcast", "from_peer": "ann", "text": "copy"}
        (copy,), _ = intake.queue_all(
            change, [ben.peer_id], frame, trace="bcast-1", from_peer_id=None, expires_at=change.now + 9, most=MOST
        )
    await until_async(lambda: far.got == ["waits", "straight", "copy"])
    leases.tick(mesh)
    assert [state(mesh, one)[0] for one in (waits, straight, copy)] == ["leased"] * 3
    await worker.end()
    assert [state(mesh, one) for one in (waits, straight, copy)] == [
        ("unknown", "the socket closed before a receipt came")
    ] * 3


async def test_the_moments_of_what_ran_out_are_forgotten(mesh, ben, clock):
    queue(mesh, ben)
    way = Way(mesh, ben, Far())
    await way.until_clear()
    assert way.door.unproved == [clock.now()]
    clock.advance(mesh.config.daemon.delivery_lease_seconds + 1)
    queue(mesh, ben)
    leases.tick(mesh)
    assert way.door.unproved == [clock.now()]
    await way.end()


async def test_a_way_that_ends_reads_no_lease_of_others(mesh, ben):
    """A thousand sockets that close at once would each read what all of them were given."""
    said = []
    mesh.db.conn.set_trace_callback(said.append)
    with mesh.change() as change:
        deliveries.lost(change, ben.peer_id, "socket:a", ["notif-delivery-1"], [1.5])
    mesh.db.conn.set_trace_callback(None)
    looks = [one for one in said if one.startswith("SELECT")]
    assert len(looks) == 2
    for words in looks:
        (plan,) = [row["detail"] for row in mesh.db.conn.execute(f"EXPLAIN QUERY PLAN {words}")]
        assert "(leased_at=? AND peer_id=?)" in plan or "(delivery_id=?)" in plan


async def test_what_ended_is_forgotten_after_its_time_and_what_waits_is_not(mesh, ben, clock):
    config = mesh.config.daemon
    kept = max(config.ask_ttl_seconds, config.delivery_queue_ttl_seconds) + deliveries.KEPT_SECONDS
    one, waits = queue(mesh, ben), queue(mesh, ben, seconds=10 * kept)
    lease(mesh, ben)
    receipt(mesh, ben, one)
    clock.advance(kept - 1)
    leases.tick(mesh)
    assert state(mesh, one)[0] == "handed"
    clock.advance(2)
    leases.tick(mesh)
    assert deliveries.find(mesh.db.conn, one.delivery_id) is None
    assert state(mesh, waits)[0] == "queued"


async def test_the_oldest_goes_first_and_each_to_one_taker(mesh, ben):
    ids = [queue(mesh, ben, f"{n}").delivery_id for n in range(4)]
    taken = lease(mesh, ben, "socket:a", 3) + lease(mesh, ben, "socket:b", 3)
    assert [one.delivery_id for one in taken] == ids
    assert [one.leased_by for one in taken] == ["socket:a"] * 3 + ["socket:b"]
    assert lease(mesh, ben, "socket:c", 3) == []


async def test_a_mailbox_is_its_peers_alone(mesh, ben):
    ann = peer(mesh, "ann")
    queue(mesh, ben)
    assert lease(mesh, ann) == []
    assert deliveries.depth(mesh.db.conn, ben.peer_id) == 1


async def test_a_full_mailbox_refuses_the_new_message_and_keeps_the_old(mesh, ben):
    kept = [queue(mesh, ben, f"{n}") for n in range(MOST)]
    with pytest.raises(Refusal) as refused:
        queue(mesh, ben, "one more")
    assert (refused.value.status, refused.value.error, refused.value.facts["limit"]) == (429, "queue_full", MOST)
    assert [one.delivery_id for one in lease(mesh, ben, most=9)] == [one.delivery_id for one in kept]


async def test_what_was_released_stands_in_its_old_place(mesh, ben):
    first, second = queue(mesh, ben, "1"), queue(mesh, ben, "2")
    taken = lease(mesh, ben)
    with mesh.change() as change:
        deliveries.release(change, taken, "way_closed")
    assert state(mesh, first) == ("queued", "way_closed")
    assert [one.delivery_id for one in lease(mesh, ben, most=2)] == [first.delivery_id, second.delivery_id]


async def test_what_was_receipted_meanwhile_is_not_released(mesh, ben):
    one = queue(mesh, ben)
    taken = lease(mesh, ben)
    receipt(mesh, ben, one)
    with mesh.change() as change:
        deliveries.release(change, taken, "way_closed")
    assert state(mesh, one) == ("handed", None)


async def test_only_the_very_holder_is_given_the_same_again(mesh, ben):
    one = queue(mesh, ben)
    lease(mesh, ben, "instance:a")
    with mesh.change() as change:
        assert deliveries.take_again(change, ben.peer_id, "instance:b") == []
        again = deliveries.take_again(change, ben.peer_id, "instance:a")
    assert [(two.delivery_id, two.attempts) for two in again] == [(one.delivery_id, 2)]


# -- receipts -----------------------------------------------------------------


def put_into(mesh, one, word):
    with mesh.change() as change:
        change.db.execute("UPDATE deliveries SET state = ? WHERE delivery_id = ?", (word, one.delivery_id))


@pytest.mark.parametrize(
    ("before", "injected", "failed"),
    [
        ("queued", "handed", "queued"),
        ("held", "handed", "held"),
        ("leased", "handed", "held"),
        ("unknown", "handed", "held"),
        ("handed", "handed", "handed"),
        ("seen", "seen", "seen"),
        ("answered", "answered", "answered"),
        ("failed", "failed", "failed"),
        ("expired", "expired", "expired"),
    ],
)
@pytest.mark.parametrize("status", ["injected", "held", "rejected", "failed"])
async def test_a_receipt_never_makes_a_state_weaker(mesh, ben, before, injected, failed, status):
    one = queue(mesh, ben)
    put_into(mesh, one, before)
    receipt(mesh, ben, one, status)
    assert state(mesh, one)[0] == (injected if status == "injected" else failed)
    at = mesh.ledger.last
    receipt(mesh, ben, one, status)
    assert mesh.ledger.last == at


async def test_a_receipt_of_somebody_else_or_of_nothing_is_no_receipt(mesh, ben):
    one, ann = queue(mesh, ben), peer(mesh, "ann")
    lease(mesh, ben)
    receipt(mesh, ann, one)
    receipt(mesh, ben, one._replace(delivery_id="notif-delivery-nothing"))
    assert state(mesh, one)[0] == "leased"


@pytest.mark.parametrize(("detail", "reason"), [(None, "rejected"), ("a dialog is open", "a dialog is open")])
async def test_what_was_not_injected_is_held_with_its_reason(mesh, ben, detail, reason):
    one = queue(mesh, ben)
    lease(mesh, ben)
    receipt(mesh, ben, one, "rejected", detail)
    assert state(mesh, one) == ("held", reason)
    assert deliveries.depth(mesh.db.conn, ben.peer_id) == 1


async def test_what_was_taken_back_and_handed_anew_was_handed_then(mesh, ben, clock):
    """By that moment an ask comes to be said again that nobody has shown."""
    one = queue(mesh, ben)
    lease(mesh, ben, "hook:a")
    receipt(mesh, ben, one)
    given = deliveries.load(mesh.db.conn, one.delivery_id)
    assert given.handed_at == clock.now()
    clock.advance(600)
    with mesh.change() as change:
        deliveries.again(change, given, "the session ended before it was shown")
    lease(mesh, ben, "hook:b")
    receipt(mesh, ben, one)
    anew = deliveries.load(mesh.db.conn, one.delivery_id)
    assert (anew.state, anew.handed_at) == ("handed", clock.now())
    receipt(mesh, ben, one)
    clock.advance(1)
    with mesh.change() as change:
        deliveries.answered(change, one.delivery_id, handed=True)
    ended = deliveries.load(mesh.db.conn, one.delivery_id)
    assert (ended.state, ended.handed_at) == ("answered", anew.handed_at)


# -- time ---------------------------------------------------------------------


async def test_silence_past_the_lease_is_unknown_and_is_not_sent_again(mesh, ben, clock):
    one = queue(mesh, ben, seconds=1e6)
    lease(mesh, ben)
    clock.advance(mesh.config.daemon.delivery_lease_seconds - 1)
    assert leases.tick(mesh) == pytest.approx(1.0)
    assert state(mesh, one)[0] == "leased"
    clock.advance(1)
    leases.tick(mesh)
    assert state(mesh, one) == ("unknown", "no receipt came within the lease")
    assert lease(mesh, ben) == []


async def test_mail_that_nobody_fetches_expires(mesh, ben, clock):
    one, other = queue(mesh, ben, seconds=50), queue(mesh, ben, seconds=70)
    assert leases.tick(mesh) == pytest.approx(50.0)
    clock.advance(50)
    assert leases.tick(mesh) == pytest.approx(20.0)
    assert (state(mesh, one)[0], state(mesh, other)[0]) == ("expired", "queued")
    assert [two.delivery_id for two in lease(mesh, ben, most=9)] == [other.delivery_id]


async def test_a_second_tick_records_nothing(mesh, ben, clock):
    queue(mesh, ben, seconds=1)
    lease(mesh, ben)
    queue(mesh, ben, seconds=1)
    clock.advance(1000)
    leases.tick(mesh)
    at = mesh.ledger.last
    leases.tick(mesh)
    assert mesh.ledger.last == at


async def test_after_a_restart_only_who_remembers_may_be_asked_again(new_mesh, mesh, ben, tmp_path, clock):
    one, two = queue(mesh, ben), queue(mesh, ben)
    lease(mesh, ben, "socket:a")
    lease(mesh, ben, "instance:a")
    three = queue(mesh, ben)
    mesh.close()
    again = new_mesh(tmp_path / "home", clock)
    assert [state(again, one)[0] for one in (one, two, three)] == ["unknown", "leased", "queued"]
    assert [one.delivery_id for one in lease(again, ben, most=9)] == [three.delivery_id]


async def test_cancelling_takes_back_only_what_waits(mesh, ben):
    sent, waits = queue(mesh, ben), queue(mesh, ben)
    lease(mesh, ben)
    with mesh.change() as change:
        for one in (sent, waits):
            deliveries.cancel(change, one.delivery_id, "expired")
        deliveries.cancel(change, "notif-delivery-nothing", "expired")
    assert (state(mesh, sent)[0], state(mesh, waits)) == ("leased", ("failed", "expired"))


# -- the worker of a door -----------------------------------------------------


@dataclass
class Far:
    """The far end of a way: what reached it, and how it fails."""

    got: list[str] = field(default_factory=list)
    ends_after: int | None = None
    never_written: bool = False

    def abort(self) -> None:
        """Nothing is behind it."""

    async def hand(self, one: Delivery) -> bool:
        await asyncio.sleep(0)
        if self.ends_after is not None and len(self.got) >= self.ends_after:
            if self.never_written:
                return False
            raise ConnectionResetError("in the middle of a write")
        self.got.append(one.payload["text"])
        return True


class Way:
    """A door with its worker running."""

    def __init__(self, mesh: Mesh, ben, far: Far, holder: str = "socket:a", *, remembers: bool = False) -> None:
        self.door = Door(ben.peer_id, holder, receipts=remembers, remembers=remembers)
        mesh.doors.open(self.door)
        self.task = asyncio.create_task(mailboxes.serve(mesh, self.door, far.hand))

    async def until_clear(self) -> None:
        await until_async(lambda: self.door.clear and not self.door.items)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(params=["each", "shared"])
def turns(request, mesh):
    mesh.shared = request.param == "shared"
    return mesh


async def test_what_waits_and_what_comes_goes_through_in_order(turns):
    ben, far = peer(turns), Far()
    for n in range(3):
        queue(turns, ben, f"{n}")
    way = Way(turns, ben, far)
    await way.until_clear()
    for n in range(3, 6):
        assert queue(turns, ben, f"{n}").state == "leased"
    await until_async(lambda: len(far.got) == 6)
    assert far.got == [f"{n}" for n in range(6)]
    await way.end()


@pytest.mark.parametrize("remembers", [False, True])
async def test_what_was_provably_not_written_goes_back(turns, remembers):
    ben = peer(turns)
    far = Far(ends_after=2, never_written=True)
    way = Way(turns, ben, far, "instance:a" if remembers else "socket:a", remembers=remembers)
    await way.until_clear()
    sent = [queue(turns, ben, f"{n}") for n in range(5)]
    with pytest.raises(ConnectionResetError):
        await way.task
    await turns.committed()
    words = [state(turns, one)[0] for one in sent]
    assert words == ["leased" if remembers else "unknown"] * 2 + ["queued"] * 3
    second = Far()
    other = Way(turns, ben, second, "instance:b" if remembers else "socket:b", remembers=remembers)
    await until_async(lambda: len(second.got) == 3)
    assert second.got == ["2", "3", "4"]
    await other.end()


@pytest.mark.parametrize("remembers", [False, True])
async def test_what_may_have_been_written_is_not_given_to_another(turns, remembers):
    ben, far = peer(turns), Far(ends_after=1)
    way = Way(turns, ben, far, "instance:a" if remembers else "socket:a", remembers=remembers)
    await way.until_clear()
    sent = [queue(turns, ben, f"{n}") for n in range(3)]
    await asyncio.gather(way.task, return_exceptions=True)
    await turns.committed()
    words = [state(turns, one)[0] for one in sent]
    assert words == ["leased" if remembers else "unknown"] * 2 + ["queued"]


async def test_what_one_instance_was_sent_is_given_to_no_other_though_its_way_ends_again(turns):
    ben, far = peer(turns), Far()
    way = Way(turns, ben, far, "instance:a", remembers=True)
    await way.until_clear()
    one = queue(turns, ben, "once")
    await until_async(lambda: far.got == ["once"])
    await way.end()
    again = Way(turns, ben, Far(ends_after=0, never_written=True), "instance:a", remembers=True)
    await asyncio.gather(again.task, return_exceptions=True)
    await turns.committed()
    other = Far()
    last = Way(turns, ben, other, "instance:b", remembers=True)
    await last.until_clear()
    assert (other.got, state(turns, one)[0]) == ([], "leased")
    await last.end()


async def test_no_more_than_a_window_goes_ahead_of_the_receipts(turns):
    ben, far = peer(turns), Far()
    way = Way(turns, ben, far, "instance:a", remembers=True)
    await way.until_clear()
    sent = [queue(turns, ben, f"{n}", most=1000) for n in range(2 * deliveries.WINDOW)]
    await until_async(lambda: len(far.got) == deliveries.WINDOW)
    for n, one in enumerate(sent):
        await until_async(lambda n=n: len(far.got) > n)
        assert len(far.got) <= n + deliveries.WINDOW
        assert mailboxes.injected(turns, way.door, one.delivery_id)
    await until_async(lambda: len(far.got) == len(sent))
    assert far.got == [f"{n}" for n in range(len(sent))]
    await way.end()


async def test_a_receipt_does_not_let_a_message_overtake_one_of_the_same_turn(turns):
    ben, far = peer(turns), Far()
    way = Way(turns, ben, far, "instance:a", remembers=True)
    await way.until_clear()
    sent = [queue(turns, ben, f"{n}", most=1000) for n in range(deliveries.WINDOW)]
    await until_async(lambda: len(far.got) == deliveries.WINDOW)
    queue(turns, ben, "first", most=1000)
    way.door.receipted(sent[0].delivery_id)
    queue(turns, ben, "second", most=1000)
    for one in sent[1:]:
        way.door.receipted(one.delivery_id)
    await until_async(lambda: len(far.got) == deliveries.WINDOW + 2)
    assert far.got[-2:] == ["first", "second"]
    await way.end()


async def test_what_is_held_is_not_overtaken_until_its_retry(turns, clock):
    ben, far = peer(turns), Far()
    way = Way(turns, ben, far)
    await way.until_clear()
    one = queue(turns, ben, "first")
    await until_async(lambda: far.got == ["first"])
    receipt(turns, ben, one, "held", "a draft")
    queue(turns, ben, "second")
    await turns.committed()
    assert far.got == ["first"]
    clock.advance(2)
    way.door.nudge.ring()
    await until_async(lambda: len(far.got) == 3)
    assert far.got == ["first", "first", "second"]
    await way.end()


async def test_a_message_whose_way_ends_while_it_is_written_is_not_said_to_wait(turns):
    ben, blocked = peer(turns), asyncio.Event()

    async def hand(_: Delivery) -> bool:
        return await blocked.wait()

    way = Way(turns, ben, Far())
    await way.end()
    door = Door(ben.peer_id, "socket:b")
    turns.doors.open(door)
    worker = asyncio.create_task(mailboxes.serve(turns, door, hand))
    await until_async(lambda: door.clear)
    sending = [asyncio.create_task(mailboxes.written(turns, queue(turns, ben, f"{n}"))) for n in range(2)]
    await until_async(lambda: door.in_hand is not None)
    worker.cancel()
    got = await asyncio.gather(*sending)
    assert [one.state for one in got] == ["unknown", "queued"]
    assert [state(turns, one)[0] for one in got] == ["unknown", "queued"]


def break_half_way(mesh):
    with mesh.change() as change:
        change.db.execute("UPDATE peers SET last_seen = 0")
        raise ZeroDivisionError


async def test_a_turn_that_is_lost_sends_nothing(mesh, ben, monkeypatch):
    mesh.shared, mesh.rest_seconds = True, math.inf
    far = Far()
    way = Way(mesh, ben, far)
    await way.until_clear()
    queue(mesh, ben, "lost")
    with pytest.raises(ZeroDivisionError):
        break_half_way(mesh)
    with pytest.raises(Refusal) as refused:
        await mesh.committed()
    assert refused.value.status == 503
    queue(mesh, ben, "kept")
    await until_async(lambda: far.got == ["kept"])
    assert mesh.db.conn.execute("SELECT count(*) FROM deliveries").fetchone()[0] == 1
    await way.end()


# -- wire ---------------------------------------------------------------------


async def test_a_delivery_shows_its_state_and_moments(both):
    await both.post("/peers", name="ben", path="/src/ben")
    sent = await both.post("/notify", from_peer="ann", to_peer="ben", text="hi")
    got = await both.get(f"/deliveries/{sent['delivery_id']}")
    assert {key: got[key] for key in ("kind", "from_peer", "to_peer", "state", "reason", "text", "attempts")} == {
        "kind": "notify",
        "from_peer": "ann",
        "to_peer": "ben",
        "state": "queued",
        "reason": "recipient_offline",
        "text": "hi",
        "attempts": 0,
    }
    assert got["created_at"] == "2025-06-15T15:06:40.000000+00:00"
    assert (got["leased_at"], got["handed_at"], got["trace"]) == (None, None, sent["delivery_id"])
    assert (await both.get("/deliveries/nothing", expect=404))["detail"]["error"] == "delivery_not_found"


async def test_the_drain_gives_each_message_once_in_the_published_shape(both):
    await both.post("/peers", name="ben", path="/src/ben", pane_id="%7")
    ids = [(await both.post("/notify", from_peer="ann", to_peer="ben", text=f"{n}"))["delivery_id"] for n in range(4)]
    first = (await both.get("/deliveries/pending", pane_id="%7", max_results=2))["deliveries"]
    rest = (await both.get("/deliveries/pending", peer_id="ben"))["deliveries"]
    assert [one["delivery_id"] for one in first + rest] == ids
    assert set(first[0]) >= {"delivery_id", "kind", "from_peer", "to_peer", "text", "created_at", "expires_at"}
    assert first[0]["attachments"] == []
    assert (await both.get("/deliveries/pending", peer_id="ben"))["deliveries"] == []
    assert (await both.get(f"/deliveries/{ids[0]}"))["state"] == "leased"  # it was given out; nothing proves more


async def test_what_was_drained_becomes_unknown_and_is_given_out_no_more(mesh, ben, clock):
    one = queue(mesh, ben)
    lease(mesh, ben, "poll")
    clock.advance(mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(mesh)
    assert state(mesh, one)[0] == "unknown"
    assert lease(mesh, ben, "poll") == []


async def test_two_drains_at_once_share_the_mail_without_a_double(both):
    await both.post("/peers", name="ben", path="/src/ben")
    ids = [(await both.post("/notify", from_peer="ann", to_peer="ben", text=f"{n}"))["delivery_id"] for n in range(20)]
    got = await asyncio.gather(*(both.get("/deliveries/pending", peer_id="ben", max_results=3) for _ in range(9)))
    taken = [one["delivery_id"] for answer in got for one in answer["deliveries"]]
    assert sorted(taken) == sorted(ids)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"peer_id": "ben", "pane_id": "%1"}, 400),
        ({"peer_id": "nobody"}, 404),
        ({"pane_id": "%9"}, 404),
        ({"peer_id": "ben", "max_results": "many"}, 422),
        ({"peer_id": "ben", "max_results": "9" * 5000}, 422),
        ({"peer_id": "ben", "max_results": "²"}, 422),
        ({"peer_id": "ben", "max_results": "0"}, 200),
        ({"peer_id": "ben", "max_results": "-1"}, 200),
    ],
)
async def test_the_drain_wants_exactly_one_peer(api, query, status):
    await api.post("/peers", name="ben", path="/src/ben")
    await api.post("/notify", from_peer="ann", to_peer="ben", text="hi")
    got = await api.get("/deliveries/pending", expect=status, **query)
    assert status != 200 or got["deliveries"] == []
