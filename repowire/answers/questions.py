"""What the daemon answers of questions to a person."""

from dataclasses import dataclass, field

from repowire.answers.records import Json


@dataclass(frozen=True)
class Blocked:
    """POST /questions/ask-blocking; of a tool permission `decision` is allow, deny or none (nobody need be asked)."""

    correlation_id: str
    outcome: str
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    decision: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Question:
    """A question to the human, open or closed; `metadata` holds the whole call of a tool permission."""

    correlation_id: str
    from_peer: str
    prompt: str
    kind: str
    state: str
    created_at: str
    expires_at: str
    options: list[Json] = field(default_factory=list)
    metadata: Json = field(default_factory=dict)
    from_peer_id: str | None = None
    scope: str | None = None
    origin: str | None = None
    digest: str | None = None
    dialog: bool = False
    closed_at: str | None = None
    outcome: str | None = None
    option_id: str | None = None
    text: str | None = None
    message: str | None = None
    reason: str | None = None
    answered_by: str | None = None
    surface: str | None = None
    decision: str | None = None


@dataclass(frozen=True)
class QuestionPage:
    """GET /questions; `next` is the cursor of the next page."""

    questions: list[Question]
    next: str | None = None


@dataclass(frozen=True)
class Withdrawn:
    """POST /questions/withdraw: the ids of what was still open."""

    ok: bool
    withdrawn: list[str]
