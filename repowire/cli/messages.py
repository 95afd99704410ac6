"""`repowire notify`, `broadcast`, `query`, `inbox` and `messages`: what is said, heard, and was said."""

import argparse
import sys
from typing import TYPE_CHECKING

from repowire.cli import asks, whom
from repowire.cli import command as c
from repowire.client import RepowireClient
from repowire.protocol import HUMAN

if TYPE_CHECKING:
    from repowire import shapes

INBOX_MOST = 1000
QUERY_SECONDS = 300.0


def main(argv: list[str]) -> int:
    return {"notify": _notify, "broadcast": _broadcast, "query": _query, "inbox": _inbox, "messages": _messages}[
        argv[0]
    ](argv[1:])


# -- notify and broadcast ----------------------------------------------------------
def _notify(argv: list[str]) -> int:
    made = c.parser(
        "notify",
        "Tell a peer something. It is kept for a peer that is offline. In a pipe stdout is the delivery's id alone.",
        '  repowire notify build "main is frozen until 15:00"\n  make test 2>&1 | tail -20 | repowire notify build -',
    )
    asks.addressed(made)
    c.with_json(made)
    return c.run(made, argv, notify)


def notify(args: argparse.Namespace) -> int:
    text = asks.said(args.text)
    with c.client() as daemon:
        stranger = whom.stranger(daemon, args.sender)
        sent = daemon.notify(args.to, text, **asks.fields_of(args))
    delivery_id = c.clean(sent["delivery_id"])
    if args.json:
        c.put(c.to_json(sent))
    elif c.on_terminal():
        state = c.clean(sent.get("state") or sent.get("delivery_state"))
        c.put(f"{asks.to_whom(sent, args.to)}: {state}; follow it with: repowire trace {delivery_id}")
    else:
        c.put(delivery_id)
    if stranger:
        c.note(f"repowire: {stranger}, so no answer can come back")
    return c.OK


def _broadcast(argv: list[str]) -> int:
    made = c.parser(
        "broadcast",
        "Tell everybody who is connected now. In a pipe stdout is the broadcast's id alone.",
        '  repowire broadcast "main is frozen until 15:00"\n  repowire broadcast "pull, please" --exclude build',
    )
    made.add_argument("text", metavar="TEXT", help="what to say; - reads it from stdin")
    made.add_argument("--exclude", action="append", metavar="PEER", help="not to this one; may be given several times")
    made.add_argument("--from", dest="sender", metavar="PEER", help="the sender (default: the agent you are, or human)")
    made.add_argument("--bypass-circle", action="store_true", help="to every circle")
    c.with_json(made)
    return c.run(made, argv, broadcast)


def broadcast(args: argparse.Namespace) -> int:
    text = asks.said(args.text)
    with c.client() as daemon:
        whom.spared(daemon, args.exclude or ())
        stranger = whom.stranger(daemon, args.sender)
        sent = daemon.broadcast(
            text, exclude=args.exclude, from_peer=args.sender, bypass_circle=args.bypass_circle or None
        )
    broadcast_id = c.clean(sent["broadcast_id"])
    if args.json:
        c.put(c.to_json(sent))
    elif c.on_terminal():
        names = ", ".join(c.clean(name) for name in sent["sent_to"]) or "nobody (no other peer is connected)"
        c.put(f"told {names}; follow it with: repowire trace {broadcast_id}")
    else:
        c.put(broadcast_id)
    if stranger:
        c.note(f"repowire: {stranger}, so it went to every circle, and no answer can come back")
    for one in sent["failed"]:
        c.note(f"repowire: not {c.clean(one['peer'])}: {c.clean(one['error'])}")
    return c.FAILED if sent["failed"] else c.OK


# -- query -------------------------------------------------------------------------
def _query(argv: list[str]) -> int:
    made = c.parser(
        "query",
        "Ask a peer that is idle and print its reply, in one request. A peer that is busy or offline is not asked.",
        '  repowire query build "what is the last commit?" -t 60\n  git diff | repowire query reviewer -',
    )
    asks.addressed(made)
    made.add_argument(
        "-t", "--timeout", type=c.seconds, default=QUERY_SECONDS, metavar="SECONDS", help="default %(default)g"
    )
    c.with_json(made)
    return c.run(made, argv, query)


def query(args: argparse.Namespace) -> int:
    text = asks.said(args.text)
    c.hint(f"waiting at most {args.timeout:g} s for {c.clean(args.to)}")
    with c.client() as daemon:
        stranger = whom.stranger(daemon, args.sender)
        got = daemon.query(args.to, text, timeout=args.timeout, **asks.fields_of(args))
    if args.json:
        c.put(c.to_json(got))
    if error := got.get("error"):
        c.note(f"repowire: {c.clean(error)}")
        return c.PENDING if got.get("correlation_id") and "stays open" in error else c.FAILED
    if not args.json:
        text = got["text"] or ""
        c.put(c.clean(text, lines=True) if c.on_terminal() else text)
    if stranger:
        c.note(f"repowire: {stranger}, so the reply came back here alone")
    return c.OK


