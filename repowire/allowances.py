"""Allowances: what may be started, where, and as what. Everything that is not in the config is refused.

A folder is allowed by where its path leads, links followed; that it is still that one is seen again by whoever enters
it (`launcher`), since a link can be turned in between.
"""

import asyncio
import os
import shlex
import shutil
from typing import Any, NamedTuple

from repowire.agents import runs
from repowire.config import Config
from repowire.errors import forbidden, invalid, not_found, unprocessable
from repowire.login_shell import LoginShell
from repowire.protocol import DEFAULT_CIRCLE

# -- model ---------------------------------------------------------------------


class Folder(NamedTuple):
    """A folder that was allowed, and what proves that it still is that one."""

    path: str  # without links
    device: int
    inode: int


class Order(NamedTuple):
    """What is to be started, allowed and found."""

    backend: str
    profile: str | None
    command: str  # as the config has it
    folder: Folder
    program: str
    arguments: list[str]  # the program's name first
    environ: dict[str, str]
    circle: str = DEFAULT_CIRCLE
    role: str = "agent"
    name: str | None = None
    session: str | None = None  # the runtime's, that it goes on with, and its file
    transcript: str | None = None

    @property
    def line(self) -> str:
        """The command line, as a person would type it."""
        return shlex.join(self.arguments)


# -- rules ---------------------------------------------------------------------


def allowed_command(config: Config, backend: str | None, command: str | None) -> tuple[str, str]:
    """The kind of agent, and its command line as the config has it. 403 and 422 for what it does not have."""
    may = config.spawn
    if not (may.commands or may.allowed_commands) or not may.allowed_paths:
        raise forbidden(
            "spawn_disabled",
            f"nothing may be started here: set spawn.commands and spawn.allowed_paths in {config.config_path}",
        )
    if (backend is None) == (command is None):
        raise invalid("backend", "give exactly one of backend and command")
    if backend is not None:
        if backend not in may.commands:
            raise unprocessable(
                "command_unavailable",
                f"no command for {backend}: set spawn.commands.{backend} in {config.config_path}",
                backend=backend,
                backends=sorted(may.commands),
            )
        return backend, may.commands[backend]
    assert command is not None
    for kind, line in may.commands.items():
        if line == command:
            return kind, line
    if command not in may.allowed_commands:
        raise forbidden(
            "command_unavailable",
            "this command line is not allowed: it must stand word for word in spawn.commands or spawn.allowed_commands",
            allowed_commands=lines_of(config),
        )
    kind_of_it = runs.by_program(words_of(command))
    if kind_of_it is None:
        raise unprocessable(
            "command_unavailable",
            f"what kind of agent it starts is not known by its name: write it under spawn.commands in"
            f" {config.config_path}",
        )
    return kind_of_it, command


def lines_of(config: Config) -> list[str]:
    """Every command line that may be started."""
    return list(dict.fromkeys([*config.spawn.commands.values(), *config.spawn.allowed_commands]))


def profile_arguments(config: Config, backend: str, profile: str | None) -> list[str]:
    """What a profile adds to the command."""
    if profile is None:
        return []
    known = config.spawn.profiles.get(backend, {})
    if profile not in known:
        raise unprocessable(
            "profile_unavailable",
            f"{backend} has no profile {profile!r}: set spawn.profiles.{backend}.{profile} in {config.config_path}",
            profiles=sorted(known),
        )
    return list(known[profile].get("args", []))


def allowed_folder(config: Config, path: str) -> Folder:
    """The folder that a path leads to, if it is one of the allowed or below one. Reads the disk: for a thread.

    403 where it leads out of them, whether there is something or not; 404 where there is nothing.
    """
    if "\0" in path or not os.path.isabs(os.path.expanduser(path)):
        raise invalid("path", "must be an absolute path")
    real = os.path.realpath(os.path.expanduser(path))
    try:
        real.encode()
    except UnicodeEncodeError:
        shown = real.encode("utf-8", "replace").decode()
        raise invalid("path", f"leads to {shown}, whose name is no UTF-8: rename that folder") from None
    roots = [os.path.realpath(os.path.expanduser(root)) for root in config.spawn.allowed_paths]
    if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        raise forbidden(
            "path_not_allowed",
            f"{real} is outside of the allowed folders: add one to spawn.allowed_paths in {config.config_path}",
            path=real,
            allowed_paths=list(config.spawn.allowed_paths),
        )
    try:
        found = os.stat(real)
    except OSError:
        raise not_found("path", path, f"there is no folder {real}") from None
    if not os.path.isdir(real):
        raise invalid("path", f"{real} is no folder")
    return Folder(real, found.st_dev, found.st_ino)


def words_of(command: str) -> list[str]:
    """A command line as its words; 422 where a quote is not closed."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise unprocessable("command_unavailable", f"the command line {command!r} cannot be read: {error}") from None
    return words or [""]


async def order_of(
    config: Config,
    shell: LoginShell,
    *,
    path: str,
    backend: str | None,
    command: str | None,
    profile: str | None,
    more: list[str] | None = None,
    **about: Any,
) -> Order:
    """What is to be started, with everything checked that can be before it is."""
    kind, line = allowed_command(config, backend, command)
    added = profile_arguments(config, kind, profile)
    folder = await asyncio.to_thread(allowed_folder, config, path)
    shell_path = await _path(config, shell)
    words = [*words_of(line), *added, *(more or [])]
    program = await asyncio.to_thread(_program, words[0], shell_path)
    if program is None:
        raise unprocessable(
            "command_unavailable",
            f"{words[0]} is not to be found: install it, or set spawn.env_path in {config.config_path}",
            command=line,
            searched=shell_path,
        )
    environ = {**config.spawn.env, "PATH": shell_path, "REPOWIRE_HOME": str(config.home)}
    return Order(kind, profile, line, folder, program, words, environ, **about)


async def _path(config: Config, shell: LoginShell) -> str:
    said = os.environ.get("PATH") or os.defpath
    if config.spawn.login_shell:
        said = await shell.path(config.spawn.login_shell_seconds)
    return f"{config.spawn.env_path}:{said}" if config.spawn.env_path else said


def _program(word: str, path: str) -> str | None:
    """Where a program lies; a path in the command must be absolute, since nobody knows where it would begin.

    So must a folder of the PATH: it is entered before the program is run, and a project may hold what is called so.
    """
    word = os.path.expanduser(word)
    if "/" in word:
        return shutil.which(word) if os.path.isabs(word) else None
    return shutil.which(word, path=os.pathsep.join(filter(os.path.isabs, path.split(os.pathsep))))
