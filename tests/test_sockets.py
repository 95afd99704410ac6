"""sockets.py, handshakes.py: the handshake and every frame, over real WebSockets and in both ways of committing."""

import asyncio
import json
import os
import subprocess
import sys
import time

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, until_async

from repowire import asks, deliveries, handshakes, leases, mailboxes, peers, presence, receipts, sockets
from repowire.protocol import MAX_FRAME_BYTES

RECEIPTS = ["delivery_receipts"]


async def open_socket(api, *, token=True):
    headers = {"Authorization": f"Bearer {api.token}"} if token else {}
    return await api.client.ws_connect("/ws", headers=headers)


async def say_first(api, frame, *, token=True):
    """Send one first frame; the frames that came back, and the close code."""
    socket = await open_socket(api, token=token)
    if isinstance(frame, dict):
        await socket.send_json(frame)
    elif isinstance(frame, bytes):
        await socket.send_bytes(frame)
    elif frame is not None:
        await socket.send_str(frame)
    return await drain(socket)


async def drain(socket):
    """All frames until the end, and how it ended."""
    got = []
    while (message := await socket.receive(timeout=DEADLINE_SECONDS)).type is aiohttp.WSMsgType.TEXT:
        got.append(json.loads(message.data))
    return got, socket.close_code


def ending(peer):
    """The end of a peer's socket, read from now on, as a real client does."""
    return asyncio.create_task(drain(peer.socket))


class Raw:
    """A WebSocket client that reads only when it is told to, unlike aiohttp's."""

    @classmethod
    async def connect(cls, api, name):
        self = cls()
        address = ("127.0.0.1", api.client.port)
        self.reader, self.writer = await asyncio.open_connection(*address, limit=1024)
        lines = [f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{api.client.port}", f"Authorization: Bearer {api.token}"]
        lines += ["Connection: Upgrade\r\nUpgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"]
        self.writer.write("\r\n".join(lines).encode())
        await self.reader.readuntil(b"\r\n\r\n")
        self.send(1, json.dumps({"type": "connect", "display_name": name, "path": path_of(name)}).encode())
        self.peer_id = (await self.frame())["session_id"]
        return self

    def send(self, opcode, payload):
        """One short frame, under a mask of zeros."""
        assert len(payload) < 126
        self.writer.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)

    async def frame(self):
        """The next text frame; None at the end."""
        try:
            opcode, size = await self.reader.readexactly(2)
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            payload = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return json.loads(payload) if opcode == 0x81 else None

    async def rest(self):
        """What comes until the end."""
        got = []
        while (frame := await self.frame()) is not None:
            got.append(frame)
        self.writer.close()
        return got


def path_of(name):
    return f"/src/{name}"


async def connect(api, name, **fields):
    return await api.connect(name, **{"path": path_of(name), **fields})


async def notify(api, to, text="hi", **fields):
    return await api.post("/notify", from_peer="cli", to_peer=to, text=text, **fields)


def child_process():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def frames_seen(peer):
    """Come to the end of what the daemon has read: a wrong frame is answered, in order."""
    await peer.send("set_circle", circle="not valid")
    while (frame := await peer.next())["type"] != "error":
        pass
    return frame


def delivery(api, delivery_id):
    receipts.note(api.mesh)
    return deliveries.load(api.mesh.db.conn, delivery_id)


async def until_offline(api, peer_id):
    await until_async(lambda: not presence.reachable(api.mesh.db.conn, peer_id) and not api.mesh.doors.of(peer_id))


def kinds(api):
    return [line.kind for line in api.mesh.ledger.after(0)]


@pytest.fixture
def impatient(monkeypatch):
    """Requests do not wait long for a peer that does not read."""
    monkeypatch.setattr(mailboxes, "WRITE_SECONDS", 0.1)


# -- the handshake ------------------------------------------------------------


async def test_connected_has_exactly_the_published_keys(both):
    ann = await connect(both, "ann")
    assert ann.connected == {"type": "connected", "session_id": ann.peer_id, "display_name": "ann"}
    assert ann.peer_id.startswith("repow-default-")


async def test_only_a_client_that_remembers_gets_a_certificate(both):
    ann = await connect(both, "ann", capabilities=["dedupe"], instance="i-1")
    assert set(ann.connected) == {"type", "session_id", "display_name", "birth_certificate"}
    assert ann.connected["birth_certificate"]["peer_id"] == ann.peer_id


