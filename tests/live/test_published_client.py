"""The published Python client of 0.17.0, unmodified, against our daemon: every method, with the token and open."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live

from repowire.async_client import AsyncRepowireClient, Message

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / ".agents" / "published-0.17.0"
SECONDS = 60.0

# Whose routes are not ours yet: the published client must see a clean 404. A row goes when its route comes.
NOT_YET = (
    "upload_attachment",
    "download_attachment",
)

# What this daemon, without a section [spawn] in its config, does not do: status and slug
REFUSED = {
    "spawn": (403, "spawn_disabled"),
    "restart_peer": (404, "peer_not_found"),  # it was ended just before
    "resume_session": (404, "session_not_found"),
}

# wire.md 14, by the shape of each result
RESULTS: dict[str, Any] = {
    "health": {"status": "ok", "version": str, "relay_mode": False, "channel": dict, "acp_broker": dict},
    "register_peer": {"ok": True, "peer_id": str, "display_name": "ann"},
    "get_peer": {
        "peer_id": str,
        "name": "ann",
        "display_name": "ann",
        "path": "/src/ann",
        "machine": None,
        "tmux_session": None,
        "backend": "claude-code",
        "model": None,
        "circle": "default",
        "role": "agent",
        "status": "online",
        "last_seen": str,
        "metadata": {"of": "test"},
        "description": "",
    },
    "get_peer_by_pane": {"display_name": "cat", "circle": "night", "role": "service", "backend": "codex"},
    "set_description": None,
    "touch_peer": None,
    "set_circle": None,
    "orchestrator_status": {
        "circle": "ops",
        "present": True,
        "peer_id": str,
        "peer_name": "boss",
        "last_seen": str,
        "stale_after_seconds": 60,
    },
    "notify": None,
    "broadcast": {"ok": True, "sent_to": ["ben", "silent"], "failed": []},
    "query": {"text": "you said: up?", "error": None, "status": None},
    "ask": {"correlation_id": str, "error": None},
    "ack": None,
    "ingest_chat_turn": None,
    "mark_peer_offline": 0,
    "unregister_peer": None,
    "spawn_config": {"enabled": False, "commands": {}, "profiles": {}, "allowed_commands": [], "allowed_paths": []},
    "kill_peer": {"ok": True, "tmux_killed": None},
}


def like(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, or of the wanted type; of an object the wanted fields count."""
    if isinstance(wanted, type):
        return isinstance(value, wanted)
    if isinstance(wanted, dict) and isinstance(value, dict):
        return all(name in value and like(value[name], wanted[name]) for name in wanted)
    return bool(value == wanted)


@pytest.fixture(params=["token", "open"])
async def told(request: pytest.FixtureRequest, new_live: Any) -> AsyncIterator[dict[str, Any]]:
    """What every method of the published client did; `ben` answers, `silent` does not."""
    if not (PUBLISHED / ".installed").exists():
        pytest.skip("the published client is not here: `make published` fetches it")
    environ = {"REPOWIRE_DAEMON__AUTH_TOKEN": ""} if request.param == "open" else {}
    live = new_live().start(**environ)
    token = [live.token] if request.param == "token" else []
    async with (
        AsyncRepowireClient(home=live.home) as client,
        client.connect("ben", handler=answer, path="/src/ben"),
        client.connect("silent", handler=lambda message: None, path="/src/silent"),
    ):
        yield await run(live, *token)


def answer(message: Message) -> str:
    return f"you said: {message.text}"


async def run(live: Live, *token: str) -> dict[str, Any]:
    program = Path(__file__).with_name("published_client.py")
    process = await asyncio.create_subprocess_exec(
        PUBLISHED / "bin" / "python", "-I", program, f"http://127.0.0.1:{live.port}", *token,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=live.environ, cwd=live.folder,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()[-3000:]
    told: dict[str, Any] = json.loads(out)
    return told


async def test_every_method_of_the_published_client_does_what_it_did(told: dict[str, Any]) -> None:
    methods = set(told["methods"]) - {"aclose", "base_url"}
    assert methods == set(told) - {"methods", "refused"}, "a method is not tried"
    failed = {name: told[name] for name in methods - set(NOT_YET) - set(REFUSED) if "result" not in told[name]}
    assert failed == {}
    for name, (status, slug) in REFUSED.items():
        assert told[name]["status"] == status
        assert slug in told[name]["words"]
    results = {name: told[name]["result"] for name in methods - set(NOT_YET) - set(REFUSED)}
    wanted = {name: shape for name, shape in RESULTS.items() if name not in NOT_YET}
    assert {name: results[name] for name, shape in wanted.items() if not like(results[name], shape)} == {}
    assert {peer["display_name"] for peer in results["list_peers"]} >= {"ann", "ben", "cat", "silent"}
    mine = [peer for peer in results["list_peers"] if peer["display_name"] == "ann"]
    assert [(peer["description"], peer["metadata"]) for peer in mine] == [("on the parser", {"of": "test"})]
    asked = results["ask"]["correlation_id"]
    pending = [row for row in results["pending_asks"] if row["correlation_id"] == asked]
    assert [(row["from_peer"], row["text"], row["direction"]) for row in pending] == [
        ("ann", "is main green?", "inbound")
    ]
    assert results.keys() - RESULTS.keys() == {"list_peers", "pending_asks", "events"}


async def test_the_published_client_sees_the_events_under_their_published_types(told: dict[str, Any]) -> None:
    types = [event["type"] for event in told["events"]["result"]]
    assert {"ask", "ack", "notification", "broadcast", "chat_turn"} <= set(types)
    ids = [int(event["id"]) for event in told["events"]["result"]]
    assert ids == sorted(set(ids))


async def test_what_is_not_ours_yet_is_a_clean_404(told: dict[str, Any]) -> None:
    seen = {name: (told[name].get("error"), told[name].get("status")) for name in NOT_YET}
    assert seen == dict.fromkeys(NOT_YET, ("DaemonHTTPError", 404))


async def test_a_refusal_is_the_published_clients_own_error_with_our_words(told: dict[str, Any]) -> None:
    for name, seen in told["refused"].items():
        assert (seen["error"], seen["status"]) == ("DaemonHTTPError", 404), name
        assert "nobody" in seen["words"], seen
        assert "RepowireError" in seen["bases"]
