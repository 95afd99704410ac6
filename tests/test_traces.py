"""traces.py: what happened to a message, and the stream of events without loss or repeat."""

import asyncio
import contextlib
import json

import pytest
from conftest import DEADLINE_SECONDS, until_async

from repowire import leases, traces

OPENING = ["created", "resolved_peer", "routed", "leased", "websocket_sent"]
RECEIPTS = ["delivery_receipts"]


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
        assert len(await both.get("/events", since=odd)) == 500


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
    if stages[4] == "websocket_sent":  # left out where the receipt came at once
        assert got["stages"][4]["detail"]["verified"] is False
        del stages[4]
    assert stages[:10] == [
        "created",
        "resolved_peer",
        "routed",
        "leased",
        "hook_received",
        "pane_injected",
        "handed",
        "acked",
        "closed",
        "answered",
    ]
    assert stages[10:] == ["routed", "leased", "websocket_sent"], "the reply on its way to the asker"
    assert [one["seq"] for one in got["stages"]] == list(range(len(got["stages"])))
    assert set(got["stages"][0]) == {"seq", "stage", "status", "peer_id", "from_peer_id", "ts", "detail"}
    assert {one["status"] for one in got["stages"]} == {"ok"}


async def test_the_end_of_an_ask_that_nobody_answered_is_in_its_trace(both, clock):
    await both.post("/peers", name="ben", path="/src/ben")
    cid = (await both.post("/ask", from_peer="ann", to_peer="ben", text="?", if_offline="queue"))["correlation_id"]
    from repowire import replies

    clock.advance(both.mesh.config.daemon.ask_ttl_seconds + 1)
    leases.tick(both.mesh)
    await both.mesh.committed()
    replies.tick(both.mesh)
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


async def ask(api, to="ben", **fields):
    return await api.post("/ask", **{"from_peer": "ann", "to_peer": to, "text": "ready?", **fields})


async def notify(api, to="ben", text="hi"):
    return (await api.post("/notify", from_peer="ann", to_peer=to, text=text))["delivery_id"]


async def stages(api, trace):
    return (await api.get(f"/traces/{trace}"))["stages"]


async def names(api, trace):
    return [one["stage"] for one in await stages(api, trace)]


async def told(api, kind):
    """Until the ledger has a line of the kind."""
    await until_async(lambda: kind in [line.kind for line in api.mesh.ledger.after(0)])


def announce(mesh, count, first=0):
    for n in range(first, first + count):
        mesh.announce("peer.changed", n=n)


# -- the stages of a message, case by case ------------------------------------


async def test_a_stage_has_the_published_fields_and_our_line_as_its_detail(api):
    ann, ben = await api.connect("ann", path="/src/ann"), await api.connect("ben", path="/src/ben")
    first = (await stages(api, (await ask(api))["correlation_id"]))[0]
    assert list(first) == ["seq", "stage", "status", "peer_id", "from_peer_id", "ts", "detail"]
    assert (first["peer_id"], first["from_peer_id"]) == (ben.peer_id, ann.peer_id)
    assert first["ts"] == "2025-06-15T15:06:40.000000+00:00"
    assert (first["detail"]["kind"], first["detail"]["to"]) == ("ask.opened", "ben")
    assert "text" not in first["detail"]


async def test_a_notify_without_a_receipt_ends_with_what_was_written(both):
    ben = await both.connect("ben", path="/src/ben")
    trace = await notify(both)
    await ben.next()
    got = await both.get(f"/traces/{trace}")
    assert (got["kind"], [one["stage"] for one in got["stages"]]) == ("notify", OPENING)
    assert got["stages"][-1]["detail"]["verified"] is False


async def test_a_queued_notify_is_pending_until_it_is_polled(both):
    await both.post("/peers", name="ben", path="/src/ben")
    trace = await notify(both)
    assert await names(both, trace) == ["created", "resolved_peer", "pending"]
    await both.get("/deliveries/pending", peer_id="ben")
    got = await names(both, trace)
    assert got == ["created", "resolved_peer", "pending", "routed", "leased"]  # nothing proves that it was read


