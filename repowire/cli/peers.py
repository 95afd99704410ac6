"""`repowire peer`: who there is, who one is oneself, and who leads."""

import argparse
import os
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from repowire.cli import command as c
from repowire.cli import doctor, spawn

if TYPE_CHECKING:
    from repowire import shapes

AWAITING = "awaiting_input"  # a turn that stands still until a person decides
STATUS_COLOURS = {"online": "green", "busy": "yellow", AWAITING: "red", "offline": "dim"}
VERBS = (
    "list|describe|register|unregister|new|restart|kill|doctor|rehook|hold|release|whoami|touch|circle|claim-role|prune"
)
FIELDS = (
    ("name", "display_name"),
    ("id", "peer_id"),
    ("status", "status"),
    ("inbound", "inbound_status"),
    ("turn", "turn_state"),
    ("circle", "circle"),
    ("role", "role"),
    ("backend", "backend"),
    ("model", "model"),
    ("path", "path"),
    ("machine", "machine"),
    ("tmux", "tmux_session"),
    ("description", "description"),
    ("open asks", "pending_ask_count"),
)


def main(argv: list[str]) -> int:
    made = c.parser("peer", "Who is on this mesh.", "  repowire peer list\n  repowire peer describe build")
    verbs = made.add_subparsers(
        dest="verb",
        required=True,
        metavar=VERBS,
        prog=made.prog,
    )
    listing = _verb(
        verbs, "list", "live peers, or all", "  repowire peer list\n  repowire peer list --all --json", show_list
    )
    listing.add_argument("-a", "--all", action="store_true", help="the offline ones too")
    listing.add_argument("-c", "--circle", type=c.circle_or_all, help="only the peers that this circle sees")
    example = "  repowire peer describe build\n  repowire peer describe build --json | jq .path"
    _named(_verb(verbs, "describe", "all that is known of one peer", example, show_one))
    spawn.add(partial(_verb, verbs))
    doctor.add(partial(_verb, verbs))
    example = "  repowire peer register ann --circle blue\n  repowire peer register build -p ~/src/app --role service"
    _registers(_verb(verbs, "register", "make a peer by hand", example, make))
    example = "  repowire peer unregister ann\n  repowire peer unregister ann --circle blue"
    _named(_verb(verbs, "unregister", "remove a peer", example, remove))
    example = "  repowire peer whoami\n  repowire peer whoami --register --name ann"
    _whoami(_verb(verbs, "whoami", "which peer this process speaks for", example, show_me))
    example = "  repowire peer touch build\n  while sleep 20; do repowire peer touch lead; done"
    _named(_verb(verbs, "touch", "say that a peer is alive", example, touch))
    example = "  repowire peer circle build night\n  repowire peer circle build default"
    circle = _verb(verbs, "circle", "move a peer to another circle, with its mail", example, move)
    circle.add_argument("name", metavar="NAME", help="its name or its id")
    circle.add_argument("to", metavar="CIRCLE", type=c.circle, help="letters, digits, . _ -, at most 64")
    example = "  repowire peer claim-role orchestrator\n  repowire peer claim-role orchestrator --peer lead"
    _claims(_verb(verbs, "claim-role", "make a peer the orchestrator of its circle", example, claim))
    example = "  repowire peer prune --dry-run\n  repowire peer prune --force --circle night"
    _prunes(_verb(verbs, "prune", "take the offline peers off the list", example, prune))
    return c.run(made, argv[1:])


def _verb(verbs: Any, name: str, words: str, example: str, run: c.Run) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=words, description=f"{words.capitalize()}.", epilog=c.epilog(example), allow_abbrev=False
    )
    c.with_json(made)
    made.set_defaults(run=run)
    return made


def _named(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="its name or its id")
    verb.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")


def _registers(register: argparse.ArgumentParser) -> None:
    register.add_argument("name", metavar="NAME", help="letters, digits, . _ -, at most 64")
    register.add_argument("-t", "--tmux-session", help="the tmux session it lives in")
    register.add_argument("-c", "--circle", type=c.circle, help="its circle (default: the daemon's choice)")
    register.add_argument("-p", "--path", help="the folder it works in (default: this one)")
    register.add_argument("--backend", help="claude-code, codex, gemini, opencode, antigravity, pi or mcp-http")
    register.add_argument("--role", help="agent, service, orchestrator or human (default: agent)")


