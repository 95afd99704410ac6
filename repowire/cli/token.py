"""`repowire token`: what TCP clients send."""

import argparse
from contextlib import closing

from repowire import client, config
from repowire.cli import command as c
from repowire.cli import daemon


def main(argv: list[str]) -> int:
    made = c.parser(
        "token",
        "Print the token that TCP clients send as a bearer; --rotate makes a new one and cuts live TCP sockets.",
        "  repowire token | sed 's/^/Authorization: Bearer /' | curl -H @- http://127.0.0.1:8377/peers\n"
        "  repowire token --rotate",
    )
    made.add_argument("--rotate", action="store_true", help="make a new one; the old one is refused at once")
    c.with_json(made)
    return c.run(made, argv[1:], show)


def show(args: argparse.Namespace) -> int:
    settings = config.load()
    if args.rotate:
        rotate(settings)
    fixed = settings.daemon.auth_token
    found = config.read_token(settings.home) if fixed is None else fixed
    if found is None:
        c.fail(f"there is no token in {settings.home} yet; the first start of `repowire daemon` makes it")
    if not found:
        c.fail("daemon.auth_token is set and empty: TCP is open and asks for none")
    c.put(c.to_json({"token": found, "token_file": str(settings.token_path)}) if args.json else found)
    return c.OK


def rotate(settings: config.Config) -> None:
    """Through the daemon, which cuts its sockets; where none runs, the file is all there is."""
    try:
        with closing(client.RepowireClient(home=settings.home)) as asked:
            asked.rotate_token()
        c.hint("rotated; clients with the old token are cut off")
    except client.DaemonAway as away:
        if away.asked or daemon.holder(settings) is not None:
            raise
        config.prepare_home(settings.home)
        config.write_token(settings.home)
        c.hint("rotated; no daemon was running")
