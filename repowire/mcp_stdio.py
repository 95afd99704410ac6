"""The MCP server that an agent starts: its JSON lines go to the daemon's /mcp, and each answer comes back when done.

Run as `python -I -S mcp_stdio.py [--home DIR]`, or `repowire mcp`. It knows nothing of the tools. A daemon that is down
is started, apart from the agent; one that went away in the middle is asked again, except where the first request may
have sent something. One thread, one poll; few imports, since one of these lives beside every agent.
"""

import _socket
import json
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

PATIENCE_SECONDS, LEAVING_SECONDS = 60.0, 5.0  # for any answer but that of a waiting tool; after the end of stdin
TRIES = 5  # connects and starts of the daemon for one request
MAX_LINE_BYTES = 8 * 1024 * 1024
ONCE = ("ask", "notify_peer")  # the daemon keeps what these say, so nobody repeats them but the agent itself
WAITING = ("wait_on_ack",)
AGENTS_OWN = ("CLAUDE", "ANTHROPIC_", "TMUX", "AI_AGENT")  # variables that the daemon shall not inherit from one agent
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL = -32700, -32600, -32601, -32603

HEADERS = (
    ("Tmux", "TMUX"),
    ("Pane", "TMUX_PANE"),
    ("Agent-Pid", "CLAUDE_PID"),
    ("Inbox", "CLAUDE_CODE_MESSAGING_SOCKET"),
    ("Inbox-Token", "CLAUDE_CODE_MESSAGING_TOKEN"),
    ("Session", "CLAUDE_CODE_SESSION_ID"),
)


class Request:
    """One JSON-RPC request on its way, on a connection of its own."""

    def __init__(self, message: "dict[str, Any]", line: bytes) -> None:
        self.id, self.method, self.line = message["id"], message["method"], line
        params = message.get("params")
        self.tool = params.get("name") if self.method == "tools/call" and isinstance(params, dict) else None
        self.tries = 0
        self.began = time.monotonic()
        self.link: _socket.socket | None = None
        self.unsent, self.got = b"", b""

    @property
    def ends_at(self) -> float:
        """When to give up; a waiting tool has a bound of its own, which the daemon keeps."""
        return float("inf") if self.tool in WAITING else self.began + PATIENCE_SECONDS

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None


