"""Rehooks on a real daemon, its real ws-hook and a real tmux: what is dead is replaced, and nothing else is touched."""

import asyncio
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from boxes import Host, hosting
from conftest import Live, TmuxServer, until

pytestmark = pytest.mark.live


@pytest.fixture
def host(new_live: Callable[..., Live], tmux: TmuxServer, short_folder: Path) -> Iterator[Host]:
    with hosting(new_live(), tmux, short_folder) as host:
        yield host


def rehook(host: Host, name: str, *, expect: int = 200, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = host.live.post(f"/peers/{name}/rehook", expect=expect, **fields)
    return answer


def test_a_way_that_answers_is_left_alone(host: Host) -> None:
    host.link(host.box().pane, name="ann")
    before = host.ws_hooks()
    for apply in (False, True):
        done = rehook(host, "ann", apply=apply)
        assert (done["reason"], done["acted"], done["ping_ok"]) == ("already_healthy", False, True)
        assert (done["ws_was_connected"], done["pane_verified"], done["ws_hook_respawned"]) == (True, True, False)
    assert host.ws_hooks() == before


def test_a_program_that_hangs_is_found_by_a_dry_run_and_replaced_by_apply(host: Host) -> None:
    box = host.box()
    peer_id = host.link(box.pane, name="ann")["peer_id"]
    (hung,) = host.ws_hooks()
    os.kill(hung, signal.SIGSTOP)
    sent = host.tell("ann", "into the silence")
    dry = rehook(host, "ann")
    assert (dry["reason"], dry["acted"], dry["ping_ok"], dry["ws_was_connected"]) == ("dry_run", False, False, True)
    assert "does not answer" in dry["detail"]
    assert host.ws_hooks() == [hung]
    done = rehook(host, "ann", apply=True)
    assert (done["reason"], done["ws_hook_respawned"], done["peer_id"]) == ("respawned", True, peer_id)
    assert hung not in host.ws_hooks()
    host.until_state(sent, "handed")
    assert box.times("into the silence") == 1


def test_a_dead_one_that_is_not_started_again_for_a_while_is_there_at_once(host: Host) -> None:
    host.link(host.box().pane, name="ann")
    for _ in range(4):  # each end of it makes the pause before the next one longer
        until(host.ws_hooks)
        os.kill(host.ws_hooks()[0], signal.SIGKILL)
        until(lambda: not host.peers()["ann"]["ws_connected"])
        assert rehook(host, "ann", apply=True)["reason"] == "respawned"


async def test_a_dead_socket_is_replaced_and_the_program_goes_on_while_it_answers_for_another(host: Host) -> None:
    box = host.box()
    ann = await asyncio.to_thread(host.link, box.pane, name="ann")
    await asyncio.to_thread(host.link, host.box("other").pane, name="ben")
    serving = host.ws_hooks()
    headers = {"Authorization": f"Bearer {host.live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{host.live.port}", headers=headers) as session:
        taker = await session.ws_connect("/ws")  # somebody takes its place, and answers no ping
        place = {"peer_id": ann["peer_id"], "pane_id": box.pane, "agent_pid": box.pid, "path": str(box.folder)}
        await taker.send_json({"type": "connect", "display_name": "ann", **place})
        assert (await taker.receive_json())["session_id"] == ann["peer_id"]
        dry = await asyncio.to_thread(rehook, host, "ann")
        assert (dry["reason"], dry["ping_ok"]) == ("dry_run", False)
        done = await asyncio.to_thread(rehook, host, "ann", apply=True)
        assert (done["reason"], done["ws_hook_respawned"]) == ("respawned", True)
        assert (await taker.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.CLOSED)
        await taker.close()
    assert host.ws_hooks() == serving
    host.until_state(host.tell("ann", "by the right one"), "handed")


def test_a_peer_whose_server_nobody_said_is_found_by_its_process_and_served(host: Host) -> None:
    box = host.box()
    served = host.box("served")
    host.link(served.pane, name="served")  # so that the daemon knows this tmux
    host.live.post("/peers", name="ann", path=str(box.folder), pane_id=box.pane, agent_pid=box.pid)
    assert host.peers()["ann"]["inbound_status"] == "no_hook"
    assert rehook(host, "ann")["reason"] == "dry_run"
    assert rehook(host, "ann", apply=True)["reason"] == "respawned"
    assert host.peers()["ann"]["ws_connected"]


def test_what_is_not_proved_is_refused(host: Host) -> None:
    box, other = host.box(), host.box("other")
    host.link(other.pane, name="other")
    facts = {"path": str(box.folder), "pane_id": box.pane}
    host.live.post("/peers", name="ann", **facts)
    assert rehook(host, "ann", expect=409, apply=True)["detail"]["error"] == "pane_unverified"
    host.live.post("/peers", name="ben", **facts, agent_pid=os.getpid())  # which runs elsewhere
    refused = rehook(host, "ben", expect=409, apply=True)["detail"]
    assert (refused["error"], refused["pane_id"]) == ("pane_unverified", box.pane)
    host.live.post("/peers", name="cid", path="/src/cid")
    assert rehook(host, "cid", expect=409)["detail"]["error"] == "missing_pane"
    host.live.post("/peers", name="dan", path="/src/dan", machine="elsewhere", pane_id="%77")
    refused = rehook(host, "dan", expect=409)["detail"]
    assert (refused["error"], refused["peer_machine"]) == ("cross_host", "elsewhere")
    assert refused["self_machine"] == platform.node()
    assert rehook(host, "nobody", expect=404)["detail"]["error"] == "peer_not_found"
    host.live.post("/peers", name="eve", path="/src/e", circle="red")
    host.live.post("/peers", name="eve", path="/src/f", circle="blue")
    assert rehook(host, "eve", expect=409)["detail"]["error"] == "ambiguous_peer"
    assert rehook(host, "eve", expect=409, circle="red")["detail"]["error"] == "missing_pane"
    assert box.bytes == other.bytes == b""


def test_after_a_restart_of_tmux_a_reused_pane_id_proves_nothing(host: Host) -> None:
    box = host.box()
    peer_id = host.link(box.pane, name="ann")["peer_id"]
    host.tmux.run("kill-server")
    until(lambda: host.peers().get("ann", {"status": "offline"})["status"] == "offline")
    host.tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
    stranger = host.box("stranger")
    assert stranger.pane == box.pane
    refused = rehook(host, peer_id, expect=409, apply=True)["detail"]["error"]
    assert refused in ("pane_unverified", "missing_pane")
    assert stranger.bytes == b""


def test_the_command_says_what_it_finds_and_mends_with_apply(host: Host) -> None:
    host.link(host.box().pane, name="ann")
    fine = host.live.cli("peer", "rehook", "ann")
    assert (fine.returncode, fine.stdout) == (0, "already_healthy\n"), fine.stderr
    os.kill(host.ws_hooks()[0], signal.SIGSTOP)
    dry = host.live.cli("peer", "rehook", "ann")
    assert (dry.returncode, dry.stdout) == (1, "dry_run\n")
    assert "does not answer" in dry.stderr
    assert "--apply" in dry.stderr
    done = host.live.cli("peer", "rehook", "ann", "--apply")
    assert (done.returncode, done.stdout) == (0, "respawned\n"), done.stderr
