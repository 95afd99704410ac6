"""Pickups: mail that a peer fetches by itself, for want of a door or between two turns.

What is picked up is leased. Who says `confirm` gets a token and has a lease's time to confirm what it put in front of
its reader, which is then `handed`; what was never confirmed goes back into the mailbox. The published drain knows
neither: what it gave out is never given out again, and since nothing proves that it was read it ends as `unknown`.
"""

import json
import secrets
from typing import Any

from aiohttp import web

from repowire import callers, deliveries, peers, receipts, wire
from repowire.deliveries import PICKUP, Delivery
from repowire.errors import gone, invalid, malformed
from repowire.mesh import MESH, Change
from repowire.protocol import HINT

MAX_BATCH = 1000
OUTCOMES = ("injected", "held", "rejected", "failed")  # the words of a receipt (wire.md 2.3, 16 row 14)

# -- rules ---------------------------------------------------------------------


def confirm(change: Change, token: str, only: set[str] | None, status: str, detail: str | None) -> list[Delivery]:
    """The taker says what became of what it picked up: `injected` hands it over, the other words put it back.

    Returns what the token still held, in order. 410 when it holds nothing: confirmed before, or the lease ran out.
    """
    taken = [one for one in deliveries.taken_by(change.db, PICKUP + token) if only is None or one.delivery_id in only]
    if not taken:
        raise gone("lease_over", "nothing is leased under this token: it was confirmed before, or the lease ran out")
    for one in taken:
        receipts.receipt(change, one.delivery_id, status, detail, peer_id=one.peer_id, by="pickup")
    return taken


# -- wire ----------------------------------------------------------------------


async def get_pending(request: web.Request) -> web.Response:
    """The published drain (wire.md 1.4); with `confirm=true` a lease to be confirmed."""
    mesh = request.app[MESH]
    pane_id, name = request.query.get("pane_id"), request.query.get("peer_id")
    if (pane_id is None) == (name is None):
        raise malformed("give exactly one of pane_id and peer_id")
    most = wire.whole(request, "max_results", default=50, least=-MAX_BATCH, most=MAX_BATCH)
    confirms = wire.word(request, "confirm", ("true", "false"), "false") == "true"
    token = secrets.token_urlsafe(18)
    with mesh.change() as change:
        peer = peers.of_pane(change.db, pane_id) if pane_id else peers.resolve(change.db, name or "")
        callers.may_read(mesh, request, peer)
        taken = deliveries.lease(change, peer.peer_id, PICKUP + token if confirms else "poll", max(0, most))
    await mesh.on_disk()
    body: dict[str, Any] = {"deliveries": [_picked(one) for one in taken]}
    if confirms:
        for shown, one in zip(body["deliveries"], taken, strict=True):
            shown["attempts"] = one.attempts
        until = change.now + mesh.config.daemon.delivery_lease_seconds
        body |= {"lease": token if taken else None, "lease_expires_at": wire.moment(until) if taken else None}
    return wire.reply(body)


def _picked(delivery: Delivery) -> dict[str, Any]:
    frame = json.loads(delivery.frame)
    return {
        "delivery_id": delivery.delivery_id,
        "kind": delivery.kind,
        "from_peer": frame.get("from_peer"),
        "to_peer": frame.get("to_peer"),
        "text": frame["text"].rpartition(HINT)[0] if delivery.kind == "ask" else frame.get("text"),
        "created_at": wire.moment(delivery.created_at),
        "expires_at": wire.moment(delivery.expires_at),
        "correlation_id": frame.get("correlation_id"),
        "attachments": frame.get("attachments", []),
    }


async def post_confirm(request: web.Request) -> web.Response:
    mesh = request.app[MESH]
    body = await wire.read(request)
    token, detail = body.text("lease", max_chars=128), body.optional_text("detail", max_chars=1000)
    status = body.choice("status", OUTCOMES, "injected") or "injected"
    named = body.members("delivery_ids", most=MAX_BATCH) if body.has("delivery_ids") else None
    if named is not None and not all(isinstance(one, str) for one in named):
        raise invalid("delivery_ids", "must be a list of delivery ids")
    with mesh.change() as change:
        for holder in {one.peer_id for one in deliveries.taken_by(change.db, PICKUP + token)}:
            callers.may_read(mesh, request, peers.load(change.db, holder))
        taken = confirm(change, token, None if named is None else set(named), status, detail)
    return wire.reply({"ok": True, "confirmed": [one.delivery_id for one in taken]})


ROUTES = [
    web.get("/deliveries/pending", get_pending),
    web.post("/deliveries/confirm", post_confirm),
]