@pytest.mark.parametrize(
    ("frame", "code", "error"),
    [
        ({"type": "status", "status": "busy"}, 4000, "First message must be connect"),
        ({"type": ["connect"]}, 4000, "First message must be connect"),
        ({}, 4000, "First message must be connect"),
        ("no json", 4000, "First message must be connect"),
        ("[]", 4000, "First message must be connect"),
        (b"\x00\x01", 4000, "First message must be connect"),
        ({"type": "connect"}, 4002, "Invalid display_name"),
        ({"type": "connect", "display_name": "a b"}, 4002, "Invalid display_name"),
        ({"type": "connect", "display_name": "x" * 65}, 4002, "Invalid display_name"),
        ({"type": "connect", "display_name": 7}, 4002, "Invalid display_name"),
        ({"type": "connect", "display_name": "a", "circle": "no spaces"}, 4002, "Invalid circle"),
        ({"type": "connect", "display_name": "a", "circle_source": "guess"}, 4002, "Invalid circle_source"),
        ({"type": "connect", "display_name": "a", "backend": "vi"}, 4002, "Invalid backend"),
        ({"type": "connect", "display_name": "a", "backend": "mcp-http"}, 4002, "Invalid backend"),
        ({"type": "connect", "display_name": "a", "backend": ["codex"]}, 4002, "Invalid backend"),
        ({"type": "connect", "display_name": "a", "role": "king"}, 4002, "Invalid role"),
        ({"type": "connect", "display_name": "a", "path": "/"}, 4003, "Invalid path"),
        ({"type": "connect", "display_name": "a", "path": "//"}, 4003, "Invalid path"),
        ({"type": "connect", "display_name": "a", "circle": "x y", "role": "king"}, 4002, "Invalid circle"),
        ({"type": "connect", "display_name": "a", "role": "king", "path": "/"}, 4002, "Invalid role"),
    ],
)
async def test_a_wrong_first_frame_is_answered_and_closed_with_its_code(api, frame, code, error):
    assert await say_first(api, frame) == ([{"type": "error", "error": error}], code)
    assert peers.listed(api.mesh.db.conn) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"capabilities": 5},
        {"capabilities": {"delivery_receipts": True}},
        {"agent_pid": True},
        {"agent_pid": -1},
        {"pane_id": 7},
        {"path": 7},
        {"path": "/a\0b"},
        {"metadata": []},
        {"instance": 5},
        {"model_details": {"x": "y" * 40_000}},
        {"metadata": {"hook_session_id": "\ud800"}},
        {"birth_certificate": {"nonce": "\ud800"}, "peer_id": "\ud800"},
    ],
)
async def test_a_field_of_the_wrong_form_is_refused_as_invalid(api, fields):
    got, code = await say_first(api, {"type": "connect", "display_name": "a", **fields})
    assert (code, got[0]["type"], peers.listed(api.mesh.db.conn)) == (4002, "error", [])


async def test_a_certificate_without_sense_makes_a_new_peer(api):
    ann = await connect(api, "ann")
    for certificate in ({"nonce": "\ud800"}, {"nonce": 5}, {}, "text", 7, []):
        other = await connect(api, "ann", peer_id=ann.peer_id, birth_certificate=certificate)
        assert other.peer_id != ann.peer_id


async def test_a_first_frame_that_does_not_come_ends_the_socket(api, monkeypatch):
    monkeypatch.setattr(handshakes, "FIRST_FRAME_SECONDS", 0.05)
    frames, code = await say_first(api, None)
    assert code == 4001
    assert frames[0]["type"] == "error"


async def test_pings_do_not_stand_in_for_the_first_frame(api, monkeypatch):
    monkeypatch.setattr(handshakes, "FIRST_FRAME_SECONDS", 0.3)
    socket = await open_socket(api)

    async def ping():
        while True:
            await socket.ping()
            await asyncio.sleep(0.01)

    pinging = asyncio.create_task(ping())
    _, code = await drain(socket)
    pinging.cancel()
    await asyncio.gather(pinging, return_exceptions=True)
    assert code == 4001


@pytest.mark.parametrize("token", [None, "wrong", "tökén", 7, ["x"], ""])
async def test_a_first_frame_without_the_token_is_4001(api, token):
    frame = {"type": "connect", "display_name": "ann"} | ({} if token is None else {"auth_token": token})
    assert await say_first(api, frame, token=False) == ([{"type": "error", "error": "Authentication failed"}], 4001)


