"""`repowire setup` and `repowire uninstall`: what an agent needs to be a peer, written into its settings and taken out.

Whatever is not ours keeps every byte: the text is edited, shown as a diff first, backed up, and replaced whole. What
cannot be read as JSON is left alone.
"""

import argparse
import difflib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from repowire import config
from repowire.agents import claude_code_setup as claude
from repowire.agents import files
from repowire.agents.json_text import NotJson
from repowire.cli import command as c
from repowire.clock import SystemClock

AGENTS = ("claude-code",)
SHOWN_CHARS = 200  # of a line of the diff: some programs keep megabytes on one
BACKUP = ".repowire-backup-"
TRIES = 3  # a running agent writes its own settings now and then
NEW_MODE, NEW_FOLDER_MODE = 0o600, 0o700


class Part(NamedTuple):
    """A file of the agent's settings, and what is done with its text."""

    path: Path
    add: Callable[[str, claude.Program], str]
    drop: Callable[[str], str]
    drift: Callable[[str, claude.Program], list[claude.Drift]]
    lock: str | None = None  # which Claude Code's own programs hold while they write it


class Edit(NamedTuple):
    """A file that will change: `before` is None where there is none yet, `after` where it goes."""

    path: Path
    before: bytes | None
    after: bytes | None


# -- commands ------------------------------------------------------------------


def main(argv: list[str]) -> int:
    if argv[0] == "uninstall":
        made = c.parser(
            "uninstall",
            "Take out of an agent's settings what setup wrote, and nothing else. The daemon's home stays.",
            "  repowire uninstall --dry-run\n  repowire uninstall claude-code --yes",
        )
        made.add_argument("agent", nargs="?", choices=AGENTS, default=AGENTS[0])
        _common(made)
        return c.run(made, argv[1:], uninstall)
    made = c.parser(
        "setup",
        "Make an agent's sessions peers: writes its hooks and its MCP server into its settings, shows the diff first.",
        "  repowire setup claude-code --dry-run\n  repowire setup claude-code --approvals on",
    )
    made.add_argument("agent", choices=AGENTS)
    _common(made)
    made.add_argument(
        "--approvals",
        choices=("on", "off"),
        help="with on, the tools of approvals.gated_tools wait for you, wherever you answer: see `repowire approvals`;"
        " without this flag it stays as it is",
    )
    made.add_argument("--check", action="store_true", help="say what is not as setup would write it; exit 1 if any")
    c.with_json(made)
    return c.run(made, argv[1:], setup)


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument("--dry-run", action="store_true", help="show the diff and change nothing")
    made.add_argument("--yes", action="store_true", help="do not ask")


def setup(args: argparse.Namespace) -> int:
    program = running(args.approvals)
    if args.check:
        return check(program, as_json=args.json)
    changed = apply(args, lambda part: edit(part, lambda text: part.add(text, program)))
    for path in turned_off():
        c.note(f"{path}: disableAllHooks is true: no hook runs, and no tool waits for you, until you take it out")
    if not changed or args.dry_run:
        _report(args, program, changed)
    else:
        with c.printing("the settings were written, but stdout cannot be"):
            _report(args, program, changed)
    return c.OK


def _report(args: argparse.Namespace, program: claude.Program, changed: list[str]) -> None:
    if args.json:
        approvals = program.gated is not None
        c.put(c.to_json({"agent": args.agent, "approvals": approvals, "changed": changed, "dry_run": args.dry_run}))
    elif not changed:
        c.put(f"{args.agent} is set up already; nothing to do")
    elif not args.dry_run:
        c.put("done; sessions that run already get the hooks at once, and the tools when they start anew")
        c.put('its own question before each tool goes away with: "permissions": {"allow": ["mcp__repowire"]}')
        if program.gated is not None:
            c.put(f"these tools wait for you: {', '.join(program.gated)}; answer them with: repowire approvals watch")
            if "Bash" in program.gated and "Skill" not in program.gated:
                c.put(
                    "what a skill runs by itself (!`…` in its text) does not: for that put Skill into gated_tools too"
                )


