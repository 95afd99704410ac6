"""The hook: hand an agent's event to the daemon and print what it answers. The agent waits for every run of it.

Run as `python -I -S hook_stdio.py claude-code Stop [--home DIR]`, with the event's JSON on stdin. Whatever goes wrong,
it prints nothing, says nothing on stderr, exits with 0, and is gone in time: a daemon that is away or hung costs
0.3 s at most, a slow one 2 s, and 1 s when the session ends. Built-in modules alone: `os` and `socket` would take
longer than the whole of the rest.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import sys
import time

SILENT_SECONDS = 0.3  # from the connect to the first byte of the answer
TOTAL_SECONDS, ENDING_SECONDS = 2.0, 1.0  # from the start; a session that ends kills its hooks after 1.5 s
MAX_EVENT_BYTES = MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_HEAD_BYTES = 65_536
MAX_HEADER_BYTES = 8_000  # the daemon refuses a request with a longer one

HEADERS = (
    (b"Tmux", b"TMUX"),
    (b"Pane", b"TMUX_PANE"),
    (b"Agent-Pid", b"CLAUDE_PID"),
    (b"Inbox", b"CLAUDE_CODE_MESSAGING_SOCKET"),
    (b"Inbox-Token", b"CLAUDE_CODE_MESSAGING_TOKEN"),
    (b"Session", b"CLAUDE_CODE_SESSION_ID"),
)


class NoAnswerError(Exception):
    """What came is not an answer of ours."""


def main(arguments: "list[str]") -> None:
    """Tell the daemon, print its answer, and say that it was printed. Raises OSError or NoAnswerError to give up."""
    place, words = home(arguments)
    agent, event = words
    if not (agent.replace("-", "").isalnum() and event.isalnum() and (agent + event).isascii()):
        raise NoAnswerError("no name of an agent and of an event")
    ends_at = time.monotonic() + (ENDING_SECONDS if event == "SessionEnd" else TOTAL_SECONDS)
    end_at(ends_at)
    body, facts = read_event(), headers(posix.environ)
    posix.chdir(place)  # the socket's own name always fits into its address, its path may not
    end_at(min(ends_at, time.monotonic() + SILENT_SECONDS))
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link.connect("daemon.sock")
    json = b"Content-Type: application/json\r\n"
    status, receipt, answer = ask(link, f"/hooks/{agent}/{event}".encode(), json + facts, body, ends_at)
    if status != 200:
        return
    while answer:
        answer = answer[posix.write(1, answer) :]
    if receipt:
        ask(link, b"/hooks/receipts/" + receipt, b"", b"", ends_at)


def home(arguments: "list[str]") -> "tuple[bytes, list[str]]":
    """The folder of the daemon's socket, and the arguments without it."""
    if "--home" in arguments:
        at = arguments.index("--home")
        return arguments[at + 1].encode("utf-8", "surrogateescape"), arguments[:at] + arguments[at + 2 :]
    place = posix.environ.get(b"REPOWIRE_HOME") or b"~/.repowire"
    if place == b"~" or place.startswith(b"~/"):
        place = posix.environ.get(b"HOME", b"") + place[1:]
    return place, arguments


def end_at(moment: float) -> None:
    """End the process then, wherever it stands: also in a read of what nobody closes, or a connect nobody accepts."""
    _signal.setitimer(_signal.ITIMER_REAL, max(0.001, moment - time.monotonic()))


def read_event() -> bytes:
    """All of stdin."""
    pieces, size = [], 0
    while piece := posix.read(0, 1 << 20):
        size += len(piece)
        if size <= MAX_EVENT_BYTES:  # more is read all the same: the agent shall not write into a closed pipe
            pieces.append(piece)
    if size > MAX_EVENT_BYTES:
        raise NoAnswerError("too large to send")
    return b"".join(pieces)


def headers(environ: "dict[bytes, bytes]") -> bytes:
    """What the agent's environment says of it, a line each. No value can end its line."""
    try:
        cwd = percent_encoded(posix.getcwdb())
    except OSError:  # the folder is gone
        cwd = b""
    lines = b""
    for name, value in [*((name, environ.get(variable, b"")) for name, variable in HEADERS), (b"Cwd", cwd)]:
        value = bytes(byte for byte in value if byte >= 32 and byte != 127)
        if 0 < len(value) <= MAX_HEADER_BYTES:
            lines += b"X-Repowire-%s: %s\r\n" % (name, value)
    return lines


def percent_encoded(path: bytes) -> bytes:
    """With nothing but printable ASCII left, for `urllib.parse.unquote` to read."""
    return b"".join(b"%c" % byte if 32 < byte < 127 and byte != 37 else b"%%%02X" % byte for byte in path)


def ask(link: _socket.socket, path: bytes, lines: bytes, body: bytes, ends_at: float) -> "tuple[int, bytes, bytes]":
    """One POST: the answer's status, its receipt token if there is one, and its whole body."""
    request = b"POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n" % (path, lines, len(body))
    link.sendall(request + body)
    got = link.recv(MAX_HEAD_BYTES)
    end_at(ends_at)
    while b"\r\n\r\n" not in got:
        piece = link.recv(MAX_HEAD_BYTES)
        if not piece or len(got) > MAX_HEAD_BYTES:
            raise NoAnswerError("no end of the head")
        got += piece
    head, _, got = got.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    found = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
    size, receipt = found.get(b"content-length", b"0"), found.get(b"x-repowire-receipt", b"")
    if not first.startswith(b"HTTP/1.1 ") or not first[9:12].isdigit() or not size.isdigit():
        raise NoAnswerError("not HTTP")
    missing = int(size[:9]) - len(got)
    if int(size[:9]) > MAX_ANSWER_BYTES:
        raise NoAnswerError("too large")
    pieces = [got]
    while missing > 0:
        pieces.append(link.recv(missing))
        missing -= len(pieces[-1])
        if not pieces[-1]:
            raise NoAnswerError("cut")
    clean = receipt.replace(b"-", b"").replace(b"_", b"")
    return int(first[9:12]), receipt if clean.isalnum() else b"", b"".join(pieces)


if __name__ == "__main__":
    try:
        while posix.open("/dev/null", posix.O_RDWR) <= 2:  # a closed stdout's number must not become the socket's
            pass
        _signal.signal(_signal.SIGALRM, lambda number, frame: posix._exit(0))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM])
        main(sys.argv[1:])
    finally:
        posix._exit(0)  # without a trace, whatever it was
