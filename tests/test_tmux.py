"""tmux itself, and a program that writes down every byte: what arrives, and that nothing does when a gate is closed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TmuxServer, gone, until, until_async

from repowire import tmux as tmux_module
from repowire.procs import Procs
from repowire.tmux import Gone, Hangs, Look, Pane, Server

pytestmark = pytest.mark.live

RECORDER = Path(__file__).parent / "recorder.py"
NAMES_OF_KEYS = (
    "Enter",
    "C-c",
    "-X",
    "-l",
    "--",
    "Escape",
    "#{pane_pid}",
    "%1",
    ";",
    "a;",
    "a\\;",
    "'",
    '"',
    "{ }",
    "~",
)


class Recorded:
    """A pane whose program writes down what it is sent."""

    def __init__(self, tmux: TmuxServer, folder: Path, name: str, *options: str) -> None:
        self.tmux, self.file = tmux, folder / f"{name}.bytes"
        self.pane_id = tmux.window(sys.executable, str(RECORDER), str(self.file), *options)
        until(Path(f"{self.file}.ready").exists)
        self.pane = pane_of(tmux, self.pane_id)

    @property
    def bytes(self) -> bytes:
        return self.file.read_bytes()

    async def paste(self, text: str) -> bool:
        return await self.pane.paste(text, await self.pane.look())

    async def nothing_came(self) -> bool:
        """What was sent before this was not: the next bytes to come are these."""
        self.tmux.run("send-keys", "-t", self.pane_id, "-l", "~")
        await until_async(lambda: self.bytes)
        return self.bytes == b"~"


def pane_of(tmux: TmuxServer, pane_id: str) -> Pane:
    return Pane(server_of(tmux), pane_id, owner="test")


def server_of(tmux: TmuxServer) -> Server:
    pid = int(tmux.run("display-message", "-p", "#{pid}"))
    return Server(str(tmux.socket), pid, Procs(lambda pid, started: None).started(pid) or 0.0)


@pytest.fixture
def recorded(tmux: TmuxServer, tmp_path: Path) -> Recorded:
    return Recorded(tmux, tmp_path, "brackets")


@pytest.fixture
def bare(tmux: TmuxServer, tmp_path: Path) -> Recorded:
    return Recorded(tmux, tmp_path, "bare", "--no-brackets")


# -- what arrives --------------------------------------------------------------

TEXTS = [
    *NAMES_OF_KEYS,
    "one line",
    "two\nlines",
    "\nfirst and last empty\n",
    "tab\tand  blanks ",
    "ünïcödé 漢字 🙂 \u200b",
    "\x1b[31mred\x1b[0m \x00? \x7f \x01",
    "\r\n and \r",
    "x" * 9_000,
    "head " + "y" * 1_000_000 + " tail",
    "line\n" * 20_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:16]))
async def test_a_paste_arrives_letter_for_letter(recorded: Recorded, text: str) -> None:
    assert await recorded.paste(text)
    wanted = b"\x1b[200~" + text.encode() + b"\x1b[201~"
    await until_async(lambda: len(recorded.bytes) >= len(wanted))
    assert recorded.bytes == wanted


@pytest.mark.parametrize("text", [text for text in TEXTS if "\r" not in text], ids=lambda text: ascii(text[:16]))
async def test_without_brackets_no_byte_of_a_paste_is_enter(bare: Recorded, text: str) -> None:
    assert await bare.paste(text)
    await until_async(lambda: len(bare.bytes) >= len(text.encode()))
    assert bare.bytes == text.encode()
    assert b"\r" not in bare.bytes


async def test_enter_is_a_key_of_its_own(recorded: Recorded) -> None:
    look = await recorded.pane.look()
    assert await recorded.pane.paste("text", look)
    assert await recorded.pane.enter(look)
    await until_async(lambda: recorded.bytes.endswith(b"\r"))
    assert recorded.bytes == b"\x1b[200~text\x1b[201~\r"


async def test_enter_is_pressed_only_where_the_words_are_on_the_screen(tmux: TmuxServer, tmp_path: Path) -> None:
    (tmp_path / "screen").write_text("❯ [repowire 7f3a] text")
    recorded = Recorded(tmux, tmp_path, "shows", "--screen", str(tmp_path / "screen"))
    look = await recorded.pane.look()
    assert not await recorded.pane.enter(look, "repowire 7f3b")
    assert not recorded.bytes
    assert await recorded.pane.enter(look, "repowire 7f3a")
    await until_async(lambda: recorded.bytes)
    assert recorded.bytes == b"\r"


async def test_two_pastes_into_one_pane_do_not_mix(recorded: Recorded) -> None:
    one, other = "a" * 300_000, "b" * 300_000
    look = await recorded.pane.look()
    assert all(await asyncio.gather(recorded.pane.paste(one, look), recorded.pane.paste(other, look)))
    await until_async(lambda: len(recorded.bytes) >= 600_024)
    assert recorded.bytes.replace(b"\x1b[200~", b"<").replace(b"\x1b[201~", b">") == f"<{one}><{other}>".encode()


async def test_no_buffer_is_left_behind_and_the_users_own_stay(recorded: Recorded, tmux: TmuxServer) -> None:
    tmux.run("set-buffer", "-b", "mine", "the user's")
    look = await recorded.pane.look()
    assert await recorded.pane.paste("ours", look)
    assert not await recorded.pane.paste("refused", look._replace(pane_pid=1))
    assert tmux.run("list-buffers", "-F", "#{buffer_name}") == "mine"


def test_the_words_to_look_for_are_no_tmux_format(tmux: TmuxServer) -> None:
    with pytest.raises(ValueError, match="mean something"):
        asyncio.run(pane_of(tmux, "%0").enter(Look(1, 1, *([False] * 4), None, (0, 0), (0, 0), 0, ""), "#{pid}"))


@pytest.mark.parametrize("name", ["3", "main", "%", "%1;", "=main:0", "%1 ; kill-server"])
def test_only_a_pane_id_names_a_pane(name: str) -> None:
    with pytest.raises(ValueError, match="no pane id"):
        Pane(Server("/nowhere", 1, 1.0), name, owner="x")


# -- what closes the way between the look and the byte ---------------------------


async def refused(recorded: Recorded, look: Look) -> None:
    """Neither a paste nor Enter comes through after this look."""
    assert not await recorded.pane.paste("never", look)
    assert not await recorded.pane.enter(look)


async def test_copy_mode(recorded: Recorded, tmux: TmuxServer) -> None:
    look = await recorded.pane.look()
    tmux.run("copy-mode", "-t", recorded.pane_id)
    assert (await recorded.pane.look()).in_mode
    await refused(recorded, look)
    tmux.run("send-keys", "-t", recorded.pane_id, "-X", "cancel")
    assert await recorded.nothing_came()


async def test_view_mode(recorded: Recorded, tmux: TmuxServer) -> None:
    look = await recorded.pane.look()
    tmux.run("run-shell", "-t", recorded.pane_id, "echo output that opens the view mode")
    assert (await recorded.pane.look()).in_mode
    await refused(recorded, look)
    tmux.run("send-keys", "-t", recorded.pane_id, "-X", "cancel")
    assert await recorded.nothing_came()


async def test_input_off(recorded: Recorded, tmux: TmuxServer) -> None:
    look = await recorded.pane.look()
    tmux.run("select-pane", "-d", "-t", recorded.pane_id)
    assert (await recorded.pane.look()).input_off
    await refused(recorded, look)
    tmux.run("select-pane", "-e", "-t", recorded.pane_id)
    assert await recorded.nothing_came()


async def test_synchronized_panes(recorded: Recorded, tmux: TmuxServer, tmp_path: Path) -> None:
    look = await recorded.pane.look()
    neighbour = tmux.run("split-window", "-d", "-P", "-F", "#{pane_id}", "-t", recorded.pane_id, "cat")
    tmux.run("set-option", "-w", "-t", recorded.pane_id, "synchronize-panes", "on")
    assert (await recorded.pane.look()).synchronized
    await refused(recorded, look)
    tmux.run("set-option", "-w", "-t", recorded.pane_id, "synchronize-panes", "off")
    assert await recorded.nothing_came()
    assert tmux.screen(neighbour).strip() == ""


async def test_another_program_in_the_pane(recorded: Recorded, tmux: TmuxServer, tmp_path: Path) -> None:
    look = await recorded.pane.look()
    other = tmp_path / "other.bytes"
    tmux.run("respawn-pane", "-k", "-t", recorded.pane_id, sys.executable, str(RECORDER), str(other))
    until(Path(f"{other}.ready").exists)
    await refused(recorded, look)
    recorded.file = other
    assert await recorded.nothing_came()


async def test_a_dead_pane(recorded: Recorded, tmux: TmuxServer) -> None:
    tmux.run("set-option", "-g", "remain-on-exit", "on")
    look = await recorded.pane.look()
    os.kill(look.pane_pid, signal.SIGKILL)
    await until_async(lambda: tmux.run("display-message", "-p", "-t", recorded.pane_id, "#{pane_dead}") == "1")
    assert (await recorded.pane.look()).dead
    await refused(recorded, look)


async def test_a_pane_that_went(recorded: Recorded, tmux: TmuxServer) -> None:
    look = await recorded.pane.look()
    tmux.run("kill-pane", "-t", recorded.pane_id)
    with pytest.raises(Gone, match="no pane"):
        await recorded.pane.look()
    await refused(recorded, look)
    assert tmux.run("list-buffers", "-F", "#{buffer_name}") in ("", "repowire-test-1")  # the next paste takes its place


async def test_a_new_server_on_the_same_socket_is_a_stranger(
    recorded: Recorded, tmux: TmuxServer, tmp_path: Path
) -> None:
    look = await recorded.pane.look()
    tmux.run("kill-server")
    await until_async(lambda: not Path(f"/proc/{look.server_pid}").exists())
    with pytest.raises(Gone):
        await recorded.pane.look()
    tmux.run("new-session", "-d", "-s", "main", "-x", "200", "-y", "50", "cat")
    stranger = Recorded(tmux, tmp_path, "stranger")
    assert stranger.pane_id == recorded.pane_id
    assert (await recorded.pane.look()).server_pid != look.server_pid
    await refused(recorded, look)
    await refused(
        recorded, await recorded.pane.look()
    )  # whatever the look says: the server is not the one that was meant
    assert await stranger.nothing_came()


# -- what does not matter --------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        ("resize-pane", "-Z", "-t", "PANE"),
        ("swap-pane", "-d", "-s", "PANE", "-t", "main:0.0"),
        ("move-pane", "-d", "-s", "PANE", "-t", "main:0"),
        ("break-pane", "-d", "-s", "PANE"),
        ("link-window", "-s", "PANE", "-t", "other:"),
        ("set-option", "-g", "base-index", "1"),
        ("rename-session", "-t", "main", "renamed"),
    ],
    ids=lambda change: change[0],
)
async def test_the_text_follows_its_pane_wherever_it_goes(
    tmux: TmuxServer, tmp_path: Path, change: tuple[str, ...]
) -> None:
    tmux.run("new-session", "-d", "-s", "other", "cat")
    recorded = Recorded(tmux, tmp_path, "moved")
    tmux.run("split-window", "-d", "-t", recorded.pane_id, "cat")
    look = await recorded.pane.look()
    tmux.run(*(recorded.pane_id if word == "PANE" else word for word in change))
    assert await recorded.pane.paste("text", look)
    assert await recorded.pane.enter(look)
    await until_async(lambda: recorded.bytes.endswith(b"\r"))
    assert recorded.bytes == b"\x1b[200~text\x1b[201~\r"


async def test_several_servers_at_once(tmux: TmuxServer, tmp_path: Path, short_folder: Path) -> None:
    other = TmuxServer(short_folder / "other", tmux.environ)
    other.run("new-session", "-d", "-s", "main", "cat")
    try:
        one, two = Recorded(tmux, tmp_path, "one"), Recorded(other, tmp_path, "two")
        assert one.pane_id == two.pane_id
        assert all(await asyncio.gather(one.paste("to one"), two.paste("to two")))
        await until_async(lambda: len(one.bytes) == len(two.bytes) == 18)
        assert (one.bytes, two.bytes) == (b"\x1b[200~to one\x1b[201~", b"\x1b[200~to two\x1b[201~")
    finally:
        other.run("kill-server")


async def test_the_name_of_a_folder_makes_no_pane(tmux: TmuxServer, tmp_path: Path) -> None:
    pid = tmux.run("display-message", "-p", "#{pid}").strip()
    forged = tmux_module._BETWEEN.join(["", pid, "%77", "1", "0", "0", "main", ""])
    folder = tmp_path / f"a\n{forged[1:]}\nb"
    folder.mkdir()
    pane_id = tmux.run("new-window", "-d", "-P", "-F", "#{pane_id}", "-c", str(folder), "cat").strip()
    listed = {one.pane_id: one.path for one in await tmux_module.panes_of(str(tmux.socket))}
    assert "%77" not in listed
    assert listed[pane_id] == str(folder)


# -- who types -------------------------------------------------------------------


@pytest.fixture
def attached(tmux: TmuxServer) -> Iterator[int]:
    """A human at a terminal of their own; the terminal's other end."""
    master, slave = os.openpty()
    command = ["tmux", "-S", str(tmux.socket), "attach-session", "-t", "main"]
    client = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=tmux.environ, start_new_session=True
    )
    os.close(slave)
    until(lambda: tmux.run("list-clients"))
    yield master
    client.terminate()
    client.wait(10)
    os.close(master)


