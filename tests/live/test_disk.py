"""The disk: a 2xx follows the sync of what it promises, and a disk that is full or damaged is said in clear words."""

import asyncio
import concurrent.futures
import http.client
import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live, until

from repowire.async_client import AsyncRepowireClient, DaemonError, Message

pytestmark = pytest.mark.live

# -- the sync before the 2xx -----------------------------------------------------


class Call(NamedTuple):
    """One call to the kernel, from the line of the record on which it began to the one on which it returned."""

    name: str
    path: str
    data: str
    began: int
    ended: int


LINE = re.compile(r"(\d+) +(\w+)\(\d+<([^>]*)>(.*)")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")


def calls(record: str) -> list[Call]:
    """What strace wrote, with the calls that another thread interrupted put together. A failed one is left out."""
    found: list[Call] = []
    running: dict[str, Call] = {}
    for number, line in enumerate(record.splitlines()):
        if resumed := RESUMED.match(line):
            call = running.pop(resumed[1], None)
            if call is not None and "= -1" not in resumed[3]:
                found.append(call._replace(ended=number))
        elif called := LINE.match(line):
            thread, name, path, rest = called.groups()
            if path.startswith("\\x"):
                path = bytes.fromhex(path.replace("\\x", "")).decode()
            call = Call(name, path, rest, number, number)
            if rest.endswith("<unfinished ...>"):
                running[thread] = call
            elif "= -1" not in rest:
                found.append(call)
    return found


class Traced:
    """A live daemon under strace."""

    def __init__(self, record: Path) -> None:
        self.record = record

    def answers(self, sent: str) -> list[Call]:
        """The calls that sent this text over a socket, in their order."""
        return [one for one in calls(self.record.read_text()) if one.name in SENDS and hexed(sent) in one.data]

    def check(self, answer: Call, about: str | None = None) -> None:
        """A sync began after the commit that holds what the answer is about (the last one), and ended before it."""
        before = [one for one in calls(self.record.read_text()) if one.ended < answer.began]
        log = [one for one in before if one.path.endswith("/state.db-wal")]
        pages = [one for one in log if one.name == "pwrite64"]
        first = len(pages) - 1
        if about is not None:
            first = next(at for at, page in enumerate(pages) if hexed(about) in page.data)
            while not (header := FRAME.match(pages[first - 1].data)) or header[1] == hexed("\0\0\0\0"):
                first += 1
        committed = pages[first]
        synced = [one for one in log if one.name == "fdatasync" and one.began > committed.ended]
        assert synced, f"answered before its sync: line {answer.began} of {self.record}"


def hexed(text: str) -> str:
    """As `strace -xx` writes it."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


# SQLite writes each page of its log after a header of 24 bytes; the second word is not 0 in the last one of a commit
FRAME = re.compile(r', "(?:\\x..){4}((?:\\x..){4})(?:\\x..){16}", 24, ')
SENDS = ("sendto", "write", "writev", "sendmsg")
TRACED = f"trace=pwrite64,fdatasync,{','.join(SENDS)}"


@pytest.fixture
def trace(live: Live, short_folder: Path) -> Iterator[Callable[[], Traced]]:
    """`trace()`: from then on strace records the daemon; it has let go when the test ends."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; get it with: apt-get install strace")
    started: list[subprocess.Popen[str]] = []
    record = short_folder / "strace.out"

    def start() -> Traced:
        process = subprocess.Popen(
            ["strace", "-f", "-y", "-xx", "-s", "100000", "-e", TRACED, "-o", str(record), "-p", str(live.pid)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        said = process.stderr.readline()
        if "attached" not in said:
            pytest.skip(f"strace may not look at the daemon: {said.strip()}")
        return Traced(record)

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=DEADLINE_SECONDS)


async def test_the_sync_ends_before_the_2xx_leaves(live: Live, trace: Callable[[], Traced]) -> None:
    """And before a peer is told that it is one."""
    live.post("/peers", name="far", path="/srv/far")
    traced = trace()
    headers = {"Authorization": f"Bearer {live.token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{live.port}", headers=headers) as session:
        ben = await session.ws_connect("/ws")
        await ben.send_json({"type": "connect", "display_name": "ben", "path": "/srv/ben"})
        assert (await ben.receive_json(timeout=DEADLINE_SECONDS))["type"] == "connected"

        async def post(path: str, /, **body: Any) -> Any:
            async with session.post(path, json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

        await post("/peers", name="ann", path="/srv/ann")
        await post("/notify", to_peer="far", text="queued")
        await post("/notify", to_peer="ben", text="straight through")
        asked = await post("/ask", to_peer="ben", from_peer="ann", text="ready?")
        await post("/ask", to_peer="far", from_peer="ann", text="later", if_offline="queue")
        await post("/ack", correlation_id=asked["correlation_id"], message="yes")
        await ben.close()
    answers = until(lambda: len(found := traced.answers("HTTP/1.1 200")) >= 6 and found)
    for answered in answers:
        traced.check(answered)
    (connected,) = traced.answers('"type": "connected"')
    traced.check(connected)


def test_the_sync_ends_before_each_of_many_2xx(live: Live, trace: Callable[[], Traced]) -> None:
    """Thirty-two at once share their syncs: each id stands in the log, and a sync follows, before it is told."""
    live.post("/peers", name="far", path="/srv/far")
    traced = trace()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: live.post("/notify", to_peer="far", text=f"note {n}"), range(32)))
    until(lambda: len(traced.answers("HTTP/1.1 200")) == 32)
    for one in answers:
        delivery_id = one["delivery_id"]
        (answered,) = [call for call in traced.answers("HTTP/1.1 200") if hexed(delivery_id) in call.data]
        traced.check(answered, delivery_id)


