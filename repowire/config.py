"""The settings and the files of the home, for the daemon and for its clients.

One frozen dataclass, read from `config.toml` and `REPOWIRE_SECTION__KEY`; whatever is unknown or out of bounds is an
error that names its place, the key and what is allowed. Every command line starts here, so the imports stay few.
"""

import binascii
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

SECTIONS = ("daemon", "mesh", "store", "ledger")
MIB = 1024 * 1024
WEEK_SECONDS = 7 * 86_400
YEAR_SECONDS = 366 * 86_400
SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux and 104 on macOS, the final NUL included
TOKEN_BYTES = 32  # 43 characters of base64


class ConfigError(ValueError):
    """A setting or a file of the home that we do not start with; the text says which and what to do."""


# -- model ---------------------------------------------------------------------


@dataclass(frozen=True)
class Allowed:
    """What a setting takes: `words` for people, `read` turns a TOML value or ValueError, `parse` reads a text first."""

    words: str
    read: Callable[[object], Any]
    parse: Callable[[str], object] = str


def setting(default: T, unit: str, meaning: str, allowed: Allowed) -> T:
    """A field of a section, with what its documentation and its check need."""
    made: T = field(default=default, metadata={"unit": unit, "meaning": meaning, "allowed": allowed})
    return made


def _number(kind: type[int] | type[float], least: float, most: float) -> Allowed:
    name = "a whole number" if kind is int else "a number"
    allowed_types = (int,) if kind is int else (int, float)

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, allowed_types) or not math.isfinite(value):
            raise ValueError
        if not least <= value <= most:
            raise ValueError
        return value

    def parse(text: str) -> object:
        return int(text) if kind is int or text.strip().isdigit() else float(text)

    return Allowed(f"{name} from {least} to {most}", read, parse)


def _whole(least: int, most: int) -> Allowed:
    return _number(int, least, most)


def _seconds(least: float, most: float) -> Allowed:
    return _number(float, least, most)


def _one_of(*choices: str) -> Allowed:
    def read(value: object) -> object:
        if value not in choices:
            raise ValueError
        return value

    return Allowed("one of " + ", ".join(f'"{choice}"' for choice in choices), read)


def _text(words: str, good: Callable[[str], bool]) -> Allowed:
    def read(value: object) -> object:
        if not isinstance(value, str) or not good(value):
            raise ValueError
        return value

    return Allowed(words, read)


def _sendable(value: str) -> bool:
    """Whether an HTTP header carries it unchanged."""
    return all("!" <= letter <= "~" for letter in value)


HOST = _text("a host name or an IP address", lambda value: value != "" and _sendable(value))
TOKEN = _text("printable ASCII without spaces, or empty", _sendable)