async def test_a_human_in_this_pane_is_seen_and_one_in_another_is_not(
    recorded: Recorded, tmux: TmuxServer, attached: int
) -> None:
    assert (await recorded.pane.look()).typed_at == 0
    tmux.run("select-window", "-t", recorded.pane_id)
    assert (await recorded.pane.look()).typed_at > 1_700_000_000


# -- a server that does not answer -----------------------------------------------


async def test_a_server_that_hangs_is_given_up(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmux_module, "PATIENCE_SECONDS", 0.3)
    look = await recorded.pane.look()
    os.kill(look.server_pid, signal.SIGSTOP)
    try:
        with pytest.raises(Hangs):
            await recorded.pane.look()
        with pytest.raises(Hangs):
            await recorded.pane.paste("never", look)
    finally:
        os.kill(look.server_pid, signal.SIGCONT)
    assert (await recorded.pane.look()).pane_pid == look.pane_pid
    assert await recorded.nothing_came()  # who gave up took the text along: tmux asks for it when it goes on


async def test_no_server_and_no_tmux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Pane(Server(str(tmp_path / "none"), 1, 1.0), "%1", owner="x")
    with pytest.raises(Gone, match="error connecting"):
        await nobody.look()
    monkeypatch.setattr(tmux_module, "PROGRAM", str(tmp_path / "no-tmux"))
    with pytest.raises(Gone, match="cannot be run"):
        await nobody.look()


