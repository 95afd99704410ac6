"""Whatever order agents are started, restarted, moved, ended and killed in, and the daemon with them: no ghosts.

In a real tmux: after each step every agent that runs in a window of ours is one listed peer's, every such peer has its
agent, and whatever was ended is gone.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, TmuxServer, gone, until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from yards import Yard, rows

pytestmark = pytest.mark.live

which = st.integers(0, 100)


class Agents(RuleBasedStateMachine):
    """What should be there: `alive` by peer id, with the pane and the process of each."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
        self.tmux = TmuxServer(self.folder / "tmux", {**environ, "TERM": "xterm-256color"})
        self.tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
        (self.folder / "one").mkdir()
        self.live = Live(self.folder / "one")
        self.alive: dict[str, tuple[str, int]] = {}
        self.sessions = 0

    @initialize()
    def begin(self) -> None:
        self.yard = Yard(self.live, self.tmux)

    def teardown(self) -> None:
        self.live.close()
        for pid in (getattr(self, "yard", None) and self.yard.pids) or []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["tmux", "-S", str(self.tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def one(self, number: int) -> str:
        return sorted(self.alive)[number % len(self.alive)]

    # -- what happens

    @precondition(lambda self: len(self.alive) < 4)
    @rule(backend=st.sampled_from(["claude-code", "codex"]), circle=st.sampled_from(["default", "night"]))
    def start(self, backend: str, circle: str) -> None:
        made = self.yard.spawn(backend=backend, circle=circle)
        self.alive[made["peer_id"]] = (made["pane_id"], self.yard.pids[-1])

    @rule()
    def start_one_that_ends_at_once(self) -> None:
        assert self.yard.spawn(backend="gemini", expect=500)["error"] == "spawn_failed"

    @precondition(lambda self: self.alive)
    @rule(number=which)
    def restart(self, number: int) -> None:
        peer_id = self.one(number)
        pane, pid = self.alive[peer_id]
        self.sessions += 1
        self.tell_session(peer_id, pane, pid, f"s-{self.sessions}")
        self.yard.live.post(f"/peers/{peer_id}/restart")
        assert gone(pid)
        self.yard.pids.append(self.yard.pid(pane))
        self.alive[peer_id] = (pane, self.yard.pids[-1])

    def tell_session(self, peer_id: str, pane: str, pid: int, session: str) -> None:
        backend = self.yard.live.get(f"/peers/{peer_id}")["backend"]
        told: dict[str, Any] = {"pane_id": pane, "agent_pid": pid, "metadata": {"hook_session_id": session}}
        path = str(self.yard.work / "app")
        back = self.yard.live.post("/peers", name="x", peer_id=peer_id, path=path, backend=backend, **told)
        assert back["peer_id"] == peer_id

    @precondition(lambda self: self.alive)
    @rule(number=which)
    def kill(self, number: int) -> None:
        peer_id = self.one(number)
        _, pid = self.alive.pop(peer_id)
        assert self.yard.kill(peer_id)["tmux_killed"] is True
        assert gone(pid)

    @precondition(lambda self: self.alive)
    @rule(number=which)
    def it_ends_by_itself(self, number: int) -> None:
        _, pid = self.alive.pop(self.one(number))
        os.kill(pid, signal.SIGKILL)

    @precondition(lambda self: any(self.backend(one) == "claude-code" for one in self.alive))
    @rule(number=which)
    def its_user_closes_the_pane(self, number: int) -> None:
        willing = [one for one in sorted(self.alive) if self.backend(one) == "claude-code"]  # to end with its terminal
        pane, _ = self.alive.pop(willing[number % len(willing)])
        self.tmux.run("kill-pane", "-t", pane)

    def backend(self, peer_id: str) -> str:
        return str(self.yard.live.get(f"/peers/{peer_id}")["backend"])

    @precondition(lambda self: self.alive)
    @rule(number=which)
    def its_user_moves_the_pane(self, number: int) -> None:
        pane, _ = self.alive[self.one(number)]
        self.tmux.run("join-pane", "-d", "-s", pane, "-t", "main:0") if number % 2 else self.tmux.run(
            "swap-pane", "-d", "-s", pane, "-t", "%0"
        )

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.live.kill()
        self.yard.start()

    @rule(moment=st.integers(0, 8))
    def the_daemon_is_killed_in_the_middle_of_a_start(self, moment: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask)
            with suppress(AssertionError):
                until(lambda: len(self.yard.new_panes()) > len(self.alive), 0.04 * moment)
            self.live.kill()
            asked.result()
        self.yard.start()
        until(lambda: all(phase == "running" for _, phase, _ in rows(self.yard)), 20)
        for pane in self.yard.new_panes() - {pane for pane, _ in self.alive.values()}:
            with suppress(AssertionError):  # it may just be ending
                pid = self.yard.pid(pane)
                until(lambda pid=pid, pane=pane: gone(pid) or "I am" in self.tmux.screen(pane))
                if not gone(pid):
                    peer = self.live.get(f"/peers/by-pane/{pane.replace('%', '%25')}")
                    self.alive[peer["peer_id"]] = (pane, pid)
                    self.yard.pids.append(pid)

    def ask(self) -> None:
        with suppress(OSError, HTTPException):
            body = {"path": str(self.yard.work / "app"), "backend": "claude-code"}
            self.live.request("POST", "/spawn", body=body)

    # -- what holds

    @invariant()
    def there_are_no_ghosts(self) -> None:
        if not hasattr(self, "yard"):
            return
        wanted = {pane for pane, _ in self.alive.values()}
        until(lambda: self.yard.new_panes() == wanted)
        until(lambda: {pane for pane, _, _ in rows(self.yard)} == wanted)
        assert [pid for _, pid in self.alive.values() if gone(pid)] == []
        until(lambda: self.online() == set(self.alive))

    def online(self) -> set[str]:
        """Who has an agent, by the daemon's word; how it can be reached is another question."""
        listed = self.live.get("/peers")["peers"]
        held = {row["peer_id"] for row in listed if row["role"] == "agent" and row["status"] != "offline"}
        return held | {one for one in self.alive if any(row["peer_id"] == one for row in listed)}


Agents.TestCase.settings = settings(
    max_examples=4, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAgents = Agents.TestCase
