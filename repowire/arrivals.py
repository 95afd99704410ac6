"""Arrivals: how an agent's hook or MCP server says who it is, by evidence, and becomes a peer.

In this order: the process that the caller descends from, the runtime's session id, the pane. Never "the active pane",
and never a name. The facts of the environment come as headers (layout: thin edges, one brain).
"""

import os
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web

from repowire import callers, claims, ownership, peers, presence, sessions
from repowire.agents import claude_code_hooks as claude
from repowire.agents import files
from repowire.claims import Claim
from repowire.mesh import Change, Mesh
from repowire.peers import Peer
from repowire.sessions import Session

BACKEND = "claude-code"
MAX_HEADER_CHARS = 4096


class Facts(NamedTuple):
    """What a caller's environment says; `pid` and `server` are proved, with their start times."""

    session: str | None = None
    cwd: str | None = None
    pane_id: str | None = None
    tmux: str | None = None
    server_pid: int | None = None
    server_started: float | None = None
    pid: int | None = None
    started: float | None = None
    inbox: str | None = None
    inbox_token: str | None = None

    @property
    def pane_server(self) -> str | None:
        return sessions.server_name(self.tmux, self.server_pid, self.server_started)


def facts(mesh: Mesh, request: web.Request) -> Facts:
    """The headers of a hook or an MCP server, checked against the kernel's word for the caller's ancestors."""

    def header(name: str) -> str | None:
        value = request.headers.get(f"X-Repowire-{name}", "")[:MAX_HEADER_CHARS]
        return value.encode("utf-8", "replace").decode() or None  # the parser leaves what is not UTF-8 as surrogates

    socket, _, rest = (header("Tmux") or "").rpartition(",")[0].rpartition(",")
    server_pid = int(rest) if rest.isascii() and rest.isdigit() and len(rest) < 10 else None
    server_started = mesh.procs.started(server_pid) if server_pid else None
    pid, started = _agent(mesh, request, header("Agent-Pid"))
    return Facts(
        session=header("Session"),
        cwd=unquote(header("Cwd") or "", errors="replace").replace("\0", "") or None,
        pane_id=header("Pane"),
        tmux=socket or None,
        server_pid=server_pid if server_started is not None else None,
        server_started=server_started,
        pid=pid,
        started=started,
        inbox=header("Inbox"),
        inbox_token=header("Inbox-Token"),
    )


def _agent(mesh: Mesh, request: web.Request, said: str | None) -> tuple[int | None, float | None]:
    """The agent among the caller's ancestors: the nearest by its name, else the one that the environment names.

    Nobody names one above an agent: what that started would make its user's own shell an agent.
    """
    line = mesh.auth.lineage(request)
    for pid, started in line:
        if mesh.procs.name(pid) in claude.PROGRAMS:
            return pid, started
    for pid, started in line if said is not None else ():
        if str(pid) == said:
            return pid, started
        if callers.of_process(mesh, pid, started) is not None:
            break
    return None, None


def known(mesh: Mesh, request: web.Request, found: Facts) -> Peer | None:
    """The peer whose agent calls, if it is one: by its process, else by session, else by pane."""
    db = mesh.db.conn
    if found.pid is not None and found.started is not None:
        # another agent's descendant is not its parent; what a pane's own script started is whom the pane was opened for
        return peers.by_process(db, found.pid, found.started) or _wrapped(mesh, request)
    if (peer := callers.met(mesh, request)) is not None:
        return peer
    if found.session and (peer := peers.by_session(db, found.session, BACKEND)) and _current(peer):
        return peer
    lives_there = _in_pane(mesh, found)
    return lives_there if lives_there is not None and _current(lives_there) else None


def _wrapped(mesh: Mesh, request: web.Request) -> Peer | None:
    """The peer of a pane that we opened, whose first process is a script that has started its agent just now."""
    db = mesh.db.conn
    for pid, started in mesh.auth.lineage(request):
        spawn = ownership.rooted(db, pid, started)
        if spawn is not None and spawn.peer_id is not None and mesh.procs.name(pid) not in claude.PROGRAMS:
            peer = peers.find(db, spawn.peer_id)
            waits = peer is not None and (peer.agent_pid, peer.agent_started) == (pid, started)
            return peer if waits else None
    return None


def _current(peer: Peer) -> bool:
    return peer.retired_at is None and peer.hidden_at is None and peer.agent_pid is None