# -- windows -----------------------------------------------------------------------


async def opened(tmux: TmuxServer, *command: str, session: str = "main", folder: str = "/") -> tmux_module.Opened:
    return await tmux_module.open_window(str(tmux.socket), session, "work", folder, command)


@pytest.mark.parametrize("session", ["main", "other"])
async def test_a_window_is_opened_in_the_background_and_told(tmux: TmuxServer, session: str) -> None:
    before = tmux.run("display-message", "-p", "-t", "main:", "#{window_index}")
    made = await opened(tmux, "cat", session=session)
    told = tmux.run("display-message", "-p", "-t", made.pane_id, "#{session_name}|#{window_index}|#{window_name}")
    assert told == f"{session}|{made.window}|work"
    assert (made.session, made.pane_pid) == (session, tmux.pid(made.pane_id))
    assert tmux.run("display-message", "-p", "-t", "main:", "#{window_index}") == before


async def test_a_window_starts_the_server_where_there_is_none(short_folder: Path) -> None:
    socket = str(short_folder / "new")
    made = await tmux_module.open_window(socket, "first", "work", "/", ["cat"])
    try:
        assert made.session == "first"
    finally:
        assert await tmux_module.kill_pane(Server(socket, made.server_pid, 0.0), made.pane_id, made.pane_pid)
        until(lambda: gone(made.server_pid))


