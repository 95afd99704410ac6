"""The routes of structured and blocking questions, as coroutines."""

from urllib.parse import quote

from repowire.answers import Acked, Blocked, Json, Question, QuestionPage, Withdrawn, all_made, given, made
from repowire.async_client.transport import Transport


class Questions(Transport):
    """Questions and their answers."""

    async def answer(
        self,
        correlation_id: str,
        *,
        option_id: str | None = None,
        text: str | None = None,
        outcome: str | None = None,
        message: str | None = None,
        attachments: list[Json] | None = None,
        surface: str | None = None,
        digest: str | None = None,
    ) -> Acked:
        """Answer a structured question; 409 with the `winner` when another surface was first."""
        said = {"option_id": option_id, "text": text, "outcome": outcome, "message": message}
        more = {"attachments": attachments, "surface": surface, "digest": digest}
        return await self._made(Acked, "POST", "/answer", given({"correlation_id": correlation_id, **said, **more}))

    async def ask_blocking(
        self,
        prompt: str,
        *,
        options: list[Json] | None = None,
        scope: str | None = None,
        metadata: Json | None = None,
        origin: str | None = None,
        correlation_id: str | None = None,
        timeout_seconds: float | None = None,
        runtime_timeout_seconds: float | None = None,
        dialog: bool | None = None,
        from_peer: str | None = None,
    ) -> Blocked:
        """Ask the human and wait. Of a tool permission only the decision `allow` is one."""
        asked = {"prompt": prompt, "options": options, "scope": scope, "metadata": metadata, "origin": origin}
        times = {"timeout_seconds": timeout_seconds, "runtime_timeout_seconds": runtime_timeout_seconds}
        more = {"correlation_id": correlation_id, "dialog": dialog, "from_peer": from_peer}
        seconds = self.timeout + max(timeout_seconds or 60.0, runtime_timeout_seconds or 0.0)
        body = given({**asked, **times, **more})
        return made(Blocked, await self.request("POST", "/questions/ask-blocking", body, seconds=seconds))

    async def withdraw_question(
        self, *, correlation_id: str | None = None, metadata: Json | None = None, reason: str | None = None
    ) -> Withdrawn:
        """Take back what needs no answer any more: one by its id, or those of a session's call."""
        body = given({"correlation_id": correlation_id, "metadata": metadata, "reason": reason})
        return await self._made(Withdrawn, "POST", "/questions/withdraw", body)

    async def questions(
        self, *, state: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> QuestionPage:
        """A page of questions to the human, newest first; state: open, closed or all."""
        query = {"state": state, "limit": limit, "cursor": cursor}
        answer = await self.request("GET", "/questions", query=query)
        return made(QuestionPage, answer, questions=all_made(Question, answer["questions"]))

    async def question(self, correlation_id: str) -> Question:
        """One question, and how it ended."""
        return await self._made(Question, "GET", f"/questions/{quote(correlation_id, safe='')}")
