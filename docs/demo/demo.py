"""`make demo`: two scripted peers talk over a daemon of their own, which is killed in between.

Everything is private: the daemon's home, its port and the tmux server live in a temporary folder. Whatever happens, the
processes that were started here are ended by their own ids, and the folder is removed. Exit 0 when all went as told.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer.py").relative_to(CHECKOUT)
PATIENCE_SECONDS = 15.0
LOOK_SECONDS = 0.05
COLUMNS = "110"


class Failed(Exception):
    """The demo did not go as told; the text says where."""


def say(text: str = "") -> None:
    print(text, flush=True)


def title(text: str) -> None:
    say(f"\n== {text}")


def shown(text: str) -> None:
    """Output of a command, set off from what the demo says."""
    for line in text.rstrip("\n").splitlines():
        say(f"   {line}")


def until(what: str, condition: Callable[[], T]) -> T:
    """Look until it is so; Failed when it takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"after {PATIENCE_SECONDS:g} s still not so: {what}")
        time.sleep(LOOK_SECONDS)
    return found


class Stage:
    """The private folder, and the processes in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.notebook = folder, folder / "home", folder / "notebook.txt"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("REPOWIRE_", "TMUX"))}
        self.environ = {**kept, "REPOWIRE_HOME": str(self.home), "COLUMNS": COLUMNS, "NO_COLOR": "1"}
        self.environ["TERM"] = "xterm-256color"
        self.daemon: subprocess.Popen[str] | None = None
        self.tmux_server: int | None = None

    # -- the command line

    def run(self, *arguments: str, quiet: bool = False) -> str:
        """Run a repowire command and show it; its stdout."""
        if not quiet:
            say(f"$ {shlex.join(['repowire', *arguments])}")
        done = subprocess.run(
            [sys.executable, "-m", "repowire", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            env=self.environ,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise Failed(f"repowire {shlex.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        if not quiet:
            shown(done.stdout)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same quietly, as JSON."""
        return json.loads(self.run(*arguments, "--json", quiet=True))

    # -- the daemon

    def start_daemon(self) -> None:
        with (self.folder / "daemon.err").open("a") as errors:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "repowire", "daemon", "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=CHECKOUT,
                env=self.environ,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends it in order
            )
        assert self.daemon.stdout is not None
        ready = self.daemon.stdout.readline()
        if not ready:
            raise Failed(f"the daemon did not start: {(self.folder / 'daemon.err').read_text().strip()}")
        say("$ repowire daemon --port 0 &")
        shown(ready)

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        say(f"$ kill -9 {self.daemon.pid}        # the daemon")
        self.daemon.kill()
        self._reap()

    def _reap(self) -> None:
        assert self.daemon is not None
        assert self.daemon.stdout is not None
        self.daemon.wait(PATIENCE_SECONDS)
        self.daemon.stdout.close()
        self.daemon = None

    # -- tmux

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self.folder / "tmux"), "-f", "/dev/null", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            env=self.environ,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise Failed(f"tmux {shlex.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start_tmux(self) -> None:
        self.tmux("new-session", "-d", "-s", "demo", "-x", COLUMNS, "-y", "30", "-n", "keeper", "cat")
        self.tmux_server = int(self.tmux("display-message", "-p", "#{pid}"))
        self.tmux("set-option", "-g", "remain-on-exit", "on")  # what a peer said last can be read when it fails

    def start_peer(self, name: str) -> str:
        """A script becomes a peer, in a tmux window of its own; the pane."""
        script = shlex.join([sys.executable, str(PEER), name, str(self.notebook)])
        listen = [sys.executable, "-m", "repowire", "listen", "--name", name, "--exec", script]
        pane = self.tmux("new-window", "-d", "-P", "-F", "#{pane_id}", "-n", name, *listen)
        say(f"$ repowire listen --name {name} --exec 'python {PEER} {name} …'        # in tmux pane {pane}")
        until(f"{name} is online", lambda: self.online(name))
        return pane

    def online(self, name: str) -> bool:
        return any(p["display_name"] == name and p["ws_connected"] for p in self.json("peer", "list")["peers"])

    # -- the end

    def last_words(self) -> str:
        """What the daemon and the panes show, for whoever must find out why it failed."""
        words = [f"daemon: {(self.folder / 'daemon.err').read_text().strip()[-2000:] or 'nothing on stderr'}"]
        panes = self.tmux("list-panes", "-a", "-F", "#{pane_id}").split() if self.tmux_server else []
        words += [f"pane {pane}: {self.tmux('capture-pane', '-p', '-J', '-t', pane)[-1000:]}" for pane in panes]
        return "\n".join(words)

    def close(self) -> None:
        """End what was started here, and nothing else."""
        if self.tmux_server is not None:
            subprocess.run(["tmux", "-S", str(self.folder / "tmux"), "kill-server"], capture_output=True, check=False)
            self.tmux_server = None
        if self.daemon is not None:
            self.daemon.terminate()
            try:
                self._reap()
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self._reap()


@contextmanager
def stage() -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="rwdemo"))
    made = Stage(folder)
    try:
        yield made
    except Failed as why:
        raise Failed(f"{why}\n{made.last_words()}") from None
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


