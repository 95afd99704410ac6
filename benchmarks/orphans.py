"""How long `GET /panes/orphans` takes on a host with many panes.

    .venv/bin/python benchmarks/orphans.py [--panes 200] [--rounds 40]

Starts a daemon and a private tmux whose panes each run a shell with a program under it, all of it its own, and prints
one line of JSON: milliseconds of a request on a kept connection, and of the one call to tmux alone.
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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from conftest import Live, TmuxServer

from repowire.client import RepowireClient


def took(call: object, rounds: int) -> list[float]:
    """Milliseconds of each round."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--panes", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=40)
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    (folder / "one").mkdir()
    live = Live(folder / "one")
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    tmux = TmuxServer(folder / "tmux", {**environ, "TERM": "xterm-256color"})
    tmux.run("new-session", "-d", "-s", "main", "-x", "80", "-y", "24", "sh", "-c", "sleep 600; true")
    try:
        for _ in range(asked.panes - 1):
            tmux.window("sh", "-c", "sleep 600; true")
        live.start()
        with RepowireClient(home=live.home) as daemon:
            look = partial(daemon.orphan_panes, tmux=str(tmux.socket))
            panes = len(look()["panes"])
            whole = took(look, asked.rounds)
        alone = took(lambda: tmux.run("list-panes", "-a", "-F", "#{pane_id}"), asked.rounds)
        figures = {
            "panes": panes,
            "processes": sum(name.isdigit() for name in os.listdir("/proc")),
            "orphans_p50_ms": round(statistics.median(whole), 1),
            "orphans_p95_ms": round(statistics.quantiles(whole, n=20)[-1], 1),
            "one_tmux_call_p50_ms": round(statistics.median(alone), 1),
        }
        print(json.dumps(figures))
    finally:
        live.close()
        subprocess.run(["tmux", "-S", str(tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
