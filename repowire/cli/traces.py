"""`repowire trace` and `repowire tail`: what happened, and what happens."""

import argparse
from datetime import datetime
from fnmatch import fnmatchcase

from repowire.cli import command as c
from repowire.protocol import KINDS

NOT_FACTS = ("id", "type", "kind", "timestamp")
NOT_DETAILS = ("kind", "line")  # where a stage stands in the ledger: --json has it
NAMES = ("from", "from_peer", "to", "to_peer", "peer", "display_name")  # shown first, since they say who
TEXT_CHARS = 80


def main(argv: list[str]) -> int:
    return {"trace": _trace, "tail": _tail}[argv[0]](argv[1:])


# -- one trace -------------------------------------------------------------------
def _trace(argv: list[str]) -> int:
    made = c.parser(
        "trace",
        "Every step of one ask or message, with what proves it.",
        "  repowire trace ask-9f3c0a7d21be\n  repowire trace notif-delivery-07d1c2a9b4ef --json",
    )
    made.add_argument("id", metavar="ID", type=c.named, help="an ask's or a delivery's id")
    c.with_json(made)
    return c.run(made, argv, trace)


def trace(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        found = daemon.trace(args.id)
    if args.json:
        c.put(c.to_json(found))
        return c.OK
    rows, first = [], None
    for stage in found["stages"]:
        at = moment(stage.get("ts"))
        first = first or at
        after = f"+{(at - first).total_seconds():.3f}" if at and first else ""
        told = " ".join(
            f"{name}={value}"
            for name, value in (stage.get("detail") or {}).items()
            if name not in NOT_DETAILS and value not in (None, args.id)
        )
        rows.append([c.local(stage.get("ts")), after, stage["stage"], stage.get("status"), stage.get("peer_id"), told])
    head = ("TIME", "AFTER", "STAGE", "STATUS", "PEER", "DETAIL")
    c.table(head, rows, {3: lambda status: "green" if status == "ok" else "red"})
    return c.OK


def moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


# -- live events -----------------------------------------------------------------
def _tail(argv: list[str]) -> int:
    made = c.parser(
        "tail",
        "Live events, one a line, until Ctrl-C. A daemon that restarts is followed without loss or repeat.",
        "  repowire tail --kind 'ask.*'\n  repowire tail --since 0 --json | grep delivery",
    )
    start = made.add_mutually_exclusive_group()
    start.add_argument("--since", type=int, metavar="ID", help="begin after this event; 0 is the oldest kept")
    start.add_argument("-n", "--replay", type=int, metavar="N", help="begin with the last N events")
    made.add_argument(
        "--kind",
        action="append",
        metavar="KIND",
        help="only these, such as ask.opened, 'delivery.*' or ask; repeatable",
    )
    c.with_json(made)
    return c.run(made, argv, tail)


def tail(args: argparse.Namespace) -> int:
    for pattern in args.kind or ():
        if not any(wanted({"kind": kind, "type": known.event}, [pattern]) for kind, known in KINDS.items()):
            nouns = sorted({kind.partition(".")[0] for kind in KINDS})
            c.fail(f"no event is of kind {pattern!r}; there are those of {', '.join(nouns)}", c.USAGE)
    with c.client() as daemon:
        for event in daemon.stream(since=args.since, replay=args.replay):
            if wanted(event, args.kind):
                c.put(c.to_json(event) if args.json else line(event))
    return c.OK


def wanted(event: c.Json, patterns: list[str] | None) -> bool:
    """Whether its kind or its published type is among the wanted; `ask` stands for every ask.* too."""
    names = [str(event.get("kind") or ""), str(event.get("type") or "")]
    return not patterns or any(
        fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in names for pattern in patterns
    )


def line(event: c.Json) -> str:
    """Moment, number, kind, then who and the rest; cut to the terminal."""
    who = [f"{name}={event[name]}" for name in NAMES if event.get(name)]
    rest = [
        f"{name}={str(value)[:TEXT_CHARS]}"
        for name, value in event.items()
        if name not in NOT_FACTS and name not in NAMES and value not in (None, "", [], {})
    ]
    kind = c.clean(event.get("kind") or event.get("type"))
    at = c.local(event.get("timestamp"), "%H:%M:%S")
    plain = f"{at}  {c.clean(event.get('id')):>6}  {kind:<18}  {c.clean(' '.join([*who, *rest]))}"
    limit = c.room()
    shown = plain if limit is None else c.cut(plain, limit)
    return shown.replace(kind, c.colour(kind, "bold"), 1)
