"""docs/api.md is true: its examples are run in order against one daemon, and each answer has the example's shape.

An example is a block ```http with the request line, headers and the JSON body, and then a block ```json with the
answer; ```json 404 is one that is refused, and without the second block the answer is empty. Words must come as they
stand. Numbers and moments are any; ids, tokens and cursors are any, and the same in every later place; … is whatever
else there is.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from boxes import program
from conftest import DEADLINE_SECONDS, Api, FakeClock, Socket, TmuxServer, close, until
from test_openapi import TABLE, faults, schema_of
from yarl import URL

from repowire import config, daemon

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
HEADING = re.compile(r"### `([A-Z]+) (/\S*)`")
FENCE = re.compile(r"```(\w*) ?(\d*)")
ID = re.compile(r"[a-z]+(-[a-z]+)*-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
OPAQUE = {"nonce", "lease", "next"}
MORE = "…"

# No example: what does not end, what is no JSON
WITHOUT = {"GET /events/stream", "GET /panes/hosted", "GET /ws", "GET /", "GET /dashboard", "GET /static"}


class Example(NamedTuple):
    """A request as the page has it, and its answer."""

    route: str
    line: int
    method: str
    target: str
    headers: dict[str, str]
    body: str
    status: int
    answer: str  # empty: nothing comes


def blocks(text: str) -> Iterator[tuple[str, int, str, str, str]]:
    """The fenced blocks: the route of the section, the line, the language, what stands behind it, and the text."""
    route, inside = "", None
    kind, status, start, held = "", "", 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        if inside is None and (heading := HEADING.match(line)):
            route = f"{heading[1]} {heading[2]}"
        elif inside is None and line.startswith("#"):
            route = ""
        elif inside is None and (fence := FENCE.fullmatch(line)):
            inside, kind, status, start, held = route, fence[1], fence[2], number, []
        elif inside is not None and line == "```":
            yield inside, start, kind, status, "\n".join(held)
            inside = None
        elif inside is not None:
            held.append(line)


def examples(text: str) -> list[Example]:
    """The examples, in the order of the page."""
    found: list[Example] = []
    open_at = -1  # the line on which the answer of the last request would begin
    for route, line, kind, status, inner in blocks(text):
        if kind == "http":
            head, brace, rest = inner.partition("{")
            first, *more = head.strip().split("\n")
            method, target = first.split(" ", 1)
            headers = dict(each.split(": ", 1) for each in more)
            found.append(Example(route, line, method, target, headers, brace + rest, 200, ""))
            open_at = line + inner.count("\n") + 3
        elif kind == "json" and line == open_at:
            found[-1] = found[-1]._replace(status=int(status or 200), answer=inner)
    return found


EXAMPLES = examples(PAGE.read_text())


# -- shapes --------------------------------------------------------------------


class Same:
    """Compares answers with examples; what an id of the page is called here."""

    def __init__(self) -> None:
        self.real: dict[str, str] = {}

    def here(self, text: str) -> str:
        """The text with this daemon's ids for the page's."""
        for shown, real in self.real.items():
            text = text.replace(shown, real)
        return text

    def faults(self, shown: Any, got: Any, where: str = "$", key: str = "") -> Iterator[str]:
        """Where the answer is not as the example."""
        if isinstance(shown, dict) and isinstance(got, dict):
            yield from self._of_object(shown, got, where)
        elif isinstance(shown, list) and isinstance(got, list):
            told = [one for one in shown if one != MORE]
            if len(told) != len(got) and not (MORE in shown and len(got) > len(told)):
                yield f"{where} has {len(got)} members, not {len(told)}"
            for number, (one, other) in enumerate(zip(told, got, strict=False)):
                yield from self.faults(one, other, f"{where}[{number}]")
        elif isinstance(shown, str) and isinstance(got, str):
            if not self._same_text(shown, got, key):
                yield f"{where} is {got!r}, not {self.here(shown)!r}"
        elif isinstance(shown, bool) or isinstance(got, bool) or shown is None or got is None:
            if shown is not got and shown != MORE:
                yield f"{where} is {got!r}, not {shown!r}"
        elif shown != MORE and isinstance(shown, int | float) is not isinstance(got, int | float):
            yield f"{where} is {got!r}, not {shown!r}"

    def _of_object(self, shown: dict[str, Any], got: dict[str, Any], where: str) -> Iterator[str]:
        more = MORE in shown
        if missing := shown.keys() - got.keys() - {MORE}:
            yield f"{where} lacks {', '.join(sorted(missing))}"
        if not more and (extra := got.keys() - shown.keys()):
            yield f"{where} has {', '.join(sorted(extra))} too"
        for name in shown.keys() & got.keys():
            yield from self.faults(shown[name], got[name], f"{where}.{name}", name)

    def _same_text(self, shown: str, got: str, key: str) -> bool:
        if MOMENT.fullmatch(shown):
            return MOMENT.fullmatch(got) is not None
        if shown.isdigit():
            return got.isdigit()
        if key in OPAQUE or (ID.fullmatch(shown) and ID.fullmatch(got)):
            return self.real.setdefault(shown, got) == got
        pattern = ".*".join(map(re.escape, self.here(shown).split(MORE)))
        return re.fullmatch(pattern, got, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("shown", "got", "fine"),
    [
        ({"a": 1}, {"a": 7.5}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": True}, {"a": False}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": None}, {"a": "x"}, False),
        ({"a": "x"}, {"a": None}, False),
        ({"a": "open"}, {"a": "closed"}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([{"a": 1}], [], False),
        ([{"a": 1}, "…"], [{"a": 1}, {"b": 2}], True),
        ({"a": "ask-9f3c0a7d21be"}, {"a": "ask-000000000000"}, True),
        ({"a": "ask-9f3c0a7d21be"}, {"a": "nothing"}, False),
        ({"a": "ask-9f3c0a7d21be", "b": "ask-9f3c0a7d21be"}, {"a": "ask-000000000001", "b": "ask-000000000002"}, False),
        ({"a": "2025-06-15T15:06:40.000000+00:00"}, {"a": "2026-01-01T00:00:00.000001+00:00"}, True),
        ({"a": "2025-06-15T15:06:40.000000+00:00"}, {"a": "yesterday"}, False),
        ({"a": "closed by …"}, {"a": "closed by ann"}, True),
    ],
)
def test_what_counts_as_the_same_shape(shown: Any, got: Any, fine: bool) -> None:
    assert (list(Same().faults(shown, got)) == []) is fine


# -- the daemon of the page ----------------------------------------------------


class Mesh:
    """The daemon that the page speaks to: `build` is connected, says what it took, and answers one question."""

    def __init__(self, api: Api) -> None:
        self.api, self.same = api, Same()
        self.build: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Peers that the page removes."""
        for name in ("scratch", "scratch-2", "scratch-3"):
            await self.api.post("/peers", name=name)

    async def run(self, example: Example) -> list[str]:
        """One request; where its answer is not as the page has it."""
        got = await self.ask(example.method, self.same.here(example.target), self.same.here(example.body), example)
        if got.status != example.status:
            return [f"{got.status}, not {example.status}: {got.body[:500]!r}"]
        if not example.answer:
            return [f"{got.body!r}, not nothing"] if got.body else []
        schema = schema_of(route_of(example), got.status, "application/json")
        assert schema is not None
        return [*self.same.faults(json.loads(example.answer), got.json), *faults(schema, got.json)]

    async def ask(self, method: str, target: str, body: str, example: Example) -> Any:
        self.api.token = self.api.mesh.auth.token
        sent = {"json": json.loads(body)} if body else {}
        got = await self.api.request(method, URL(target, encoded=True), headers=example.headers, **sent)
        if example.route == "POST /peers":
            who = {key: got.json["birth_certificate"][key] for key in ("peer_id", "nonce")}
            socket = await self.api.connect(
                "build",
                path="/src/app",
                pane_id="%4",
                role="service",
                instance="of-the-page",
                peer_id=who["peer_id"],
                birth_certificate=who,
                capabilities=["dedupe", "delivery_receipts"],
            )
            self.build = asyncio.create_task(self.be(socket))
        if self.build is not None:
            await self.all_is_taken()
        return got

    async def be(self, socket: Socket) -> None:
        """What `build` does with what comes."""
        while True:
            frame = await socket.next(seconds=600)
            if frame["type"] in ("ask", "notify", "broadcast"):
                await socket.receipt(frame)
            if frame["type"] == "ask" and frame["text"].startswith("how long"):
                await self.api.post("/ack", correlation_id=frame["correlation_id"], message="five minutes")

    async def all_is_taken(self) -> None:
        """Until `build` has said of each message that it took it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await self.api.get("/deliveries", peer="build", state="leased"))["deliveries"]:
                continue


def route_of(example: Example) -> tuple[str, str]:
    method, _, path = example.route.partition(" ")
    return method, path


@pytest.fixture
async def opened(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A mesh whose token is the home's, as the page has it."""
    monkeypatch.setenv("HOME", str(tmp_path))  # of the agents whose files are read and written
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    home = tmp_path / "home"
    config.prepare_home(home)
    config.write_token(home)
    made = daemon.open_mesh(config.load(home, {}), clock)
    yield made
    close(made)


