"""How long a message takes from its POST until it stands in a real Claude Code's pane, and what ws-hook weighs.

    .venv/bin/python benchmarks/panes.py [--messages 15] [--panes 5]

Starts a daemon that uses panes alone, a private tmux and Claude Code from `make agents` with a scripted model, all of
it its own, and prints one line of JSON: milliseconds, and megabytes of resident memory. The pane is looked at as fast
as tmux answers (some 5 ms a look), so each figure is up to one look too long. Each message finds its Claude at rest:
one that comes while a turn still ends is held, and looked at again after 1 s.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from claude.driver import Claude
from claude.model import Model
from claude.town import Town
from conftest import Live, TmuxServer

REST_SECONDS = 0.5


def visible_after(town: Town, claudes: list[Claude], word: str) -> list[float]:
    """Milliseconds from the POST until each pane shows the word; one POST for each of the Claudes, at once."""
    began = {}
    for claude in claudes:
        claude.until_idle()
        at_rest(claude)
    for claude in claudes:
        began[claude.name] = time.perf_counter()
        town.tell(claude.name, word)
    waiting, took = list(claudes), []
    while waiting:
        for claude in list(waiting):
            if word in claude.screen():
                took.append((time.perf_counter() - began[claude.name]) * 1e3)
                waiting.remove(claude)
    return took


def at_rest(claude: Claude) -> None:
    """Its screen does not change any more."""
    before = ""
    while (now := claude.screen()) != before:
        before = now
        time.sleep(REST_SECONDS)


def resident_mb(town: Town) -> float:
    """Of the one ws-hook."""
    children = Path(f"/proc/{town.live.pid}/task/{town.live.pid}/children").read_text().split()
    hooks = [pid for pid in children if b"ws-hook" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    lines = Path(f"/proc/{hooks[0]}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--messages", type=int, default=15, help="to one pane, one after the other")
    arguments.add_argument("--panes", type=int, default=5, help="that get one each at once")
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    (folder / "one").mkdir()
    live = Live(folder / "one")
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    tmux = TmuxServer(folder / "tmux", {**environ, "TERM": "xterm-256color"})
    tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
    try:
        with Model() as model:
            town = Town(live, tmux, model, "panes")
            claudes = [town.claude(f"c{number}") for number in range(asked.panes)]
            for claude in claudes:
                town.arrive(claude)
                claude.until_idle()
            visible_after(town, claudes[:1], "warm-up")
            single = [visible_after(town, claudes[:1], f"single-{n}")[0] for n in range(asked.messages)]
            burst = visible_after(town, claudes, "burst")
            p95 = statistics.quantiles(single, n=20)[-1]
            figures = {
                "visible_p50_ms": round(statistics.median(single), 1),
                "visible_p95_ms": round(p95, 1),
                "panes": asked.panes,
                "at_once_slowest_ms": round(max(burst), 1),
                "ws_hook_rss_mb": round(resident_mb(town), 1),
            }
            print(json.dumps(figures))
            for claude in claudes:
                claude.kill()
    finally:
        live.close()
        subprocess.run(["tmux", "-S", str(tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
