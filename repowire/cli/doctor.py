"""`repowire peer rehook`: a peer's way in, tried and mended."""

import argparse
from collections.abc import Callable

from repowire.cli import command as c

Verb = Callable[[str, str, str, c.Run], argparse.ArgumentParser]
SECONDS = 40.0  # a rehook takes a ping, a wait for the old program and one for the new


def add(verb: Verb) -> None:
    """The verbs of `repowire peer` that are about how one fares."""
    example = "  repowire peer rehook ann\n  repowire peer rehook ann --apply"
    made = verb("rehook", "try the way into a peer's pane; with --apply mend it", example, rehook)
    _named(made)
    made.add_argument("--apply", action="store_true", help="open another way where this one is proved dead")


def _named(made: argparse.ArgumentParser) -> None:
    made.add_argument("name", metavar="NAME", help="its name or its id")
    made.add_argument("-c", "--circle", help="the circle to look in")


def rehook(args: argparse.Namespace) -> int:
    with c.client(SECONDS) as daemon:
        done = daemon.rehook_peer(args.name, circle=args.circle, apply=args.apply)
    c.put(c.to_json(done) if args.json else c.clean(done["reason"]))
    fine = done["reason"] in ("already_healthy", "respawned")
    if not fine:
        c.note(f"repowire: {c.clean(done['detail'])}" + ("" if done["acted"] else "; mend it with --apply"))
    return c.OK if fine else c.FAILED