# -- the three acts ------------------------------------------------------------


def act_one(on: Stage) -> tuple[str, str]:
    title("1. Two scripts become peers, and one asks the other")
    on.start_daemon()
    on.start_tmux()
    scout = on.start_peer("scout")
    on.start_peer("historian")
    on.run("peer", "list")
    say("\nYou ask the historian. It looks at this checkout, asks the scout, and answers:")
    reply = on.run("ask", "historian", "what changed last, and how big is it?", "--wait", "30")
    if "the scout says of it:" not in reply or "lines" not in reply:
        raise Failed("the historian's answer does not carry the scout's")
    say("\nThe whole conversation, newest first:")
    on.run("asks", "--all", "--peer", "historian")
    asked = [ask for ask in on.json("asks", "--all", "--peer", "historian")["asks"] if ask["to_peer"] == "historian"]
    return str(asked[0]["correlation_id"]), scout


def act_two(on: Stage, correlation_id: str) -> None:
    title("2. Where did it go? Each step of your ask, with what proves it")
    on.run("trace", correlation_id)


def act_three(on: Stage, scout: str) -> str:
    title("3. Whatever is killed meanwhile: accepted is kept, and arrives once")
    on.tmux("kill-pane", "-t", scout)
    until("the scout is offline", lambda: not on.online("scout"))
    say("The scout is gone (its pane is closed). What you tell it now waits:")
    delivery_id = on.run("notify", "scout", "remember: main is frozen until 15:00").strip()
    on.kill_daemon()
    on.start_daemon()
    on.start_peer("scout")
    until("the note is in the scout's notebook", on.notebook.exists)
    # The mailbox keeps its order: whatever came after the note was sent after every copy of it.
    on.run("ask", "scout", "how big is docs?", "--wait", "20")
    notes = on.notebook.read_text().splitlines()
    say("The scout's notebook:")
    shown("\n".join(notes))
    if len(notes) != 1:
        raise Failed(f"the note arrived {len(notes)} times")
    say("\nThe historian never stopped; it found the new daemon by itself:")
    until("the historian is back", lambda: on.online("historian"))
    on.run("ask", "historian", "and now?", "--wait", "30")
    return delivery_id


def curtain(on: Stage, delivery_id: str) -> None:
    say("\nEach step of the note, across the kill:")
    on.run("trace", delivery_id)
    title("Where to look next")
    say("   README.md                       the first answered ask in your own repository, in five minutes")
    say("   docs/how-a-message-travels.md   what each step above means and proves")
    say("   docs/demo/peer.py               the two scripted peers")
    say("   repowire --help                 every command")


def play() -> None:
    missing = [program for program in ("tmux", "git") if shutil.which(program) is None]
    if missing:
        raise Failed(f"please install {' and '.join(missing)} first")
    started = time.monotonic()
    with stage() as on:
        say(f"Everything here is private to {on.folder} and is removed at the end.")
        correlation_id, scout = act_one(on)
        act_two(on, correlation_id)
        curtain(on, act_three(on, scout))
    say(f"\nAll of it went as told, in {time.monotonic() - started:.0f} s; nothing is left running.")


def leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    try:
        play()
    except Failed as why:
        print(f"\nThe demo failed: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
