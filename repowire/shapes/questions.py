"""Questions to a person."""

from typing import Literal, TypedDict

from repowire.shapes.words import Json

Outcome = Literal["answered", "acknowledged", "denied", "timed_out", "cancelled"]
Decision = Literal["allow", "deny", "none"]


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