async def test_the_token_in_the_first_frame_lets_in(api):
    socket = await open_socket(api, token=False)
    await socket.send_json({"type": "connect", "display_name": "ann", "auth_token": api.token})
    assert (await socket.receive_json(timeout=DEADLINE_SECONDS))["type"] == "connected"


async def test_the_token_is_checked_before_the_fields(api):
    _, code = await say_first(api, {"type": "connect", "display_name": "a b"}, token=False)
    assert code == 4001


async def test_a_first_frame_over_a_mebibyte_is_1009(api):
    _, code = await say_first(api, json.dumps({"type": "connect", "x": "y" * MAX_FRAME_BYTES}))
    assert code == 1009


async def test_more_sockets_than_allowed_are_refused_with_words(new_mesh, new_api, tmp_path, clock):
    api = await new_api(new_mesh(tmp_path / "home", clock, REPOWIRE_DAEMON__MAX_SOCKETS="1"))
    ann = await connect(api, "ann")
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    got = await api.request("GET", "/ws", headers=upgrade | {"Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="})
    assert (got.status, got.json["detail"]["error"]) == (503, "too_many_sockets")
    await ann.close()
    await until_offline(api, ann.peer_id)
    assert (await connect(api, "ben")).connected["display_name"] == "ben"


async def test_a_plain_get_of_the_socket_route_is_refused_in_the_one_shape(api):
    got = await api.request("GET", "/ws")
    assert (got.status, set(got.json["detail"]) >= {"error", "hint"}) == (400, True)


# -- frames of a client -------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "status", "turn"),
    [
        ({"status": "busy"}, "busy", None),
        ({"status": "idle"}, "online", None),
        ({"status": "nonsense"}, "online", None),
        ({}, "online", None),
        ({"status": "busy", "turn_state": "working"}, "busy", "working"),
        ({"status": "busy", "turn_state": "dancing"}, "busy", None),
        ({"status": "busy", "turn_state": ["working"]}, "busy", None),
        ({"status": "offline"}, "offline", None),
    ],
)
async def test_a_status_frame_is_noted(both, frame, status, turn):
    ann = await connect(both, "ann")
    await ann.send("status", **frame)
    await frames_seen(ann)
    got = await both.get("/peers/ann")
    assert (got["status"], got["turn_state"]) == (status, turn)


async def test_a_frame_that_nobody_knows_changes_nothing(both):
    ann = await connect(both, "ann")
    at = both.mesh.ledger.last
    for kind in ("notify", "surprise", "", "connect", None, 5, ["x"], {"a": 1}):
        await ann.socket.send_json({"type": kind, "text": "x"})
    await ann.socket.send_json({})
    await frames_seen(ann)
    assert both.mesh.ledger.last == at
    assert (await both.get("/peers/ann"))["ws_connected"] is True


@pytest.mark.parametrize("garbage", [b"\x00\xff", "no json", "[]", "7", "null", '"text"', "[" * 100_000])
async def test_a_frame_that_is_no_object_drops_the_socket_without_a_goodbye(api, garbage):
    ann = await connect(api, "ann")
    send = ann.socket.send_bytes if isinstance(garbage, bytes) else ann.socket.send_str
    await send(garbage)
    assert await drain(ann.socket) == ([], 1006)
    await until_offline(api, ann.peer_id)


async def test_a_frame_over_a_mebibyte_is_1009_and_harms_nobody_else(both):
    ann, ben = await connect(both, "ann"), await connect(both, "ben")
    await ann.socket.send_str("x" * (MAX_FRAME_BYTES + 1))
    assert (await drain(ann.socket))[1] == 1009
    await notify(both, "ben")
    assert (await ben.next())["text"] == "hi"


