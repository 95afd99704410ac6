"""What an agent waits for each of its hooks, against `curl -s` of the very same POST to the same daemon.

    .venv/bin/python benchmarks/hooks.py [--repeats 60] [--pane]

Starts a daemon of its own, plays the agent (a process called `claude` that spawns hooks, as its runtime does), and runs
hook and curl in turn, so that other work on the machine and the daemon's part hit both alike. With `--pane` the agent
stands in a pane of a private tmux, so that a ws-hook serves it meanwhile. Prints one line of JSON an event: medians of
the wall time from spawn to exit, in milliseconds, and their ratio.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from conftest import Live, TmuxServer, until

HOOK = Path(__file__).resolve().parent.parent / "repowire" / "hook_stdio.py"

# Small, as an agent's runtime is not; what it reads is [argv, environ], what it says the milliseconds until the exit
AGENT = """
import json, os, sys, time
for line in sys.stdin:
    argv, environ = json.loads(line)
    out = os.POSIX_SPAWN_OPEN, 1, "out", os.O_RDWR | os.O_CREAT, 0o600
    began = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, environ, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "event", os.O_RDONLY, 0), out])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([(time.perf_counter() - began) * 1e3, code, os.getpid()]), flush=True)
"""

EVENTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("SessionStart", {"source": "startup", "model": "m-1"}),
    ("UserPromptSubmit", {"prompt": "run the tests"}),
    ("Stop", {"stop_hook_active": False, "last_assistant_message": "Done. " * 40}),
    ("Notification", {"notification_type": "idle_prompt", "message": "waiting"}),
    ("PermissionRequest", {"tool_name": "Bash", "tool_input": {"command": "ls"}}),
    ("PostToolUse", {"tool_name": "Bash", "tool_response": {"stdout": "ok " * 300}}),
    ("SessionEnd", {"reason": "prompt_input_exit"}),
)


class Bench:
    """The daemon, and the agent that waits for its hooks."""

    def __init__(self, live: Live, pane: dict[str, str]) -> None:
        self.live, self.project = live, live.folder / "project"
        self.project.mkdir()
        program = live.folder / "claude"
        program.symlink_to(os.path.realpath(sys.executable))
        self.agent = subprocess.Popen(
            [str(program), "-I", "-S", "-c", AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.project,
        )
        session = {"CLAUDE_CODE_SESSION_ID": "s-1", "CLAUDE_PID": str(self.agent.pid)}
        self.environ = {**live.environ, **pane, **session}
        self.python = os.path.realpath(sys.executable)

    def run(self, argv: list[str]) -> float:
        assert self.agent.stdin is not None
        assert self.agent.stdout is not None
        self.agent.stdin.write(json.dumps([argv, self.environ]) + "\n")
        self.agent.stdin.flush()
        took, code, _ = json.loads(self.agent.stdout.readline())
        assert code == 0, argv
        return float(took)

    def say(self, event: str, **more: object) -> None:
        transcript = self.live.folder / ".claude" / "projects" / "p" / "s-1.jsonl"
        facts = {"session_id": "s-1", "transcript_path": str(transcript), "cwd": str(self.project)}
        (self.project / "event").write_text(json.dumps({**facts, "hook_event_name": event, **more}))

    def hook(self, event: str) -> float:
        return self.run([self.python, "-I", "-S", str(HOOK), "claude-code", event])

    def curl(self, event: str) -> float:
        environ = self.environ
        said = {"Cwd": str(self.project), "Session": "s-1", "Agent-Pid": str(self.agent.pid)}
        said |= {name: environ[key] for name, key in (("Tmux", "TMUX"), ("Pane", "TMUX_PANE")) if key in environ}
        headers = [word for name, value in said.items() for word in ("-H", f"X-Repowire-{name}: {value}")]
        socket = str(self.live.home / "daemon.sock")
        url = f"http://localhost/hooks/claude-code/{event}"
        json_too = ["-H", "Content-Type: application/json", "-d", "@event"]
        return self.run(["curl", "-s", "--unix-socket", socket, *headers, *json_too, url])

    def close(self) -> None:
        self.agent.kill()
        self.agent.wait()


def measure(bench: Bench, event: str, more: dict[str, object], repeats: int) -> dict[str, object]:
    """Hook and curl in turn; an event that can only follow another has it run before, not measured."""
    before = {"SessionStart": "SessionEnd", "SessionEnd": "SessionStart"}.get(event)
    took: dict[str, list[float]] = {"hook": [], "curl": []}
    for number in range(2 * repeats):
        kind = ("hook", "curl")[(number + number // 2) % 2]  # each is first as often as second
        if before is not None:
            bench.say(before, **dict(EVENTS)[before])
            bench.hook(before)
        bench.say(event, **more)
        took[kind].append(bench.hook(event) if kind == "hook" else bench.curl(event))
    hook, curl = (statistics.median(took[kind]) for kind in ("hook", "curl"))
    p90 = statistics.quantiles(took["hook"], n=10)[-1]
    return {
        "event": event,
        "hook_ms": round(hook, 2),
        "curl_ms": round(curl, 2),
        "ratio": round(hook / curl, 2),
        "hook_p90_ms": round(p90, 2),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeats", type=int, default=60, help="runs of the hook, and of curl, an event")
    arguments.add_argument("--pane", action="store_true", help="in a pane, which a ws-hook serves")
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    (folder / "one").mkdir()
    live = Live(folder / "one")
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    tmux = TmuxServer(folder / "tmux", {**environ, "TERM": "xterm-256color"})
    pane = {}
    if asked.pane:
        tmux.run("new-session", "-d", "-s", "main", "cat")
        where = tmux.run("display-message", "-p", "#{socket_path},#{pid},0")
        pane = {"TMUX": where, "TMUX_PANE": tmux.run("display-message", "-p", "#{pane_id}")}
    live.start()
    bench = Bench(live, pane)
    try:
        bench.say("SessionStart", source="startup")
        bench.hook("SessionStart")
        if asked.pane:
            until(lambda: any(one["ws_connected"] for one in live.get("/peers")["peers"]), 30)
        for event, more in EVENTS:
            print(json.dumps(measure(bench, event, more, asked.repeats)), flush=True)
    finally:
        bench.close()
        live.close()
        if asked.pane:
            subprocess.run(["tmux", "-S", str(tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
