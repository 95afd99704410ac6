"""The asyncio client against a daemon of the test's own: its routes, and its life as a peer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import until_async

from repowire import async_client, connection
from repowire.async_client import (
    AsyncRepowireClient,
    Connection,
    DaemonConnectionError,
    DaemonError,
    DaemonHTTPError,
    DaemonTimeoutError,
    Message,
    NotTaken,
    PeerDisconnectedError,
    RepowireError,
)
from repowire.errors import Refusal

SECONDS = 10.0


class Hub:
    """A daemon as the test wants it: `answers` by method and path, and sockets that the test speaks on."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"POST /ack": {"ok": True}}
        self.asked: list[tuple[str, Any]] = []
        self.hellos: list[dict[str, Any]] = []
        self.sockets: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.refuse: int | None = None  # close code instead of a welcome

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.asked.append((f"{request.method} {request.path_qs}", json.loads(raw) if raw else None))
        said = self.answers.get(f"{request.method} {request.path}", (404, {"detail": {"error": "x", "hint": "no"}}))
        said = said.pop(0) if isinstance(said, list) else said
        if isinstance(said, Awaitable):
            said = await said
        if said is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, value = said if isinstance(said, tuple) else (200, said)
        if isinstance(value, bytes):
            return web.Response(status=status, body=value)
        return web.json_response(value, status=status)

    async def get_ws(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        hello = await socket.receive_json()
        self.hellos.append(hello)
        if self.refuse is not None:
            await socket.send_json({"type": "error", "error": "said no"})
            await socket.close(code=self.refuse)
            return socket
        name = hello["display_name"]
        certificate = {"nonce": f"nonce-{len(self.hellos)}"}
        await socket.send_json(
            {"type": "connected", "session_id": "repow-1", "display_name": name, "birth_certificate": certificate}
        )
        self.sockets.put_nowait(socket)
        async for came in socket:
            self.heard.put_nowait(json.loads(came.data))
        return socket

    async def socket(self) -> web.WebSocketResponse:
        async with asyncio.timeout(SECONDS):
            return await self.sockets.get()

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()


def ask(number: int, text: str = "ready?") -> dict[str, Any]:
    cid = f"ask-{number}"
    hint = f'\n↳ ack("{cid}") or ack("{cid}", "reply")'
    who = {"from_peer": "ann", "to_peer": "build"}
    return {"type": "ask", "delivery_id": f"d{number}", "correlation_id": cid, "text": text + hint, **who}


def note(number: int, text: str = "fyi") -> dict[str, Any]:
    return {"type": "notify", "delivery_id": f"d{number}", "from_peer": "ann", "to_peer": "build", "text": text}


def receipt(number: int, kind: str = "ask", status: str = "injected", **more: str) -> dict[str, Any]:
    return {"type": "delivery_ack", "delivery_id": f"d{number}", "message_type": kind, "status": status, **more}


@pytest.fixture
async def hub(short_folder: Path) -> AsyncIterator[Hub]:
    made = Hub()
    app = web.Application()
    app.router.add_get("/ws", made.get_ws)
    app.router.add_route("*", "/{tail:.*}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(short_folder / "daemon.sock")).start()
    yield made
    await runner.cleanup()


@pytest.fixture
async def client(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncRepowireClient]:
    monkeypatch.delenv("REPOWIRE_DAEMON_URL", raising=False)
    monkeypatch.setattr(connection, "FIRST_DELAY_SECONDS", 0.01)
    async with AsyncRepowireClient(home=short_folder, timeout=5) as made:
        yield made


async def ignore(message: Message) -> None:
    """A handler that has nothing to say."""


# -- routes --------------------------------------------------------------------


async def test_answers_come_as_their_shapes(hub: Hub, client: AsyncRepowireClient) -> None:
    peer = {"peer_id": "p", "name": "ann", "display_name": "ann", "status": "online", "new_field": 1}
    pending = {"correlation_id": "ask-1", "from_peer": "a", "to_peer": "b", "text": "t", "created_at": "now"}
    hub.answers |= {
        "GET /health": {"status": "ok", "version": "1", "relay_mode": False, "channel": {}, "acp_broker": {}},
        "GET /peers": {"peers": [peer]},
        "GET /peers/a%20b": peer,
        "GET /peers/a b": peer,
        "POST /peers": {"ok": True, "peer_id": "p", "display_name": "ann", "pane_assigned": True},
        "DELETE /peers/ann": {"ok": True},
        "POST /peers/ann/offline": {"ok": True, "cancelled_queries": 2},
        "POST /session/update": {"ok": True},
        "POST /ask": {"correlation_id": "ask-1", "error": None, "state": "leased"},
        "POST /asks/ask-1/wait": {"correlation_id": "ask-1", "status": "resolved", "reply": "yes"},
        "GET /asks/pending": {"asks": [pending]},
        "POST /notify": {"ok": True},
        "GET /traces/ask-1": {"trace_id": "ask-1", "kind": "ask", "stages": []},
    }
    assert (await client.health()).status == "ok"
    assert [each.name for each in await client.list_peers(status="online")] == ["ann"]
    assert (await client.get_peer("a b", circle="c")).peer_id == "p"
    assert (await client.register_peer("ann", path="/x")).display_name == "ann"
    assert await client.unregister_peer("ann") is None  # type: ignore[func-returns-value]
    assert await client.mark_peer_offline("ann") == 2
    await client.session_update(peer_name="ann", status="busy")
    assert (await client.ask("ben", "ready?", if_offline="queue")).correlation_id == "ask-1"
    assert (await client.wait_ask("ask-1", timeout_seconds=1)).reply == "yes"
    assert [each.correlation_id for each in await client.pending_asks(peer_id="b")] == ["ask-1"]
    await client.notify("ben", "x", from_peer="ann")
    await client.ack("ask-1", message="yes")
    assert (await client.trace("ask-1")).trace_id == "ask-1"
    said = dict(hub.asked)
    assert said["POST /ask"] == {"to_peer": "ben", "text": "ready?", "bypass_circle": False, "if_offline": "queue"}
    assert said["POST /peers/ann/offline"] is None, "published clients send no body"
    assert said["POST /ack"] == {"correlation_id": "ask-1", "message": "yes"}


async def test_a_refusal_is_both_errors(hub: Hub, client: AsyncRepowireClient) -> None:
    hub.answers["GET /peers/bne"] = (404, {"detail": {"error": "peer_not_found", "hint": "who?", "near": ["ben"]}})
    with pytest.raises(DaemonHTTPError, match="who") as caught:
        await client.get_peer("bne")
    no = caught.value
    assert isinstance(no, Refusal)
    assert isinstance(no, RepowireError)
    assert (no.status, no.error, no.facts) == (404, "peer_not_found", {"near": ["ben"]})


async def test_a_daemon_that_hangs_up_stalls_or_talks_nonsense(hub: Hub, client: AsyncRepowireClient) -> None:
    hub.answers["GET /health"] = [None, None, asyncio.sleep(5, {}), b"plain", {"hello": 1}]
    with pytest.raises(DaemonConnectionError):  # aiohttp itself tries a GET twice
        await client.request("GET", "/health", seconds=2)
    with pytest.raises(DaemonTimeoutError, match=r"0\.1 s"):
        await client.request("GET", "/health", seconds=0.1)
    assert await client.request("GET", "/health") == b"plain"
    with pytest.raises(DaemonError, match="lacks"):
        await client.health()


async def test_nobody_there_says_how_to_start_one(client: AsyncRepowireClient) -> None:
    with pytest.raises(DaemonConnectionError, match="repowire daemon --detach"):
        await client.health()
    with pytest.raises(DaemonConnectionError, match="repowire daemon --detach"):
        await client.connect("build", handler=ignore).start()


async def test_the_stream_gives_events_until_the_daemon_hangs_up(hub: Hub, client: AsyncRepowireClient) -> None:
    body = ": hi\n\nid: 3\ndata: " + json.dumps({"id": "3", "type": "ask", "timestamp": "t", "from": "ann"}) + "\n\n"
    hub.answers["GET /events/stream"] = body.encode()
    seen: list[async_client.MeshEvent] = []

    async def follow() -> None:
        async for event in client.stream(since=2):
            seen.append(event)  # noqa: PERF401 - it ends by raising

    with pytest.raises(DaemonConnectionError):
        await follow()
    assert [(event.id, event.type, event.extras) for event in seen] == [("3", "ask", {"from": "ann"})]
    assert hub.asked[0][0] == "GET /events/stream?since=2"


async def test_the_homes_token_goes_to_no_other_machine(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short_folder / "token").write_text("secret\n")
    (short_folder / "token").chmod(0o600)
    monkeypatch.delenv("REPOWIRE_AUTH_TOKEN", raising=False)
    assert AsyncRepowireClient("http://example.net:1", home=short_folder).headers == {}
    assert AsyncRepowireClient("http://[::1]:1", home=short_folder).headers == {"Authorization": "Bearer secret"}
    monkeypatch.setenv("REPOWIRE_AUTH_TOKEN", "given")
    assert AsyncRepowireClient("http://example.net:1", home=short_folder).headers == {"Authorization": "Bearer given"}


# -- being a peer --------------------------------------------------------------


async def test_the_first_frame_says_who_we_are(hub: Hub, client: AsyncRepowireClient, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "circle": "c",
        "role": "service",
        "path": tmp_path,
        "agent_pid": 42,
        "capabilities": ("extra",),
    }
    async with client.connect("build", handler=ignore, **more) as peer:
        assert (peer.peer_id, peer.display_name) == ("repow-1", "build")
    hello = hub.hellos[0]
    assert len(hello.pop("instance")) == 32
    assert hello == {
        "type": "connect",
        "display_name": "build",
        "circle": "c",
        "role": "service",
        "backend": "claude-code",
        "path": str(tmp_path),
        "agent_pid": 42,
        "capabilities": ["dedupe", "delivery_receipts", "extra"],
    }


async def test_a_ping_is_answered_and_strange_frames_harm_nothing(hub: Hub, client: AsyncRepowireClient) -> None:
    async with client.connect("build", handler=ignore):
        socket = await hub.socket()
        for raw in ("no json", "[1]", '{"type": "new_thing"}', '{"type": "error", "error": "x"}', '{"type": "ping"}'):
            await socket.send_str(raw)
        assert await hub.hear() == {"type": "pong"}


async def test_an_ask_is_handled_receipted_and_answered(hub: Hub, client: AsyncRepowireClient) -> None:
    seen: list[Message] = []

    async def handle(message: Message) -> str:
        seen.append(message)
        return "yes"

    async with client.connect("build", handler=handle):
        await (await hub.socket()).send_json({**ask(1, "line\nready?"), "reply_to": "ask-0"})
        assert await hub.hear() == receipt(1)
        await until_async(lambda: hub.asked)
    assert hub.asked == [("POST /ack", {"correlation_id": "ask-1", "from_peer": "repow-1", "message": "yes"})]
    message = seen[0]
    assert (message.kind, message.from_peer, message.to_peer, message.text) == ("ask", "ann", "build", "line\nready?")
    assert (message.correlation_id, message.delivery_id, message.reply_to) == ("ask-1", "d1", "ask-0")


async def test_what_a_handler_returns_for_a_notify_goes_nowhere(hub: Hub, client: AsyncRepowireClient) -> None:
    async with client.connect("build", handler=lambda message: "thanks"):
        socket = await hub.socket()
        await socket.send_json(note(1))
        await socket.send_json({"type": "broadcast", "from_peer": "ann", "text": "all"})
        await socket.send_json(note(2))
        assert [await hub.hear(), await hub.hear()] == [receipt(1, "notify"), receipt(2, "notify")]
    assert hub.asked == []


async def test_messages_are_handled_in_order_one_at_a_time(hub: Hub, client: AsyncRepowireClient) -> None:
    seen: list[str] = []
    at_work = 0

    async def handle(message: Message) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0)
        seen.append(message.text)
        at_work -= 1

    async with client.connect("build", handler=handle):
        socket = await hub.socket()
        for number in range(50):
            await socket.send_json(note(number, str(number)))
        assert [(await hub.hear())["delivery_id"] for _ in range(50)] == [f"d{number}" for number in range(50)]
    assert seen == [str(number) for number in range(50)]


async def test_concurrency_is_how_many_at_a_time(hub: Hub, client: AsyncRepowireClient) -> None:
    both = asyncio.Barrier(2)

    async def handle(message: Message) -> None:
        await both.wait()  # never passed by one alone

    async with client.connect("build", handler=handle, concurrency=2):
        socket = await hub.socket()
        await socket.send_json(note(1))
        await socket.send_json(note(2))
        assert {(await hub.hear())["delivery_id"], (await hub.hear())["delivery_id"]} == {"d1", "d2"}


async def test_a_repeat_is_receipted_again_and_not_handled(hub: Hub, client: AsyncRepowireClient) -> None:
    seen: list[str] = []
    async with client.connect("build", handler=lambda message: seen.append(message.text)):
        socket = await hub.socket()
        for _ in range(3):
            await socket.send_json(note(1, "once"))
            assert await hub.hear() == receipt(1, "notify")
    assert seen == ["once"]


async def test_a_repeat_of_what_is_at_work_waits_for_its_one_receipt(hub: Hub, client: AsyncRepowireClient) -> None:
    go = asyncio.Event()
    seen: list[str] = []

    async def handle(message: Message) -> None:
        seen.append(message.text)
        await go.wait()

    async with client.connect("build", handler=handle):
        socket = await hub.socket()
        await socket.send_json(note(1))
        await socket.send_json(note(1))
        await socket.send_json({"type": "ping"})
        assert await hub.hear() == {"type": "pong"}, "no receipt before it is taken"
        go.set()
        assert await hub.hear() == receipt(1, "notify")
        await socket.send_json({"type": "ping"})
        assert await hub.hear() == {"type": "pong"}
    assert seen == ["fyi"]


async def test_the_memory_is_bounded(hub: Hub, client: AsyncRepowireClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REMEMBERED_DELIVERIES", 3)
    async with client.connect("build", handler=ignore) as peer:
        socket = await hub.socket()
        for number in range(10):
            await socket.send_json(note(number))
            await hub.hear()
        assert (list(peer._order), peer._known, peer._taken) == (
            ["d7", "d8", "d9"],
            {"d7", "d8", "d9"},
            {"d7", "d8", "d9"},
        )


async def test_a_slow_handler_has_taken_it_long_before_it_is_done(
    hub: Hub, client: AsyncRepowireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TAKEN_SECONDS", 0.02)
    go = asyncio.Event()

    async def handle(message: Message) -> str:
        await go.wait()
        return "done"

    async with client.connect("build", handler=handle):
        await (await hub.socket()).send_json(ask(1))
        assert await hub.hear() == receipt(1)
        assert hub.asked == []
        go.set()
        await until_async(lambda: hub.asked)


async def test_a_handler_may_say_itself_that_it_has_taken_it(hub: Hub, client: AsyncRepowireClient) -> None:
    go = asyncio.Event()

    async def handle(message: Message) -> None:
        await message.taken()
        await go.wait()

    async with client.connect("build", handler=handle):
        socket = await hub.socket()
        await socket.send_json(note(1))
        assert await hub.hear() == receipt(1, "notify")
        go.set()
        await socket.send_json(note(2))
        assert await hub.hear() == receipt(2, "notify"), "one receipt each"


async def test_a_handler_that_fails_has_its_message_and_the_next_one_comes(
    hub: Hub, client: AsyncRepowireClient
) -> None:
    def handle(message: Message) -> str:
        if message.correlation_id == "ask-1":
            raise ZeroDivisionError
        return "fine"

    async with client.connect("build", handler=handle):
        socket = await hub.socket()
        await socket.send_json(ask(1))
        await socket.send_json(ask(2))
        assert [await hub.hear(), await hub.hear()] == [receipt(1), receipt(2)]
        await until_async(lambda: hub.asked)
    assert [body["correlation_id"] for _, body in hub.asked] == ["ask-2"], "the failed one stays open"


async def test_what_was_not_taken_goes_back_and_may_come_again(hub: Hub, client: AsyncRepowireClient) -> None:
    tries: list[str] = []

    def handle(message: Message) -> None:
        tries.append(message.text)
        if len(tries) == 1:
            raise NotTaken("the screen is locked")

    async with client.connect("build", handler=handle):
        socket = await hub.socket()
        await socket.send_json(note(1))
        assert await hub.hear() == receipt(1, "notify", "failed", detail="the screen is locked")
        await socket.send_json(note(1))
        assert await hub.hear() == receipt(1, "notify")
    assert tries == ["fyi", "fyi"]


async def test_who_leaves_gives_back_what_no_handler_has_begun(hub: Hub, client: AsyncRepowireClient) -> None:
    begun: list[str | None] = []

    async def handle(message: Message) -> None:
        begun.append(message.delivery_id)
        await asyncio.Event().wait()

    async with client.connect("build", handler=handle) as peer:
        socket = await hub.socket()
        for number in (1, 2, 3):
            await socket.send_json(note(number))
        await until_async(lambda: peer._inbox.qsize() == 2)
    left = "the peer left before it began"
    given_back = [receipt(number, "notify", "held", detail=left) for number in (2, 3)]
    assert [await hub.hear(), await hub.hear()] == given_back
    assert begun == ["d1"]
    assert hub.heard.empty(), "nobody knows what became of the one that was begun"
    await until_async(lambda: socket.closed)
    assert socket.close_code == 1000


async def test_who_leaves_waits_for_a_handler_to_clear_up(hub: Hub, client: AsyncRepowireClient) -> None:
    begun, cleared = asyncio.Event(), []

    async def handle(message: Message) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleared.append(message.delivery_id)

    async with client.connect("build", handler=handle):
        await (await hub.socket()).send_json(note(1))
        await begun.wait()
    assert cleared == ["d1"]


# -- cuts and ends -------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 4000])
async def test_a_cut_is_mended_as_the_same_peer(hub: Hub, client: AsyncRepowireClient, code: int) -> None:
    async with client.connect("build", handler=ignore) as peer:
        first = await hub.socket()
        if code == 1006:
            assert first._req is not None
            assert first._req.transport is not None
            first._req.transport.abort()
        else:
            await first.close(code=code)
        second = await hub.socket()
        await second.send_json(note(1))
        assert await hub.hear() == receipt(1, "notify")
        assert peer.connected.is_set()
    before, after = hub.hellos
    assert after["instance"] == before["instance"]
    assert (after["peer_id"], after["birth_certificate"]) == ("repow-1", {"nonce": "nonce-1"})
    assert "peer_id" not in before


async def test_what_was_taken_before_a_cut_is_only_receipted_after_it(hub: Hub, client: AsyncRepowireClient) -> None:
    seen: list[str] = []
    go = asyncio.Event()

    async def handle(message: Message) -> None:
        seen.append(message.text)
        await go.wait()

    async with client.connect("build", handler=handle) as peer:
        first = await hub.socket()
        await first.send_json(note(1))
        await until_async(lambda: seen)
        await first.close()
        await until_async(lambda: not peer.connected.is_set() or len(hub.hellos) == 2)
        go.set()
        second = await hub.socket()
        await until_async(lambda: "d1" in peer._taken)
        await second.send_json(note(1))
        assert await hub.hear() == receipt(1, "notify")
    assert seen == ["fyi"]


async def test_a_reply_outlives_the_daemon(hub: Hub, client: AsyncRepowireClient) -> None:
    hub.answers["POST /ack"] = [None, None, {"ok": True}]
    async with client.connect("build", handler=lambda message: "yes"):
        await (await hub.socket()).send_json(ask(1))
        await until_async(lambda: len(hub.asked) == 3)
    assert {body["message"] for _, body in hub.asked} == {"yes"}


async def test_a_reply_that_is_refused_is_not_repeated(hub: Hub, client: AsyncRepowireClient) -> None:
    hub.answers["POST /ack"] = (410, {"detail": {"error": "ask_closed", "hint": "too late"}})
    async with client.connect("build", handler=lambda message: "yes"):
        socket = await hub.socket()
        await socket.send_json(ask(1))
        await socket.send_json(note(2))
        assert [await hub.hear(), await hub.hear()] == [receipt(1), receipt(2, "notify")]
    assert len(hub.asked) == 1


@pytest.mark.parametrize("code", sorted(connection.ENDS))
async def test_an_end_that_the_daemon_means_is_one(hub: Hub, client: AsyncRepowireClient, code: int) -> None:
    async with client.connect("build", handler=ignore) as peer:
        await (await hub.socket()).close(code=code)
        with pytest.raises(PeerDisconnectedError, match=f"build: {connection.ENDS[code]}") as caught:
            async with asyncio.timeout(SECONDS):
                await peer.wait_closed()
    assert (caught.value.code, caught.value.peer_name) == (code, "build")
    assert len(hub.hellos) == 1


async def test_a_handshake_that_is_refused_says_the_daemons_words(hub: Hub, client: AsyncRepowireClient) -> None:
    hub.refuse = 4002
    with pytest.raises(PeerDisconnectedError, match="said no") as caught:
        await client.connect("build", handler=ignore).start()
    assert caught.value.code == 4002


async def test_run_lasts_until_it_is_cancelled(hub: Hub, client: AsyncRepowireClient) -> None:
    peer: Connection = client.connect("build", handler=ignore)
    running = asyncio.create_task(peer.run())
    await hub.socket()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not peer.connected.is_set()


async def test_a_broken_worker_is_no_silence(
    hub: Hub, client: AsyncRepowireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of this client must end the connection loudly, not leave a peer that takes nothing."""
    monkeypatch.setattr(Connection, "_remember", lambda self, delivery_id: 1 / 0)

    async def follow() -> None:
        async with client.connect("build", handler=ignore) as peer:
            await (await hub.socket()).send_json(note(1))
            async with asyncio.timeout(SECONDS):
                await peer.wait_closed()

    with pytest.raises(ZeroDivisionError):
        await follow()