@dataclass(frozen=True)
class Daemon:
    """`[daemon]`: where it listens, and how long things may take."""

    host: str = setting(
        "127.0.0.1", "host", "TCP address to listen on; another than loopback is refused without a token.", HOST
    )
    port: int = setting(8377, "port", "TCP port to listen on; 0 takes any free one.", _whole(0, 65_535))
    auth_token: str | None = setting(
        None,
        "text",
        "Bearer token of the TCP side; unset means the one in the home's `token` file, empty opens loopback TCP.",
        TOKEN,
    )
    drain_seconds: float = setting(
        5, "seconds", "How long requests may finish when the daemon stops.", _seconds(0, 3_600)
    )
    question_wait_cap_seconds: float = setting(
        55, "seconds", "The longest that a blocking question waits for its answer.", _seconds(1, 600)
    )
    delivery_queue_ttl_seconds: float = setting(
        86_400, "seconds", "How long a message waits for a peer before it expires.", _seconds(1, YEAR_SECONDS)
    )
    delivery_queue_max_per_peer: int = setting(
        100, "messages", "How many messages may wait for one peer; the next one is refused.", _whole(1, 1_000_000)
    )
    delivery_lease_seconds: float = setting(
        60, "seconds", "How long a handed message may lack its receipt before its state is unknown.", _seconds(1, 3_600)
    )
    ask_ttl_seconds: float = setting(
        86_400, "seconds", "How long an ask stays open without an answer.", _seconds(1, YEAR_SECONDS)
    )
    description_ttl_seconds: float = setting(
        900, "seconds", "How long a peer's description of its work is shown.", _seconds(1, YEAR_SECONDS)
    )
    peer_reap_ttl_seconds: float = setting(
        600, "seconds", "How long an offline peer stays in the list of peers.", _seconds(1, YEAR_SECONDS)
    )
    max_sockets: int = setting(10_000, "sockets", "How many WebSockets may be open at once.", _whole(1, 1_000_000))
    log_level: str = setting(
        "info",
        "level",
        "The least severe line that the daemon's log keeps.",
        _one_of("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True)
class MeshSection:
    """`[mesh]`: who may reach whom."""

    circles: str = setting(
        "one",
        "choice",
        'The circle of an agent that names none: one for the whole host, or with "tmux" its tmux session.',
        _one_of("one", "tmux"),
    )


@dataclass(frozen=True)
class Store:
    """`[store]`: how the database is kept."""

    checkpoint_bytes: int = setting(
        4 * MIB, "bytes", "Size of the write-ahead log that starts a checkpoint.", _whole(65_536, 1024 * MIB)
    )
    checkpoint_seconds: float = setting(
        60, "seconds", "Age of the oldest write that starts a checkpoint, however small the log.", _seconds(1, 86_400)
    )


@dataclass(frozen=True)
class LedgerSection:
    """`[ledger]`: how much history is kept."""

    segment_bytes: int = setting(
        16 * MIB, "bytes", "Size at which a trace file is closed and the next one begun.", _whole(4_096, 1024 * MIB)
    )
    retention_days: float = setting(
        30, "days", "Age at which a closed trace file is removed.", _number(float, 0.01, 36_500)
    )
    retention_bytes: int = setting(
        1024 * MIB, "bytes", "Total of all trace files above which the oldest is removed.", _whole(4_096, 2**50)
    )


@dataclass(frozen=True)
class Config:
    """Every setting, and where the files of the home lie."""

    home: Path
    daemon: Daemon = Daemon()
    mesh: MeshSection = MeshSection()
    store: Store = Store()
    ledger: LedgerSection = LedgerSection()

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


SECTION_TYPES: dict[str, type[Any]] = {"daemon": Daemon, "mesh": MeshSection, "store": Store, "ledger": LedgerSection}


# -- reading -------------------------------------------------------------------


def load(home: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Defaults, then `config.toml`, then the environment. Raises ConfigError."""
    folder = home_of(environ) if home is None else Path(os.path.abspath(home))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    path = folder / "config.toml"
    for section, key, value in _from_file(path):
        allowed = _allowed(f"{path}: ", section, key)
        values[section][key] = _checked(f"{path}: {section}.{key}", value, allowed, lambda given: given)
    for name, section, key, text in _from_environment(environ):
        allowed = _allowed(f"environment: {name}: ", section, key)
        values[section][key] = _checked(f"environment: {name}", text, allowed, allowed.parse)
    return Config(folder, **{section: SECTION_TYPES[section](**values[section]) for section in SECTIONS})


def home_of(environ: Mapping[str, str] = os.environ) -> Path:
    """`REPOWIRE_HOME`, else `~/.repowire`; absolute."""
    given = environ.get("REPOWIRE_HOME")
    return Path(os.path.abspath(os.path.expanduser(given or "~/.repowire")))


def settings(section: str) -> tuple[Field[Any], ...]:
    """The fields of a section, whose metadata hold unit, meaning and what is allowed."""
    return fields(SECTION_TYPES[section])


def _from_file(path: Path) -> Iterator[tuple[str, str, object]]:
    for section, table in _document(path).items():
        if section not in SECTION_TYPES:
            raise ConfigError(f"{path}: unknown section [{section}]; allowed: {', '.join(SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} must be a section, written [{section}]")
        for key, value in table.items():
            yield section, key, value


def _document(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid not in (os.getuid(), 0):
                raise ConfigError(f"{path}: belongs to another user; a config must be your own")
            import tomllib  # here, since most homes have no config and every command line would pay for it

            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ConfigError:
        raise
    except ValueError as error:  # a TOML mistake, or bytes that are not UTF-8
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    for name in sorted(environ):
        if name.startswith("REPOWIRE_") and "__" in name:
            section, _, key = name.removeprefix("REPOWIRE_").lower().partition("__")
            yield name, section, key, environ[name]


def _allowed(place: str, section: str, key: str) -> Allowed:
    if section not in SECTION_TYPES:
        raise ConfigError(f"{place}unknown section {section}; allowed: {', '.join(SECTIONS)}")
    for known in settings(section):
        if known.name == key:
            allowed: Allowed = known.metadata["allowed"]
            return allowed
    names = ", ".join(known.name for known in settings(section))
    raise ConfigError(f"{place}unknown key {section}.{key}; allowed in [{section}]: {names}")


def _checked(place: str, value: Any, allowed: Allowed, parse: Callable[[Any], object]) -> object:
    try:
        return allowed.read(parse(value))
    except ValueError:
        shown = "(not shown)" if place.lower().endswith("auth_token") else repr(value)
        raise ConfigError(f"{place}: {shown} is not allowed; it must be {allowed.words}") from None


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
    if not _sendable(token):
        _refuse(path, "holds more than printable ASCII; remove it and start the daemon again for a new one")
    return token or None


def write_token(home: Path) -> str:
    """Put a new random token in place of the old one, whole and on the disk when this returns. Raises ConfigError."""
    token = _urlsafe(os.urandom(TOKEN_BYTES))
    path, fresh = home / "token", home / f".token.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        _write_whole(fresh, token.encode() + b"\n")
        os.replace(fresh, path)
        _sync_folder(home)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return token


def tcp_token(config: Config) -> str | None:
    """The token that TCP asks for, made on first use; None when `daemon.auth_token` is set and empty."""
    if config.daemon.auth_token is not None:
        return config.daemon.auth_token or None
    return read_token(config.home) or write_token(config.home)


def _urlsafe(raw: bytes) -> str:
    text = binascii.b2a_base64(raw, newline=False).decode()
    return text.rstrip("=").replace("+", "-").replace("/", "_")


def _write_whole(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
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
    if sys.platform != "linux":
        raise ConfigError(f"{path}: is too long for a Unix socket; choose a shorter REPOWIRE_HOME")
    return f"/proc/self/fd/{_folder_descriptor(str(path.parent))}/{path.name}"


@cache
def _folder_descriptor(folder: str) -> int:
    """Stays open as long as the process: the alias is good for nothing without it."""
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used as the home: {error.strerror}") from error
