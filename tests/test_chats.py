"""chats.py: turns and pieces of turns that runtimes post, and what a turn proves."""

import pytest

from repowire import chats
from repowire.protocol import render


@pytest.fixture
async def ben(both):
    return await both.connect("ben", path="/src/ben", capabilities=["delivery_receipts"])


async def events(api, kind):
    return [one for one in await api.get("/events") if one["type"] == kind]


async def test_a_turn_becomes_an_event(both, ben):
    calls = [{"name": "Bash", "input": "ls"}]
    await both.post("/events/chat", peer="ben", role="assistant", text="done\x1b[2J", turn_id="t1", tool_calls=calls)
    (event,) = await events(both, "chat_turn")
    assert (event["peer"], event["peer_id"], event["role"], event["text"]) == (
        "ben",
        ben.peer_id,
        "assistant",
        "done[2J",
    )
    assert (event["turn_id"], event["tool_calls"]) == ("t1", calls)


async def test_a_users_turn_that_shows_a_message_proves_that_it_was_seen(both, ben):
    sent = await both.post("/notify", to_peer="ben", text="main is green")
    frame = await ben.next()
    state = f"/deliveries/{sent['delivery_id']}"
    await both.post("/events/chat", peer="ben", role="user", text=f"about #{sent['delivery_id']}")  # no block of ours
    await both.post("/events/chat", peer="ben", role="assistant", text=render(frame))  # its own words prove nothing
    assert (await both.get(state))["state"] == "leased"
    await both.post("/events/chat", peer="ben", role="user", text=render(frame))
    assert (await both.get(state))["state"] == "seen"


async def test_another_peers_turn_proves_nothing(both, ben):
    await both.connect("cy", path="/src/cy")
    sent = await both.post("/notify", to_peer="ben", text="x")
    await both.post("/events/chat", peer="cy", role="user", text=render(await ben.next()))
    assert (await both.get(f"/deliveries/{sent['delivery_id']}"))["state"] == "leased"


async def test_pieces_of_a_turn_stream_until_it_is_over(both, ben):
    await both.post("/events/chat_delta", peer="ben", turn_id="t1", chunk_index=0, text="he")
    await both.post(
        "/events/chat_delta", peer="ben", turn_id="t1", chunk_index=1, kind="tool_use", tool_call={"name": "Bash"}
    )
    await both.post("/events/chat_delta", peer="ben", turn_id="t1", chunk_index=2, text="llo", is_final=True)
    await both.post("/events/chat_delta", peer="ben", turn_id="t1", chunk_index=3, text="too late")
    got = await events(both, "chat_turn_delta")
    assert [(one["chunk_index"], one["kind"], one["text"], one["is_final"]) for one in got] == [
        (0, "text", "he", False),
        (1, "tool_use", "", False),
        (2, "text", "llo", True),
    ]
    assert got[1]["tool_call"] == {"name": "Bash"}


async def test_a_whole_turn_ends_its_pieces_too(both, ben):
    await both.post("/events/chat", peer="ben", role="assistant", text="hello", turn_id="t1", session_id="s")
    await both.post("/events/chat_delta", peer="ben", turn_id="t1", session_id="s", chunk_index=0, text="late")
    await both.post("/events/chat_delta", peer="ben", turn_id="t1", session_id="other", chunk_index=0, text="new")
    assert [one["text"] for one in await events(both, "chat_turn_delta")] == ["new"]


def test_only_so_many_turns_are_remembered():
    finished = chats.Finished()
    for number in range(chats.FINISHED_MOST + 1):
        finished.add(None, str(number))
    assert not finished.has(None, "0")
    assert finished.has("legacy", "1")


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/events/chat", {"role": "user", "text": "x"}, "peer"),
        ("/events/chat", {"peer": "ben", "text": "x"}, "role"),
        ("/events/chat", {"peer": "ben", "role": "system", "text": "x"}, "role"),
        ("/events/chat", {"peer": "ben", "role": "user"}, "text"),
        ("/events/chat", {"peer": "ben", "role": "user", "text": "x", "tool_calls": "ls"}, "tool_calls"),
        ("/events/chat_delta", {"peer": "ben", "turn_id": "t"}, "chunk_index"),
        ("/events/chat_delta", {"peer": "ben", "turn_id": "t", "chunk_index": -1}, "chunk_index"),
        ("/events/chat_delta", {"peer": "ben", "chunk_index": 0}, "turn_id"),
    ],
)
async def test_a_turn_is_checked(both, route, body, field):
    assert (await both.post(route, expect=422, **body))["detail"]["field"] == field
