"""The client's transport against a server that says exactly what a test wants, and its routes against a daemon."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from repowire import transport as module
from repowire.client import DaemonAway, RepowireClient, parse_events, parse_url, quote
from repowire.config import ConfigError
from repowire.errors import Refusal

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def reply(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"".join(header + b"\r\n" for header in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n" + body


class Scripted:
    """A server in a thread: each request takes the next answer; None hangs up, a list is sent piece by piece."""

    def __init__(self, listener: socket.socket, answers: list[Any]) -> None:
        self.listener, self.answers = listener, answers
        self.requests: list[bytes] = []
        self.connections = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while self.answers:
                conn, _ = self.listener.accept()
                self.connections += 1
                with conn, suppress(ConnectionError):
                    self._talk(conn)

    def _talk(self, conn: socket.socket) -> None:
        held = b""
        while self.answers:
            while b"\r\n\r\n" not in held:
                piece = conn.recv(65536)
                if not piece:
                    return
                held += piece
            head, _, rest = held.partition(b"\r\n\r\n")
            lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            while len(rest) < sum(lengths):
                rest += conn.recv(65536)
            size = sum(lengths)
            self.requests.append(head + b"\r\n\r\n" + rest[:size])
            held = rest[size:]
            answer = self.answers.pop(0)
            if answer is None:
                return
            for piece in answer if isinstance(answer, list) else [answer]:
                conn.sendall(piece)
            if b"onnection: close" in (answer if isinstance(answer, bytes) else b"".join(answer)):
                return


Serve = Callable[..., Scripted]


@pytest.fixture
def serve(short_folder: Path) -> Iterator[Serve]:
    """`serve(answer, …)` on the socket of `short_folder`."""
    opened: list[socket.socket] = []

    def start(*answers: Any) -> Scripted:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(short_folder / "daemon.sock"))
        listener.listen()
        opened.append(listener)
        return Scripted(listener, list(answers))

    yield start
    for listener in opened:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def made(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RepowireClient]:
    monkeypatch.delenv("REPOWIRE_DAEMON_URL", raising=False)
    with RepowireClient(home=short_folder, timeout=5) as client:
        yield client


# -- bodies --------------------------------------------------------------------


def test_a_body_of_a_given_length(serve: Serve, made: RepowireClient) -> None:
    serve(reply(b'{"status": "ok"}'))
    assert made.health() == {"status": "ok"}


def test_a_chunked_body_with_extension_and_trailer_leaves_the_connection_good(
    serve: Serve, made: RepowireClient
) -> None:
    chunked = (
        OK + b'Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n{"a":\r\n4\r\n "b"\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n'
    )
    server = serve(chunked, reply(b"{}"))
    assert made.health() == {"a": "b"}
    assert made.health() == {}
    assert server.connections == 1


def test_a_body_that_ends_with_the_connection(serve: Serve, made: RepowireClient) -> None:
    server = serve(OK + b'Connection: close\r\n\r\n{"a": 1}', reply(b"{}"))
    assert made.health() == {"a": 1}
    assert made.health() == {}
    assert server.connections == 2


def test_a_body_that_comes_byte_by_byte(serve: Serve, made: RepowireClient) -> None:
    serve([bytes([byte]) for byte in reply(b'{"slow": true}')])
    assert made.health() == {"slow": True}


def test_an_empty_204_is_none(serve: Serve, made: RepowireClient) -> None:
    serve(b"HTTP/1.1 204 No Content\r\n\r\n", reply(b"{}"))
    assert made.request("GET", "/x") is None
    assert made.health() == {}


def test_an_interim_reply_is_skipped(serve: Serve, made: RepowireClient) -> None:
    serve(b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b'{"a": 1}'))
    assert made.health() == {"a": 1}


# -- the connection ------------------------------------------------------------


def test_the_connection_is_kept(serve: Serve, made: RepowireClient) -> None:
    server = serve(reply(b"{}"), reply(b"{}"), reply(b"{}"))
    for _ in range(3):
        made.health()
    assert server.connections == 1


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew(serve: Serve, made: RepowireClient) -> None:
    server = serve(reply(b"{}") + b"", None, reply(b"{}"))
    made.health()
    # the second request is read and hung up on: not known whether it was taken, so it is not sent again
    with pytest.raises(DaemonAway) as caught:
        made.ack("ask-1", message="yes")
    assert caught.value.asked
    assert made.health() == {}
    assert [request.split(b" ")[1] for request in server.requests] == [b"/health", b"/ack", b"/health"]


def test_an_idle_connection_that_was_closed_costs_no_request(serve: Serve, made: RepowireClient) -> None:
    server = serve(reply(b"{}", b"Keep-Alive: timeout=0"), reply(b'{"again": true}'))
    made.health()
    kept = made._sock
    assert kept is not None
    kept.shutdown(socket.SHUT_RD)  # as if the server had closed its end: the next read is the end
    assert made.health() == {"again": True}
    assert server.connections == 2


def test_nobody_there_says_how_to_start_one(made: RepowireClient) -> None:
    with pytest.raises(DaemonAway, match="repowire daemon --detach") as caught:
        made.health()
    assert not caught.value.asked


def test_a_dead_socket_file_is_the_same(made: RepowireClient, short_folder: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(short_folder / "daemon.sock"))
    left.close()
    with pytest.raises(DaemonAway, match="repowire daemon --detach"):
        made.health()


def test_silence_is_a_timeout_and_the_next_call_has_a_fresh_connection(serve: Serve, made: RepowireClient) -> None:
    server = serve([], reply(b"{}"))
    with pytest.raises(TimeoutError, match="silent"):
        made.request("GET", "/health", timeout=0.05)
    assert made.health() == {}
    assert server.connections == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 99999999999\r\n\r\n",
        reply(b"not json"),
        reply(b"[1, 2]"),
        b"x" * 200_000,
    ],
)
def test_what_is_no_daemon_is_said_so(serve: Serve, made: RepowireClient, garbage: bytes) -> None:
    serve(garbage)
    with pytest.raises(DaemonAway, match="no repowire daemon"):
        made.health()


@pytest.mark.parametrize("cut", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{", b""])
def test_a_reply_cut_short_is_no_answer(serve: Serve, made: RepowireClient, cut: bytes) -> None:
    serve(cut or None)
    with pytest.raises(DaemonAway, match="hung up"):
        made.health()


def test_a_refusal_while_the_body_is_still_on_its_way_is_read(serve: Serve, short_folder: Path) -> None:
    """A server that answers 413 and hangs up before it has read 8 MB: the client must not die of the broken pipe."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_folder / "daemon.sock"))
    listener.listen()

    def answer_early() -> None:
        conn, _ = listener.accept()
        with conn:
            conn.recv(1000)
            body = json.dumps({"detail": {"error": "too_large", "hint": "at most 1 MiB"}}).encode()
            conn.sendall(reply(body, b"Connection: close", status=b"413 Too Large"))

    thread = threading.Thread(target=answer_early)
    thread.start()
    with RepowireClient(home=short_folder, timeout=5) as client, pytest.raises(Refusal, match="1 MiB"):
        client.ask("ben", "x" * 8_000_000)
    thread.join()
    listener.close()


