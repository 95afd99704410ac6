"""Gates: why nothing may be typed into a pane now.

Every gate must be proved open; what cannot be told is closed. The reason is a word that the human reads in the trace.
"""

import asyncio
import os
import subprocess
from typing import Any, NamedTuple

from repowire import agents
from repowire.agents import Row, Screen, shell
from repowire.clock import Clock
from repowire.procs import Procs
from repowire.tmux import Gone, Hangs, Look, Pane

PANE_GONE, SERVER_CHANGED, AGENT_GONE = "pane_gone", "tmux_server_changed", "agent_gone"
NOT_THE_AGENT = "not_the_agent"  # in this pane, or not in the foreground there
COPY_MODE, INPUT_OFF, HANGS = "copy_mode", "input_off", "tmux_hangs"
SYNCHRONIZED = "panes_synchronized"  # Enter would go to the neighbours too
NO_BRACKETS = "no_bracketed_paste"  # where tmux tells: the program would take the newlines for typed ones
DIALOG_OPEN, DRAFT, TYPING, MID_TURN, SCREEN_UNKNOWN = "dialog_open", "draft", "typing", "mid_turn", "screen_unknown"
PANE_LEFT = "pane_left"  # it is served no more: its agent has another way in, or its ws-hook ends
SHELL_PROMPT = "shell_prompt"  # a command interpreter has the keys: it would run the text
VERDICTS = {"draft": DRAFT, "dialog": DIALOG_OPEN, "busy": MID_TURN, "unknown": SCREEN_UNKNOWN}
STATUSES = {"busy": MID_TURN, "waiting": DIALOG_OPEN}

# A human's hands rest this long before we type. tmux tells whole seconds, cut off: one more makes two of them sure.
TYPING_SECONDS = 3.0


class Wanted(NamedTuple):
    """A line of the daemon's list: a pane, and what proves that it is still the one that was meant."""

    peer_id: str
    display_name: str
    backend: str
    circle: str
    path: str | None
    pane_id: str
    tmux: str
    server_pid: int
    server_started: float
    agent_pid: int
    agent_started: float
    registry: str | None
    again: int = 0  # how often the daemon wanted it served anew

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Wanted":
        """From the daemon's row; a fact that is missing proves nothing. Raises KeyError for a row without a pane."""
        return cls(
            peer_id=row["peer_id"],
            display_name=row["display_name"],
            backend=row["backend"],
            circle=row["circle"],
            path=row.get("path"),
            pane_id=row["pane_id"],
            tmux=row["tmux"],
            server_pid=row.get("server_pid") or -1,
            server_started=row.get("server_started") or -1.0,
            agent_pid=row.get("agent_pid") or -1,
            agent_started=row.get("agent_started") or -1.0,
            registry=row.get("registry"),
            again=row.get("again") or 0,
        )


class Seen(NamedTuple):
    """What one look found: the first gate that is closed, or None, and what was looked at, as far as it came."""

    reason: str | None
    look: Look | None = None
    screen: Screen = Screen("unknown", "")

    @property
    def only_the_box(self) -> bool:
        """Every gate is open save that there is text in the input box."""
        return self.reason == DRAFT


async def look(
    wanted: Wanted, pane: Pane, procs: Procs, clock: Clock, *, at_work_too: bool = False, now: bool = False
) -> Seen:
    """Look at every gate, the cheap ones first. An agent at work is not looked at, unless `at_work_too`.

    `now`: a person said so, whose own hands need not rest.
    """
    if procs.started(wanted.server_pid) != wanted.server_started:
        return Seen(SERVER_CHANGED)
    if wanted.agent_pid == -1:
        return Seen(NOT_THE_AGENT)
    if procs.started(wanted.agent_pid) != wanted.agent_started:
        return Seen(AGENT_GONE)
    known = agents.row(wanted.backend)
    status = known.status(wanted.registry)
    if status in STATUSES and not at_work_too:
        return Seen(STATUSES[status])
    if known.plain and shell.interprets(procs.name(wanted.agent_pid) or "", procs.arguments(wanted.agent_pid)):
        return Seen(SHELL_PROMPT)
    try:
        seen = await _seen(wanted, pane, known, procs, clock, now=now)
        if seen.reason is None and known.steady_seconds and not at_work_too:
            await asyncio.sleep(known.steady_seconds)  # the wait is what is asked for: a screen that stands still
            again = await _seen(wanted, pane, known, procs, clock, now=now)
            moved = seen.look is None or again.look is None or not _same_picture(seen.look, again.look)
            return again._replace(reason=again.reason or (MID_TURN if moved else None))
    except Hangs:
        return Seen(HANGS)
    except Gone:
        return Seen(PANE_GONE)
    return seen


async def _seen(wanted: Wanted, pane: Pane, known: Row, procs: Procs, clock: Clock, *, now: bool) -> Seen:
    found = await pane.look()
    shown = known.screen(found.screen)
    return Seen(_closed(wanted, found, shown, known, procs, clock, now=now), found, shown)


def _same_picture(one: Look, other: Look) -> bool:
    return (one.screen, one.cursor, one.size) == (other.screen, other.cursor, other.size)


def _closed(
    wanted: Wanted, look: Look, shown: Screen, known: Row, procs: Procs, clock: Clock, *, now: bool
) -> str | None:
    status = known.status(wanted.registry)
    if look.server_pid != wanted.server_pid:
        return SERVER_CHANGED
    if look.dead:
        return PANE_GONE
    line = procs.ancestors(wanted.agent_pid)
    if look.pane_pid not in [pid for pid, _ in line] or not in_foreground(wanted.agent_pid):
        return NOT_THE_AGENT
    if look.in_mode:
        return COPY_MODE
    if look.input_off:
        return INPUT_OFF
    if look.synchronized:
        return SYNCHRONIZED
    if look.takes_pastes is False and not known.plain:
        return NO_BRACKETS
    if not now and clock.now() - look.typed_at < TYPING_SECONDS:
        return TYPING
    if status in STATUSES:
        return STATUSES[status]
    if shown.verdict != "ready":
        return VERDICTS[shown.verdict]
    return None if status == "idle" else SCREEN_UNKNOWN


def in_foreground(pid: int) -> bool:
    """Whether the keys of its terminal go to the process: it is not stopped, and nothing else is before it."""
    try:
        with open(f"/proc/{pid:d}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        state, group, before = fields[0].decode(), int(fields[2]), int(fields[5])
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
        command = ["/bin/ps", "-o", "state=,pgid=,tpgid=", "-p", str(pid)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.split()
        if len(told) != 3:
            return False
        state, group, before = told[0], int(told[1]), int(told[2])
    except OSError:
        return False
    return state[0] not in "TtZX" and group == before
