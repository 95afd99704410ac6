"""claude_code_setup.py: what is written into the texts of an agent's settings; nothing else of them changes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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
