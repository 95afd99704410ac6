"""The words that have one spelling everywhere."""

from typing import Any, Literal

Json = dict[str, Any]
Backend = Literal["claude-code", "opencode", "codex", "gemini", "antigravity", "pi", "mcp-http", "shell"]
SeemingBackend = Literal[
    "claude-code", "opencode", "codex", "gemini", "antigravity", "pi", "mcp-http", "shell", "unknown"
]
Role = Literal["agent", "service", "orchestrator", "human"]
TurnState = Literal["idle", "working", "awaiting_input", "pending_first_turn"]
State = Literal["queued", "leased", "held", "handed", "seen", "answered", "failed", "expired", "unknown"]
