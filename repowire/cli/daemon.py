"""`repowire daemon` (alias `serve`): the process behind all this."""

import argparse
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from repowire import cli, client, config
from repowire.cli import command as c
from repowire.cli import status
from repowire.errors import Refusal

START_SECONDS = 30.0  # an integrity check of a large database is part of a start
STOP_MARGIN_SECONDS = 10.0  # beyond the drain: closing the store
LOOK_SECONDS = 0.02
LOG_LINES = 10


def main(argv: list[str]) -> int:
    made = c.parser(
        "daemon",
        "Run the daemon of a home here, or --detach it; stop, restart or look at the one that runs.",
        "  repowire daemon --detach\n  repowire daemon stop",
    )
    made.add_argument("verb", nargs="?", type=verb, choices=("stop", "status", "restart"), help="without one: start")
    made.add_argument("--host", help="TCP address to listen on (default: the config's, 127.0.0.1)")
    made.add_argument("--port", type=port, help="TCP port, 0 for a free one (default: the config's, 8377)")
    made.add_argument(
        "--home",
        type=lambda text: Path(c.named(text)),
        metavar="HOME",
        help="the folder of its files (default: REPOWIRE_HOME or ~/.repowire)",
    )
    made.add_argument("--detach", action="store_true", help="start it in the background, and say when it serves")
    made.add_argument("--json", action="store_true", help='one JSON line when it serves: {"ready": true, "port": …}')
    verbs = {None: start, "stop": stop, "restart": restart, "status": status.show}
    return c.run(made, argv[1:], lambda args: verbs[args.verb](args))


def verb(text: str) -> str:
    """As given; what starts it elsewhere is nothing here."""
    if text == "start":
        raise argparse.ArgumentTypeError("`repowire daemon` starts it, with --detach in the background")
    return text


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 0 to 65535")
    return int(text)


def settings_of(args: argparse.Namespace) -> config.Config:
    """The config with the flags over it."""
    flags = {"REPOWIRE_DAEMON__HOST": args.host, "REPOWIRE_DAEMON__PORT": args.port}
    return config.load(args.home, {**os.environ, **{name: str(v) for name, v in flags.items() if v is not None}})


def start(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.detach:
        return detach(settings, as_json=args.json)
    return run_here(settings, as_json=args.json)


def run_here(settings: config.Config, *, as_json: bool) -> int:
    """Become the daemon. What keeps it from starting is one clear line."""
    check = cli.database().Check(settings.database_path)  # reads the whole file, while the daemon is imported
    program = cli.program()
    try:
        code: int = program.main(settings, json=as_json, check=check)
    except program.CANNOT_START as exc:
        c.fail(str(exc))
    return code


def detach(settings: config.Config, *, as_json: bool) -> int:
    """Start a daemon that outlives this terminal; done when it serves, failed when it ends before."""
    config.prepare_home(settings.home)
    command = [sys.executable, "-m", "repowire", "daemon", "--json", "--home", str(settings.home)]
    command += ["--host", settings.daemon.host, "--port", str(settings.daemon.port)]
    descriptor = os.open(settings.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "ab") as log, open(settings.log_path, "rb") as read:
        read.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=settings.home
        )
        ready = wait_ready(child, read, settings)
    if ready is None:
        return c.FAILED
    if as_json:
        c.put(c.to_json(ready))
    else:
        url = c.url(ready["host"], ready["port"])
        c.put(f"repowire {ready['version']} runs on {url} and {ready['socket']} (pid {ready['pid']})")
        c.hint(f"its log is {settings.log_path}; stop it with: repowire daemon stop")
    return c.OK


def wait_ready(child: "subprocess.Popen[bytes]", log: BinaryIO, settings: config.Config) -> c.Json | None:
    """The ready line that stands in the log; None when the child ended or took too long, which is said.

    The daemon of another starter may have been faster. Its line counts, and is waited for, once the child that it
    refuses has ended: a child still on its way would take the home of a daemon that is stopped at once.
    """
    deadline, written, other, over = time.monotonic() + START_SECONDS, b"", None, False
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        written += log.read()
        for raw in written.splitlines():
            if raw.startswith(b'{"ready"'):
                with suppress(ValueError):  # half a line: the rest is on its way
                    ready: c.Json = json.loads(raw)
                    if ready["pid"] == child.pid:
                        return ready
                    other = ready
        if ended and other is not None:
            return other
        if over:
            break
        over = ended and (holder(settings) or {"port": 0}).get("port") is not None  # nobody is starting any more
        time.sleep(LOOK_SECONDS)  # a growing file tells nobody: look again until the deadline
    else:
        child.terminate()
        c.note(f"repowire: the daemon did not serve within {START_SECONDS:g} s, so it was stopped")
    last = written.decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    if len(last) == 1:  # its own clear line
        c.note(c.clean(last[0]))
    else:
        c.note("repowire: the daemon ended before it served; the last lines of its log:")
        c.note("\n".join(f"  {c.clean(text)}" for text in last) or f"  (none; exit code {child.returncode})")
    return None


def holder(settings: config.Config) -> c.Json | None:
    """What the live daemon of this home wrote into its lock; None when nobody holds it, whatever the file says."""
    try:
        descriptor = os.open(settings.lock_path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return config.read_lock(settings.home) or {}
    finally:
        os.close(descriptor)
    return None


def stop(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    held = holder(settings)
    if held is None:
        c.fail(f"no daemon runs in {settings.home}", c.NO_DAEMON)
    end(settings, held)
    if args.json:
        c.put(c.to_json({"stopped": True, "pid": held.get("pid")}))
    else:
        c.hint(f"stopped (pid {held.get('pid')})")
    return c.OK


def end(settings: config.Config, held: c.Json) -> None:
    """Ask it to drain and wait for its end; a SIGTERM where it no longer answers."""
    pid = held.get("pid")
    if not isinstance(pid, int):
        c.fail(f"a daemon holds {settings.lock_path} but does not say its pid; try again in a moment")
    patience = settings.daemon.drain_seconds + STOP_MARGIN_SECONDS
    try:
        watch = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        if holder(settings) is None:  # it ended by itself
            return
        c.fail(f"a daemon holds {settings.lock_path} but has not said its pid yet; try again in a moment")
    try:
        with closing(client.RepowireClient(home=settings.home, timeout=2.0)) as asked:
            asked.place, asked.where = None, str(settings.socket_path)
            asked.shutdown()
    except (OSError, Refusal):
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signal.SIGTERM)
    if not gone(settings, watch, patience):
        c.fail(f"the daemon (pid {pid}) still runs after {patience:g} s; kill it with: kill -9 {pid}")


def gone(settings: config.Config, watch: int | None, patience: float) -> bool:
    """Whether it ended in time: told by its pidfd, or by its lock where the system has none."""
    if watch is not None:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        try:
            return bool(poll.poll(patience * 1000))
        finally:
            os.close(watch)
    deadline = time.monotonic() + patience
    while holder(settings) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS * 5)
    return True


def restart(args: argparse.Namespace) -> int:
    """Stop what runs and start it again where it was, unless the flags say otherwise."""
    settings = settings_of(args)
    held = holder(settings)
    if held is not None:
        args.host, args.port = args.host or held.get("host"), args.port if args.port is not None else held.get("port")
        settings = settings_of(args)
        end(settings, held)
    return detach(settings, as_json=args.json)
