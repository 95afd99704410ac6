"""Claude Code in a pane: what its screen shows and what it says of itself (seen with 2.1.330 and 2.1.197).

Its input box stands between the last two rules of the screen: `❯`, a no-break space, the text, the cursor as a
reversed cell. Only a box that is provably empty, at an agent that is not at work, is `ready`; whatever is not
recognised is `unknown`.

Seen: the prompt sign is grey while a turn runs; the cursor is missing while the keys go elsewhere (history search, the
list of background tasks); a hint in the empty box is dim and its first letter is the cursor; dialogs have no such box;
`!` stands in place of the sign in shell mode; a long box is cut above, and its upper rule says "↑ 5 more"; a paste of
some size is shown as `[Pasted text #1 +13 lines]`, the number being that of its newlines. A newline that is typed goes
into the box and submits nothing, with brackets around it or without.
"""

import json
import re
from typing import NamedTuple

from repowire.agents import files

SGR = re.compile(r"\x1b\[([0-9;]*)m")
OTHER_ESCAPES = re.compile(r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)|\[[0-9;?]*[A-Za-ln-z]|[()][A-Z0-9]|[\x0e\x0f])")
RULE = re.compile(r"─{10,}|─{3,} [^─]{1,80} ─{3,}")
MORE = re.compile(r"↑ \d+ more")
FOLD = re.compile(r"\[Pasted text #\d+(?: \+(\d+) lines)?\]")
SIGN, SHELL_SIGN, INDENT = "❯\u00a0", "!\u00a0", "  "
DIALOG = re.compile(r"\b(?:Esc|Enter|Space)(?:/\w+)* to (?:cancel|close|confirm|select|continue|save|go back|use)\b")
AT_WORK = re.compile(r"\besc to interrupt\b")
LINES_OF_A_DIALOG_S_END = 4
# "shell" is an agent at rest whose background command still runs: its turn is over, and no hook will end it
STATUS = {"idle": "idle", "shell": "idle", "busy": "busy", "waiting": "waiting"}


class Screen(NamedTuple):
    """What a pane shows: `ready`, `draft`, `dialog`, `busy` or `unknown`; `box` is the text in the input box.

    A box whose beginning is cut off begins with `…`."""

    verdict: str
    box: str


class Cell(NamedTuple):
    """One character and how it is drawn."""

    letter: str
    reversed: bool
    dim: bool
    coloured: bool  # not in the terminal's own foreground


# -- the screen ------------------------------------------------------------------


def screen(capture: str) -> Screen:
    """What a capture with its colours (`capture-pane -e`) shows."""
    lines = _cells(capture)
    plain = ["".join(cell.letter for cell in line).rstrip(" ") for line in lines]
    rules = [at for at, line in enumerate(plain) if RULE.fullmatch(line)]
    end = " ".join([line for line in plain if line.strip()][-LINES_OF_A_DIALOG_S_END:])
    if len(rules) < 2 or rules[-1] - rules[-2] < 2:
        return Screen("dialog" if DIALOG.search(end) else "unknown", "")
    top, bottom = rules[-2], rules[-1]
    if set(plain[bottom]) != {"─"}:
        return Screen("unknown", "")
    below = " ".join(plain[bottom + 1 :])
    if DIALOG.search(below):
        return Screen("dialog", "")
    first = plain[top + 1]
    if MORE.search(plain[top]):
        return Screen("draft", "…" + _text(plain[top + 1 : bottom]))
    if first.startswith(SHELL_SIGN) or first == SHELL_SIGN.rstrip():
        return Screen("draft", first)
    if not first.startswith(SIGN):
        return Screen("unknown", "")
    return _box(lines[top + 1 : bottom], plain[top + 1 : bottom], at_work=bool(AT_WORK.search(below)))


