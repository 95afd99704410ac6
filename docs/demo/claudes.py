"""Two real Claude Codes ask and answer each other in tmux; what both panes show and the trace are printed.

    .venv/bin/python docs/demo/claudes.py        # after `make agents`; it needs no account and no network

The model is scripted, so the words are ours; the programs, the hooks, the tools and the daemon are the real ones.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from claude.driver import Claude
from claude.model import Model
from claude.town import Town
from conftest import Live, TmuxServer


def shown(claude: Claude, folder: Path) -> str:
    """The pane's text without what is empty, and without our folder's name."""
    lines = [line.rstrip() for line in claude.screen().splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().replace(str(folder), "~").replace("─" * 100, "")


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="rw"))
    (folder / "one").mkdir()
    live = Live(folder / "one")
    environ = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    tmux = TmuxServer(folder / "tmux", {**environ, "TERM": "xterm-256color"})
    tmux.run("new-session", "-d", "-s", "main", "-x", "110", "-y", "40", "cat")
    try:
        with Model() as model:
            town = Town(live, tmux, model, "inbox")
            ann, ben = town.claude("ann"), town.claude("ben")
            town.arrive(ann)
            town.arrive(ben)
            ann.type("ask ben: what is twice 21021 and one?")
            ann.until(lambda: any("42043" in text for text in ann.said()), "the answer is there", 60)
            ann.until_idle()
            ben.until_idle()
            ask = re.search(r"ask-[0-9a-f]{12}", ben.screen())
            for claude in (ann, ben):
                print(f"== {claude.name}'s pane\n{shown(claude, folder)}\n")
            if ask is not None:
                trace = live.cli("trace", ask[0]).stdout.replace(str(folder), "~")
                print(f"$ repowire trace {ask[0]}\n{trace}")
            for claude in (ann, ben):
                claude.kill()
    finally:
        live.close()
        subprocess.run(["tmux", "-S", str(tmux.socket), "kill-server"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
