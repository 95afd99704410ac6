"""`repowire approvals watch`: each question as it comes, answered by a key, or gone when it was answered elsewhere.

A key is for what stands on the screen: one that was pressed before, within a moment after, or that came with or soon
after others (a paste, or the end of an arrow key that came in pieces), answers nothing. The answer carries the digest
of what was shown, so the daemon refuses it for anything else.
"""

import argparse
import os
import queue
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from repowire.cli import calls
from repowire.cli import command as c
from repowire.client import DaemonAway, RepowireClient
from repowire.errors import Refusal

if TYPE_CHECKING:
    from repowire import shapes

AGAIN_SECONDS = 1.0  # between two looks for a daemon that is away
LOOK_SECONDS = 0.5  # a key that comes sooner after a question was meant for what stood there before
ELSEWHERE_SECONDS = 1.0  # more, where it took the place of one that somebody else answered: nobody expects that
TOGETHER_SECONDS = 0.05  # keys with less between them came together
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PAGE = 500
ENDS = ("question.answered", "question.closed")
KEYS = {"a": calls.ALLOW, "y": calls.ALLOW, "d": calls.DENY}


def run(args: argparse.Namespace) -> int:
    """Until q, Ctrl-C or the end of whoever reads."""
    keys = not args.json and sys.stdin.isatty() and c.on_terminal()
    with c.client() as daemon:
        watch = Watch(daemon, as_json=args.json, keys=keys)
        with _keyboard(keys):
            return watch.run()


@contextmanager
def _keyboard(wanted: bool) -> Iterator[None]:
    """Single keys without echo, and the terminal as it was afterwards, also when a signal ends this."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(sys.stdin.fileno())
    ended = {one: signal.signal(one, lambda number, frame: sys.exit(128 + number)) for one in ENDING}
    try:
        tty.setcbreak(sys.stdin.fileno())
        yield
    finally:
        with suppress(termios.error):  # it hung up
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        for one, handler in ended.items():
            signal.signal(one, handler)


class Events:
    """The daemon's events from another thread; `ready` can be selected on. An event of None: no daemon answers."""

    def __init__(self, since: str) -> None:
        self._since, self._came = since, queue.SimpleQueue[c.Json | Refusal | None]()
        self.ready, self._bell = os.pipe()
        threading.Thread(target=self._follow, daemon=True).start()

    def take(self) -> Iterator[c.Json | None]:
        """What came; raises Refusal when the daemon tells us nothing more, such as after its token was changed."""
        os.read(self.ready, 65_536)
        while not self._came.empty():
            if isinstance(event := self._came.get(), Refusal):
                raise event
            yield event

    def _follow(self) -> None:
        never = threading.Event()
        while not never.wait(0):
            try:
                for event in c.client().stream(since=self._since, patience=AGAIN_SECONDS):
                    self._since = event["id"]
                    if str(event.get("kind", "")).startswith("question."):
                        self._say(event)
            except (DaemonAway, TimeoutError):
                self._say(None)
                never.wait(AGAIN_SECONDS)
            except Refusal as no:
                self._say(no)
                return

    def _say(self, event: c.Json | Refusal | None) -> None:
        self._came.put(event)
        os.write(self._bell, b".")


def pressed(file: int) -> bytes:
    """The keys that are there and those that come together with them; b"" at the end of the terminal."""
    came = os.read(file, 1024)
    end_at = time.monotonic() + LOOK_SECONDS
    while came and time.monotonic() < end_at and select.select([file], (), (), TOGETHER_SECONDS)[0]:
        more = os.read(file, 1024)
        if not more:
            break
        came += more
    return came


