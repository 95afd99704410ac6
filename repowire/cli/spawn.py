"""`repowire peer new`, `restart`, `kill` and `session resume`: agents in tmux windows of their own."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repowire.cli import command as c
from repowire.client import RepowireClient
from repowire.errors import Refusal

Verb = Callable[[str, str, str, c.Run], argparse.ArgumentParser]


def add(verb: Verb) -> None:
    """The verbs of `repowire peer` that start and end agents."""
    example = "  repowire peer new ~/src/app\n  repowire peer new . --backend codex --profile fast -m 'run the tests'"
    new = verb("new", "start an agent in a tmux window of its own", example, start)
    new.add_argument("path", metavar="PATH", nargs="?", default=".", help="the folder it works in (default: this one)")
    new.add_argument("--backend", help="its kind, such as claude-code (default: the one that the config has)")
    new.add_argument("--command", help="instead: a command line that the config allows word for word")
    new.add_argument("--profile", help="a set of arguments that the config has a name for")
    new.add_argument("-c", "--circle", type=c.circle, help="its circle and its tmux session (default: default)")
    new.add_argument("--name", help="what it is called (default: the folder's name)")
    new.add_argument("--role", help="agent, service or orchestrator (default: agent)")
    new.add_argument("-m", "--message", help="what it is told first; - reads it from stdin")
    example = "  repowire peer restart build --dry-run\n  repowire peer restart build -m 'go on'"
    again = verb("restart", "end an agent and go on with its session, as the same peer", example, restart)
    again.add_argument("name", metavar="NAME", help="its name or its id")
    again.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")
    again.add_argument("--from-peer", help="on whose behalf (default: the caller's)")
    again.add_argument("--dry-run", action="store_true", help="only say whether it could be, and by what command")
    again.add_argument("-m", "--message", help="what it is told first; - reads it from stdin")
    example = "  repowire peer kill build\n  repowire peer kill build --circle night"
    kill = verb("kill", "end an agent that repowire started, and remove the peer", example, end)
    kill.add_argument("name", metavar="NAME", help="its name or its id")
    kill.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")
    kill.add_argument("--from-peer", help="on whose behalf (default: the caller's)")


def start(args: argparse.Namespace) -> int:
    with c.client() as daemon, shown(), c.progress("waiting for it to stand, its login shell and its tmux too"):
        backend = args.backend
        if backend is None and args.command is None:
            known = sorted(daemon.spawn_config()["commands"])
            if len(known) > 1:
                c.fail(f"say which kind of agent with --backend: {', '.join(map(c.clean, known))}", c.USAGE)
            backend = known[0] if known else "claude-code"  # without any, the daemon says what the config lacks
        made = daemon.spawn(
            os.path.abspath(os.path.expanduser(args.path)),
            args.command,
            backend=backend,
            profile=args.profile,
            circle=args.circle,
            name=args.name,
            role=args.role,
            message=None if args.message is None else c.text_of(args.message),
        )
    for warning in made["warnings"]:
        c.note(f"repowire: {c.clean(warning)}")
    name, where = c.clean(made["display_name"]), c.clean(made["tmux_session"])
    if args.json:
        c.put(c.to_json(made))
    else:
        c.put(f"started {name} in tmux {where} ({c.clean(made['peer_id'])})" if c.on_terminal() else name)
    return c.OK


def end(args: argparse.Namespace) -> int:
    with c.client() as daemon, c.progress(f"waiting for {c.clean(args.name)} to end; it is killed when it does not"):
        done = daemon.kill_peer(args.name, circle=args.circle, from_peer=args.from_peer)
    if args.json:
        c.put(c.to_json(done))
    elif done["tmux_killed"]:
        c.hint(f"ended {c.clean(args.name)}")
    else:
        c.note(f"repowire: removed {c.clean(args.name)}; what it runs in was not opened by repowire and was left alone")
    return c.OK


def restart(args: argparse.Namespace) -> int:
    with c.client() as daemon, shown(), c.progress(f"waiting for {c.clean(args.name)} to end and to stand again"):
        done = daemon.restart_peer(
            args.name,
            circle=args.circle,
            from_peer=args.from_peer,
            dry_run=args.dry_run,
            message=None if args.message is None else c.text_of(args.message),
        )
    if done["resume_warning"]:
        c.note(f"repowire: {c.clean(done['resume_warning'])}")
    if args.json:
        c.put(c.to_json(done))
    elif args.dry_run:
        c.put(c.clean(done["command"]))
    else:
        c.hint(f"{c.clean(done['display_name'])} goes on")
    return c.OK


def main(argv: list[str]) -> int:
    """`repowire session`."""
    shown_first = "  repowire session resume build --dry-run\n  repowire session resume build -m 'go on'"
    made = c.parser("session", "Runtime sessions of peers.", shown_first)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="resume", prog=made.prog)
    words, example = "start an agent on a session whose own is gone", shown_first
    resuming = verbs.add_parser(
        "resume", help=words, description=f"{words.capitalize()}.", epilog=c.epilog(example), allow_abbrev=False
    )
    c.with_json(resuming)
    resuming.add_argument("session", metavar="NAME", help="a peer, for its newest session; or a session, rw-session-…")
    resuming.add_argument("-c", "--circle", type=c.circle, help="the circle to look for the peer in")
    resuming.add_argument("--dry-run", action="store_true", help="only say whether it could be")
    resuming.add_argument("--profile", help="a set of arguments that the config has a name for")
    resuming.add_argument("-m", "--message", help="what it is told first; - reads it from stdin")
    resuming.add_argument("--from-peer", help="on whose behalf (default: the caller's)")
    resuming.set_defaults(run=resume)
    return c.run(made, argv[1:])


def resume(args: argparse.Namespace) -> int:
    with c.client() as daemon, shown(), c.progress("waiting for it to stand"):
        done = daemon.resume_session(
            _session(daemon, args.session, args.circle),
            dry_run=args.dry_run,
            profile=args.profile,
            from_peer=args.from_peer,
            message=None if args.message is None else c.text_of(args.message),
        )
    if args.json:
        c.put(c.to_json(done))
    elif args.dry_run:
        c.put(c.clean(done["status"]))
        c.hint(c.clean(done["message"]))
    else:
        c.put(c.clean(done["spawned_display_name"]))
    return c.OK


def _session(daemon: RepowireClient, named: str, circle: str | None) -> str:
    """The name of a session: as given, or of the newest one of that peer."""
    if named.startswith("rw-session-"):
        return named
    found = daemon.transcript(named, circle=circle, limit=1)["repowire_session_id"]
    return found or c.fail(f"no session of {named} is known: an agent has one when its hooks have spoken")


@contextmanager
def shown() -> Iterator[None]:
    """What the pane of a start that failed showed, before the line that says so."""
    try:
        yield
    except Refusal as no:
        screen = no.facts.get("screen")
        if isinstance(screen, str) and screen:
            c.note("\n".join(f"  | {c.clean(line)}" for line in screen.splitlines()))
        raise
