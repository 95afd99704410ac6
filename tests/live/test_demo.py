"""`make demo` from end to end: it goes as told, and leaves nothing behind, even when it is interrupted."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until

CHECKOUT = Path(__file__).parents[2]
DEMO = CHECKOUT / "docs" / "demo" / "demo.py"
SECONDS = 90  # far above what it needs: other tests may be running
pytestmark = pytest.mark.live


@pytest.fixture
def demo(short_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, started as `make demo` does; its own temporary folder is made inside `short_folder`."""
    process = subprocess.Popen(
        [sys.executable, str(DEMO)],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(short_folder)},
    )
    yield process
    if process.poll() is None:
        process.terminate()  # it ends its own processes then, which a kill would leave
        process.communicate(timeout=SECONDS)


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and living processes that name it in their environment: the demo's all do."""
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if str(folder).encode() in told:
            found.append(f"{process.name}: {command.decode(errors='replace')}")
    return found


def test_it_goes_as_told_and_leaves_nothing_behind(demo: subprocess.Popen[str], short_folder: Path) -> None:
    said, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, said
    assert "All of it went as told" in said
    assert re.search(r"the scout says of it: \S+: \d+ files, \d+ lines", said), said
    assert said.count("remember: main is frozen until 15:00") == 2, said  # sent once, and once in the notebook
    assert "kill -9" in said
    until(lambda: not left_behind(short_folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_cleans_up_when_interrupted(demo: subprocess.Popen[str], short_folder: Path, number: signal.Signals) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "repowire listen" in line:  # the daemon, tmux and a first peer are up
            break
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    assert "Traceback" not in said
    until(lambda: not left_behind(short_folder))
