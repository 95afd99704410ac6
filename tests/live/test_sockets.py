"""Sockets that misbehave, against a real daemon: it stays small, others are unharmed, and nothing is lost."""

import asyncio
import base64
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live, until_async

from repowire.async_client import AsyncRepowireClient, Message

pytestmark = pytest.mark.live

PROMPT_SECONDS = 1.0  # what a healthy request may take here beside a misbehaving peer
FIRST_FRAME_SECONDS = 5.0


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def session_of(live: Live) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {live.token}"}
    return aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers, connector=connector)


async def post(session: aiohttp.ClientSession, path: str, /, **body: Any) -> Any:
    async with session.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


# -- a WebSocket by hand -----------------------------------------------------------


class Raw:
    """The bytes of a WebSocket; small buffers, so that a reader that stops is felt at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def frame(self, opcode: int, data: bytes, *, length: int | None = None) -> None:
        """One whole masked frame (the mask is 0); `length` is a lie about its length."""
        size = len(data) if length is None else length
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += bytes([0x80 | 126]) + struct.pack("!H", size)
        else:
            head += bytes([0x80 | 127]) + struct.pack("!Q", size)
        self.writer.write(head + bytes(4) + data)

    def text(self, **fields: Any) -> None:
        self.frame(1, json.dumps(fields).encode())

    async def next(self) -> tuple[int, bytes]:
        """The next frame's opcode and bytes."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    async def closed(self) -> int | None:
        """Read to the end; the close code, None when it was cut without one."""
        code = None
        try:
            while True:
                opcode, data = await self.next()
                if opcode == 8:
                    (code,) = struct.unpack("!H", data[:2])
        except (asyncio.IncompleteReadError, ConnectionError):
            self.writer.close()
            return code


async def upgraded(live: Live, *, token: bool = True, receive_bytes: int | None = None) -> Raw:
    """On /ws, before the first frame."""
    link = socket.socket()
    if receive_bytes is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    link.setblocking(False)
    await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", live.port))
    reader, writer = await asyncio.open_connection(sock=link, limit=2**16 if receive_bytes is None else receive_bytes)
    key = base64.b64encode(os.urandom(16)).decode()
    bearer = f"Authorization: Bearer {live.token}\r\n" if token else ""
    head = f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n{bearer}Connection: Upgrade\r\nUpgrade: websocket\r\n"
    writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return Raw(reader, writer)


async def peer(live: Live, name: str, **fields: Any) -> Raw:
    """After the handshake."""
    raw = await upgraded(live, receive_bytes=fields.pop("receive_bytes", None))
    raw.text(type="connect", display_name=name, path=f"/srv/{name}", **fields)
    opcode, data = await asyncio.wait_for(raw.next(), DEADLINE_SECONDS)
    assert opcode == 1, data
    assert json.loads(data)["type"] == "connected"
    return raw


# -- a reader that stops -----------------------------------------------------------

MANY = 1000
AT_ONCE = 50  # requests in flight, whose bodies are memory too
TEXT = "x" * 20_000


async def storm(live: Live, session: aiohttp.ClientSession) -> int:
    """As many at once for a peer that is away; the daemon's size after it, which holds all that the requests cost."""
    await post(session, "/peers", name="away", path="/srv/away")
    await asyncio.gather(*(post(session, "/notify", to_peer="away", text=f"{n} {TEXT}") for n in range(MANY)))
    return rss_bytes(live.pid)


async def test_a_post_to_a_peer_that_gives_no_receipts_answers_at_once(live: Live) -> None:
    """It reads, and gives no receipt: what is beyond the window is queued, and the answer says so without waiting."""
    async with session_of(live) as session:
        slow = await peer(live, "slow", capabilities=["dedupe"], instance="one")
        for number in range(40):
            began = time.monotonic()
            answer = await post(session, "/notify", to_peer="slow", text=str(number))
            assert time.monotonic() - began < PROMPT_SECONDS, f"the message {number} ({answer['state']})"
        slow.writer.close()


