"""Agents started, ended and started again, in the words of the document."""

from repowire.openapi.words import (
    ATTACHMENTS,
    FLAG,
    IDENTIFIER_TEXT,
    SHOWN,
    TEXT,
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
    word,
)
from repowire.settings import STARTABLE
from repowire.spawn import ROLES

NOT_ALLOWED = "nothing may be started, the command line is not allowed, or the folder lies outside"
NOT_HAD = "a wrong field, `command_unavailable` or `profile_unavailable`"
TOO_MANY = "`too_many_agents`: `spawn.max_agents` run already"
ENDED_AT_ONCE = "`tmux_failed`, or `spawn_failed` with the `screen` and the `exit_status` of what ended at once"
NO_SESSION = "no such session"
SEVERAL = "several peers have the name: `candidates`"

SHAPES: dict[str, Schema] = {
    "SpawnConfig": record(
        enabled=FLAG,
        commands=loose("command lines by kind of agent"),
        profiles=loose("by kind of agent and name: `args` and `description`"),
        allowed_commands=listed(SHOWN),
        allowed_paths=listed(SHOWN),
    ),
    "Spawned": record(
        ok=FLAG,
        display_name=SHOWN,
        tmux_session=SHOWN,
        peer_id=maybe(SHOWN),
        registration_state=word("pending_hook", "cli_fallback"),
        warnings=listed(SHOWN),
        pane_id=SHOWN,
        command=SHOWN,
    ),
    "Restarted": record(
        ok=FLAG,
        status=word("restart_available", "restarted"),
        restarted=FLAG,
        peer_id=SHOWN,
        display_name=SHOWN,
        backend=SHOWN,
        path=maybe(SHOWN),
        circle=SHOWN,
        tmux_session=maybe(SHOWN),
        resume_mode=word("resumed"),
        resume_warning=maybe(SHOWN),
        unsupported_reason=maybe(SHOWN),
        command=maybe(SHOWN),
    ),
    "SessionNotified": record(
        ok=FLAG,
        repowire_session_id=SHOWN,
        session_status=word("active"),
        capability=SHOWN,
        executor_peer_id=SHOWN,
        executor_peer_name=SHOWN,
        delivery_state=word("delivered", "queued"),
        delivered=FLAG,
        queued=FLAG,
        state=SHOWN,
        reason=SHOWN,
        hook_delivery=maybe(loose()),
        delivery_id=SHOWN,
    ),
    "SessionResumed": record(
        ok=FLAG,
        repowire_session_id=SHOWN,
        session_status=word("active", "ended"),
        status=word("active_executor", "resume_available", "unsupported", "binding_unavailable"),
        capability=SHOWN,
        message=SHOWN,
        backend=SHOWN,
        runtime_session_id=maybe(SHOWN),
        runtime_source_uri=maybe(SHOWN),
        executor_peer_id=maybe(SHOWN),
        executor_peer_name=maybe(SHOWN),
        resume_capability=record(supported=FLAG, arguments=listed(SHOWN)),
        action=word("inspect", "spawned"),
        spawned_display_name=maybe(SHOWN),
        tmux_session=maybe(SHOWN),
        pane_id=maybe(SHOWN),
    ),
    "Switched": record(
        ok=FLAG,
        display_name=SHOWN,
        tmux_session=maybe(SHOWN),
        old_backend=SHOWN,
        new_backend=SHOWN,
        command=SHOWN,
    ),
    "Killed": record(ok=FLAG, tmux_killed=maybe(FLAG)),
}

