"""policy.py: what is gated, and what an allow-rule lets through; above all what it does not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repowire import config, policy
from repowire.config import Config, ConfigError
from repowire.policy import READ_ONLY, Rule, fits
from repowire.settings import Approvals, OwnApprovals

HOME = Path("/nonexistent")


def ruled(tool, arguments=None, names=("peer-1", "ann"), circle="default", **settings):
    return policy.ruling(
        Config(HOME, approvals=Approvals(**settings)), tool, arguments or {}, names=names, circle=circle
    )


@pytest.mark.parametrize("tool", ["Bash", "Edit", "Write", "MultiEdit", "NotebookEdit", ""])
def test_what_changes_things_is_gated_and_so_is_what_says_no_tool(tool):
    assert ruled(tool).gated


@pytest.mark.parametrize("tool", ["Read", "Glob", "Grep", "LS", "WebFetch", "mcp__github__push", "bash"])
def test_what_is_not_named_is_not_gated(tool):
    assert not ruled(tool).gated


def test_tools_of_mcp_servers_are_gated_by_a_pattern_and_reading_never_is():
    assert ruled("mcp__github__push", gated_tools=("mcp__github__*",)).gated
    assert not ruled("mcp__docs__find", gated_tools=("mcp__github__*",)).gated
    assert not any(ruled(tool, gated_tools=("*",)).gated for tool in READ_ONLY)


@pytest.mark.parametrize(
    "command",
    [
        "git status; rm -rf ~",
        "git status && rm x",
        "git status | sh",
        "git status $(id)",
        "git status `id`",
        "git status > /etc/passwd",
        "git status\nrm -rf ~",
        "git status\trm",
        "git status &",
        "git status ${IFS}x",
        "git status {a,b}",
        "git status ~root",
        "git status 'x'",
        'git status "x"',
        "git status \\\n x",
        "git status #x",
        "git status !x",
        "git status ../../x",
        "git status\x00",
        "git status \u202ex",
        " git status",
        "gitstatus",
        "GIT STATUS",
        ["git status", "x"],
        {"git status": 1},
        None,
        7,
    ],
)
def test_a_star_never_stands_for_what_a_shell_takes_for_more_than_words(command):
    assert not fits("git status*", command)


@pytest.mark.parametrize(
    "command", ["git status", "git status -s", "git status --porcelain=v2 src/a.py", "git statusx"]
)
def test_a_star_stands_for_plain_letters(command):
    assert fits("git status*", command)


@given(st.text(), st.text())
def test_whatever_a_star_matches_is_plain(before, after):
    value = f"git status{before}{after}"
    if fits("git status*", value):
        assert policy.PLAIN.fullmatch(value)


@given(st.text(min_size=1))
def test_a_pattern_without_a_star_is_the_whole_value(value):
    if "*" not in value:
        assert fits(value, value)
        assert not fits(value, value + " ")
        assert not fits(value, value + "; rm -rf ~")


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("true", True),
        ("1", 1),
        ("1.0", 1.0),
        ('{"a":1}', {"a": 1}),
        ('["a"]', ["a"]),
        ("null", None),
        ("*", 1),
        ("", None),
    ],
)
def test_a_pattern_is_for_texts_alone(pattern, value):
    assert not fits(pattern, value)


@pytest.mark.parametrize(
    ("pattern", "text", "fine"),
    [
        ("*", "", True), ("a*", "a", True), ("*a", "a", True), ("a*a", "a", False), ("a*a", "aa", True),
        ("a*b*c", "a-b-c", True), ("a*b*c", "acb", False), ("a**b", "ab", True), ("/src/*.md", "/src/a/b.md", True),
        ("/src/*", "/src/../x", False), ("a*", "a..b", False), ("tar *", "tar -C../x y", False),
    ],
)  # fmt: skip
def test_how_stars_match(pattern, text, fine):
    assert fits(pattern, text) is fine


@pytest.mark.parametrize(
    ("pattern", "text", "fine"),
    [
        ("/src/*", "/src/.claude/settings.json", False), ("/src/*", "/src/a/.git/hooks/pre-commit", False),
        ("*", ".bashrc", False), ("*.json", "/src/.claude/settings.json", False), ("*.json", "/src/a.json", True),
        ("/src/*/.github/*", "/src/a/.github/x", True), ("/src/*/.github/*", "/src/.claude/.github/x", False),
        ("/src/.claude/*", "/src/.claude/notes.md", True), ("/src/.claude/*", "/src/.claude/.x", False),
        ("git log *", "git log --output=.claude/settings.json", False), ("git log *", "git log ./src/a.b-c", True),
        ("git log *", "git log -o.claude/x", False), ("git log *", "git log -o a.claude", True),
        ("git log *", "git log --since=1.5.2", True), ("/src/*", "/src/a.b/c.d", True), ("/src/*", "/src/./a", True),
    ],
)  # fmt: skip
def test_a_star_stands_for_no_name_that_begins_with_a_dot(pattern, text, fine):
    """An agent's settings are among them: whoever may write those turns the gate off."""
    assert fits(pattern, text) is fine


