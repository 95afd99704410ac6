"""What the daemon's answers are to `RepowireClient`: JSON objects, with the fields that the document gives them.

For type checkers alone; nothing imports this when it runs. Moments are ISO-8601 in UTC, durations seconds.
"""

from typing import Any, Literal, NotRequired, TypedDict

Json = dict[str, Any]
Backend = Literal["claude-code", "opencode", "codex", "gemini", "antigravity", "pi", "mcp-http", "shell"]
SeemingBackend = Literal[
    "claude-code", "opencode", "codex", "gemini", "antigravity", "pi", "mcp-http", "shell", "unknown"
]
Role = Literal["agent", "service", "orchestrator", "human"]
TurnState = Literal["idle", "working", "awaiting_input", "pending_first_turn"]
State = Literal["queued", "leased", "held", "handed", "seen", "answered", "failed", "expired", "unknown"]

Outcome = Literal["answered", "acknowledged", "denied", "timed_out", "cancelled"]
Decision = Literal["allow", "deny", "none"]


# -- the daemon and its peers ----------------------------------------------------
class Channel(TypedDict):
    status: str
    configured: bool
    runtime_available: bool
    stop_hook_fallback: bool
    last_error: str | None


class Health(TypedDict):
    status: Literal["ok"]
    version: str
    relay_mode: bool
    channel: Channel
    acp_broker: Json
    degraded: list[str]


class Stopping(TypedDict):
    status: Literal["shutting_down"]


class Rotated(TypedDict):
    ok: bool
    token_file: str


class Ok(TypedDict):
    ok: bool


class Peer(TypedDict):
    peer_id: str
    name: str
    display_name: str
    path: str | None
    machine: str | None
    tmux_session: str | None
    backend: Backend
    model: str | None
    circle: str
    role: Role
    status: Literal["online", "busy", "offline"]
    turn_state: TurnState | None
    last_seen: str | None
    metadata: Json
    description: str
    ws_connected: bool
    hook_supports_receipts: bool
    last_successful_injection_at: str | None
    last_injection_failure_at: str | None
    pending_ask_count: int
    oldest_pending_age_seconds: float | None
    pane_safe: bool | None
    inbound_status: Literal["offline", "pane_unsafe", "no_hook", "legacy_unverified", "inbound_degraded", "online"]


class BirthCertificate(TypedDict):
    nonce: str
    peer_id: str
    display_name: str
    backend: Backend
    project_path: str
    runtime_session_id: str | None
    pane_id: str | None
    agent_pid: int | None
    parent_pid: int | None
    metadata: Json
    issued_at: str
    expires_at: str