ROUTES = [
    Route("GET", "/spawn/config", "spawn_config", "What may be started, and where.", answer=shape("SpawnConfig")),
    Route(
        "POST", "/spawn", "spawn", "Start an agent in a tmux window of its own.",
        takes(
            {"path": line(4096, "an absolute path", least=1)},
            backend=line(64, "its kind; exactly one of this and `command`"),
            command=line(4096, "a command line that the config allows word for word"),
            profile=IDENTIFIER_TEXT,
            circle=IDENTIFIER_TEXT,
            name=IDENTIFIER_TEXT,
            message={**TEXT, "minLength": 0, "description": "what it is told first"},
            role=word(*ROLES),
        ),
        answer=shape("Spawned"),
        refuses={403: NOT_ALLOWED, 404: "no such folder", 422: NOT_HAD, 429: TOO_MANY, 500: ENDED_AT_ONCE},
    ),
    Route(
        "POST", "/spawn/{spawn_id}/launch", "post_launch", "What a launcher in its pane is to become.",
        answer=record(
            path=SHOWN, device={"type": "integer"}, inode={"type": "integer"}, program=SHOWN, command=listed(SHOWN),
            env=loose(), unset=listed(SHOWN),
        ),
        refuses={403: "not the pane that was opened for it", 410: "nothing is being started under this id"},
    ),
    Route(
        "POST", "/kill-peer", "kill_peer", "End an agent that was started here, and take the peer off the list.",
        takes(
            {"peer_identifier": line(128, "its name or its id", least=1)},
            circle=IDENTIFIER_TEXT, from_peer=line(128, "on whose behalf"),
        ),
        answer=shape("Killed"),
        refuses={
            403: "an agent of another circle", 404: "no such peer", 409: SEVERAL,
            500: "`kill_failed`: it does not end, and stays registered",
        },
    ),
    Route(
        "POST", "/peers/{name}/restart", "restart_peer", "End an agent and go on with its session, as the same peer.",
        takes(
            circle=IDENTIFIER_TEXT, from_peer=line(128, "on whose behalf"),
            dry_run={**FLAG, "description": "only say whether it could be"},
            message={**TEXT, "minLength": 0, "description": "what it is told first"},
        ),
        body_needed=False,
        answer=shape("Restarted"),
        refuses={
            403: NOT_ALLOWED, 404: "no such peer, or its folder is gone",
            409: f"{SEVERAL}; or its pane, its session or its folder does not allow it: `error` says which",
            422: NOT_HAD, 500: f"`kill_failed`, {ENDED_AT_ONCE}",
        },
    ),
    Route(
        "POST", "/peers/{name}/switch-backend", "switch_backend",
        "End an agent and start one of another kind in its place, as the same peer.",
        takes({"new_backend": word(*STARTABLE)}),
        query={"circle": free("where to look for the name")},
        answer=shape("Switched"),
        refuses={
            403: NOT_ALLOWED, 404: "no such peer, or its folder is gone",
            409: f"{SEVERAL}; `same_backend`, `in_flight_asks`, or its pane does not allow it: `error` says which",
            422: NOT_HAD, 500: f"`kill_failed`, {ENDED_AT_ONCE}",
        },
    ),
    Route(
        "POST", "/sessions/{repowire_session_id}/controls/notify", "notify_session",
        "Tell whoever lives in a session something.",
        takes(
            {"text": TEXT}, from_peer=line(128, "default `dashboard`"), attachments=ATTACHMENTS,
            bypass_circle={**FLAG, "description": "default true"},
        ),
        answer=shape("SessionNotified"),
        refuses={403: "the circle", 404: NO_SESSION, 409: "`session_executor_unavailable`", 429: "its mailbox is full"},
    ),
    Route(
        "POST", "/sessions/{repowire_session_id}/controls/resume", "resume_session",
        "Say whether a session can be gone on with, or start an agent on it.",
        takes(
            from_peer=line(128, "default `dashboard`"), dry_run={**FLAG, "description": "default true"},
            profile=IDENTIFIER_TEXT, message={**TEXT, "minLength": 0, "description": "what it is told first"},
        ),
        body_needed=False,
        answer=shape("SessionResumed"),
        refuses={
            403: NOT_ALLOWED, 404: NO_SESSION, 409: "`active_executor`, `resume_unavailable` or `cross_host`",
            422: NOT_HAD, 429: TOO_MANY, 500: ENDED_AT_ONCE,
        },
    ),
]  # fmt: skip
