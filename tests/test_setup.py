"""Setup: what is written into an agent's settings, and that nothing else of them changes."""

import argparse
import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import DEADLINE_SECONDS
from hypothesis import given
from hypothesis import strategies as st

from repowire.agents import json_text
from repowire.agents.claude_code_setup import (
    GATE,
    HOOKS,
    Program,
    add_hooks,
    add_server,
    drop_hooks,
    drop_server,
    has_approvals,
    hooks_drift,
    matcher,
    server_drift,
)
from repowire.agents.json_text import NotJson
from repowire.cli import setup

ROOT = Path(__file__).parent.parent
HERE = Program(sys.executable, str(ROOT / "repowire"))
GATED = HERE._replace(gated=("Bash", "Edit", "mcp__git*"))
PROGRAMS = st.sampled_from([HERE, GATED])
OLD = Program("/opt/old/bin/python", "/opt/old/repowire", "/a home/of mine")
FOREIGN = {"hooks": [{"type": "command", "command": "repowire hook stop"}]}

# -- any JSON, laid out in any way ----------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
groups = st.lists(
    st.fixed_dictionaries(
        {"hooks": st.lists(st.fixed_dictionaries({"type": st.just("command"), "command": st.text()}), max_size=2)},
        optional={"matcher": st.text()},
    ),
    max_size=3,
)
hooks = st.dictionaries(st.sampled_from([*HOOKS, "PreToolUse"]), groups, max_size=4)
servers = st.dictionaries(st.text().filter(lambda name: name != "repowire"), values, max_size=3)
settings = st.fixed_dictionaries({}, optional={"hooks": hooks, "mcpServers": servers, "a": values, "ü\n": values})


