"""Drift: what in the settings of a Claude Code is not as `repowire setup` would write it.

Nothing is written here. Files are read, so all but the names of folders is for a thread.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from repowire import config, rehooks, survey
from repowire.agents import claude_code_hooks as claude
from repowire.agents import claude_code_setup as setup
from repowire.agents import files
from repowire.agents.claude_code_setup import Drift, Program
from repowire.agents.json_text import NotJson
from repowire.mesh import Mesh
from repowire.peers import Peer
from repowire.sessions import Session

PACKAGE = Path(__file__).parent
SETUP = "repowire setup claude-code"


def settings_folder(mesh: Mesh, peer: Peer, session: Session | None) -> str | None:
    """The folder of a Claude Code's settings, from its transcript, its registry file or its environment.

    None for what only says that it is one: a script that registered without saying what it is.
    """
    if peer.backend != "claude-code" or rehooks.elsewhere(peer):
        return None
    if session is not None and (folder := claude.config_dir(session.transcript)) is not None:
        return folder
    if session is not None and session.registry is not None:
        return os.path.dirname(os.path.dirname(session.registry))
    if peer.agent_pid is not None and mesh.procs.name(peer.agent_pid) in claude.PROGRAMS:
        registry = survey.registry_of(mesh.procs, peer.backend, peer.agent_pid)
        return os.path.dirname(os.path.dirname(registry)) if registry else None
    return None


class Settings(NamedTuple):
    """The settings in one folder: what of them is not as setup would write it for this daemon, and what writes it."""

    drift: list[tuple[str, Drift]]  # with the file
    setup: str


def look_at(mesh: Mesh, folder: str) -> Settings:
    """What is so in a folder of settings."""
    home, main = mesh.config.home, main_of(folder)
    users = os.path.dirname(main) if os.path.dirname(main) != folder else os.path.expanduser("~")
    usual = home == config.home_of({"HOME": users})
    program = Program(sys.executable, str(PACKAGE), None if usual else str(home), mesh.config.approvals.gated_anywhere)
    return Settings(found_in(folder, program), setup_command(folder, home))


def main_of(folder: str) -> str:
    """The file of the MCP servers: beside a user's `.claude`, else in the folder, which CLAUDE_CONFIG_DIR named."""
    beside = os.path.join(os.path.dirname(folder), ".claude.json")
    return beside if os.path.basename(folder) == ".claude" and os.path.exists(beside) else f"{folder}/.claude.json"


def setup_command(folder: str, home: Path) -> str:
    """What writes these settings, for the daemon of this home, whoever's they are."""
    if folder == os.path.expanduser("~/.claude"):
        return SETUP
    parent = os.path.dirname(folder)
    if main_of(folder) == f"{folder}/.claude.json":
        return f"CLAUDE_CONFIG_DIR={shlex.quote(folder)} {SETUP}"
    return f"HOME={shlex.quote(parent)} REPOWIRE_HOME={shlex.quote(str(home))} {SETUP}"


def found_in(folder: str, program: Program) -> list[tuple[str, Drift]]:
    """What of the settings in a folder is not as setup would write it."""
    found = []
    for file, drift in ((f"{folder}/settings.json", _hooks_drift), (main_of(folder), setup.server_drift)):
        try:
            text = files.text_of(file) if os.path.exists(file) else ""
            found += [(file, one) for one in drift(text, program)]
        except (OSError, NotJson) as error:
            found.append((file, Drift("hooks" if drift is _hooks_drift else "mcpServers", f"unreadable: {error}")))
    return found


def _hooks_drift(text: str, program: Program) -> list[Drift]:
    """As setup without `--approvals` goes by: the gate is wanted where it stands."""
    return setup.hooks_drift(text, program if setup.has_approvals(text) else program._replace(gated=None))
