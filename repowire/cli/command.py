"""What all commands share: arguments, exit codes, and how things are printed.

Whatever a peer has written passes `clean` (or `to_json`) before it meets a terminal.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from repowire import config
from repowire.cli import EXIT_CODES
from repowire.client import DaemonAway, RepowireClient
from repowire.errors import Refusal
from repowire.protocol import is_identifier

OK, FAILED, USAGE, NO_DAEMON, PENDING, INTERRUPTED = 0, 1, 2, 3, 4, 130

Json = dict[str, Any]
Run = Callable[[argparse.Namespace], int]


# -- printing ------------------------------------------------------------------
# Texts, since the few lines that need them compile them (re keeps what it compiled): start-up time.
# What counts as printable and yet shows as nothing or as a blank: joiners, fillers, selectors of a glyph's variant
BLANK = "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
# What prose may have of them, once, in its place: the blanks of languages, what makes a glyph of two, its coloured form
GLUE = "\x00-\x7f\u200b-\u200f\u2060-\u206f\ufe00-\ufe0f"
PROSE = (
    "[\xa0\u2000-\u200a\u202f\u205f\u3000]"
    f"|(?<=[^{GLUE}])[\ufe0e\ufe0f]|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    f"|(?<=[^{GLUE}])[\u200c\u200d](?=[^{GLUE}])|(?<=[^{GLUE}]\ufe0f)\u200d(?=[^{GLUE}])"
)
BREAKS = "\t\n\x0b\x0c\r\x85\u2028\u2029"

PROGRESS_SECONDS = 2.0

COLOURS = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}


def visible(text: str, spared: str = "") -> str:
    """The text with what a terminal would obey, hide or show as a blank written as escapes.

    Tabs and line ends stay, and the letters that the pattern `spared` finds.
    """
    if text.isprintable() and (text.isascii() or re.search(BLANK, text) is None):
        return text
    return _with(text, spared, _escape)


def _with(text: str, spared: str, escape: Callable[[str], str]) -> str:
    kept = {found.start() for found in re.finditer(spared, text)} if spared else set[int]()
    return "".join(one if at in kept or _shown(one) else escape(one) for at, one in enumerate(text))


def _shown(letter: str) -> bool:
    return letter in "\t\n" or (letter.isprintable() and re.match(BLANK, letter) is None)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(text: object, *, lines: bool = False) -> str:
    """What others wrote, `visible`, save what prose needs; on one line unless `lines`."""
    raw = str(text)
    if raw.isascii() and raw.isprintable():
        return raw
    return visible(raw.replace("\r\n", "\n") if lines else re.sub(f"[{BREAKS}]", " ", raw), PROSE)


def to_json(value: object) -> str:
    """JSON on one line; what `clean` would write as an escape is one of JSON's here."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable() and (text.isascii() or re.search(BLANK, text) is None):
        return text
    return _with(text, PROSE, lambda letter: json.dumps(letter)[1:-1])


def put(text: str) -> None:
    """A line on stdout, at once: the reader may be a script that waits for it."""
    data = (text + "\n").encode("utf-8", "backslashreplace")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as exc:
        exc.filename = "stdout"
        raise


@contextmanager
def before_it_is_done(*, asks: bool = False) -> Iterator[None]:
    """Around what is printed of what is still to be done: a reader that leaves (`| head`) does not prevent it.

    Unless a person will be asked whether it shall be, who has then not been shown it whole.
    """
    try:
        yield
    except BrokenPipeError:
        unread()
        if asks:
            fail("nothing was changed: what would be was not read to its end")


@contextmanager
def printing(otherwise: str) -> Iterator[None]:
    """Around what is only printed: a device that takes no more ends the command with these words about what was done.

    A reader that leaves is none.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        fail(f"{otherwise} ({exc.strerror or exc})")


def unread() -> None:
    """Nobody reads stdout any more: keep later lines, and the interpreter at its end, from failing by that."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def note(text: str) -> None:
    """A line for people, on stderr."""
    with suppress(OSError):
        print(text.encode("utf-8", "replace").decode("utf-8", "replace"), file=sys.stderr, flush=True)


def hint(text: str) -> None:
    """A line that only somebody at a terminal wants."""
    if sys.stderr.isatty():
        note(text)


