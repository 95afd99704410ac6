"""The real Claude Code on the scripted model, without repowire: what the other tests with it stand on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from claude.driver import NEWEST, WITHOUT_INBOX, Claude, User
from claude.model import Model, Refusal, tool
from conftest import TmuxServer, gone

pytestmark = pytest.mark.live


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as model:
        yield model


@pytest.fixture
def new_claude(tmux: TmuxServer, short_folder: Path, model: Model) -> Iterator[Callable[..., Claude]]:
    user = User(short_folder, model)
    made: list[Claude] = []

    def build(name: str = "ann", version: str = NEWEST) -> Claude:
        made.append(Claude(tmux, user, name, version))
        return made[-1]

    yield build
    for claude in made:
        claude.kill()


@pytest.mark.parametrize("version", [NEWEST, WITHOUT_INBOX])
def test_a_prompt_is_answered_a_tool_runs_and_a_dialog_opens(
    new_claude: Callable[..., Claude], model: Model, version: str
) -> None:
    model.on(
        r"^shell (.*)$",
        lambda turn: tool("Bash", command=turn.match[1], description="d"),
        lambda turn: f"It said {turn.result}",
    )
    claude = new_claude(version=version).start(bypass=False)
    claude.type("hello there")
    claude.until_shows("OK: hello there")
    claude.until_idle()
    claude.type("shell echo sum=$((40+2))")
    claude.until_shows("It said sum=42")
    claude.until_idle()
    claude.type("shell touch made")
    claude.until(lambda: claude.box() is None and claude.status() == "waiting", "a dialog is open")
    assert not (claude.project / "made").exists()
    claude.keys("Escape")
    claude.until_idle()
    assert not (claude.project / "made").exists()
    claude.leave()
    assert gone(claude.pid)


def test_a_held_reply_is_the_middle_of_a_turn_and_an_api_error_ends_one(
    new_claude: Callable[..., Claude], model: Model
) -> None:
    hold = model.hold()
    model.on(r"^wait", ["Working on it. ", hold, "Now it is done."])
    model.on(r"^fail", Refusal(400, "scripted"))
    claude = new_claude().start()
    claude.type("wait for me")
    claude.until(lambda: hold.reached and claude.status() == "busy", "in the middle of a turn")
    hold.release()
    claude.until_shows("Now it is done.")
    claude.until_idle()
    claude.type("fail please")
    claude.until_shows("scripted")
    claude.until_idle()
    claude.until(lambda: claude.said()[-1].startswith("API Error: 400"), "its transcript says so")