# -- refusals ------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        Refusal(409, "ambiguous_peer", "two peers are called ben", candidates=["a", "b"]),
        Refusal(404, "peer_not_found", "there is no peer 'bne'", near=["ben"], peer="bne"),
        Refusal(422, "invalid_field", "must be at most 64000 characters", field="text", limit=64000),
    ],
)
def test_a_refusal_comes_back_as_it_was(serve: Serve, made: RepowireClient, error: Refusal) -> None:
    body = json.dumps(error.as_json()).encode()
    serve(reply(body, status=b"%d No" % error.status), reply(b"{}"))
    with pytest.raises(Refusal) as caught:
        made.health()
    same = caught.value
    assert (same.status, same.error, same.hint, same.facts) == (error.status, error.error, error.hint, error.facts)
    assert made.health() == {}, "the connection goes on"


def test_the_flat_body_of_notify_and_plain_words_are_read_too() -> None:
    flat = {"ok": False, "status": "not_found", "reason": "unknown_peer", "detail": {"error": "x", "hint": "who?"}}
    no = Refusal.of_reply(404, json.dumps(flat).encode())
    assert (no.status, no.error, no.hint, no.facts["reason"]) == (404, "x", "who?", "unknown_peer")
    words = Refusal.of_reply(503, b'{"detail": "no live connection"}')
    assert (words.error, words.hint) == ("http_503", "no live connection")
    assert Refusal.of_reply(500, b"Internal Server Error").hint == "Internal Server Error"
    assert Refusal.of_reply(500, b"").hint == "the daemon said 500"


