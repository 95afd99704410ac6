"""The routes of panes, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import DeliveryStanding, Json, LinkedPane, OrphanPane, Rehooked, all_made, given
from repowire.async_client.transport import Transport


class Panes(Transport):
    """What runs on the host and is no peer yet."""

    async def orphan_panes(self, *, tmux: str | None = None) -> list[OrphanPane]:
        """The panes of all tmux servers of this user that no peer has; `tmux`: a socket to look at too."""
        return all_made(OrphanPane, (await self.request("GET", "/panes/orphans", query={"tmux": tmux}))["panes"])

    async def link_pane(self, pane_id: str, backend: str, **more: Any) -> LinkedPane:
        """Make a pane a peer's, with a live way in, or undo it within 8 s; `more`: name, circle, cwd, tmux."""
        body = {"backend": backend, **given(more)}
        return await self._made(LinkedPane, "POST", f"/panes/{quote(pane_id, safe='')}/link", body)

    async def rehook_peer(self, name: str, *, apply: bool | None = None, **more: Any) -> Rehooked:
        """Try the way into a peer's pane; with `apply` open another where it is dead; `more`: circle, from_peer."""
        body = given({"apply": apply, **more})
        return await self._made(Rehooked, "POST", f"/peers/{quote(name, safe='')}/rehook", body)

    async def peer_doctor(self, name: str, *, circle: str | None = None) -> Json:
        """What is recorded of a peer and what is so: `contradictions`, with evidence and what mends each."""
        query = {"circle": circle}
        answer: Json = await self.request("GET", f"/peers/{quote(name, safe='')}/doctor", query=query)
        return answer

    async def doctor(self) -> Json:
        """The host, and each peer that is not offline; `ok` when nothing of it is an error."""
        answer: Json = await self.request("GET", "/doctor")
        return answer

    async def hold_peer(self, name: str, **more: Any) -> Json:
        """Keep all mail from a peer; `more`: reason, seconds (absent: until it is released), circle."""
        answer: Json = await self.request("POST", f"/peers/{quote(name, safe='')}/hold", given(more))
        return answer

    async def release_peer(self, name: str, *, circle: str | None = None) -> Json:
        """Let its mail through again."""
        body = given({"circle": circle})
        answer: Json = await self.request("POST", f"/peers/{quote(name, safe='')}/release", body)
        return answer

    async def deliver_now(self, delivery_id: str) -> DeliveryStanding:
        """Have one that waits go in now: past a hold and typing hands, and past no other gate."""
        return await self._made(DeliveryStanding, "POST", f"/deliveries/{quote(delivery_id, safe='')}/now", {})
