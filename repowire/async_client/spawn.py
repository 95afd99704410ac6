"""Agents started, ended and started again, as coroutines."""

from typing import Any
from urllib.parse import quote

from repowire.answers import (
    Json,
    KillPeerResult,
    RestartPeerResult,
    SessionNotifyResult,
    SessionResumeResult,
    SpawnConfigInfo,
    SpawnResult,
    given,
    made,
)
from repowire.async_client.transport import Transport

START_SECONDS = 80.0  # what a start may take over other requests: the login shell, tmux, and how long it is watched


class Spawns(Transport):
    """Agents in tmux windows of their own."""

    async def spawn_config(self) -> SpawnConfigInfo:
        """What may be started, and where."""
        return await self._made(SpawnConfigInfo, "GET", "/spawn/config")

    async def spawn(
        self,
        path: str,
        command: str | None = None,
        *,
        backend: str | None = None,
        profile: str | None = None,
        circle: str | None = None,
        message: str | None = None,
        **more: Any,
    ) -> SpawnResult:
        """Start an agent: by `command` or by `backend`; `message` is what it is told first. `more`: name, role."""
        named = {"command": command, "backend": backend, "profile": profile, "circle": circle, "message": message}
        body = {"path": path, **given({**named, **more})}
        return made(SpawnResult, await self.request("POST", "/spawn", body, seconds=self.timeout + START_SECONDS))

    async def kill_peer(
        self, peer_identifier: str, *, circle: str | None = None, from_peer: str | None = None
    ) -> KillPeerResult:
        """End an agent that was started here, and take the peer off the list."""
        body = {"peer_identifier": peer_identifier, **given({"circle": circle, "from_peer": from_peer})}
        answer = await self.request("POST", "/kill-peer", body, seconds=self.timeout + START_SECONDS)
        return made(KillPeerResult, answer)

    async def restart_peer(
        self,
        peer_identifier: str,
        *,
        circle: str | None = None,
        from_peer: str | None = None,
        dry_run: bool | None = None,
        message: str | None = None,
    ) -> RestartPeerResult:
        """End an agent and go on with its session, as the same peer; `dry_run` only says whether it could be."""
        body = given({"circle": circle, "from_peer": from_peer, "dry_run": dry_run, "message": message})
        path = f"/peers/{quote(peer_identifier, safe='')}/restart"
        return made(RestartPeerResult, await self.request("POST", path, body, seconds=self.timeout + START_SECONDS))

    async def switch_backend(self, name: str, new_backend: str, *, circle: str | None = None) -> Json:
        """End an agent and start one of another kind in its place, as the same peer; the answer names both kinds."""
        path, seconds = f"/peers/{quote(name, safe='')}/switch-backend", self.timeout + START_SECONDS
        body, query = {"new_backend": new_backend}, {"circle": circle}
        answer: Json = await self.request("POST", path, body, query=query, seconds=seconds)
        return answer

    async def notify_session(self, session_id: str, text: str, **more: Any) -> SessionNotifyResult:
        """Tell whoever lives in a session (`rw-session-…`) something; `more`: from_peer, attachments, bypass_circle."""
        path = f"/sessions/{quote(session_id, safe='')}/controls/notify"
        return made(SessionNotifyResult, await self.request("POST", path, {"text": text, **given(more)}))

    async def resume_session(
        self,
        session_id: str,
        *,
        dry_run: bool = True,
        profile: str | None = None,
        message: str | None = None,
        from_peer: str | None = None,
    ) -> SessionResumeResult:
        """Say whether a session can be gone on with, or with `dry_run=False` start an agent on it."""
        named = {"profile": profile, "message": message, "from_peer": from_peer}
        path, body = f"/sessions/{quote(session_id, safe='')}/controls/resume", {"dry_run": dry_run, **given(named)}
        return made(SessionResumeResult, await self.request("POST", path, body, seconds=self.timeout + START_SECONDS))