# -- requests ------------------------------------------------------------------


def test_a_request_says_what_it_must(serve: Serve, made: RepowireClient) -> None:
    server = serve(reply(b'{"correlation_id": "ask-1"}'))
    made.ask("ben", "what's up? ✓", if_offline="queue", circle=None)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /ask HTTP/1.1\r\nHost: localhost\r\n")
    assert b"Content-Type: application/json" in head
    assert b"authorization" not in head.lower(), "the socket's file is the login"
    assert json.loads(body) == {"to_peer": "ben", "text": "what's up? ✓", "if_offline": "queue"}


def test_path_and_query_are_percent_encoded(serve: Serve, made: RepowireClient) -> None:
    server = serve(reply(b'{"peer_id": "x"}'))
    made.get_peer("a/b %é\r\nX: 1", circle="c&d")
    assert server.requests[0].startswith(b"GET /peers/a%2Fb%20%25%C3%A9%0D%0AX%3A%201?circle=c%26d HTTP/1.1\r\n")
    assert quote("%42") == "%2542"


def test_each_method_has_its_route(serve: Serve, made: RepowireClient) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("GET /health", made.health),
        ("GET /peers?status=online", lambda: made.list_peers(status="online")),
        ("GET /peers/ann", lambda: made.get_peer("ann")),
        ("POST /peers", lambda: made.register_peer("ann", path="/x")),
        ("DELETE /peers/ann", lambda: made.unregister_peer("ann")),
        ("POST /peers/ann/offline", lambda: made.mark_peer_offline("ann", terminal=True)),
        ("POST /session/update", lambda: made.session_update(peer_name="ann", status="busy")),
        ("POST /ask", lambda: made.ask("ann", "x")),
        ("POST /query", lambda: made.query("ann", "x", timeout=1)),
        ("POST /ack", lambda: made.ack("ask-1")),
        ("POST /decline", lambda: made.decline("ask-1", "no")),
        ("POST /response", lambda: made.respond("%1", "yes")),
        ("POST /asks/ask-1/wait", lambda: made.wait_ask("ask-1", timeout_seconds=1)),
        ("GET /asks/pending?peer_id=ann", lambda: made.pending_asks(peer_id="ann")),
        ("GET /asks/history?state=open", lambda: made.asks_history(state="open")),
        ("POST /notify", lambda: made.notify("ann", "x")),
        ("POST /broadcast", lambda: made.broadcast("x")),
        ("GET /deliveries/d-1", lambda: made.delivery("d-1")),
        ("GET /traces/ask-1", lambda: made.trace("ask-1")),
        ("POST /auth/rotate", made.rotate_token),
        ("POST /shutdown", made.shutdown),
    ]
    server = serve(*[reply(b'{"peers": [], "asks": []}')] * len(calls))
    for _, call in calls:
        call()
    said = [" ".join(request.decode().split(" ")[:2]) for request in server.requests]
    assert said == [wanted for wanted, _ in calls]


