"""Peers and their sessions, in the words of the document."""

from repowire.lives import MAX_DESCRIPTION_CHARS
from repowire.openapi.words import (
    COUNT,
    CURSOR,
    FLAG,
    IDENTIFIER_TEXT,
    METADATA,
    MOMENT,
    NEXT,
    NUMBER,
    OK,
    PANE,
    SHOWN,
    Route,
    Schema,
    free,
    line,
    listed,
    loose,
    maybe,
    record,
    shape,
    takes,
    whole,
    word,
)
from repowire.protocol import BACKENDS, CIRCLE_SOURCES, ROLES, TURN_STATES
from repowire.roster import MOST

CIRCLE = {"circle": free("where to look for the name")}
NO_PEER, TWO_PEERS = "no such peer; `near` has names that look like it", "several peers have the name: `candidates`"

SHAPES: dict[str, Schema] = {
    "Peer": record(
        peer_id=SHOWN,
        name=SHOWN,
        display_name=SHOWN,
        path=maybe(SHOWN),
        machine=maybe(SHOWN),
        tmux_session=maybe(SHOWN),
        backend=word(*BACKENDS),
        model=maybe(SHOWN),
        circle=SHOWN,
        role=word(*ROLES),
        status=word("online", "busy", "offline"),
        turn_state=maybe(word(*TURN_STATES)),
        last_seen=maybe(MOMENT),
        metadata=loose(),
        description=SHOWN,
        ws_connected=FLAG,
        hook_supports_receipts=FLAG,
        last_successful_injection_at=maybe(MOMENT),
        last_injection_failure_at=maybe(MOMENT),
        pending_ask_count=COUNT,
        oldest_pending_age_seconds=maybe(NUMBER),
        pane_safe=maybe(FLAG),
        inbound_status=word("offline", "pane_unsafe", "no_hook", "legacy_unverified", "inbound_degraded", "online"),
    ),
    "BirthCertificate": record(
        nonce=SHOWN,
        peer_id=SHOWN,
        display_name=SHOWN,
        backend=word(*BACKENDS),
        project_path=SHOWN,
        runtime_session_id=maybe(SHOWN),
        pane_id=maybe(SHOWN),
        agent_pid=maybe(COUNT),
        parent_pid=maybe(COUNT),
        metadata=loose(),
        issued_at=MOMENT,
        expires_at=MOMENT,
    ),
    "Registered": record(
        ok=FLAG,
        peer_id=SHOWN,
        display_name=SHOWN,
        pane_assigned=FLAG,
        birth_certificate=maybe(shape("BirthCertificate")),
    ),
}

REGISTRATION = takes(
    {"name": IDENTIFIER_TEXT},
    path=line(4096),
    machine=line(255),
    tmux_session=line(255),
    pane_id=PANE,
    model=line(255),
    backend=word(*BACKENDS),
    circle=IDENTIFIER_TEXT,
    circle_source=word(*CIRCLE_SOURCES),
    role=word(*ROLES),
    turn_state=word(*TURN_STATES),
    agent_pid=whole(1, about="the process it lives in: when that ends, so does the peer"),
    parent_pid=whole(1),
    peer_id=line(128, "who it was before"),
    metadata=METADATA,
)
# proof that does not hold is no error: the newcomer is a new peer
REGISTRATION["properties"]["birth_certificate"] = {"description": "the proof of having been `peer_id`"}
RETIRED = {409: "`peer_id` ended, and no live process is named", 403: "an agent registers as the human"}

ROUTES = [
    Route(
        "POST", "/peers", "register_peer", "Register a peer, or find the one that came back.",
        REGISTRATION, answer=shape("Registered"), refuses=RETIRED,
    ),
    Route(
        "POST", "/peer/register", "register_peer_as_before", "The same as POST /peers.",
        REGISTRATION, answer=shape("Registered"), refuses=RETIRED,
    ),
    Route(
        "GET", "/peers", "list_peers", "Who there is.",
        query={
            "status": free("online (busy ones too), busy or offline; any other word is all"),
            "path": free("as text, or the same folder on the disk"),
            "backend": word(*BACKENDS),
            "circle": free("* or absent: all"),
            "limit": whole(1, MOST),
            "cursor": CURSOR,
        },
        answer=record({"next": NEXT}, peers=listed(shape("Peer"))),
    ),
    Route(
        "GET", "/peers/{name}", "get_peer", "One peer, by id or name.",
        query=CIRCLE, answer=shape("Peer"), refuses={404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "GET", "/peers/by-pane/{pane_id}", "get_peer_by_pane", "The peer that holds a pane.",
        answer=shape("Peer"), refuses={404: "no peer holds it"},
    ),
    Route(
        "DELETE", "/peers/{name}", "unregister_peer", "Remove a peer for good; what waits moves on or ends.",
        query=CIRCLE, answer=OK, refuses={404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peer/unregister", "unregister_peer_as_before", "The same as DELETE /peers/{name}.",
        takes({"name": line(least=1)}, circle=IDENTIFIER_TEXT), answer=OK, refuses={404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/{name}/offline", "mark_peer_offline", "Say that a peer is gone; an unknown one is no error.",
        takes(reason=line(64), source=line(64), detail=line(1000), terminal=FLAG), body_needed=False,
        answer=record(ok=FLAG, cancelled_queries=COUNT), refuses={409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/{name}/touch", "touch_peer", "It is alive.",
        query=CIRCLE, answer=OK, refuses={404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/{name}/description", "set_description", "Say what a peer is at.",
        takes({"description": line(MAX_DESCRIPTION_CHARS)}), query=CIRCLE,
        answer=OK, refuses={404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/circle", "set_circle", "Move a peer to another circle; an unknown one is no error.",
        takes({"peer_name": line(least=1), "circle": IDENTIFIER_TEXT}), answer=OK, refuses={409: TWO_PEERS},
    ),
    Route(
        "POST", "/session/update", "session_update",
        "What a session says of itself: peer_name or pane_id, and at least one of the rest.",
        takes(
            peer_name=line(),
            pane_id=PANE,
            status=line(1024, "online, busy, idle or offline"),
            turn_state=word(*TURN_STATES),
            model=line(255),
            metadata=METADATA,
        ),
        answer=OK, refuses={400: "nothing to update, nobody named, or a wrong status", 404: "no peer holds the pane"},
    ),
]  # fmt: skip
