"""tmux: look at a pane, paste into it, press Enter; several servers at once, each known by socket, process and start.

No byte goes into a pane unless tmux itself, in the turn of its one thread in which it writes, finds that the server,
the pane and its process are those that were looked at, that the pane shows no mode of tmux, and that its input is on
and its own. libtmux's runner has neither an input nor a time limit, and a hanging server must not hang us, so tmux's
own commands are run here, in one call for all of a look; nobody else runs them.
"""

import asyncio
import os
import re
import secrets
import stat
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
        """One call; its exit code and what it said. Raises Gone when no server answers, Hangs when it does not."""
        code, said, words = await _call(self.server.socket, *arguments, stdin=stdin)
        if code and any(sign in words for sign in NOBODY):
            raise Gone(words.strip())
        return code, said


# -- windows: opened and closed ----------------------------------------------------


class Opened(NamedTuple):
    """A pane whose program was started just now."""

    socket: str  # as the server itself calls it, and so the programs in it
    server_pid: int
    session: str
    window: str  # its index
    pane_id: str
    pane_pid: int


class Found(NamedTuple):
    """A pane that was looked for by its command."""

    server_pid: int
    pane_id: str
    pane_pid: int
    dead: bool


_FOUND = "#{pid}|#{pane_id}|#{pane_pid}|#{pane_dead}|#{pane_start_command}"
_OPENED = "#{pid}|#{session_name}|#{window_index}|#{pane_id}|#{pane_pid}|#{socket_path}"
SIZE = ("-x", "200", "-y", "50")  # of a session that nobody looks at yet
TRIES = 3  # somebody else may make or end the session between two calls


class Failed(Exception):
    """tmux cannot do it; in its words."""


def default_socket() -> str:
    """Where the user's own tmux listens, as tmux itself finds it."""
    return os.path.join(os.environ.get("TMUX_TMPDIR") or "/tmp", f"tmux-{os.getuid()}", "default")


async def open_window(socket: str, session: str, name: str, folder: str, command: Sequence[str]) -> Opened:
    """Run a command in a window of its own, in the background; session and server are made where there are none.

    Session and name are letters, digits, `_` and `-`. Raises Failed, or Hangs: then the window may come yet.
    """
    where = ("-n", name, "-c", _word(_literal(folder)), "-P", "-F", _OPENED, "-d")
    words = ""
    for _ in range(TRIES):
        code, _, words = await _call(socket, "has-session", "-t", f"={session}")
        if code == 0:
            code, said, words = await _call(socket, "new-window", "-t", f"={session}:", *where, *map(_word, command))
        else:
            code, said, words = await _call(socket, "new-session", "-s", session, *SIZE, *where, *map(_word, command))
        if code == 0 and (made := _opened(said)) is not None:
            return made
    raise Failed(words.strip() or "tmux did not say which pane it opened")


async def respawn(server: Server, pane_id: str, pane_pid: int, folder: str, command: Sequence[str]) -> Opened | None:
    """Run a command in a pane whose program, that very one, has ended and which remains. None when there is none of it.

    That it has ended is for the caller to prove: tmux hears of it a moment later, and would end one that has not.
    """
    line = " ".join(["respawn-pane", "-k", "-t", pane_id, "-c", _quoted(_literal(folder)), *map(_quoted, command)])
    if not await _if_it_is(server, pane_id, pane_pid, line):
        return None
    _, said, _ = await _call(server.socket, "display-message", "-p", "-t", pane_id, _OPENED)
    return _opened(said)


def _opened(said: str) -> Opened | None:
    facts = said.rstrip("\n").split("|", 5)
    if len(facts) < 6:
        return None
    return Opened(facts[5], _number(facts[0]), facts[1], facts[2], facts[3], _number(facts[4]))


async def find(socket: str, *words: str) -> list[Found]:
    """The panes whose command has these words in it, alive or dead; none where no server answers. Raises Hangs."""
    code, said, _ = await _call(socket, "list-panes", "-a", "-F", _FOUND)
    found = []
    for line in said.splitlines() if code == 0 else []:
        facts = line.split("|", 4)
        if len(facts) == 5 and all(word in facts[4] for word in words):
            found.append(Found(_number(facts[0]), facts[1], _number(facts[2]), facts[3] not in ("", "0")))
    return found


async def shown(server: Server, pane_id: str) -> tuple[str, int | None]:
    """What a pane shows, without colours, and with what status its program ended, if it did."""
    _, said, _ = await _call(
        server.socket,
        *("display-message", "-p", "-t", pane_id, "#{pane_dead_status}", ";"),
        *("capture-pane", "-p", "-J", "-S", "-50", "-t", pane_id),
    )
    status, _, screen = said.partition("\n")
    return screen, int(status) if status.isdigit() else None