def test_tcp_carries_host_and_bearer(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Scripted(listener, [reply(b"{}"), reply(b"{}")])
    (short_folder / "token").write_text("of-the-home\n")
    (short_folder / "token").chmod(0o600)
    monkeypatch.setenv("REPOWIRE_DAEMON_URL", f"http://127.0.0.1:{port}/")
    monkeypatch.delenv("REPOWIRE_AUTH_TOKEN", raising=False)
    with RepowireClient(home=short_folder) as client:
        client.health()
    monkeypatch.setenv("REPOWIRE_AUTH_TOKEN", "of-the-environment")
    with RepowireClient(home=short_folder) as client:
        client.health()
    listener.close()
    assert f"Host: 127.0.0.1:{port}\r\n".encode() in server.requests[0]
    assert b"Authorization: Bearer of-the-home\r\n" in server.requests[0]
    assert b"Authorization: Bearer of-the-environment\r\n" in server.requests[1]


def test_the_homes_token_goes_to_no_other_machine(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    (short_folder / "token").write_text("secret\n")
    (short_folder / "token").chmod(0o600)
    monkeypatch.delenv("REPOWIRE_AUTH_TOKEN", raising=False)
    assert module.own_token("example.net", short_folder) is None
    assert module.own_token("127.0.0.1", short_folder) == "secret"
    monkeypatch.setenv("REPOWIRE_AUTH_TOKEN", "x\r\nX-More: 1")
    with pytest.raises(ConfigError):
        module.own_token("example.net", short_folder)


def test_urls() -> None:
    assert parse_url("http://127.0.0.1:8377") == ("127.0.0.1", 8377)
    assert parse_url("http://[::1]:9/") == ("::1", 9)
    assert parse_url("http://[::1]") == ("::1", 80)
    assert parse_url("http://box") == ("box", 80)
    for wrong in ("https://box:1", "box:1", "http://", "http://a:b", "http://a:1/x", "http://u@a:1", ""):
        with pytest.raises(ConfigError):
            parse_url(wrong)


def test_a_home_with_a_long_path_is_reached(tmp_path: Path) -> None:
    home = tmp_path / ("h" * 120)
    home.mkdir()
    here = os.open(home, os.O_PATH | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{here}/daemon.sock")
    listener.listen()
    Scripted(listener, [reply(b'{"long": true}')])
    with RepowireClient(home=home) as client:
        assert client.health() == {"long": True}
    listener.close()
    os.close(here)


# -- events --------------------------------------------------------------------


def sse(number: int, **facts: Any) -> bytes:
    return f"id: {number}\ndata: {json.dumps({'id': str(number), 'type': 'ask', **facts})}\n\n".encode()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_whole_however_they_are_cut(size: int) -> None:
    raw = b": hello\n\n" + sse(1, text="é\nx") + b": keepalive\n\n" + sse(2).replace(b"\n", b"\r\n")
    pieces = (raw[at : at + size] for at in range(0, len(raw), size))
    assert [(event["id"], event.get("text")) for event in parse_events(pieces)] == [("1", "é\nx"), ("2", None)]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def test_a_cut_stream_goes_on_after_the_last_event_seen(serve: Serve, made: RepowireClient) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    server = serve(
        head + chunk(sse(7)) + chunk(sse(8)) + b"4\r\nid",
        head + chunk(b": hello\n\n") + chunk(sse(9)),
        head + chunk(sse(10)),
    )
    events = made.stream(replay=2)
    assert [next(events)["id"] for _ in range(4)] == ["7", "8", "9", "10"]
    targets = [request.split(b" ")[1] for request in server.requests]
    assert targets == [b"/events/stream?replay=2", b"/events/stream?since=8", b"/events/stream?since=9"]


def test_a_stream_whose_daemon_stays_away_ends(serve: Serve, made: RepowireClient) -> None:
    server = serve(OK + b"Connection: close\r\n\r\n" + sse(1))
    events = made.stream(patience=0.3)
    assert next(events)["id"] == "1"
    server.listener.close()
    with pytest.raises(DaemonAway, match="not come back"):
        next(events)


def test_a_stream_that_is_refused_says_why(serve: Serve, made: RepowireClient) -> None:
    serve(reply(b'{"detail": {"error": "invalid_field", "hint": "must be a number"}}', status=b"422 No"))
    with pytest.raises(Refusal, match="must be a number"):
        next(made.stream(since="x"))


def test_a_stream_without_a_daemon_says_so_at_once(made: RepowireClient) -> None:
    with pytest.raises(DaemonAway, match="--detach"):
        next(made.stream())


# -- start-up ------------------------------------------------------------------


def test_what_the_client_does_not_import() -> None:
    """Each of these costs a short-lived process more than its request."""
    slow = {
        "http.client",
        "urllib.request",
        "ssl",
        "asyncio",
        "argparse",
        "dataclasses",
        "logging",
        "inspect",
        "aiohttp",
    }
    code = "import sys, repowire.client; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert slow & set(out.split()) == set()
