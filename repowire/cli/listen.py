"""`repowire listen`: any script becomes a peer.

Without --exec each message is a JSON line on stdout. With --exec it goes to a command's stdin, and for an ask what the
command prints is the reply.
"""

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from repowire import protocol
from repowire.async_client import (
    AsyncRepowireClient,
    DaemonConnectionError,
    DaemonTimeoutError,
    Message,
    NotTaken,
    PeerDisconnectedError,
)
from repowire.cli import command as c

TAIL_CHARS = 2_000  # of a failed command's stderr, for the one who asked
ENVIRON_BYTES = 100_000  # of the text in REPOWIRE_TEXT: Linux takes 128 KiB a variable, stdin has all of it
OUTPUT_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 4096  # a pipe that is ready takes this much without blocking (PIPE_BUF)
GRACE_SECONDS = 2.0  # for a command to end after SIGTERM
LINGER_SECONDS = 1.0  # for what a command left behind to let go of its stdout, once it has ended itself
CUT = "\n[… cut by repowire listen]"


def main(argv: list[str]) -> int:
    made = c.parser(
        "listen",
        "Make a script a peer until Ctrl-C. Every circle reaches a service; --role agent keeps it to its own.",
        "  repowire listen --name build --exec 'git log -1 --oneline'\n"
        "  repowire listen --name inbox | jq -r '.from_peer + \": \" + .text'",
    )
    made.add_argument("--name", required=True, help="the peer's name: letters, digits, . _ -, at most 64")
    made.add_argument(
        "--exec",
        dest="script",
        metavar="CMD",
        help="shell command for each message: its text on stdin, REPOWIRE_FROM, REPOWIRE_KIND, REPOWIRE_CORRELATION_ID"
        " and REPOWIRE_TEXT in its environment; its stdout is the reply to an ask",
    )
    made.add_argument("--role", choices=protocol.ROLES, default="service", help="default %(default)s")
    made.add_argument("-c", "--circle", help="the circle to be in (default: the daemon's choice)")
    made.add_argument("--json", action="store_true", help="say on stdout as JSON lines when it listens and what it did")
    return c.run(made, argv[1:], listen)


def listen(args: argparse.Namespace) -> int:
    for flag, name in (("--name", args.name), ("--circle", args.circle)):
        if name is not None and not protocol.is_identifier(name):
            c.fail(f"{flag}: must be 1 to 64 of the letters, digits and . _ -", c.USAGE)
    logging.basicConfig(format="repowire: %(message)s", level=logging.WARNING)
    logging.getLogger("repowire.async_client").setLevel(logging.INFO)  # cuts and returns
    try:
        return asyncio.run(_listen(args))
    except PeerDisconnectedError as ended:
        c.fail(f"{ended} (close code {ended.code})")
    except DaemonConnectionError as away:
        c.fail(str(away), c.NO_DAEMON)
    except DaemonTimeoutError as late:
        c.fail(str(late), c.NO_DAEMON)


