"""The launcher: what a spawned pane runs first. It asks the daemon what it is to become, and becomes that.

Run as `python -I -S launcher.py HOME SPAWN_ID`. The daemon answers when it has written down that the pane is its own;
so a pane whose daemon died in between ends by itself, and neither the environment nor the command of the agent stands
in a command line of tmux. The folder is entered only if it is the very one that was allowed, whatever its path leads
to by now.
"""

import json
import os
import socket
import sys

PATIENCE_SECONDS = 30.0  # the daemon answers within 20 s
REFUSED, NOT_FOUND, NOT_RUN = 75, 127, 126  # exit codes: as sysexits' EX_TEMPFAIL, and as the shells'


class NoOrder(Exception):
    """There is nothing to become; says why, where that is worth a line."""


def main(home: str, spawn_id: str) -> int:
    """Become the agent; returns only when that fails."""
    try:
        order = ask(home, spawn_id)
        enter(order["path"], order["device"], order["inode"])
    except (OSError, ValueError, KeyError, NoOrder) as why:
        print(f"repowire: nothing was started: {why}", file=sys.stderr, flush=True)
        return REFUSED
    environ = {name: value for name, value in os.environ.items() if name not in order["unset"]}
    environ |= {**order["env"], "PWD": order["path"]}
    try:
        os.execve(order["program"], order["command"], environ)
    except OSError as error:
        print(f"repowire: {order['program']} cannot be run: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN


def ask(home: str, spawn_id: str) -> dict:  # type: ignore[type-arg]
    """What the daemon says that this pane is to become."""
    os.chdir(home)  # the socket's own name always fits into its address, its path may not
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(PATIENCE_SECONDS)
        link.connect("daemon.sock")
        link.sendall(
            b"POST /spawn/%s/launch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            % spawn_id.encode()
        )
        got = b""
        while piece := link.recv(65_536):
            got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    if head[:13] != b"HTTP/1.1 200 ":
        raise NoOrder("the daemon does not want this pane any more" if head else "the daemon went away")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise NoOrder("the daemon's answer is none")
    return found


def enter(path: str, device: int, inode: int) -> None:
    """Work in a folder, if it is the one that was meant; a link may have been turned meanwhile."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    seen = os.fstat(folder)
    if (seen.st_dev, seen.st_ino) != (device, inode):
        raise NoOrder(f"{path} is another folder than it was")
    os.fchdir(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
