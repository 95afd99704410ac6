"""tmux: look at a pane, paste into it, press Enter; several servers at once, each known by socket, process and start.

No byte goes into a pane unless tmux itself, in the turn of its one thread in which it writes, finds that the server,
the pane and its process are those that were looked at, that the pane shows no mode of tmux, and that its input is on
and its own. libtmux's runner has neither an input nor a time limit, and a hanging server must not hang us, so tmux's
own commands are run here, in one call for all of a look; nobody else runs them.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, NamedTuple

PROGRAM = "tmux"
PATIENCE_SECONDS = 2.0  # for one call; a call takes 4 to 10 ms
HISTORY_LINES = 2_000
PANE_ID = re.compile(r"%\d{1,9}")
ENTER = "Enter"


class Hangs(Exception):
    """The server did not answer in time. What was asked may yet be done, save a paste, which needs us to live."""


class Gone(Exception):
    """No such server, or no such pane in it."""


class Server(NamedTuple):
    """A server; another one on the same socket is another, though its panes be called the same."""

    socket: str
    pid: int
    started: float  # in the words of `procs`; here it is only carried


class Look(NamedTuple):
    """A pane as it was at one moment."""

    server_pid: int
    pane_pid: int
    dead: bool
    in_mode: bool  # copy mode, view mode, a chooser: keys go to tmux and not to the program
    input_off: bool
    synchronized: bool  # keys go to its neighbours too
    takes_pastes: bool | None  # whether its program asked for brackets around them; None where tmux does not tell
    cursor: tuple[int, int]  # column and row
    size: tuple[int, int]
    typed_at: int  # unix seconds, cut off: the last sign of a human whose keys go to this pane; 0 when there is none
    screen: str  # with its colours; with its history, when that was asked for


_FACTS = (
    "pid",
    "pane_id",
    "pane_pid",
    "pane_dead",
    "pane_in_mode",
    "pane_input_off",
    "pane_synchronized",
    "bracket_paste_flag",  # since tmux 3.7; empty before
    "cursor_x",
    "cursor_y",
    "pane_width",
    "pane_height",
)
_FORMAT = "|".join(f"#{{{fact}}}" for fact in _FACTS)
_CLIENT = "client #{client_activity} #{pane_id}"
_SCREEN = "screen"


class Pane:
    """One pane of one server. What is asked of it is done one after the other."""

    def __init__(self, server: Server, pane_id: str, *, owner: str) -> None:
        """`owner` names the buffer of its pastes, so that two programs of ours never share one."""
        if not PANE_ID.fullmatch(pane_id):
            raise ValueError(f"{pane_id!r} is no pane id of tmux")
        self.server, self.pane_id = server, pane_id
        self._buffer = f"repowire-{re.sub('[^A-Za-z0-9]', '', owner)[:16]}-{pane_id[1:]}"
        self._lock = asyncio.Lock()

    async def look(self, *, history: bool = False) -> Look:
        """The pane now, in one call. Raises Gone or Hangs."""
        capture = ["capture-pane", "-p", "-e", *(["-J", "-S", str(-HISTORY_LINES)] if history else [])]
        async with self._lock:
            code, said = await self._run(
                *("display-message", "-p", "-t", self.pane_id, _FORMAT, ";"),
                *("list-clients", "-F", _CLIENT, ";"),
                *("display-message", "-p", _SCREEN, ";"),
                *(*capture, "-t", self.pane_id),
            )
        head, _, screen = said.partition(f"{_SCREEN}\n")
        lines = head.splitlines()
        facts = dict(zip(_FACTS, lines[0].split("|"), strict=False)) if lines else {}
        if code != 0 and facts.get("pid", "").isdigit() and int(facts["pid"]) != self.server.pid:
            raise Gone(f"another tmux (process {facts['pid']}) has the socket {self.server.socket}")
        if code != 0 or facts.get("pane_id") != self.pane_id:
            raise Gone(f"tmux has no pane {self.pane_id}")
        clients = [line.split() for line in lines[1:] if line.startswith("client ")]
        flag = facts["bracket_paste_flag"]
        return Look(
            server_pid=_number(facts["pid"]),
            pane_pid=_number(facts["pane_pid"]),
            dead=facts["pane_dead"] not in ("", "0"),
            in_mode=facts["pane_in_mode"] not in ("", "0"),
            input_off=facts["pane_input_off"] not in ("", "0"),
            synchronized=facts["pane_synchronized"] not in ("", "0"),
            takes_pastes=flag == "1" if flag else None,
            cursor=(_number(facts["cursor_x"]), _number(facts["cursor_y"])),
            size=(_number(facts["pane_width"]), _number(facts["pane_height"])),
            typed_at=max((int(at) for _, at, pane in clients if pane == self.pane_id), default=0),
            screen=screen,
        )

    async def paste(self, text: str, look: Look) -> bool:
        """Paste the text letter for letter; False when the pane is not as it was in the look: then nothing was pasted.

        A newline goes as the newline it is (`-r`): tmux would send the byte of Enter, and a program that did not ask
        for brackets around a paste would take each line for submitted. After Hangs nobody knows whether it came.
        """
        does = f"paste-buffer -p -r -d -b {self._buffer} -t {self.pane_id} ; display-message -p done"
        return await self._guarded(
            does, look, before=("load-buffer", "-b", self._buffer, "-", ";"), stdin=text.encode("utf-8", "replace")
        )

    async def enter(self, look: Look, shows: str = "") -> bool:
        """Press Enter; False when the pane is not as it was in the look or does not show `shows`: nothing was done.

        `shows` is letters, digits and blanks on one line of the screen. After Hangs nobody knows what became of it.
        """
        return await self._guarded(f"send-keys -t {self.pane_id} {ENTER} ; display-message -p done", look, shows)

    async def _guarded(
        self, does: str, look: Look, shows: str = "", before: Sequence[str] = (), stdin: bytes | None = None
    ) -> bool:
        """Look again and do it, in one turn of the server's thread."""
        drop = f"delete-buffer -b {self._buffer}" if before else "display-message -p refused"
        async with self._lock:
            code, said = await self._run(
                *before, *("if-shell", "-F", "-t", self.pane_id), self._unchanged(look, shows), does, drop, stdin=stdin
            )
        return code == 0 and said == "done\n"

    def _unchanged(self, look: Look, shows: str) -> str:
        if not re.fullmatch(r"[\w ]*", shows):
            raise ValueError(f"{shows!r} would mean something to tmux")
        conditions = [
            f"#{{==:#{{pid}},{self.server.pid}}}",
            f"#{{==:#{{pane_id}},{self.pane_id}}}",
            f"#{{==:#{{pane_pid}},{look.pane_pid}}}",
            *(f"#{{?{fact},0,1}}" for fact in ("pane_dead", "pane_in_mode", "pane_input_off", "pane_synchronized")),
            *([f"#{{?#{{C:{shows}}},1,0}}"] if shows else []),
        ]
        whole = conditions.pop()
        while conditions:
            whole = f"#{{&&:{conditions.pop()},{whole}}}"
        return whole

    async def _run(self, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
        """One call; its exit code and what it said. Raises Gone when no server answers, Hangs when it does not.

        Files and no pipes: a hanging server holds the ends that its client passed on to it, and a pipe would not end.
        """
        with TemporaryFile() as given, TemporaryFile() as said, TemporaryFile() as complained:
            if stdin is not None:
                given.write(stdin)
                given.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    PROGRAM,
                    "-u",  # else what is no ASCII comes back as "_" where the locale is C
                    "-S",
                    self.server.socket,
                    *arguments,
                    stdin=given,
                    stdout=said,
                    stderr=complained,
                )
            except OSError as error:
                raise Gone(f"{PROGRAM} cannot be run: {error.strerror}") from None
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    code = await process.wait()
            except TimeoutError:
                raise Hangs(f"the tmux on {self.server.socket} does not answer") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await asyncio.shield(process.wait())
            words = _all_of(complained)
            if code and any(
                sign in words for sign in ("no server running", "error connecting", "lost server", "server exited")
            ):
                raise Gone(words.strip())
            return code, _all_of(said)


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1
