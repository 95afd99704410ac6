"""Transcripts of every kind of agent, as their programs wrote them, by the page, in order and found again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Api, FakeClock

from repowire import turns, wire
from repowire.agents.turns import READERS
from repowire.turns import Source

WORK = "/src/app"


def claude(kind: str, content: Any, at: str, **more: Any) -> dict[str, Any]:
    """A line of Claude Code's."""
    message = {"role": kind, "content": content, **({"id": more.pop("id")} if "id" in more else {})}
    return {"type": kind, "message": message, "timestamp": at, "uuid": f"u-{at}", "isSidechain": False, **more}


def text(words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": words}]


CALL = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}
CLAUDE = [
    {"type": "mode", "mode": "default"},
    claude("user", "hello there", "2026-11-25T10:00:00.000Z", promptId="p-1"),
    claude("user", "an aside", "2026-11-25T10:00:00.100Z", isMeta=True),
    claude("assistant", [{"type": "thinking", "thinking": "hm"}], "2026-11-25T10:00:00.500Z", id="m-1"),
    claude("assistant", text("Hello."), "2026-11-25T10:00:01.000Z", id="m-1"),
    claude("assistant", text("I look."), "2026-11-25T10:00:02.000Z", id="m-1"),
    claude("assistant", [CALL], "2026-11-25T10:00:03.000Z", id="m-1"),
    claude("user", [{"type": "tool_result", "content": "a.py"}], "2026-11-25T10:00:04.000Z"),
    claude("assistant", text("in a helper"), "2026-11-25T10:00:04.500Z", id="m-9", isSidechain=True),
    {
        "type": "attachment",
        "timestamp": "2026-11-25T10:00:05.000Z",
        "uuid": "q-1",
        "attachment": {"type": "queued_command", "prompt": "and quickly"},
    },
    claude("assistant", text("There is a.py."), "2026-11-25T10:00:06.000Z", id="m-2"),
]
CODEX = [
    {"timestamp": "2026-11-25T10:00:00.000Z", "type": "session_meta", "payload": {"id": "c-1", "cwd": WORK}},
    *(
        {
            "timestamp": f"2026-11-25T10:00:0{number}.000Z",
            "type": "response_item",
            "payload": {**payload, "internal_chat_message_metadata_passthrough": {"turn_id": "turn-1"}},
        }
        for number, payload in enumerate(
            [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "<environment_context>\n  <cwd>/src</cwd>"}],
                },
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello there"}]},
                {"type": "function_call", "name": "exec_command", "arguments": '{"cmd": "ls"}'},
                {"type": "function_call_output", "output": "a.py"},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "There is a.py."}],
                },
            ]
        )
    ),
    {"timestamp": "2026-11-25T10:00:09.000Z", "type": "event_msg", "payload": {"type": "task_complete"}},
]
PI = [
    {"type": "session", "version": 3, "id": "s-1", "timestamp": "2026-11-25T10:00:00.000Z", "cwd": WORK},
    *(
        {"type": "message", "id": f"i{number}", "timestamp": f"2026-11-25T10:00:0{number}.000Z", "message": message}
        for number, message in enumerate(
            [
                {"role": "user", "content": text("hello there")},
                {
                    "role": "assistant",
                    "content": [{"type": "toolCall", "id": "c", "name": "bash", "arguments": {"command": "ls"}}],
                },
                {"role": "toolResult", "toolName": "bash", "content": text("a.py")},
                {"role": "assistant", "content": text("There is a.py.")},
            ]
        )
    ),
]
GEMINI = [
    {"sessionId": "g-1", "kind": "main", "startTime": "2026-11-25T10:00:00.000Z"},
    {"$set": {"messages": [{"id": "0", "type": "user", "content": text("<session_context>")}]}},
    {"id": "a", "timestamp": "2026-11-25T10:00:01.000Z", "type": "user", "content": [{"text": "hello there"}]},
    {"id": "b", "timestamp": "2026-11-25T10:00:02.000Z", "type": "gemini", "content": "", "thoughts": []},
    {
        "id": "b",
        "timestamp": "2026-11-25T10:00:02.000Z",
        "type": "gemini",
        "content": "",
        "toolCalls": [{"name": "run_shell_command", "args": {"command": "ls"}, "status": "success"}],
    },
    {"id": "c", "timestamp": "2026-11-25T10:00:03.000Z", "type": "user", "content": [{"functionResponse": {}}]},
    {"id": "d", "timestamp": "2026-11-25T10:00:04.000Z", "type": "gemini", "content": "There is"},
    {"id": "d", "timestamp": "2026-11-25T10:00:04.000Z", "type": "gemini", "content": "There is a.py."},
    {"$set": {"lastUpdated": "2026-11-25T10:00:04.000Z"}},
]