def _in_pane(mesh: Mesh, found: Facts) -> Peer | None:
    """Who lives or lived last in the pane that the facts prove."""
    if found.pane_id is None or found.tmux is None or found.server_pid is None or found.server_started is None:
        return None
    rows = sessions.in_pane(mesh.db.conn, found.tmux, found.server_pid, found.server_started, found.pane_id)
    return peers.find(mesh.db.conn, rows[0].peer_id) if rows else None


def arrive(
    change: Change, mesh: Mesh, request: web.Request, found: Facts, said: claude.Said
) -> tuple[Peer, Session | None]:
    """The peer that the caller is, made or brought up to date where something of it is new; and the session that it
    lived in before, where it comes back in another process.

    To be followed by `claims.watch`.
    """
    session = said.session or found.session
    path = said.cwd or found.cwd
    met = peer = known(mesh, request, found)
    last = None
    another = session is not None and peer is not None and peer.session != session
    if peer is None or another or (found.pane_id and peer.pane_id != found.pane_id):
        claim = Claim(
            name=None,
            backend=BACKEND,
            circle_source="tmux" if found.pane_id else "fallback",
            path=peer.path if peer and peer.path else os.path.normpath(path) if path else None,
            pane_id=found.pane_id,
            pane_server=found.pane_server,
            agent_pid=found.pid,
            agent_started=found.started,
            metadata={"hook_session_id": session} if session else {},
        )
        proved, newest = peer or _returned(mesh, found, claim), peers.newest(change.db)
        peer, _ = claims.register(
            change, _named(proved, claim), circles=mesh.config.mesh.circles, connected=True, proved=proved
        )
        if met is None and peer.seq <= newest:
            last = sessions.find(change.db, peer.peer_id)
    _bind(change, mesh, peer, found, said, session)
    return peer, last


def _named(proved: Peer | None, claim: Claim) -> Claim:
    """Where the folder is no name (it is the root, or none is known) the backend is one."""
    if proved is None and claim.path in (None, "/", "//"):
        return replace(claim, name=BACKEND)
    return claim


def _returned(mesh: Mesh, found: Facts, claim: Claim) -> Peer | None:
    """Who lived last in the very pane and folder, and lives no more (wire.md 16, row 8: pane proof)."""
    db, last = mesh.db.conn, _in_pane(mesh, found)
    if last is None or last.backend != BACKEND or last.path != claim.path:
        return None
    if claim.session and peers.by_session(db, claim.session, BACKEND) is not None:
        return None  # it resumes a session, which is a better word for who it is
    gone = presence.of(db, last.peer_id) == presence.OFFLINE
    return last if gone and not presence.reachable(db, last.peer_id) else None


def _bind(change: Change, mesh: Mesh, peer: Peer, found: Facts, said: claude.Said, session: str | None) -> None:
    """Note the ways into its session. What an event does not say stays as it was."""
    given = {
        "session": session,
        "transcript": said.transcript,
        "mode": said.mode,
        "inbox": found.inbox,
        "inbox_token": found.inbox_token,
        "registry": claude.registry(said.transcript, found.pid),
        "tmux": found.tmux,
        "server_pid": found.server_pid,
        "server_started": found.server_started,
        "pane_id": found.pane_id,
    }
    if said.mode is None and found.pid is not None and said.source in ("startup", "resume", "fork"):
        given["mode"] = claude.BYPASS if claude.bypasses(mesh.procs.arguments(found.pid)) else None
    if said.source is not None and (named := claude.settings_files(said.transcript, said.cwd or found.cwd)):
        given["inbound"] = claude.inbound([_text_of(file) for file in named])
    sessions.bind(change, peer.peer_id, **{name: fact for name, fact in given.items() if fact is not None})


def _text_of(file: str) -> str:
    try:
        return files.text_of(file)
    except OSError:
        return ""


def caller(mesh: Mesh, request: web.Request) -> Peer:
    """On whose behalf a request speaks: the agent's peer, made where it is not one yet, or the human's. 403 as
    `callers.calling`."""
    found = facts(mesh, request)
    peer = known(mesh, request, found)
    if peer is not None:
        return peer
    if found.pid is None and found.session is None:
        callers.calling(mesh, request)  # 403 where nobody knows who it is: that is not the human
        return callers.human(mesh)
    with mesh.change() as change:
        peer, _ = arrive(change, mesh, request, found, claude.Said(source="startup"))
    claims.watch(mesh, peer)
    return peer
