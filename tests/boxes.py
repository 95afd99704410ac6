"""Programs in panes of a private tmux that are named and look as an agent, and write down every byte they are sent."""

import json
import sys
from pathlib import Path

from conftest import TmuxServer, until

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

    def __init__(self, tmux: TmuxServer, folder: Path, name: str = "box", *, split: str | None = None) -> None:
        self.tmux, self.folder = tmux, folder / name
        self.folder.mkdir()
        self.record = self.folder / "record"
        command = [str(program(folder, "claude")), "-I", "-S", str(FAKE_BOX), str(self.record)]
        if split is None:
            self.pane = tmux.window(*command, cwd=self.folder, HOME=str(folder))
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