def test_a_pattern_of_many_stars_takes_no_time():
    assert not fits("a*" * 40 + "b", "a" * 100_000)


def test_every_argument_must_be_named_save_the_harmless():
    rule = Rule("approvals.allow[0]", "Bash", {"command": "make*"})
    assert rule.allows("Bash", {"command": "make test"})
    assert rule.allows("Bash", {"command": "make test", "description": "x; y", "timeout": 1, "run_in_background": True})
    assert not rule.allows("Bash", {"command": "make test", "dangerouslyDisableSandbox": True})
    assert not rule.allows("Bash", {})
    assert not rule.allows("BashOutput", {"command": "make test"})
    issue = Rule("approvals.allow[0]", "mcp__git__issue", {"repo": "me/x"})
    assert not issue.allows("mcp__git__issue", {"repo": "me/x", "description": "of another tool it says something"})


def test_other_arguments_may_be_anything_where_the_rule_says_so():
    rule = Rule("approvals.allow[0]", "Edit", {"file_path": "/src/site/*"}, other_arguments=True)
    assert rule.allows("Edit", {"file_path": "/src/site/a.md", "old_string": "`x`", "new_string": "$(y)"})
    assert not rule.allows("Edit", {"file_path": "/etc/passwd", "old_string": "", "new_string": ""})


ALLOW_MAKE = ({"tool": "Bash", "arguments": {"command": "make"}},)
ALLOW_LS = ({"tool": "Bash", "arguments": {"command": "ls"}},)


def test_the_ruling_names_the_rule():
    assert ruled("Bash", {"command": "ls"}, allow=ALLOW_MAKE + ALLOW_LS).rule == "approvals.allow[1]"
    assert ruled("Bash", {"command": "ls -l"}, allow=ALLOW_MAKE + ALLOW_LS).rule is None


def test_arguments_that_are_not_known_are_never_let_through():
    settings = Config(HOME, approvals=Approvals(allow=({"tool": "*", "other_arguments": True},)))
    assert policy.ruling(settings, "Bash", {"x": 1}, names=(), circle=None).rule is not None
    assert policy.ruling(settings, "Bash", None, names=(), circle=None).rule is None


def test_the_table_of_a_peers_id_wins_over_the_common_one():
    settings = {"allow": ALLOW_MAKE, "peers": {"peer-1": OwnApprovals(gated_tools=("Bash",), allow=ALLOW_LS)}}
    ann = ruled("Bash", {"command": "ls"}, names=("peer-1", "ann"), **settings)
    assert ann == policy.Ruling(gated=True, rule="approvals.peers.peer-1.allow[0]")
    assert ruled("Bash", {"command": "make"}, names=("peer-1", "ann"), **settings).rule is None
    assert not ruled("Write", names=("peer-1", "ann"), **settings).gated
    assert ruled("Write", names=("peer-2", "ann"), **settings).gated


