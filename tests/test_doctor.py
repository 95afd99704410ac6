"""doctor.py: /health tells how the daemon fares, to anybody, so cheaply and without a secret."""

import builtins
import errno
import inspect
import io
import os
import subprocess
import sys

import pytest
from conftest import TOKEN, until_async

from repowire import __version__, channels, contradictions, doctor, drift, gates, lives, presence, sessions
from repowire.agents import claude_code_setup as setup
from repowire.agents.claude_code_setup import Program

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


# -- reports: what the clock, a file and the table say ----------------------------------


async def codes(api, name):
    return [one["code"] for one in (await api.get(f"/peers/{name}/doctor"))["contradictions"]]


async def test_an_ask_that_waits_for_half_an_hour_is_stale(api, clock):
    await api.connect("ben", path="/src/ben", pane_id="%7", capabilities=["delivery_receipts"])
    asked = await api.post("/ask", to_peer="ben", text="ready?")
    clock.advance(1800)
    assert "STALE_PENDING_ASK" not in await codes(api, "ben")
    clock.advance(1)
    got = await api.get("/peers/ben/doctor")
    found = next(one for one in got["contradictions"] if one["code"] == "STALE_PENDING_ASK")
    assert (found["severity"], found["evidence"]["correlation_id"]) == ("warning", asked["correlation_id"])
    assert (got["pending_inbound_count"], got["oldest_pending_cid"]) == (1, asked["correlation_id"])
    assert got["oldest_pending_age_seconds"] == 1801


async def test_who_is_said_to_work_and_says_itself_that_it_rests_missed_a_hook(api, clock, tmp_path):
    peer_id = (await api.post("/peers", name="ann", path="/src/ann", agent_pid=os.getpid()))["peer_id"]
    (tmp_path / "1.json").write_text('{"status": "idle"}')
    with api.mesh.change() as change:
        sessions.bind(change, peer_id, registry=str(tmp_path / "1.json"))
    await api.post("/session/update", peer_name="ann", status="busy", turn_state="working")
    assert "DEAD_BUT_BUSY" not in await codes(api, "ann")
    clock.advance(6)
    assert "DEAD_BUT_BUSY" in await codes(api, "ann")
    (tmp_path / "1.json").write_text('{"status": "busy"}')
    assert "DEAD_BUT_BUSY" not in await codes(api, "ann")


@pytest.mark.parametrize("gated", [None, ("Bash", "Edit")])
def test_settings_are_as_setup_wrote_them_with_a_gate_and_without(tmp_path, gated):
    wrote = Program("/usr/bin/python3", "/opt/repowire", "/srv/home", gated)
    (tmp_path / "settings.json").write_text(setup.add_hooks("", wrote))
    (tmp_path / ".claude.json").write_text(setup.add_server("", wrote))
    assert drift.found_in(str(tmp_path), wrote._replace(gated=("Bash", "Edit"))) == []
    found = drift.found_in(str(tmp_path), wrote._replace(gated=("Bash",)))
    assert [one.what for _, one in found] == (["other tools than the config says"] if gated else [])


