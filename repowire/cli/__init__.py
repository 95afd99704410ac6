"""The command line: a table noun → module, imported when chosen, so that each command pays for itself alone.

Here stand the only imports inside functions (start-up time).
"""

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def _approvals() -> "ModuleType":
    from repowire.cli import approvals

    return approvals


def _ask_many() -> "ModuleType":
    from repowire.cli import ask_many

    return ask_many


def _asks() -> "ModuleType":
    from repowire.cli import asks

    return asks


def _daemon() -> "ModuleType":
    from repowire.cli import daemon

    return daemon


def _deliveries() -> "ModuleType":
    from repowire.cli import deliveries

    return deliveries


def _doctor() -> "ModuleType":
    from repowire.cli import doctor

    return doctor


def _links() -> "ModuleType":
    from repowire.cli import links

    return links


def _listen() -> "ModuleType":
    from repowire.cli import listen

    return listen


def _mcp() -> "ModuleType":
    from repowire.cli import mcp

    return mcp


def _messages() -> "ModuleType":
    from repowire.cli import messages

    return messages


def _peers() -> "ModuleType":
    from repowire.cli import peers

    return peers


def _sessions() -> "ModuleType":
    from repowire.cli import spawn

    return spawn


def _setup() -> "ModuleType":
    from repowire.cli import setup

    return setup


def _status() -> "ModuleType":
    from repowire.cli import status

    return status


def _token() -> "ModuleType":
    from repowire.cli import token

    return token


def _traces() -> "ModuleType":
    from repowire.cli import traces

    return traces


def _ws_hook() -> "ModuleType":
    from repowire import ws_hook

    return ws_hook


NOUNS = {
    "daemon": (_daemon, "start, stop, restart the daemon of this home (alias: serve)"),
    "status": (_status, "how the daemon is and where it listens"),
    "doctor": (_doctor, "what is wrong on this host, and what mends it"),
    "token": (_token, "show or rotate the token of the TCP side"),
    "peer": (_peers, "list, describe, start, end, register peers"),
    "link": (_links, "the tmux panes that no peer has; make one a peer"),
    "session": (_sessions, "go on with a session whose agent is gone"),
    "ask": (_asks, "ask a peer; with --wait print the reply"),
    "wait": (_asks, "wait for the reply to an ask"),
    "ack": (_asks, "answer an ask, or close it without words"),
    "decline": (_asks, "close an ask that you will not answer, with the reason"),
    "asks": (_asks, "list asks: open ones, or --answered"),
    "ask-many": (_ask_many, "ask several peers at once"),
    "answers": (_ask_many, "what became of an ask-many"),
    "query": (_messages, "ask an idle peer and print its reply, in one request"),
    "approvals": (_approvals, "tool calls that wait for your yes or no: list, show, answer, watch"),
    "notify": (_messages, "tell a peer something that wants no answer"),
    "broadcast": (_messages, "tell everybody who is connected"),
    "inbox": (_messages, "read the mail that waits for you, or for another peer"),
    "messages": (_messages, "all that was said, and how it stands"),
    "deliveries": (_deliveries, "how messages stand; the dead ones: retry or drop"),
    "deliver": (_deliveries, "have a message that waits go in now"),
    "listen": (_listen, "make a script a peer: messages as JSON lines, or each to a command"),
    "setup": (_setup, "make an agent's sessions peers: its hooks and its MCP server"),
    "uninstall": (_setup, "take out of an agent's settings what setup wrote"),
    "mcp": (_mcp, "the MCP server that an agent starts"),
    "trace": (_traces, "every step of one ask or message"),
    "tail": (_traces, "live events"),
}
HIDDEN = {"ws-hook": _ws_hook}  # programs that the daemon starts; no word about them in the help
ALIASES = {"serve": "daemon"}
PEER_ALIASES = {"ask": "query", "asks": "asks", "ack": "ack", "deliveries": "inbox"}  # `peer ask` … as published
LASTING = ("approvals", "daemon", "listen", "tail", "ws-hook")

FIRST_STEPS = """first steps:
  repowire daemon --detach                                start the daemon of this home
  repowire listen --name build --exec 'git log -1' &      a script becomes the peer "build"
  repowire peer list                                      who is there
  repowire ask build "what is the last commit?" --wait    ask it, and print its reply
  repowire trace ID                                       every step of what was sent
"""

EXIT_CODES = (
    "exit codes: 0 ok, 1 refused or failed, 2 usage, 3 no daemon, 4 timed out or still pending, 130 interrupted"
)


def database() -> "ModuleType":
    """Its database, of which the daemon looks at first whether it is whole."""
    from repowire import db

    return db


def program() -> "ModuleType":
    """The daemon itself: only the process that becomes one imports it."""
    from repowire import daemon

    return daemon


def help_text() -> str:
    """What `repowire` alone says: the commands, and how to begin."""
    rows = "\n".join(f"  {noun:<10} {words}" for noun, (_, words) in NOUNS.items())
    return (
        "usage: repowire COMMAND [...]\n\nA local daemon that gives every coding agent on a machine a name and a"
        f" mailbox.\n\ncommands (each has --help):\n{rows}\n\n{FIRST_STEPS}\n{EXIT_CODES}"
    )


def main(argv: list[str]) -> int:
    """Run one command; its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "peer" and len(argv) > 1 and argv[1] in PEER_ALIASES:
        argv = [PEER_ALIASES[argv[1]], *argv[2:]]
    noun = ALIASES.get(argv[0], argv[0])
    if noun not in NOUNS and noun not in HIDDEN:
        from difflib import get_close_matches

        near = get_close_matches(noun, NOUNS, cutoff=0.5)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        print(f"repowire: no command {noun!r}{meant}; see repowire --help", file=sys.stderr)
        return 2
    if noun not in LASTING:
        gc.disable()  # it would run several times during the imports, for a process that ends before it pays
    room = HIDDEN[noun] if noun in HIDDEN else NOUNS[noun][0]
    code: int = room().main([noun, *argv[1:]])
    return code
