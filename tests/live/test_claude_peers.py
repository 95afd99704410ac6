"""Two real Claude Codes, a real daemon and a real tmux: each case once with the inbox and once with panes alone.

What arrived is read where the recipient keeps it: in its own transcript, by the message's id, and counted there.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest
from claude.driver import WITHOUT_INBOX, Claude
from claude.model import Model, tool
from claude.town import WAYS, Town, doubled, times_told, told
from conftest import Live, TmuxServer, gone, until

pytestmark = pytest.mark.live

ESCAPES = (
    "a\x1b[201~b\x1b]0;title\x07c\u202ed\r\n\"q\" 'r' `id` $(id) #{pane_id} %% \\n </tag> [/repowire 0000] tab\tend;"
)
ESCAPES_SHOWN = "ab]0;titlecd\n\"q\" 'r' `id` $(id) #{pane_id} %% \\n </tag> [/repowire 0000] tab\tend;"


@pytest.fixture
def new_town(new_live: Callable[..., Live], tmux: TmuxServer) -> Iterator[Callable[[str], Town]]:
    towns: list[Town] = []
    with Model() as model:

        def build(way: str) -> Town:
            towns.append(Town(new_live(), tmux, model, way))
            return towns[-1]

        yield build
        for town in towns:
            town.close()


@pytest.fixture(params=WAYS)
def town(request: pytest.FixtureRequest, new_town: Callable[[str], Town]) -> Town:
    return new_town(request.param)


@pytest.fixture
def ben(town: Town) -> Claude:
    return town.arrive(town.claude("ben"))


def ask_and_be_answered(town: Town, ann: Claude) -> None:
    number = str(random.randrange(10_000, 10_000_000))
    ann.type(f"ask ben: what is twice {number} and one?")
    # by wait_on_ack, or as a message where ben was faster than the call
    ann.until(lambda: any(doubled(number) in str(line) for line in ann.transcript()), "its transcript has it", 60)
    ann.until_idle()


def test_one_asks_and_reads_what_the_other_worked_out(town: Town) -> None:
    ann, ben = town.claude("ann"), town.claude("ben")
    town.arrive(ann)
    town.arrive(ben)
    ask_and_be_answered(town, ann)
    ask_and_be_answered(town, ann)


@pytest.mark.parametrize("tool_runs", [False, True])
def test_in_the_middle_of_a_turn(town: Town, ben: Claude, tool_runs: bool) -> None:
    hold = town.model.hold()
    go = ben.project / "go"
    town.model.on(r"^work$", ["Working. ", hold, "Worked."])
    town.model.on(r"^run$", tool("Bash", command=f"until [ -e {go} ]; do read -t 0.1 x; done", description="d"), "Ran.")
    town.model.on(r"^\d+$", "A number.")
    if tool_runs:
        ben.type("run")
        ben.until(lambda: ben.box() is None and "Do you want to proceed" in ben.screen(), "it asks")
        # a dialog takes no key in its first moment
        ben.until(lambda: ben.box() is not None or ben.keys("Enter"), "the tool runs")
    else:
        ben.type("work")
        ben.until(lambda: hold.reached and ben.status() == "busy", "it works")
    told_it = town.tell("ben", "while you work")
    town.until_state(ben, told_it, "held" if town.way == "panes" else "handed", "held")
    hold.release()
    go.touch()
    town.until_seen(ben, told_it)
    ben.until_idle()


def test_beside_a_half_typed_draft(town: Town, ben: Claude) -> None:
    ben.draft("half of a thought")
    told_it = town.tell("ben", "beside your draft")
    if town.way == "panes":
        town.until_state(ben, told_it, "held")
        assert town.reason(told_it) in ("draft", "typing")
        assert ben.box() == "half of a thought"
        assert not ben.shows("beside your draft")
        ben.keys("C-u")
    town.until_seen(ben, told_it)
    ben.until(lambda: ben.status() == "idle", "idle again")
    assert ben.box() == ("" if town.way == "panes" else "half of a thought")


def dialog(ben: Claude) -> str:
    """The screen from the open dialog on; above it the program's own picture may still move."""
    return ben.until(lambda: ben.screen().partition("Bash command")[2], "a dialog is shown")


