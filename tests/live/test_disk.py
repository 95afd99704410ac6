"""The disk: a 2xx follows the sync of what it promises, and a disk that is full or damaged is said in clear words."""

import concurrent.futures
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from conftest import DEADLINE_SECONDS, Live, until

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
        told = list(pool.map(lambda n: live.post("/notify", to_peer="far", text=f"note {n}"), range(32)))
    until(lambda: len(traced.answers("HTTP/1.1 200")) == 32)
    for one in told:
        delivery_id = one["delivery_id"]
        (answered,) = [call for call in traced.answers("HTTP/1.1 200") if hexed(delivery_id) in call.data]
        traced.check(answered, delivery_id)