async def remain(server: Server, pane_id: str, pane_pid: int, *, on: bool) -> bool:
    """Let the pane stand when its program ends, with what it shows; or as its user set it. False when it is gone."""
    does = f"set-option -p -t {pane_id} remain-on-exit on" if on else f"set-option -p -u -t {pane_id} remain-on-exit"
    return await _if_it_is(server, pane_id, pane_pid, does)


async def kill_pane(server: Server, pane_id: str, pane_pid: int) -> bool:
    """Close that very pane, dead or alive; False when there is none of it. A window and a session end with the last."""
    return await _if_it_is(server, pane_id, pane_pid, f"kill-pane -t {pane_id}")


async def _if_it_is(server: Server, pane_id: str, pane_pid: int, does: str) -> bool:
    """Do it where server, pane and process are the very ones, in one turn of the server's thread."""
    if not PANE_ID.fullmatch(pane_id):
        raise ValueError(f"{pane_id!r} is no pane id of tmux")
    conditions = [
        f"#{{==:#{{pid}},{server.pid}}}",
        f"#{{==:#{{pane_id}},{pane_id}}}",
        f"#{{==:#{{pane_pid}},{pane_pid}}}",
    ]
    whole = "1"
    for condition in conditions:
        whole = f"#{{&&:{condition},{whole}}}"
    # said first: with its last pane the server ends, and says no more
    code, said, words = await _call(
        server.socket,
        "if-shell",
        "-F",
        "-t",
        pane_id,
        whole,
        f"display-message -p done ; {does}",
        "display-message -p no",
    )
    if said == "done\n" and code and not any(sign in words for sign in NOBODY):
        raise Failed(words.strip())
    return said == "done\n"


def _literal(text: str) -> str:
    """A text that tmux would take for a format, in which `#(…)` is a command."""
    return text.replace("#", "##")


def _word(text: str) -> str:
    """An argument as tmux shall have it: it takes the last `;` of one for the end of its command."""
    return f"{text[:-1]}\\;" if text.endswith(";") else text


def _quoted(text: str) -> str:
    """A word inside a line that tmux parses."""
    return "'" + text.replace("'", "'\\''") + "'"


# -- all panes of a server -------------------------------------------------------


class Listed(NamedTuple):
    """A pane as its server lists it. What was chosen by people (session, path) is for people."""

    socket: str
    server_pid: int
    pane_id: str
    pane_pid: int
    dead: bool
    window: int
    session: str
    path: str  # the folder of the program in its foreground; to ask for its name too costs tmux half as much again


_LISTED = ("pid", "pane_id", "pane_pid", "pane_dead", "window_index", "session_name")
_BETWEEN = "\u241f"  # stands in no number, and seldom in a name; only the words after the numbers could be cut wrongly


async def panes_of(socket: str) -> list[Listed]:
    """Every pane of the server behind a socket, in one call. Raises Gone or Hangs."""
    begins = secrets.token_hex(8)  # a folder's name may hold a newline, and after it what looks like another pane
    words = _BETWEEN.join([begins, *(f"#{{{fact}}}" for fact in (*_LISTED, "pane_current_path"))])
    code, said, _ = await _call(socket, "list-panes", "-a", "-F", words)
    if code != 0:
        raise Gone(f"no tmux on {socket} lists its panes")
    found: dict[str, Listed] = {}  # a window that is linked into several sessions is listed for each of them
    for line in said.removesuffix("\n").split(f"\n{begins}{_BETWEEN}"):
        fields = line.removeprefix(f"{begins}{_BETWEEN}").split(_BETWEEN, len(_LISTED))
        if len(fields) == len(_LISTED) + 1 and PANE_ID.fullmatch(fields[1]):
            pid, _, pane_pid, dead, window, session, path = fields
            listed = Listed(
                socket,
                _number(pid),
                pane_id := fields[1],
                _number(pane_pid),
                dead == "1",
                _number(window),
                session,
                path,
            )
            found.setdefault(pane_id, listed)
    return list(found.values())


def sockets_of_user() -> list[str]:
    """The sockets in this user's tmux folder, whether a server is behind them or not; one of another user is left."""
    folder = os.path.dirname(default_socket())
    try:
        return sorted(path for name in os.listdir(folder) if is_socket(path := os.path.join(folder, name)))
    except OSError:
        return []


def is_socket(path: str) -> bool:
    """Whether it is a socket of ours."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a path may hold what no path may
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()


# -- calls --------------------------------------------------------------------------

NOBODY = ("no server running", "error connecting", "lost server", "server exited")


async def _call(socket: str, *arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    """One call; its exit code, what it said, and what it complained of. Raises Hangs.

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
                socket,
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
            raise Hangs(f"the tmux on {socket} does not answer") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        return code, _all_of(said), _all_of(complained)


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1
