"""Ghosts cannot be made: whatever the order of links, kills, restarts, moves and reused ids, on a real tmux.

A ghost is a peer that is said to be there (online, busy, with a way in) and is not: its process ended, its pane is gone
or another's. And a byte is a stranger's when it came into a program that the message was not for.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from boxes import Box, Host
from conftest import Live, TmuxServer, gone, until
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

pytestmark = pytest.mark.live
SOON_SECONDS = 5.0


class LifeOfLinks(RuleBasedStateMachine):
    """The model knows which programs run in which panes; what is listed must agree with it soon."""

    panes = Bundle("panes")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rw"))
        (self.folder / "one").mkdir()
        environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
        self.tmux = TmuxServer(self.folder / "tmux", {**environ, "TERM": "xterm-256color"})
        self.host = Host(Live(self.folder / "one"), self.tmux, self.folder)
        self.host.start()
        self.boxes: list[Box] = []
        self.of_peer: dict[str, Box] = {}  # the program that a peer was linked to last
        self.sent: dict[str, tuple[str, str]] = {}  # a delivery: the peer and the words
        self.start_tmux()

    def teardown(self) -> None:
        subprocess.run(["tmux", "-S", str(self.tmux.socket), "kill-server"], capture_output=True, check=False)
        self.host.live.close()
        for pid in self.host.ws_hooks():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_tmux(self) -> None:
        self.tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")

    def runs(self, box: Box) -> bool:
        return not gone(box.pid)

    # -- what comes and goes -------------------------------------------------------

    @initialize(target=panes, twice=st.booleans())
    def begin_with_one(self, twice: bool) -> Box:
        """Whatever rules a run has, there is something to lose."""
        box = self.start_a_program()
        self.link(box, twice)
        return box

    def start_a_program(self) -> Box:
        self.boxes.append(Box(self.tmux, self.folder, f"box{len(self.boxes)}"))
        return self.boxes[-1]

    @precondition(lambda self: sum(map(self.runs, self.boxes)) < 4)
    @rule(target=panes)
    def start_one(self) -> Box:
        return self.start_a_program()

    @precondition(lambda self: sum(map(self.runs, self.boxes)) < 4)
    @rule(target=panes, number=st.integers(0, 10))
    def start_one_and_link_and_tell_it(self, number: int) -> Box:
        box = self.start_a_program()
        self.link(box, False)
        self.tell(number)
        return box

    @rule(box=panes, twice=st.booleans())
    def link(self, box: Box, twice: bool) -> None:
        """Of a program that runs there comes a peer, and the second time a conflict; of one that ended, nothing."""
        there = self.runs(box)
        before = {peer["peer_id"] for peer in self.live_peers()}
        for _ in range(1 + twice):
            path = f"/panes/{box.pane.replace('%', '%25')}/link"
            body = {"backend": "claude-code", "tmux": str(self.tmux.socket), "cwd": str(box.folder)}
            got = self.host.live.request("POST", path, body=body, seconds=20)
            if got.status == 200 and got.json["linked"]:
                found = self.box_in(box.pane)
                assert found is not None, "a pane in which nothing runs was linked"
                assert got.json["peer_id"] not in before, "a peer that lives was linked again"
                self.of_peer[got.json["peer_id"]] = found
                before.add(got.json["peer_id"])
            else:
                assert got.status in (404, 409), got.body
                error = got.json["detail"]["error"]
                assert error in ("pane_not_found", "no_agent", "already_linked"), got.body
                assert error == "already_linked" or not there or self.box_in(box.pane) is not box

    def box_in(self, pane: str) -> Box | None:
        """The program that runs in the pane of that id now; ids are given out again after a restart of tmux."""
        listed = dict(
            line.split() for line in self.tmux.run("list-panes", "-a", "-F", "#{pane_id} #{pane_pid}").split("\n")
        )
        return next((box for box in self.boxes if self.runs(box) and str(box.pid) == listed.get(pane)), None)

    @rule(box=panes)
    def kill_the_program(self, box: Box) -> None:
        if self.runs(box):
            os.kill(box.pid, signal.SIGKILL)
            until(lambda: gone(box.pid))

    @rule(box=panes)
    def kill_the_pane(self, box: Box) -> None:
        if self.runs(box) and self.box_in(box.pane) is box:
            self.tmux.run("kill-pane", "-t", box.pane)
            until(lambda: gone(box.pid))

    @rule(box=panes, way=st.sampled_from(["break-pane", "zoom", "swap-pane", "move-pane"]))
    def move_the_pane(self, box: Box, way: str) -> None:
        if self.box_in(box.pane) is not box:
            return
        words = {
            "break-pane": ("break-pane", "-d", "-s", box.pane),
            "zoom": ("resize-pane", "-Z", "-t", box.pane),
            "swap-pane": ("swap-pane", "-d", "-s", box.pane, "-t", "main:0.0"),
            "move-pane": ("move-pane", "-d", "-s", box.pane, "-t", "main:0"),
        }[way]
        done = subprocess.run(["tmux", "-S", str(self.tmux.socket), *words], capture_output=True, check=False)
        assert done.returncode == 0 or b"pane" in done.stderr or b"source and target" in done.stderr, done.stderr

    @rule(box=consumes(panes))
    def restart_tmux(self, box: Box) -> None:
        """The same socket and the same pane ids, for others."""
        server = int(self.tmux.run("display-message", "-p", "#{pid}"))
        self.tmux.run("kill-server")
        until(lambda: gone(server) and not any(map(self.runs, self.boxes)))  # a dying one still takes who comes
        self.start_tmux()

    @rule(how=st.sampled_from(["term", "kill"]))
    def restart_the_daemon(self, how: str) -> None:
        getattr(self.host.live, how)()
        self.host.start()

    @rule()
    def kill_what_serves_the_panes(self) -> None:
        for pid in self.host.ws_hooks():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @rule(number=st.integers(0, 10))
    def tell(self, number: int) -> None:
        """Something to whoever was linked once, there or not."""
        if self.of_peer:
            peer_id = sorted(self.of_peer)[number % len(self.of_peer)]
            words = f"words-{len(self.sent)}-for-{peer_id}"
            got = self.host.live.request("POST", "/notify", body={"to_peer": peer_id, "text": words})
            if got.status == 200:
                self.sent[got.json["delivery_id"]] = (peer_id, words)

    # -- what must hold ------------------------------------------------------------

    def live_peers(self) -> list[dict[str, Any]]:
        return [peer for peer in self.host.peers().values() if peer["status"] != "offline" and peer["role"] != "human"]

    def ghosts(self) -> list[str]:
        """Who is said to be there, and is not."""
        return [
            peer["display_name"]
            for peer in self.live_peers()
            if peer["peer_id"] not in self.of_peer or not self.runs(self.of_peer[peer["peer_id"]])
        ]

    @invariant()
    def there_is_no_ghost(self) -> None:
        until(lambda: not self.ghosts(), SOON_SECONDS)

    @invariant()
    def who_lives_in_a_pane_has_a_way_in_or_is_given_one(self) -> None:
        for peer in self.live_peers():
            if not peer["ws_connected"] and self.runs(self.of_peer[peer["peer_id"]]):
                done = self.host.live.post(f"/peers/{peer['peer_id']}/rehook", apply=True)
                assert done["reason"] in ("already_healthy", "respawned"), done

    @invariant()
    def no_byte_is_a_strangers_and_no_word_came_twice(self) -> None:
        for delivery_id, (peer_id, words) in self.sent.items():
            times = {box.folder.name: box.times(words) for box in self.boxes}
            there = self.of_peer[peer_id].folder.name
            assert sum(times.values()) <= 1, (delivery_id, times)
            assert all(name == there or not count or self.was_of(peer_id, name) for name, count in times.items()), times

    def was_of(self, peer_id: str, name: str) -> bool:
        """Whether the peer lived in that program before: who comes back in its pane and folder is who it was."""
        folder = self.of_peer[peer_id].folder
        return any(box.folder == folder for box in self.boxes if box.folder.name == name)


LifeOfLinks.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=12,
    deadline=None,
    phases=(Phase.generate,),  # a run takes seconds, and what fails shows itself by its rules
    suppress_health_check=list(HealthCheck),
)
TestLifeOfLinks = LifeOfLinks.TestCase
