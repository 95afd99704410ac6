"""What the daemon answers of what was said."""

from dataclasses import dataclass, field

from repowire.answers.records import Json


@dataclass(frozen=True)
class Turn:
    """What was said, and by whom; the moment is the runtime's own."""

    role: str
    text: str
    timestamp: str | None = None
    session_id: str | None = None
    turn_id: str | None = None
    tool_calls: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class Transcript:
    """GET /peers/{name}/transcript: a page, the newest turn first."""

    turns: list[Turn]
    next_before: str | None = None
    history_status: str | None = None
    history_backend: str | None = None
    history_message: str | None = None
    history_source: str | None = None
    repowire_session_id: str | None = None
    binding_status: str | None = None
    runtime_session_id: str | None = None
