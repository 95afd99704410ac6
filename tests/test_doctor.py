"""doctor.py: /health tells how the daemon fares, to anybody, so cheaply and without a secret."""

import builtins
import errno
import io
import os

from conftest import TOKEN

from repowire import __version__

TOP = ["status", "version", "relay_mode", "channel", "acp_broker", "degraded"]
CHANNEL = ["status", "configured", "runtime_available", "stop_hook_fallback", "last_error"]
BROKER = [
    "status",
    "enabled",
    "sdk_available",
    "manager_initialized",
    "configured_peers",
    "active_clients",
    "in_flight",
    "last_error",
    "last_error_peer_id",
    "last_error_at",
    "last_success_at",
    "sessions",
    "permissions",
]
PERMISSIONS = ["pending", "timeout_seconds", "last_error", "last_error_at"]


def fill_the_disk(monkeypatch):
    real = os.write

    def write(file, data):
        if b'"kind"' in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "write", write)


async def test_health_has_the_published_fields(api):
    got = await api.get("/health")
    assert list(got) == TOP
    assert (got["status"], got["version"], got["relay_mode"], got["degraded"]) == ("ok", __version__, False, [])
    assert list(got["channel"]) == CHANNEL
    assert got["channel"]["stop_hook_fallback"] is True
    assert list(got["acp_broker"]) == BROKER
    assert list(got["acp_broker"]["permissions"]) == PERMISSIONS


async def test_health_needs_no_token(api):
    assert (await api.request("GET", "/health", token=None)).status == 200
    async with api.client.head("/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    assert (await api.request("GET", "/peers", token=None)).status == 401


async def test_health_names_a_full_disk_and_no_path(api, monkeypatch):
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        api.mesh.announce("peer.changed")
    got = await api.request("GET", "/health", token=None)
    assert got.json["degraded"] == ["ledger: No space left on device"]
    secrets = (TOKEN, str(api.mesh.config.home), ".jsonl", "/")
    assert [one for one in secrets if one in got.body.decode()] == []
    api.mesh.announce("peer.changed")
    assert (await api.get("/health"))["degraded"] == []


async def test_health_holds_no_peer(api):
    await api.connect("ben", path="/src/ben")
    body = (await api.request("GET", "/health", token=None)).body
    assert b"ben" not in body
    assert b"repow-" not in body


async def test_health_opens_no_file_and_starts_no_transaction(api, monkeypatch):
    await api.get("/health")  # what is imported late is there now
    opened = []

    def refuse(*args, **kwargs):
        opened.append(args)
        raise AssertionError(f"opened {args}")

    committed, lines = api.mesh.db.committed, api.mesh.ledger.last
    with monkeypatch.context() as patched:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "listdir")):
            patched.setattr(module, name, refuse)
        got = await api.request("GET", "/health")
    assert (got.status, opened) == (200, [])
    assert (api.mesh.db.committed, api.mesh.ledger.last) == (committed, lines)
