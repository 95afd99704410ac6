"""`repowire notify`: something to tell that wants no answer."""

import argparse

from repowire.cli import asks
from repowire.cli import command as c


def main(argv: list[str]) -> int:
    made = c.parser(
        "notify",
        "Tell a peer something. It is kept for a peer that is offline. In a pipe stdout is the delivery's id alone.",
        '  repowire notify build "main is frozen until 15:00"\n  make test 2>&1 | tail -20 | repowire notify build -',
    )
    asks.addressed(made)
    c.with_json(made)
    return c.run(made, argv[1:], notify)


def notify(args: argparse.Namespace) -> int:
    text = asks.said(args.text)
    with c.client() as daemon:
        sent = daemon.notify(args.to, text, **asks.fields_of(args))
    delivery_id = c.clean(sent["delivery_id"])
    if args.json:
        c.put(c.to_json(sent))
    elif c.on_terminal():
        state = c.clean(sent.get("state") or sent.get("delivery_state"))
        c.put(f"{asks.to_whom(sent, args.to)}: {state}; follow it with: repowire trace {delivery_id}")
    else:
        c.put(delivery_id)
    return c.OK
