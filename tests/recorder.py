"""The byte recorder: a pane's program in raw mode that writes down every byte it is sent, and shows nothing of it.

`python recorder.py FILE [--no-brackets] [--screen FILE]`: appends what comes to FILE and makes FILE.ready when it
listens. With brackets it asks the terminal to mark pastes, as agents do. `--screen` draws that file's text again each
time the file changes, so that a test decides what the pane shows; it ends at the byte 0x04 alone.
"""

import os
import select
import sys
import termios
import tty
from pathlib import Path

ON, OFF = b"\x1b[?2004h", b"\x1b[?2004l"
LOOK_SECONDS = 0.01


def main(file: str, *options: str) -> None:
    screen = Path(options[options.index("--screen") + 1]) if "--screen" in options else None
    before = termios.tcgetattr(0)
    tty.setraw(0)
    os.write(1, OFF if "--no-brackets" in options else ON)
    record = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    shown = draw(screen, "")
    Path(f"{file}.ready").touch()
    while True:
        readable, _, _ = select.select([0], (), (), LOOK_SECONDS if screen else None)
        chunk = os.read(0, 1 << 16) if readable else b""
        if readable and chunk in (b"", b"\x04"):
            break
        os.write(record, chunk)
        shown = draw(screen, shown)
    termios.tcsetattr(0, termios.TCSADRAIN, before)


def draw(screen: Path | None, shown: str) -> str:
    """Show what the file says now; returns it."""
    if screen is None or not screen.exists() or (text := screen.read_text()) == shown:
        return shown
    os.write(1, b"\x1b[?25l\x1b[0m\x1b[2J\x1b[H" + text.replace("\n", "\r\n").encode())
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