async def test_a_frame_of_just_a_mebibyte_is_taken(api):
    ann = await connect(api, "ann")
    frame = json.dumps({"type": "surprise", "x": ""})
    await ann.socket.send_str(frame[:-2] + "y" * (MAX_FRAME_BYTES - len(frame)) + '"}')
    assert (await frames_seen(ann))["code"] == "invalid_field"


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "status", "status": 7},
        {"type": "set_circle", "circle": "no spaces"},
        {"type": "update_display_name", "display_name": "a b"},
        {"type": "delivery_ack", "delivery_id": 7, "status": "injected"},
        {"type": "delivery_ack", "delivery_id": "x", "status": "maybe"},
        {"type": "delivery_ack", "delivery_id": "x"},
        {"type": "delivery_ack", "delivery_id": "x", "status": ["injected"]},
        {"type": "response", "correlation_id": "ask-1", "text": 5},
        {"type": "response", "correlation_id": "ask-nobody", "text": "x"},
    ],
)
async def test_a_wrong_field_of_a_frame_is_answered_and_the_socket_stays(both, frame):
    ann = await connect(both, "ann")
    await ann.socket.send_json(frame)
    got = await ann.next()
    assert set(got) == {"type", "error", "code"}
    assert got["type"] == "error"
    await notify(both, "ann")
    assert (await ann.next())["text"] == "hi"


async def test_a_pong_says_when_a_pane_is_missing(both):
    ann = await connect(both, "ann")
    at = both.mesh.ledger.last
    for fields in ({}, {"pane_alive": True}, {"pane_alive": None}, {"pane_alive": False, "circle": "x"}):
        await ann.send("pong", **fields)
    await frames_seen(ann)
    said = [(line.kind, line.facts.get("fact")) for line in both.mesh.ledger.after(at)]
    assert said == [("presence.changed", "missing")]


async def test_set_circle_moves_the_peer(both):
    ann = await connect(both, "ann")
    await ann.send("set_circle", circle="red")
    await frames_seen(ann)
    got = await both.get("/peers/ann")
    assert (got["circle"], got["peer_id"]) == ("red", ann.peer_id)


async def test_moving_into_a_circle_where_the_name_is_taken_takes_another_name(both):
    red = await connect(both, "ann", circle="red", path="/a")
    blue = await connect(both, "ann", circle="blue", path="/b")
    await blue.send("set_circle", circle="red")
    await frames_seen(blue)
    names = {one["peer_id"]: (one["display_name"], one["circle"]) for one in (await both.get("/peers"))["peers"]}
    assert names == {red.peer_id: ("ann", "red"), blue.peer_id: ("ann-2", "red")}


async def test_update_display_name_renames_unless_a_live_peer_has_the_name(both):
    ann, ben = await connect(both, "ann"), await connect(both, "ben")
    await ann.send("update_display_name", display_name="ben")
    await ann.send("update_display_name", display_name="anna")
    await frames_seen(ann)
    shown = {one["peer_id"]: one["display_name"] for one in (await both.get("/peers"))["peers"]}
    assert shown == {ann.peer_id: "anna", ben.peer_id: "ben"}