class Shim:
    """Between the agent's two pipes and the daemon."""

    def __init__(self, home: str) -> None:
        self.home, self.heads = home, facts(os.environ)
        self.poll = select.poll()
        self.lines, self.out = b"", b""
        self.flying: dict[int, Request] = {}  # by the descriptor of its connection
        self.waiting: list[Request] = []  # for the daemon to be started
        self.starting, self.said, self.child = -1, b"", 0  # the starter's stderr, what it wrote there, its pid
        self.leaving_at: float | None = None

    def run(self) -> None:
        """Until stdin ends and what was asked is answered, or nobody reads the answers."""
        self.poll.register(0, select.POLLIN)
        while self.leaving_at is None or ((self.flying or self.waiting or self.out) and now() < self.leaving_at):
            if self.out:
                self.poll.register(1, select.POLLOUT)
            for descriptor, events in self.poll.poll(self.left()):
                if descriptor == 0:
                    self.read_lines()
                elif descriptor == 1:
                    self.write(events)
                elif descriptor == self.starting:
                    self.watch_start()
                elif descriptor in self.flying:
                    self.move(self.flying[descriptor])
            for late in [one for one in (*self.flying.values(), *self.waiting) if now() >= one.ends_at]:
                self.forget(late)
                self.fail(late, f"the daemon has not answered for {PATIENCE_SECONDS:g} s; see `repowire status`")

    def left(self) -> "float | None":
        """Milliseconds until something is late; None when nothing can be."""
        ends = [one.ends_at for one in (*self.flying.values(), *self.waiting)]
        first = min([*ends, self.leaving_at or float("inf")], default=float("inf"))
        return None if first == float("inf") else max(0.0, first - now()) * 1000 + 1

    # -- the agent -----------------------------------------------------------
    def read_lines(self) -> None:
        piece = os.read(0, 1 << 16)
        if not piece:
            self.poll.unregister(0)
            self.leaving_at = now() + LEAVING_SECONDS
            for one in [one for one in (*self.flying.values(), *self.waiting) if one.tool in WAITING]:
                self.forget(one)
        *whole, self.lines = (self.lines + piece).split(b"\n")
        if len(self.lines) > MAX_LINE_BYTES:
            leave(f"a line of over {MAX_LINE_BYTES} bytes came on stdin")
        for line in whole:
            if line.strip():
                self.take(line)

    def take(self, line: bytes) -> None:
        """One message of the agent."""
        try:
            message = json.loads(line, parse_constant=no_number)
        except (ValueError, RecursionError):
            return self.error(None, PARSE_ERROR, "a line must be one JSON message in UTF-8")
        if not isinstance(message, dict):
            return self.error(None, INVALID_REQUEST, "a line must be one JSON object; batches are not taken")
        method, params = message.get("method"), message.get("params")
        if not isinstance(method, str) or "id" not in message:
            if method == "notifications/cancelled" and isinstance(params, dict):
                for one in [one for one in (*self.flying.values(), *self.waiting) if one.id == params.get("requestId")]:
                    self.forget(one)
            return None  # nothing else that wants no answer is of use to the daemon
        if isinstance(message["id"], bool) or not isinstance(message["id"], str | int):
            return self.error(None, INVALID_REQUEST, "id must be a string or a whole number")
        if method == "server/discover":  # the agent waits for this one before it starts
            return self.error(message["id"], METHOD_NOT_FOUND, "there is no method 'server/discover' here")
        return self.go(Request(message, line))

    def write(self, events: int) -> None:
        if not events & select.POLLOUT:  # nobody reads any more
            raise BrokenPipeError
        self.out = self.out[os.write(1, self.out[: select.PIPE_BUF]) :]  # so much goes in without blocking
        if not self.out:
            self.poll.unregister(1)

    def error(self, request_id: "str | int | None", code: int, words: str) -> None:
        reply = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": words}}
        self.out += json.dumps(reply).encode() + b"\n"

    def fail(self, request: Request, words: str) -> None:
        """No answer came: told to the model where it called a tool, else to its program."""
        if request.method != "tools/call":
            return self.error(request.id, INTERNAL, words)
        result = {"content": [{"type": "text", "text": words}], "isError": True}
        self.out += json.dumps({"jsonrpc": "2.0", "id": request.id, "result": result}).encode() + b"\n"
        return None

    # -- the daemon ----------------------------------------------------------
    def go(self, request: Request) -> None:
        """Send it on its way; where no daemon listens it waits for one to be started."""
        request.tries += 1
        request.got = b""
        request.unsent = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s" % self.heads
        request.unsent += b"Content-Length: %d\r\n\r\n%s" % (len(request.line), request.line)
        link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            os.chdir(self.home)  # the socket's own name always fits into its address, its path may not
            link.connect("daemon.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            self.waiting.append(request)
            if self.starting < 0:
                self.start()
        except OSError as error:
            link.close()
            self.fail(request, f"cannot reach the daemon in {self.home}: {error.strerror}")
        else:
            link.setblocking(False)
            request.link = link
            self.flying[link.fileno()] = request
            self.poll.register(link.fileno(), select.POLLIN | select.POLLOUT)

    def move(self, request: Request) -> None:
        """Send and receive what can be."""
        link = request.link
        assert link is not None
        piece: bytes | None = None
        try:
            if request.unsent:
                request.unsent = request.unsent[link.send(request.unsent) :]
                if not request.unsent:
                    self.poll.modify(link.fileno(), select.POLLIN)
            piece = link.recv(1 << 16)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            request.unsent = b""
            if piece is None:  # it hung up while we spoke: what it said first may be there to read
                try:
                    piece = link.recv(1 << 16)
                except OSError:
                    piece = b""
        request.got += piece
        if piece and not whole(request.got):
            return
        self.forget(request)
        if not self.answer(request):
            self.again(request)

    def again(self, request: Request) -> None:
        """The daemon hung up without an answer."""
        if request.tool in ONCE:
            self.fail(
                request,
                "the daemon went away before it answered; it may have been sent, so look before you send it again",
            )
        elif request.tries >= TRIES:
            self.fail(request, f"the daemon in {self.home} hangs up without an answer; its log is daemon.log there")
        else:
            self.go(request)

    def answer(self, request: Request) -> bool:
        """Hand the answer on; False when it is none."""
        head, end, body = request.got.partition(b"\r\n\r\n")
        if not end or not whole(request.got):
            return False
        if body.startswith(b'{"jsonrpc"'):
            body = body.replace(b'"id": null', b'"id": ' + json.dumps(request.id).encode(), 1)
            self.out += body.replace(b"\n", b" ") + b"\n"
            return True
        try:
            detail = json.loads(body)["detail"]
            hint = str(detail["hint"] if isinstance(detail, dict) else detail)
        except (ValueError, KeyError, TypeError):
            hint = f"the daemon said {head[9:12].decode('latin-1')}; it may be of another version"
        self.fail(request, hint)
        return True

    def forget(self, request: Request) -> None:
        """Neither send nor wait for it any more."""
        if request.link is not None:
            self.poll.unregister(request.link.fileno())
            del self.flying[request.link.fileno()]
            request.close()
        elif request in self.waiting:
            self.waiting.remove(request)

    def start(self) -> None:
        """Start the daemon as nobody's child: the starter ends when it serves, or says why it does not."""
        self.starting, end = os.pipe()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(AGENTS_OWN)}
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, end, 2),
        ]
        command = [sys.executable, "-P", "-m", "repowire", "daemon", "--detach", "--home", self.home]
        try:
            self.child = os.posix_spawn(sys.executable, command, environ, file_actions=actions, setsid=True)
        finally:
            os.close(end)
        self.poll.register(self.starting, select.POLLIN)

    def watch_start(self) -> None:
        """When the starter ends, what waited tries again: also where another one was faster."""
        piece = os.read(self.starting, 1 << 16)
        self.said = (self.said + piece)[-4_096:]
        if piece:
            return
        self.poll.unregister(self.starting)
        os.close(self.starting)
        os.waitpid(self.child, 0)
        words, waiting = self.said.decode("utf-8", "replace").strip(), self.waiting
        self.starting, self.said, self.waiting = -1, b"", []
        for request in waiting:
            if request.tries >= TRIES:
                self.fail(request, f"no daemon runs, and none could be started: {words or 'it says nothing'}")
            else:
                self.go(request)


