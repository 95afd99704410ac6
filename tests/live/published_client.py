"""Runs in a Python that has the published repowire 0.17.0: calls every method of its client, and prints what came.

published_client.py URL [TOKEN]

One JSON object: for each method its `result`, or its `error` (the exception's name), `status` and `words`.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

from repowire.client import AsyncRepowireClient, DaemonConnectionError, DaemonHTTPError, DaemonTimeoutError

ANN = {"from_peer": "ann"}


def plain(value: Any) -> Any:
    """A result as JSON."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


class Told(dict[str, Any]):
    """What each method did."""

    async def __call__(self, name: str, call: Awaitable[Any]) -> Any:
        try:
            result = await call
        except (DaemonConnectionError, DaemonHTTPError, DaemonTimeoutError) as exc:
            self[name] = {
                "error": type(exc).__name__,
                "bases": [base.__name__ for base in type(exc).__mro__],
                "status": getattr(exc, "status", None),
                "words": str(exc),
            }
            return None
        self[name] = {"result": plain(result)}
        return result


async def every_method(c: Any, told: Told) -> None:
    await told("health", c.health())
    await told("register_peer", c.register_peer("ann", path="/src/ann", metadata={"of": "test"}))
    await c.register_peer("cat", path="/src/cat", pane_id="%41", circle="night", role="service", backend="codex")
    await told("get_peer", c.get_peer("ann"))
    await told("get_peer_by_pane", c.get_peer_by_pane("%41"))
    await told("set_description", c.set_description("ann", "on the parser"))
    await told("touch_peer", c.touch_peer("ann"))
    await told("set_circle", c.set_circle("cat", "day"))
    await told("list_peers", c.list_peers(status="online"))
    await c.register_peer("boss", path="/src/ops", circle="ops", role="orchestrator")
    await told("orchestrator_status", c.orchestrator_status("ops"))
    await told("notify", c.notify("ben", "hello", **ANN))
    await told("broadcast", c.broadcast("all hear", exclude=["cat"], **ANN))
    await told("query", c.query("ben", "up?", timeout=20.0, **ANN))
    asked = await told("ask", c.ask("silent", "is main green?", **ANN))
    await told("pending_asks", c.pending_asks(peer_id="silent", direction="inbound"))
    await told("ack", c.ack(asked.correlation_id, message="yes", from_peer="silent"))
    await told("ingest_chat_turn", c.ingest_chat_turn("ann", "user", "good morning"))
    await told("events", c.events())
    await told("mark_peer_offline", c.mark_peer_offline("ann"))
    await told("unregister_peer", c.unregister_peer("cat"))
    await told("spawn_config", c.spawn_config())
    await told("spawn", c.spawn("/src/ann", "claude"))
    await told("kill_peer", c.kill_peer("ann"))
    await told("restart_peer", c.restart_peer("ann", dry_run=True))
    await told("resume_session", c.resume_session("rw-session-0"))
    await told("upload_attachment", c.upload_attachment(b"some bytes", filename="a.bin"))
    await told("download_attachment", c.download_attachment("att-0"))


async def main(url: str, token: str | None = None) -> None:
    told = Told()
    async with AsyncRepowireClient(url, auth_token=token) as client:
        await every_method(client, told)
        told["methods"] = [name for name in dir(client) if not name.startswith("_")]
        told["refused"] = await refused(client)
    print(json.dumps(told))


async def refused(client: Any) -> dict[str, Any]:
    """How the client sees a peer that there is not."""
    told = Told()
    await told("ask", client.ask("nobody", "hello?", **ANN))
    await told("notify", client.notify("nobody", "hello?", **ANN))
    await told("get_peer", client.get_peer("nobody"))
    return dict(told)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
