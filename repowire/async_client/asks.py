"""The routes of asks, as coroutines."""

from urllib.parse import quote

from repowire.answers import (
    Acked,
    Ask,
    AskManyAnswer,
    AskManyChild,
    AskManyResult,
    AskManyStatus,
    AskPage,
    AskResult,
    Json,
    PendingAsk,
    QueryResult,
    WaitResult,
    all_made,
    given,
    made,
)
from repowire.async_client.transport import Transport


class Asks(Transport):
    """Asks and what came of them."""

    async def ask(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        attachments: list[Json] | None = None,
        reply_to: str | None = None,
        bypass_circle: bool = False,
        circle: str | None = None,
        if_offline: str | None = None,
        question: Json | None = None,
        idempotency_key: str | None = None,
    ) -> AskResult:
        """Open an ask; `if_offline="queue"` keeps it for a peer that is away. The same key again opens no second."""
        more: Json = {"from_peer": from_peer, "attachments": attachments, "reply_to": reply_to, "circle": circle}
        more |= {"bypass_circle": bypass_circle, "if_offline": if_offline, "question": question}
        body = {"to_peer": to_peer, "text": text, **more}
        return made(AskResult, await self.request("POST", "/ask", given(body), idempotency_key=idempotency_key))

    async def ask_many(
        self,
        to_peers: list[str],
        text: str,
        *,
        from_peer: str | None = None,
        attachments: list[Json] | None = None,
        bypass_circle: bool = False,
        circle: str | None = None,
        if_offline: str | None = None,
        timeout_seconds: float | None = None,
        idempotency_key: str | None = None,
    ) -> AskManyResult:
        """Ask 1 to 50 peers at once; who cannot be asked is a child with an error. `timeout_seconds` is how long
        the answers are waited for, by whoever reads `ask_many_result`."""
        more = {"from_peer": from_peer, "attachments": attachments, "circle": circle, "if_offline": if_offline}
        body = {"to_peers": to_peers, "text": text, "bypass_circle": bypass_circle, "timeout_seconds": timeout_seconds}
        answer = await self.request("POST", "/ask-many", given({**body, **more}), idempotency_key=idempotency_key)
        return made(AskManyResult, answer, children=all_made(AskManyChild, answer["children"]))

    async def ask_many_result(self, parent_id: str) -> AskManyStatus:
        """What came of the asks of one `ask_many`."""
        answer = await self.request("GET", f"/ask-many/{quote(parent_id, safe='')}")
        return made(AskManyStatus, answer, children=all_made(AskManyAnswer, answer["children"]))

    async def query(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        timeout: float = 300.0,  # noqa: ASYNC109 - the published name
        bypass_circle: bool = False,
        circle: str | None = None,
    ) -> QueryResult:
        """Ask and wait for the reply, at most `timeout` seconds: `text`, or `error`."""
        body = {"to_peer": to_peer, "text": text, "timeout": timeout, "bypass_circle": bypass_circle}
        more = given({"from_peer": from_peer, "circle": circle})
        answer = await self.request("POST", "/query", {**body, **more}, seconds=self.timeout + timeout)
        return made(QueryResult, answer)

    async def ack(
        self,
        correlation_id: str,
        *,
        from_peer: str | None = None,
        message: str | None = None,
        attachments: list[Json] | None = None,
    ) -> Acked:
        """Close an ask, with a reply or bare. The same again is no error."""
        body = {
            "correlation_id": correlation_id,
            "from_peer": from_peer,
            "message": message,
            "attachments": attachments,
        }
        return await self._made(Acked, "POST", "/ack", given(body))

    async def decline(self, correlation_id: str, reason: str) -> Acked:
        """Close an ask that will not be answered; the asker gets the reason. The same again is no error."""
        body = {"correlation_id": correlation_id, "reason": reason}
        return await self._made(Acked, "POST", "/decline", body)

    async def respond(self, pane_id: str, text: str, *, correlation_id: str | None = None) -> Acked:
        """Answer as the peer of a pane: the ask that is named, else the oldest open one (the legacy way)."""
        body = {"pane_id": pane_id, "text": text, "correlation_id": correlation_id}
        return await self._made(Acked, "POST", "/response", given(body))

    async def wait_ask(
        self, correlation_id: str, *, peer_id: str | None = None, timeout_seconds: float | None = None
    ) -> WaitResult:
        """Wait once for the reply, at most as long as the daemon's cap allows."""
        body = given({"peer_id": peer_id, "timeout_seconds": timeout_seconds})
        path = f"/asks/{quote(correlation_id, safe='')}/wait"
        answer = await self.request("POST", path, body, seconds=self.timeout + (timeout_seconds or 60))
        return made(WaitResult, answer)

    async def pending_asks(
        self,
        *,
        pane_id: str | None = None,
        peer_id: str | None = None,
        direction: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[PendingAsk]:
        """Open asks of one peer, newest first: exactly one of the two ids; direction: inbound, outbound or both."""
        whose = {"pane_id": pane_id, "peer_id": peer_id, "direction": direction}
        answer = await self.request("GET", "/asks/pending", query={**whose, "limit": limit, "cursor": cursor})
        return all_made(PendingAsk, answer["asks"])

    async def asks_history(
        self,
        *,
        peer_id: str | None = None,
        direction: str | None = None,
        state: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AskPage:
        """Asks, newest first; state: open, closed or answered."""
        page = {"limit": limit, "cursor": cursor}
        query = {"peer_id": peer_id, "direction": direction, "state": state, **page}
        answer = await self.request("GET", "/asks/history", query=query)
        return made(AskPage, answer, asks=all_made(Ask, answer["asks"]))