def _whoami(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--register", action="store_true", help="where it is no agent: make it a peer, in this folder")
    verb.add_argument("--name", help="with --register: its name (default: the folder's)")
    verb.add_argument("--backend", help="with --register: what kind of agent it is")
    verb.add_argument("-c", "--circle", type=c.circle, help="with --register: its circle")
    verb.add_argument("-p", "--path", help="with --register: the folder it works in (default: this one)")


def _claims(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("role", metavar="orchestrator", choices=["orchestrator"], help="the only role to be claimed")
    verb.add_argument("--peer", help="for whom (default: the agent whose process this is)")
    verb.add_argument("-c", "--circle", type=c.circle, help="the circle to look in")
    verb.add_argument("-f", "--force", action="store_true", help="without effect: a fresh holder keeps the role")


def _prunes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-f", "--force", action="store_true", help="do not ask")
    verb.add_argument("--dry-run", action="store_true", help="only say which")
    verb.add_argument("-c", "--circle", type=c.circle, help="only those of this circle")


def show_list(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        peers = daemon.list_peers(status=None if args.all else "online", circle=args.circle)
        named = args.circle not in (None, "*") and not any(peer["circle"] == args.circle for peer in peers)
        circles = {peer["circle"] for peer in daemon.list_peers()} if named else set()
    if args.json:
        c.put(c.to_json({"peers": peers}))
    elif not peers:
        c.note("nobody is here; try `repowire listen --name build`, or `repowire peer list --all` for the offline ones")
    else:
        rows = [
            [
                peer["display_name"],
                _status(peer),
                peer.get("circle"),
                peer.get("role"),
                peer.get("backend"),
                peer.get("pending_ask_count") or "",
                peer.get("path"),
                peer.get("description"),
            ]
            for peer in peers
        ]
        head = ("NAME", "STATUS", "CIRCLE", "ROLE", "BACKEND", "ASKS", "PATH", "DESCRIPTION")
        c.table(head, rows, {1: lambda status: STATUS_COLOURS.get(status, "bold")})
    if circles and args.circle not in circles:
        c.note(f"nobody is in circle {args.circle!r}; there are {c.clean(', '.join(sorted(circles)))}")
    return c.OK


def _status(peer: "shapes.Peer") -> str:
    """Its status; of a busy one also that it waits for its user."""
    waits = peer["status"] == "busy" and peer.get("turn_state") == AWAITING
    return AWAITING if waits else str(peer["status"])


def show_one(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        peer = daemon.get_peer(args.name, circle=args.circle)
    if args.json:
        c.put(c.to_json(peer))
    else:
        c.facts([(name, peer.get(key)) for name, key in FIELDS] + [("last seen", c.local(peer.get("last_seen")))])
    return c.OK


def make(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        made = daemon.register_peer(
            args.name,
            tmux_session=args.tmux_session,
            circle=args.circle,
            path=os.path.abspath(args.path or os.getcwd()),
            backend=args.backend,
            role=args.role,
        )
    name, peer_id = c.clean(made["display_name"]), c.clean(made["peer_id"])
    c.put(c.to_json(made) if args.json else f"registered {name} ({peer_id})" if c.on_terminal() else peer_id)
    return c.OK


def remove(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        gone = daemon.unregister_peer(args.name, circle=args.circle)
    if args.json:
        c.put(c.to_json(gone))
    else:
        c.hint(f"removed {c.clean(args.name)}")
    return c.OK


def show_me(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        me = daemon.whoami()
        if args.register and me["kind"] != "agent":
            path = os.path.abspath(args.path or os.getcwd())
            name = args.name or re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(path)).strip("-")[:64] or "peer"
            made = daemon.register_peer(name, path=path, backend=args.backend, circle=args.circle)
            me = {"kind": "agent", "peer": daemon.get_peer(made["peer_id"])}
    peer = me["peer"]
    if args.json:
        c.put(c.to_json(me))
    elif peer is None or me["kind"] == "human":
        c.put("human")
        c.hint("this process descends from no registered agent; --register makes it a peer")
    else:
        name = c.clean(peer["display_name"])
        c.put(f"{name} ({c.clean(peer['peer_id'])}) in circle {c.clean(peer['circle'])}" if c.on_terminal() else name)
    return c.OK


def touch(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        done = daemon.touch_peer(args.name, circle=args.circle)
    return _done(args, done, f"{c.clean(args.name)} was seen just now")


def move(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        peer = daemon.get_peer(args.name)  # the route says nothing of a name that nobody has
        done = daemon.set_circle(peer["peer_id"], args.to)
    return _done(args, done, f"{c.clean(peer['display_name'])} is in circle {c.clean(args.to)}")


def claim(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        name = args.peer
        if name is None:
            me = daemon.whoami()
            if me["kind"] != "agent" or me["peer"] is None:
                c.fail("this process descends from no registered agent: say for whom with --peer NAME")
            name = me["peer"]["peer_id"]
        got = daemon.claim_role(args.role, name, circle=args.circle, force=args.force or None)
    who, circle = c.clean(got["peer_name"]), c.clean(got["circle"])
    before = ", ".join(c.clean(one["display_name"]) for one in got["previous_holders"])
    words = "was already" if got["already_held"] else "is now"
    more = f"; {before} {'are agents' if ',' in before else 'is an agent'} now" if before else ""
    return _done(args, got, f"{who} {words} the orchestrator of circle {circle}{more}")


def prune(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        found = daemon.prune_peers(dry_run=True, circle=args.circle)
        if not found["pruned"]:
            return _done(args, found, "nobody is offline: nothing to prune")
        if not args.json:
            no_room = c.printing("nothing was changed: stdout cannot be written")
            with c.before_it_is_done(asks=not (args.force or args.dry_run)), no_room:
                _show_pruned(found["pruned"])
        if args.dry_run:
            return _done(args, found, "nothing was changed: --dry-run")
        if not args.force:
            _ask_first(len(found["pruned"]))
        found = daemon.prune_peers(circle=args.circle)
    return _done(args, found, f"took {len(found['pruned'])} off the list; what waits for them stays")


def _show_pruned(found: "list[shapes.PrunedPeer]") -> None:
    rows = [
        [one["display_name"], one["circle"], c.local(one["last_seen"]), "yes" if one["waiting"] else "", one["path"]]
        for one in found
    ]
    c.table(("NAME", "CIRCLE", "LAST SEEN", "MAIL WAITS", "PATH"), rows, {})


def _ask_first(count: int) -> None:
    if not sys.stdin.isatty():
        c.fail("without a terminal say --force, or --dry-run to only look", c.USAGE)
    sys.stderr.write(f"take {'it' if count == 1 else f'these {count}'} off the list? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        c.fail("nothing was changed")


def _done(args: argparse.Namespace, answer: object, words: str) -> int:
    if args.json:
        c.put(c.to_json(answer))
    else:
        c.hint(words)
    return c.OK
