"""Questions and their answers, in the words of the document."""

from repowire.choices import (
    CALL_MOST_BYTES,
    DESCRIPTION_CHARS,
    ID_CHARS,
    KINDS,
    MESSAGE_CHARS,
    OPTIONS_MOST,
    OUTCOMES,
    SCOPES,
    TITLE_CHARS,
)
from repowire.openapi.asks import CORRELATION_ID
from repowire.openapi.words import (
    ATTACHMENTS,
    CURSOR,
    FLAG,
    IDENTIFIER_TEXT,
    LIMIT,
    MOMENT,
    NEXT,
    SHOWN,
    TEXT,
    Route,
    Schema,
    line,
    listed,
    loose,
    maybe,
    record,
    seconds,
    shape,
    takes,
    word,
)
from repowire.protocol import MAX_TEXT_CHARS
from repowire.questions import DIGEST_CHARS

DECISION = maybe(word("allow", "deny", "none"))
OPTIONS = listed(
    loose(f"id (required, {ID_CHARS} chars), title ({TITLE_CHARS}), description ({DESCRIPTION_CHARS})"),
    about=f"at most {OPTIONS_MOST}, each with an id of its own",
)
CALL = {
    **loose("of a tool permission: tool_name, tool_input (whole), cwd, session_id, which are its digest"),
    "x-max-bytes": CALL_MOST_BYTES,
}

SHAPES: dict[str, Schema] = {
    "Blocked": record(
        correlation_id=SHOWN,
        outcome=word(*OUTCOMES),
        option_id=maybe(SHOWN),
        text=maybe(SHOWN),
        message=maybe(SHOWN),
        decision=DECISION,
        digest=maybe(SHOWN),
    ),
    "Question": record(
        correlation_id=SHOWN,
        from_peer=SHOWN,
        from_peer_id=maybe(SHOWN),
        prompt=SHOWN,
        kind=word(*KINDS),
        options=listed(record(id=SHOWN, title=SHOWN, description=maybe(SHOWN))),
        scope=maybe(word(*SCOPES)),
        origin=maybe(SHOWN),
        metadata=loose(),
        digest=maybe(SHOWN),
        dialog=FLAG,
        state=word("open", "closed"),
        created_at=MOMENT,
        expires_at=MOMENT,
        closed_at=maybe(MOMENT),
        outcome=maybe(word(*OUTCOMES)),
        option_id=maybe(SHOWN),
        text=maybe(SHOWN),
        message=maybe(SHOWN),
        reason=maybe(SHOWN),
        answered_by=maybe(SHOWN),
        surface=maybe(SHOWN),
        decision=DECISION,
    ),
}

ROUTES = [
    Route(
        "POST", "/answer", "answer", "Answer a structured question, of an ask or one that stands alone.",
        takes(
            {"correlation_id": CORRELATION_ID},
            outcome=word(*OUTCOMES),
            option_id=line(ID_CHARS),
            text=line(MAX_TEXT_CHARS),
            message=line(MESSAGE_CHARS),
            attachments=ATTACHMENTS,
            surface={**IDENTIFIER_TEXT, "description": "from where it is answered, such as cli"},
            digest=line(DIGEST_CHARS, "the call that was shown there: another one is refused"),
        ),
        answer=shape("Acked"),
        refuses={
            403: "an agent that was not asked, or any agent for a tool permission",
            404: "no such question",
            409: "another surface was first, or its time is up: `winner` says who, when and with what",
            410: "the ask was closed in another way",
        },
    ),
    Route(
        "POST", "/questions/ask-blocking", "ask_blocking", "Ask the human, and wait for the answer; silence denies.",
        takes(
            {"prompt": TEXT},
            options=OPTIONS,
            scope=word(*SCOPES),
            metadata=CALL,
            origin=line(64),
            correlation_id=IDENTIFIER_TEXT,
            timeout_seconds=seconds(None, "default 45, cut to daemon.question_wait_cap_seconds"),
            runtime_timeout_seconds=seconds(None, "after which the runtime ends its hook"),
            dialog=FLAG,
            from_peer=line(128),
        ),
        answer=shape("Blocked"),
        refuses={403: "`from_peer` is somebody else", 409: "the id is of another question"},
    ),
    Route(
        "POST", "/questions/withdraw", "withdraw_question", "Take back what needs no answer any more.",
        takes(
            correlation_id=line(64),
            metadata=CALL,
            reason=word("answered_in_terminal", "withdrawn"),
        ),
        answer=record(ok=FLAG, withdrawn=listed(SHOWN)),
        refuses={403: "another agent's", 404: "no such question"},
    ),
    Route(
        "GET", "/questions", "questions", "Questions to the human, newest first; an agent sees its own.",
        query={"state": word("open", "closed", "all"), "limit": LIMIT, "cursor": CURSOR},
        answer=record(questions=listed(shape("Question")), next=NEXT),
    ),
    Route(
        "GET", "/questions/{correlation_id}", "question", "One question, and how it ended.",
        answer=shape("Question"), refuses={403: "another agent's", 404: "no such question"},
    ),
]  # fmt: skip
