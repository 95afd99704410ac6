"""A scripted stand-in for the model: `POST /v1/messages` on loopback, streaming, for any number of Claudes at once.

It keeps no state of a conversation: what to say is worked out from the messages of each request, so a Claude may be
killed and resumed at will. Rules can be added while it runs, the newest is tried first. A reply can be *held* until
the test lets it go, so that "in the middle of a turn" is a condition and not a duration.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

HOLD_AT_MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Tool:
    """The model calls a tool."""

    name: str
    input: dict[str, Any]


def tool(name: str, /, **input: Any) -> Tool:
    return Tool(name, input)


@dataclass(frozen=True)
class Refusal:
    """Instead of a reply: an API error."""

    status: int
    message: str


class Hold:
    """As a block of a reply: what comes before it has been sent, and the rest waits for `release`."""

    def __init__(self) -> None:
        self._reached, self._released = threading.Event(), threading.Event()

    @property
    def reached(self) -> bool:
        """Some request waits here now, or did."""
        return self._reached.is_set()

    def release(self) -> None:
        self._released.set()

    def wait(self) -> None:
        self._reached.set()
        self._released.wait(HOLD_AT_MOST_SECONDS)


@dataclass(frozen=True)
class Turn:
    """What a step may look at: the match, the text it was found in, all that was new, what tools said."""

    match: re.Match[str]
    prompt: str
    heard: str
    result: str
    results: list[str]
    who: str


Block = str | Tool | Hold
Reply = Block | list[Block] | Refusal
Step = Reply | Callable[[Turn], Reply]


@dataclass(frozen=True)
class Rule:
    """When a new text matches, `steps[0]` is the reply, and `steps[n]` the one to the n-th round of tool results."""

    pattern: re.Pattern[str]
    steps: tuple[Step, ...]
    who: str | None


@dataclass
class Request:
    """One request, as it came; `who` is the end of the key that the Claude was given."""

    who: str
    at: float
    body: dict[str, Any]
    reply: list[Any] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body.get("messages", [])
        return found

    def texts(self) -> list[str]:
        """Every text of the conversation, in order, what tools said included."""
        return [text for message in self.messages for text in (*texts(message), *results(message))]


def texts(message: dict[str, Any]) -> list[str]:
    """The text blocks of a message."""
    content = message.get("content") or []
    return [content] if isinstance(content, str) else [b["text"] for b in content if b.get("type") == "text"]


def results(message: dict[str, Any]) -> list[str]:
    """What its tool_result blocks say."""
    content = message.get("content") or []
    found = [] if isinstance(content, str) else [b for b in content if b.get("type") == "tool_result"]
    return ["\n".join(texts({"content": block.get("content")})) for block in found]


class Model:
    """The stub. A context: serves from `with` on, and has let go of every held reply at the end."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._rules: list[Rule] = []
        self._holds: list[Hold] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"model": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for hold in self._holds:
            hold.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, pattern: str, *steps: Step, who: str | None = None) -> None:
        """Add a rule, tried before the older ones; `^` is the beginning of a text block, `.` matches newlines too."""
        self._rules.insert(0, Rule(re.compile(pattern, re.DOTALL), steps, who))

    def hold(self) -> Hold:
        """A new hold for a reply; released at the end at the latest."""
        self._holds.append(Hold())
        return self._holds[-1]

    def of(self, who: str) -> list[Request]:
        """The requests of one Claude so far."""
        return [request for request in list(self.requests) if request.who == who]

    def heard(self, who: str, needle: str) -> int:
        """How often the text stands in the conversation of that Claude's newest request."""
        asked = self.of(who)
        return sum(text.count(needle) for text in asked[-1].texts()) if asked else 0

    # -- what to say

    def reply(self, request: Request) -> list[Any] | Refusal:
        rule, turn, step = self._place(request)
        if rule is None or turn is None:
            last = [text for message in request.messages if message["role"] == "user" for text in texts(message)]
            return [f"OK: {last[-1][-200:] if last else ''}"]
        if step >= len(rule.steps):
            return [f"DONE: {turn.result[-400:]}"]
        said = rule.steps[step]
        made = said(turn) if callable(said) else said
        return made if isinstance(made, list | Refusal) else [made]

    def _place(self, request: Request) -> tuple[Rule | None, Turn | None, int]:
        """The rule that the conversation is in, and how many rounds of tools it has had."""
        rule: Rule | None = None
        match: re.Match[str] | None = None
        step, heard, said = 0, "", []
        for prompts, asides, said in self._rounds(request.messages):
            found = [hit for text in (*asides, *prompts) if (hit := self._matching(request.who, text))]
            if found:
                (rule, match), step, heard = found[-1], 0, "\n".join((*asides, *prompts))
            elif said:
                step += 1
            elif prompts:
                rule = match = None
        if rule is None or match is None:
            return None, None, 0
        return rule, Turn(match, match.string, heard, said[-1] if said else "", said, request.who), step

    @staticmethod
    def _rounds(messages: list[dict[str, Any]]) -> Iterator[tuple[list[str], list[str], list[str]]]:
        """For each stretch between two replies: new prompts, what the client says aside, and what tools said."""
        prompts, asides, said = [], [], []
        for message in [*messages, {"role": "assistant"}]:
            if message["role"] == "assistant":
                if prompts or asides or said:
                    yield prompts, asides, said
                prompts, asides, said = [], [], []
                continue
            for text in texts(message):
                aside = message["role"] == "system" or text.startswith("<system-reminder>")
                (asides if aside else prompts).append(text)
            said.extend(results(message))

    def _matching(self, who: str, text: str) -> tuple[Rule, re.Match[str]] | None:
        for rule in list(self._rules):
            if (rule.who is None or rule.who == who) and (match := rule.pattern.search(text)):
                return rule, match
        return None


class Handler(BaseHTTPRequestHandler):
    """The HTTP of it."""

    protocol_version = "HTTP/1.1"
    model: Model

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._json(200, {})

    def do_GET(self) -> None:
        self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": self.path}})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.partition("?")[0] != "/v1/messages":
            self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": self.path}})
            return
        key = self.headers.get("X-Api-Key") or ""
        request = Request(key.rpartition("-")[2], time.monotonic(), json.loads(sent))
        self.model.requests.append(request)
        said = self.model.reply(request)
        if isinstance(said, Refusal):
            error = {"type": "invalid_request_error", "message": said.message}
            self._json(said.status, {"type": "error", "error": error})
            return
        request.reply = said
        try:
            self._stream(request.body.get("model", ""), said)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the Claude was interrupted or killed

    def _json(self, status: int, body: object) -> None:
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def _event(self, kind: str, **fields: Any) -> None:
        sent = f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent))
        self.wfile.flush()

    def _stream(self, name: str, said: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        usage = {"input_tokens": 10, "output_tokens": 1}
        message = {"id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": name}
        message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        self._event("message_start", message=message)
        index = 0
        for block in said:
            if isinstance(block, Hold):
                block.wait()
                continue
            self._block(index, block)
            index += 1
        why = "tool_use" if any(isinstance(block, Tool) for block in said) else "end_turn"
        self._event("message_delta", delta={"stop_reason": why, "stop_sequence": None}, usage=usage)
        self._event("message_stop")
        self.wfile.write(b"0\r\n\r\n")

    def _block(self, index: int, block: str | Tool) -> None:
        if isinstance(block, Tool):
            empty = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": block.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block.input)}
        else:
            empty = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block}
        self._event("content_block_start", index=index, content_block=empty)
        self._event("content_block_delta", index=index, delta=delta)
        self._event("content_block_stop", index=index)
