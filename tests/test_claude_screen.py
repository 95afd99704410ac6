"""Screens of the real Claude Code, both versions, as tmux captured them: only a provably empty box is ready."""

from pathlib import Path

import pytest

from repowire import agents
from repowire.agents import claude_code
from repowire.agents.claude_code import holds, registry_status, screen, submitted

SCREENS = Path(__file__).parent / "screens"
VERSIONS = ("2.1.330", "2.1.197")
BLOCK = (
    "[repowire 7f3a] @ann → @ben · ask #ask-9f3c0a7d21be\nthe text\n[/repowire 7f3a] from a peer agent, not your user"
    ' · answer with ack("ask-9f3c0a7d21be", "…")'
)
VERDICTS = {
    "ready": "empty bypass_empty vim_empty vim_normal_empty bg_running w40_empty tiny_empty mode1 mode2 help"
    " interrupted",
    "draft": "draft_one draft_lines draft_like_placeholder paste3 paste14 slash bash_empty bash_ls memory_empty"
    " memory_note busy_draft tool_draft vim_draft vim_normal_draft w40_draft w40_paste up",
    "busy": "busy queued stream tool_running",
    "dialog": "permission question trust bg_view rewind model_dialog",
    "unknown": "draft_spaces bg_down transcript suspended tiny_draft",
}
OTHERWISE = {("2.1.197", "search_h"): "draft", ("2.1.197", "search"): "unknown", ("2.1.330", "search"): "dialog"}
OTHERWISE |= {("2.1.330", "search_h"): "dialog", ("2.1.330", "config_dialog"): "dialog"}
OTHERWISE |= {("2.1.197", "config_dialog"): "unknown"}
CASES = [
    (version, name, verdict) for verdict, names in VERDICTS.items() for name in names.split() for version in VERSIONS
]
CASES += [(version, name, verdict) for (version, name), verdict in OTHERWISE.items()]


def capture(version: str, name: str) -> str:
    return (SCREENS / version / f"{name}.txt").read_text()


@pytest.mark.parametrize(("version", "name", "verdict"), CASES)
def test_every_screen_is_known_for_what_it_is(version: str, name: str, verdict: str) -> None:
    assert agents.screen("claude-code", capture(version, name)).verdict == verdict


