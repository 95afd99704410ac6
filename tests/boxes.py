"""Programs in panes of a private tmux that are named and look as an agent, and write down every byte they are sent."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conftest import Live, TmuxServer, gone, until

FAKE_BOX = Path(__file__).parent / "fake_box.py"
RECORDER = Path(__file__).parent / "recorder.py"


def program(folder: Path, name: str) -> Path:
    """An interpreter that the system knows by this name."""
    made = folder / "bin" / name
    made.parent.mkdir(exist_ok=True)
    if not made.exists():
        made.symlink_to(Path(sys.executable).resolve())
    return made


class Box:
    """A pane with a program that has Claude Code's name, its input box and its registry file, at rest."""

    def __init__(
        self, tmux: TmuxServer, folder: Path, name: str = "box", *, split: str | None = None, **environ: str
    ) -> None:
        self.tmux, self.folder = tmux, folder / name
        self.folder.mkdir()
        self.record = self.folder / "record"
        command = [str(program(folder, "claude")), "-I", "-S", str(FAKE_BOX), str(self.record)]
        if split is None:
            self.pane = tmux.window(*command, cwd=self.folder, HOME=str(folder), **environ)
        else:
            where = ("-t", split, "-c", str(self.folder), "-e", f"HOME={folder}")
            self.pane = tmux.run("split-window", "-d", "-P", "-F", "#{pane_id}", *where, *command)
        self.pid = tmux.pid(self.pane)
        self.registry = folder / ".claude" / "sessions" / f"{self.pid}.json"
        self.registry.parent.mkdir(parents=True, exist_ok=True)
        self.say("idle")
        until(Path(f"{self.record}.ready").exists)

    def say(self, status: str) -> None:
        """What the program says of itself: idle, busy or waiting."""
        self.registry.write_text(json.dumps({"status": status}))

    def say_inbox(self) -> None:
        """Have its hook say that it has an inbox; the daemon has heard it then."""
        os.kill(self.pid, signal.SIGUSR1)
        until(Path(f"{self.record}.said").exists)

    @property
    def bytes(self) -> bytes:
        """What it was sent."""
        return self.record.read_bytes()

    def times(self, words: str) -> int:
        """How often these words came in."""
        return self.bytes.count(words.encode())

    def keys(self, *keys: str) -> None:
        """What a human presses there."""
        self.tmux.run("send-keys", "-t", self.pane, *keys)


class Host:
    """A daemon that knows one private tmux, and what is in its panes."""

    def __init__(self, live: Live, tmux: TmuxServer, folder: Path) -> None:
        self.live, self.tmux, self.folder = live, tmux, folder

    def start(self, *, inbox: bool = False) -> None:
        """With panes alone, or with the inboxes of runtimes too."""
        self.live.start(REPOWIRE_DELIVERY__INBOX="true" if inbox else "false")

    def box(self, name: str = "box") -> Box:
        return Box(self.tmux, self.folder, name, REPOWIRE_HOME=str(self.live.home))

    def orphans(self) -> dict[str, dict[str, Any]]:
        found = self.live.get(f"/panes/orphans?tmux={quote(str(self.tmux.socket), safe='')}")
        return {pane["pane_id"]: pane for pane in found["panes"] if pane["tmux"] == str(self.tmux.socket)}

    def link(self, pane: str, *, expect: int = 200, **fields: Any) -> dict[str, Any]:
        fields = {"backend": "claude-code", "tmux": str(self.tmux.socket), **fields}
        answer: dict[str, Any] = self.live.post(f"/panes/{quote(pane, safe='')}/link", expect=expect, **fields)
        return answer

    def peers(self) -> dict[str, dict[str, Any]]:
        return {peer["display_name"]: peer for peer in self.live.get("/peers")["peers"]}

    def tell(self, name: str, text: str) -> str:
        return str(self.live.post("/notify", to_peer=name, text=text)["delivery_id"])

    def delivery(self, delivery_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.live.get(f"/deliveries/{delivery_id}")
        return found

    def until_state(self, delivery_id: str, *states: str) -> dict[str, Any]:
        try:
            until(lambda: self.delivery(delivery_id)["state"] in states)
        except AssertionError:
            raise AssertionError(f"not {states}: {self.delivery(delivery_id)}") from None
        return self.delivery(delivery_id)

    def ws_hooks(self) -> list[int]:
        """The processes that serve panes for this home."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and not gone(int(entry.name)):
                words: list[bytes] = []
                with suppress(FileNotFoundError, ProcessLookupError):  # it may end at any moment
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"ws-hook" in words and str(self.live.home).encode() in words:
                    found.append(int(entry.name))
        return found


@contextmanager
def hosting(live: Live, tmux: TmuxServer, folder: Path, *, inbox: bool = False) -> Iterator[Host]:
    """A host whose daemon runs; what serves its panes ends with it."""
    host = Host(live, tmux, folder)
    host.start(inbox=inbox)
    try:
        yield host
    finally:
        live.close()
        for pid in host.ws_hooks():
            os.kill(pid, signal.SIGKILL)
