"""MCP servers of a peer's own configuration, in the words of the document."""

from repowire.mcp_servers import MAX_CHARS, MOST_WORDS, TYPES
from repowire.openapi.peers import CIRCLE, NO_PEER
from repowire.openapi.words import (
    FLAG,
    METADATA,
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

SCOPE = {"scope": free("user (default), project or local, as far as the kind of agent has them")}
REFUSES = {
    403: "another agent's",
    404: NO_PEER,
    501: "this kind of agent has none that can be edited",
    502: "the file cannot be read, edited or written",
}

SHAPES: dict[str, Schema] = {
    "McpServer": record(
        name=SHOWN,
        scope=word("user", "project", "local"),
        type=SHOWN,
        command=maybe(SHOWN),
        args=listed(SHOWN),
        url=maybe(SHOWN),
        env_keys=listed(SHOWN),
    ),
    "McpScope": record(
        backend=SHOWN,
        owner=word("user", "project"),
        effective_scope=word("user", "project", "local"),
        label=SHOWN,
        description=SHOWN,
        supported_scopes=listed(SHOWN),
        default_scope=SHOWN,
        is_global=FLAG,
        peer_id=SHOWN,
        peer_name=SHOWN,
        project_path=maybe(SHOWN),
        peer_machine=maybe(SHOWN),
        self_machine=SHOWN,
        same_host=FLAG,
    ),
    "McpServers": record(servers=listed(shape("McpServer")), config_scope=shape("McpScope")),
    "McpChanged": record(ok=FLAG, config_scope=shape("McpScope")),
}

ROUTES = [
    Route(
        "GET", "/peers/{name}/mcp", "list_mcp_servers", "The MCP servers of a peer's own configuration.", query=CIRCLE,
        answer=shape("McpServers"), refuses={**REFUSES, 409: "several peers have the name, or it lives elsewhere"},
    ),
    Route(
        "POST", "/peers/{name}/mcp", "add_mcp_server", "Put an MCP server into it.",
        takes(
            {"name": line(MAX_CHARS, "letters, digits, _ and -, at most 128", least=1)},
            type=word(*TYPES),
            command=line(MAX_CHARS, "required for stdio"),
            args=listed(SHOWN, most=MOST_WORDS),
            url=line(MAX_CHARS, "required for http and sse"),
            env={**METADATA, "description": "texts by name of variable; what they hold is never shown"},
        ),
        query={**CIRCLE, **SCOPE},
        answer=shape("McpChanged"),
        refuses={**REFUSES, 400: "no name of a server or of a variable", 409: "`duplicate`, `unsupported_scope`, …"},
    ),
    Route(
        "DELETE", "/peers/{name}/mcp/{server}", "remove_mcp_server", "Take an MCP server out of it.",
        query={**CIRCLE, **SCOPE},
        answer=shape("McpChanged"),
        refuses={**REFUSES, 400: "no name of a server", 404: "no such peer or server", 409: "several scopes have it"},
    ),
]  # fmt: skip