@pytest.mark.parametrize("name", ["a b", "#(touch made)", "#{pid}", "it's; here;", 'a"b$HOME\\', "ünï"])
async def test_words_and_folders_come_letter_for_letter(tmux: TmuxServer, short_folder: Path, name: str) -> None:
    folder = short_folder / name
    folder.mkdir()
    script = 'printf "%s\\n" "$1" "$(pwd)"; exec cat'
    made = await opened(tmux, "sh", "-c", script, "sh", name, folder=str(folder))
    until(lambda: str(folder) in tmux.screen(made.pane_id))
    assert tmux.screen(made.pane_id).splitlines()[0] == name
    assert not (folder / "made").exists()
    assert await tmux_module.remain(server_of(tmux), made.pane_id, made.pane_pid, on=True)
    os.kill(made.pane_pid, signal.SIGKILL)
    until(lambda: tmux.run("display-message", "-p", "-t", made.pane_id, "#{pane_dead}") == "1")
    again = await tmux_module.respawn(
        server_of(tmux), made.pane_id, made.pane_pid, str(folder), ["sh", "-c", script, "sh", name]
    )
    assert again is not None
    assert (again.pane_id, again.pane_pid) == (made.pane_id, tmux.pid(made.pane_id))
    until(lambda: str(folder) in tmux.screen(made.pane_id))
    assert tmux.screen(made.pane_id).splitlines()[0] == name


