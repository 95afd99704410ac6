"""`repowire deliveries`: how messages stand, the dead ones above all, and what to do with them."""

import argparse
from collections.abc import Callable

from repowire.cli import command as c
from repowire.cli.messages import state_colour
from repowire.client import RepowireClient
from repowire.errors import Refusal

ACTS = ("retry", "drop")


def main(argv: list[str]) -> int:
    if argv[0] == "deliver":
        return _deliver(argv[1:])
    if len(argv) > 1 and argv[1] in ACTS:
        return _act(argv[1], argv[2:])
    made = c.parser(
        "deliveries",
        "List deliveries, newest first. A dead one (failed or expired) can be put back with `deliveries retry ID`, or"
        " taken off the list with `deliveries drop ID`, which also withdraws one that still waits.",
        "  repowire deliveries --dead\n  repowire deliveries retry notif-delivery-07d1c2a9b4ef",
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--dead", action="store_true", help="those that failed or expired and were not dropped")
    which.add_argument(
        "--state", metavar="STATE", help="queued, leased, held, handed, seen, answered, failed, expired, unknown"
    )
    made.add_argument("--peer", metavar="PEER", help="only to it or from it")
    made.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most N (default %(default)s)")
    c.with_json(made)
    return c.run(made, argv[1:], deliveries)


def deliveries(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        page = daemon.deliveries(dead=args.dead or None, state=args.state, peer=args.peer, limit=args.limit)
    if args.json:
        c.put(c.to_json(page))
        return c.OK
    found = page["deliveries"]
    if not found:
        c.note("nothing is dead" if args.dead else "there are no deliveries")
        return c.OK
    rows = [
        [
            one["delivery_id"],
            one["from_peer"],
            one["to_peer"],
            one["state"],
            one["reason"],
            c.local(one["created_at"]),
            one["text"],
        ]
        for one in found
    ]
    c.table(["ID", "FROM", "TO", "STATE", "REASON", "SINCE", "TEXT"], rows, {3: state_colour})
    if args.dead:
        c.hint("send one again with: repowire deliveries retry ID, or forget it with: repowire deliveries drop ID")
    if page.get("next"):
        c.hint(f"there are more: repowire deliveries --limit {args.limit * 2}")
    return c.OK


def _deliver(argv: list[str]) -> int:
    made = c.parser(
        "deliver",
        "Have a message that waits go in before all others: past a hold, and past hands that typed a moment ago, and"
        " past no other gate. Prints what became of it; exit 1 when it is held still.",
        "  repowire deliveries --state held\n  repowire deliver --now notif-delivery-07d1c2a9b4ef",
    )
    made.add_argument(
        "--now", required=True, metavar="ID", type=c.named, help="its id, as `repowire deliveries` shows it"
    )
    c.with_json(made)
    return c.run(made, argv, deliver)


def deliver(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        done = daemon.deliver_now(args.now)
    if args.json:
        c.put(c.to_json(done))
    else:
        c.put(c.clean(done["state"]) + (f": {c.clean(done['reason'])}" if done["reason"] else ""))
    return c.OK if done["state"] in ("handed", "seen", "answered") else c.FAILED


def _act(word: str, argv: list[str]) -> int:
    words = {
        "retry": "Put dead deliveries (failed or expired) back into their mailboxes, for another whole lifetime.",
        "drop": "Take dead deliveries off the list, or waiting ones out of their mailboxes; their senders are told.",
    }
    made = c.parser(f"deliveries {word}", words[word], f"  repowire deliveries {word} notif-delivery-07d1c2a9b4ef")
    made.add_argument(
        "ids", nargs="+", metavar="ID", type=c.named, help="a delivery's id, as `repowire deliveries --dead` shows it"
    )
    c.with_json(made)
    return c.run(made, argv, lambda args: act(word, args))


def act(word: str, args: argparse.Namespace) -> int:
    """Each by itself: one that is refused holds back none of the others."""
    code = c.OK
    with c.client() as daemon:
        one_by_one: Callable[[str], c.Json] = {
            "retry": RepowireClient.retry_delivery,
            "drop": RepowireClient.drop_delivery,
        }[word].__get__(daemon)
        for delivery_id in args.ids:
            try:
                done = one_by_one(delivery_id)
            except Refusal as no:
                c.note(f"repowire: {c.clean(c.refused(no))}")
                code = c.FAILED
                continue
            with c.before_it_is_done():  # the others
                c.put(c.to_json(done) if args.json else f"{c.clean(done['delivery_id'])}: {c.clean(done['state'])}")
    return code
