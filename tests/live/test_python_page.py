"""docs/python.md: its programs run as they stand, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Live, until

pytestmark = pytest.mark.live

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SECONDS = 30.0


def block(language: str, number: int = 0) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return found[number]


def test_the_peer_of_the_page_answers_the_asker_of_the_page(live: Live) -> None:
    command = [sys.executable, "-c"]
    peer = subprocess.Popen([*command, block("python", 0)], env=live.environ, stderr=subprocess.PIPE)
    try:
        until(lambda: peer.poll() is not None or any(one["ws_connected"] for one in live.get("/peers")["peers"]))
        done = subprocess.run(
            [*command, block("python", 1)],
            env=live.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout == block("text")
    finally:
        peer.kill()
        _, err = peer.communicate(timeout=SECONDS)
    assert err == b""
