"""Structured questions: what may be answered (kind, options, default), and whether an answer fits (wire.md 5.4).

An ask may carry one; a blocking question is one that stands alone. A tool permission is the one whose answer lets a
tool run: whatever else becomes of it, it is a denial.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from repowire import wire
from repowire.errors import invalid
from repowire.protocol import MAX_BODY_BYTES, MAX_METADATA_BYTES, MAX_TEXT_CHARS

KINDS = ("acknowledge", "choice", "text")
OUTCOMES = ("answered", "acknowledged", "denied", "timed_out", "cancelled")
SCOPES = ("mesh_ask", "tool_permission", "user_question")
TOOL_PERMISSION = "tool_permission"
ALLOW = "allow"  # the option that lets a tool run

OPTIONS_MOST = 50
CALL_MOST_BYTES = 1_000_000  # of a tool permission: the whole call, and what fits into a body beside it
ID_CHARS, TITLE_CHARS, DESCRIPTION_CHARS, MESSAGE_CHARS = 128, 1_024, 4_096, 4_096
TIMEOUT_MOST_SECONDS = 366 * 86_400.0

Json = dict[str, Any]


class Option(NamedTuple):
    """One of the answers to choose from."""

    id: str
    title: str
    description: str | None = None


class Answer(NamedTuple):
    """What was made of a question."""

    outcome: str
    option_id: str | None = None
    text: str | None = None
    message: str | None = None

    def as_text(self) -> str:
        """As it is stored."""
        return json.dumps({name: value for name, value in self._asdict().items() if value is not None})


def answer_of(stored: str | None) -> Answer | None:
    """What `as_text` made."""
    return Answer(**json.loads(stored)) if stored else None


class Question(NamedTuple):
    """What is asked, and what may be answered; `timeout_seconds` after which `default_answer` is the answer."""

    kind: str
    prompt: str | None = None
    options: tuple[Option, ...] = ()
    blocking: bool = False
    timeout_seconds: float | None = None
    default_answer: Answer | None = None
    scope: str | None = None
    metadata: Mapping[str, Any] = {}

    def as_json(self) -> Json:
        """As frames and events show it, without what is absent."""
        shown: Json = {"kind": self.kind, "blocking": self.blocking}
        if self.options:
            shown["options"] = [_given(option._asdict()) for option in self.options]
        if self.default_answer is not None:
            shown["default_answer"] = _given(self.default_answer._asdict())
        if self.metadata:
            shown["metadata"] = self.metadata
        return shown | _given({name: getattr(self, name) for name in ("prompt", "timeout_seconds", "scope")})

    def option(self, option_id: str | None) -> Option | None:
        """The option of that id."""
        return next((option for option in self.options if option.id == option_id), None)

    @property
    def is_permission(self) -> bool:
        return self.scope == TOOL_PERMISSION

    def in_time(self) -> Answer:
        """What the answer is when nobody gave one in time: the default, and for a tool permission always a denial."""
        if self.is_permission:
            return Answer("denied", message="nobody answered it in its time")
        return self.default_answer or Answer("timed_out", message="nobody answered it in its time")


def _given(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def of_text(stored: str | None) -> Question | None:
    """What was stored of a question's `as_json`."""
    if not stored:
        return None
    fields = json.loads(stored)
    default = fields.pop("default_answer", None)
    options = tuple(Option(**option) for option in fields.pop("options", ()))
    return Question(**fields, options=options, default_answer=Answer(**default) if default else None)


# -- rules -------------------------------------------------------------------


def check(kind: str, options: tuple[Option, ...], answer: Answer) -> None:
    """422 unless the answer fits: only a choice that is answered has to name one of the options."""
    if kind != "choice" or answer.outcome != "answered":
        return
    if not any(option.id == answer.option_id for option in options):
        known = ", ".join(option.id for option in options)
        raise invalid("option_id", f"must be one of {known}: this question is answered by choosing")


def said(question: Question, answer: Answer) -> str | None:
    """The words in which an asker is told: the text, else the option's title or id, else the message."""
    if question.is_permission:
        return None
    option = question.option(answer.option_id)
    return answer.text or (option.title if option else None) or answer.option_id or answer.message


def by_ack(question: Question, message: str | None) -> Answer:
    """What an ack says to a question: bare it acknowledges, with words it answers. 422 where one has to choose."""
    if question.is_permission:
        raise invalid("correlation_id", "a tool permission is answered with POST /answer, by a person")
    if message is None:
        return Answer("acknowledged")
    if question.kind == "choice":
        known = ", ".join(option.id for option in question.options)
        raise invalid("message", f"free text is no answer to this question: answer it with option_id, one of {known}")
    return Answer("answered", text=message)


# -- wire --------------------------------------------------------------------


def read(body: wire.Body) -> Question | None:
    """The structured question of an ask, if it has one."""
    if not body.has("question"):
        return None
    return _question(wire.Body(body.record("question", max_bytes=MAX_BODY_BYTES)))


def _question(body: wire.Body) -> Question:
    kind = body.choice("kind", KINDS)
    if kind is None:
        raise invalid("question.kind", f"is required: {', '.join(KINDS)}")
    seconds = body.seconds("timeout_seconds", default=0, at_most=TIMEOUT_MOST_SECONDS)
    if body.has("timeout_seconds") and seconds <= 0:
        raise invalid("timeout_seconds", "must be more than 0 seconds")
    question = Question(
        kind=kind,
        prompt=body.optional_text("prompt", max_chars=MAX_TEXT_CHARS),
        options=read_options(body),
        blocking=body.flag("blocking"),
        timeout_seconds=seconds if body.has("timeout_seconds") else None,
        default_answer=_default(body),
        scope=body.choice("scope", SCOPES),
        metadata=body.record("metadata", max_bytes=MAX_METADATA_BYTES),
    )
    if kind == "choice" and not question.options:
        raise invalid("options", "must name at least one, for a question of the kind choice")
    if question.default_answer is not None:
        check(kind, question.options, question.default_answer)
        if question.is_permission and question.default_answer.outcome in ("answered", "acknowledged"):
            raise invalid("default_answer", "of a tool permission can only be a denial: silence never allows")
    return question


def read_options(body: wire.Body) -> tuple[Option, ...]:
    """The options, each with an id of its own."""
    options = []
    for one in map(wire.Body, body.records("options", most=OPTIONS_MOST)):
        option_id = one.text("id", max_chars=ID_CHARS)
        title = one.optional_text("title", max_chars=TITLE_CHARS) or option_id
        options.append(Option(option_id, title, one.optional_text("description", max_chars=DESCRIPTION_CHARS)))
    if len({option.id for option in options}) < len(options):
        raise invalid("options", "must have an id of its own each")
    return tuple(options)


def _default(body: wire.Body) -> Answer | None:
    if not body.has("default_answer"):
        return None
    return read_answer(wire.Body(body.record("default_answer", max_bytes=MAX_BODY_BYTES)))


def read_answer(body: wire.Body) -> Answer:
    """The fields of an answer."""
    return Answer(
        outcome=body.choice("outcome", OUTCOMES, "answered") or "answered",
        option_id=body.optional_text("option_id", max_chars=ID_CHARS),
        text=body.optional_text("text", max_chars=MAX_TEXT_CHARS),
        message=body.optional_text("message", max_chars=MESSAGE_CHARS),
    )