def _box(lines: list[list[Cell]], plain: list[str], *, at_work: bool) -> Screen:
    sign, shown = lines[0][0], lines[0][len(SIGN) :]
    busy = at_work or sign.coloured
    if len(lines) > 1:
        return Screen("draft", _text([plain[0].removeprefix(SIGN), *plain[1:]]))
    if not shown or not shown[0].reversed:
        text = plain[0].removeprefix(SIGN)
        return (
            Screen("draft", text) if text.strip() else Screen("unknown", "")
        )  # without a cursor the keys go elsewhere
    rest = [cell for cell in shown[1:] if cell.letter != " "]
    if shown[0].letter == " " and not rest:
        return Screen("busy" if busy else "ready", "")
    if rest and all(cell.dim and not cell.reversed for cell in rest):
        return Screen("busy" if busy else "ready", "")  # a hint
    return Screen("draft", plain[0].removeprefix(SIGN))


def _text(lines: list[str]) -> str:
    return "\n".join(
        line.removeprefix(INDENT) if at or line.startswith(INDENT) else line for at, line in enumerate(lines)
    )


def _cells(capture: str) -> list[list[Cell]]:
    """The lines as cells; a drawing goes on over the end of a line, where blanks that are only reversed are cut off."""
    reversed_, dim, coloured = False, False, False
    lines = []
    for line in OTHER_ESCAPES.sub("", capture).split("\n"):
        cells: list[Cell] = []
        at = 0
        for mark in SGR.finditer(line):
            cells += [Cell(letter, reversed_, dim, coloured) for letter in line[at : mark.start()]]
            at = mark.end()
            reversed_, dim, coloured = _drawn(mark[1], reversed_, dim, coloured)
        cells += [Cell(letter, reversed_, dim, coloured) for letter in line[at:]]
        if reversed_:
            cells.append(Cell(" ", True, dim, coloured))
        lines.append(cells)
    return lines


def _drawn(codes: str, reversed_: bool, dim: bool, coloured: bool) -> tuple[bool, bool, bool]:
    numbers = [int(code or 0) for code in codes.split(";")]
    while numbers:
        number = numbers.pop(0)
        if number in (38, 48) and numbers:
            kind = numbers.pop(0)
            del numbers[: {5: 1, 2: 3}.get(kind, 0)]
            coloured = coloured or number == 38
        elif number == 0:
            reversed_ = dim = coloured = False
        elif number in (7, 27):
            reversed_ = number == 7
        elif number in (2, 22):
            dim = number == 2
        elif 30 <= number <= 37 or 90 <= number <= 97:
            coloured = True
        elif number == 39:
            coloured = False
    return reversed_, dim, coloured


# -- our own text in it ------------------------------------------------------------


def holds(box: str, text: str, fresh: bool) -> bool:
    """Whether the box holds exactly this text; how it was wrapped does not count.

    `fresh` says that it was pasted just now into an empty box: then a paste that is folded, or whose beginning is cut
    off, is ours too.
    """
    seen, ours = squeezed(box), squeezed(text)
    if seen == ours:
        return bool(ours)
    if not fresh:
        return False
    if (fold := FOLD.fullmatch(box.strip())) is not None:
        return int(fold[1] or 0) == text.count("\n")
    end = squeezed(text.rpartition("\n")[2])
    return box.startswith("…") and ours.endswith(seen[1:]) and seen.endswith(end)


def submitted(capture: str, code: str) -> bool:
    """Whether the block of this code stands there as a prompt that was sent (a blank after its sign, and no box)."""
    plain = OTHER_ESCAPES.sub("", SGR.sub("", capture))
    return any(line.lstrip().startswith(f"❯ [repowire {code}]") for line in plain.split("\n"))


def squeezed(text: str) -> str:
    """The text without what a terminal's width does to it."""
    return re.sub(r"\s+", "", text)


# -- what it says of itself --------------------------------------------------------


def registry_status(path: str | None) -> str | None:
    """`idle`, `busy` or `waiting`, from its file in ~/.claude/sessions; None when it does not say."""
    try:
        said = json.loads(files.text_of(path)) if path else None
    except (OSError, ValueError, RecursionError):
        return None
    status = said.get("status") if isinstance(said, dict) else None
    return STATUS.get(status) if isinstance(status, str) else None
