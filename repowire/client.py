"""RepowireClient: the daemon's routes as methods, one a route, for programs that do one thing after the other."""

from typing import TYPE_CHECKING, Any

from repowire.transport import DaemonAway, Json, Transport, given, parse_events, parse_url, quote

if TYPE_CHECKING:
    from repowire import shapes

START_SECONDS = 80.0  # what a start may take over other requests: the login shell, tmux, and how long it is watched

__all__ = ["DaemonAway", "RepowireClient", "parse_events", "parse_url", "quote"]


class RepowireClient(Transport):
    """Answers are the JSON objects that docs/api.md shows. Raises `Refusal`, `DaemonAway` or `TimeoutError`.

    `**fields` and `**query` are the route's own fields; one that is None is left to the daemon's default. Durations
    are seconds, moments ISO-8601.
    """

    # -- the daemon ----------------------------------------------------------
    def health(self) -> "shapes.Health":
        """How the daemon is; needs no token."""
        return self._object("GET", "/health")

    def openapi(self) -> Json:
        """The daemon's routes, their fields and bounds as an OpenAPI 3.1 document."""
        return self._object("GET", "/openapi.json")

    def shutdown(self) -> "shapes.Stopping":
        """Ask the daemon to drain and end."""
        return self._object("POST", "/shutdown", {})

    def rotate_token(self) -> "shapes.Rotated":
        """A new token in the home's file; live TCP sockets are cut."""
        return self._object("POST", "/auth/rotate", {})

    # -- peers ---------------------------------------------------------------
    def list_peers(
        self,
        *,
        status: str | None = None,
        path: str | None = None,
        backend: str | None = None,
        circle: str | None = None,
        **query: Any,
    ) -> "list[shapes.Peer]":
        """Everybody known; `status="online"` counts the busy in; query: limit, cursor."""
        query = {"status": status, "path": path, "backend": backend, "circle": circle, **query}
        return list(self._object("GET", "/peers", query=query)["peers"])

    def get_peer(self, identifier: str, *, circle: str | None = None) -> "shapes.Peer":
        """One peer by id or name."""
        return self._object("GET", f"/peers/{quote(identifier)}", query={"circle": circle})

    def get_peer_by_pane(self, pane_id: str) -> "shapes.Peer":
        """The peer that holds a tmux pane, such as %42."""
        return self._object("GET", f"/peers/by-pane/{quote(pane_id)}")

    def register_peer(self, name: str, **fields: Any) -> "shapes.Registered":
        """Make or reclaim a peer; fields as in wire.md 1.2 (path, backend, circle, role, tmux_session, pane_id, …)."""
        return self._object("POST", "/peers", {"name": name, **given(fields)})

    def unregister_peer(self, name: str, *, circle: str | None = None) -> "shapes.Ok":
        """Remove a peer."""
        return self._object("DELETE", f"/peers/{quote(name)}", query={"circle": circle})

    def mark_peer_offline(self, name: str, **fields: Any) -> "shapes.WentOffline":
        """Say that a peer is gone; `terminal=True` retires it."""
        return self._object("POST", f"/peers/{quote(name)}/offline", given(fields))

    def touch_peer(self, name: str, *, circle: str | None = None) -> "shapes.Ok":
        """It is alive."""
        return self._object("POST", f"/peers/{quote(name)}/touch", query={"circle": circle})

    def set_description(self, name: str, description: str, *, circle: str | None = None) -> "shapes.Ok":
        """Say what a peer is at, in at most 2,000 characters."""
        body = {"description": description}
        return self._object("POST", f"/peers/{quote(name)}/description", body, query={"circle": circle})

    def set_circle(self, peer_name: str, circle: str) -> "shapes.Ok":
        """Move a peer to another circle; an unknown one is no error."""
        return self._object("POST", "/peers/circle", {"peer_name": peer_name, "circle": circle})

    def whoami(self) -> "shapes.Caller":
        """Who calls, by the process that it descends from: an agent's peer, or the human."""
        return self._object("GET", "/whoami")

    def claim_role(self, role: str, peer_name: str, **fields: Any) -> "shapes.RoleClaimed":
        """Make a peer the orchestrator of its circle; fields: circle (where to look), force (without effect)."""
        return self._object("POST", "/peers/claim-role", {"role": role, "peer_name": peer_name, **given(fields)})

    def orchestrator_status(self, circle: str) -> "shapes.Orchestrator":
        """Who orchestrates a circle, if anybody does."""
        return self._object("GET", f"/circles/{quote(circle)}/orchestrator")

    def validate_identity(self, birth_certificate: Json, backend: str, **fields: Any) -> "shapes.Validated":
        """Whether a certificate still proves who one is; fields: path, pane_id, agent_pid of the caller."""
        body = {"birth_certificate": birth_certificate, "backend": backend, **given(fields)}
        return self._object("POST", "/peers/identity/validate", body)

    def prune_peers(self, *, dry_run: bool | None = None, circle: str | None = None) -> "shapes.Pruned":
        """Take the offline peers off the list; what waits for them stays."""
        return self._object("POST", "/peers/prune", given({"dry_run": dry_run, "circle": circle}))

    def session_update(self, **fields: Any) -> "shapes.Ok":
        """Note status, turn_state, model or metadata of the peer that `peer_name` or `pane_id` names."""
        return self._object("POST", "/session/update", given(fields))

    # -- panes ---------------------------------------------------------------
    def orphan_panes(self, *, tmux: str | None = None) -> "shapes.OrphanPanes":
        """The panes of all tmux servers of this user that no peer has; `tmux`: a socket to look at too."""
        return self._object("GET", "/panes/orphans", query={"tmux": tmux})

    def link_pane(self, pane_id: str, backend: str, **fields: Any) -> "shapes.LinkedPane":
        """Make a pane a peer's, with a live way in, or undo it within 8 s; fields: name, circle, cwd, tmux."""
        body = {"backend": backend, **given(fields)}
        return self._object("POST", f"/panes/{quote(pane_id)}/link", body)

    def peer_doctor(self, name: str, *, circle: str | None = None) -> "shapes.PeerReport":
        """What is recorded of a peer and what is so: `contradictions`, with evidence and what mends each."""
        return self._object("GET", f"/peers/{quote(name)}/doctor", query={"circle": circle})

    def doctor(self) -> "shapes.HostReport":
        """The host, and each peer that is not offline; `ok` when nothing of it is an error."""
        return self._object("GET", "/doctor")

    def hold_peer(self, name: str, **fields: Any) -> "shapes.HeldPeer":
        """Keep all mail from a peer; fields: reason, seconds (absent: until it is released), circle."""
        return self._object("POST", f"/peers/{quote(name)}/hold", given(fields))

    def release_peer(self, name: str, *, circle: str | None = None) -> "shapes.HeldPeer":
        """Let its mail through again."""
        return self._object("POST", f"/peers/{quote(name)}/release", given({"circle": circle}))

    def deliver_now(self, delivery_id: str) -> "shapes.Standing":
        """Have one that waits go in now: past a hold and typing hands, and past no other gate."""
        return self._object("POST", f"/deliveries/{quote(delivery_id)}/now", {})

    def rehook_peer(self, name: str, *, apply: bool | None = None, **fields: Any) -> "shapes.Rehooked":
        """Try the way into a peer's pane; with `apply` open another where it is dead; fields: circle, from_peer."""
        return self._object("POST", f"/peers/{quote(name)}/rehook", given({"apply": apply, **fields}))

    # -- asks ----------------------------------------------------------------
    def ask(self, to_peer: str, text: str, *, idempotency_key: str | None = None, **fields: Any) -> "shapes.Asked":
        """Open an ask; fields: from_peer, reply_to, circle, bypass_circle, if_offline ("queue"), attachments, question.

        The same key and ask again within 24 h opens no second one and says what became of the first.
        """
        body = {"to_peer": to_peer, "text": text, **given(fields)}
        return self._object("POST", "/ask", body, idempotency_key=idempotency_key)

    def query(self, to_peer: str, text: str, *, timeout: float = 300.0, **fields: Any) -> "shapes.Queried":
        """Ask and wait for the reply, at most `timeout` seconds: `text`, or `error`; fields as in `ask`."""
        body = {"to_peer": to_peer, "text": text, "timeout": timeout, **given(fields)}
        return self._object("POST", "/query", body, timeout=self.timeout + timeout)

    def ask_many(
        self, to_peers: list[str], text: str, *, idempotency_key: str | None = None, **fields: Any
    ) -> "shapes.AskedMany":
        """Ask 1 to 50 peers at once; fields: from_peer, circle, bypass_circle, if_offline, attachments, and
        timeout_seconds, how long the answers are waited for.

        `children` says of each who was asked, by which ask, or why not. The same key again asks nobody twice.
        """
        body = {"to_peers": to_peers, "text": text, **given(fields)}
        return self._object("POST", "/ask-many", body, idempotency_key=idempotency_key)

    def ask_many_result(self, parent_id: str) -> "shapes.Rollup":
        """The roll-up of an ask-many: `state` pending, partial or complete, and what each child answered."""
        return self._object("GET", f"/ask-many/{quote(parent_id)}")

    def ack(
        self,
        correlation_id: str,
        *,
        message: str | None = None,
        attachments: list[Json] | None = None,
        from_peer: str | None = None,
    ) -> "shapes.Acked":
        """Close an ask, with a reply or bare. The same again is no error."""
        fields = {"message": message, "attachments": attachments, "from_peer": from_peer}
        return self._object("POST", "/ack", {"correlation_id": correlation_id, **given(fields)})

    def decline(self, correlation_id: str, reason: str) -> "shapes.Acked":
        """Close an ask that will not be answered; the asker gets the reason. The same again is no error."""
        return self._object("POST", "/decline", {"correlation_id": correlation_id, "reason": reason})

    def respond(self, pane_id: str, text: str, *, correlation_id: str | None = None) -> "shapes.Acked":
        """Answer as the peer of a pane: the ask that is named, else the oldest open one (the legacy way)."""
        body = {"pane_id": pane_id, "text": text, **given({"correlation_id": correlation_id})}
        return self._object("POST", "/response", body)

    def wait_ask(
        self, correlation_id: str, *, peer_id: str | None = None, timeout_seconds: float | None = None
    ) -> "shapes.Waited":
        """Wait once for the reply, at most as long as the daemon's cap allows: `status` is resolved or pending."""
        body = given({"peer_id": peer_id, "timeout_seconds": timeout_seconds})
        path = f"/asks/{quote(correlation_id)}/wait"
        return self._object("POST", path, body, timeout=self.timeout + (timeout_seconds or 60))

    def pending_asks(
        self, *, peer_id: str | None = None, pane_id: str | None = None, direction: str | None = None, **query: Any
    ) -> "list[shapes.OpenAsk]":
        """Open asks of one peer, newest first: one of the two ids; direction: inbound, outbound, both; limit."""
        query = {"peer_id": peer_id, "pane_id": pane_id, "direction": direction, **query}
        return list(self._object("GET", "/asks/pending", query=query)["asks"])

    def asks_history(self, **query: Any) -> "shapes.AskPage":
        """A page of asks, open and closed; query: peer_id, direction, state (open, closed, answered), limit, cursor."""
        return self._object("GET", "/asks/history", query=query)

    # -- questions -----------------------------------------------------------
    def answer(self, correlation_id: str, **fields: Any) -> "shapes.Acked":
        """Answer a structured question; fields: option_id, text, outcome, message, attachments, surface, digest.

        409 with the `winner` when another surface was first.
        """
        return self._object("POST", "/answer", {"correlation_id": correlation_id, **given(fields)})

    def ask_blocking(self, prompt: str, *, timeout_seconds: float | None = None, **fields: Any) -> "shapes.Blocked":
        """Ask the human and wait; fields: options, scope, metadata, origin, correlation_id, runtime_timeout_seconds,
        dialog, from_peer. Of a tool permission only the decision `allow` is one."""
        body = given({"prompt": prompt, "timeout_seconds": timeout_seconds, **fields})
        seconds = self.timeout + max(timeout_seconds or 60.0, fields.get("runtime_timeout_seconds") or 0.0)
        return self._object("POST", "/questions/ask-blocking", body, timeout=seconds)

    def withdraw_question(self, **fields: Any) -> "shapes.Withdrawn":
        """Take back what needs no answer; fields: correlation_id, or metadata of a session's call; reason."""
        return self._object("POST", "/questions/withdraw", given(fields))

    def questions(self, **query: Any) -> "shapes.QuestionPage":
        """A page of questions to the human, newest first; query: state (open, closed, all), limit, cursor."""
        return self._object("GET", "/questions", query=query)

    def question(self, correlation_id: str) -> "shapes.Question":
        """One question, and how it ended."""
        return self._object("GET", f"/questions/{quote(correlation_id)}")

    # -- messages and deliveries ---------------------------------------------
    def notify(
        self, to_peer: str, text: str, *, idempotency_key: str | None = None, **fields: Any
    ) -> "shapes.Notified":
        """Tell a peer something that wants no answer; fields: from_peer, circle, bypass_circle, attachments.

        The same key and note again within 24 h sends no second one.
        """
        body = {"to_peer": to_peer, "text": text, **given(fields)}
        return self._object("POST", "/notify", body, idempotency_key=idempotency_key)

    def broadcast(self, text: str, **fields: Any) -> "shapes.Spread":
        """Tell all that are connected; fields: from_peer, exclude (names), bypass_circle. `sent_to` and `failed`."""
        return self._object("POST", "/broadcast", {"text": text, **given(fields)})

    def messages(self, **query: Any) -> "shapes.MessagePage":
        """A page of all that was said; query: peer, circle, kind, state, since (ISO-8601), limit, cursor."""
        return self._object("GET", "/messages", query=query)

    def message(self, message_id: str) -> "shapes.TracedMessage":
        """One message, by its ask's or its delivery's id, with its trace."""
        return self._object("GET", f"/messages/{quote(message_id)}")

    def delivery(self, delivery_id: str) -> "shapes.Delivery":
        """One delivery and what is proven of it."""
        return self._object("GET", f"/deliveries/{quote(delivery_id)}")

    def deliveries(self, *, dead: bool | None = None, **query: Any) -> "shapes.DeliveryPage":
        """A page of deliveries, newest first; `dead`: failed and expired ones; query: peer, state, limit, cursor."""
        return self._object("GET", "/deliveries", query={"dead": "true" if dead else None, **query})

    def pick_up(
        self,
        *,
        peer_id: str | None = None,
        pane_id: str | None = None,
        max_results: int | None = None,
        confirm: bool = True,
    ) -> "shapes.PickUp":
        """Lease what waits for a peer: `deliveries`, and the `lease` with which `confirm` says that they were read.

        With `confirm=False` they are yours at once, and nobody will know whether they were read.
        """
        said = "true" if confirm else "false"
        query = {"peer_id": peer_id, "pane_id": pane_id, "max_results": max_results, "confirm": said}
        return self._object("GET", "/deliveries/pending", query=query)

    def confirm(self, lease: str, *, delivery_ids: list[str] | None = None, **fields: Any) -> "shapes.Confirmed":
        """What was picked up stands before its reader; fields: status (injected, held, rejected, failed), detail."""
        body = {"lease": lease, **given({"delivery_ids": delivery_ids, **fields})}
        return self._object("POST", "/deliveries/confirm", body)

    def retry_delivery(self, delivery_id: str) -> "shapes.Standing":
        """Put a dead delivery back into its mailbox."""
        return self._object("POST", f"/deliveries/{quote(delivery_id)}/retry", {})

    def drop_delivery(self, delivery_id: str) -> "shapes.Standing":
        """Take a dead delivery off the list, or a waiting one out of its mailbox."""
        return self._object("DELETE", f"/deliveries/{quote(delivery_id)}")

    # -- agents that are started here ------------------------------------------
    def spawn_config(self) -> "shapes.SpawnConfig":
        """What may be started, and where."""
        return self._object("GET", "/spawn/config")

    def spawn(self, path: str, command: str | None = None, **fields: Any) -> "shapes.Spawned":
        """Start an agent in a tmux window of its own: by `command`, or by the field backend. Fields: profile, circle,
        name, message (what it is told first), role."""
        body = {"path": path, **given({"command": command, **fields})}
        return self._object("POST", "/spawn", body, timeout=self.timeout + START_SECONDS)

    def kill_peer(
        self, peer_identifier: str, *, circle: str | None = None, from_peer: str | None = None
    ) -> "shapes.Killed":
        """End an agent that was started here, and take the peer off the list; `tmux_killed` None: only that."""
        body = {"peer_identifier": peer_identifier, **given({"circle": circle, "from_peer": from_peer})}
        return self._object("POST", "/kill-peer", body, timeout=self.timeout + START_SECONDS)

    def restart_peer(self, peer_identifier: str, **fields: Any) -> "shapes.Restarted":
        """End an agent and go on with its session, as the same peer; fields: circle, from_peer, dry_run (only say
        whether it could be), message (what it is told first)."""
        path = f"/peers/{quote(peer_identifier)}/restart"
        return self._object("POST", path, given(fields), timeout=self.timeout + START_SECONDS)

    def switch_backend(self, name: str, new_backend: str, *, circle: str | None = None) -> "shapes.Switched":
        """End an agent and start one of another kind in its place, as the same peer."""
        path, body = f"/peers/{quote(name)}/switch-backend", {"new_backend": new_backend}
        return self._object("POST", path, body, query={"circle": circle}, timeout=self.timeout + START_SECONDS)

    def notify_session(self, session_id: str, text: str, **fields: Any) -> "shapes.SessionNotified":
        """Tell whoever lives in a session (`rw-session-…`) something; fields: from_peer, attachments, bypass_circle."""
        path = f"/sessions/{quote(session_id)}/controls/notify"
        return self._object("POST", path, {"text": text, **given(fields)})

    def resume_session(self, session_id: str, *, dry_run: bool = True, **fields: Any) -> "shapes.SessionResumed":
        """Say whether a session can be gone on with, or with `dry_run=False` start an agent on it; fields: profile,
        message, from_peer."""
        path, body = f"/sessions/{quote(session_id)}/controls/resume", {"dry_run": dry_run, **given(fields)}
        return self._object("POST", path, body, timeout=self.timeout + START_SECONDS)

    # -- what was said --------------------------------------------------------
    def transcript(self, name: str, **query: Any) -> "shapes.Transcript":
        """What a peer and its user said, the newest turn first; query: limit, before (the page's `next_before`),
        session_id, circle."""
        return self._object("GET", f"/peers/{quote(name)}/transcript", query=query)

    def timeline(self, name: str, **query: Any) -> "shapes.Timeline":
        """The same with what is heard just now, in order of time; query: limit, session_id, circle."""
        return self._object("GET", f"/peers/{quote(name)}/timeline", query=query)

    def search_timeline(self, name: str, q: str, **query: Any) -> "shapes.TimelineSearch":
        """Find words in it, in capitals or not; query: limit, session_id, circle."""
        return self._object("GET", f"/peers/{quote(name)}/timeline/search", query={"q": q, **query})

    # -- MCP servers of a peer's own configuration -----------------------------
    def list_mcp_servers(self, peer_name: str, *, circle: str | None = None) -> "shapes.McpServers":
        """The servers, and which scopes the configuration has. What their environment holds is never shown."""
        return self._object("GET", f"/peers/{quote(peer_name)}/mcp", query={"circle": circle})

    def add_mcp_server(
        self, peer_name: str, name: str, *, scope: str | None = None, circle: str | None = None, **fields: Any
    ) -> "shapes.McpChanged":
        """Put one in, for the agent's next start; fields: type (stdio, http, sse), command, args, url, env."""
        body, query = {"name": name, **given(fields)}, {"scope": scope, "circle": circle}
        return self._object("POST", f"/peers/{quote(peer_name)}/mcp", body, query=query)

    def remove_mcp_server(
        self, peer_name: str, server: str, *, scope: str | None = None, circle: str | None = None
    ) -> "shapes.McpChanged":
        """Take one out, for the agent's next start."""
        query = {"scope": scope, "circle": circle}
        return self._object("DELETE", f"/peers/{quote(peer_name)}/mcp/{quote(server)}", query=query)

    # -- traces and events ---------------------------------------------------
    def trace(self, trace_id: str) -> "shapes.Trace":
        """The stages of an ask or a message."""
        return self._object("GET", f"/traces/{quote(trace_id)}")

    def events(self, *, since: int | str | None = None, limit: int | None = None) -> list[Json]:
        """The newest events, oldest first, at most 500; `since` an event's id, what followed it."""
        query = {"since": since, "limit": limit}
        return list(self.request("GET", "/events", query=query))

    def ingest_chat_turn(self, peer: str, role: str, text: str, **fields: Any) -> "shapes.Ok":
        """A runtime says a turn of its own; role: user or assistant; fields: peer_id, pane_id, session_id, turn_id,
        tool_calls."""
        return self._object("POST", "/events/chat", {"peer": peer, "role": role, "text": text, **given(fields)})

    def ingest_chat_delta(self, peer: str, turn_id: str, chunk_index: int, **fields: Any) -> "shapes.Ok":
        """A piece of a turn while it is made; fields: role, kind (text, tool_use), text, tool_call, is_final,
        session_id, peer_id, pane_id."""
        body = {"peer": peer, "turn_id": turn_id, "chunk_index": chunk_index, **given(fields)}
        return self._object("POST", "/events/chat_delta", body)