def test_under_a_permission_dialog(town: Town, ben: Claude) -> None:
    ben.type("shell touch made")
    ben.until(lambda: ben.box() is None and ben.status() == "waiting", "a dialog is open")
    before = dialog(ben)
    told_it = town.tell("ben", "under your dialog")
    town.until_state(ben, told_it, "held")
    assert town.reason(told_it) == "dialog_open"
    assert dialog(ben) == before
    assert not (ben.project / "made").exists()
    ben.keys("Escape")
    town.until_seen(ben, told_it)
    assert not (ben.project / "made").exists()


def test_under_copy_mode(town: Town, ben: Claude) -> None:
    town.tmux.run("copy-mode", "-t", ben.pane)
    told_it = town.tell("ben", "under copy mode")
    if town.way == "panes":
        town.until_state(ben, told_it, "held")
        assert town.reason(told_it) == "copy_mode"
        assert town.tmux.run("display-message", "-p", "-t", ben.pane, "#{pane_in_mode}") == "1"
        ben.keys("-X", "cancel")
    town.until_seen(ben, told_it)


def test_two_at_once_a_long_one_and_one_full_of_escapes(town: Town, ben: Claude) -> None:
    long = "".join(f"line {number} of a long text\n" for number in range(400)).strip()
    assert len(long) > 9000
    ids = [town.tell("ben", "first of two"), town.tell("ben", "second of two")]
    town.until_seen(ben, *ids)
    ids += [town.tell("ben", long), town.tell("ben", ESCAPES)]
    town.until_seen(ben, *ids)
    ben.until_idle()
    heard = "\n".join(told(ben))
    assert heard.index("first of two") < heard.index("second of two") < heard.index(long)
    assert ESCAPES_SHOWN in heard


def test_clear_keeps_the_peer(town: Town, ben: Claude) -> None:
    first = town.peer("ben")["peer_id"]
    before = town.tell("ben", "before the clear")
    town.until_seen(ben, before)
    ben.until_idle()
    old = ben.session
    ben.type("/clear")
    ben.until(lambda: ben.session != old and ben.idle(), "a new session")
    after = town.tell("ben", "after the clear")
    town.until_seen(ben, before, after)
    ben.until_idle()
    assert town.peer("ben")["peer_id"] == first


def test_left_and_resumed_it_is_the_same_peer(town: Town, ben: Claude) -> None:
    first = town.peer("ben")["peer_id"]
    before = town.tell("ben", "before it is left")
    town.until_seen(ben, before)
    ben.until_idle()
    session = ben.session
    ben.leave()
    until(lambda: not town.reachable("ben"))
    town.arrive(ben, "--resume", session)
    after = town.tell("ben", "after the resume")
    town.until_seen(ben, before, after)
    assert town.peer("ben")["peer_id"] == first


def test_killed_and_resumed_it_is_the_same_peer_and_hears_what_waited_once_when_it_is_back(
    town: Town, ben: Claude
) -> None:
    first = town.peer("ben")["peer_id"]
    seen = town.tell("ben", "seen before the end")
    town.until_seen(ben, seen)
    ben.until_idle()
    session = ben.session
    ben.kill()
    until(lambda: not town.reachable("ben"))
    waits = [town.tell("ben", f"while you were gone, {number}") for number in (1, 2)]
    town.arrive(ben, "--resume", session)
    town.until_seen(ben, seen)
    town.until_seen(ben, *waits)
    assert town.peer("ben")["peer_id"] == first


def test_a_daemon_killed_in_between_loses_nothing_and_repeats_nothing(town: Town, ben: Claude) -> None:
    hold = town.model.hold()
    town.model.on(r"^work$", ["Working. ", hold, "Worked."])
    ben.type("work")
    ben.until(lambda: hold.reached, "it works")
    ids = [town.tell("ben", "before the kill")]
    town.live.kill()
    town.start_daemon()
    ids.append(town.tell("ben", "after the kill"))
    hold.release()
    ben.until_idle()
    until(lambda: town.reachable("ben"), 30)
    ids.append(town.tell("ben", "when all is well again"))
    town.until_seen(ben, *ids, seconds=60)


