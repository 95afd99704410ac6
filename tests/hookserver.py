"""A daemon's Unix socket that answers as a test scripts it."""

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from repowire import config


def http(body: bytes, *, status: int = 200, receipt: str | None = None, size: int | None = None) -> bytes:
    """An answer; `size` is what its Content-Length says, the body's own unless told otherwise."""
    more = "" if receipt is None else f"X-Repowire-Receipt: {receipt}\r\n"
    head = f"HTTP/1.1 {status} Whatever\r\n{more}content-length: {len(body) if size is None else size}\r\n\r\n"
    return head.encode() + body


class Request(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes


class Server:
    """Listens in `home`; answers one a request, and hangs up after one that wants no receipt."""

    def __init__(self, home: Path, answers: tuple[bytes, ...]) -> None:
        self.requests: list[Request] = []
        self._answers = list(answers)
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(config.socket_address(home / "daemon.sock"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, link.makefile("rb") as stream, suppress(OSError):
            while (request := read_request(stream)) is not None:
                with self._lock:
                    self.requests.append(request)
                    answer = self._answers.pop(0) if self._answers else b""
                link.sendall(answer)
                if b"Receipt" not in answer:
                    return


def read_request(stream: BinaryIO) -> Request | None:
    """The next request of a connection; None at its end."""
    line = stream.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = {}
    while field := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = field.partition(": ")
        headers[name.lower()] = value
    return Request(line, headers, stream.read(int(headers["content-length"])))
