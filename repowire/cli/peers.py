"""`repowire peer`: who there is."""

import argparse
import os
from typing import Any

from repowire.cli import command as c

STATUS_COLOURS = {"online": "green", "busy": "yellow", "offline": "dim"}
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
    verbs = made.add_subparsers(dest="verb", required=True, metavar="list|describe|register|unregister", prog=made.prog)
    listing = _verb(
        verbs, "list", "live peers, or all", "  repowire peer list\n  repowire peer list --all --json", show_list
    )
    listing.add_argument("-a", "--all", action="store_true", help="the offline ones too")
    listing.add_argument("-c", "--circle", help="only the peers that this circle sees")
    example = "  repowire peer describe build\n  repowire peer describe build --json | jq .path"
    _named(_verb(verbs, "describe", "all that is known of one peer", example, show_one))
    example = "  repowire peer register ann --circle blue\n  repowire peer register build -p ~/src/app --role service"
    _registers(_verb(verbs, "register", "make a peer by hand", example, make))
    example = "  repowire peer unregister ann\n  repowire peer unregister ann --circle blue"
    _named(_verb(verbs, "unregister", "remove a peer", example, remove))
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
    verb.add_argument("-c", "--circle", help="the circle to look in")


def _registers(register: argparse.ArgumentParser) -> None:
    register.add_argument("name", metavar="NAME", help="letters, digits, . _ -, at most 64")
    register.add_argument("-t", "--tmux-session", help="the tmux session it lives in")
    register.add_argument("-c", "--circle", help="its circle (default: the daemon's choice)")
    register.add_argument("-p", "--path", help="the folder it works in (default: this one)")
    register.add_argument("--backend", help="claude-code, codex, gemini, opencode, antigravity, pi or mcp-http")
    register.add_argument("--role", help="agent, service, orchestrator or human (default: agent)")


def show_list(args: argparse.Namespace) -> int:
    with c.client() as daemon:
        peers = daemon.list_peers(status=None if args.all else "online", circle=args.circle)
    if args.json:
        c.put(c.to_json({"peers": peers}))
    elif not peers:
        c.note("nobody is here; try `repowire listen --name build`, or `repowire peer list --all` for the offline ones")
    else:
        rows = [
            [
                peer["display_name"],
                peer["status"],
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
    return c.OK


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