async def test_a_reader_that_stops_costs_little_harms_nobody_and_loses_nothing(new_live: Callable[..., Live]) -> None:
    """A thousand messages of 20 kB for one that takes none of them, and then all."""
    live = new_live().start(REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER="2000")
    came: list[str] = []
    gone_on: list[str] = []
    awake = asyncio.Event()

    async def take(message: Message) -> str | None:
        await awake.wait()
        came.append(message.text)
        return None

    def take_also(message: Message) -> str | None:
        gone_on.append(message.text)
        return None

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncRepowireClient(home=live.home))
        await stack.enter_async_context(client.connect("stuck", handler=take, path="/srv/stuck"))
        await stack.enter_async_context(client.connect("well", handler=take_also, path="/srv/well"))
        session = await stack.enter_async_context(session_of(live))
        before = await storm(live, session)
        sending = [
            asyncio.create_task(post(session, "/notify", to_peer="stuck", text=f"{number} {TEXT}"))
            for number in range(MANY)
        ]
        for number in range(20):
            began = time.monotonic()
            await post(session, "/notify", to_peer="well", text=str(number))
            assert time.monotonic() - began < 3 * PROMPT_SECONDS
        answers = await asyncio.wait_for(asyncio.gather(*sending), 30)
        assert {answer["status"] for answer in answers} == {"sent", "queued"}
        await until_async(lambda: gone_on == [*map(str, range(20))])
        grown = rss_bytes(live.pid) - before
        assert grown < 64 << 20, f"{grown >> 20} MiB"  # a thousand requests that wait are most of it
        awake.set()
        await until_async(lambda: len(came) >= MANY, 30)
        assert sorted(int(text.split()[0]) for text in came) == list(range(MANY))


async def test_what_is_not_read_off_a_socket_waits_in_the_mailbox(new_live: Callable[..., Live]) -> None:
    """Its kernel buffers are full: the daemon holds a few frames of it, and twice as many messages cost no more."""
    live = new_live().start(REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER="5000")
    async with session_of(live) as session:
        stuck = await peer(live, "stuck", receive_bytes=4096, capabilities=["dedupe"], instance="one")
        sizes = []
        for half in range(2):
            for first in range(half * MANY, (half + 1) * MANY, AT_ONCE):
                numbers = range(first, first + AT_ONCE)
                answers = await asyncio.gather(
                    *(post(session, "/notify", to_peer="stuck", text=f"{number} {TEXT}") for number in numbers)
                )
                assert {answer["state"] for answer in answers} <= {"queued", "leased"}
            sizes.append(rss_bytes(live.pid))
        assert sizes[1] - sizes[0] < 16 << 20, f"{(sizes[1] - sizes[0]) >> 20} MiB"
        began = time.monotonic()
        async with session.get("/health") as health:
            assert health.status == 200
        assert time.monotonic() - began < PROMPT_SECONDS
        came = set()
        for _ in range(2 * MANY):
            _, data = await asyncio.wait_for(stuck.next(), DEADLINE_SECONDS)
            frame = json.loads(data)
            came.add(int(frame["text"].split()[0]))
            stuck.text(type="delivery_ack", delivery_id=frame["delivery_id"], message_type="notify", status="injected")
        assert came == set(range(2 * MANY))
        stuck.writer.close()


async def test_peers_that_ask_each_other_much_do_not_wait_for_each_other(live: Live) -> None:
    """Each has more in its mailbox than it is sent at once, and each answers one after the other."""
    answered: list[str] = []

    def take(message: Message) -> str | None:
        if message.kind == "ask":
            return f"re {message.text}"
        answered.append(message.text)
        return None

    names = ("ann", "ben")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncRepowireClient(home=live.home))
        for name in names:
            await stack.enter_async_context(client.connect(name, handler=take, path=f"/srv/{name}"))
        await asyncio.gather(
            *(client.ask(to, f"{number}", from_peer=of) for number in range(50) for to, of in (names, names[::-1]))
        )
        await until_async(lambda: len(answered) == 100, 8)


# -- sockets that say nothing, or rubbish ------------------------------------------


