"""What a peer and its user said to each other, and its own MCP servers, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import Json, Transcript, Turn, given, made
from repowire.async_client.transport import Transport


class History(Transport):
    """Transcripts and configurations, read by the daemon."""

    async def transcript(self, name: str, **query: Any) -> Transcript:
        """What was said, the newest turn first; `query`: limit, before (the page's `next_before`), session_id,
        circle."""
        answer = await self.request("GET", f"/peers/{quote(name, safe='')}/transcript", query=query)
        return made(Transcript, {**answer, "turns": [made(Turn, one) for one in answer["turns"]]})

    async def timeline(self, name: str, **query: Any) -> Json:
        """The same with what is heard just now, in order of time; `query`: limit, session_id, circle."""
        answer: Json = await self.request("GET", f"/peers/{quote(name, safe='')}/timeline", query=query)
        return answer

    async def search_timeline(self, name: str, q: str, **query: Any) -> Json:
        """Find words in it, in capitals or not; `query`: limit, session_id, circle."""
        path = f"/peers/{quote(name, safe='')}/timeline/search"
        answer: Json = await self.request("GET", path, query={"q": q, **query})
        return answer

    async def list_mcp_servers(self, peer_name: str, *, circle: str | None = None) -> Json:
        """The MCP servers of its own configuration, and which scopes that has; no values of an environment."""
        answer: Json = await self.request("GET", f"/peers/{quote(peer_name, safe='')}/mcp", query={"circle": circle})
        return answer

    async def add_mcp_server(
        self, peer_name: str, name: str, *, scope: str | None = None, circle: str | None = None, **fields: Any
    ) -> Json:
        """Put one in, for the agent's next start; `fields`: type (stdio, http, sse), command, args, url, env."""
        body, query = {"name": name, **given(fields)}, {"scope": scope, "circle": circle}
        answer: Json = await self.request("POST", f"/peers/{quote(peer_name, safe='')}/mcp", body, query=query)
        return answer

    async def remove_mcp_server(
        self, peer_name: str, server: str, *, scope: str | None = None, circle: str | None = None
    ) -> Json:
        """Take one out, for the agent's next start."""
        path, query = (
            f"/peers/{quote(peer_name, safe='')}/mcp/{quote(server, safe='')}",
            {"scope": scope, "circle": circle},
        )
        answer: Json = await self.request("DELETE", path, query=query)
        return answer