@pytest.mark.parametrize("chosen", ["circles", "peers"])
def test_what_an_agent_can_choose_only_tightens(chosen):
    """Its circle and its name: it may move and call itself as it likes, and no call is let through by that."""
    lax = OwnApprovals(gated_tools=(), allow=({"tool": "*", "other_arguments": True},))
    strict = OwnApprovals(gated_tools=("WebFetch",), allow=(), hold_open=True)
    who = {"names": ("peer-1", "lax"), "circle": "lax"}
    settings = {"allow": ALLOW_MAKE, chosen: {"lax": lax, "strict": strict}}
    assert ruled("Bash", {"command": "rm"}, **who, **settings) == policy.Ruling(gated=True)
    assert ruled("Write", {"file_path": "x"}, **who, **settings).gated
    assert ruled("Bash", {"command": "make"}, **who, **settings).rule is not None
    who = {"names": ("peer-1", "strict"), "circle": "strict"}
    assert ruled("WebFetch", {"url": "x"}, **who, **settings) == policy.Ruling(gated=True, hold_open=True)
    settings[chosen]["strict"] = OwnApprovals(gated_tools=("Bash",), allow=ALLOW_LS)
    assert ruled("Bash", {"command": "make"}, **who, **settings).rule is None
    assert ruled("Bash", {"command": "ls"}, **who, **settings).rule is None, "no common rule lets it through"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('allow = [{tool = "Bash"}]', r"approvals\.allow\[0\]: names no argument"),
        ('allow = [{tool = "Bash", arguments = {command = "a; b*"}}]', "can never match"),
        ('allow = [{tool = "Bash", arguments = {command = "../*"}}]', "can never match"),
        ('[approvals.peers.ann]\nallow = [{tool = "Bash"}]', r"approvals\.peers\.ann\.allow\[0\]"),
        ('[approvals.circles.night]\nallow = [{tool = "Bash"}]', r"approvals\.circles\.night\.allow\[0\]"),
        ('allow = [{tool = ""}]', "is not allowed"),
        ('allow = [{tool = "Bash", argument = {}}]', "is not allowed"),
        ('allow = [{tool = "Bash", arguments = {command = 1}}]', "is not allowed"),
        ('allow = ["Bash"]', "is not allowed"),
        ("gated_tools = [1]", "is not allowed"),
        ('gated_tools = "Bash"', "is not allowed"),
        ("[approvals.peers.ann]\ngated = []", "is not allowed"),
        ("[approvals.peers]\nann = 1", "is not allowed"),
    ],
)
def test_a_config_that_says_less_or_more_than_it_seems_is_refused(tmp_path, text, words):
    (tmp_path / "config.toml").write_text(f"[approvals]\n{text}\n")
    with pytest.raises(ConfigError, match=words):
        policy.check(config.load(tmp_path, {}))


def test_a_refused_rule_is_named_with_its_file_or_its_variable(tmp_path, monkeypatch):
    rules = {"approvals": 'allow = [{tool = "Bash"}]', "approvals.peers.ann": 'allow = [{tool = "Edit"}]'}
    for section, text in rules.items():
        (tmp_path / "config.toml").write_text(f"[{section}]\n{text}\n")
        with pytest.raises(ConfigError) as refused:
            policy.check(config.load(tmp_path))
        assert str(refused.value).startswith(f"{tmp_path}/config.toml: {section}.allow[0]: names no argument")
    monkeypatch.setenv("REPOWIRE_APPROVALS__ALLOW", '[{"tool": "Bash", "arguments": {"command": "../*"}}]')
    (tmp_path / "config.toml").write_text("[approvals]\nallow = []\n")
    with pytest.raises(ConfigError) as refused:
        policy.check(config.load(tmp_path))
    variable = "environment variable REPOWIRE_APPROVALS__ALLOW"
    assert str(refused.value).startswith(f"{variable}: approvals.allow[0]: command = '../*' can never match")


def test_the_environment_says_the_same(tmp_path):
    environ = {
        "REPOWIRE_APPROVALS__GATED_TOOLS": "Bash, mcp__*",
        "REPOWIRE_APPROVALS__ALLOW": '[{"tool": "Bash", "arguments": {"command": "make"}}]',
        "REPOWIRE_APPROVALS__PEERS": '{"ann": {"hold_open": true}}',
    }
    found = config.load(tmp_path, environ).approvals
    assert found == Approvals(
        gated_tools=("Bash", "mcp__*"), allow=ALLOW_MAKE, peers={"ann": OwnApprovals(hold_open=True)}
    )
    with pytest.raises(ConfigError, match="APPROVALS__ALLOW"):
        config.load(tmp_path, {"REPOWIRE_APPROVALS__ALLOW": "[{"})