async def test_a_reply_that_is_pushed_belongs_to_the_trace_of_its_ask(both):
    ann, ben = await both.connect("ann", path="/src/ann"), await both.connect("ben", path="/src/ben")
    cid = (await ask(both))["correlation_id"]
    await ben.next()
    await both.post("/ack", correlation_id=cid, message="yes")
    await ann.next()
    await until_async(lambda: sum(line.kind == "delivery.sent" for line in both.mesh.ledger.after(0)) == 2)
    got = await stages(both, cid)
    assert [one["stage"] for one in got[:5]] == OPENING
    assert {"acked", "closed", "answered"} <= {one["stage"] for one in got}
    assert got[-1]["stage"] == "websocket_sent"
    assert [one["peer_id"] for one in got if one["stage"] == "leased"] == [ben.peer_id, ann.peer_id]


async def test_a_message_that_nobody_fetched_fails_as_expired(both, clock):
    await both.post("/peers", name="ben", path="/src/ben")
    trace = await notify(both)
    clock.advance(both.mesh.config.daemon.delivery_queue_ttl_seconds + 1)
    both.mesh.bus.publish("delivery.stale")
    await told(both, "delivery.expired")
    got = (await stages(both, trace))[-1]
    assert (got["stage"], got["status"]) == ("expired", "fail")


async def test_a_message_whose_receipt_never_came_fails_as_unknown(both, clock):
    ben = await both.connect("ben", path="/src/ben", capabilities=RECEIPTS)
    trace = await notify(both)
    await ben.next()
    clock.advance(both.mesh.config.daemon.delivery_lease_seconds + 1)
    both.mesh.bus.publish("delivery.stale")
    await told(both, "delivery.unknown")
    got = (await stages(both, trace))[-1]
    assert (got["stage"], got["status"]) == ("unknown", "fail")


# -- the index ----------------------------------------------------------------