class Registered(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    pane_assigned: bool
    birth_certificate: BirthCertificate | None


class Caller(TypedDict):
    kind: Literal["agent", "human"]
    peer: Peer | None


class PreviousHolder(TypedDict):
    peer_id: str
    display_name: str
    status: Literal["online", "busy", "offline"]
    last_seen: str | None


class RoleClaimed(TypedDict):
    ok: bool
    peer_id: str
    peer_name: str
    role: Role
    circle: str
    already_held: bool
    previous_holders: list[PreviousHolder]


class Orchestrator(TypedDict):
    circle: str
    present: bool
    peer_id: str | None
    peer_name: str | None
    last_seen: str | None
    stale_after_seconds: float


class Validated(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    peer: Peer


class PrunedPeer(TypedDict):
    peer_id: str
    display_name: str
    circle: str
    path: str | None
    last_seen: str | None
    waiting: bool


class Pruned(TypedDict):
    ok: bool
    dry_run: bool
    pruned: list[PrunedPeer]


class WentOffline(TypedDict):
    ok: bool
    cancelled_queries: int


# -- panes -------------------------------------------------------------------------
class OrphanPane(TypedDict):
    pane_id: str
    pid: int
    command: str
    cwd: str
    session: str
    window: str
    detected_backend: SeemingBackend
    confidence: Literal["hint", "unknown"]
    agent_pid: int | None
    tmux: str


class OrphanPanes(TypedDict):
    panes: list[OrphanPane]
    silent: list[str]


class LinkedPane(TypedDict):
    linked: bool
    pane_id: str
    peer_id: str | None
    display_name: str | None
    transport_connected: bool
    reason: Literal[
        "linked", "pane_gone", "agent_gone", "ws_hook_spawn_failed", "transport_unestablished", "daemon_stopped"
    ]
    repair_hint: str | None


Code = Literal[
    "ONLINE_BUT_NO_WS",
    "PANE_MISSING",
    "AGENT_PID_DEAD",
    "HOOK_PEERID_MISMATCH",
    "WS_PANE_MISMATCH",
    "STALE_PENDING_ASK",
    "DEAD_BUT_BUSY",
    "HELD_MAIL",
    "HOOKS_MISSING",
    "HOOKS_STALE",
    "INBOX_HELD",
    "TMUX_SERVER_CHANGED",
    "VERSION_SKEW",
]


class Contradiction(TypedDict):
    code: Code
    severity: Literal["error", "warning"]
    detail: str
    repair: str
    evidence: Json
    fix: Literal["rehook"] | None


class PaneEvidence(TypedDict):
    tmux_session: str
    current_path: str
    pane_pid: int


class HeldDelivery(TypedDict):
    delivery_id: str
    reason: str | None
    since: str


class Hold(TypedDict):
    reason: str | None
    since: str
    until: str | None


class HeldPeer(TypedDict):
    ok: bool
    peer_id: str
    display_name: str
    hold: Hold | None
    waiting: int


class PeerReport(TypedDict):
    peer_id: str
    display_name: str
    status: Literal["online", "busy", "offline"]
    turn_state: TurnState | None
    last_seen: str | None
    machine: str | None
    backend: Backend
    circle: str
    role: Role
    pane_id: str | None
    is_local_machine: bool
    ws_connected: bool
    ws_pane_id: str | None
    tmux_pane_exists: bool | None
    tmux_evidence: PaneEvidence | None
    hook_meta_available: bool
    hook_meta_peer_id: str | None
    hook_meta_display_name: str | None
    agent_pid: int | None
    agent_pid_alive: bool | None
    pending_inbound_count: int
    oldest_pending_age_seconds: float | None
    oldest_pending_cid: str | None
    contradictions: list[Contradiction]
    way_in: Literal["socket", "pane", "channel"] | None
    waiting: int
    held: list[HeldDelivery]
    hold: Hold | None
    says: str | None
    hook_version: str | None
    daemon_version: str


class HostCheck(TypedDict):
    check: str
    ok: bool
    severity: Literal["error", "warning"]
    detail: str
    repair: str | None


class TroubledPeer(TypedDict):
    peer_id: str
    display_name: str
    contradictions: list[Contradiction]


class HostReport(TypedDict):
    ok: bool
    version: str
    machine: str
    checks: list[HostCheck]
    peers_looked_at: int
    peers: list[TroubledPeer]


class Rehooked(TypedDict):
    ok: bool
    acted: bool
    peer_id: str
    display_name: str
    pane_id: str
    ws_was_connected: bool
    ping_ok: bool | None
    pane_verified: bool
    ws_hook_respawned: bool
    reason: Literal["already_healthy", "dry_run", "respawned", "respawn_skipped_pid_alive_or_contested"]
    detail: str


# -- asks --------------------------------------------------------------------------
class Asked(TypedDict):
    correlation_id: str
    error: str | None
    to_peer: str
    to_peer_id: str
    delivery_id: str
    delivery_state: Literal["queued", "delivered"]
    delivered: bool
    queued: bool
    state: State


class Acked(TypedDict):
    ok: bool
    delivery_state: NotRequired[Literal["queued", "delivered"]]
    delivered: NotRequired[bool]
    queued: NotRequired[bool]
    state: NotRequired[State]


class Waited(TypedDict):
    correlation_id: str
    status: Literal["resolved", "pending"]
    reply: str | None
    outcome: str | None
    option_id: str | None
    message: str | None
    close_reason: str | None
    responder: str | None
    attachments: list[Json]


class OpenAsk(TypedDict):
    correlation_id: str
    from_peer: str
    to_peer: str
    text: str
    created_at: str
    direction: Literal["inbound", "outbound"]


class Ask(TypedDict):
    correlation_id: str
    from_peer: str
    to_peer: str
    from_peer_id: str | None
    to_peer_id: str
    text: str
    reply_to: str | None
    parent_id: str | None
    created_at: str
    state: Literal["open", "closed"]
    closed_at: str | None
    close_reason: str | None
    reply: str | None
    replied_by: str | None
    question: Json | None
    outcome: Outcome | None
    option_id: str | None
    delivery_state: State | None
    delivery_reason: str | None


class Option(TypedDict):
    id: str
    title: str
    description: str | None


class Blocked(TypedDict):
    correlation_id: str
    outcome: Outcome
    option_id: str | None
    text: str | None
    message: str | None
    decision: Decision | None
    digest: str | None


class Question(TypedDict):
    correlation_id: str
    from_peer: str
    from_peer_id: str | None
    prompt: str
    kind: Literal["acknowledge", "choice", "text"]
    options: list[Option]
    scope: Literal["mesh_ask", "tool_permission", "user_question"] | None
    origin: str | None
    metadata: Json
    digest: str | None
    dialog: bool
    state: Literal["open", "closed"]
    created_at: str
    expires_at: str
    closed_at: str | None
    outcome: Outcome | None
    option_id: str | None
    text: str | None
    message: str | None
    reason: str | None
    answered_by: str | None
    surface: str | None
    decision: Decision | None


class QuestionPage(TypedDict):
    questions: list[Question]
    next: str | None


class Withdrawn(TypedDict):
    ok: bool
    withdrawn: list[str]


class AskPage(TypedDict):
    asks: list[Ask]
    next: str | None


class AskManyChild(TypedDict):
    peer: str
    correlation_id: str | None
    delivered: bool
    state: State | None
    error: str | None


class AskedMany(TypedDict):
    parent_id: str
    children: list[AskManyChild]


class AskManyAnswer(TypedDict):
    peer: str
    peer_id: str | None
    correlation_id: str | None
    status: Literal["acked", "replied", "pending", "failed"]
    reply: str | None
    close_reason: str | None
    error: str | None


class Counts(TypedDict):
    total: int
    acked: int
    replied: int
    pending: int
    failed: int


class Rollup(TypedDict):
    parent_id: str
    from_peer: str
    text: str
    created_at: str
    deadline: str
    state: Literal["pending", "partial", "complete"]
    timed_out: bool
    rollup: Counts
    children: list[AskManyAnswer]


class Queried(TypedDict):
    text: str | None
    error: str | None
    status: Literal["busy", "offline"] | None
    correlation_id: NotRequired[str]


# -- messages and deliveries ---------------------------------------------------------
class Notified(TypedDict):
    ok: bool
    status: Literal["sent", "queued"]
    delivery_state: Literal["queued", "delivered"]
    delivered: bool
    queued: bool
    state: State
    reason: Literal["transport_delivered", "queued_delivery"]
    from_peer_id: str | None
    from_peer_name: str
    to_peer_id: str
    to_peer_name: str
    repowire_session_id: str | None
    from_repowire_session_id: str | None
    to_repowire_session_id: str | None
    hook_delivery: Json | None
    delivery_id: str


class Failed(TypedDict):
    peer: str
    error: str


class Copy(TypedDict):
    peer_id: str
    delivery_id: str
    state: State


class Spread(TypedDict):
    ok: bool
    sent_to: list[str]
    failed: list[Failed]
    broadcast_id: str
    deliveries: list[Copy]


class Stage(TypedDict):
    seq: int
    stage: str
    status: Literal["ok", "fail"]
    peer_id: str | None
    from_peer_id: str | None
    ts: str
    detail: Json


class Trace(TypedDict):
    trace_id: str
    kind: Literal["ask", "notify", "broadcast", "fanout", "question"]
    stages: list[Stage]


class Message(TypedDict):
    id: str
    kind: Literal["ask", "notify", "broadcast", "reply"]
    from_peer: str | None
    from_peer_id: str | None
    to_peer: str | None
    to_peer_id: str
    text: str | None
    attachments: list[Json]
    state: State
    reason: str | None
    created_at: str
    delivery_id: str
    trace_id: str
    ask_state: NotRequired[Literal["open", "closed"]]
    close_reason: NotRequired[str | None]
    reply: NotRequired[str | None]


class TracedMessage(Message):
    trace: list[Stage]


class MessagePage(TypedDict):
    messages: list[Message]
    next: str | None


class Delivery(TypedDict):
    delivery_id: str
    kind: str
    trace: str
    from_peer: str | None
    from_peer_id: str | None
    to_peer: str | None
    peer_id: str
    state: State
    reason: str | None
    attempts: int
    created_at: str
    expires_at: str | None
    leased_at: str | None
    handed_at: str | None
    seen_at: str | None
    closed_at: str | None
    text: str | None


class DeliveryPage(TypedDict):
    deliveries: list[Delivery]
    next: str | None


class Standing(TypedDict):
    ok: bool
    delivery_id: str
    state: State
    reason: str | None


class PickedUp(TypedDict):
    delivery_id: str
    kind: str
    from_peer: str | None
    to_peer: str | None
    text: str | None
    created_at: str
    expires_at: str | None
    correlation_id: str | None
    attachments: list[Json]
    attempts: NotRequired[int]


class PickUp(TypedDict):
    deliveries: list[PickedUp]
    lease: NotRequired[str | None]
    lease_expires_at: NotRequired[str | None]


class Confirmed(TypedDict):
    ok: bool
    confirmed: list[str]


# -- agents that are started here ------------------------------------------------
class SpawnConfig(TypedDict):
    enabled: bool
    commands: Json
    profiles: Json
    allowed_commands: list[str]
    allowed_paths: list[str]


class Spawned(TypedDict):
    ok: bool
    display_name: str
    tmux_session: str
    peer_id: str | None
    registration_state: Literal["pending_hook", "cli_fallback"]
    warnings: list[str]
    pane_id: str
    command: str


class Restarted(TypedDict):
    ok: bool
    status: Literal["restart_available", "restarted"]
    restarted: bool
    peer_id: str
    display_name: str
    backend: str
    path: str | None
    circle: str
    tmux_session: str | None
    resume_mode: Literal["resumed"]
    resume_warning: str | None
    unsupported_reason: str | None
    command: str | None


class Switched(TypedDict):
    ok: bool
    display_name: str
    tmux_session: str | None
    old_backend: str
    new_backend: str
    command: str


class SessionNotified(TypedDict):
    ok: bool
    repowire_session_id: str
    session_status: Literal["active"]
    capability: str
    executor_peer_id: str
    executor_peer_name: str
    delivery_state: Literal["delivered", "queued"]
    delivered: bool
    queued: bool
    state: str
    reason: str
    hook_delivery: Json | None
    delivery_id: str


class ResumeCapability(TypedDict):
    supported: bool
    arguments: list[str]


class SessionResumed(TypedDict):
    ok: bool
    repowire_session_id: str
    session_status: Literal["active", "ended"]
    status: Literal["active_executor", "resume_available", "unsupported", "binding_unavailable"]
    capability: str
    message: str
    backend: str
    runtime_session_id: str | None
    runtime_source_uri: str | None
    executor_peer_id: str | None
    executor_peer_name: str | None
    resume_capability: ResumeCapability
    action: Literal["inspect", "spawned"]
    spawned_display_name: str | None
    tmux_session: str | None
    pane_id: str | None


class Killed(TypedDict):
    ok: bool
    tmux_killed: bool | None


# -- what was said ------------------------------------------------------------------
class Turn(TypedDict):
    role: Literal["user", "assistant"]
    text: str
    timestamp: str | None
    session_id: str | None
    turn_id: str | None
    tool_calls: list[Json]


class TimelineItem(TypedDict):
    id: str
    kind: Literal["turn", "delta_group"]
    source: Literal["history", "realtime"]
    timestamp: str | None
    session_id: str | None
    turn_id: str | None
    role: Literal["user", "assistant"] | None
    text: str | None
    tool_calls: list[Json]
    peer_id: str | None
    peer: str | None
    event_ids: list[str]


class Match(TypedDict):
    start: int
    end: int
    snippet: str


class TimelineMatch(TypedDict):
    cursor: str
    target_id: str
    item: TimelineItem
    match: Match


class History(TypedDict):
    history_status: Literal["available", "unavailable", "unsupported"]
    history_backend: Backend
    history_message: str | None
    history_source: Literal["peer_path", "session_binding"] | None
    repowire_session_id: str | None
    binding_status: Literal["bound", "unbound"]
    runtime_session_id: str | None


class Transcript(History):
    turns: list[Turn]
    next_before: str | None


class Timeline(History):
    peer_id: str
    peer_name: str
    session_id: str | None
    items: list[TimelineItem]


class TimelineSearch(History):
    peer_id: str
    peer_name: str
    session_id: str | None
    query: str
    degraded: bool
    degradation_message: str | None
    results: list[TimelineMatch]


# -- MCP servers of a peer's own configuration -------------------------------------------
class McpServer(TypedDict):
    name: str
    scope: Literal["user", "project", "local"]
    type: str
    command: str | None
    args: list[str]
    url: str | None
    env_keys: list[str]


class McpScope(TypedDict):
    backend: str
    owner: Literal["user", "project"]
    effective_scope: Literal["user", "project", "local"]
    label: str
    description: str
    supported_scopes: list[str]
    default_scope: str
    is_global: bool
    peer_id: str
    peer_name: str
    project_path: str | None
    peer_machine: str | None
    self_machine: str
    same_host: bool


class McpServers(TypedDict):
    servers: list[McpServer]
    config_scope: McpScope


class McpChanged(TypedDict):
    ok: bool
    config_scope: McpScope
