"""`repowire status`: how the daemon is."""

import argparse
from contextlib import closing
from datetime import datetime

from repowire import client, config
from repowire.cli import command as c


def main(argv: list[str]) -> int:
    made = c.parser("status", "How the daemon is.", "  repowire status\n  repowire status --json && echo it runs")
    c.with_json(made)
    made.set_defaults(home=None)
    return c.run(made, argv[1:], show)


def show(args: argparse.Namespace) -> int:
    home = args.home or config.home_of()
    with closing(client.RepowireClient(home=home)) as daemon:
        health = daemon.health()
        peers = daemon.list_peers()
        open_asks = daemon.asks_history(state="open", limit=50)
    held = config.read_lock(home) or {} if daemon.place is None else {}
    live = sum(peer["status"] != "offline" for peer in peers)
    if args.json:
        c.put(c.to_json({**health, "daemon": held, "peers": len(peers), "live_peers": live}))
        return c.OK
    many = "50 or more" if open_asks.get("next") else str(len(open_asks["asks"]))
    c.facts(
        [
            ("status", health["status"]),
            ("version", health.get("version")),
            ("pid", held.get("pid")),
            ("since", since(held.get("started_at"))),
            ("tcp", c.url(held["host"], held["port"]) if held.get("port") else daemon.where),
            ("socket", home / "daemon.sock" if daemon.place is None else None),
            ("home", home if daemon.place is None else None),
            ("peers", f"{live} live, {len(peers)} known"),
            ("asks", f"{many} open"),
        ]
    )
    return c.OK if health["status"] == "ok" else c.FAILED


def since(at: object) -> str:
    """The lock's moment on the clock of this machine."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S") if isinstance(at, float | int) else ""
