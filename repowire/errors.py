"""Refusals: the one error type that crosses the wire, and the small words that make it.

A refusal is `{"detail": {"error": slug, "hint": text, ...facts}}` (wire.md 16, row 5): the slug is stable and for
programs, the hint is for people and says what to do. Routes with a published shape of their own pass it as `body`.
"""

import json
from typing import Any, Self


class Refusal(Exception):
    """A request that is turned down: `status` is the HTTP status, `facts` what a client needs to go on."""

    def __init__(
        self,
        status: int,
        error: str,
        hint: str,
        *,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(f"{error}: {hint}")
        self.status, self.error, self.hint, self.facts = status, error, hint, facts
        self.headers = headers or {}
        self._body = body

    @classmethod
    def of_reply(cls, status: int, raw: bytes) -> Self:
        """The daemon's error body as the exception it was: `detail` as an object or as words, or a flat object."""
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        facts = dict(body) if isinstance(body, dict) else {"detail": raw.decode("utf-8", "replace")[:500]}
        detail = facts.pop("detail", None)
        if isinstance(detail, dict):
            facts = {**facts, **detail}
        error = facts.pop("error", None) or facts.get("reason") or f"http_{status}"
        said = detail if isinstance(detail, str) and detail else f"the daemon said {status}"
        hint = facts.pop("hint", None) or said
        known: dict[str, Any] = {
            name: fact for name, fact in facts.items() if name not in ("status", "body", "headers")
        }
        return cls(status, str(error), str(hint), **known)

    def as_json(self) -> dict[str, Any]:
        """The body that goes over the wire."""
        if self._body is not None:
            return self._body
        return {"detail": {"error": self.error, "hint": self.hint, **self.facts}}


def malformed(hint: str, **facts: Any) -> Refusal:
    """400: the request as a whole makes no sense."""
    return Refusal(400, "bad_request", hint, **facts)


def unauthorized(hint: str) -> Refusal:
    """401: no credential, or a wrong one."""
    return Refusal(401, "unauthorized", hint, headers={"WWW-Authenticate": "Bearer"})


def forbidden(error: str, hint: str, **facts: Any) -> Refusal:
    """403: we know who asks, and it may not."""
    return Refusal(403, error, hint, **facts)


def not_found(noun: str, name: str, hint: str | None = None, **facts: Any) -> Refusal:
    """404 `<noun>_not_found`."""
    named: dict[str, Any] = {noun: name, **facts}
    return Refusal(404, f"{noun}_not_found", hint or f"there is no {noun} {name!r}", **named)


def conflict(error: str, hint: str, **facts: Any) -> Refusal:
    """409: it contradicts what is."""
    return Refusal(409, error, hint, **facts)


def gone(error: str, hint: str, **facts: Any) -> Refusal:
    """410: it was, and is over."""
    return Refusal(410, error, hint, **facts)


def too_large(hint: str, **facts: Any) -> Refusal:
    """413: more bytes than we take."""
    return Refusal(413, "too_large", hint, **facts)


def unsupported(hint: str) -> Refusal:
    """415: a media type that we do not take."""
    return Refusal(415, "unsupported_media_type", hint)


def invalid(field: str, hint: str, **facts: Any) -> Refusal:
    """422: one field is missing, of the wrong type, or out of bounds."""
    return Refusal(422, "invalid_field", hint, field=field, **facts)


def unprocessable(error: str, hint: str, **facts: Any) -> Refusal:
    """422: all fields are well, and what they ask for is not to be had."""
    return Refusal(422, error, hint, **facts)


def failed(error: str, hint: str, **facts: Any) -> Refusal:
    """500 by something outside of us that did not do what it was told; the facts say what it showed."""
    return Refusal(500, error, hint, **facts)


def too_many(error: str, hint: str, **facts: Any) -> Refusal:
    """429: a limit is reached; nothing was taken."""
    return Refusal(429, error, hint, **facts)


def unavailable(error: str, hint: str, **facts: Any) -> Refusal:
    """503: not now."""
    return Refusal(503, error, hint, **facts)