async def test_a_response_frame_answers_an_ask_of_the_one_who_sends_it(both):
    ann, ben, eve = await connect(both, "ann"), await connect(both, "ben"), await connect(both, "eve")
    cid = (await both.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await ben.next()
    await eve.send("response", correlation_id=cid, text="from eve")
    await frames_seen(eve)
    assert asks.load(both.mesh.db.conn, cid).closed_at is None
    await ben.send("response", correlation_id=cid, text="from ben")
    assert (await ann.next())["text"] == f"[ack #{cid} from @ben] from ben"


async def test_an_error_frame_ends_the_ask_and_the_asker_hears_why(both):
    ann, ben, eve = await connect(both, "ann"), await connect(both, "ben"), await connect(both, "eve")
    cid = (await both.post("/ask", from_peer="ann", to_peer="ben", text="?"))["correlation_id"]
    await eve.send("error", correlation_id=cid, error="not mine")
    await eve.send("error", error="nothing")
    await frames_seen(eve)
    assert asks.load(both.mesh.db.conn, cid).closed_at is None
    await ben.next()
    await ben.send("error", correlation_id=cid, error="no pane")
    assert (await ann.next())["text"] == f"[ask #{cid} to @ben failed] no pane"
    assert asks.load(both.mesh.db.conn, cid).close_reason == "failed"


# -- receipts -----------------------------------------------------------------


async def test_a_receipt_is_the_proof_of_handed(both):
    ben = await connect(both, "ben", capabilities=RECEIPTS)
    sent = await notify(both, "ben")
    assert (sent["state"], sent["hook_delivery"]) == ("leased", None)
    await ben.receipt(await ben.next())
    await frames_seen(ben)
    assert delivery(both, sent["delivery_id"]).state == "handed"


@pytest.mark.parametrize("capabilities", [[], RECEIPTS])
@pytest.mark.parametrize("status", ["held", "rejected", "failed"])
async def test_what_was_not_injected_is_held_with_the_reason_and_tried_again_on_ready(both, status, capabilities):
    ben = await connect(both, "ben", capabilities=capabilities)
    for text in ("first", "second"):
        await notify(both, "ben", text)
    first, second = await ben.next(), await ben.next()
    await ben.receipt(first, status, detail="a draft is in the way")
    await ben.receipt(second)
    await frames_seen(ben)
    held = delivery(both, first["delivery_id"])
    assert (held.state, held.reason) == ("held", "a draft is in the way")
    await ben.send("ready")
    assert await ben.next() == first
    await ben.receipt(first)
    await frames_seen(ben)
    assert [delivery(both, one["delivery_id"]).state for one in (first, second)] == ["handed", "handed"]
    failed = (await both.get("/peers/ben"))["last_injection_failure_at"]
    assert failed is not None


async def test_a_held_ask_comes_again_and_is_still_open(both):
    ben = await connect(both, "ben", capabilities=RECEIPTS)
    asked = await both.post("/ask", from_peer="cli", to_peer="ben", text="?")
    frame = await ben.next()
    await ben.receipt(frame, "rejected")
    await frames_seen(ben)
    assert delivery(both, asked["delivery_id"]).reason == "rejected"
    assert asks.load(both.mesh.db.conn, asked["correlation_id"]).closed_at is None
    await ben.send("ready")
    assert await ben.next() == frame


async def test_what_is_held_is_tried_again_by_itself_later(both, clock):
    ben = await connect(both, "ben")
    await notify(both, "ben")
    first = await ben.next()
    await ben.receipt(first, "held")
    await frames_seen(ben)
    clock.advance(3)
    both.mesh.doors.of(ben.peer_id).nudge.ring()
    assert await ben.next() == first


async def test_new_mail_queues_behind_what_is_held(both, impatient):
    ben = await connect(both, "ben")
    await notify(both, "ben", "first")
    first = await ben.next()
    await ben.receipt(first, "held")
    await frames_seen(ben)
    later = await asyncio.gather(*(notify(both, "ben", f"later {n}") for n in range(3)))
    assert {one["delivery_state"] for one in later} == {"queued"}
    await ben.send("ready")
    assert (await ben.next())["text"] == "first"
    assert {(await ben.next())["text"] for _ in range(3)} == {f"later {n}" for n in range(3)}


async def test_a_thousand_refusals_of_one_message_do_no_harm(both):
    ben = await connect(both, "ben")
    sent = await notify(both, "ben")
    frame = await ben.next()
    with both.mesh.change() as change:
        change.db.execute("UPDATE deliveries SET attempts = 2000")
    await ben.receipt(frame, "held")
    await frames_seen(ben)
    assert delivery(both, sent["delivery_id"]).state == "held"


async def test_a_receipt_after_the_lease_still_counts(both, clock):
    ben = await connect(both, "ben", capabilities=RECEIPTS)
    sent = await notify(both, "ben")
    frame = await ben.next()
    clock.advance(both.mesh.config.daemon.delivery_lease_seconds + 1)
    leases.tick(both.mesh)
    await both.mesh.committed()
    assert delivery(both, sent["delivery_id"]).state == "unknown"
    await ben.receipt(frame)
    await frames_seen(ben)
    assert delivery(both, sent["delivery_id"]).state == "handed"


async def test_no_later_receipt_makes_a_state_weaker(both):
    ben = await connect(both, "ben", capabilities=RECEIPTS)
    sent = await notify(both, "ben")
    frame = await ben.next()
    for status in ("injected", "injected", "failed", "held", "rejected"):
        await ben.receipt(frame, status)
    await frames_seen(ben)
    assert delivery(both, sent["delivery_id"]).state == "handed"
    handed = [line for line in both.mesh.ledger.after(0) if line.kind == "delivery.handed"]
    assert len(handed) == 1


async def test_nobody_else_gives_the_receipt(both):
    ben, eve = await connect(both, "ben", capabilities=RECEIPTS), await connect(both, "eve", capabilities=RECEIPTS)
    sent = await notify(both, "ben")
    frame = await ben.next()
    for status in ("injected", "failed"):
        await eve.receipt(frame, status)
        await eve.send("delivery_ack", delivery_id="notif-delivery-000000000000", status=status)
    await frames_seen(eve)
    assert delivery(both, sent["delivery_id"]).state == "leased"


async def test_a_receipt_without_a_status_is_no_receipt(both):
    ben = await connect(both, "ben", capabilities=RECEIPTS)
    sent = await notify(both, "ben")
    frame = await ben.next()
    await ben.send("delivery_ack", delivery_id=frame["delivery_id"])
    assert (await ben.next())["code"] == "invalid_field"
    assert delivery(both, sent["delivery_id"]).state == "leased"


async def test_asks_that_are_answered_before_their_receipts_do_not_stop_the_mail(both):
    ben = await connect(both, "ben", capabilities=["dedupe", *RECEIPTS], instance="i-1")
    for n in range(2 * deliveries.WINDOW):
        asked = await both.post("/ask", from_peer="cli", to_peer="ben", text=f"{n}")
        assert asked["delivery_state"] == "delivered", n
        frame = await ben.next()
        await both.post("/ack", correlation_id=asked["correlation_id"], message="yes")
        await ben.receipt(frame)
        await frames_seen(ben)


# -- one peer, one socket -----------------------------------------------------


async def test_a_second_socket_of_a_peer_closes_the_first_with_4005(both):
    first = await connect(both, "ann", capabilities=["dedupe"])
    certificate, end = first.connected["birth_certificate"], ending(first)
    second = await connect(both, "ann", peer_id=first.peer_id, birth_certificate=certificate)
    assert second.peer_id == first.peer_id
    assert await end == ([], 4005)
    await notify(both, "ann")
    assert (await second.next())["text"] == "hi"
    shown = await both.get("/peers/ann")
    assert (shown["ws_connected"], shown["status"]) == (True, "online")


@pytest.mark.parametrize("proof", [{}, {"birth_certificate": {"nonce": "x" * 43}}, {"pane_id": "%1"}])
async def test_a_live_peer_is_not_taken_over_without_proof(both, proof):
    ann = await connect(both, "ann")
    thief = await connect(both, "ann", peer_id=ann.peer_id, **proof)
    assert (thief.peer_id != ann.peer_id, thief.connected["display_name"]) == (True, "ann-2")
    assert "peer.claim_refused" in kinds(both)
    await notify(both, ann.peer_id)
    assert (await ann.next())["text"] == "hi"


async def test_a_certificate_of_somebody_else_is_no_proof(both):
    ann, eve = await connect(both, "ann"), await connect(both, "eve", capabilities=["dedupe"])
    certificate = eve.connected["birth_certificate"]
    thief = await connect(both, "ann", peer_id=ann.peer_id, birth_certificate=certificate)
    assert thief.peer_id not in (ann.peer_id, eve.peer_id)


async def test_the_same_pane_with_the_same_live_process_takes_over(both):
    pane = {"pane_id": "%3", "agent_pid": os.getpid()}
    first = await connect(both, "ann", **pane)
    other = await connect(both, "ann", peer_id=first.peer_id, pane_id="%4", agent_pid=os.getpid())
    assert other.peer_id != first.peer_id
    end = ending(first)
    second = await connect(both, "ann", peer_id=first.peer_id, **pane)
    assert second.peer_id == first.peer_id
    assert (await end)[1] == 4005


async def test_the_session_of_a_live_peer_is_no_proof_over_http_either(both):
    session = {"hook_session_id": "s-1"}
    ann = await connect(both, "ann", metadata=session)
    got = await both.post("/peers", name="ann", path="/src/ann", metadata=session)
    thief = await connect(both, "ann", peer_id=ann.peer_id, birth_certificate=got["birth_certificate"])
    assert thief.peer_id != ann.peer_id
    await notify(both, ann.peer_id)
    assert (await ann.next())["text"] == "hi"


async def test_a_peer_that_comes_back_gets_what_waited_in_order(both):
    ben = await connect(both, "ben")
    await ben.close()
    await until_offline(both, ben.peer_id)
    for n in range(50):
        assert (await notify(both, "ben", f"{n}"))["delivery_state"] == "queued"
    back = await connect(both, "ben")
    assert back.peer_id == ben.peer_id
    assert [(await back.next())["text"] for _ in range(50)] == [f"{n}" for n in range(50)]


async def test_many_newcomers_with_proof_leave_one_that_gets_the_mail(both):
    first = await connect(both, "ann", capabilities=["dedupe"])
    proof = {"peer_id": first.peer_id, "birth_certificate": first.connected["birth_certificate"]}

    async def come():
        socket = await open_socket(both)
        await socket.send_json({"type": "connect", "display_name": "ann", "path": "/src/ann", **proof})
        return await drain(socket)

    ends = [asyncio.create_task(come()) for _ in range(8)]
    await until_async(lambda: sum(end.done() for end in ends) == 7)
    assert {end.result()[1] for end in ends if end.done()} <= {4005, 1006}
    await until_async(lambda: both.mesh.doors.of(first.peer_id) is not None)
    sent = await notify(both, "ann")
    assert sent["delivery_state"] == "delivered"
    assert (await both.get("/peers/ann"))["ws_connected"] is True
    for end in ends:
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)


