"""Resumption: whether a runtime session can be gone on with, and by whom it is held.

A session has one living holder: a second agent on it would write into the same transcript, and each would take the
other's turns for its own (field.md B 26). So whoever resumes one looks first for a process that has it.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import NamedTuple

from repowire import agents, peers, sessions
from repowire.agents import claude_code_hooks as claude
from repowire.agents import files, runs
from repowire.agents.turns import READERS
from repowire.mesh import Mesh
from repowire.peers import Peer
from repowire.procs import Process, Procs


class Resume(NamedTuple):
    """How to go on with a session: the arguments, or why that is not to be had."""

    session: str | None
    arguments: list[str]
    why_not: str | None = None
    warning: str | None = None


def resume_of(backend: str, session: str | None, transcript: str | None) -> Resume:
    """By the agent's facts and what lies on the disk. Looks at a file's status."""
    run = runs.RUNS.get(backend)
    if run is None or not run.resume:
        return Resume(session, [], f"{backend} cannot be resumed by a session's id")
    if session is None:
        return Resume(None, [], "its runtime session is not known: its hooks have not spoken yet")
    if not runs.SESSION.fullmatch(session):  # whoever registered it chose these letters
        return Resume(session, [], "what it calls its session is no session's id: letters, digits, _ and - alone")
    if transcript is None:
        return Resume(session, run.resumed(session), warning="whether the session can be found is the agent's to say")
    try:
        told = os.stat(transcript).st_size > 0
    except (OSError, ValueError):  # a path may hold what no path may
        told = False
    if not told:
        return Resume(session, [], f"the session has no transcript yet, or it is gone ({transcript})")
    return Resume(session, run.resumed(session))


async def holders(mesh: Mesh, backend: str, session: str, transcript: str | None, without: int | None) -> list[int]:
    """The processes that live in a session, but for one that is about to end and what that started."""
    found = {
        peer.agent_pid
        for peer in peers.in_runtime_session(mesh.db.conn, session, backend)
        if peer.agent_pid is not None and lives(mesh, peer)
    }
    moved_on = {peer.agent_pid for peer in peers.listed(mesh.db.conn) if peer.session not in (None, session)}
    found |= await asyncio.to_thread(_unknown, mesh.procs, backend, session, transcript) - moved_on
    of_its_own = {pid for pid in found if without is not None and without in map(_pid, mesh.procs.ancestors(pid))}
    return sorted(found - of_its_own)


def _pid(process: Process) -> int:
    return process[0]


def _unknown(procs: Procs, backend: str, session: str, transcript: str | None) -> set[int]:
    """Those that any program shows: by the runtime's registry, its command line, or its open transcript. For a thread.

    A command line is no word against the registry: an agent that was started on a session may have gone to another.
    """
    if transcript is None and backend in READERS:
        transcript = READERS[backend].find(session, None)
    said = _registered(Path(claude.config_dir(transcript) or claude.usual_dir(), "sessions"))
    found = set()
    for pid, running in procs.all().items():
        if backend == "claude-code" and pid in said:
            # a file outlives the process that was killed, and its number may be another program's by now
            holds = said[pid] == session and running.name in claude.PROGRAMS
        elif agents.backend_of(running.name) == backend or agents.runs_scripts(running.name):
            words = procs.arguments(pid)
            holds = agents.backend_of(running.name, words) == backend and (
                session in words or (transcript is not None and procs.opens(pid, transcript))
            )
        else:
            holds = False
        if holds:
            found.add(pid)
    return found


def lives(mesh: Mesh, peer: Peer) -> bool:
    """Whether its very process is there, whatever can be said to it."""
    return (
        peer.agent_pid is not None
        and peer.agent_started is not None
        and mesh.procs.alive(peer.agent_pid, peer.agent_started)
    )


def _registered(folder: Path) -> dict[int, str]:
    """The sessions that the registry files name, by process."""
    found = {}
    for file in folder.glob("*.json") if folder.is_dir() else ():
        try:
            said = json.loads(files.text_of(str(file)))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(said, dict) and isinstance(said.get("pid"), int) and isinstance(said.get("sessionId"), str):
            found[said["pid"]] = said["sessionId"]
    return found


def place_of(mesh: Mesh, peer: Peer) -> tuple[str | None, str | None]:
    """The runtime session that a peer lives in or lived in last, and its transcript."""
    row = sessions.find(mesh.db.conn, peer.peer_id)
    session = row.session if row is not None and row.session is not None else peer.session
    return session, row.transcript if row is not None and row.session == session else None
