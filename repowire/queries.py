"""Queries: an ask and the wait for its reply in one request (wire.md 1.5).

Always answered with 200: `text`, or `error` in words. A query whose time is up leaves its ask open, and the late reply
comes to the asker like any other.
"""

from typing import Any

from aiohttp import web

from repowire import asks, names, presence, replies, wire
from repowire.asks import Ask, Draft
from repowire.errors import Refusal
from repowire.mesh import MESH, Mesh
from repowire.protocol import MAX_TEXT_CHARS

TIMEOUT_SECONDS, TIMEOUT_CAP_SECONDS = 300.0, 3600.0

# -- rules -------------------------------------------------------------------


def _open(mesh: Mesh, draft: Draft) -> tuple[Ask | None, dict[str, Any]]:
    """The ask, or what to say instead: a peer that is busy or away is not asked."""
    with mesh.change() as change:
        try:
            target = names.meant(change, draft.to_peer, draft.circle)
            status = presence.of(change.db, target.peer_id)
            if status != presence.ONLINE:
                return None, _said(error=f"{target.display_name} is {status}; ask it instead", status=status)
            return asks.open_ask(change, mesh, draft)[0], {}
        except Refusal as refusal:
            return None, _said(error=refusal.hint)


def _said(text: str | None = None, error: str | None = None, status: str | None = None, **facts: Any) -> dict[str, Any]:
    return {"text": text, "error": error, "status": status, **facts}


def _outcome(ask: Ask, seconds: float) -> dict[str, Any]:
    cid = ask.correlation_id
    if ask.closed_at is None:
        words = f"no reply within {seconds:g} s; {cid} stays open, and its reply comes as a message"
        return _said(error=words, correlation_id=cid)
    if ask.close_reason in ("ack", "ack_with_msg"):
        return _said(text=ask.reply or "", correlation_id=cid)
    words = f"{cid} was closed without an answer: {ask.close_reason}"
    return _said(error=f"{words}: {ask.reply}" if ask.reply else words, correlation_id=cid)


# -- wire --------------------------------------------------------------------


async def post_query(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    draft = Draft(
        from_peer=asks.speaker(mesh, request, body),
        to_peer=body.text("to_peer"),
        text=body.text("text", max_chars=MAX_TEXT_CHARS),
        circle=body.optional_identifier("circle"),
        bypass_circle=body.flag("bypass_circle"),
    )
    seconds = max(0.0, body.seconds("timeout", default=TIMEOUT_SECONDS, at_most=TIMEOUT_CAP_SECONDS, cap=True))
    ask, refused = _open(mesh, draft)
    if ask is None:
        return wire.reply(refused)
    await mesh.committed()  # one that was lost is told at once, not after the wait
    ask = await asks.wait(mesh, ask.correlation_id, seconds)
    replies.hand_over(mesh, request, ask)
    return wire.reply(_outcome(ask, seconds))


ROUTES = [web.post("/query", post_query)]