# -- ends ---------------------------------------------------------------------


async def test_a_closed_socket_is_known_at_once(both):
    ann = await connect(both, "ann")
    await ann.close()
    at = time.monotonic()
    await until_async(lambda: "peer.offline" in kinds(both))
    assert time.monotonic() - at < 1.0
    shown = await both.get("/peers/ann")
    assert (shown["status"], shown["ws_connected"], shown["inbound_status"]) == ("offline", False, "offline")


async def test_terminal_offline_closes_the_socket_and_refuses_the_id(both):
    ann = await connect(both, "ann")
    end = ending(ann)
    await both.post("/peers/ann/offline", terminal=True, reason="session_end")
    assert (await end)[1] == 4004
    frames, code = await say_first(
        both, {"type": "connect", "display_name": "ann", "path": "/src/ann", "peer_id": ann.peer_id}
    )
    assert (code, frames[0]["code"], set(frames[0])) == (4004, "peer_retired", {"type", "code", "error"})


async def test_a_retired_id_comes_back_with_a_live_process(both):
    ann = await connect(both, "ann")
    end = ending(ann)
    await both.post("/peers/ann/offline", terminal=True)
    await end
    await until_offline(both, ann.peer_id)
    back = await connect(both, "ann", peer_id=ann.peer_id, agent_pid=os.getpid())
    assert back.peer_id == ann.peer_id
    assert (await both.get("/peers/ann"))["status"] == "online"


