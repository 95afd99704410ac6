"""Drift: what in the settings of a Claude Code is not as `repowire setup` would write it.

Nothing is written here. Files are read, so all but the names of folders is for a thread.
"""

import os
import sys
from pathlib import Path

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


def own_program(mesh: Mesh) -> Program:
    """What setup would write for this very daemon, with approvals."""
    home = mesh.config.home
    usual = home == config.home_of({"HOME": os.environ.get("HOME", "")})
    return Program(sys.executable, str(PACKAGE), None if usual else str(home), mesh.config.approvals.gated_anywhere)


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


def found_in(folder: str, program: Program) -> list[tuple[str, Drift]]:
    """What of the settings in a folder is not as setup would write it."""
    beside = os.path.join(os.path.dirname(folder), ".claude.json")
    main = beside if os.path.basename(folder) == ".claude" and os.path.exists(beside) else f"{folder}/.claude.json"
    found = []
    for file, drift in ((f"{folder}/settings.json", _hooks_drift), (main, setup.server_drift)):
        try:
            text = files.text_of(file) if os.path.exists(file) else ""
            found += [(file, one) for one in drift(text, program)]
        except (OSError, NotJson) as error:
            found.append((file, Drift("hooks" if drift is _hooks_drift else "mcpServers", f"unreadable: {error}")))
    return found


def _hooks_drift(text: str, program: Program) -> list[Drift]:
    """As setup without `--approvals` goes by: the gate is wanted where it stands."""
    return setup.hooks_drift(text, program if setup.has_approvals(text) else program._replace(gated=None))


def setup_command(folder: str | None) -> str:
    usual = os.path.expanduser("~/.claude")
    return f"{'' if folder in (None, usual) else f'CLAUDE_CONFIG_DIR={folder} '}repowire setup claude-code"
