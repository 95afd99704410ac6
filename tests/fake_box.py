"""A program in a pane that has Claude Code's input box and nothing behind it; it writes down every byte it is sent.

`python fake_box.py FILE`: appends what comes to FILE and makes FILE.ready when it listens. A paste or a key goes into
the box, Enter makes the box a prompt above it, Ctrl-D in the empty box ends it. At SIGUSR1 it says by its hook that it
has an inbox, FILE.inbox.
"""

import json
import os
import signal
import subprocess
import sys
import termios
import tty
from pathlib import Path

RULE = "─" * 60
HOOK = Path(__file__).parent.parent / "repowire" / "hook_stdio.py"
PASTED, ENDED = b"\x1b[200~", b"\x1b[201~"


class Box:
    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.text = ""

    def take(self, came: bytes) -> None:
        """Keys, or the text between the marks of a paste, in which a newline is a letter."""
        while came:
            if came.startswith(PASTED):
                text, _, came = came.removeprefix(PASTED).partition(ENDED)
                self.text += text.decode().replace("\r", "\n")
            elif came[:1] == b"\r":
                self.prompts.append(self.text)
                self.text, came = "", came[1:]
            else:
                self.text, came = self.text + chr(came[0]), came[1:]

    def drawn(self) -> str:
        """As Claude Code draws it: the second line of a text is indented, the cursor is a reversed cell."""
        above = [f"❯ {prompt}".replace("\n", "\n  ") + "\n\n● ok\n" for prompt in self.prompts]
        box = "❯\u00a0" + self.text.replace("\n", "\n  ") + "\x1b[7m \x1b[27m"
        return "\n".join([*above, RULE, box, RULE, "  ? for shortcuts"])


def say_inbox(file: str) -> None:
    """As a hook of the runtime does; it lets the runtime do as it likes."""
    environ = {**os.environ, "CLAUDE_PID": str(os.getpid()), "CLAUDE_CODE_MESSAGING_SOCKET": f"{file}.inbox"}
    hook = [os.path.realpath(sys.executable), "-I", "-S", str(HOOK), "claude-code", "Stop"]
    said = {"session_id": "s-1", "cwd": os.getcwd(), "hook_event_name": "Stop"}
    subprocess.run(hook, input=json.dumps(said).encode(), capture_output=True, env=environ, check=True)
    Path(f"{file}.said").touch()


def main(file: str) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: say_inbox(file))
    before = termios.tcgetattr(0)
    tty.setraw(0)
    os.write(1, b"\x1b[?2004h")
    record = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    box, came = Box(), b""
    while True:
        os.write(1, b"\x1b[?25l\x1b[0m\x1b[2J\x1b[H" + box.drawn().replace("\n", "\r\n").encode())
        Path(f"{file}.ready").touch()
        came += (chunk := os.read(0, 1 << 16))
        os.write(record, chunk)
        if chunk in (b"", b"\x04"):
            break
        if came.count(PASTED) == came.count(ENDED):  # else the end of a paste is still to come
            box.take(came)
            came = b""
    termios.tcsetattr(0, termios.TCSADRAIN, before)


if __name__ == "__main__":
    main(*sys.argv[1:])
