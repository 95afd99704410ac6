"""What `pipx install` gets: the wheel holds the package and the dashboard, and works in a venv of its own."""

import json
import os
import subprocess
import sys
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repowire import __version__

CHECKOUT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
pytestmark = pytest.mark.live


def environ(**more: str) -> dict[str, str]:
    """Ours, without what could lead a program back into this checkout or another home."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("REPOWIRE_", "PYTHON"))} | more


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run to its end; its stdout. Fails with what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environ(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", folder, CHECKOUT, cwd=folder)
    [built] = folder.glob("repowire-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh venv with nothing but the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True, symlinks=True)
    run(folder / "bin" / "python", *PIP, "install", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture
def daemon(programs: Path, short_folder: Path) -> Iterator[dict[str, Any]]:
    """The installed daemon, run from an empty folder; its ready line."""
    process = subprocess.Popen(
        [str(programs / "repowire"), "daemon", "--port", "0", "--json"],
        cwd=short_folder,
        env=environ(REPOWIRE_HOME=str(short_folder / "home")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(15)
        process.stdout.close()


def test_it_holds_the_package_and_the_dashboard_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = [name for name in names if ".dist-info/" not in name]
    assert {"repowire/__init__.py", "repowire/daemon.py", "repowire/cli/__init__.py"} <= set(inside)
    assert {"repowire/dashboard/index.html", "repowire/dashboard/css/base.css"} <= set(inside)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert [name for name in inside if not name.startswith("repowire/")] == []
    assert [name for name in inside if "test" in name or "__pycache__" in name] == []


def test_it_depends_on_aiohttp_and_libtmux_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert [line.split()[1].split(">")[0] for line in needed] == ["aiohttp", "libtmux"]


def test_the_page_is_plain_and_names_nothing_outside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read("repowire/dashboard/index.html").decode()
    assert "repowire tail" in page
    assert [word for word in ("<script", "http://", "https://", " style=", " onclick") if word in page] == []


def test_the_program_says_its_version(programs: Path, tmp_path: Path) -> None:
    assert run(programs / "repowire", "--version", cwd=tmp_path).strip() == f"repowire {__version__}"


def test_the_installed_daemon_serves_the_first_page(daemon: dict[str, Any]) -> None:
    base = f"http://127.0.0.1:{daemon['port']}"
    with urllib.request.urlopen(f"{base}/", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/html")
        page = answer.read().decode()
    assert "<title>repowire</title>" in page
    for link in ("/static/css/tokens.css", "/static/css/base.css", "/static/icon.svg"):
        assert link in page
        with urllib.request.urlopen(base + link, timeout=10) as answer:
            assert answer.status == 200
            assert answer.headers["ETag"]


def test_the_installed_program_finds_its_daemon(daemon: dict[str, Any], programs: Path, tmp_path: Path) -> None:
    said = run(programs / "repowire", "status", "--json", cwd=tmp_path, REPOWIRE_HOME=daemon["home"])
    assert json.loads(said)["status"] == "ok"
