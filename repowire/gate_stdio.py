"""The gate: ask the daemon whether a tool may run, and refuse it wherever no clear answer comes.

Run as `python -I -S gate_stdio.py claude-code PreToolUse [--seconds N] [--home DIR]` with the event's JSON on stdin.
Exit code 0 with the daemon's verdict on stdout, or with nothing there for a tool that is not gated; everything else is
exit code 2 with a reason on stderr, which refuses the tool (so read by Claude Code, Codex and Gemini CLI). `--open` is
for a dialog that is on the screen anyway: then what goes wrong says nothing and exits with 0, and the dialog stays.

A daemon that has the question says `102 Processing` at once and every few seconds, so that one that hangs is told from
a human who thinks. It decides how long to wait; `--seconds` is how long the runtime lets this script wait, less a bit.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import sys
import time

sys.path.insert(0, __file__.rpartition("/repowire/")[0] or ".")

try:
    from _json import make_scanner  # all of `json` takes longer

    from repowire import hook_stdio
except BaseException:  # noqa: BLE001 - a broken installation refuses too
    posix.write(2, b"repowire refused this: its gate cannot be loaded; install repowire again\n")
    posix._exit(2)

FIRST_SECONDS = 5.0  # from the connect to the first word of the daemon
SILENT_SECONDS = 20.0  # between two words of it
RUNTIME_SECONDS = 590.0  # Claude Code ends a hook after 600 s unless its settings say otherwise
VERDICTS = (b"allow", b"deny")
REPAIR = "look at it with: repowire status"

why = "it took too long to ask"  # what is said when the alarm goes off
is_open = False


def main(arguments: "list[str]") -> None:
    """Ask, and print the verdict. Raises OSError or NoAnswerError when there is none."""
    global why
    place, words = hook_stdio.home(arguments)
    seconds, words = runtime_seconds(words)
    agent, event = words
    if not (agent.replace("-", "").isalnum() and event.isalnum() and (agent + event).isascii()):
        raise hook_stdio.NoAnswerError("it was called with no name of an agent and of an event")
    ends_at = time.monotonic() + seconds
    hook_stdio.end_at(min(ends_at, time.monotonic() + FIRST_SECONDS))
    body = hook_stdio.read_event()
    lines = hook_stdio.headers(posix.environ) + b"X-Repowire-Waits: %d\r\n" % max(0, int(seconds) - 5)
    link = connect(place)
    why = f"its daemon does not answer; {REPAIR}"
    head = b"POST /gates/%s/%s HTTP/1.1\r\nHost: localhost\r\n" % (agent.encode(), event.encode())
    lines += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    link.sendall(head + lines + body)
    status, fields, got = answer(link, ends_at)
    verdict, size = fields.get(b"x-repowire-verdict", b""), fields.get(b"content-length", b"")
    if status != 200:
        raise hook_stdio.NoAnswerError(f"its daemon answered with HTTP {status}{reason(got)}; {REPAIR}")
    if (verdict, size) == (b"none", b"0"):
        return
    if verdict not in VERDICTS or not size.isdigit() or int(size[:9]) > hook_stdio.MAX_ANSWER_BYTES:
        raise hook_stdio.NoAnswerError("its daemon's answer is no verdict; is it as new as its hooks? " + REPAIR)
    while len(got) < int(size):
        piece = link.recv(hook_stdio.MAX_HEAD_BYTES)
        if not piece:
            raise hook_stdio.NoAnswerError("its daemon's answer was cut")
        got += piece
    if len(got) != int(size) or not is_object(got):
        raise hook_stdio.NoAnswerError("its daemon's answer is no verdict")
    while got:
        got = got[posix.write(1, got) :]


def runtime_seconds(words: "list[str]") -> "tuple[float, list[str]]":
    """How long the runtime lets this script wait, and the arguments without it."""
    if "--seconds" in words:
        at = words.index("--seconds")
        return float(words[at + 1]), words[:at] + words[at + 2 :]
    return RUNTIME_SECONDS, words


def connect(place: bytes) -> _socket.socket:
    """To the daemon of that home. Raises NoAnswerError that says how to get one."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        posix.chdir(place)  # the socket's own name always fits into its address, its path may not
        link.connect("daemon.sock")
    except OSError:
        raise hook_stdio.NoAnswerError("its daemon is not running; start it with: repowire daemon --detach") from None
    return link


def answer(link: _socket.socket, ends_at: float) -> "tuple[int, dict[bytes, bytes], bytes]":
    """The final answer's status, its headers, and what of its body came with them; interim ones only say: I am here."""
    global why
    got = b""
    while True:
        while b"\r\n\r\n" not in got:
            piece = link.recv(hook_stdio.MAX_HEAD_BYTES)
            if not piece:
                raise hook_stdio.NoAnswerError("its daemon went away before anybody answered")
            if len(got) > hook_stdio.MAX_HEAD_BYTES:
                raise hook_stdio.NoAnswerError("its daemon's answer has no end of the head")
            got += piece
        head, _, got = got.partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        if not first.startswith(b"HTTP/1.1 ") or not first[9:12].isdigit():
            raise hook_stdio.NoAnswerError("its daemon's answer is not HTTP")
        left = ends_at - time.monotonic()
        why = (
            "nobody answered in the time that the runtime gives" if left < SILENT_SECONDS else "its daemon fell silent"
        )
        hook_stdio.end_at(time.monotonic() + min(left, SILENT_SECONDS))
        if first[9:10] != b"1":
            parts = (field.partition(b":") for field in fields)
            return int(first[9:12]), {name.lower(): value.strip() for name, _, value in parts}, got


def is_object(text: bytes) -> bool:
    """Whether it is one JSON object: what is none is no verdict to the runtime either, and then the tool runs."""

    class Rules:
        strict, memo = True, dict[str, str]()
        object_hook = object_pairs_hook = None
        parse_float, parse_int, parse_constant = float, int, float

    try:
        value, end = make_scanner(Rules)(text.decode(), 0)  # type: ignore[arg-type]
    except (ValueError, StopIteration):
        return False
    return isinstance(value, dict) and end == len(text.decode())


def reason(body: bytes) -> str:
    """The hint of a refusal of ours, if there is one in its JSON."""
    hint = body.partition(b'"hint":"')[2].partition(b'"')[0] or body.partition(b'"hint": "')[2].partition(b'"')[0]
    return f" ({hint.decode('utf-8', 'replace')})" if hint else ""


def give_up(reason: str) -> None:
    """End here: refused, or without a word where a dialog is open anyway."""
    try:
        if not is_open:
            text = "".join(letter for letter in f"repowire refused this: {reason}" if letter.isprintable())
            posix.write(2, text.encode("utf-8", "replace") + b"\n")
    finally:
        posix._exit(0 if is_open else 2)


if __name__ == "__main__":
    try:
        is_open = "--open" in sys.argv
        closed: "list[int]" = []
        while not closed or closed[-1] <= 2:  # a closed stdout's number must not become the socket's
            closed.append(posix.open("/dev/null", posix.O_RDWR))
        if 1 in closed:
            give_up("nobody reads what its gate would say")
        for number in (_signal.SIGALRM, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, lambda number, frame: give_up(why if number == _signal.SIGALRM else "it was ended"))
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM, _signal.SIGTERM])
        main([word for word in sys.argv[1:] if word != "--open"])
    except hook_stdio.NoAnswerError as no_answer:
        give_up(str(no_answer))
    except BaseException as error:  # noqa: BLE001 - whatever it was, the tool must not run
        give_up(f"{why} ({type(error).__name__})")
    posix._exit(0)
