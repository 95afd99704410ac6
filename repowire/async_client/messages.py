"""The routes of messages, deliveries, traces and events, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import (
    BroadcastResult,
    Delivery,
    DeliveryPage,
    DeliveryStanding,
    Json,
    MeshEvent,
    MessagePage,
    NotifyResult,
    PickedUp,
    PickUp,
    SaidMessage,
    Stage,
    Trace,
    TracedMessage,
    all_made,
    given,
    made,
)
from repowire.async_client.transport import Transport, event_of


class Messages(Transport):
    """What is said, and what became of it."""

    async def notify(
        self,
        to_peer: str,
        text: str,
        *,
        from_peer: str | None = None,
        attachments: list[Json] | None = None,
        bypass_circle: bool = False,
        circle: str | None = None,
        idempotency_key: str | None = None,
    ) -> NotifyResult:
        """Tell a peer something that wants no answer; it waits for one that is offline. A key again sends no second."""
        more = {"from_peer": from_peer, "attachments": attachments, "circle": circle}
        body = {"to_peer": to_peer, "text": text, "bypass_circle": bypass_circle, **more}
        return await self._made(NotifyResult, "POST", "/notify", given(body), idempotency_key=idempotency_key)

    async def broadcast(
        self,
        text: str,
        *,
        from_peer: str | None = None,
        exclude: list[str] | None = None,
        bypass_circle: bool = False,
    ) -> BroadcastResult:
        """Tell all that are connected, save the excluded names."""
        body = {"text": text, "from_peer": from_peer, "exclude": exclude, "bypass_circle": bypass_circle}
        return made(BroadcastResult, await self.request("POST", "/broadcast", given(body)))

    async def messages(
        self,
        *,
        peer: str | None = None,
        circle: str | None = None,
        kind: str | None = None,
        state: str | None = None,
        since: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> MessagePage:
        """All that was said, newest first; kind: ask, notify, broadcast or reply; `since` is a moment in ISO-8601."""
        page = {"limit": limit, "cursor": cursor}
        query = {"peer": peer, "circle": circle, "kind": kind, "state": state, "since": since, **page}
        answer = await self.request("GET", "/messages", query=query)
        return made(MessagePage, answer, messages=all_made(SaidMessage, answer["messages"]))

    async def message(self, message_id: str) -> TracedMessage:
        """One message, by its ask's or its delivery's id, with its trace."""
        answer = await self.request("GET", f"/messages/{quote(message_id, safe='')}")
        return made(TracedMessage, answer, trace=all_made(Stage, answer["trace"]))

    async def delivery(self, delivery_id: str) -> Delivery:
        """One delivery and what is proven of it."""
        return await self._made(Delivery, "GET", f"/deliveries/{quote(delivery_id, safe='')}")

    async def deliveries(
        self,
        *,
        peer: str | None = None,
        state: str | None = None,
        dead: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> DeliveryPage:
        """Deliveries, newest first; `dead`: those that failed or expired and that nobody dropped."""
        page = {"limit": limit, "cursor": cursor}
        query = {"peer": peer, "state": state, "dead": "true" if dead else None, **page}
        answer = await self.request("GET", "/deliveries", query=query)
        return made(DeliveryPage, answer, deliveries=all_made(Delivery, answer["deliveries"]))

    async def pick_up(
        self,
        *,
        peer_id: str | None = None,
        pane_id: str | None = None,
        max_results: int | None = None,
        confirm: bool = True,
    ) -> PickUp:
        """Lease what waits for a peer; `confirm` then says that it was read. With `confirm=False` it is yours at once,
        and nobody will know whether it was read."""
        said = "true" if confirm else "false"
        query = {"peer_id": peer_id, "pane_id": pane_id, "max_results": max_results, "confirm": said}
        answer = await self.request("GET", "/deliveries/pending", query=query)
        return made(PickUp, answer, deliveries=all_made(PickedUp, answer["deliveries"]))

    async def confirm(
        self,
        lease: str,
        *,
        delivery_ids: list[str] | None = None,
        status: str | None = None,
        detail: str | None = None,
    ) -> list[str]:
        """Say what became of what was picked up (injected, held, rejected, failed): the delivery ids it was said of."""
        body = given({"lease": lease, "delivery_ids": delivery_ids, "status": status, "detail": detail})
        return list((await self.request("POST", "/deliveries/confirm", body))["confirmed"])

    async def retry_delivery(self, delivery_id: str) -> DeliveryStanding:
        """Put a dead delivery back into its mailbox."""
        return await self._made(DeliveryStanding, "POST", f"/deliveries/{quote(delivery_id, safe='')}/retry", {})

    async def drop_delivery(self, delivery_id: str) -> DeliveryStanding:
        """Take a dead delivery off the list, or a waiting one out of its mailbox."""
        return await self._made(DeliveryStanding, "DELETE", f"/deliveries/{quote(delivery_id, safe='')}")

    async def trace(self, trace_id: str) -> Trace:
        """The stages of an ask or a message."""
        answer = await self.request("GET", f"/traces/{quote(trace_id, safe='')}")
        return made(Trace, answer, stages=all_made(Stage, answer["stages"]))

    async def events(self, *, since: int | str | None = None, limit: int | None = None) -> list[MeshEvent]:
        """The newest events, oldest first, at most 500; `since` an event's id, what followed it."""
        return [event_of(each) for each in await self.request("GET", "/events", query={"since": since, "limit": limit})]

    async def ingest_chat_turn(
        self,
        peer: str,
        role: str,
        text: str,
        *,
        peer_id: str | None = None,
        pane_id: str | None = None,
        session_id: str | None = None,
        turn_id: str | None = None,
        tool_calls: list[Json] | None = None,
    ) -> None:
        """A runtime says a turn of its own; role: user or assistant."""
        who = {"peer": peer, "peer_id": peer_id, "pane_id": pane_id, "session_id": session_id}
        body = {**who, "role": role, "text": text, "turn_id": turn_id, "tool_calls": tool_calls}
        await self.request("POST", "/events/chat", given(body))

    async def ingest_chat_delta(self, peer: str, turn_id: str, chunk_index: int, **more: Any) -> None:
        """A piece of a turn while it is made; `more`: role, kind (text, tool_use), text, tool_call, is_final,
        session_id, peer_id, pane_id."""
        body = {"peer": peer, "turn_id": turn_id, "chunk_index": chunk_index, **given(more)}
        await self.request("POST", "/events/chat_delta", body)
