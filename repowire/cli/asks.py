"""`repowire ask`, `wait`, `ack`, `decline` and `asks`: questions, and what became of them."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from repowire.cli import command as c
from repowire.cli import whom
from repowire.client import DaemonAway, RepowireClient
from repowire.protocol import HUMAN

if TYPE_CHECKING:
    from repowire import shapes

WAIT_SECONDS = 300.0  # what a bare --wait waits
ROUND_SECONDS = 45.0  # one call's share of it, below the daemon's own cap
PROGRESS_SECONDS = 2.0
RETURN_SECONDS = 30.0  # how long a daemon that is being restarted may be away
AGAIN_SECONDS = 0.25
ENDS_WELL = ("ack", "ack_with_msg", "answered", "reply_to")  # close reasons, wire.md 5.1


def main(argv: list[str]) -> int:
    return {"ask": _ask, "wait": _wait, "ack": _ack, "decline": _decline, "asks": _asks}[argv[0]](argv[1:])


# -- ask and wait ----------------------------------------------------------------
def _ask(argv: list[str]) -> int:
    made = c.parser(
        "ask",
        "Ask a peer. In a pipe stdout is the ask's id alone, or with --wait the reply alone.",
        '  repowire ask build "what is the last commit?" --wait\n  git diff | repowire ask reviewer - --queue',
    )
    addressed(made)
    made.add_argument(
        "--wait",
        nargs="?",
        type=patience,
        const=WAIT_SECONDS,
        metavar="SECONDS",
        help=f"wait for the reply and print it (default {WAIT_SECONDS:g})",
    )
    made.add_argument("--queue", action="store_true", help="keep it for a peer that is offline")
    made.add_argument("--reply-to", metavar="ID", type=c.named, help="an ask to you that this one answers")
    c.with_json(made)
    return c.run(made, argv, ask)


def patience(text: str) -> float:
    """The seconds of --wait, which also takes none: then what follows it is easily taken for them."""
    try:
        return c.seconds(text)
    except argparse.ArgumentTypeError as wrong:
        raise argparse.ArgumentTypeError(f"{wrong}; a bare --wait stands at the end") from None


def addressed(made: argparse.ArgumentParser) -> None:
    """What every message has: to whom, what, and from whom."""
    made.add_argument("to", metavar="TO", help="a peer's name or id")
    made.add_argument("text", metavar="TEXT", help="what to say; - reads it from stdin")
    made.add_argument("--from", dest="sender", metavar="PEER", help="the sender (default: the agent you are, or human)")
    made.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")
    made.add_argument("--bypass-circle", action="store_true", help="cross into another circle")


def fields_of(args: argparse.Namespace) -> c.Json:
    """The fields of `addressed` as the daemon wants them."""
    return {"from_peer": args.sender, "circle": args.circle, "bypass_circle": args.bypass_circle or None}


def ask(args: argparse.Namespace) -> int:
    text = said(args.text)
    queue = "queue" if args.queue else None
    with c.client() as daemon:
        stranger = whom.stranger(daemon, args.sender)
        first = None if args.reply_to is None else whom.to_answer(daemon, args.reply_to)
        opened = daemon.ask(args.to, text, reply_to=args.reply_to, if_offline=queue, **fields_of(args))
        if stranger:
            wait_for_it = f"repowire wait {c.clean(opened['correlation_id'])}"
            c.note(f"repowire: {stranger}, so the reply reaches only who waits for it: {wait_for_it}")
        if args.wait is not None:
            c.hint(f"asked {to_whom(opened, args.to)}: {c.clean(opened['correlation_id'])}")
            try:
                _say_unanswered(daemon, first)
                return await_reply(daemon, opened["correlation_id"], args.wait, args.json, met=True)
            except DaemonAway:  # the ask was accepted, and in a pipe nobody has seen its id yet
                c.note(f"repowire: the ask is kept; wait on with: repowire wait {c.clean(opened['correlation_id'])}")
                raise
        correlation_id = c.clean(opened["correlation_id"])
        if args.json:
            c.put(c.to_json(opened))
        elif c.on_terminal():
            state = c.clean(opened.get("state") or opened.get("delivery_state") or "sent")
            c.put(f"asked {to_whom(opened, args.to)} ({state}); read the reply with: repowire wait {correlation_id}")
        else:
            c.put(correlation_id)
        _say_unanswered(daemon, first)
    return c.OK


def _say_unanswered(daemon: RepowireClient, first: "shapes.TracedMessage | None") -> None:
    if first is not None and (words := whom.unanswered(daemon, first)) is not None:
        c.note(f"repowire: {words}")


def said(words: str) -> str:
    """The text to send; none at all is a mistake of the caller."""
    text = c.text_of(words)
    if not text.strip():
        c.fail("there is no text to send; give it as an argument, or - and something on stdin", c.USAGE)
    return text


def to_whom(opened: Mapping[str, object], named: str) -> str:
    return c.clean(opened.get("to_peer") or opened.get("to_peer_name") or named)


def _wait(argv: list[str]) -> int:
    made = c.parser(
        "wait",
        "Wait for the reply to an ask and print it.",
        "  repowire wait ask-9f3c0a7d21be\n  repowire wait ask-9f3c0a7d21be --timeout 5 || echo 'not yet'",
    )
    made.add_argument("ask", metavar="ID", type=c.named, help="the ask's id")
    made.add_argument(
        "--timeout", type=c.seconds, default=WAIT_SECONDS, metavar="SECONDS", help="default %(default)g; then exit 4"
    )
    c.with_json(made)
    return c.run(made, argv, wait)


def wait(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        return await_reply(daemon, args.ask, args.timeout, args.json, met=False)


def await_reply(daemon: RepowireClient, correlation_id: str, timeout: float, as_json: bool, *, met: bool) -> int:
    """Print the reply; PENDING when there is none in time. A daemon that we `met` and that restarts is waited for."""
    progress = told_once(correlation_id) if sys.stderr.isatty() else None
    answer = wait_through(daemon, correlation_id, timeout, progress, met=met)
    if as_json:
        c.put(c.to_json(answer))
    if answer["status"] == "pending":
        again = f"repowire wait {c.clean(correlation_id)}"
        c.note(f"repowire: no reply within {timeout:g} s; it is still open, look again with: {again}")
        return c.PENDING
    reply, reason = answer.get("reply"), answer.get("close_reason")
    if reason not in (None, *ENDS_WELL):
        words = f"{c.clean(reason)}{': ' + c.clean(reply) if reply else ''}"
        c.note(f"repowire: {c.clean(correlation_id)} was closed without an answer: {words}")
        return c.FAILED
    if reply is None:
        c.hint(f"{c.clean(answer.get('responder') or 'the peer')} has acknowledged it without words")
    elif not as_json:
        c.put(c.clean(reply, lines=True) if c.on_terminal() else reply)
    return c.OK


def told_once(correlation_id: str) -> Callable[[], None]:
    """Says once that we wait, and for what."""
    said_already = False

    def tell() -> None:
        nonlocal said_already
        if not said_already:
            c.note(f"waiting for the reply to {c.clean(correlation_id)} (Ctrl-C leaves it open)")
        said_already = True

    return tell


def wait_through(
    daemon: RepowireClient, correlation_id: str, timeout: float, progress: Callable[[], None] | None, *, met: bool
) -> "shapes.Waited":
    """Wait call by call until resolved or `timeout`; the first call is short where somebody wants progress."""
    start = time.monotonic()
    lost_at: float | None = None
    share = PROGRESS_SECONDS if progress else ROUND_SECONDS
    while True:
        left = start + timeout - time.monotonic()
        try:
            answer = daemon.wait_ask(correlation_id, timeout_seconds=max(0.01, min(left, share)))
        except DaemonAway as away:
            lost_at, first = lost_at or time.monotonic(), lost_at is None
            if not (met or away.asked) or time.monotonic() - lost_at > min(RETURN_SECONDS, max(left, 0)):
                raise
            if first:
                c.hint("the daemon is away; waiting for it to come back")
            met = True
            time.sleep(AGAIN_SECONDS)  # between two attempts to connect there is nothing to wait for
            continue
        met, lost_at, share = True, None, ROUND_SECONDS
        if answer["status"] != "pending" or time.monotonic() >= start + timeout:
            return answer
        if progress:
            progress()


# -- ack -------------------------------------------------------------------------
def _ack(argv: list[str]) -> int:
    made = c.parser(
        "ack",
        "Close an ask, with a reply or without words. The same again changes nothing.",
        '  repowire ack ask-9f3c0a7d21be -m "yes, since 14:02"\n  make test 2>&1 | repowire ack ask-9f3c0a7d21be -m -',
    )
    made.add_argument("ask", metavar="ID", type=c.named, help="the ask's id")
    made.add_argument("-m", "--message", metavar="TEXT", help="the reply; - reads it from stdin")
    made.add_argument(
        "--from", "--from-peer", dest="sender", metavar="PEER", help="who answers (default: the agent you are)"
    )
    c.with_json(made)
    return c.run(made, argv, ack)


def ack(args: argparse.Namespace) -> int:
    message = None if args.message is None else said(args.message)
    with c.client() as daemon:
        closed = daemon.ack(args.ask, message=message, from_peer=args.sender)
    if args.json:
        c.put(c.to_json(closed))
    else:
        c.hint(f"{'answered' if message else 'closed'} {c.clean(args.ask)}")
    return c.OK


def _decline(argv: list[str]) -> int:
    made = c.parser(
        "decline",
        "Close an ask that you will not answer; whoever asked gets the reason. The same again changes nothing.",
        '  repowire decline ask-9f3c0a7d21be "not my repository: ask build"\n'
        "  tail -1 build.log | repowire decline ask-9f3c0a7d21be -",
    )
    made.add_argument("ask", metavar="ID", type=c.named, help="the ask's id")
    made.add_argument("reason", metavar="REASON", help="why; - reads it from stdin")
    c.with_json(made)
    return c.run(made, argv, decline)


def decline(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        closed = daemon.decline(args.ask, said(args.reason))
    if args.json:
        c.put(c.to_json(closed))
    else:
        c.hint(f"declined {c.clean(args.ask)}")
    return c.OK


# -- asks ------------------------------------------------------------------------
def _asks(argv: list[str]) -> int:
    made = c.parser(
        "asks",
        "List asks, newest first: the open ones, or with --answered those that have a reply.",
        "  repowire asks --answered\n  repowire asks --inbound --peer build",
    )
    state = made.add_mutually_exclusive_group()
    state.add_argument("--answered", action="store_true", help="those that were answered")
    state.add_argument("-a", "--all", action="store_true", help="open and closed")
    way = made.add_mutually_exclusive_group()
    way.add_argument("--inbound", action="store_true", help="only those to the peer")
    way.add_argument("--outbound", action="store_true", help="only those from the peer")
    way.add_argument("--direction", choices=("inbound", "outbound", "both"), help=argparse.SUPPRESS)  # as published
    made.add_argument(
        "--peer",
        "--peer-id",
        dest="peer",
        metavar="PEER",
        help="whose asks (default: everybody's; with --inbound or --outbound: human)",
    )
    made.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most N (default %(default)s)")
    c.with_json(made)
    return c.run(made, argv, asks)


def asks(args: argparse.Namespace) -> int:
    direction = args.direction or ("inbound" if args.inbound else "outbound" if args.outbound else "both")
    state = "answered" if args.answered else None if args.all else "open"
    peer = args.peer or (None if direction == "both" else HUMAN)
    with c.client() as daemon:
        page = daemon.asks_history(peer_id=peer, direction=direction, state=state, limit=args.limit)
    if args.json:
        c.put(c.to_json(page))
        return c.OK
    found = page["asks"]
    if not found:
        c.note(
            {"answered": "no ask was answered yet", "open": "no ask is open; --answered shows the others"}.get(
                state or "", "there are no asks"
            )
        )
        return c.OK
    head = ["ID", "FROM", "TO", "STATE", "SINCE", "TEXT", *(["REPLY"] if state != "open" else [])]
    c.table(head, [_row(ask)[: len(head)] for ask in found], {})
    if page.get("next"):
        c.hint(f"there are more: repowire asks --limit {args.limit * 2}")
    return c.OK


def _row(ask: "shapes.Ask") -> list[object]:
    state = ask.get("close_reason") or ask.get("state")
    if ask.get("state") == "open":
        state = ask.get("delivery_state") or "open"
    since = c.local(ask.get("closed_at") or ask.get("created_at"))
    return [ask["correlation_id"], ask["from_peer"], ask["to_peer"], state, since, ask["text"], ask.get("reply")]
