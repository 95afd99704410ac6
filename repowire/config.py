"""The settings and the files of the home, for the daemon and for its clients.

One frozen record, read from `config.toml` and `REPOWIRE_SECTION__KEY`; whatever is unknown or out of bounds is an
error that names its place, the key and what is allowed. Every command line starts here, so the imports stay few.
"""

import binascii
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from repowire import settings
from repowire.settings import Setting

SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux and 104 on macOS, the final NUL included
TOKEN_BYTES = 32  # 43 characters of base64
MAX_CONFIG_BYTES = 1024 * 1024
SHOWN_CHARS = 300  # of a value that is refused


class ConfigError(ValueError):
    """A setting or a file of the home that we do not start with; the text says which and what to do."""


# -- model ---------------------------------------------------------------------


class Config(NamedTuple):
    """Every setting, and where the files of the home lie. Another one like it: `config._replace(...)`."""

    home: Path
    daemon: settings.Daemon = settings.Daemon()
    mesh: settings.MeshSection = settings.MeshSection()
    delivery: settings.DeliverySection = settings.DeliverySection()
    spawn: settings.SpawnSection = settings.SpawnSection()
    approvals: settings.Approvals = settings.Approvals()
    store: settings.Store = settings.Store()
    ledger: settings.LedgerSection = settings.LedgerSection()

    @property
    def config_path(self) -> Path:
        return self.home / "config.toml"

    @property
    def token_path(self) -> Path:
        return self.home / "token"

    @property
    def socket_path(self) -> Path:
        return self.home / "daemon.sock"

    @property
    def database_path(self) -> Path:
        return self.home / "state.db"

    @property
    def traces_dir(self) -> Path:
        return self.home / "traces"

    @property
    def blobs_dir(self) -> Path:
        return self.home / "blobs"

    @property
    def lock_path(self) -> Path:
        return self.home / "daemon.lock"

    @property
    def log_path(self) -> Path:
        return self.home / "daemon.log"


# -- reading -------------------------------------------------------------------


def load(home: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Defaults, then `config.toml`, then the environment. Raises ConfigError."""
    folder = home_of(environ) if home is None else Path(os.path.abspath(home))
    values: dict[str, dict[str, object]] = {section: {} for section in settings.SECTIONS}
    for section, key, value, place, read in (*_from_file(folder / "config.toml"), *_from_environment(environ)):
        known = _known(place, section, key)
        values[section][key] = _checked(f"{place}: {section}.{key}", value, known, known.parse if read else None)
    return Config(folder, **{section: made(**values[section]) for section, made in settings.SECTIONS.items()})


def place_of(config: Config, section: str, key: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where a setting that was read is to be changed: its variable, else the file."""
    said = [place for *of, _, place, _ in _from_environment(environ) if of == [section, key]]
    return said[-1] if said else str(config.config_path)


def home_of(environ: Mapping[str, str] = os.environ) -> Path:
    """`REPOWIRE_HOME`, else `~/.repowire`; absolute."""
    return Path(os.path.abspath(os.path.expanduser(environ.get("REPOWIRE_HOME") or "~/.repowire")))


Given = tuple[str, str, object, str, bool]  # section, key, value, its place, whether it is text still to be parsed


def _from_file(path: Path) -> Iterator[Given]:
    for section, table in _document(path).items():
        if not isinstance(table, dict):
            if section in settings.SECTIONS:
                raise ConfigError(f"{path}: {section} is a section; write [{section}] and its keys below it")
            having = [f"[{one}]" for one in settings.SECTIONS if section in settings.keys(one)]
            where = f"write it below {' or '.join(having)}" if having else f"there are {', '.join(settings.SECTIONS)}"
            raise ConfigError(f"{path}: {section} stands in no section; {where}")
        for key, value in table.items() or [("", None)]:
            if key or section not in settings.SECTIONS:
                yield section, key, value, str(path), False


def _document(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=_opened_at_once) as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.getuid(), 0):
                _refuse(path, "belongs to another user; a config must be your own")
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, "is not a plain file")
            if status.st_size > MAX_CONFIG_BYTES:
                _refuse(path, f"has {status.st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
            import tomllib  # here, since most homes have no config and every command line would pay for it

            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}")
    except ConfigError:
        raise
    except ValueError as error:  # a mistake in the TOML, or bytes that are not UTF-8
        _refuse(path, f"is not TOML: {error}")
    except RecursionError:
        _refuse(path, "nests its values too deep")