def test_an_allow_is_told_only_after_its_sync(live: Live, trace: Callable[[], Traced]) -> None:
    """To who answered, and to who waited: a tool that ran without its record would be one that nobody allowed."""
    body = {"prompt": "make", "scope": "tool_permission", "options": [{"id": "allow"}], "correlation_id": "p-1"}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(live.post, "/questions/ask-blocking", **body)
        until(lambda: live.get("/questions?state=open")["questions"])
        traced = trace()
        live.post("/answer", correlation_id="p-1", option_id="allow", message="a remark to be found by")
        assert waiting.result(DEADLINE_SECONDS)["decision"] == "allow"
    (told,) = until(lambda: traced.answers('"decision": "allow"'))
    traced.check(told, "a remark to be found by")
    (said,) = [one for one in traced.answers('{"ok": true}') if one.began]
    traced.check(said, "a remark to be found by")


# -- a full disk -------------------------------------------------------------------

ROOM = 24 << 20


@pytest.fixture
def small_disk(new_live: Callable[..., Live]) -> Iterator[Live]:
    """A daemon, not started yet, whose home is a file system of its own with little room."""
    live = new_live()
    with mounted(live.home, ROOM):
        yield live
        live.close()


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A small file system there, for a while."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root on Linux can mount a small file system")
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no small file system: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Take the room that is left, but for some."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    os.truncate(path, max(0, path.stat().st_size - leave))
    return path


def drained(live: Live, name: str) -> list[str]:
    """Everything that waits for a peer."""
    texts: list[str] = []
    while some := live.get(f"/deliveries/pending?peer_id={name}&max_results=1000")["deliveries"]:
        texts += [one["text"] for one in some]
    return texts


MANY = {"REPOWIRE_DAEMON__DELIVERY_QUEUE_MAX_PER_PEER": "100000"}


def told(live: Live, path: str, /, **body: Any) -> Any:
    """The answer to a POST, None when the daemon hung up instead."""
    try:
        return live.request("POST", path, body=body)
    except http.client.RemoteDisconnected:
        return None


def fill_by_mail(live: Live) -> tuple[list[str], list[Any]]:
    """Notes to `ann` until ten were not accepted; the texts of the others, and what was said instead of a 2xx."""
    fill(live.home, leave=2 << 20)
    accepted, others = [], []
    for number in range(1000):
        text = f"{number} " + "x" * 20_000
        reply = told(live, "/notify", to_peer="ann", text=text)
        if reply is not None and reply.status == 200:
            accepted.append(text)
        elif len(others := [*others, reply]) == 10:
            return accepted, others
    pytest.fail("the disk was never full")


