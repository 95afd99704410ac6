"""Tool gates: an agent's hook asks before a tool runs, or while its own dialog is open, and gets a human's verdict.

The hook's script (`gate_stdio.py`) refuses the tool wherever no clear answer of ours comes. Which calls wait, and who
may answer, `policy` and `questions` say; how an event is read and answered is a row of GATES, one an agent and event.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiohttp import web

from repowire import arrivals, blocking, claims, hooks, peers, presence, wire
from repowire.agents import claude_code_gates as claude
from repowire.agents.claude_code_hooks import Said, parse
from repowire.blocking import Draft
from repowire.choices import ALLOW, CALL_MOST_BYTES, TOOL_PERMISSION, Option
from repowire.errors import not_found
from repowire.hooks import Heard
from repowire.mesh import MESH, Change
from repowire.questions import Question

ALIVE = b"HTTP/1.1 102 Processing\r\n\r\n"  # tells a script that waits from one whose daemon hangs
ALIVE_SECONDS = 5.0
OPTIONS = (Option(ALLOW, "Allow"), Option("deny", "Deny"))
TOOL_CHARS = 256
WAITS = "X-Repowire-Waits"  # seconds that the runtime lets its hook wait
VERDICT = "X-Repowire-Verdict"


# -- rules -----------------------------------------------------------------------


class Gate(NamedTuple):
    """How one event of one agent is read, and how it wants its answer."""

    parse: Callable[[Mapping[str, Any]], Said]  # what the event says
    headline: Callable[[str, Mapping[str, Any]], str]  # of a tool and its arguments
    verdict: Callable[
        [str, str, Mapping[str, Any]], str
    ]  # of `allow` or `deny`, why, and the arguments: what it prints
    dialog: bool = False  # the agent's own dialog is on the screen meanwhile


GATES = {
    ("claude-code", "PreToolUse"): Gate(parse, claude.headline, claude.tool_verdict),
    ("claude-code", "PermissionRequest"): Gate(parse, claude.headline, claude.dialog_verdict, dialog=True),
}


def _stands(change: Change, heard: Heard, gate: Gate) -> None:
    """It waits for a person, as `peer list` shall say; with a dialog nothing is put in front of the agent either."""
    if gate.dialog:
        hooks.on_permission_request(change, heard)
    else:
        hooks.turn(change, heard, presence.BUSY, "awaiting_input")


def _goes_on(change: Change, heard: Heard, question: Question) -> None:
    """It waits no more, unless its own dialog was left open or it left itself."""
    if question.decision != "none" and question.reason != "client_left":
        hooks.on_post_tool_use(change, heard._replace(peer=peers.load(change.db, heard.peer.peer_id)))


def why(question: Question) -> str:
    """The reason as the model and its user read it: who decided, or why nobody did."""
    if question.reason == "rule":
        return f"repowire: allowed by the rule {question.answered_by}"
    word = "allowed" if question.decision == "allow" else "denied"
    if question.reason == "answered":
        said = f": {question.message}" if question.message else ""
        return f"repowire: {word} by {question.answered_by}{said}"
    return f"repowire: {word}, {question.message or question.reason}"


# -- wire ------------------------------------------------------------------------


@contextmanager
def _alive(request: web.Request) -> Iterator[None]:
    """Meanwhile the hook's script hears every few seconds that its question is in good hands."""
    loop = asyncio.get_running_loop()
    timer: asyncio.Handle | None = None

    def say() -> None:
        nonlocal timer
        if request.transport is not None and not request.transport.is_closing():
            request.transport.write(ALIVE)
            timer = loop.call_later(ALIVE_SECONDS, say)

    say()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _waits(request: web.Request) -> float | None:
    """How long the runtime lets its hook wait, in seconds, as its script says."""
    said = request.headers.get(WAITS, "")
    return float(said) if said.isdecimal() and len(said) < 10 else None


async def post_gate(request: web.Request) -> web.Response:
    backend, event = request.match_info["backend"], request.match_info["event"]
    gate = GATES.get((backend, event))
    if gate is None:
        raise not_found("gate", event, f"no gate {event!r} of {backend!r} is known here")
    with _alive(request):
        question = await _asked(request, gate, event, await wire.read(request, each_once=True))
    decision = None if question is None else question.decision
    if question is None or decision not in ("allow", "deny"):
        return web.Response(headers={VERDICT: "none"})  # not gated, or the dialog on the screen is still there
    text = gate.verdict(decision, why(question), json.loads(question.metadata)["tool_input"])
    return web.Response(body=text.encode(), headers={VERDICT: decision}, content_type="application/json")


async def _asked(request: web.Request, gate: Gate, event: str, body: wire.Body) -> Question | None:
    """The question when it is over; None where nobody needs to be asked."""
    mesh = request.app[MESH]
    tool, given = body.text("tool_name", max_chars=TOOL_CHARS), body.record("tool_input", max_bytes=CALL_MOST_BYTES)
    said, facts = gate.parse(body.fields), arrivals.facts(mesh, request)
    call = {"tool_name": tool, "tool_input": given, "cwd": said.cwd, "session_id": said.session}
    with mesh.change() as change:
        peer, last = arrivals.arrive(change, mesh, request, facts, said)
        heard = Heard(mesh, peer, said, facts)
        draft = Draft(
            prompt=gate.headline(tool, given),
            options=OPTIONS,
            scope=TOOL_PERMISSION,
            metadata=call | ({"agent_id": said.agent} if said.agent else {}),
            origin=event.lower(),
            timeout_seconds=mesh.config.daemon.question_wait_cap_seconds,
            runtime_timeout_seconds=_waits(request),
            dialog=gate.dialog,
            from_peer=peer.display_name,
            peer=peer,
        )
        question = blocking.put(change, mesh, draft)
        if question is not None and question.closed_at is None:
            _stands(change, heard, gate)
    claims.watch(mesh, peer)
    if last is not None:
        await hooks.settle_last_life(mesh, peer.peer_id, last)
    if question is not None and question.closed_at is None:
        question = await blocking.wait(mesh, question, request)
        with mesh.change() as change:
            _goes_on(change, heard, question)
    return question


ROUTES = [web.post("/gates/{backend}/{event}", post_gate)]