async def _listen(args: argparse.Namespace) -> int:
    """Be the peer until a signal or the daemon ends it."""
    stopped = asyncio.Event()
    exit_code = c.OK

    def stop(code: int = c.OK) -> None:
        nonlocal exit_code
        exit_code = code
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    handler = Script(args.script, as_json=args.json) if args.script else Printer(lambda: stop(c.FAILED))
    async with AsyncRepowireClient() as daemon:
        connection = daemon.connect(
            args.name, handler=handler, circle=args.circle, role=args.role, agent_pid=os.getpid()
        )
        async with connection as peer:
            name = c.clean(peer.display_name)
            if args.json:
                c.put(c.to_json({"listening": True, "peer_id": peer.peer_id, "display_name": peer.display_name}))
            c.note(f"repowire: listening as {name} ({c.clean(peer.peer_id)}); Ctrl-C ends it")
            if name != args.name:
                c.note(f"repowire: the name {c.clean(args.name)} is held by another peer, so this one is {name}")
            over = asyncio.ensure_future(peer.wait_closed())
            asked = asyncio.ensure_future(stopped.wait())
            await asyncio.wait({over, asked}, return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if over.done():
                over.result()
            over.cancel()
    return exit_code


# -- messages as lines ---------------------------------------------------------
class Printer:
    """A JSON line for each message; taken once it is written. When nobody reads any more, listening ends."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    async def __call__(self, message: Message) -> None:
        try:
            await write(1, c.to_json(shown(message)) + "\n")
        except OSError:
            self._stop()
            raise NotTaken("nobody reads what is listened to") from None


async def write(descriptor: int, text: str) -> None:
    """Write without holding up the loop: a reader may be slow, and Ctrl-C and pings must still come through."""
    loop, data = asyncio.get_running_loop(), text.encode("utf-8", "backslashreplace")
    while data:
        with suppress(PermissionError):  # a plain file is always ready and cannot be watched
            ready = asyncio.Event()
            loop.add_writer(descriptor, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_writer(descriptor)
        data = data[os.write(descriptor, data[:PIECE_BYTES]) :]


def shown(message: Message) -> c.Json:
    """A message as its line."""
    return {
        "kind": message.kind,
        "from_peer": message.from_peer,
        "to_peer": message.to_peer,
        "text": message.text,
        "correlation_id": message.correlation_id,
        "delivery_id": message.delivery_id,
        "reply_to": message.reply_to,
        "attachments": list(message.attachments),
    }


# -- messages to a command -----------------------------------------------------
class Script:
    """Runs the command for each message, one after the other."""

    def __init__(self, script: str, *, as_json: bool) -> None:
        self._script, self._as_json = script, as_json

    async def __call__(self, message: Message) -> str | None:
        code, out, err = await self._run(message)
        with suppress(OSError):  # that nobody reads the log is no reason to keep the answer back
            await write(2, c.clean(err, lines=True))
            await self._report(message, code)
        if message.kind != "ask":
            return None
        reply = out.rstrip() if code == 0 else f"exit {code}\n{err[-TAIL_CHARS:]}".rstrip()
        most = protocol.MAX_TEXT_CHARS
        return reply if len(reply) <= most else reply[: most - len(CUT)] + CUT

    async def _run(self, message: Message) -> tuple[int, str, str]:
        """Exit code, stdout and stderr. The receipt goes once the command has been started."""
        command, said = await asyncio.get_running_loop().subprocess_shell(
            Said, self._script, env={**os.environ, **told(message)}, start_new_session=True
        )
        try:
            await message.taken()
            stdin = command.get_pipe_transport(0)
            assert isinstance(stdin, asyncio.WriteTransport)
            stdin.write(message.text.encode("utf-8", "replace"))  # a command that does not read it is none the worse
            stdin.close()
            await said.exited.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await said.silent.wait()
        finally:
            await _ended(command, said)
            command.close()
        code = command.get_returncode()
        assert code is not None
        return code, *said.texts

    async def _report(self, message: Message, code: int) -> None:
        if self._as_json:
            facts = {name: value for name, value in shown(message).items() if name not in ("text", "attachments")}
            await write(1, c.to_json({**facts, "exit": code}) + "\n")
        else:
            about = f" {message.correlation_id}" if message.correlation_id else ""
            await write(2, f"repowire: {message.kind}{c.clean(about)} from {c.clean(message.from_peer)}: exit {code}\n")


def told(message: Message) -> dict[str, str]:
    """What the command finds in its environment. A NUL, which no variable can hold, is left out."""
    text = message.text.replace("\0", "").encode("utf-8", "replace")[:ENVIRON_BYTES].decode("utf-8", "ignore")
    return {
        "REPOWIRE_FROM": c.clean(message.from_peer),
        "REPOWIRE_KIND": message.kind,
        "REPOWIRE_CORRELATION_ID": c.clean(message.correlation_id or ""),
        "REPOWIRE_TEXT": text,
    }


class Said(asyncio.SubprocessProtocol):
    """All that the command says, of which the first OUTPUT_BYTES are kept, and when it ends.

    It may leave something behind that still has its stdout: so its end is one thing, and that of its output another.
    """

    def __init__(self) -> None:
        self.exited, self.silent = asyncio.Event(), asyncio.Event()
        self._kept = {1: bytearray(), 2: bytearray()}
        self._open = {1, 2}

    @property
    def texts(self) -> tuple[str, str]:
        """Of stdout and of stderr."""
        return self._kept[1].decode("utf-8", "replace"), self._kept[2].decode("utf-8", "replace")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self._kept[fd]
        kept += data[: OUTPUT_BYTES - len(kept)]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.silent.set()

    def process_exited(self) -> None:
        self.exited.set()


async def _ended(command: asyncio.SubprocessTransport, said: Said) -> None:
    """End the command and what it started, if it still runs: we were told to stop."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if said.exited.is_set():
            return
        with suppress(ProcessLookupError):
            os.killpg(command.get_pid(), number)
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await said.exited.wait()