def test_a_daemon_that_is_restarted_serves_its_panes_within_seconds(new_town: Callable[[str], Town]) -> None:
    town = new_town("panes")
    ben = town.claude("ben")
    town.without_mcp()
    town.arrive(ben)
    assert town.live.term() == 0
    town.start_daemon()
    told_it = town.tell("ben", "after the restart")
    town.until_seen(ben, told_it, seconds=10)


def test_a_ws_hook_killed_in_between_loses_nothing_and_repeats_nothing(new_town: Callable[[str], Town]) -> None:
    town = new_town("panes")
    ben = town.arrive(town.claude("ben"))
    ids = [town.tell("ben", "before the kill")]
    hook = ws_hook_of(town)
    os.kill(hook, signal.SIGKILL)
    until(lambda: gone(hook))
    ids.append(town.tell("ben", "after the kill"))
    town.until_seen(ben, *ids, seconds=90)
    assert ws_hook_of(town) != hook


def ws_hook_of(town: Town) -> int:
    """The pid of the one ws-hook that serves this town's panes: a child of its daemon."""
    children = f"/proc/{town.live.pid}/task/{town.live.pid}/children"

    def look() -> list[int]:
        with open(children) as file:
            return [int(pid) for pid in file.read().split() if b"ws-hook" in command(pid)]

    return until(look, 30)[0]


def command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def way_of(town: Town, delivery_id: str) -> str:
    """What handed it over, by its trace."""
    stages = town.live.get(f"/traces/{delivery_id}")["stages"]
    return str(next(stage["detail"]["by"] for stage in stages if stage["stage"] == "handed"))


@pytest.mark.parametrize("word", ["hold", "refuse"])
@pytest.mark.parametrize("file", [None, "settings.json", "settings.local.json"], ids=["user", "project", "local"])
def test_a_session_whose_settings_keep_messages_from_it_is_reached_by_its_pane(
    new_town: Callable[[str], Town], word: str, file: str | None
) -> None:
    town = new_town("inbox")
    ben = town.claude("ben")
    town.user.change_settings(crossSessionInbound=word if file is None else "accept")
    if file is not None:
        (ben.project / ".claude").mkdir()
        town.user.write(ben.project / ".claude" / file, {"crossSessionInbound": word})
    town.arrive(ben)
    told_it = town.tell("ben", "do you hear me?")
    town.until_seen(ben, told_it)
    assert way_of(town, told_it) == "pane"


def test_a_session_without_prompts_that_accepts_messages_has_them_from_its_inbox(
    new_town: Callable[[str], Town],
) -> None:
    town = new_town("inbox")
    town.user.change_settings(crossSessionInbound="accept")
    ben = town.claude("ben").start(bypass=True)
    ben.until(lambda: town.reachable("ben"), "it is a peer with a way in")
    told_it = town.tell("ben", "do you hear me?")
    town.until_seen(ben, told_it)
    assert way_of(town, told_it) == "channel"


def test_a_version_without_an_inbox(new_town: Callable[[str], Town]) -> None:
    town = new_town("inbox")
    ann, ben = town.claude("ann", WITHOUT_INBOX), town.claude("ben", WITHOUT_INBOX)
    town.arrive(ann)
    town.arrive(ben)
    ask_and_be_answered(town, ann)
    ben.type("shell touch made")
    ben.until(lambda: ben.box() is None and "Do you want to proceed" in ben.screen(), "a dialog is open")
    told_it = town.tell("ben", "under your dialog")
    town.until_state(ben, told_it, "held")
    ben.keys("Escape")
    town.until_seen(ben, told_it, seconds=60)
    assert not (ben.project / "made").exists()
    assert times_told(ben, told_it) == 1