async def test_the_index_goes_on_after_a_restart(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    mesh.announce("delivery.sent", trace="t1")
    assert [line.kind for line in await traces.lines_of(mesh, "t1")] == ["delivery.sent"]
    mesh.announce("delivery.held", trace="t1")  # not indexed any more
    mesh.close()
    again = new_mesh(tmp_path / "home", clock)
    assert [line.kind for line in await traces.lines_of(again, "t1")] == ["delivery.sent", "delivery.held"]


async def test_an_index_whose_rows_are_gone_is_made_again(mesh):
    for n in range(2 * traces.PAGE + 1):
        mesh.announce("delivery.sent", trace="t1" if n % 1000 == 0 else "other")
    before = await traces.lines_of(mesh, "t1")
    with mesh.change() as change:
        change.db.execute("DELETE FROM trace_lines")
        change.db.execute("DELETE FROM trace_mark")
    assert await traces.lines_of(mesh, "t1") == before
    assert len(before) == 3
    assert mesh.db.conn.execute("SELECT count(*), max(seq) FROM trace_mark").fetchone()[:] == (1, mesh.ledger.last)


async def test_the_index_forgets_the_lines_that_a_power_cut_took(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock)
    mesh.announce("delivery.sent", trace="kept")
    mesh.announce("delivery.sent", trace="lost")
    await traces.lines_of(mesh, "lost")
    with mesh.change() as change:
        change.record("delivery.sent", trace="lost")
    path, cut = tmp_path / "home" / "traces" / "trace-000001.jsonl", mesh.ledger.after(0)[-2].offset
    mesh.close()
    with path.open("r+b") as file:
        file.truncate(cut)
    again = new_mesh(tmp_path / "home", clock)
    for n in range(3):
        again.announce("delivery.held", trace="new" * (n + 1))
    assert [line.kind for line in await traces.lines_of(again, "kept")] == ["delivery.sent"]
    assert await traces.lines_of(again, "lost") == []
    assert len(await traces.lines_of(again, "new")) == 1


async def test_retention_takes_the_old_segments_and_their_index(new_mesh, tmp_path, clock):
    mesh = new_mesh(tmp_path / "home", clock, REPOWIRE_LEDGER__SEGMENT_BYTES="65536")
    while len(list((tmp_path / "home" / "traces").iterdir())) < 3:
        mesh.announce("delivery.sent", trace="old", filler="x" * 1000)
    assert len(await traces.lines_of(mesh, "old")) > 100
    clock.advance(mesh.config.ledger.retention_days * 86_400 + 1)
    mesh.announce("delivery.sent", trace="new")
    running = asyncio.create_task(traces.run(mesh))
    try:
        await until_async(lambda: len(list((tmp_path / "home" / "traces").iterdir())) == 1)
        await until_async(lambda: mesh.db.conn.execute("SELECT min(segment) FROM trace_lines").fetchone()[0] == 3)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert {line.segment for line in await traces.lines_of(mesh, "old")} == {3}
    assert len(await traces.lines_of(mesh, "new")) == 1
    assert mesh.ledger.first > 100


# -- GET /events --------------------------------------------------------------


async def test_events_since_an_id_are_those_that_followed_it(api):
    announce(api.mesh, 10)
    newest = api.mesh.ledger.last
    assert [one["n"] for one in await api.get("/events", since=newest - 3)] == [7, 8, 9]
    assert await api.get("/events", since=newest) == []
    assert [one["n"] for one in await api.get("/events", since=newest - 3, limit=2)] == [7, 8]
    assert [one["n"] for one in await api.get("/events", limit=2)] == [8, 9]


@pytest.mark.parametrize("since", ["1", "999999999", "no-id", "٣", "-1", ""])
async def test_events_since_an_id_that_is_unknown_or_too_old_are_the_whole_window(api, since):
    announce(api.mesh, 700)
    got = await api.get("/events", since=since)
    assert [one["n"] for one in got] == list(range(200, 700))


@pytest.mark.parametrize("limit", ["0", "501", "x"])
async def test_a_wrong_limit_of_events_is_named(api, limit):
    assert (await api.get("/events", expect=422, limit=limit))["detail"]["field"] == "limit"


async def test_an_ask_its_answer_a_notify_and_a_peer_that_leaves_have_the_published_types(both):
    ann = await both.connect("ann", path="/src/ann")
    ben = await both.connect("ben", path="/src/ben", backend="codex", pane_id="%7")
    cid = (await ask(both))["correlation_id"]
    await both.post("/ack", correlation_id=cid, message="yes")
    await notify(both)
    await ben.close()
    await told(both, "peer.offline")
    found = {one["type"]: one for one in await both.get("/events")}

    def shown(type, *fields):
        return {field: found[type][field] for field in fields}

    pair = {"from_peer_id": ann.peer_id, "to_peer_id": ben.peer_id}
    assert shown("ask", "from", "to", "text", "from_peer_id", "to_peer_id", "correlation_id") == {
        **{"from": "ann", "to": "ben", "text": "ready?", "correlation_id": cid},
        **pair,
    }
    assert shown("notification", "from", "to", "text", "from_peer_id", "to_peer_id") == {
        **{"from": "ann", "to": "ben", "text": "hi"},
        **pair,
    }
    assert shown("ack", "from", "to", "from_peer_id", "to_peer_id", "correlation_id", "status") == {
        **{"from": "ben", "to": "ann", "from_peer_id": ben.peer_id, "to_peer_id": ann.peer_id},
        **{"correlation_id": cid, "status": "ack_with_msg"},
    }
    fields = ("peer_id", "display_name", "backend", "path", "pane_id", "old_status", "new_status", "reason")
    assert shown("peer_offline", *fields) == {
        **{"peer_id": ben.peer_id, "display_name": "ben", "backend": "codex", "path": "/src/ben", "pane_id": "%7"},
        **{"old_status": "online", "new_status": "offline", "reason": "transport_failure"},
    }
    assert all(found["ask"][field] for field in ("id", "timestamp", "kind"))


# -- the stream, across reconnects and slow readers ---------------------------


class Reading:
    """The events of one GET /events/stream."""

    def __init__(self, response):
        self.response = response

    async def line(self):
        raw = await asyncio.wait_for(self.response.content.readline(), DEADLINE_SECONDS)
        return raw.decode()

    async def next(self):
        """The next event, after its id line agreed with its body."""
        while not (line := await self.line()).startswith("id: "):
            assert line == "\n" or line.startswith(": "), line
        data = await self.line()
        assert data.startswith("data: ")
        event = json.loads(data[6:])
        assert event["id"] == line[4:].strip()
        assert await self.line() == "\n"
        return event

    async def numbers(self, count):
        return [(await self.next())["n"] for _ in range(count)]


@contextlib.asynccontextmanager
async def reading(api, query="", **headers):
    headers = {"Authorization": f"Bearer {api.token}", **headers}
    async with api.client.get(f"/events/stream{query}", headers=headers) as response:
        assert response.status == 200
        opened = Reading(response)
        assert await opened.line() == ": repowire\n"
        yield opened


async def test_an_event_of_the_stream_is_the_same_as_in_the_list(api):
    async with reading(api) as opened:
        api.mesh.announce("peer.changed", text="é\n\u2028🦀")
        assert await opened.next() == (await api.get("/events"))[-1]


@pytest.mark.parametrize("way", ["Last-Event-ID", "since"])
async def test_a_reconnect_in_the_middle_of_many_events_loses_and_repeats_nothing(api, way):
    announce(api.mesh, 1)
    before, total, got = api.mesh.ledger.last, 3_000, []
    announce(api.mesh, total // 2)
    at = before
    while len(got) < total:
        by_header = {"Last-Event-ID": str(at)} if way == "Last-Event-ID" else {}
        async with reading(api, "" if by_header else f"?since={at}", **by_header) as opened:
            if at == before:
                announce(api.mesh, total // 2, first=total // 2)
            for _ in range(min(700, total - len(got))):
                event = await opened.next()
                got.append(event["n"])
                at = int(event["id"])
    assert got == list(range(total))


async def test_a_stream_resumes_across_a_restart(new_mesh, new_api, tmp_path, clock):
    first = new_mesh(tmp_path / "home", clock)
    announce(first, 5)
    at = first.ledger.last - 2
    first.close()
    api = await new_api(new_mesh(tmp_path / "home", clock))
    announce(api.mesh, 1, first=5)
    async with reading(api, f"?since={at}") as opened:
        assert await opened.numbers(3) == [3, 4, 5]


async def test_replay_begins_so_many_events_earlier(api):
    announce(api.mesh, 20)
    async with reading(api, "?replay=4") as opened:
        announce(api.mesh, 1, first=20)
        assert await opened.numbers(5) == [16, 17, 18, 19, 20]
    got = await api.get("/events/stream", expect=422, replay=traces.REPLAY_MOST + 1)
    assert got["detail"]["field"] == "replay"


async def test_a_reader_slower_than_every_buffer_loses_nothing(api):
    total, size = 1_200, 8_000  # some 10 MB, more than the socket's buffers take
    async with reading(api) as opened:
        for n in range(total):
            api.mesh.announce("peer.changed", n=n, filler="x" * size)
        other = await api.get("/events", limit=1)  # the loop went on meanwhile
        assert other[0]["n"] == total - 1
        assert await opened.numbers(total) == list(range(total))


async def test_the_stream_tells_the_last_events_and_ends_when_the_daemon_stops(api):
    async with reading(api) as opened:
        announce(api.mesh, 2)
        api.mesh.bus.close()
        assert await opened.numbers(2) == [0, 1]
        assert await opened.line() == ""


async def test_a_reader_that_left_leaves_no_listener(api):
    async with reading(api) as opened:
        await until_async(lambda: api.mesh.bus.heard("*"))
        opened.response.close()

    def left():
        announce(api.mesh, 1)
        return not api.mesh.bus.heard("*")

    await until_async(left)


async def test_traces_that_share_a_number_are_told_apart(api):
    """The index goes by the digits of an id; an ask and a delivery may have the same ones."""
    for trace in ("ask-00000000000a", "notif-delivery-00000000000a", "no digits at all", "no digits at ALL"):
        api.mesh.announce("delivery.sent", delivery_id="d", trace=trace, verified=False)
        got = await api.get(f"/traces/{trace}")
        assert len(got["stages"]) == 1, trace
