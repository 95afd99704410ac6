"""traces.py: what happened to a message, and the stream of events without loss or repeat."""

import asyncio
import json

import pytest
from conftest import DEADLINE_SECONDS, until_async

from repowire import traces


class Stream:
    """An open event stream, read event by event."""

    def __init__(self, response):
        self.response = response

    async def next(self):
        """The id and the body of the next event; comments are passed over."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            fields = {}
            while line := await self.response.content.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if not name and not value and fields:
                    return int(fields["id"]), json.loads(fields["data"])
                if name:
                    fields[name] = value
        raise EOFError

    async def take(self, count):
        return [(await self.next())[0] for _ in range(count)]


@pytest.fixture
async def stream(both):
    opened = []

    async def build(headers=None, **query):
        sent = {"Authorization": f"Bearer {both.token}", **(headers or {})}
        opened.append(await both.client.get("/events/stream", params=query, headers=sent))
        return Stream(opened[-1])

    yield build
    for response in opened:
        response.close()


def say(mesh, count=1, **facts):
    for _ in range(count):
        mesh.announce("peer.changed", **facts)


# -- the stream ---------------------------------------------------------------


async def test_only_new_events_come_without_a_cursor(both, stream):
    say(both.mesh, 3)
    opened = await stream()
    assert opened.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    await until_async(lambda: both.mesh.bus.heard("*"))
    at = both.mesh.ledger.last
    say(both.mesh, 2)
    assert await opened.take(2) == [at + 1, at + 2]


async def test_an_event_carries_its_number_twice_and_the_published_type(both, stream):
    opened = await stream(replay=0)
    await both.post("/peers", name="ben", path="/src/ben")
    await both.post("/notify", from_peer="ann", to_peer="ben", text="hi")
    seq, event = await opened.next()
    while event["kind"] != "notify.accepted":
        seq, event = await opened.next()
    assert (event["id"], event["type"], event["text"]) == (str(seq), "notification", "hi")
    assert (event["from"], event["to"]) == ("ann", "ben")
    assert event["timestamp"].endswith("+00:00")


@pytest.mark.parametrize("how", ["header", "since"])
async def test_a_cursor_resumes_without_loss_or_repeat(both, stream, how):
    say(both.mesh, 10)
    first = await stream(replay=10)
    seen = await first.take(4)
    first.response.close()
    say(both.mesh, 3)
    last = str(seen[-1])
    again = await (stream({"Last-Event-ID": last}) if how == "header" else stream(since=last))
    seen += await again.take(both.mesh.ledger.last - seen[-1])
    say(both.mesh)
    seen += await again.take(1)
    assert seen == list(range(seen[0], both.mesh.ledger.last + 1))


async def test_the_reconnect_of_a_browser_goes_on_where_it_was_though_its_url_asks_for_a_replay(both, stream):
    say(both.mesh, 10)
    last = both.mesh.ledger.last
    again = await stream({"Last-Event-ID": str(last - 2)}, replay=5, since=str(last - 8))
    assert await again.take(2) == [last - 1, last]


async def test_a_cursor_of_another_life_of_the_home_does_not_silence_the_stream(both, stream):
    opened = await stream(since=str(both.mesh.ledger.last + 1000))
    await until_async(lambda: both.mesh.bus.heard("*"))
    say(both.mesh)
    assert await opened.take(1) == [both.mesh.ledger.last]


@pytest.mark.parametrize("since", ["abc", "", "-5", "9" * 400, "١٢"])
async def test_a_cursor_without_sense_is_none(both, stream, since):
    opened = await stream(since=since)
    assert opened.response.status == 200
    await until_async(lambda: both.mesh.bus.heard("*"))
    say(both.mesh)
    assert (await opened.take(1))[-1] <= both.mesh.ledger.last


async def test_a_slow_reader_loses_nothing(both, stream):
    opened = await stream()
    await until_async(lambda: both.mesh.bus.heard("*"))
    at = both.mesh.ledger.last
    for _ in range(5):
        say(both.mesh, 1000, text="x" * 500)
        await asyncio.sleep(0)
    assert await opened.take(5000) == list(range(at + 1, at + 5001))


async def test_silence_is_filled_with_comments(api, monkeypatch):
    monkeypatch.setattr(traces, "KEEPALIVE_SECONDS", 0.02)
    async with api.client.get("/events/stream", headers={"Authorization": f"Bearer {api.token}"}) as response:
        lines = [await response.content.readline() for _ in range(4)]
    assert lines == [b": repowire\n", b"\n", b": keepalive\n", b"\n"]


async def test_the_stream_ends_when_the_daemon_stops(both, stream):
    opened = await stream()
    await until_async(lambda: both.mesh.bus.heard("*"))
    both.mesh.bus.close()
    with pytest.raises(EOFError):
        await opened.next()


@pytest.mark.parametrize("replay", ["-1", "many", "5001", "9" * 5000])
async def test_a_replay_is_bounded(api, replay):
    got = await api.request("GET", "/events/stream", query={"replay": replay})
    assert (got.status, got.json["detail"]["field"]) == (422, "replay")


# -- the window ---------------------------------------------------------------


async def test_the_window_is_an_array_of_the_newest_oldest_first(both):
    say(both.mesh, 600)
    got = await both.get("/events")
    last = both.mesh.ledger.last
    assert [int(one["id"]) for one in got] == list(range(last - 499, last + 1))
    assert [int(one["id"]) for one in await both.get("/events", since=last - 2)] == [last - 1, last]
    for odd in ("abc", "0", "9" * 5000):
        assert len(await both.get("/events", since=odd)) in (0, 500)


# -- traces -------------------------------------------------------------------


async def test_the_stages_of_an_answered_ask_are_in_the_published_order(both):
    ann = await both.connect("ann", path="/src/ann")
    ben = await both.connect("ben", path="/src/ben", pane_id="%1", capabilities=["delivery_receipts"])
    cid = (await both.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.receipt(await ben.next())
    await until_async(lambda: "delivery.handed" in [line.kind for line in both.mesh.ledger.after(0)])
    await both.post("/ack", correlation_id=cid, message="yes")
    await ann.next()
    got = await both.get(f"/traces/{cid}")
    assert (got["trace_id"], got["kind"]) == (cid, "ask")
    stages = [one["stage"] for one in got["stages"]]
    assert stages[:10] == [
        "created",
        "resolved_peer",
        "routed",
        "leased",
        "websocket_sent",
        "hook_received",
        "pane_injected",
        "handed",
        "acked",
        "closed",
    ]
    assert stages[10] == "answered"
    assert stages[11:] == ["routed", "leased", "websocket_sent"], "the reply on its way to the asker"
    assert [one["seq"] for one in got["stages"]] == list(range(len(stages)))
    assert set(got["stages"][0]) == {"seq", "stage", "status", "peer_id", "from_peer_id", "ts", "detail"}
    assert {one["status"] for one in got["stages"]} == {"ok"}
    assert got["stages"][4]["detail"]["verified"] is False


async def test_the_end_of_an_ask_that_nobody_answered_is_in_its_trace(both, clock):
    await both.post("/peers", name="ben", path="/src/ben")
    cid = (await both.post("/ask", from_peer="ann", to_peer="ben", text="?", if_offline="queue"))["correlation_id"]
    from repowire import asks, deliveries

    clock.advance(both.mesh.config.daemon.ask_ttl_seconds + 1)
    deliveries.tick(both.mesh)
    await both.mesh.committed()
    asks.tick(both.mesh)
    await both.mesh.committed()
    stages = {one["stage"]: one["status"] for one in (await both.get(f"/traces/{cid}"))["stages"]}
    assert stages == {"created": "ok", "resolved_peer": "ok", "pending": "ok", "expired": "fail", "closed": "ok"}


async def test_an_unknown_trace_is_not_found(api):
    got = await api.get("/traces/ask-nobody", expect=404)
    assert got["detail"]["error"] == "trace_not_found"


async def test_the_index_is_read_back_from_the_lines(both):
    await both.post("/peers", name="ben", path="/src/ben")
    trace = (await both.post("/notify", from_peer="ann", to_peer="ben", text="hi"))["delivery_id"]
    before = await both.get(f"/traces/{trace}")
    with both.mesh.change() as change:
        change.db.execute("DELETE FROM trace_lines")
        change.db.execute("UPDATE trace_mark SET seq = 0")
    assert await both.get(f"/traces/{trace}") == before


async def test_a_trace_is_found_over_many_lines(both):
    say(both.mesh, 3 * traces.PAGE)
    both.mesh.announce("delivery.held", delivery_id="notif-delivery-x", reason="a draft")
    say(both.mesh, traces.PAGE)
    got = await both.get("/traces/notif-delivery-x")
    assert [one["stage"] for one in got["stages"]] == ["held"]
