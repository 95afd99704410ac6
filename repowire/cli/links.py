"""`repowire link`: the panes that no peer has, and making one a peer's."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from repowire.cli import command as c
from repowire.client import RepowireClient

if TYPE_CHECKING:
    from repowire import shapes

SECONDS = 20.0  # the daemon answers within 8


def main(argv: list[str]) -> int:
    made = c.parser(
        "link",
        "Show the tmux panes that no peer has; with --pane, make one a peer, with a live way into it. What cannot be is"
        " undone, and the reason said.",
        "  repowire link\n  repowire link --pane %3 --backend claude-code --name ann",
    )
    made.add_argument("--pane", metavar="PANE", help="the pane, such as %%3; without it they are listed")
    made.add_argument(
        "--backend",
        help="what runs in it: claude-code, codex, gemini, opencode, antigravity, pi; or shell: any other program",
    )
    made.add_argument("--name", help="what it shall be called (default: its folder)")
    made.add_argument("-c", "--circle", type=c.circle, help="its circle (default: the daemon's choice)")
    made.add_argument("--tmux", metavar="SOCKET", help="its tmux server, where several have such a pane")
    c.with_json(made)
    return c.run(made, argv[1:], link)


def link(args: argparse.Namespace) -> int:
    if args.pane is not None and args.backend is None:
        return _refuse_to_guess(args)
    if args.tmux is not None and not os.path.exists(args.tmux):
        c.fail(f"there is no tmux socket {args.tmux}: `tmux display-message -p '#{{socket_path}}'` says where one is")
    with c.client(SECONDS) as daemon:
        if args.pane is not None:
            return _link(args, daemon, args.pane, args.backend, args.tmux or _here(daemon, args.pane))
        found = daemon.orphan_panes(tmux=args.tmux or _own_server())
        if args.tmux is not None:  # the daemon looks at others too; who names one means that one
            one = os.path.realpath(args.tmux)
            found["panes"] = [pane for pane in found["panes"] if os.path.realpath(pane["tmux"]) == one]
            if one in map(os.path.realpath, found["silent"]):
                c.fail(f"the tmux on {c.clean(args.tmux)} does not answer")
        if args.json:
            c.put(c.to_json(found))
            return c.OK
        for silent in found["silent"]:
            c.note(f"the tmux on {c.clean(silent)} does not answer")
        panes = found["panes"]
        if not panes:
            c.note(f"every pane of {c.clean(args.tmux or 'every tmux here')} is a peer's, or there is none")
            return c.OK
        several = len({pane["tmux"] for pane in panes}) > 1
        _show(panes, several)
        if not (sys.stdin.isatty() and sys.stderr.isatty() and c.on_terminal()):
            return c.OK
        chosen = _ask_which(panes)
        if chosen is None:
            return c.OK
        return _link(args, daemon, chosen["pane_id"], _ask_what(chosen), chosen["tmux"])


def _refuse_to_guess(args: argparse.Namespace) -> int:
    """What seems to run there is shown, and not taken for granted: keys would go to whatever it is."""
    with c.client() as daemon:
        panes = daemon.orphan_panes(tmux=args.tmux or _own_server())["panes"]
    seems = {pane["detected_backend"] for pane in panes if pane["pane_id"] == args.pane} - {"unknown"}
    looks = f" (it looks like {' or '.join(sorted(seems))})" if seems else ""
    c.fail(f"say what runs in {args.pane}{looks}: --backend", c.USAGE)


def _own_server() -> str | None:
    """The tmux that this terminal is in, wherever its socket lies."""
    return os.environ.get("TMUX", "").partition(",")[0] or None


def _here(daemon: RepowireClient, pane: str) -> str | None:
    """The server of this terminal where it has that pane: the daemon may not know it. Exits where others have one."""
    own = _own_server()
    if own is None:
        return None
    found = {one["tmux"] for one in daemon.orphan_panes(tmux=own)["panes"] if one["pane_id"] == pane}
    if own in found and len(found) > 1:
        c.fail(f"{len(found)} tmux servers have a pane {c.clean(pane)}: --tmux says which ({', '.join(sorted(found))})")
    return own if own in found else None


def _show(panes: "list[shapes.OrphanPane]", several: bool) -> None:
    head = ["PANE", "WHERE", "LOOKS LIKE", "COMMAND", "PID", "FOLDER", *(["TMUX"] if several else [])]
    rows = [
        [
            pane["pane_id"],
            f"{pane['session']}:{pane['window']}",
            pane["detected_backend"] if pane["confidence"] == "hint" else "",
            pane["command"],
            pane["pid"],
            pane["cwd"],
            *([pane["tmux"]] if several else []),
        ]
        for pane in panes
    ]
    c.table(head, rows, {2: lambda text: "green" if text else "dim"})


def _ask_which(panes: "list[shapes.OrphanPane]") -> "shapes.OrphanPane | None":
    """One of them, or none."""
    said = _asked("link which pane (Enter for none)? ")
    if not said:
        return None
    found = [pane for pane in panes if pane["pane_id"] in (said, f"%{said}")]
    if len(found) != 1:
        c.fail(
            f"{said} is no pane of this list" if not found else f"several servers have {said}: say --pane and --tmux"
        )
    return found[0]


def _ask_what(pane: "shapes.OrphanPane") -> str:
    """What runs in it; what it looks like is only offered."""
    looks = pane["detected_backend"] if pane["confidence"] == "hint" else ""
    return _asked(f"what runs in it{f' [{looks}]' if looks else ''}? ") or looks or c.fail("nothing was linked")


def _asked(words: str) -> str:
    sys.stderr.write(words)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _link(args: argparse.Namespace, daemon: RepowireClient, pane: str, backend: str, tmux: str | None) -> int:
    with c.progress(f"waiting for a live way into {c.clean(pane)}"):
        done = daemon.link_pane(pane, backend, name=args.name, circle=args.circle, tmux=tmux)
    if args.json:
        c.put(c.to_json(done))
    elif done["linked"]:
        name = c.clean(done["display_name"])
        c.put(f"{c.clean(pane)} is {name} ({c.clean(done['peer_id'])})" if c.on_terminal() else name)
    if not done["linked"]:
        c.note(f"repowire: not linked ({c.clean(done['reason'])}): {c.clean(done['repair_hint'])}")
    return c.OK if done["linked"] else c.FAILED