def now() -> float:
    """Seconds for measuring durations."""
    return time.monotonic()


def no_number(word: str) -> "NoReturn":
    raise ValueError(f"{word} is no JSON")


def whole(got: bytes) -> bool:
    """Whether an answer is there with all the bytes that its Content-Length says."""
    head, end, body = got.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and line[15:].strip().isdigit():
            return bool(end) and len(body) >= int(line[15:])
    return False


def facts(environ: "os._Environ[str]") -> bytes:
    """What the agent's environment says of it, as headers. No value can end its line."""
    try:
        cwd = os.getcwdb()
    except OSError:  # the folder is gone
        cwd = b""
    place = b"".join(b"%c" % byte if 32 < byte < 127 and byte != 37 else b"%%%02X" % byte for byte in cwd)
    lines = b"Content-Type: application/json\r\n"
    for name, value in [
        *((name, os.fsencode(environ.get(variable, ""))) for name, variable in HEADERS),
        ("Cwd", place),
    ]:
        value = bytes(byte for byte in value if byte >= 32 and byte != 127)
        if 0 < len(value) <= 8_000:  # the daemon refuses a request with a longer one
            lines += b"X-Repowire-%s: %s\r\n" % (name.encode(), value)
    return lines


def leave(words: str) -> "NoReturn":
    """A line on stderr, and the end."""
    os.write(2, f"repowire mcp: {words}\n".encode("utf-8", "replace"))
    raise SystemExit(1)


def main(arguments: "list[str]") -> None:
    """Serve one agent until it leaves."""
    home = os.environ.get("REPOWIRE_HOME") or "~/.repowire"
    if len(arguments) == 2 and arguments[0] == "--home":
        home = arguments[1]
    elif arguments:
        leave("usage: repowire mcp [--home DIR]; an agent starts it and speaks MCP on its stdin and stdout")
    try:
        Shim(os.path.abspath(os.path.expanduser(home))).run()
    except (ConnectionError, KeyboardInterrupt):  # nobody reads any more
        return


if __name__ == "__main__":
    main(sys.argv[1:])
