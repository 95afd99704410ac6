"""`repowire setup`: the files of an agent's settings are written whole, once, and only where they may be."""

import argparse
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEADLINE_SECONDS

from repowire.agents.claude_code_setup import Program
from repowire.cli import setup

ROOT = Path(__file__).parent.parent
HERE = Program(sys.executable, str(ROOT / "repowire"))


class Home:
    """A user's home with Claude Code's settings in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, ROOT
        self.settings, self.main = folder / ".claude" / "settings.json", folder / ".claude.json"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("REPOWIRE_", "CLAUDE"))}
        self.environ |= {"HOME": str(folder), "NO_COLOR": "1"}

    def run(self, *arguments: str, stdout: int = subprocess.PIPE, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "repowire", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=self.environ | environ,
            cwd=self.where,
            check=False,
        )

    def files(self) -> dict[str, bytes]:
        """Every file but the backups."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and "backup" not in path.name
        }

    def backups(self) -> list[Path]:
        return sorted(self.folder.rglob("*.repowire-backup-*"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.settings.parent.mkdir(parents=True)
    made.settings.write_bytes(b'{\r\n\t"model" : "opus",\r\n\t"hooks":{ }\r\n}\r\n')
    made.main.write_bytes(b'\xef\xbb\xbf{"projects":{"/x":{"n":1.0e2}}}')
    made.main.chmod(0o640)
    return made


def test_setup_and_uninstall_give_the_bytes_back(home: Home) -> None:
    before = home.files()
    done = home.run("setup", "claude-code", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "+++" in done.stdout
    assert home.run("setup", "claude-code", "--check").returncode == 0
    assert stat.S_IMODE(home.main.stat().st_mode) == 0o640
    assert len(home.backups()) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.backups()} == {0o600}
    assert sorted(path.read_bytes() for path in home.backups()) == sorted(before.values())
    assert home.run("uninstall", "--yes").returncode == 0
    assert home.files() == before


def test_files_that_setup_made_go_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.run("setup", "claude-code", "--yes").returncode == 0
    assert sorted(home.files()) == [".claude.json", ".claude/settings.json"]
    assert stat.S_IMODE(home.main.stat().st_mode) == 0o600
    assert home.run("uninstall", "--yes").returncode == 0
    assert home.files() == {}


def test_what_was_changed_since_stays_changed(home: Home) -> None:
    home.run("setup", "claude-code", "--yes")
    value = {**json.loads(home.settings.read_bytes()), "theme": "dark"}
    home.settings.write_text(json.dumps(value))
    home.run("uninstall", "--yes")
    assert json.loads(home.settings.read_bytes()) == {"model": "opus", "theme": "dark"}


def test_a_second_run_changes_nothing_and_a_dry_one_nothing_at_all(home: Home) -> None:
    before = home.files()
    dry = home.run("setup", "claude-code", "--dry-run")
    assert (dry.returncode, home.files(), home.backups()) == (0, before, [])
    assert "hook_stdio.py claude-code Stop" in dry.stdout
    home.run("setup", "claude-code", "--yes")
    after, backups = home.files(), home.backups()
    again = home.run("setup", "claude-code")
    assert (again.returncode, home.files(), home.backups()) == (0, after, backups)
    assert "already" in again.stdout


def test_without_a_terminal_nothing_is_written_unasked(home: Home) -> None:
    before = home.files()
    done = home.run("setup", "claude-code")
    assert (done.returncode, home.files()) == (2, before)
    assert "--yes" in done.stderr


@pytest.mark.parametrize(("said", "written"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_at_a_terminal_it_asks(home: Home, said: bytes, written: bool) -> None:
    before = home.files()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "repowire", "setup", "claude-code"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=home.environ, cwd=ROOT) as asked:
        os.close(theirs)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(ours, 65_536)
        os.write(ours, said)
        try:
            while os.read(ours, 65_536):
                pass
        except OSError:  # Linux: the other end is closed
            pass
        assert asked.wait(DEADLINE_SECONDS) == (0 if written else 1)
    os.close(ours)
    assert (home.files() != before) is written


def test_a_reader_that_leaves_keeps_no_setup_from_being_done(home: Home, unread: int) -> None:
    before = home.files()
    done = home.run("setup", "claude-code", "--yes", stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")
    assert home.run("setup", "claude-code", "--check").returncode == 0
    done = home.run("uninstall", "--yes", stdout=unread)
    assert (done.returncode, done.stderr, home.files()) == (0, "", before)


@pytest.mark.parametrize("verb", ["setup", "uninstall"])
def test_a_full_device_ends_in_one_line_that_says_what_was_done(home: Home, verb: str) -> None:
    """Before the diff was shown nothing is done; after it all is, though nobody can be told on stdout."""
    if verb == "uninstall":
        assert home.run("setup", "claude-code", "--yes").returncode == 0
    before = home.files()
    with open("/dev/full", "wb") as full:
        done = home.run(verb, "claude-code", "--yes", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (
        1,
        "repowire: nothing was changed: stdout cannot be written (No space left on device)\n",
    )
    assert home.files() == before


def test_what_was_written_is_not_denied_where_its_report_cannot_be(home: Home) -> None:
    with open("/dev/full", "wb") as full:
        done = home.run("setup", "claude-code", "--yes", "--json", stdout=full.fileno())
        said = "repowire: the settings were written, but stdout cannot be (No space left on device)\n"
        assert (done.returncode, done.stderr) == (1, said)
        assert home.run("setup", "claude-code", "--check").returncode == 0
        done = home.run("setup", "claude-code", "--yes", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "repowire: stdout: No space left on device\n")


def test_who_left_before_the_end_of_the_diff_is_not_asked(home: Home, unread: int) -> None:
    before = home.files()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "repowire", "setup", "claude-code"]
    with subprocess.Popen(command, stdin=theirs, stdout=unread, stderr=theirs, env=home.environ, cwd=ROOT) as asked:
        os.close(theirs)
        assert b"nothing was changed: what would be was not read to its end" in os.read(ours, 65_536)
        assert asked.wait(DEADLINE_SECONDS) == 1
    os.close(ours)
    assert home.files() == before


def test_an_unreadable_file_is_refused_before_anything_is_written(home: Home) -> None:
    home.main.write_text('{"a": 1} // mine\n')
    before = home.files()
    done = home.run("setup", "claude-code", "--yes")
    assert (done.returncode, home.files(), home.backups()) == (1, before, [])
    assert str(home.main) in done.stderr
    assert "line 1, column 10" in done.stderr
    assert "Traceback" not in done.stderr
    home.main.write_bytes(b"{\xff}")
    assert "UTF-8" in home.run("setup", "claude-code", "--yes").stderr


def test_a_link_stays_and_its_target_is_edited(home: Home) -> None:
    target = home.folder / "dotfiles.json"
    home.settings.rename(target)
    home.settings.symlink_to(target)
    before = target.read_bytes()
    assert home.run("setup", "claude-code", "--yes").returncode == 0
    assert home.settings.is_symlink()
    assert b"hook_stdio.py" in target.read_bytes()
    home.run("uninstall", "--yes")
    assert (home.settings.is_symlink(), target.read_bytes()) == (True, before)


def test_a_link_to_nothing_and_a_folder_are_refused(home: Home) -> None:
    home.settings.unlink()
    home.settings.symlink_to(home.folder / "nowhere")
    done = home.run("setup", "claude-code", "--yes")
    assert (done.returncode, "is a link" in done.stderr) == (1, True)
    home.settings.unlink()
    home.settings.mkdir()
    done = home.run("setup", "claude-code", "--yes")
    assert (done.returncode, "Traceback" in done.stderr, str(home.settings) in done.stderr) == (1, False, True)


def test_a_folder_that_may_not_be_written_is_said(home: Home) -> None:
    place, why = home.settings.parent, "Permission denied"
    if os.getuid() == 0:  # who may write everywhere, save where the kernel makes no files
        place, why = Path("/proc/self"), "No such file"
    else:
        place.chmod(0o500)
    try:
        done = home.run("setup", "claude-code", "--yes", CLAUDE_CONFIG_DIR=str(place))
    finally:
        if os.getuid() != 0:
            place.chmod(0o700)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert why in done.stderr


def test_approvals_are_put_before_the_tools_of_the_config_and_taken_away_again(home: Home, tmp_path: Path) -> None:
    before, rw = home.files(), tmp_path / "rw"
    rw.mkdir(mode=0o700)
    (rw / "config.toml").write_text(
        '[approvals]\ngated_tools = ["Bash", "mcp__git*"]\n[approvals.peers.ann]\ngated_tools = ["WebFetch", "Bash"]\n'
    )
    where = {"REPOWIRE_HOME": str(rw)}
    done = home.run("setup", "claude-code", "--approvals", "on", "--yes", **where)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Bash, mcp__git*, WebFetch" in done.stdout
    assert "repowire approvals watch" in done.stdout
    assert "put Skill into gated_tools" in done.stdout
    (group,) = json.loads(home.settings.read_bytes())["hooks"]["PreToolUse"]
    assert group["matcher"] == "^(?:Bash|mcp__git.*|WebFetch)$"
    assert group["hooks"][0]["onFailure"] == "block"
    assert home.run("setup", "claude-code", "--check", **where).returncode == 0
    on = home.files()
    assert home.run("setup", "claude-code", "--yes", **where).returncode == 0
    assert home.files() == on, "without the flag it stays as it is"
    (rw / "config.toml").write_text('[approvals]\ngated_tools = ["Bash"]\n')
    stale = home.run("setup", "claude-code", "--check", **where)
    assert (stale.returncode, "hooks.PreToolUse: other tools" in stale.stdout) == (1, True)
    assert home.run("setup", "claude-code", "--approvals", "off", "--yes", **where).returncode == 0
    assert "PreToolUse" not in json.loads(home.settings.read_bytes())["hooks"]
    assert home.run("setup", "claude-code", "--check", **where).returncode == 0
    home.run("setup", "claude-code", "--approvals", "on", "--yes", **where)
    (rw / "config.toml").write_text("[approvals]\ngated_tools = 5\n")
    broken = home.run("setup", "claude-code", "--yes", **where)
    assert (broken.returncode, "approvals.gated_tools" in broken.stderr) == (1, True)
    assert home.run("uninstall", "--yes", **where).returncode == 0
    assert {path: json.loads(text.decode("utf-8-sig")) for path, text in home.files().items()} == {
        path: {k: v for k, v in json.loads(text.decode("utf-8-sig")).items() if v} for path, text in before.items()
    }


@pytest.mark.parametrize("whose", ["user", "project"])
def test_settings_that_turn_every_hook_off_are_said(home: Home, whose: str) -> None:
    """The gate would stand there and never run."""
    home.run("setup", "claude-code", "--approvals", "on", "--yes")
    assert home.run("setup", "claude-code", "--check").returncode == 0
    home.where = home.folder / "project"
    file = home.settings if whose == "user" else home.where / ".claude" / "settings.local.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    home.where.mkdir(exist_ok=True)
    held = json.loads(file.read_text("utf-8-sig")) if file.exists() else {}
    file.write_text(json.dumps(held | {"disableAllHooks": True}))
    done = home.run("setup", "claude-code", "--check")
    assert (done.returncode, "disableAllHooks: true: no hook runs" in done.stdout) == (1, True)
    assert "no tool waits for you" in home.run("setup", "claude-code", "--yes").stderr


def test_check_says_what_drifted(home: Home) -> None:
    done = home.run("setup", "claude-code", "--check", "--json")
    assert done.returncode == 1
    assert {row["what"] for row in json.loads(done.stdout)["drift"]} == {"missing"}
    home.run("setup", "claude-code", "--yes")
    text = home.settings.read_text().replace(
        '/repowire/hook_stdio.py claude-code Stop"', '/x/repowire/hook_stdio.py claude-code Stop"'
    )
    home.settings.write_text(text)
    done = home.run("setup", "claude-code", "--check")
    assert done.returncode == 1
    assert "hooks.Stop: stale path" in done.stdout


def test_the_config_dir_and_the_home_of_another_are_honoured(home: Home, tmp_path: Path) -> None:
    before, folder = home.files(), tmp_path / "config"
    environ = {"CLAUDE_CONFIG_DIR": str(folder), "REPOWIRE_HOME": str(tmp_path / "rw home")}
    assert home.run("setup", "claude-code", "--yes", **environ).returncode == 0
    assert home.files() == before
    assert sorted(path.name for path in folder.iterdir()) == [".claude.json", "settings.json"]
    server = json.loads((folder / ".claude.json").read_bytes())["mcpServers"]["repowire"]
    assert server["args"][-2:] == ["--home", str(tmp_path / "rw home")]


def test_control_characters_of_a_settings_file_do_not_reach_the_terminal(home: Home) -> None:
    home.main.write_text('{"a": "\u009b31m\u202e"}')
    done = home.run("setup", "claude-code", "--dry-run")
    assert done.returncode == 0
    assert not {"\u009b", "\u202e"} & set(done.stdout)


def test_the_lock_of_claude_codes_own_programs_is_heeded(home: Home) -> None:
    lock, before = home.main.with_name(".claude.json.lock"), home.files()
    lock.mkdir()
    done = home.run("setup", "claude-code", "--yes")
    assert (done.returncode, home.files(), home.backups()) == (1, before, [])  # the other file neither
    assert f"{home.main}: is being changed by Claude Code (it holds {lock}); nothing was written" in done.stderr
    assert lock.is_dir()
    os.utime(lock, (0, 0))  # left behind by one that was killed
    assert home.run("setup", "claude-code", "--yes").returncode == 0
    assert (home.main.read_bytes() != before[home.main.name], lock.exists()) == (True, False)


def test_the_lock_is_held_from_the_last_look_until_the_file_is_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home.folder))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    lock, seen = Path(f"{home.main}.lock"), list[tuple[str, bool]]()

    def plan(part: setup.Part) -> setup.Edit | None:
        seen.append((part.path.name, lock.is_dir()))
        return setup.edit(part, lambda text: part.add(text, HERE))

    setup.apply(argparse.Namespace(json=True, dry_run=False, yes=True), plan)
    looks = [("settings.json", False), (".claude.json", False), ("settings.json", True), (".claude.json", True)]
    assert (seen, lock.exists()) == (looks, False)
    assert b"mcp_stdio" in home.main.read_bytes()