def _opened_at_once(path: str, flags: int) -> int:
    """For `open`: a pipe in a file's place makes nobody wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _from_environment(environ: Mapping[str, str]) -> Iterator[Given]:
    for name in sorted(environ):
        if name.startswith("REPOWIRE_") and "__" in name:
            section, _, key = name.removeprefix("REPOWIRE_").lower().partition("__")
            yield section, key, environ[name], f"environment variable {name}", True


def _known(place: str, section: str, key: str) -> Setting:
    if section not in settings.SECTIONS:
        raise ConfigError(f"{place}: unknown section [{section}]; allowed: {', '.join(settings.SECTIONS)}")
    if key not in settings.keys(section):
        raise ConfigError(f"{place}: unknown key {section}.{key}; allowed: {', '.join(settings.keys(section))}")
    return settings.keys(section)[key]


def _checked(place: str, value: Any, known: Setting, parse: Callable[[str], object] | None) -> object:
    try:
        return known.read(parse(value) if parse else value)
    except (ValueError, RecursionError):  # JSON may nest deeper than Python reads
        shown = "this value" if known is settings.TOKEN else _short(value)  # a secret goes into no log
        raise ConfigError(f"{place}: {shown} is not allowed; it must be {known.allowed}") from None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes out
        return "this value"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


# -- the home ------------------------------------------------------------------


def prepare_home(home: Path) -> None:
    """Make the home, or see that it is ours alone (0700). Raises ConfigError for whatever we would not trust."""
    try:
        os.makedirs(home, mode=0o700, exist_ok=True)
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if os.path.islink(home):
            _refuse(home, "is a symbolic link; name the folder itself in REPOWIRE_HOME")
        _refuse(home, f"cannot be used as the home: {error.strerror}")
    try:
        _make_private(home, folder)
    finally:
        os.close(folder)


def _make_private(home: Path, folder: int) -> None:
    status = os.fstat(folder)
    if status.st_uid != os.getuid():
        _refuse(home, f"belongs to another user (uid {status.st_uid}); choose a folder of your own in REPOWIRE_HOME")
    mode = stat.S_IMODE(status.st_mode)
    if mode == 0o700:
        return
    names = os.listdir(folder)
    if mode & 0o022 and names:  # a token or config in there may be somebody else's
        _refuse(home, f"can be written by others (mode {mode:04o}); look at what is in it, then chmod 700 it")
    if names and not {"config.toml", "token", "state.db", "daemon.lock"} & set(names):
        _refuse(home, f"holds other things and is open to others (mode {mode:04o}); chmod 700 it, or choose another")
    os.fchmod(folder, 0o700)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ConfigError(f"{path}: {why}")


def read_token(home: Path) -> str | None:
    """The token of the home, None when there is none yet. Raises ConfigError when others could have read or made it."""
    path = home / "token"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "is a symbolic link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        _refuse(path, f"{why}; remove it and start the daemon again for a new one")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            _refuse(path, "is not a file of your own; remove it and start the daemon again for a new one")
        if status.st_mode & 0o077:
            _refuse(path, "can be read by others; run `repowire token --rotate`, or chmod 600 it if nobody has seen it")
        token = os.read(descriptor, 4_096).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    if not settings.sendable(token):
        _refuse(path, "holds more than printable ASCII; remove it and start the daemon again for a new one")
    return token or None


def write_token(home: Path) -> str:
    """Put a new random token in place of the old one, whole and on the disk when this returns. Raises ConfigError."""
    token = _urlsafe(os.urandom(TOKEN_BYTES))
    path, fresh = home / "token", home / f".token.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_whole(fresh, token.encode() + b"\n")
        os.replace(fresh, path)
        sync_folder(home)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return token


def tcp_token(config: Config) -> str | None:
    """The token that TCP asks for, made on first use; None when `daemon.auth_token` is set and empty."""
    if config.daemon.auth_token is not None:
        return config.daemon.auth_token or None
    return read_token(config.home) or write_token(config.home)


def sync_file(descriptor: int) -> None:
    """Put a file's bytes on the disk, past the drive's own cache. Raises OSError; then nobody knows what is there."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # macOS: fsync only reaches the drive's cache
    else:
        os.fdatasync(descriptor)


def sync_folder(path: Path) -> None:
    """Put a folder's names on the disk: a new file without this may be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _urlsafe(raw: bytes) -> str:
    text = binascii.b2a_base64(raw, newline=False).decode()
    return text.rstrip("=").replace("+", "-").replace("/", "_")


def _write_whole(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def read_lock(home: Path) -> dict[str, Any] | None:
    """What the daemon last wrote about itself; None when it never did or stopped in order. It may be dead since."""
    import json  # here, since most of what imports this module reads no lock

    try:
        found = json.loads((home / "daemon.lock").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def socket_address(path: Path) -> str:
    """The path, or a short alias of it where a socket's address would not hold it. Raises ConfigError."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return str(path)
    if sys.platform == "linux":
        return f"/proc/self/fd/{_folder_descriptor(str(path.parent))}/{path.name}"
    raise ConfigError(f"{path}: is too long for a Unix socket; choose a shorter REPOWIRE_HOME")


@cache
def _folder_descriptor(folder: str) -> int:
    """Stays open as long as the process: the alias is good for nothing without it."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used as the home: {error.strerror}") from error