async def test_only_the_very_pane_is_killed(tmux: TmuxServer) -> None:
    made, server = await opened(tmux, "cat"), server_of(tmux)
    assert not await tmux_module.kill_pane(server._replace(pid=server.pid + 1), made.pane_id, made.pane_pid)
    assert not await tmux_module.kill_pane(server, made.pane_id, made.pane_pid + 1)
    assert await tmux_module.respawn(server, made.pane_id, made.pane_pid + 1, "/", ["cat"]) is None
    assert tmux.pid(made.pane_id) == made.pane_pid
    assert await tmux_module.kill_pane(server, made.pane_id, made.pane_pid)
    assert not await tmux_module.kill_pane(server, made.pane_id, made.pane_pid)


async def test_a_pane_that_remains_says_what_it_showed_and_how_it_ended(tmux: TmuxServer) -> None:
    made, server = await opened(tmux, "sh", "-c", "read go; echo no such model; exit 3"), server_of(tmux)
    assert await tmux_module.remain(server, made.pane_id, made.pane_pid, on=True)
    tmux.run("send-keys", "-t", made.pane_id, "Enter")
    until(lambda: tmux.run("display-message", "-p", "-t", made.pane_id, "#{pane_dead_status}") == "3")
    screen, status = await tmux_module.shown(server, made.pane_id)
    assert "no such model" in screen
    assert status == 3
    found = await tmux_module.find(server.socket, "no such model")
    assert found == [tmux_module.Found(server.pid, made.pane_id, made.pane_pid, True)]
    assert await tmux_module.find(server.socket, "no such word") == []


async def test_a_pane_whose_user_is_given_back_closes_when_its_program_ends(tmux: TmuxServer) -> None:
    made, server = await opened(tmux, "cat"), server_of(tmux)
    assert await tmux_module.remain(server, made.pane_id, made.pane_pid, on=True)
    assert await tmux_module.remain(server, made.pane_id, made.pane_pid, on=False)
    os.kill(made.pane_pid, signal.SIGKILL)
    until(lambda: made.pane_id not in tmux.run("list-panes", "-a", "-F", "#{pane_id}").split())