class Watch:
    """What waits, which of it stands on the screen, and since when."""

    def __init__(self, daemon: RepowireClient, *, as_json: bool, keys: bool) -> None:
        self.daemon, self.as_json, self.keys = daemon, as_json, keys
        self.waiting: dict[str, shapes.Question] = {}
        self.shown: str | None = None
        self.shown_at = 0.0
        self.wrong_at = -LOOK_SECONDS  # when a key came last that answers nothing
        self.away = False
        self.taken = False  # whether what stood there was answered elsewhere
        self.rows = 0  # of what stands on the screen
        self.told = False  # whether something was said below it since

    def run(self) -> int:
        newest = self.daemon.events(limit=1)
        events = Events(newest[-1]["id"] if newest else "0")  # before the list: what comes meanwhile is heard
        self.look()
        if self.keys and not self.waiting:
            c.note("nothing waits for you; q ends")
        while True:
            self.present()
            sources: list[int] = [events.ready, *([sys.stdin.fileno()] if self.keys else [])]
            readable = select.select(sources, (), ())[0]
            if events.ready in readable:
                for event in events.take():
                    self.hear(event)
                self.again()
            elif self.key(pressed(sys.stdin.fileno())):
                return c.OK

    # -- what comes ------------------------------------------------------------

    def look(self) -> None:
        """What is open now, oldest first; what is not open any more is gone."""
        found = self.daemon.questions(state="open", limit=PAGE)["questions"]
        self.waiting = {one["correlation_id"]: one for one in reversed(found)}
        if not self.keys:
            for one in self.waiting.values():
                self.tell("question.asked", one)

    def hear(self, event: c.Json | None) -> None:
        if event is None:
            if not self.away:
                self.note("no daemon answers; looking for it …")
            self.away = True
            return
        if self.away:
            self.away = False
            self.note("the daemon is there again")
        name = str(event.get("correlation_id"))
        if event["kind"] == "question.asked" and name not in self.waiting:
            self.asked(name)
        elif event["kind"] in ENDS and self.waiting.pop(name, None) is not None:
            self.ended(name)

    def asked(self, name: str) -> None:
        found = self._load(name)
        if found is not None and found["state"] == "open":
            self.waiting[name] = found
            if not self.keys:
                self.tell("question.asked", found)
            self.told = True

    def ended(self, name: str) -> None:
        found = self._load(name)
        if found is not None and not self.keys:
            self.tell("question.closed", found)
        elif found is not None:
            c.put(c.colour(f"{calls.inline(name)}: {calls.ended(found)}", "dim"))
            self.told = True
        if self.shown == name:
            self.shown, self.taken = None, True

    def _load(self, name: str) -> "shapes.Question | None":
        try:
            return self.daemon.question(name)
        except (Refusal, DaemonAway):  # too old by now; or away, and its end will be told
            return None

    def tell(self, kind: str, question: "shapes.Question") -> None:
        """For whoever reads a pipe: a line of JSON, or the whole in words."""
        if self.as_json:
            c.put(c.to_json({"kind": kind, "question": question}))
            return
        for line in calls.whole(question) if kind == "question.asked" else ():
            c.put(line)
        c.put(f"{calls.inline(question['correlation_id'])}: {calls.ended(question)}")

    # -- the screen ------------------------------------------------------------

    def present(self) -> None:
        """The oldest that waits, when none stands there; what was typed before it is thrown away."""
        if not self.waiting:
            self.taken = False  # what comes next takes nobody's place
        if not self.keys or self.shown is not None or not self.waiting:
            return
        self.shown, question = next(iter(self.waiting.items()))
        rows = list(calls.whole(question, c.screen()[0]))
        for row in rows:
            c.put(row)
        self.rows = len(rows)
        self.say_keys()
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        self.shown_at = time.monotonic() + (ELSEWHERE_SECONDS if self.taken else 0.0)
        self.taken = False

    def again(self) -> None:
        """Name the keys once more, and what they are for, where something else stands between them and it now."""
        if self.shown is not None and self.told:
            self.say_keys()
        self.told = False

    def say_keys(self) -> None:
        """What answers the question on the screen; what of it went out at the top; and how many more there are."""
        assert self.shown is not None
        question, name = self.waiting[self.shown], calls.inline(self.shown)
        if (above := self.rows + 2 - c.screen()[1]) > 0:
            look = f"scroll up before you answer, or: repowire approvals show {name} | less"
            c.put(c.colour(f"{above} rows of it are above this screen; {look}", "yellow"))
        more = f" · {len(self.waiting) - 1} more" if len(self.waiting) > 1 else ""
        keys = f"{self.offer(question)} · n later · q quit{more}"
        c.put(c.colour(f"{name} {calls.ended(question)} · {keys}", "bold"))

    def note(self, words: str) -> None:
        """A word for people, below what stands there."""
        c.note(words)
        self.told = True

    def offer(self, question: "shapes.Question") -> str:
        """Which keys answer it."""
        if question["scope"] == "tool_permission":
            return "a allow · d deny"
        numbered = [f"{n} {calls.inline(one['title'])}" for n, one in enumerate(question["options"][:9], 1)]
        return " · ".join(numbered) or f"repowire approvals answer {question['correlation_id']} --text …"

    def key(self, pressed: bytes) -> bool:
        """What a key does; True when it ends all."""
        if not pressed or pressed == b"\x04":
            return True
        letter = pressed.decode("ascii", "replace").lower()
        if letter == "q":
            return True
        if self.shown is None:
            return False
        question = self.waiting[self.shown]
        if letter == "n":
            self.waiting[self.shown] = self.waiting.pop(self.shown)
            self.shown = None
            return False
        said = self.meant(letter, question)
        now = time.monotonic()
        if said is None:
            c.note("not answered: press one of the keys above")
            self.wrong_at = now
        elif now - self.shown_at < LOOK_SECONDS:
            c.note("not answered: that key came before you could have read it")
        elif now - self.wrong_at < LOOK_SECONDS:
            c.note("not answered: that key came with others; press it again")
        else:
            self.send(question, said)
        return False

    def meant(self, letter: str, question: "shapes.Question") -> dict[str, Any] | None:
        """What a key answers; None for one that answers nothing, and for several at once."""
        offered = [one["id"] for one in question["options"]]
        if question["scope"] == "tool_permission":
            option = KEYS.get(letter)
            return calls.choice(option, offered) if option is not None else None
        if len(letter) == 1 and letter.isdigit() and 0 < int(letter) <= min(9, len(offered)):
            return {"option_id": offered[int(letter) - 1]}
        return None

    def send(self, question: "shapes.Question", said: dict[str, Any]) -> None:
        name = question["correlation_id"]
        try:
            self.daemon.answer(name, **said, surface="cli", digest=question["digest"])
        except DaemonAway as away:
            c.note(f"{name}: not answered, or nobody knows: {away}")
            return
        except Refusal as no:
            c.note(f"{name}: {c.clean(no.hint)}")
            if no.status not in (404, 409):
                return
        else:
            words = said.get("option_id") or said.get("outcome")
            c.put(c.colour(f"{name}: you said {calls.inline(str(words))}", "green" if words == calls.ALLOW else "red"))
        self.waiting.pop(name, None)
        self.shown = None