@pytest.mark.parametrize("checkpoint_bytes", [1 << 20, 64 << 20])
def test_a_full_disk_loses_nothing_that_was_accepted(small_disk: Live, checkpoint_bytes: int) -> None:
    """The daemon lives, reads are answered, and with room it goes on; what was not accepted is not there."""
    live = small_disk.start(**MANY, REPOWIRE_STORE__CHECKPOINT_BYTES=str(checkpoint_bytes))
    live.post("/peers", name="ann", path="/srv/ann")
    accepted, _ = fill_by_mail(live)
    assert live.get("/health")["status"] == "ok"
    assert "ann" in [peer["display_name"] for peer in live.get("/peers")["peers"]]
    (live.home / "ballast").unlink()
    text = "there is room again"
    live.post("/notify", to_peer="ann", text=text)
    live.kill()
    live.start(**MANY)
    assert drained(live, "ann") == [*accepted, text]
    assert live.term() == 0
    with sqlite3.connect(live.home / "state.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_full_disk_is_said_in_the_one_shape(small_disk: Live) -> None:
    """503 for every way to write, and no stack trace."""
    live = small_disk.start(**MANY)
    live.post("/peers", name="ann", path="/srv/ann")
    _, others = fill_by_mail(live)
    big = "x" * 15_000
    others.append(told(live, "/peers", name="ben", path="/srv/ben", metadata={"big": big}))
    others.append(told(live, "/ask", to_peer="ann", text=big * 4, if_offline="queue"))
    for reply in others:
        assert reply is not None, "the daemon hung up"
        assert reply.status == 503
        detail = reply.json["detail"]
        assert detail["error"] == "store_failed"
        assert "full" in detail["hint"]
    assert "Traceback" not in live.stderr()


def test_a_full_disk_at_the_start_is_said_in_one_line(small_disk: Live) -> None:
    live = small_disk
    ballast = fill(live.home)
    done = live.cli("daemon", "--port", "0")
    clear_refusal(done)
    assert "space" in done.stderr or "full" in done.stderr, done.stderr
    ballast.unlink()
    live.start()
    live.post("/peers", name="ann", path="/srv/ann")
    assert live.term() == 0
    fill(live.home)
    done = live.cli("daemon", "--port", "0")
    if done.returncode:
        clear_refusal(done)


def test_a_ledger_that_cannot_be_written_does_not_stop_the_mail(new_live: Callable[..., Live]) -> None:
    """Its folder is a full disk of its own: numbers are spent, so that the gap shows, and every message is kept."""
    live = new_live()
    live.home.mkdir(mode=0o700)
    with mounted(live.home / "traces", 64 << 10):
        live.start()
        live.post("/peers", name="ann", path="/srv/ann")
        for number in range(20):
            live.post("/notify", to_peer="ann", text=f"{number} " + "x" * 10_000)
        assert live.request("GET", "/events").status == 200
        live.kill()
        live.start()
        assert len(drained(live, "ann")) == 20
        path = live.home / "traces" / "trace-000001.jsonl"
        seqs = [json.loads(line)["seq"] for line in path.read_text().splitlines()]
        assert seqs == sorted(set(seqs))
        assert seqs != list(range(1, len(seqs) + 1)), "nothing was lost"
        assert live.term() == 0
        assert "Traceback" not in live.stderr()


# -- files that are damaged ----------------------------------------------------------


def clear_refusal(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1, nothing on stdout, one line on stderr with these words."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def used(new_live: Callable[..., Live]) -> Live:
    """A home with a peer and its mail, of a daemon that has stopped."""
    live = new_live().start()
    live.post("/peers", name="ann", path="/srv/ann")
    for number in range(20):
        live.post("/notify", to_peer="ann", text=f"{number} " + "x" * 3000)
    assert live.term() == 0
    return live


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def newer_schema(live: Live) -> None:
    with sqlite3.connect(live.home / "state.db") as db:
        db.execute("UPDATE schemas SET steps = steps + 1 WHERE concern = 'peers'")


def foreign(live: Live) -> None:
    (live.home / "state.db").unlink()
    with sqlite3.connect(live.home / "state.db") as db:
        db.execute("CREATE TABLE theirs (a)")


def middle_of_the_ledger(live: Live) -> None:
    path = live.home / "traces" / "trace-000001.jsonl"
    raw = path.read_bytes()
    (live.home / "traces" / "trace-000002.jsonl").write_bytes(raw)


DAMAGE: dict[str, tuple[Callable[[Live], Any], str]] = {
    "garbage": (lambda live: (live.home / "state.db").write_bytes(os.urandom(40_960)), "state.db"),
    "a damaged page": (lambda live: overwrite(live.home / "state.db", 4096, bytes(4096 * 8)), "state.db"),
    "cut in the middle": (lambda live: os.truncate(live.home / "state.db", 8192), "state.db"),
    "of another program": (foreign, "state.db"),
    "a newer schema": (newer_schema, "newer repowire"),
    "a folder": (lambda live: ((live.home / "state.db").unlink(), (live.home / "state.db").mkdir()), "state.db"),
    "a ledger that starts anew": (middle_of_the_ledger, "trace-000002.jsonl"),
    "a ledger of garbage": (
        lambda live: overwrite(live.home / "traces" / "trace-000001.jsonl", 0, b"\0" * 50), "trace-000001.jsonl"
    ),
    "a ledger that is a folder": (
        lambda live: (live.home / "traces" / "trace-000002.jsonl").mkdir(), "trace-000002.jsonl"
    ),
    "a ledger's folder that is a file": (
        lambda live: (shutil.rmtree(live.home / "traces"), (live.home / "traces").touch()), "traces"
    ),
    "a token in two words": (lambda live: (live.home / "token").write_bytes(b"\xff\xfe\n"), "token"),
    "a token for all": (lambda live: (live.home / "token").chmod(0o644), "token"),
    "a config that is none": (lambda live: (live.home / "config.toml").write_text("[daemon\n"), "config.toml"),
    "a lock that is a folder": (
        lambda live: ((live.home / "daemon.lock").unlink(), (live.home / "daemon.lock").mkdir()), "daemon.lock"
    ),
    "a socket that is a folder": (
        lambda live: (live.home / "daemon.sock").mkdir(), "daemon.sock"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_home_is_refused_in_one_line(used: Live, damage: str) -> None:
    """With the file's name; and nothing of it is changed, so that it can be looked at and mended."""
    damaging, word = DAMAGE[damage]
    damaging(used)
    before = contents(used)
    clear_refusal(used.cli("daemon", "--port", "0"), word)
    assert contents(used) == before


def contents(live: Live) -> dict[Path, bytes]:
    """Of every file, save what says who runs and what SQLite makes anew."""
    paths = [path for path in live.home.rglob("*") if path.name not in ("daemon.lock", "state.db-shm")]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_a_torn_last_line_is_cut_and_said(used: Live) -> None:
    path = used.home / "traces" / "trace-000001.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq":99,"at":1.5,"kind":"ask.op')
    used.start()
    assert used.request("GET", "/events").status == 200
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["bytes"] for line in lines if line["kind"] == "ledger.cut"] == [33]
    assert len(drained(used, "ann")) == 20


def test_a_ledger_that_is_gone_is_a_gap_and_no_loss_of_mail(used: Live) -> None:
    shutil.rmtree(used.home / "traces")
    used.start()
    lines = [json.loads(line) for line in (used.home / "traces" / "trace-000001.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "ledger.gap"
    assert len(drained(used, "ann")) == 20


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a folder read-only")
def test_a_home_that_cannot_be_written_is_refused_in_one_line(used: Live) -> None:
    subprocess.run(["mount", "--bind", str(used.home), str(used.home)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(used.home)], check=True)
        clear_refusal(used.cli("daemon", "--port", "0"), "ead-only")
    finally:
        subprocess.run(["umount", "-l", str(used.home)], check=True)
    used.start()
    assert len(drained(used, "ann")) == 20


async def test_a_reply_that_a_full_disk_refused_is_given_again(small_disk: Live) -> None:
    """503 says that nothing was kept and to try again: who was asked does, and the asker gets his answer."""
    live = small_disk.start()
    live.post("/peers", name="ann", path="/srv/ann")
    refused = asyncio.Event()
    reply = "x" * 60_000

    class Client(AsyncRepowireClient):
        async def request(self, *arguments: Any, **more: Any) -> Any:
            try:
                return await super().request(*arguments, **more)
            except DaemonError:
                refused.set()
                raise

    def answer(message: Message) -> str:
        fill(live.home)
        return reply

    async with Client(home=live.home) as client:
        async with client.connect("ben", handler=answer, path="/srv/ben"):
            correlation_id = (await client.ask("ben", "ready?", from_peer="ann")).correlation_id
            await asyncio.wait_for(refused.wait(), DEADLINE_SECONDS)
            (live.home / "ballast").unlink()
            waited = await client.wait_ask(correlation_id, timeout_seconds=10)
    assert (waited.status, waited.reply) == ("resolved", reply)