async def test_the_tombstone_ends_after_three_days(both, clock):
    ann = await connect(both, "ann")
    end = ending(ann)
    await both.post("/peers/ann/offline", terminal=True)
    await end
    clock.advance(peers.TOMBSTONE_SECONDS + 1)
    later = await connect(both, "ann", peer_id=ann.peer_id)
    assert later.peer_id != ann.peer_id


async def test_unregistering_closes_the_socket(both):
    ann = await connect(both, "ann")
    end = ending(ann)
    await both.delete("/peers/ann")
    assert (await end)[1] == 4004
    assert (await both.get("/peers"))["peers"] == []


async def test_a_rotated_token_cuts_the_sockets_that_came_with_the_old_one(new_mesh, new_api, tmp_path, clock):
    from repowire import config

    home = tmp_path / "home"
    config.prepare_home(home)
    token = config.write_token(home)
    mesh = new_mesh(home, clock)
    mesh.auth.token = token
    mesh.config = config.load(home, {})
    api = await new_api(mesh)
    api.token = token
    ann = await connect(api, "ann")
    end = ending(ann)
    await api.post("/auth/rotate")
    assert (await end)[1] == 4001
    assert (await api.request("GET", "/peers")).status == 401
    api.token = config.read_token(home)
    assert (await api.request("GET", "/peers")).status == 200


async def test_the_death_of_a_process_is_known_within_a_second(both):
    with child_process() as child:
        ann = await connect(both, "ann", agent_pid=child.pid)
        end = ending(ann)
        child.kill()
        at = time.monotonic()
        child.wait()
        assert (await end)[1] == 4004
        assert time.monotonic() - at < 1.0
    events = {line.kind: line.facts for line in both.mesh.ledger.after(0)}
    assert (events["peer.offline"]["reason"], events["peer.retired"]["reason"]) == ("agent_exited", "agent_exited")
    assert (await both.get("/peers/ann"))["status"] == "offline"


async def test_a_process_that_ends_while_no_socket_is_open_is_known_too(both):
    with child_process() as child:
        await both.post("/peers", name="ann", path="/src/ann", agent_pid=child.pid)
        await both.post("/peers", name="ben", path="/src/ben", agent_pid=child.pid)
        child.kill()
        at = time.monotonic()
        await until_async(lambda: kinds(both).count("peer.retired") == 2)
        assert time.monotonic() - at < 1.0


