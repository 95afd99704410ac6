"""Peers and their sessions, in the words of the document."""

from repowire.lifecycle import MOST_PANES
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
from repowire.protocol import BACKENDS, CIRCLE_SOURCES, IDENTIFIER, ROLES, TURN_STATES
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
    "Caller": record(kind=word("agent", "human"), peer=maybe(shape("Peer"))),
    "Orchestrator": record(
        circle=SHOWN,
        present=FLAG,
        peer_id=maybe(SHOWN),
        peer_name=maybe(SHOWN),
        last_seen=maybe(MOMENT),
        stale_after_seconds=NUMBER,
    ),
    "RoleClaimed": record(
        ok=FLAG,
        peer_id=SHOWN,
        peer_name=SHOWN,
        role=word(*ROLES),
        circle=SHOWN,
        already_held=FLAG,
        previous_holders=listed(
            record(peer_id=SHOWN, display_name=SHOWN, status=word("online", "busy", "offline"), last_seen=maybe(MOMENT))
        ),
    ),
    "Validated": record(ok=FLAG, peer_id=SHOWN, display_name=SHOWN, peer=shape("Peer")),
    "Pruned": record(
        ok=FLAG,
        dry_run=FLAG,
        pruned=listed(
            record(
                peer_id=SHOWN,
                display_name=SHOWN,
                circle=SHOWN,
                path=maybe(SHOWN),
                last_seen=maybe(MOMENT),
                waiting=FLAG,
            )
        ),
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
NOT_ITSELF = "an agent says it of another"
REMOVAL = {403: "an agent removes one of another circle", 404: NO_PEER, 409: f"{TWO_PEERS}, or it is a person"}
RETIRED = {
    409: "`peer_id` ended and no live process is named, or the pane is that of whoever started the caller",
    403: "an agent registers as the human",
}

PANE_NEEDED = line(64, "a tmux pane, such as %42", least=1)
PANES = listed(line(64, least=1), most=MOST_PANES, about="the panes of the session")

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
            "circle": {"type": "string", "pattern": rf"^(\*|{IDENTIFIER.pattern})$", "description": "* or absent: all"},
            "limit": whole(1, MOST),
            "cursor": CURSOR,
        },
        answer=record({"next": NEXT}, peers=listed(shape("Peer"))),
    ),
    Route("GET", "/whoami", "whoami", "Who calls: an agent's peer, or the human.", answer=shape("Caller")),
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
        query=CIRCLE, answer=OK, refuses=REMOVAL,
    ),
    Route(
        "POST", "/peer/unregister", "unregister_peer_as_before", "The same as DELETE /peers/{name}.",
        takes({"name": line(least=1)}, circle=IDENTIFIER_TEXT), answer=OK, refuses=REMOVAL,
    ),
    Route(
        "POST", "/peers/{name}/offline", "mark_peer_offline", "Say that a peer is gone; an unknown one is no error.",
        takes(reason=line(64), source=line(64), detail=line(1000), terminal=FLAG), body_needed=False,
        answer=record(ok=FLAG, cancelled_queries=COUNT),
        refuses={403: NOT_ITSELF, 409: f"{TWO_PEERS}, or a person is to be retired"},
    ),
    Route(
        "POST", "/peers/{name}/touch", "touch_peer", "It is alive.",
        query=CIRCLE, answer=OK, refuses={403: NOT_ITSELF, 404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/{name}/description", "set_description", "Say what a peer is at.",
        takes({"description": line(MAX_DESCRIPTION_CHARS)}), query=CIRCLE,
        answer=OK, refuses={403: NOT_ITSELF, 404: NO_PEER, 409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/circle", "set_circle", "Move a peer to another circle; an unknown one is no error.",
        takes({"peer_name": line(least=1), "circle": IDENTIFIER_TEXT}), answer=OK, refuses={409: TWO_PEERS},
    ),
    Route(
        "POST", "/peers/claim-role", "claim_role", "Make a peer the orchestrator of its circle.",
        takes(
            {"role": line(64, "orchestrator", least=1), "peer_name": line(128, least=1)},
            circle=IDENTIFIER_TEXT,
            force={**FLAG, "description": "without effect: a stale holder needs none, a fresh one keeps the role"},
        ),
        answer=shape("RoleClaimed"),
        refuses={
            400: "another role cannot be claimed",
            403: "an agent claims for another",
            404: NO_PEER,
            409: f"a fresh holder keeps it, the peer is gone, or {TWO_PEERS}",
        },
    ),
    Route(
        "GET", "/circles/{name}/orchestrator", "orchestrator_status", "Who orchestrates a circle, if anybody does.",
        answer=shape("Orchestrator"),
    ),
    Route(
        "POST", "/peers/identity/validate", "validate_identity", "Whether a birth certificate still proves who one is.",
        takes(
            {"birth_certificate": loose("as it was given out"), "backend": word(*BACKENDS)},
            path=line(4096),
            pane_id=PANE,
            agent_pid=whole(1),
        ),
        answer=shape("Validated"),
        refuses={
            404: "the peer was forgotten",
            409: "altered, expired, of another caller, or its identity ended",
        },
    ),
    Route(
        "POST", "/peers/prune", "prune_peers", "Take the offline peers off the list; what waits for them stays.",
        takes(dry_run=FLAG, circle=IDENTIFIER_TEXT), body_needed=False, answer=shape("Pruned"),
    ),
    Route(
        "POST", "/hooks/lifecycle/pane-died", "pane_died", "tmux: a pane is gone.",
        takes({"pane_id": PANE_NEEDED}), answer=OK,
    ),
    Route(
        "POST", "/hooks/lifecycle/session-closed", "session_closed", "tmux: a session is gone.",
        takes({"session_name": line(64, least=1)}), answer=OK,
    ),
    Route(
        "POST", "/hooks/lifecycle/session-renamed", "session_renamed", "tmux: a session has another name.",
        takes({"new_name": line(64, least=1)}, pane_ids=PANES), answer=OK,
    ),
    Route(
        "POST", "/hooks/lifecycle/window-renamed", "window_renamed", "tmux: a window has another name; without effect.",
        takes({"session_name": line(64, least=1), "new_name": line(64, least=1)}, pane_ids=PANES), answer=OK,
    ),
    Route(
        "POST", "/hooks/lifecycle/client-detached", "client_detached", "tmux: a client left; it is logged.",
        takes({"session_name": line(64, least=1)}), answer=OK,
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
        answer=OK,
        refuses={
            400: "nothing to update, nobody named, or a wrong status",
            403: NOT_ITSELF,
            404: "no peer holds the pane",
        },
    ),
]  # fmt: skip
