"""A daemon that may start agents, in a tmux of its own; the agents are small programs."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conftest import Live, TmuxServer, until
from test_openapi import faults, schema_of

# The agents. `steady` stands; it says what it is, and where.
AGENTS = {
    "steady": 'echo "I am $0 $* in $(pwd) with $COLOUR, CLAUDECODE=$CLAUDECODE"\nexec cat',
    "stubborn": "trap '' HUP TERM\necho ready\nwhile :; do read line || sleep 1; done",
    "hasty": "echo 'no such model: m1' >&2\nexit 3",
    "wrapper": "sleep 600 &\necho wrapped\nwait",
}


class Yard:
    """A daemon that may start the agents above in `work`, in a tmux of its own."""

    def __init__(self, live: Live, tmux: TmuxServer) -> None:
        self.live, self.tmux = live, tmux
        self.bin, self.work = live.folder / "bin", live.folder / "work"
        self.bin.mkdir()
        (self.work / "app").mkdir(parents=True)
        for name, script in AGENTS.items():
            self.program(name, script)
        self.before = self.panes()
        self.pids: list[int] = []
        self.settings: dict[str, Any] = {
            "commands": {
                "claude-code": "steady",
                "codex": "stubborn --now",
                "gemini": "hasty",
                "pi": "wrapper",
                "antigravity": "steady --quietly",
            },
            "allowed_commands": [str(self.bin / "claude") + " --odd"],
            "allowed_paths": [str(self.work)],
            "profiles": {"claude-code": {"fast": {"args": ["--model", "a b"], "description": "the quick one"}}},
            "env": {"COLOUR": "red; green"},
            "env_path": str(self.bin),
            "tmux_socket": str(tmux.socket),
            "settle_seconds": 0.3,
        }
        self.start()

    def program(self, name: str, script: str) -> Path:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def start(self) -> None:
        def text(value: Any) -> str:
            return value if isinstance(value, str) else json.dumps(value)

        self.live.start(**{f"REPOWIRE_SPAWN__{key}".upper(): text(value) for key, value in self.settings.items()})

    def panes(self) -> set[str]:
        return set(self.tmux.run("list-panes", "-a", "-F", "#{pane_id}").split())

    def new_panes(self) -> set[str]:
        return self.panes() - self.before

    def spawn(self, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        body = {"path": str(self.work / "app"), **({} if "command" in body else {"backend": "claude-code"}), **body}
        found: dict[str, Any] = self.live.post("/spawn", expect=expect, **body)
        assert faults(schema_of(("POST", "/spawn"), expect, "application/json") or {}, found) == []
        if expect < 400:
            self.pids.append(self.pid(found["pane_id"]))
        return found["detail"] if expect >= 400 else found

    def kill(self, name: str, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.live.post("/kill-peer", expect=expect, peer_identifier=name, **body)
        return found["detail"] if expect >= 400 else found

    def peers(self) -> dict[str, dict[str, Any]]:
        return {peer["display_name"]: peer for peer in self.live.get("/peers")["peers"]}

    def pid(self, pane: str) -> int:
        return self.tmux.pid(pane)

    def shows(self, pane: str, words: str) -> str:
        def look() -> str:
            screen = self.tmux.screen(pane)
            return screen if words in screen.replace("\n", "") else ""

        return until(look)


@contextmanager
def yarding(live: Live, tmux: TmuxServer) -> Iterator[Yard]:
    """A yard whose agents end with it."""
    made = Yard(live, tmux)
    yield made
    for pid in made.pids:  # some do not mind that their terminal is gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Settled:
    """A spawned agent whose session is known, as its hooks would say it."""

    def __init__(self, yard: Yard, session: str = "s-1", **fields: Any) -> None:
        self.yard = yard
        made = yard.spawn(**fields)
        self.pane, self.peer_id, self.name = made["pane_id"], made["peer_id"], made["display_name"]
        self.pid = yard.pid(self.pane)
        self.say(session)

    def say(self, session: str) -> None:
        told = {"pane_id": self.pane, "agent_pid": self.yard.pid(self.pane), "metadata": {"hook_session_id": session}}
        path = str(self.yard.work / "app")
        backend = self.yard.peers()[self.name]["backend"]
        back = self.yard.live.post("/peers", name="x", peer_id=self.peer_id, path=path, backend=backend, **told)
        assert back["peer_id"] == self.peer_id
        self.certificate = back["birth_certificate"]

    def restart(self, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.yard.live.post(f"/peers/{self.peer_id}/restart", expect=expect, **body)
        route = ("POST", "/peers/{name}/restart")
        assert faults(schema_of(route, expect, "application/json") or {}, found) == []
        return found["detail"] if expect >= 400 else found


def rows(yard: Yard) -> list[Any]:
    """What the daemon has written down as its own, read beside it."""
    copy = yard.live.folder / "copy"
    copy.mkdir(exist_ok=True)
    for file in yard.live.home.glob("state.db*"):
        shutil.copy(file, copy)
    said = subprocess.run(
        ["python3", "-c", "import sqlite3, sys, json; print(json.dumps(sqlite3.connect(sys.argv[1])"
         ".execute('SELECT pane_id, phase, remains FROM spawns').fetchall()))", str(copy / "state.db")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[Any] = json.loads(said.stdout)
    return found


def settled(yard: Yard) -> bool:
    """Every pane that is there runs its agent, and is one's own."""
    owned = {row[0] for row in rows(yard)}
    return all("I am" in yard.tmux.screen(pane) and pane in owned for pane in yard.new_panes()) and all(
        pane in yard.new_panes() for pane in owned
    )


def session_of(yard: Yard, peer_id: str) -> str:
    return str(yard.live.post("/notify", to_peer=peer_id, text="hello")["repowire_session_id"])
