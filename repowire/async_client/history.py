"""What a peer and its user said to each other, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import Json, Transcript, Turn, made
from repowire.async_client.transport import Transport


class History(Transport):
    """Transcripts, read by the daemon."""

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