@pytest.fixture
def a_pane(tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tmux of the user with one pane, in which something looks like an agent."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    monkeypatch.setenv("TMUX_TMPDIR", str(short_folder))
    folder = short_folder / f"tmux-{os.getuid()}"
    folder.mkdir(mode=0o700)
    tmux = TmuxServer(folder / "default", {key: text for key, text in os.environ.items() if key != "TMUX"})
    command = [str(program(short_folder, "claude")), "-I", "-S", "-c", "input()"]
    tmux.run("new-session", "-d", "-s", "work", "-c", str(tmp_path), *command)
    until(lambda: tmux.run("list-panes", "-a", "-F", "#{pane_current_command}") == "claude")
    yield
    tmux.run("kill-server")


@pytest.fixture
async def mesh(opened: Any, a_pane: None, new_api: Callable[..., Any]) -> AsyncIterator[Mesh]:
    made = Mesh(await new_api(opened))
    made.same.real["/home/ann/.repowire"] = str(opened.config.home)
    made.api.token = opened.auth.token
    await made.prepare()
    yield made
    if made.build is not None:
        made.build.cancel()
        await asyncio.gather(made.build, return_exceptions=True)


async def test_every_example_of_the_page_is_true(mesh: Mesh) -> None:
    wrong = {}
    for example in EXAMPLES:
        found = await mesh.run(example)
        if found:
            wrong[f"docs/api.md:{example.line} {example.method} {example.target}"] = found
    assert wrong == {}


def test_every_route_has_an_example() -> None:
    shown = {example.route for example in EXAMPLES}
    routes = {f"{method} {path}" for method, path in TABLE} - {"GET /static/{file}"}
    assert routes - shown == WITHOUT - {"GET /static"}


def test_an_example_is_of_the_route_above_it() -> None:
    for example in EXAMPLES:
        method, path = route_of(example)
        pattern = re.sub(r"{\w+}", "[^/?]+", path)
        assert example.method == method, example.line
        assert re.fullmatch(pattern, example.target.partition("?")[0]), f"docs/api.md:{example.line}"


async def test_the_frames_of_the_handshake_are_true(mesh: Mesh) -> None:
    hello, welcome = [json.loads(text) for route, _, kind, _, text in blocks(PAGE.read_text()) if route == "GET /ws"]
    async with mesh.api.client.ws_connect("/ws", headers={"Authorization": f"Bearer {mesh.api.token}"}) as socket:
        await socket.send_json(hello)
        assert list(mesh.same.faults(welcome, await socket.receive_json(timeout=DEADLINE_SECONDS))) == []
