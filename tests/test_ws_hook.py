"""The journal of a ws-hook, and its gates on a real tmux with a program that is no agent we know."""

import json
import sys
from pathlib import Path

import pytest
from conftest import TmuxServer

from repowire import gates, journal, ws_hook
from repowire.clock import SystemClock
from repowire.gates import Wanted
from repowire.journal import INJECTED, PASTING, REFUSED, Entry, Journal
from repowire.procs import Procs
from repowire.tmux import Pane, Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ws-hook" / "journal.jsonl"


def test_a_journal_remembers_over_kill_9(path: Path) -> None:
    one = Journal(path)
    one.note("a", PASTING, "7f3a")
    one.note("b", PASTING, "0000")
    one.note("b", INJECTED)
    one.note("c", PASTING, "1111")
    one.note("c", REFUSED)
    again = Journal(path)  # the first was never closed
    assert again.find("a") == Entry(PASTING, "7f3a")
    assert again.find("b") == Entry(INJECTED, "0000")
    assert again.find("c") is None
    assert again.find("d") is None
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", [b'{"id": "b", "sta', b"\n", b"\xff\xfe\n", b"[]\n", b"3\n", b"{}\n"])
def test_a_torn_line_says_nothing_and_the_next_one_stands_by_itself(path: Path, torn: bytes) -> None:
    Journal(path).note("a", INJECTED)
    with path.open("ab") as file:
        file.write(torn)
    again = Journal(path)
    again.note("c", INJECTED)
    last = Journal(path)
    assert last.find("a") is not None
    assert last.find("b") is None
    assert last.find("c") is not None


def test_it_keeps_the_newest_and_its_file_stays_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 10)
    monkeypatch.setattr(journal, "LINES_AT_MOST", 30)
    kept = Journal(path)
    for number in range(200):
        kept.note(str(number), PASTING)
        kept.note(str(number), INJECTED)
    assert len(path.read_text().splitlines()) <= 31
    assert [name for name in map(str, range(200)) if Journal(path).find(name)] == [str(n) for n in range(190, 200)]


def test_the_instance_lasts(tmp_path: Path) -> None:
    made = ws_hook._lasting_id(tmp_path / "instance")
    assert ws_hook._lasting_id(tmp_path / "instance") == made
    assert len(made) == 32


# -- gates -----------------------------------------------------------------------


def wanted(tmux: TmuxServer, pane: str, **other: object) -> Wanted:
    procs = Procs(lambda pid, started: None)
    server, agent = int(tmux.run("display-message", "-p", "#{pid}")), tmux.pid(pane)
    row = {"peer_id": "p", "display_name": "ann", "backend": "claude-code", "circle": "default", "pane_id": pane}
    row |= {"tmux": str(tmux.socket), "server_pid": server, "server_started": procs.started(server)}
    row |= {"agent_pid": agent, "agent_started": procs.started(agent), **other}
    return Wanted.of(row)


async def reason(one: Wanted) -> str | None:
    pane = Pane(Server(one.tmux, one.server_pid, one.server_started), one.pane_id, owner="test")
    return (await gates.look(one, pane, Procs(lambda pid, started: None), SystemClock())).reason


@pytest.mark.live
async def test_each_gate_says_its_word(tmux: TmuxServer, tmp_path: Path) -> None:
    pane = tmux.window(sys.executable, "-c", "input()")
    here = wanted(tmux, pane)
    assert await reason(here) == "screen_unknown"
    assert await reason(here._replace(server_started=1.0)) == "tmux_server_changed"
    assert await reason(here._replace(server_pid=-1)) == "tmux_server_changed"
    assert await reason(here._replace(agent_started=1.0)) == "agent_gone"
    assert await reason(Wanted.of({**here._asdict(), "agent_pid": None, "agent_started": None})) == "not_the_agent"
    other = tmux.window("cat")
    assert await reason(here._replace(pane_id=other)) == "not_the_agent"
    assert await reason(here._replace(pane_id="%999")) == "pane_gone"
    (tmp_path / "1.json").write_text(json.dumps({"status": "busy"}))
    assert await reason(here._replace(registry=str(tmp_path / "1.json"))) == "mid_turn"
    (tmp_path / "1.json").write_text(json.dumps({"status": "waiting"}))
    assert await reason(here._replace(registry=str(tmp_path / "1.json"))) == "dialog_open"
    for close, opens, word in (
        (("copy-mode",), ("send-keys", "-X", "cancel"), "copy_mode"),
        (("select-pane", "-d"), ("select-pane", "-e"), "input_off"),
        (("set-option", "-w", "synchronize-panes", "on"), ("set-option", "-w", "synchronize-panes", "off"), None),
    ):
        tmux.run(close[0], "-t", pane, *close[1:])
        assert await reason(here) == (word or "panes_synchronized")
        tmux.run(opens[0], "-t", pane, *opens[1:])
    assert gates.in_foreground(here.agent_pid)
    assert not gates.in_foreground(here.server_pid)