@st.composite
def laid_out(draw: st.DrawFn) -> str:
    """A settings file as some editor might write it."""
    value = draw(settings)
    indent = draw(st.sampled_from([None, 1, 2, 4, "\t"]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,  ", "\t: ")]))
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return (
        draw(st.sampled_from(["", "\ufeff"]))
        + draw(st.sampled_from(["", "\n", " "]))
        + text
        + draw(st.sampled_from(["", "\n", "\r\n\n", "  "]))
    )


def load(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.removeprefix("\ufeff"))
    return found


def is_ours(hook: dict[str, Any]) -> bool:
    return re.search(r"/repowire/(?:hook|gate)_stdio\.py", str(hook.get("command"))) is not None


def theirs(value: dict[str, Any]) -> dict[str, Any]:
    """The hooks that are not ours, and nothing that is empty for lack of ours."""
    found = {}
    for event, listed in value.get("hooks", {}).items():
        kept = [one for one in listed if not (one["hooks"] and all(map(is_ours, one["hooks"])))]
        if kept or not listed:
            found[event] = kept
    return found


def subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(letter in rest for letter in part)


@given(laid_out(), PROGRAMS)
def test_adding_hooks_adds_each_once_and_keeps_every_other_byte(text: str, program: Program) -> None:
    after = add_hooks(text, program)
    value = load(after)
    for event, entry in program.entries().items():
        ours = [(hook, group) for group in value["hooks"][event] for hook in group["hooks"] if is_ours(hook)]
        assert [hook for hook, _ in ours] == [entry.hook]
        assert ours[0][1].get("matcher") == entry.matcher
    assert has_approvals(after) is (program is GATED)
    assert {**value, "hooks": None} == {**load(text), "hooks": None}
    assert {event: one for event, one in theirs(value).items() if one} == {
        event: one for event, one in theirs(load(text)).items() if one
    }
    assert subsequence(re.sub(r"\s", "", text), re.sub(r"\s", "", after))
    assert hooks_drift(after, program) == []
    assert add_hooks(after, program) == after


def holds_something(text: str) -> bool:
    """Whether no list or object that setup writes into is there and empty: what it looked like inside is not kept."""
    value = load(text)
    found = value.get("hooks", {"x": [1]})
    empty_event = any(event in (*HOOKS, GATE) and not listed for event, listed in found.items())
    return bool(value and found and value.get("mcpServers", {"x": 1}) and not empty_event)


@given(laid_out().filter(holds_something), PROGRAMS)
def test_dropping_what_was_added_gives_every_byte_back(text: str, program: Program) -> None:
    assert drop_hooks(add_hooks(text, program)) == text
    assert drop_server(add_server(text, HERE)) == text


@given(laid_out())
def test_nothing_is_dropped_where_nothing_is_ours(text: str) -> None:
    assert drop_hooks(text) == text
    assert drop_server(text) == text


@given(laid_out())
def test_another_versions_entries_are_replaced_in_their_place(text: str) -> None:
    before = add_server(add_hooks(text, OLD), OLD)
    assert {one.what for one in [*hooks_drift(before, HERE), *server_drift(before, HERE)]} == {"stale path"}
    after = add_server(add_hooks(before, HERE), HERE)
    assert [*hooks_drift(after, HERE), *server_drift(after, HERE)] == []
    assert load(after) == load(add_server(add_hooks(text, HERE), HERE))
    assert list(load(after)) == list(load(before))


@given(laid_out())
def test_adding_the_server_keeps_every_other_byte(text: str) -> None:
    after = add_server(text, HERE)
    value = load(after)
    assert value["mcpServers"].pop("repowire") == HERE.server()
    assert {**value, "mcpServers": value["mcpServers"] or None} == {
        **load(text),
        "mcpServers": load(text).get("mcpServers") or None,
    }
    assert subsequence(re.sub(r"\s", "", text), re.sub(r"\s", "", after))
    assert add_server(after, HERE) == after


@given(st.text(alphabet='{}[],:"ab1 \n\\/', max_size=30))
def test_whatever_is_no_json_object_is_refused_and_nothing_else(text: str) -> None:
    keys: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: keys.extend(key for key, _ in pairs) or dict(pairs))
        good = isinstance(value, dict)
    except ValueError:
        good = not text.strip()
    if good and len(set(keys)) == len(keys):
        assert load(add_server(text, HERE))["mcpServers"]["repowire"] == HERE.server()
    elif not good:
        with pytest.raises(NotJson):
            add_server(text, HERE)


@given(laid_out().filter(holds_something), PROGRAMS, PROGRAMS)
def test_approvals_go_on_and_off_as_often_as_one_likes(text: str, first: Program, then: Program) -> None:
    there = add_hooks(text, first)
    after = add_hooks(there, then)
    assert hooks_drift(after, then) == []
    assert load(drop_hooks(after)) == load(drop_hooks(there))
    assert has_approvals(after) is (then is GATED)


# -- shapes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n  // mine\n  "a": 1\n}', "line 2, column 3"),
        ('{"a": 1,}', "line 1, column"),
        ('{"a": 1, "a": 2}', '"a" stands twice'),
        ('{"hooks": {"Stop": [], "Stop": []}}', '"Stop" stands twice'),
        ('{"hooks": null}', "hooks must be an object"),
        ('{"hooks": []}', "hooks must be an object"),
        ('{"hooks": {"Stop": {}}}', "hooks.Stop must be a list"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ('{"a": NaN}', "NaN"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(NotJson, match=re.escape(said)):
        add_hooks(text, HERE)


def test_the_name_of_anothers_server_is_not_taken() -> None:
    text = '{"mcpServers": {"repowire": {"command": "repowire", "args": ["mcp"]}}}'
    with pytest.raises(NotJson, match="claude mcp remove"):
        add_server(text, HERE)
    assert drop_server(text) == text
    assert [one.what for one in server_drift(text, HERE)] == ["changed"]


@pytest.mark.parametrize("odd", ["x", 1, None, [], {}, {"hooks": 1}, {"hooks": ["x", None, {"command": 5}]}])
def test_groups_of_odd_shape_are_anothers(odd: Any) -> None:
    text = json.dumps({"hooks": {"Stop": [odd, FOREIGN]}})
    after = add_hooks(text, HERE)
    assert load(after)["hooks"]["Stop"] == [odd, FOREIGN, {"hooks": [HERE.hook("Stop")]}]
    assert drop_hooks(after) == text


def test_only_our_hook_leaves_a_group_that_somebody_put_together() -> None:
    group = {"matcher": "x", "hooks": [{"type": "command", "command": "mine"}, HERE.hook("Stop")]}
    text = json.dumps({"hooks": {"Stop": [group]}}, indent=2)
    left = load(drop_hooks(text))["hooks"]["Stop"]
    assert left == [{"matcher": "x", "hooks": [{"type": "command", "command": "mine"}]}]


def test_a_second_copy_of_a_hook_is_drift_and_goes() -> None:
    text = json.dumps({"hooks": {"Stop": [{"hooks": [HERE.hook("Stop")]}] * 2}})
    assert ("hooks.Stop", "changed") in hooks_drift(text, HERE)
    assert load(add_hooks(text, HERE))["hooks"]["Stop"] == [{"hooks": [HERE.hook("Stop")]}]


def test_a_script_of_nearly_our_name_is_not_ours() -> None:
    hook = {"type": "command", "command": "python /srv/my/hook_stdio.py claude-code Stop"}
    text = json.dumps({"hooks": {"Stop": [{"hooks": [hook]}]}})
    assert drop_hooks(text) == text


def test_a_hook_that_somebody_changed_is_told_and_mended() -> None:
    text = add_hooks("", HERE).replace('"timeout": 3', '"timeout": 30')
    assert hooks_drift(text, HERE) == [("hooks.SessionEnd", "changed")]
    assert hooks_drift(add_hooks(text, HERE), HERE) == []


@pytest.mark.parametrize(
    ("tools", "fits", "others"),
    [
        (("Bash", "Edit"), ["Bash", "Edit"], ["BashOutput", "MultiEdit", "xBash", "Read", ""]),
        (("mcp__git*",), ["mcp__git", "mcp__github__push"], ["mcp__gi", "x_mcp__git"]),
        (("mcp__*__write*",), ["mcp__files__write_all"], ["mcp__files__read"]),
        (("a.b",), ["a.b"], ["axb"]),
        (("*",), ["Read", "anything"], []),
    ],
)
def test_a_matcher_is_for_whole_names(tools: tuple[str, ...], fits: list[str], others: list[str]) -> None:
    pattern = re.compile(matcher(tools))
    assert all(pattern.search(name) for name in fits)
    assert not any(pattern.search(name) for name in others)


def test_a_gate_for_other_tools_than_the_config_says_is_told_and_mended() -> None:
    text = add_hooks("", GATED)
    wider = GATED._replace(gated=("Bash", "Write"))
    assert hooks_drift(text, wider) == [("hooks.PreToolUse", "other tools than the config says")]
    mended = add_hooks(text, wider)
    assert hooks_drift(mended, wider) == []
    assert len(load(mended)["hooks"]["PreToolUse"]) == 1


def test_paths_with_spaces_and_quotes_arrive_whole(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $HOME `x`" / "repowire"
    folder.mkdir(parents=True)
    (folder / "hook_stdio.py").write_text("import sys; print(sys.argv[1:])")
    program = Program(sys.executable, str(folder), "/a 'home'")
    done = subprocess.run(["sh", "-c", program.hook("Stop")["command"]], capture_output=True, text=True, check=True)
    assert done.stdout == """['claude-code', 'Stop', '--home', "/a 'home'"]\n"""
    assert load(drop_hooks(add_hooks('{"a": 1}', program))) == {"a": 1}


def test_the_span_of_every_member_is_its_text() -> None:
    text = ' { "a\\"b" : [1, {"x": "}"}] ,"c":"]" , "": -1.5e3 }'
    found = json_text.root(text)
    assert [(one.key, text[one.value_at : one.end]) for one in found.members] == [
        ('a"b', '[1, {"x": "}"}]'),
        ("c", '"]"'),
        ("", "-1.5e3"),
    ]


# -- the commands ---------------------------------------------------------------


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
