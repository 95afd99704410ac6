"""`repowire mcp`: the MCP server that an agent starts."""

import argparse
import os
import sys

from repowire import mcp_stdio
from repowire.cli import command as c


def main(argv: list[str]) -> int:
    made = c.parser(
        "mcp",
        "The MCP server that an agent starts: it speaks MCP on stdin and stdout, and starts the daemon when it is down."
        " `repowire setup claude-code` writes it into the agent's settings.",
        "  claude mcp add -s user repowire -- repowire mcp\n  repowire mcp --home ~/.repowire",
    )
    made.add_argument("--home", type=c.named, help="the daemon's home (default: REPOWIRE_HOME or ~/.repowire)")
    return c.run(made, argv[1:], become)


def become(args: argparse.Namespace) -> int:
    """Go on as the bare script, which holds a third of this process's memory."""
    more = ["--home", args.home] if args.home else []
    os.execv(sys.executable, [sys.executable, "-I", "-S", mcp_stdio.__file__, *more])