def uninstall(args: argparse.Namespace) -> int:
    args.json = False
    try:
        program = running()
    except config.ConfigError:  # what is taken out does not depend on it
        program = running("off")
    if not apply(args, lambda part: take_out(part, program)):
        c.put(f"nothing of repowire is in the settings of {args.agent}")
    return c.OK


def check(program: claude.Program, *, as_json: bool) -> int:
    """Each entry that is not as setup would write it; exit 1 if there is one."""
    drifts = []
    for part in parts():
        raw = read(part.path)
        drifts += [(part.path, one) for one in part.drift(text_of(part.path, raw), program)]
    drifts += [(path, claude.Drift("disableAllHooks", "true: no hook runs; take it out")) for path in turned_off()]
    if as_json:
        rows = [{"file": str(path), "entry": one.entry, "what": one.what} for path, one in drifts]
        c.put(c.to_json({"ok": not drifts, "drift": rows}))
    else:
        for path, one in drifts:
            c.put(f"{path}: {one.entry}: {one.what}")
        c.put("set up" if not drifts else "repair it with: repowire setup claude-code")
    return c.FAILED if drifts else c.OK


def apply(args: argparse.Namespace, plan: Callable[[Part], Edit | None]) -> list[str]:
    """Plan all, show all, ask once, then write; the files that changed."""
    changing = [(part, edit) for part in parts() if (edit := plan(part)) is not None]
    if not changing:
        return []
    if not args.json:
        no_room = c.printing("nothing was changed: stdout cannot be written")
        with c.before_it_is_done(asks=not (args.yes or args.dry_run)), no_room:
            for _, edit in changing:
                show(edit)
    if not args.dry_run:
        if not args.yes:
            confirm()
        with ExitStack() as holding:  # every lock before the first byte: who is refused has nothing changed
            for part, _ in changing:
                holding.enter_context(held(part))
            for part, _ in changing:
                write_settled(part, plan)
    return [str(edit.path) for _, edit in changing]


def confirm() -> None:
    """Ask at the terminal; without one the answer must come as a flag."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        c.fail("nobody is here to ask: look at it with --dry-run, then say --yes", c.USAGE)
    c.note("Write this? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        c.fail("nothing was changed")


# -- planning ------------------------------------------------------------------


def running(approvals: str | None = None) -> claude.Program:
    """This very program; its home only where it is not the usual one. Approvals are `on`, `off`, or as they are now."""
    home = config.home_of()
    usual = home == config.home_of({"HOME": os.environ.get("HOME", "")})
    folder = str(Path(claude.__file__).parent.parent)
    on = approvals == "on" or (approvals is None and has_approvals())
    gated = config.load().approvals.gated_anywhere if on else None
    return claude.Program(sys.executable, folder, None if usual else str(home), gated)


def has_approvals() -> bool:
    """Whether the settings have our gate; what cannot be read is said when it is edited."""
    path = parts()[0].path
    try:
        return claude.has_approvals(text_of(path, read(path)))
    except NotJson:
        return False


def turned_off() -> list[Path]:
    """The settings of this user, and of the folder that we are in, that keep every hook from running."""
    folder = Path(".claude").absolute()
    found = []
    for path in (parts()[0].path, folder / "settings.json", folder / "settings.local.json"):
        try:
            off = claude.hooks_are_off(files.text_of(str(path)))
        except (NotJson, OSError):  # Claude Code reads it no better
            off = False
        if off and path not in found:
            found.append(path)
    return found


def parts() -> list[Part]:
    """The files of Claude Code's settings for this user."""
    said = os.environ.get("CLAUDE_CONFIG_DIR")
    home = Path(os.path.expanduser("~"))
    folder, main = (Path(said), Path(said) / ".claude.json") if said else (home / ".claude", home / ".claude.json")
    return [
        Part(folder / "settings.json", claude.add_hooks, claude.drop_hooks, claude.hooks_drift),
        Part(main, claude.add_server, claude.drop_server, claude.server_drift, f"{main}.lock"),
    ]


