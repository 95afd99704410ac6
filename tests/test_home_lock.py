"""home_lock.py: the home is held by one daemon, and free again whatever ends it."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repowire import __version__, config
from repowire.home_lock import HomeBusy, lock_home


def test_the_home_is_held_by_one_and_names_him(tmp_path: Path) -> None:
    settings = config.Config(tmp_path)
    lock = lock_home(settings)
    with pytest.raises(HomeBusy) as caught:
        lock_home(settings)
    assert (caught.value.pid, caught.value.port) == (os.getpid(), None)
    lock.write("127.0.0.1", 4711, 12.5)
    with pytest.raises(HomeBusy, match=f"pid {os.getpid()}, port 4711"):
        lock_home(settings)
    about = config.read_lock(tmp_path)
    assert about is not None
    assert about == {**about, "pid": os.getpid(), "host": "127.0.0.1", "port": 4711, "started_at": 12.5}
    lock.release()
    lock.release()
    assert config.read_lock(tmp_path) is None
    lock_home(settings).release()


def test_a_killed_holder_leaves_the_home_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from repowire import config, home_lock;"
        f"lock = home_lock.lock_home(config.Config(Path({str(tmp_path)!r}))); lock.write('h', 1);"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(HomeBusy) as caught:
        lock_home(config.Config(tmp_path))
    assert (caught.value.pid, caught.value.port) == (child.pid, 1)
    child.kill()
    child.communicate()
    lock = lock_home(config.Config(tmp_path))
    assert config.read_lock(tmp_path) == {
        "pid": os.getpid(), "host": None, "port": None, "started_at": None, "version": __version__,
    }  # fmt: skip
    lock.release()


def test_who_only_looks_whether_a_daemon_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.Config(tmp_path)
    lock_home(settings).release()
    looks = os.open(settings.lock_path, os.O_RDWR)
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(looks))  # it leaves while the starter waits
    lock_home(settings).release()
