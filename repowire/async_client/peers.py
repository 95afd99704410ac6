"""The routes of the daemon and its peers, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import (
    ClientPeer,
    Health,
    Json,
    OrchestratorStatus,
    RegisterPeerResult,
    given,
    made,
)
from repowire.async_client.transport import Transport


class Peers(Transport):
    """Who there is, and how the daemon is."""

    async def health(self) -> Health:
        """GET /health; needs no token."""
        return made(Health, await self.request("GET", "/health"))

    async def openapi(self) -> Json:
        """The daemon's routes, their fields and bounds as an OpenAPI 3.1 document."""
        answer: Json = await self.request("GET", "/openapi.json")
        return answer

    async def shutdown(self) -> None:
        """Ask the daemon to drain and end."""
        await self.request("POST", "/shutdown", {})

    async def rotate_token(self) -> str:
        """A new token, in the file that is returned; live TCP sockets are cut."""
        return str((await self.request("POST", "/auth/rotate", {}))["token_file"])

    async def list_peers(
        self,
        *,
        status: str | None = None,
        path: str | None = None,
        backend: str | None = None,
        circle: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[ClientPeer]:
        """GET /peers; `status="online"` counts the busy in."""
        places = {"path": path, "circle": circle, "limit": limit, "cursor": cursor}
        query = {"status": status, "backend": backend, **places}
        return [made(ClientPeer, peer) for peer in (await self.request("GET", "/peers", query=query))["peers"]]

    async def get_peer(self, identifier: str, *, circle: str | None = None) -> ClientPeer:
        """One peer by id or name."""
        answer = await self.request("GET", f"/peers/{quote(identifier, safe='')}", query={"circle": circle})
        return made(ClientPeer, answer)

    async def get_peer_by_pane(self, pane_id: str) -> ClientPeer:
        """The peer that holds a tmux pane, such as %42."""
        return await self._made(ClientPeer, "GET", f"/peers/by-pane/{quote(pane_id, safe='')}")

    async def register_peer(
        self,
        name: str,
        *,
        path: str | None = None,
        machine: str | None = None,
        tmux_session: str | None = None,
        pane_id: str | None = None,
        backend: str | None = None,
        circle: str | None = None,
        circle_source: str | None = None,
        role: str | None = None,
        metadata: Json | None = None,
        **more: Any,
    ) -> RegisterPeerResult:
        """POST /peers; `more`: model, turn_state, agent_pid, parent_pid, peer_id, birth_certificate."""
        named = {
            "path": path,
            "machine": machine,
            "tmux_session": tmux_session,
            "pane_id": pane_id,
            "backend": backend,
            "circle": circle,
            "circle_source": circle_source,
            "role": role,
            "metadata": metadata,
        }
        answer = await self.request("POST", "/peers", {"name": name, **given(named), **given(more)})
        return made(RegisterPeerResult, answer)

    async def unregister_peer(self, name: str, *, circle: str | None = None) -> None:
        """DELETE /peers/{name}."""
        await self.request("DELETE", f"/peers/{quote(name, safe='')}", query={"circle": circle})

    async def mark_peer_offline(self, name: str, **more: Any) -> int:
        """Say that a peer is gone; how many of its queries ended with it. `more`: reason, source, detail, terminal."""
        answer = await self.request("POST", f"/peers/{quote(name, safe='')}/offline", given(more) or None)
        return int(answer["cancelled_queries"])

    async def touch_peer(self, name: str, *, circle: str | None = None) -> None:
        """It is alive."""
        await self.request("POST", f"/peers/{quote(name, safe='')}/touch", query={"circle": circle})

    async def set_description(self, name: str, description: str, *, circle: str | None = None) -> None:
        """Say what a peer is at, in at most 2,000 characters."""
        body = {"description": description}
        await self.request("POST", f"/peers/{quote(name, safe='')}/description", body, query={"circle": circle})

    async def set_circle(self, peer_name: str, circle: str) -> None:
        """Move a peer to another circle; an unknown one is no error."""
        await self.request("POST", "/peers/circle", {"peer_name": peer_name, "circle": circle})

    async def whoami(self) -> Json:
        """Who calls: `kind` is agent or human, `peer` the PeerInfo or None."""
        answer: Json = await self.request("GET", "/whoami")
        return answer

    async def claim_role(self, role: str, peer_name: str, **more: Any) -> Json:
        """Make a peer the orchestrator of its circle; `more`: circle (where to look), force (without effect)."""
        body = {"role": role, "peer_name": peer_name, **given(more)}
        answer: Json = await self.request("POST", "/peers/claim-role", body)
        return answer

    async def orchestrator_status(self, circle: str) -> OrchestratorStatus:
        """Who orchestrates a circle, if anybody does."""
        return await self._made(OrchestratorStatus, "GET", f"/circles/{quote(circle, safe='')}/orchestrator")

    async def validate_identity(self, birth_certificate: Json, backend: str, **more: Any) -> ClientPeer:
        """The peer that a certificate still proves one to be; `more`: path, pane_id, agent_pid of the caller."""
        body = {"birth_certificate": birth_certificate, "backend": backend, **given(more)}
        return made(ClientPeer, (await self.request("POST", "/peers/identity/validate", body))["peer"])

    async def prune_peers(self, *, dry_run: bool | None = None, circle: str | None = None) -> list[Json]:
        """Take the offline peers off the list, and say which; what waits for them stays."""
        body = given({"dry_run": dry_run, "circle": circle})
        return list((await self.request("POST", "/peers/prune", body))["pruned"])

    async def session_update(self, **values: Any) -> None:
        """Note status, turn_state, model or metadata of the peer that `peer_name` or `pane_id` names."""
        await self.request("POST", "/session/update", given(values))