def read(path: Path) -> bytes | None:
    """The file's bytes, None when there is none; a link is followed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            refuse(path, "is a link to a file that is not there; make the file, or remove the link")
        return None


def text_of(path: Path, raw: bytes | None) -> str:
    """As text without a byte lost."""
    try:
        return "" if raw is None else raw.decode()
    except UnicodeDecodeError as error:
        refuse(path, f"is not UTF-8 (byte {error.start}); it was not touched")


def edit(part: Part, change: Callable[[str], str]) -> Edit | None:
    """What becomes of a file; None where nothing does."""
    before = read(part.path)
    text = text_of(part.path, before)
    try:
        after = change(text)
    except NotJson as wrong:
        refuse(part.path, f"{wrong}; it was not touched. Mend it and run this again")
    return None if after == text else Edit(part.path, before, after.encode())


def take_out(part: Part, program: claude.Program) -> Edit | None:
    """Uninstalling: the bytes from before the setup where nothing else was changed since, else without our entries."""
    before = read(part.path)
    if before is None:
        return None
    found = edit(part, part.drop)
    if found is None:
        return None
    for backup in sorted(part.path.parent.glob(f"{part.path.name}{BACKUP}*"), reverse=True):
        old = text_of(backup, read(backup))
        if is_original(part, old, text_of(part.path, before), program):
            return found._replace(after=old.encode())
    if part.add("", program).encode() == before:
        return found._replace(after=None)
    return found


def is_original(part: Part, old: str, now: str, program: claude.Program) -> bool:
    """Whether a backup holds nothing of ours and would be what is there now, once set up."""
    try:
        return len(part.drift(old, program)) == len(part.drift("", program)) and part.add(old, program) == now
    except NotJson:
        return False


def show(one: Edit) -> None:
    """What will change, as a unified diff without control characters."""
    before, after = ((raw or b"").decode().splitlines() for raw in (one.before, one.after))
    old, new = (str(one.path) if raw is not None else os.devnull for raw in (one.before, one.after))
    for line in difflib.unified_diff(before, after, old, new, lineterm=""):
        tint = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        c.put(c.colour(c.cut(c.clean(line), SHOWN_CHARS), tint))


# -- writing -------------------------------------------------------------------


def write_settled(part: Part, plan: Callable[[Part], Edit | None]) -> None:
    """Write it, planned anew where somebody else wrote in between."""
    for _ in range(TRIES):
        one = plan(part)
        if one is None or replace(one):
            return
    refuse(part.path, "is being changed by another program; close it and run this again")


@contextmanager
def held(part: Part) -> Iterator[None]:
    """Hold the file's lock, where it has one; wait a while for who has it."""
    clock = SystemClock()
    with ExitStack() as holding:
        for _ in range(files.TRIES):
            with suppress(files.Locked):
                holding.enter_context(files.locked(part.lock, clock.now()))
                break
            time.sleep(files.TRY_SECONDS)  # nothing tells when a folder goes: look again until the tries are spent
        else:
            why = f"is being changed by Claude Code (it holds {part.lock})"
            refuse(part.path, f"{why}; nothing was written. Run this again")
        yield


def replace(one: Edit) -> bool:
    """Back the old bytes up and put the new ones whole in their place; False where the old ones are others now."""
    place = Path(os.path.realpath(one.path))  # a link stays, its target is edited
    place.parent.mkdir(mode=NEW_FOLDER_MODE, parents=True, exist_ok=True)
    if one.before is not None:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        backup = one.path.parent / f"{one.path.name}{BACKUP}{moment}"
        write_new(backup, one.before, NEW_MODE)
        c.hint(f"the old one is kept as {backup}")
    if one.after is None:
        if read(one.path) != one.before:
            return False
        place.unlink()
        config.sync_folder(place.parent)
        return True
    mode = NEW_MODE if one.before is None else stat.S_IMODE(place.stat().st_mode)
    fresh = place.with_name(f".{place.name}.repowire-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        write_new(fresh, one.after, mode)
        if read(one.path) != one.before:
            return False
        os.replace(fresh, place)
    finally:
        fresh.unlink(missing_ok=True)
    config.sync_folder(place.parent)
    return True


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that was not there, whole and on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        config.sync_file(descriptor)


def refuse(path: Path, why: str) -> NoReturn:
    c.fail(f"{path}: {why}")
