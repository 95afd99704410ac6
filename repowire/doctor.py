"""Doctor: how the daemon itself fares. `/health` is cheap and holds no secret: no file read, no search."""

from typing import Any

from aiohttp import web

from repowire import __version__, wire
from repowire.mesh import MESH, Mesh


def health(mesh: Mesh) -> dict[str, Any]:
    """The published fields (wire.md 1.1), and what of the stores needs attention."""
    failure = mesh.ledger.failure
    # anybody may ask, so the reason is shown without the path that it begins with
    troubles = [f"ledger: {failure.rpartition(': ')[2]}"] if failure else []
    return {
        "status": "ok",
        "version": __version__,
        "relay_mode": False,
        "channel": {
            "status": "inactive",
            "configured": False,
            "runtime_available": False,
            "stop_hook_fallback": True,
            "last_error": None,
        },
        "acp_broker": {
            "status": "inactive",
            "enabled": False,
            "sdk_available": False,
            "manager_initialized": False,
            "configured_peers": 0,
            "active_clients": 0,
            "in_flight": 0,
            "last_error": None,
            "last_error_peer_id": None,
            "last_error_at": None,
            "last_success_at": None,
            "sessions": {},
            "permissions": {"pending": 0, "timeout_seconds": None, "last_error": None, "last_error_at": None},
        },
        "degraded": troubles,
    }


async def get_health(request: web.Request) -> web.Response:
    return wire.reply(health(request.app[MESH]))


ROUTES = [web.get("/health", get_health)]