async def test_no_first_frame_in_time_is_an_end(live: Live) -> None:
    """Counted from the upgrade: a byte now and then, a ping, or half a frame wins no time."""
    silent, pinging, dripping = await upgraded(live), await upgraded(live), await upgraded(live, token=False)
    began = time.monotonic()

    async def end_of(raw: Raw, keep: Callable[[], None] | None = None) -> tuple[int | None, float]:
        closing = asyncio.create_task(raw.closed())
        while not closing.done():
            if keep is not None:
                keep()
            await asyncio.wait({closing}, timeout=0.5)
        return closing.result(), time.monotonic() - began

    dripping.writer.write(b"\x81\xfe\x01")  # a frame of 256 bytes and more begins
    ends = await asyncio.wait_for(
        asyncio.gather(
            end_of(silent),
            end_of(pinging, lambda: pinging.frame(9, b"")),
            end_of(dripping, lambda: dripping.writer.write(b"\x00")),
        ),
        20,
    )
    for code, seconds in ends:
        assert code == 4001
        assert FIRST_FRAME_SECONDS - 0.5 < seconds < FIRST_FRAME_SECONDS + 2


RUBBISH: dict[str, Callable[[Raw], None]] = {
    "text that is no JSON": lambda raw: raw.frame(1, b"\x7b\x7b"),
    "JSON that is no object": lambda raw: raw.frame(1, b"[1]"),
    "deeper than the parser": lambda raw: raw.frame(1, b"[" * 100_000),
    "invalid UTF-8": lambda raw: raw.frame(1, b'{"type": "status", "status": "\xff\xfe"}'),
    "a lone surrogate": lambda raw: raw.frame(1, b'{"type": "update_display_name", "display_name": "\\ud800"}'),
    "binary": lambda raw: raw.frame(2, b'{"type": "status", "status": "busy"}'),
    "a reserved opcode": lambda raw: raw.frame(3, b"{}"),
    "more than a frame may hold": lambda raw: raw.frame(1, b'{"a": "' + b"x" * (1 << 20) + b'"}'),
    "a length of 2**63 - 1": lambda raw: raw.frame(1, b"{", length=2**63 - 1),
    "a length of 2**64 - 1": lambda raw: raw.frame(1, b"{", length=2**64 - 1),
    "a number without an end": lambda raw: raw.frame(1, b'{"type": "status", "n": ' + b"9" * 10_000 + b"}"),
    "types that are none": lambda raw: raw.text(type=["status"]),
    "an object as a type": lambda raw: raw.text(type={}),
    "a status that is a list": lambda raw: raw.text(type="status", status=["busy"], turn_state={"a": 1}),
    "a receipt of nothing": lambda raw: raw.text(type="delivery_ack"),
    "a receipt of a list": lambda raw: raw.text(type="delivery_ack", delivery_id=[1], status={}),
    "a response to nothing": lambda raw: raw.text(type="response", correlation_id="ask-0", text="x"),
    "HTTP": lambda raw: raw.writer.write(b"GET /peers HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("when", ["first", "later"])
async def test_rubbish_ends_or_is_answered_and_harms_nobody(live: Live, when: str) -> None:
    """Every kind on a socket of its own; a bystander's socket and HTTP are as before, and no fault is logged."""
    bystander = await peer(live, "bystander")
    for number, (kind, send) in enumerate(RUBBISH.items()):
        raw = await upgraded(live) if when == "first" else await peer(live, f"odd-{number}")
        send(raw)
        raw.frame(8, struct.pack("!H", 1000))
        try:
            await asyncio.wait_for(raw.closed(), 7)
        except TimeoutError:
            pytest.fail(f"{kind}: the socket hangs")
    async with session_of(live) as session:
        await post(session, "/notify", to_peer="bystander", text="still there?")
    _, data = await asyncio.wait_for(bystander.next(), DEADLINE_SECONDS)
    assert json.loads(data)["text"] == "still there?"
    bystander.writer.close()
    assert "Traceback" not in live.stderr(), live.stderr()


async def test_a_flood_of_frames_that_nobody_handles_leaves_time_for_others(live: Live) -> None:
    """A hundred thousand wrong frames, whose answers are not read."""
    flood = await peer(live, "flood", receive_bytes=4096)
    before, slowest = rss_bytes(live.pid), 0.0
    junk = b"".join(_masked(text) for text in (b'{"type": "nobody"}', b'{"type": "delivery_ack"}', b'{"a": 1}'))
    pouring = asyncio.create_task(_pour(flood, junk * 100, 300))
    async with session_of(live) as session:
        for _ in range(100):
            began = time.monotonic()
            async with session.get("/peers") as answer:
                assert answer.status == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < PROMPT_SECONDS, f"{slowest:.2f} s"
        assert rss_bytes(live.pid) - before < 32 << 20
    pouring.cancel()
    flood.writer.transport.abort()


def _masked(data: bytes) -> bytes:
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


async def _pour(raw: Raw, data: bytes, times: int) -> None:
    for _ in range(times):
        raw.writer.write(data)
        await raw.writer.drain()


# -- many of them -------------------------------------------------------------------


async def test_more_sockets_than_allowed_are_refused_in_clear_words(new_live: Callable[..., Live]) -> None:
    """Those that wait for their first frame count; one that goes makes room."""
    live = new_live().start(REPOWIRE_DAEMON__MAX_SOCKETS="20")
    async with session_of(live) as session:
        open_ones = [await peer(live, f"p{number}") for number in range(10)]
        open_ones += [await upgraded(live) for _ in range(10)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/ws")
        assert refused.value.status == 503
        async with session.get("/ws", headers={"Connection": "Upgrade", "Upgrade": "websocket"}) as answer:
            detail = (await answer.json())["detail"]
            assert (detail["error"], detail["limit"]) == ("too_many_sockets", 20)
        async with session.get("/peers") as answer:
            assert len((await answer.json())["peers"]) == 10
        open_ones[0].writer.close()
        await until_async_connect(live)
        for raw in open_ones[1:]:
            raw.writer.close()


async def until_async_connect(live: Live) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            (await peer(live, "late")).writer.close()
            return
        except AssertionError:
            assert time.monotonic() < deadline


def most_sockets() -> int:
    """Both ends of a loopback connection: each process needs a descriptor a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(10_000, hard - 500) if hard != resource.RLIM_INFINITY else 10_000


async def test_thousands_of_idle_sockets_leave_it_quick_and_end_in_order(new_live: Callable[..., Live]) -> None:
    count = most_sockets()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        live = new_live().start()
        before = rss_bytes(live.pid)
        async with AsyncExitStack() as stack:
            raws: list[Raw] = []
            for start in range(0, count, 100):
                size = min(100, count - start)
                raws += await asyncio.gather(
                    *(peer(live, f"idle-{start + one}", role="service") for one in range(size))
                )
            grown = rss_bytes(live.pid) - before
            session = await stack.enter_async_context(session_of(live))
            slowest = 0.0
            for number in range(0, count, max(1, count // 50)):
                began = time.monotonic()
                await post(session, "/notify", to_peer=f"idle-{number}", text="wake up")
                slowest = max(slowest, time.monotonic() - began)
                _, data = await asyncio.wait_for(raws[number].next(), DEADLINE_SECONDS)
                assert json.loads(data)["text"] == "wake up"
            assert slowest < PROMPT_SECONDS, f"{slowest:.2f} s"
            assert grown < count * 64 << 10, f"{grown / count / 1024:.0f} KiB a socket"
            stopping = asyncio.create_task(asyncio.to_thread(live.term, 30.0))
            codes = await asyncio.wait_for(asyncio.gather(*(raw.closed() for raw in raws)), 60)
            assert await stopping == 0
            assert set(codes) == {1001}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_client_in_the_middle_of_talking_is_told_why_its_socket_ends(live: Live) -> None:
    """What it has sent is read to its goodbye: were it left unread, the kernel would answer with a reset (1006)."""
    async with session_of(live) as session:
        for number in range(10):
            ws = await session.ws_connect("/ws")
            await ws.send_json({"type": "connect", "display_name": f"b{number}", "path": f"/src/b{number}"})
            peer_id = (await ws.receive_json())["session_id"]

            async def talk(ws: aiohttp.ClientWebSocketResponse = ws) -> None:
                with suppress(ConnectionError):
                    for _ in range(2000):
                        await ws.send_json({"type": "pong", "pane_alive": True, "padding": "x" * 200})

            talking = asyncio.create_task(talk())
            await post(session, f"/peers/{peer_id}/offline", terminal=True)
            await talking
            message = await ws.receive(timeout=10)
            assert (message.type, ws.close_code) == (aiohttp.WSMsgType.CLOSE, 4004)
