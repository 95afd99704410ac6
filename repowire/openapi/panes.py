"""Panes: what runs on this host and is no peer yet, and how it becomes one, in the words of the document."""

from repowire.openapi.words import (
    COUNT,
    FLAG,
    IDENTIFIER_TEXT,
    SHOWN,
    Route,
    Schema,
    free,
    line,
    listed,
    maybe,
    record,
    shape,
    takes,
    word,
)
from repowire.protocol import BACKENDS

SHAPES: dict[str, Schema] = {
    "OrphanPane": record(
        pane_id=SHOWN,
        pid=COUNT,
        command=SHOWN,
        cwd=SHOWN,
        session=SHOWN,
        window=SHOWN,
        detected_backend=word(*BACKENDS, "unknown"),
        confidence=word("hint", "unknown"),
        agent_pid=maybe(COUNT),
        tmux=SHOWN,
    ),
    "OrphanPanes": record(panes=listed(shape("OrphanPane")), silent=listed(SHOWN)),
    "LinkedPane": record(
        linked=FLAG,
        pane_id=SHOWN,
        peer_id=maybe(SHOWN),
        display_name=maybe(SHOWN),
        transport_connected=FLAG,
        reason=word(
            "linked",
            "pane_gone",
            "agent_gone",
            "ws_hook_spawn_failed",
            "transport_unestablished",
            "daemon_stopped",
        ),
        repair_hint=maybe(SHOWN),
    ),
    "Rehooked": record(
        ok=FLAG,
        acted=FLAG,
        peer_id=SHOWN,
        display_name=SHOWN,
        pane_id=SHOWN,
        ws_was_connected=FLAG,
        ping_ok=maybe(FLAG),
        pane_verified=FLAG,
        ws_hook_respawned=FLAG,
        reason=word("already_healthy", "dry_run", "respawned", "respawn_skipped_pid_alive_or_contested"),
        detail=SHOWN,
    ),
}

SOCKET = "the socket of a tmux server"

ROUTES = [
    Route(
        "GET", "/panes/orphans", "orphan_panes", "The panes of all tmux servers of this user that no peer has.",
        query={"tmux": free(f"{SOCKET} to look at too, where it lies in no usual place")},
        answer=shape("OrphanPanes"),
    ),
    Route(
        "POST", "/panes/{pane_id}/link", "link_pane",
        "Make a pane a peer's, with a live way into it; what cannot be within 8 s is undone.",
        takes(
            {"backend": word(*BACKENDS)},
            name=IDENTIFIER_TEXT,
            circle=IDENTIFIER_TEXT,
            cwd=line(4096, "its folder, where that is not the program's"),
            tmux=line(4096, f"{SOCKET}, where several have a pane of that id"),
        ),
        answer=shape("LinkedPane"),
        refuses={
            404: "no such live pane",
            409: "the pane is somebody's, several servers have one of that id, or no such agent runs in it",
        },
    ),
    Route(
        "POST", "/peers/{name}/rehook", "rehook_peer",
        "Try the way into a peer's pane, and where it is dead open another; the pane itself is not touched.",
        takes(circle=IDENTIFIER_TEXT, from_peer=line(), apply=FLAG), body_needed=False,
        answer=shape("Rehooked"),
        refuses={
            403: "an agent speaks for another",
            404: "no such peer; `near` has names that look like it",
            409: "several have the name, it is on another host, it has no pane, or the pane is not proved its own",
        },
    ),
]  # fmt: skip