async def test_what_a_socket_got_and_did_not_receipt_is_unknown_and_never_sent_again(both):
    ben = await connect(both, "ben")
    sent = await notify(both, "ben", "first")
    await ben.next()
    await ben.close()
    await until_offline(both, ben.peer_id)
    assert delivery(both, sent["delivery_id"]).state == "unknown"
    back = await connect(both, "ben")
    await notify(both, "ben", "second")
    assert (await back.next())["text"] == "second"


async def test_the_same_instance_is_asked_again_and_another_one_is_not(both):
    remembers = {"capabilities": ["dedupe", *RECEIPTS]}
    ben = await connect(both, "ben", instance="i-1", **remembers)
    await notify(both, "ben", "first")
    first = await ben.next()
    await ben.close()
    await until_offline(both, ben.peer_id)
    same = await connect(both, "ben", instance="i-1", **remembers)
    assert await same.next() == first
    await same.close()
    await until_offline(both, ben.peer_id)
    await connect(both, "ben", instance="i-2", **remembers)
    other = both.mesh.doors.of(ben.peer_id)
    await until_async(lambda: other.clear)
    assert delivery(both, first["delivery_id"]).state == "leased"


# -- slow and large -----------------------------------------------------------


async def test_a_large_text_to_a_peer_that_reads_is_delivered(both):
    ben = await connect(both, "ben")
    sent = await notify(both, "ben", "é" * 64_000)
    assert (await ben.next())["text"] == "é" * 64_000
    assert (sent["delivery_state"], sent["state"]) == ("delivered", "leased")


async def flood(api, to, count=90):
    """More than the buffers on the way hold; comes back when the daemon has noticed."""
    sending = [asyncio.create_task(notify(api, to, f"{n} " + "x" * 60_000)) for n in range(count)]
    await until_async(lambda: api.mesh.doors.of(sending_to(api, to)).stalled)
    return sending


def sending_to(api, name):
    return peers.resolve(api.mesh.db.conn, name).peer_id


async def test_a_peer_that_says_goodbye_before_it_reads_gets_each_message_once(both, impatient):
    """What stands in the transport's buffer when the close frame comes is flushed and may be read: it is unknown."""
    ben = await Raw.connect(both, "ben")
    sending = await flood(both, "ben")
    door = both.mesh.doors.of(ben.peer_id)
    ben.send(8, (1000).to_bytes(2))
    await until_async(lambda: both.mesh.doors.of(ben.peer_id) is not door)
    read = {frame["delivery_id"] for frame in await ben.rest()}
    await asyncio.gather(*sending)
    back = await Raw.connect(both, "ben")
    await until_async(lambda: both.mesh.doors.of(ben.peer_id) is not None)
    await notify(both, "ben", "the last")
    again = []
    while (frame := await back.frame())["text"] != "the last":
        again.append(frame["delivery_id"])
    assert read
    assert read & set(again) == set()
    states = [row[0] for row in both.mesh.db.conn.execute("SELECT DISTINCT state FROM deliveries")]
    assert set(states) <= {"leased", "unknown"}


async def test_a_peer_that_does_not_read_holds_up_nobody(both, impatient):
    ben, ann = await Raw.connect(both, "ben"), await connect(both, "ann")
    sending = await flood(both, "ben")
    await notify(both, "ann")
    assert (await ann.next())["text"] == "hi"
    assert "queued" in {one["delivery_state"] for one in await asyncio.wait_for(asyncio.gather(*sending), 5)}
    got = [(await ben.frame())["text"].split()[0] for _ in range(90)]
    assert got == [f"{n}" for n in range(90)]


async def test_a_peer_that_never_reads_is_cut_off_and_its_mail_waits(both, impatient, monkeypatch):
    monkeypatch.setattr(sockets, "DRAIN_SECONDS", 0.2)
    ben = await Raw.connect(both, "ben")
    sending = await flood(both, "ben")
    await until_offline(both, ben.peer_id)
    await asyncio.gather(*sending)
    states = dict(both.mesh.db.conn.execute("SELECT state, count(*) FROM deliveries GROUP BY state").fetchall())
    assert set(states) == {"queued", "unknown"}
    assert sum(states.values()) == 90
