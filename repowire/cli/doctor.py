"""`repowire doctor`, `repowire peer doctor` and `peer rehook`: what is wrong, the evidence, and what mends it."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from repowire.cli import command as c
from repowire.client import RepowireClient

if TYPE_CHECKING:
    from repowire import shapes

Verb = Callable[[str, str, str, c.Run], argparse.ArgumentParser]
SECONDS = 40.0  # a rehook takes a ping, a wait for the old program and one for the new
SEVERITY_COLOURS = {"error": "red", "warning": "yellow"}
FIELDS = (
    ("status", "status"),
    ("turn", "turn_state"),
    ("says", "says"),
    ("way in", "way_in"),
    ("pane", "pane_id"),
    ("pane there", "tmux_pane_exists"),
    ("socket's pane", "ws_pane_id"),
    ("process", "agent_pid"),
    ("alive", "agent_pid_alive"),
    ("hooks speak for", "hook_meta_display_name"),
    ("open asks", "pending_inbound_count"),
    ("waiting", "waiting"),
)


def main(argv: list[str]) -> int:
    made = c.parser(
        "doctor",
        "How this host is: the daemon, tmux, what serves the panes, and each peer that is not offline. Exit 1 when"
        " anything is an error, so that a script can stand on it; warnings alone are 0.",
        "  repowire doctor\n  repowire doctor --json | jq '.checks[] | select(.ok | not)'",
    )
    c.with_json(made)
    return c.run(made, argv[1:], show_host)


def add(verb: Verb) -> None:
    """The verbs of `repowire peer` that are about how one fares."""
    example = "  repowire peer doctor ann\n  repowire peer doctor ann --fix"
    made = verb("doctor", "what is wrong with a peer, the evidence, and what mends it", example, show_peer)
    _named(made)
    made.add_argument("--fix", action="store_true", help="mend what can be mended without touching its pane")
    example = "  repowire peer rehook ann\n  repowire peer rehook ann --apply"
    made = verb("rehook", "try the way into a peer's pane; with --apply mend it", example, rehook)
    _named(made)
    made.add_argument("--apply", action="store_true", help="open another way where this one is proved dead")

    example = "  repowire peer hold ann --seconds 1800 --reason 'in a demo'\n  repowire peer hold ann"
    made = verb("hold", "keep all mail from a peer until it is released; nothing is lost", example, hold)
    _named(made)
    made.add_argument("--seconds", type=c.seconds, metavar="N", help="only for so long")
    made.add_argument("--reason", help="what others are told")
    example = "  repowire peer release ann\n  repowire peer release ann --circle night"
    _named(verb("release", "let the mail of a held peer through again", example, release))


def _named(made: argparse.ArgumentParser) -> None:
    made.add_argument("name", metavar="NAME", help="its name or its id")
    made.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")


# -- one peer ----------------------------------------------------------------------


def show_peer(args: argparse.Namespace) -> int:
    with c.client(SECONDS) as daemon:
        found = daemon.peer_doctor(args.name, circle=args.circle)
        if args.fix:
            found = _fix(daemon, found)
    if args.json:
        c.put(c.to_json(found))
    else:
        c.put(c.colour(f"{c.clean(found['display_name'])} ({c.clean(found['peer_id'])})", "bold"))
        c.facts([*((name, _said(found.get(key))) for name, key in FIELDS), ("held", _held(found["hold"]))])
        _show(found["contradictions"])
        if not found["contradictions"]:
            c.put("healthy: what is recorded of it and what is so agree")
    return c.FAILED if any(one["severity"] == "error" for one in found["contradictions"]) else c.OK


def _said(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _held(hold: "shapes.Hold | None") -> str | None:
    """That a person keeps its mail, until when, and why."""
    if hold is None:
        return None
    until = f"until {c.local(hold['until'])}" if hold["until"] else "until it is released"
    return f"{until}: {c.clean(hold['reason'])}" if hold["reason"] else until


def _fix(daemon: RepowireClient, found: "shapes.PeerReport") -> "shapes.PeerReport":
    """Do what is safe, and look again."""
    if not any(one["fix"] == "rehook" for one in found["contradictions"]):
        c.note("nothing of it is mended without you: each line says how")
        return found
    done = daemon.rehook_peer(found["peer_id"], apply=True)
    c.note(f"rehook: {c.clean(done['reason'])}")
    return daemon.peer_doctor(found["peer_id"])


def _show(contradictions: "list[shapes.Contradiction]", indent: str = "") -> None:
    for one in contradictions:
        severity = c.colour(c.clean(one["severity"]), SEVERITY_COLOURS.get(one["severity"], "bold"))
        c.put(f"{indent}{severity} {c.clean(one['code'])}: {c.clean(one['detail'])}")
        c.put(f"{indent}  mend: {c.clean(one['repair'])}")


def hold(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        done = daemon.hold_peer(args.name, circle=args.circle, seconds=args.seconds, reason=args.reason)
    return _say_hold(args, done, f"the mail of {c.clean(done['display_name'])} is held")


def release(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        done = daemon.release_peer(args.name, circle=args.circle)
    return _say_hold(args, done, f"the mail of {c.clean(done['display_name'])} goes through again")


def _say_hold(args: argparse.Namespace, done: "shapes.HeldPeer", words: str) -> int:
    if args.json:
        c.put(c.to_json(done))
    else:
        c.hint(f"{words}; {done['waiting']} messages wait")
    return c.OK


# -- the host ------------------------------------------------------------------------


def show_host(args: argparse.Namespace) -> int:
    with c.client(SECONDS) as daemon:
        found = daemon.doctor()
    if args.json:
        c.put(c.to_json(found))
        return c.OK if found["ok"] else c.FAILED
    for check in found["checks"]:
        word = "ok" if check["ok"] else check["severity"]
        tint = "green" if check["ok"] else SEVERITY_COLOURS.get(check["severity"], "bold")
        c.put(f"{c.colour(f'{word:<8}', tint)}{c.clean(check['check'])}: {c.clean(check['detail'])}")
        if check["repair"] and not check["ok"]:
            c.put(f"          mend: {c.clean(check['repair'])}")
    for peer in found["peers"]:
        c.put(c.colour(f"{c.clean(peer['display_name'])} ({c.clean(peer['peer_id'])})", "bold"))
        _show(peer["contradictions"], "  ")
    many = found["peers_looked_at"]
    c.put(f"{many} peer{'s' * (many != 1)} looked at, {len(found['peers'])} with something to say")
    return c.OK if found["ok"] else c.FAILED


# -- mending ---------------------------------------------------------------------------


def rehook(args: argparse.Namespace) -> int:
    with c.client(SECONDS) as daemon:
        done = daemon.rehook_peer(args.name, circle=args.circle, apply=args.apply)
    c.put(c.to_json(done) if args.json else c.clean(done["reason"]))
    fine = done["reason"] in ("already_healthy", "respawned")
    if not fine:
        c.note(f"repowire: {c.clean(done['detail'])}" + ("" if done["acted"] else "; mend it with --apply"))
    return c.OK if fine else c.FAILED