@contextmanager
def progress(words: str) -> Iterator[None]:
    """Around a call that may take long: after a while, somebody at a terminal reads what it waits for."""
    import threading  # few commands need it

    timer = threading.Timer(PROGRESS_SECONDS, hint, (f"repowire: {words} …",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_terminal() -> bool:
    """Whether somebody reads stdout."""
    return sys.stdout.isatty()


def colour(text: str, name: str) -> str:
    """Coloured on a terminal, unless NO_COLOR is set."""
    if not on_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLOURS[name]}m{text}\x1b[0m"


def width_of(text: str) -> int:
    """Columns on the screen: wide letters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def cut(text: str, width: int) -> str:
    """At most `width` columns; … where something went."""
    if width_of(text) <= width:
        return text
    kept, used = "", 0
    for letter in text:
        used += width_of(letter)
        if used > width - 1:
            break
        kept += letter
    return kept + "…"


def room() -> int | None:
    """Columns to fit into; None when nobody said, as in a pipe: there nothing is cut."""
    said = os.environ.get("COLUMNS", "")
    if said.isascii() and said.isdigit() and int(said):
        return int(said)
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if on_terminal() else None


def screen() -> tuple[int | None, int]:
    """Columns and rows of the terminal now, whatever the environment says; endless where there is none."""
    size = os.get_terminal_size(sys.stdout.fileno()) if on_terminal() else os.terminal_size((0, 0))
    return size.columns or None, size.lines or sys.maxsize


def widths(cells: Sequence[Sequence[str]], limit: int | None) -> list[int]:
    """A width for each column: natural, or the widest are narrowed until a row fits, the last ones first."""
    wanted = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    if limit is None:
        return wanted
    spare = limit - 2 * (len(wanted) - 1)
    while sum(wanted) > spare and max(wanted) > 1:
        widest = max(wanted)
        wanted[len(wanted) - 1 - wanted[::-1].index(widest)] -= 1
    return wanted


def table(head: Sequence[str], rows: Sequence[Sequence[object]], paint: dict[int, Callable[[str], str]]) -> None:
    """Columns that fit the terminal; `paint` names a colour for a cell of that column."""
    cells = [list(head), *([clean("" if cell is None else cell) for cell in row] for row in rows)]
    sizes = widths(cells, room())
    for number, row in enumerate(cells):
        line = []
        for column, (cell, size) in enumerate(zip(row, sizes, strict=True)):
            short = cut(cell, size)
            padding = " " * (size - width_of(short)) if column < len(row) - 1 else ""
            shown = colour(short, paint[column](cell)) if number and column in paint else short
            line.append(shown + padding)
        text = "  ".join(line).rstrip()
        put(text if number else colour(text, "bold"))


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Name and value, a line each, without what is empty."""
    shown = [(name, clean(value)) for name, value in pairs if value not in (None, "", [], {})]
    size = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        put(f"{colour(f'{name:<{size}}', 'dim')}  {value}")


def url(host: str, port: int) -> str:
    """Where the TCP side is."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def local(moment: str | None, form: str = "%m-%d %H:%M:%S") -> str:
    """A moment of the wire on the clock of this machine."""
    from datetime import datetime

    if not moment:
        return ""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime(form)
    except ValueError:
        return clean(moment)


# -- arguments -----------------------------------------------------------------
class Formatter(argparse.RawDescriptionHelpFormatter):
    """Knows its width: argparse would import shutil for it, on every start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(room() or 80) - 2)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line that says where the help is."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        return Formatter(self.prog)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {clean(message)}; see {self.prog} --help\n")


def parser(name: str, words: str, example: str) -> Parser:
    """A command's parser: what it does, and two lines that show it."""
    return Parser(prog=f"repowire {name}", description=words, epilog=epilog(example), allow_abbrev=False)


def epilog(example: str) -> str:
    """What every help ends with."""
    return f"example:\n{example}\n\n{EXIT_CODES}"


def with_json(made: argparse.ArgumentParser) -> None:
    """Every command has it."""
    made.add_argument("--json", action="store_true", help="print the daemon's answer as JSON")


def seconds(text: str) -> float:
    """A number of seconds, not negative and not endless."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def named(text: str) -> str:
    """An id or a path, which is never empty: `wait "$ID"` where the variable was not set is a mistake."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def circle(text: str) -> str:
    """A circle's name."""
    if not is_identifier(text):
        raise argparse.ArgumentTypeError("must be 1 to 64 of the letters, digits and . _ -")
    return text


def circle_or_all(text: str) -> str:
    """A circle's name, or `*`."""
    return text if text == "*" else circle(text)


def text_of(words: str) -> str:
    """A text argument: as given, or all of stdin when it is `-`."""
    if words != "-":
        return words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")


# -- running -------------------------------------------------------------------
def run(made: argparse.ArgumentParser, argv: Sequence[str], command: Run | None = None) -> int:
    """Parse, run, and turn what went wrong into one line and an exit code."""
    try:
        with told():
            args = made.parse_args(argv)
            chosen: Run = command or args.run
            return chosen(args)
    except Exit as end:
        return end.code


class Exit(Exception):
    """The command is over; what there was to say is said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def told() -> Iterator[None]:
    """Say what went wrong in one line on stderr, and leave with its exit code."""
    try:
        yield
    except Refusal as no:
        fail(refused(no))
    except DaemonAway as away:
        more = "; it may have been taken, look with `repowire asks` or `repowire tail`" if away.asked else ""
        fail(f"{away}{more}", NO_DAEMON)
    except TimeoutError as late:
        fail(str(late) or "timed out", PENDING)
    except config.ConfigError as wrong:
        fail(str(wrong))
    except KeyError as lacking:
        fail(f"the answer lacks {lacking}: what answers is no repowire daemon, or one of another version")
    except KeyboardInterrupt:
        raise Exit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader has seen enough
        unread()
        raise Exit(FAILED) from None
    except OSError as exc:
        fail(f"{exc.filename or 'system'}: {exc.strerror or exc}")


def fail(words: str, code: int = FAILED) -> NoReturn:
    """One line on stderr, then out."""
    note(f"repowire: {clean(words)}")
    raise Exit(code)


def refused(no: Refusal) -> str:
    """The daemon's hint, with the names that come near where it knows some."""
    near = no.facts.get("near")
    names = [str(name.get("display_name", name)) if isinstance(name, dict) else str(name) for name in near or ()]
    missing = [name for name in names if name not in no.hint]
    if no.status == 401:
        return f"{no.hint}: set REPOWIRE_AUTH_TOKEN, or unset REPOWIRE_DAEMON_URL to use the Unix socket"
    if no.facts.get("field"):  # its hint says only what the field must be
        return f"{no.facts['field']}: {no.hint}"
    return no.hint + (f" (did you mean {' or '.join(missing)}?)" if missing else "")


def client(timeout: float = 30.0) -> RepowireClient:
    """The daemon of this home, or of REPOWIRE_DAEMON_URL."""
    return RepowireClient(timeout=timeout)