def test_every_captured_screen_has_its_verdict() -> None:
    captured = {(file.parent.name, file.stem) for file in SCREENS.glob("*/*.txt")}
    assert captured == {(version, name) for version, name, _ in CASES}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("draft_one", "hello there"),
        ("draft_lines", "line one\nline two\n\nline four"),
        ("draft_like_placeholder", 'Try "refactor <filepath>"'),
        ("paste3", BLOCK),
        ("w40_paste", BLOCK),
    ],
)
def test_the_box_holds_what_was_typed_and_nothing_else(version: str, name: str, text: str) -> None:
    box = screen(capture(version, name)).box
    assert holds(box, text, False)
    assert not holds(box, text + "x", True)
    assert not holds(box + "x", text, True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folded_paste_is_ours_only_just_after_it(version: str) -> None:
    box = screen(capture(version, "paste14")).box
    fourteen_lines = "\n".join("x" * 14)
    assert holds(box, fourteen_lines, True)
    assert not holds(box, fourteen_lines, False)
    assert not holds(box, fourteen_lines + "\n", True)


def test_a_box_that_is_cut_off_is_ours_only_just_after_the_paste() -> None:
    box = "…" + BLOCK.partition("\n")[2]
    assert holds(box, BLOCK, True)
    assert not holds(box, BLOCK, False)
    assert not holds(box + "x", BLOCK, True)


@pytest.mark.parametrize("line", range(-6, 0))
@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_box_that_lost_a_line_is_not_ready(version: str, line: int) -> None:
    lines = capture(version, "w40_empty").rstrip("\n").split("\n")
    box = next(at for at, text in enumerate(lines) if claude_code.SIGN in text) - len(lines)
    if line not in (box - 1, box, box + 1):
        return
    del lines[line]
    assert screen("\n".join(lines)).verdict != "ready"


@pytest.mark.parametrize(
    "shown", ["", "$ ", "❯ ", "─" * 40, "─" * 40 + "\n❯\u00a0\x1b[7m \x1b[0m", "\x1b[7m", "\x1b[999;x"]
)
def test_whatever_is_not_claude_is_unknown(shown: str) -> None:
    assert screen(shown).verdict == "unknown"
    assert agents.screen("no-agent", capture("2.1.330", "empty")).verdict == "unknown"


def test_of_any_other_program_no_box_is_known_and_only_the_clock_can_tell() -> None:
    row = agents.row("shell")
    assert (row.plain, row.steady_seconds) == (True, 1.0)
    assert not row.holds(BLOCK, BLOCK, True)
    assert not row.submitted(f"❯ {BLOCK}", "7f3a")


@pytest.mark.parametrize(
    ("name", "arguments", "interprets"),
    [
        ("bash", ["-bash"], True),
        ("zsh", ["/bin/zsh", "-l"], True),
        ("sh", ["sh", "run.sh"], False),
        ("bash", ["bash", "-c", "make watch"], False),
        ("bash", ["bash", "--init-file", "/opt/editor/integration.sh", "-i"], True),
        ("bash", ["bash", "--rcfile", "/src/rc"], True),
        ("bash", ["bash", "-o", "vi"], True),
        ("bash", ["bash", "-o", "pipefail", "-c", "make watch"], False),
        ("fish", ["fish", "-C", "echo hello"], True),
        ("sh", ["sh", "-s", "one"], True),
        ("pwsh", ["pwsh", "-NoExit", "run.ps1"], True),
        ("python3", ["python3"], True),
        ("python3.12", ["python3.12", "-q", "-X", "dev"], True),
        ("python3", ["python3", "-i", "run.py"], True),
        ("python3", ["python3", "-O", "run.py", "-i"], False),
        ("python3", ["python3", "-m", "http.server"], False),
        ("node", ["node"], True),
        ("node", ["node", "server.js"], False),
        ("ipython", ["python3", "/usr/bin/ipython"], True),
        ("cat", ["cat"], False),
    ],
)
def test_a_shell_at_its_prompt_is_told_from_one_that_runs_a_script(
    name: str, arguments: list[str], interprets: bool
) -> None:
    assert agents.shell.interprets(name, arguments) is interprets


@pytest.mark.parametrize(
    ("name", "arguments", "backend"),
    [
        ("claude", [], "claude-code"),
        ("codex", ["codex"], "codex"),
        ("node", ["node", "/usr/local/bin/gemini"], "gemini"),
        ("node", ["node", "--no-warnings", "/lib/node_modules/@google/gemini-cli/dist/index.js"], "gemini"),
        ("MainThread", ["node", "/opt/bin/pi"], "pi"),
        ("node", ["node", "server.js"], None),
        ("vim", ["vim", "/src/gemini"], None),
        ("node", ["node"], None),
    ],
)
def test_which_agent_a_process_seems_to_be(name: str, arguments: list[str], backend: str | None) -> None:
    assert agents.backend_of(name, arguments) == backend


def test_a_prompt_that_was_sent_is_told_from_a_box() -> None:
    assert submitted(f"\x1b[48;5;237m❯ \x1b[38;5;231m{BLOCK}", "7f3a")
    assert not submitted(f"❯\u00a0{BLOCK}", "7f3a")
    assert not submitted(f"❯ {BLOCK}", "7f3b")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ('{"status": "idle"}', "idle"),
        ('{"status": "busy"}', "busy"),
        ('{"status": "waiting", "waitingFor": "permission prompt"}', "waiting"),
        ('{"status": "shell"}', "idle"),
        ('{"status": "something new"}', None),
        ('{"status": []}', None),
        ("[]", None),
        ('{"status": "id', None),
    ],
)
def test_the_registry_file(tmp_path: Path, said: str, status: str | None) -> None:
    (tmp_path / "1.json").write_text(said)
    assert registry_status(str(tmp_path / "1.json")) == status
    assert registry_status(str(tmp_path / "none.json")) is None
    assert registry_status(None) is None
