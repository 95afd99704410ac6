"""`repowire ask-many` and `answers`: one question to several peers, and what each said."""

import argparse
import sys
import time

from repowire.cli import asks, whom
from repowire.cli import command as c
from repowire.client import RepowireClient


def main(argv: list[str]) -> int:
    return _ask_many(argv[1:]) if argv[0] == "ask-many" else _answers(argv[1:])


def _ask_many(argv: list[str]) -> int:
    made = c.parser(
        "ask-many",
        "Put one question to several peers at once. In a pipe stdout is its id alone, or with --wait what they said.",
        '  repowire ask-many build,reviewer "is main green?" --wait 60\n'
        "  git diff | repowire ask-many reviewer,security - --queue",
    )
    made.add_argument("to", metavar="TO", help="names or ids, with commas between")
    made.add_argument("text", metavar="TEXT", help="what to ask; - reads it from stdin")
    made.add_argument("--from", dest="sender", metavar="PEER", help="the sender (default: the agent you are, or human)")
    made.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")
    made.add_argument("--bypass-circle", action="store_true", help="cross into another circle")
    made.add_argument("--queue", action="store_true", help="keep it for peers that are offline")
    made.add_argument(
        "--wait",
        nargs="?",
        type=asks.patience,
        const=asks.WAIT_SECONDS,
        metavar="SECONDS",
        help=f"wait until all have answered and print it (default {asks.WAIT_SECONDS:g})",
    )
    c.with_json(made)
    return c.run(made, argv, ask_many)


def ask_many(args: argparse.Namespace) -> int:
    text, names = asks.said(args.text), [name.strip() for name in args.to.split(",") if name.strip()]
    if not names:
        c.fail("name at least one peer, with commas between: build,reviewer", c.USAGE)
    queue = "queue" if args.queue else None
    with c.client() as daemon:
        stranger = whom.stranger(daemon, args.sender)
        opened = daemon.ask_many(names, text, if_offline=queue, timeout_seconds=args.wait, **asks.fields_of(args))
        parent_id = c.clean(opened["parent_id"])
        if stranger:
            c.note(f"repowire: {stranger}, so the replies reach only who looks: repowire answers {parent_id}")
        for child in opened["children"]:
            if child["error"]:
                c.note(f"repowire: not asked: {c.clean(child['peer'])}: {c.clean(child['error'])}")
        asked = [child["correlation_id"] for child in opened["children"] if child["correlation_id"]]
        if args.wait is not None:
            c.hint(f"asked {len(asked)} of {len(opened['children'])} ({parent_id}); Ctrl-C leaves them open")
            return await_answers(daemon, opened["parent_id"], asked, args.wait, args.json)
    if args.json:
        c.put(c.to_json(opened))
    elif c.on_terminal():
        c.put(f"asked {len(asked)} of {len(opened['children'])}; read the answers with: repowire answers {parent_id}")
    else:
        c.put(parent_id)
    return c.OK if asked else c.FAILED


def await_answers(daemon: RepowireClient, parent_id: str, asked: list[str], timeout: float, as_json: bool) -> int:
    """Wait for one after the other, each call woken by its answer, and print the roll-up."""
    end_at = time.monotonic() + timeout
    for number, correlation_id in enumerate(asked):
        asks.wait_through(daemon, correlation_id, max(0.0, end_at - time.monotonic()), None, met=True)
        if sys.stderr.isatty() and len(asked) > 1:
            c.note(f"{number + 1} of {len(asked)}")
    return show(daemon, parent_id, as_json)


def _answers(argv: list[str]) -> int:
    made = c.parser(
        "answers",
        "Show what became of an ask-many: who answered what, who declined, and who has not answered yet.",
        "  repowire answers askm-9f3c0a7d21be\n  repowire answers askm-9f3c0a7d21be --json | jq .rollup",
    )
    made.add_argument("id", metavar="ID", type=c.named, help="the id that ask-many printed")
    c.with_json(made)
    return c.run(made, argv, answers)


def answers(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        return show(daemon, args.id, args.json)


def show(daemon: RepowireClient, parent_id: str, as_json: bool) -> int:
    """Print the roll-up; PENDING while somebody has not answered, FAILED when somebody never will."""
    whole = daemon.ask_many_result(parent_id)
    if as_json:
        c.put(c.to_json(whole))
    else:
        rows = [
            [one["peer"], one["status"], one["correlation_id"], one["reply"] or one["error"] or one["close_reason"]]
            for one in whole["children"]
        ]
        colours = {"replied": "green", "acked": "green", "pending": "yellow", "failed": "red"}
        c.table(["PEER", "STATUS", "ASK", "REPLY"], rows, {1: lambda status: colours.get(status, "dim")})
    count = whole["rollup"]
    return c.PENDING if count["pending"] else c.FAILED if count["failed"] else c.OK