# -- inbox -------------------------------------------------------------------------
def _inbox(argv: list[str]) -> int:
    made = c.parser(
        "inbox",
        "Read the mail that waits for a peer, and take it out of its mailbox. What could not be printed stays there.",
        "  repowire inbox\n  repowire inbox --peer build --json",
    )
    whose = made.add_mutually_exclusive_group()
    whose.add_argument("--peer", "--peer-id", dest="peer", metavar="PEER", help=f"whose mail (default: {HUMAN})")
    whose.add_argument("--pane-id", metavar="PANE", help="of the peer in this tmux pane, such as %%3")
    made.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most N (default %(default)s)")
    c.with_json(made)
    return c.run(made, argv, inbox)


def inbox(args: argparse.Namespace) -> int:
    if not 1 <= args.limit <= INBOX_MOST:
        c.fail(f"-n takes a whole number from 1 to {INBOX_MOST}", c.USAGE)
    if "" in (args.peer, args.pane_id):  # an unset variable of a script: its mail is not the human's
        c.fail("--peer and --pane-id must not be empty", c.USAGE)
    with c.client() as daemon:
        peer = args.peer or (None if args.pane_id else HUMAN)
        got = daemon.pick_up(peer_id=peer, pane_id=args.pane_id, max_results=args.limit)
        if args.json:
            c.put(c.to_json(got))
        for one in () if args.json else got["deliveries"]:
            _put_mail(one)
        sys.stdout.flush()  # printed: only now it may be called handed
        if got["lease"]:
            daemon.confirm(got["lease"])
    if not got["deliveries"]:
        c.note(f"no mail waits for {c.clean(peer or args.pane_id)}")
    return c.OK


def _put_mail(one: "shapes.PickedUp") -> None:
    cid = one.get("correlation_id")
    answer = f" · answer with: repowire ack {c.clean(cid)} -m …" if cid else ""
    head = f"@{c.clean(one['from_peer'])} · {c.clean(one['kind'])} · {c.local(one['created_at'])}{answer}"
    c.put(f"{c.colour(head, 'bold')}\n{c.clean(one['text'], lines=True)}\n")


# -- messages ------------------------------------------------------------------------
def _messages(argv: list[str]) -> int:
    made = c.parser(
        "messages",
        "List all that was said, newest first, and how each message stands; or show one by its id.",
        "  repowire messages --peer build --kind reply\n  repowire messages ask-9f3c0a7d21be",
    )
    made.add_argument("id", nargs="?", metavar="ID", type=c.named, help="show this one whole")
    made.add_argument("--peer", metavar="PEER", help="only to it or from it")
    made.add_argument("-c", "--circle", type=c.circle, help="only to peers of this circle")
    made.add_argument("--kind", choices=("ask", "notify", "broadcast", "reply"))
    made.add_argument(
        "--state", metavar="STATE", help="queued, leased, held, handed, seen, answered, failed, expired, unknown"
    )
    made.add_argument("--since", metavar="MOMENT", help="ISO-8601, such as 2026-11-25T09:30:00+01:00; else UTC")
    made.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most N (default %(default)s)")
    c.with_json(made)
    return c.run(made, argv, messages)


def messages(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        if args.id is not None:
            return _show(daemon, args)
        page = daemon.messages(
            peer=args.peer, circle=args.circle, kind=args.kind, state=args.state, since=args.since, limit=args.limit
        )
    if args.json:
        c.put(c.to_json(page))
        return c.OK
    if not page["messages"]:
        c.note(
            "nothing was said yet" if not (args.peer or args.kind or args.state) else "nothing of that kind was said"
        )
        return c.OK
    rows = [
        [
            one["id"],
            one["kind"],
            one["from_peer"],
            one["to_peer"],
            one["state"],
            c.local(one["created_at"]),
            one["text"],
        ]
        for one in page["messages"]
    ]
    c.table(["ID", "KIND", "FROM", "TO", "STATE", "SINCE", "TEXT"], rows, {4: state_colour})
    if page.get("next"):
        c.hint(f"there are more: repowire messages --limit {args.limit * 2}")
    return c.OK


def state_colour(state: str) -> str:
    """How a delivery's state is coloured."""
    if state in ("seen", "answered"):
        return "green"
    return "red" if state in ("failed", "expired", "unknown") else "yellow" if state in ("queued", "held") else "dim"


def _show(daemon: RepowireClient, args: argparse.Namespace) -> int:
    one = daemon.message(args.id)
    if args.json:
        c.put(c.to_json(one))
        return c.OK
    names = ("id", "kind", "from_peer", "to_peer", "state", "reason", "ask_state", "close_reason", "delivery_id")
    c.facts([*((name, one.get(name)) for name in names), ("created_at", c.local(one["created_at"]))])
    c.put(f"\n{c.clean(one['text'], lines=True)}")
    if one.get("reply"):
        c.put(f"\n{c.colour('reply', 'dim')}  {c.clean(one['reply'], lines=True)}")
    c.hint(f"\nevery step: repowire trace {c.clean(one['trace_id'])}")
    return c.OK
