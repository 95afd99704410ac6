"""What 50 panes on one host cost: how soon a message is visible, what ws-hook weighs, and what rest costs.

    .venv/bin/python benchmarks/many_panes.py [--panes 50] [--messages 60]

Starts a daemon and a private tmux whose panes run a program with Claude Code's input box and nothing behind it, all of
it its own, links each, and prints one line of JSON. A pane is looked at as fast as tmux answers (some 5 ms a look), so
each figure is up to one look too long. CPU is in ticks of 10 ms while nothing happens.
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

from boxes import Box, Host, hosting
from conftest import Live, TmuxServer

REST_SECONDS = 10.0


def visible_after(host: Host, box: Box, name: str, words: str) -> float:
    """Milliseconds from the POST until the pane shows the words."""
    began = time.perf_counter()
    host.tell(name, words)
    while words not in host.tmux.run("capture-pane", "-p", "-t", box.pane):
        continue
    return (time.perf_counter() - began) * 1e3


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)


def measure(host: Host, panes: int, messages: int) -> dict[str, float]:
    boxes = [host.box(f"box{number}") for number in range(panes)]
    linked = []
    for number, box in enumerate(boxes):
        began = time.perf_counter()
        assert host.link(box.pane, name=f"p{number}")["linked"]
        linked.append((time.perf_counter() - began) * 1e3)
    visible_after(host, boxes[0], "p0", "warm-up")
    took = [visible_after(host, boxes[n % panes], f"p{n % panes}", f"word-{n}-") for n in range(messages)]
    (hook,) = host.ws_hooks()
    time.sleep(3.0)  # what is noted late is noted
    before = ticks(hook), ticks(host.live.pid)
    time.sleep(REST_SECONDS)
    return {
        "panes": panes,
        "link_p50_ms": round(statistics.median(linked[1:]), 1),
        "visible_p50_ms": round(statistics.median(took), 1),
        "visible_p95_ms": round(statistics.quantiles(took, n=20)[-1], 1),
        "ws_hook_rss_mb": resident_mb(hook),
        "ws_hook_ticks_at_rest": ticks(hook) - before[0],
        "daemon_ticks_at_rest": ticks(host.live.pid) - before[1],
        "rest_seconds": REST_SECONDS,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--panes", type=int, default=50)
    arguments.add_argument("--messages", type=int, default=60, help="one after the other, to one pane after the other")
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    (folder / "one").mkdir()
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    tmux = TmuxServer(folder / "tmux", {**environ, "TERM": "xterm-256color"})
    tmux.run("new-session", "-d", "-s", "main", "-x", "120", "-y", "40", "cat")
    try:
        with hosting(Live(folder / "one"), tmux, folder) as host:
            print(json.dumps(measure(host, asked.panes, asked.messages)))
    finally:
        subprocess.run(["tmux", "-S", str(tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
