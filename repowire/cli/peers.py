"""`repowire peer`: who there is."""

import argparse
import os

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
    listing = verbs.add_parser("list", help="live peers; -a for all", description="List peers.")
    listing.add_argument("-a", "--all", action="store_true", help="the offline ones too")
    listing.add_argument("-c", "--circle", help="only the peers that this circle sees")
    describe = verbs.add_parser("describe", help="all that is known of one peer", description="Show one peer.")
    describe.add_argument("name", metavar="NAME", help="its name or its id")
    describe.add_argument("-c", "--circle", help="the circle to look in")
    register = verbs.add_parser("register", help="make a peer by hand", description="Register a peer.")
    _registers(register)
    unregister = verbs.add_parser("unregister", help="remove a peer", description="Remove a peer.")
    unregister.add_argument("name", metavar="NAME", help="its name or its id")
    unregister.add_argument("-c", "--circle", help="the circle to look in")
    for verb, run in ((listing, show_list), (describe, show_one), (register, make), (unregister, remove)):
        c.with_json(verb)
        verb.set_defaults(run=run)
    return c.run(made, argv[1:])


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