def lines(*said: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in said)


def pages(backend: str, file: Path, limit: int) -> list[tuple[str, str, list[str]]]:
    """All turns, newest first, read by pages: role, text and the tools that it called."""
    found, before = list[tuple[str, str, list[str]]](), None
    while True:
        told, cursor = turns.page(READERS[backend], [Source("s", file, None)], limit, before)
        found += [(one.turn.role, one.turn.text, [call["name"] for call in one.turn.tool_calls]) for one in told]
        if cursor is None:
            return found
        before = turns.place_of(cursor)


@pytest.mark.parametrize("limit", [1, 2, 3, 500])
@pytest.mark.parametrize(
    ("backend", "said", "turns"),
    [
        (
            "claude-code",
            CLAUDE,
            [
                ("assistant", "There is a.py.", []),
                ("user", "and quickly", []),
                ("assistant", "Hello.\nI look.", ["Bash"]),
                ("user", "hello there", []),
            ],
        ),
        (
            "codex",
            CODEX,
            [("assistant", "There is a.py.", []), ("assistant", "", ["exec_command"]), ("user", "hello there", [])],
        ),
        ("pi", PI, [("assistant", "There is a.py.", []), ("assistant", "", ["bash"]), ("user", "hello there", [])]),
        (
            "gemini",
            GEMINI,
            [
                ("assistant", "There is a.py.", []),
                ("assistant", "", ["run_shell_command"]),
                ("user", "hello there", []),
            ],
        ),
    ],
)
def test_each_turn_comes_once_whole_and_newest_first_whatever_the_page(
    tmp_path: Path, backend: str, said: list[dict[str, Any]], turns: list[Any], limit: int
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(lines(*said))
    assert pages(backend, file, limit) == turns


def test_what_is_torn_of_another_encoding_or_no_json_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    good = json.dumps(claude("user", "grüße", "2026-11-25T10:00:00.000Z"), ensure_ascii=False)
    file.write_bytes(
        b"\xef\xbb\xbf"
        + good.encode()
        + b"\n"
        + good.encode("latin-1")
        + b"\n"
        + good.encode("utf-16")
        + b"\n[1]\nnull\nno json\n\x00\x00\n"
        + b'{"type": "user", "message": 7}\n{"type": "user", "message": {"content": [3, {"type": "text"}]}}\n'
        + b"[" * 100_000
        + b"\n"
        + good.encode()[:40]
    )
    assert [turn[1] for turn in pages("claude-code", file, 2)] == ["gr\ufffd\ufffde", "grüße"]


def test_a_last_line_without_its_end_counts_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(lines(claude("user", "one", "2026-11-25T10:00:00.000Z")).rstrip())
    assert [turn[1] for turn in pages("claude-code", file, 1)] == ["one"]


def turns_of(file: Path, numbers: range, at: str = "10") -> None:
    file.write_text(
        lines(*(claude("user", f"turn {number}", f"2026-11-25T{at}:00:{number:02}.000Z") for number in numbers))
    )


def test_a_page_goes_on_where_it_was_while_the_file_grows(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    turns_of(file, range(10))
    reader, sources = READERS["claude-code"], [Source("s", file, None)]
    first, cursor = turns.page(reader, sources, 4, None)
    with file.open("a") as more:
        more.write(lines(claude("user", "turn 10", "2026-11-25T10:00:10.000Z")))
    assert cursor is not None
    second, _ = turns.page(reader, sources, 4, turns.place_of(cursor))
    assert [one.turn.text for one in [*first, *second]] == [f"turn {number}" for number in range(9, 1, -1)]


@pytest.mark.parametrize("begin", [0, 3, 8])
def test_a_page_goes_on_by_the_moment_where_the_file_was_replaced(tmp_path: Path, begin: int) -> None:
    file = tmp_path / "t.jsonl"
    turns_of(file, range(10))
    reader, sources = READERS["claude-code"], [Source("s", file, None)]
    _, cursor = turns.page(reader, sources, 4, None)
    assert cursor is not None
    place = turns.place_of(cursor)
    turns_of(file, range(begin, 20))
    with file.open("r+") as moved:
        old = moved.read()
        moved.seek(0)
        moved.write('{"type": "mode", "of": "another length"}\n' + old)
    again, _ = turns.page(reader, sources, 500, place)
    assert [one.turn.text for one in again] == [f"turn {number}" for number in range(5, begin - 1, -1)]


def test_a_page_reaches_over_sessions_the_newest_first(tmp_path: Path) -> None:
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    turns_of(new, range(3), at="11")
    turns_of(old, range(3), at="10")
    sources = [Source("new", new, None), Source("gone", tmp_path / "gone.jsonl", None), Source("old", old, None)]
    found, before = list[tuple[str | None, str]](), None
    while True:
        told, cursor = turns.page(READERS["claude-code"], sources, 2, before)
        found += [(one.place.session, one.turn.text) for one in told]
        if cursor is None:
            break
        before = turns.place_of(cursor)
    assert found == [(name, f"turn {number}") for name in ("new", "old") for number in (2, 1, 0)]


def test_a_page_of_long_turns_is_a_short_one(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    long = [claude("user", f"{number} {'x' * 1_500_000}", f"2026-11-25T10:00:0{number}.000Z") for number in range(4)]
    file.write_text(lines(*long, claude("user", "4 short", "2026-11-25T10:00:04.000Z")))
    told, cursor = turns.page(READERS["claude-code"], [Source("s", file, None)], 50, None)
    assert [one.turn.text[0] for one in told] == ["4", "3"]
    assert cursor is not None
    assert [text[0] for _, text, _ in pages("claude-code", file, 50)] == list("43210")


# -- the wire ------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose agents wrote something."""
    made = tmp_path / "user"
    files = {
        ".claude/projects/-src-app/s-claude.jsonl": CLAUDE,
        ".codex/sessions/2026/11/25/rollout-2026-11-25T10-00-00-s-codex.jsonl": CODEX,
        ".pi/agent/sessions/--src-app--/2026-11-25T10_s-pi.jsonl": PI,
        ".gemini/tmp/app/chats/session-2026-11-25T10-00-s-gemini.jsonl": GEMINI,
    }
    for name, said in files.items():
        (made / name).parent.mkdir(parents=True)
        (made / name).write_text(lines(*said))
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.delenv("CODEX_HOME", raising=False)
    return made


async def peer(api: Api, backend: str, **fields: Any) -> str:
    said = {"name": backend, "path": WORK, "backend": backend, "metadata": {"session_id": f"s-{backend}"}, **fields}
    return str((await api.post("/peers", **said))["peer_id"])


@pytest.mark.parametrize(("backend", "session"), [("claude-code", "s-claude"), ("codex", "s-codex"), ("pi", "s-pi"),
                                                  ("gemini", "s-gemini")])  # fmt: skip
async def test_the_transcript_of_each_kind_is_found_by_its_session(
    api: Api, home: Path, backend: str, session: str
) -> None:
    peer_id = await peer(api, backend, metadata={"session_id": session})
    told = await api.get(f"/peers/{peer_id}/transcript", limit=1)
    assert (told["history_status"], told["history_source"]) == ("available", "session_binding")
    assert told["runtime_session_id"] == session
    assert told["repowire_session_id"].startswith("rw-session-")
    assert [(turn["role"], turn["text"], turn["session_id"]) for turn in told["turns"]] == [
        ("assistant", "There is a.py.", session)
    ]
    more = await api.get(f"/peers/{peer_id}/transcript", limit=500, before=told["next_before"])
    assert more["turns"][-1]["text"] == "hello there"
    assert more["next_before"] is None
    by_session = await api.get(f"/peers/{peer_id}/transcript", session_id=told["repowire_session_id"])
    assert by_session["turns"][0] == told["turns"][0]
    assert (await api.get(f"/peers/{peer_id}/transcript", session_id="another"))["history_status"] == "unavailable"


async def test_without_a_session_the_newest_of_the_folder_is_told(api: Api, home: Path) -> None:
    await api.post("/peers", name="ann", path=WORK, backend="claude-code")
    told = await api.get("/peers/ann/transcript")
    assert (told["history_source"], told["binding_status"], len(told["turns"])) == ("peer_path", "unbound", 4)


@pytest.mark.parametrize(("backend", "status"), [("opencode", "unsupported"), ("codex", "unavailable")])
async def test_what_cannot_be_told_says_why(api: Api, home: Path, backend: str, status: str) -> None:
    await api.post("/peers", name="ann", path=WORK, backend=backend)
    told = await api.get("/peers/ann/transcript")
    assert (told["history_status"], told["turns"]) == (status, [])
    assert told["history_message"]


async def test_a_transcript_that_is_no_plain_file_is_not_waited_for(api: Api, home: Path) -> None:
    file = home / ".claude/projects/-src-app/s-claude.jsonl"
    file.unlink()
    os.mkfifo(file)
    await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    assert (await api.get("/peers/claude-code/transcript"))["history_status"] == "unavailable"


@pytest.mark.parametrize("given", ['{"x": NaN, "y": [-Infinity, 1e999]}', f'{{"x": {"[" * 500}{"]" * 500}}}'])
async def test_what_json_has_no_word_for_is_shown_as_json(api: Api, home: Path, given: str) -> None:
    """A runtime writes for itself; a dashboard reads JSON."""
    days = home / ".codex/sessions/2026/11/25"
    files = (home / ".claude/projects/-src-app/s-claude.jsonl", days / "rollout-2026-11-25T10-00-00-s-codex.jsonl")
    call = {"type": "tool_use", "name": "Odd", "input": 0}
    said = json.dumps(claude("assistant", [call], "2026-11-25T11:00:00.000Z", id="m-odd")).replace("0}]", f"{given}}}]")
    with files[0].open("a") as file:
        file.write(f"{said}\n")
    payload = {"type": "function_call", "name": "Odd", "arguments": given}
    with files[1].open("a") as file:
        file.write(f"{json.dumps({'timestamp': None, 'type': 'response_item', 'payload': payload})}\n")
    for backend, session in (("claude-code", "s-claude"), ("codex", "s-codex")):
        peer_id = await peer(api, backend, metadata={"session_id": session})
        got = await api.request("GET", f"/peers/{peer_id}/transcript", query={"limit": "1"})
        (call,) = wire.decode(got.body.decode())["turns"][0]["tool_calls"]
        assert call in (
            {"name": "Odd", "input": {"x": None, "y": [None, None]}},
            {"name": "Odd", "input": "[nested too deeply]"},
        )


async def test_the_timeline_has_what_is_heard_and_says_nothing_twice(api: Api, home: Path, clock: FakeClock) -> None:
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    clock.advance(1_795_600_900 - clock.now())  # after the transcript
    turn = {"peer": "x", "peer_id": peer_id, "session_id": "s-claude"}
    await api.post("/events/chat", **turn, role="user", text="hello there", turn_id="p-1")
    await api.post("/events/chat", **turn, role="assistant", text="I look.")
    await api.post("/events/chat", **turn, role="assistant", text="Not written down yet.", turn_id="t-9")
    for number, word in enumerate(("Now ", "I ", "think")):
        await api.post("/events/chat_delta", **turn, turn_id="t-10", chunk_index=number, text=word)
    await api.post("/events/chat_delta", **turn, turn_id="t-9", chunk_index=0, text="Not written")
    await api.post("/events/chat", peer="nobody", role="user", text="of another")
    told = await api.get(f"/peers/{peer_id}/timeline")
    assert [(item["source"], item["kind"], item["text"]) for item in told["items"]] == [
        ("history", "turn", "hello there"),
        ("history", "turn", "Hello.\nI look."),
        ("history", "turn", "and quickly"),
        ("history", "turn", "There is a.py."),
        ("realtime", "turn", "Not written down yet."),
        ("realtime", "delta_group", "Now I think"),
    ]
    assert len({item["id"] for item in told["items"]}) == 6
    assert len(told["items"][-1]["event_ids"]) == 3
    assert [item["text"] for item in (await api.get(f"/peers/{peer_id}/timeline", limit=1))["items"]] == ["Now I think"]


async def test_words_are_found_in_capitals_or_not_and_shown_where_they_stand(api: Api, home: Path) -> None:
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    await api.post("/events/chat", peer="x", peer_id=peer_id, role="user", text="Is THERE more?")
    told = await api.get(f"/peers/{peer_id}/timeline/search", q="tHeRe")
    assert (told["degraded"], told["query"]) == (False, "tHeRe")
    assert [one["item"]["text"] for one in told["results"]] == ["There is a.py.", "hello there", "Is THERE more?"]
    match = told["results"][1]["match"]
    assert (match["start"], match["end"], match["snippet"]) == (6, 11, "hello there")
    assert told["results"][1]["target_id"] == told["results"][1]["item"]["id"]
    page = await api.get(f"/peers/{peer_id}/transcript", before=told["results"][0]["cursor"], limit=1)
    assert page["turns"][0]["text"] == "and quickly"
    assert (await api.get(f"/peers/{peer_id}/timeline/search", q=".*"))["results"] == []
    assert len((await api.get(f"/peers/{peer_id}/timeline/search", q="e", limit=1))["results"]) == 1


@pytest.mark.parametrize("words", ["Hello.", "I look", "look."])
async def test_what_is_found_is_the_whole_turn_under_the_id_of_the_timeline(api: Api, home: Path, words: str) -> None:
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    told = (await api.get(f"/peers/{peer_id}/timeline/search", q=words))["results"]
    items = {item["id"]: item for item in (await api.get(f"/peers/{peer_id}/timeline"))["items"]}
    assert [items[one["target_id"]] for one in told] == [one["item"] for one in told]
    assert [one["item"]["text"] for one in told] == ["Hello.\nI look."]


@pytest.mark.parametrize("words", ['say "hi"', "C:\\dir", "grün", "a\tb", "<b>"])
async def test_words_that_json_writes_in_another_way_are_found(api: Api, home: Path, words: str) -> None:
    file = home / ".claude/projects/-src-app/s-claude.jsonl"
    file.write_text(lines(claude("user", f"Please {words.upper()} now", "2026-11-25T10:00:00.000Z")))
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    assert len((await api.get(f"/peers/{peer_id}/timeline/search", q=words))["results"]) == 1


async def test_a_search_that_takes_too_long_says_that_it_is_not_all(
    api: Api, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    monkeypatch.setattr(turns, "SEARCH_SECONDS", -1.0)
    told = await api.get(f"/peers/{peer_id}/timeline/search", q="hello")
    assert told["degraded"] is True
    assert told["degradation_message"]


async def test_a_search_that_finds_long_turns_ends_early_and_says_so(api: Api, home: Path) -> None:
    peer_id = await peer(api, "claude-code", metadata={"session_id": "s-claude"})
    long = [
        claude("user", f"{number} {'needle ' * 200_000}", f"2026-11-25T12:00:0{number}.000Z") for number in range(4)
    ]
    with (home / ".claude/projects/-src-app/s-claude.jsonl").open("a") as file:
        file.write(lines(*long))
    told = await api.get(f"/peers/{peer_id}/timeline/search", q="needle")
    assert [one["item"]["text"][0] for one in told["results"]] == ["3", "2"]
    assert told["degraded"] is True
    assert "MiB" in told["degradation_message"]


@pytest.mark.parametrize(
    "before", ["", "x", "eyJhIjogMX0=", "W251bGwsIG51bGwsIC0xXQ==", "W251bGwsIDcsIDFd", "W1tb" * 1000]
)
async def test_a_cursor_that_is_none_of_ours_is_refused(api: Api, home: Path, before: str) -> None:
    peer_id = await peer(api, "claude-code")
    refused = await api.get(f"/peers/{peer_id}/transcript", before=before, expect=422)
    assert refused["detail"]["field"] == "before"


def test_the_bytes_of_one_page_do_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", counted)
    file = tmp_path / "t.jsonl"
    one = lines(claude("user", "x" * 1900, "2026-11-25T10:00:00.000Z"))
    file.write_text(one * 100_000)  # 200 MB
    page: Callable[..., Any] = turns.page
    told, cursor = page(READERS["claude-code"], [Source("s", file, None)], 50, None)
    assert (len(told), cursor is None) == (50, False)
    assert sum(read) < 400_000
    page(READERS["claude-code"], [Source("s", file, None)], 50, turns.place_of(cursor))
    assert sum(read) < 800_000


async def test_a_turn_that_is_told_names_the_session_that_it_is_of(api: Api, home: Path) -> None:
    await api.post("/peers", name="ann", path=WORK, backend="claude-code")
    turn = {"peer": "ann", "role": "user", "text": "hello", "session_id": "s-claude"}
    await api.post("/events/chat", **turn)
    told = await api.get("/peers/ann/transcript", limit=1)
    assert (told["history_source"], told["turns"][0]["session_id"]) == ("session_binding", "s-claude")
    assert told["binding_status"] == "bound"
