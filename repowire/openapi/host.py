"""The daemon itself, its own parts, and the pages, in the words of the document."""

from repowire.openapi.words import (
    COUNT,
    FLAG,
    MOMENT,
    NUMBER,
    SHOWN,
    Route,
    Schema,
    listed,
    loose,
    maybe,
    record,
    shape,
    word,
)

SHAPES: dict[str, Schema] = {
    "Refusal": record(
        detail={**record(error=SHOWN, hint=SHOWN), "additionalProperties": True, "description": "`error` is a slug for "
                "programs, `hint` says to people what to do; a 422 has the `field`, and some add more facts"},
    ),
    "Health": record(
        status=word("ok"),
        version=SHOWN,
        relay_mode=FLAG,
        channel=record(
            status=SHOWN,
            configured=FLAG,
            runtime_available=FLAG,
            stop_hook_fallback=FLAG,
            last_error=maybe(SHOWN),
        ),
        acp_broker=record(
            status=SHOWN,
            enabled=FLAG,
            sdk_available=FLAG,
            manager_initialized=FLAG,
            configured_peers=COUNT,
            active_clients=COUNT,
            in_flight=COUNT,
            last_error=maybe(SHOWN),
            last_error_peer_id=maybe(SHOWN),
            last_error_at=maybe(MOMENT),
            last_success_at=maybe(MOMENT),
            sessions=loose(),
            permissions=record(
                pending=COUNT, timeout_seconds=maybe(NUMBER), last_error=maybe(SHOWN), last_error_at=maybe(MOMENT)
            ),
        ),
        degraded=listed(SHOWN),
    ),
}  # fmt: skip

ROUTES = [
    Route("GET", "/health", "health", "How the daemon is; open to all.", answer=shape("Health")),
    Route("GET", "/openapi.json", "openapi", "This document.", answer=loose()),
    Route(
        "POST", "/shutdown", "shutdown", "Drain and end.", answer=record(status=word("shutting_down")),
    ),
    Route(
        "POST", "/auth/rotate", "rotate_token", "A new token; live TCP sockets are cut.",
        answer=record(ok=FLAG, token_file=SHOWN), refuses={409: "the token is set in the config"},
    ),
    Route(
        "POST", "/hooks/{backend}/{event}", "post_hook", "An event of an agent's own hooks, in the agent's words.",
        loose(), body_needed=False, answer=loose("what the agent's hook protocol wants; often nothing at all"),
        refuses={404: "no such hook"},
    ),
    Route(
        "POST", "/hooks/receipts/{token}", "post_hook_receipt", "A hook's script printed what it carried.",
        answer=record(ok=FLAG, handed=listed(SHOWN)),
    ),
    Route(
        "POST", "/gates/{backend}/{event}", "post_gate", "Whether a tool may run, or a dialog goes.",
        loose(), answer=loose("the verdict in the words of the agent's hook protocol; nothing where nobody is asked"),
        refuses={404: "no such gate"},
    ),
    Route(
        "GET", "/panes/hosted", "stream_hosted_panes", "The panes that the host's ws-hook shall serve, as they change.",
        media="application/x-ndjson", refuses={403: "an agent"},
    ),
    Route(
        "POST", "/mcp", "post_mcp", "MCP: one JSON-RPC message; 202 for one that wants no answer.",
        loose(), answer=loose("a JSON-RPC response, also with the 400 of a malformed request"),
        refused=loose(),
    ),
    Route("GET", "/ws", "connect", "A WebSocket: be a peer.", media="application/json", status=101),
    Route("GET", "/", "get_page", "The dashboard; open to all.", media="text/html"),
    Route("GET", "/dashboard", "get_dashboard", "The same.", media="text/html"),
    Route("GET", "/static/{file}", "get_file", "Its files.", media="*/*"),
]  # fmt: skip