@pytest.mark.parametrize("whose", ["this user's", "another HOME's", "a CLAUDE_CONFIG_DIR's"])
def test_what_is_said_to_mend_settings_does(mesh, tmp_path, monkeypatch, whose):
    """Each is a way in which a Claude Code may have been started; what writes them must write where that one reads."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    monkeypatch.setenv("REPOWIRE_HOME", str(mesh.config.home))
    home = {"this user's": tmp_path, "another HOME's": tmp_path / "an other"}.get(whose)
    folder = home / ".claude" if home else tmp_path / "a config dir"
    folder.mkdir(parents=True)
    (home or folder).joinpath(".claude.json").write_text("{}\n")
    before = drift.look_at(mesh, str(folder))
    assert {one.what for _, one in before.drift} == {"missing"}
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = ["/bin/sh", "-c", f"{before.setup} --yes"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path})
    assert drift.look_at(mesh, str(folder)).drift == []


@pytest.mark.parametrize("kind", ["pipe", "endless", "huge"])
def test_settings_that_are_no_file_are_said_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "settings.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 33)
    found = [one for _, one in drift.found_in(str(tmp_path), Program("python3", "/opt/repowire"))]
    assert found[0] == ("hooks", f"unreadable: {'is too large' if kind == 'huge' else 'is no file'}")


async def test_an_event_tells_of_each_once_and_again_when_it_comes_back(api, clock):
    await api.post("/peers", name="ann", path="/src/ann", pane_id="%7")

    async def told():
        events = await api.get("/events")
        return [event["code"] for event in events if event["type"] == "peer_contradiction"]

    for _ in range(3):
        assert "ONLINE_BUT_NO_WS" in await codes(api, "ann")
    assert (await told()).count("ONLINE_BUT_NO_WS") == 1
    socket = await api.connect("ann", path="/src/ann", pane_id="%7")
    assert "ONLINE_BUT_NO_WS" not in await codes(api, "ann")
    await socket.close()
    peer_id = (await api.get("/peers/ann"))["peer_id"]
    await until_async(lambda: presence.evidence(api.mesh.db.conn, peer_id)["socket"].fact == "closed")
    clock.advance(1)
    await api.post("/session/update", peer_name="ann", status="online")
    assert "ONLINE_BUT_NO_WS" in await codes(api, "ann")
    assert (await told()).count("ONLINE_BUT_NO_WS") == 2


async def test_of_a_peer_elsewhere_nothing_is_looked_at(api):
    await api.post("/peers", name="far", path="/src/far", machine="elsewhere", pane_id="%3", agent_pid=os.getpid())
    got = await api.get("/peers/far/doctor")
    looked_at = ("tmux_pane_exists", "tmux_evidence", "agent_pid_alive", "hook_meta_peer_id")
    assert (got["is_local_machine"], [got[name] for name in looked_at]) == (False, [None] * 4)
    assert got["contradictions"] == []


async def test_who_is_not_known_or_not_one_is_refused(api):
    assert (await api.request("GET", "/peers/nobody/doctor")).status == 404
    for circle in ("red", "blue"):
        await api.post("/peers", name="eve", path=f"/src/{circle}", circle=circle)
    assert (await api.request("GET", "/peers/eve/doctor")).status == 409
    assert (await api.get("/peers/eve/doctor", circle="red"))["circle"] == "red"


def test_each_gate_has_a_word_on_what_opens_it():
    words = {value for name, value in vars(gates).items() if name.isupper() and isinstance(value, str)}
    assert words - set(contradictions.OPENERS) == set()
    assert channels.RECEIVER_POLICY in contradictions.OPENERS


def test_the_contract_comes_first_and_every_code_has_its_rule():
    source = inspect.getsource(contradictions)
    assert [code for code in contradictions.CODES if source.count(f'"{code}"') < 2] == []


async def test_the_host_is_judged_by_its_peers_as_they_are_after_the_survey(api, monkeypatch):
    """One that ends meanwhile is no error of the host, and one that was taken off the list no failure."""
    for name in ("ann", "ben"):
        await api.post("/peers", name=name)
    look = doctor.look

    async def slow(mesh, table, found):
        around = await look(mesh, table, found)
        with mesh.change() as change:
            for peer in found:
                if peer.display_name == "ben":
                    change.db.execute("DELETE FROM peers WHERE peer_id = ?", (peer.peer_id,))
                    change.record("peer.changed", peer_id=peer.peer_id)
                elif peer.display_name == "ann":
                    lives.retire(change, peer, "session_end")
        return around

    seen = []
    examined = doctor.examined
    monkeypatch.setattr(doctor, "look", slow)
    monkeypatch.setattr(doctor, "examined", lambda around, peer: seen.append(peer) or examined(around, peer))
    await api.get("/doctor")
    assert [(peer.display_name, peer.retired_at is not None) for peer in seen] == [("ann", True)]
