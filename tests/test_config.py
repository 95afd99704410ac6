"""The config says what is wrong, where, and what is allowed; the home's files are ours alone."""

import ast
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repowire import config, settings
from repowire.config import ConfigError

PAGE = Path(__file__).parent.parent / "docs" / "config.md"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
SECTIONS = "daemon, mesh, delivery, spawn, approvals, store, ledger"
KEYS = [(section, key) for section in settings.SECTIONS for key in settings.keys(section)]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def written(home: Path, text: str | bytes) -> Path:
    home.mkdir(mode=0o700, exist_ok=True)
    path = home / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


# -- reading -------------------------------------------------------------------


def test_without_a_file_everything_is_the_default(home: Path) -> None:
    assert config.load(home, {}) == config.Config(home)


def test_the_file_sets_and_the_environment_overrides(home: Path) -> None:
    written(home, '[daemon]\nport = 9000\nlog_level = "debug"\ndrain_seconds = 0.5\n[mesh]\ncircles = "tmux"\n')
    found = config.load(home, {"REPOWIRE_DAEMON__PORT": "9001", "REPOWIRE_LEDGER__RETENTION_DAYS": "1.5"})
    assert (found.daemon.port, found.daemon.log_level, found.daemon.drain_seconds) == (9001, "debug", 0.5)
    assert (found.mesh.circles, found.ledger.retention_days) == ("tmux", 1.5)


def test_an_empty_token_is_not_an_unset_one(home: Path) -> None:
    assert config.load(home, {}).daemon.auth_token is None
    assert config.load(home, {"REPOWIRE_DAEMON__AUTH_TOKEN": ""}).daemon.auth_token == ""
    written(home, '[daemon]\nauth_token = ""\n')
    assert config.load(home, {}).daemon.auth_token == ""


def test_the_home_is_given_by_the_environment_or_lies_in_the_users() -> None:
    assert config.load(None, {"REPOWIRE_HOME": "/some/where"}).home == Path("/some/where")
    assert config.load(None, {"REPOWIRE_HOME": "~/there"}).home == Path.home() / "there"
    assert config.home_of({}) == config.home_of({"REPOWIRE_HOME": ""}) == Path.home() / ".repowire"
    assert config.home_of({"REPOWIRE_HOME": "near"}) == Path.cwd() / "near"


def test_the_paths_of_the_home(home: Path) -> None:
    found = config.Config(home)
    assert {found.config_path, found.token_path, found.socket_path, found.database_path, found.traces_dir} == {
        home / name for name in ("config.toml", "token", "daemon.sock", "state.db", "traces")
    }
    assert {found.blobs_dir, found.lock_path, found.log_path} == {
        home / name for name in ("blobs", "daemon.lock", "daemon.log")
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[daemon]\nprot = 1\n", ("config.toml", "daemon.prot", "unknown", "port")),
        (
            "[deamon]\nport = 1\n",
            ("config.toml", "[deamon]", "unknown", SECTIONS),
        ),
        ("[deamon]\n", ("config.toml", "[deamon]", "unknown", SECTIONS)),
        ("port = 1\n", ("config.toml", "port stands in no section", "write it below [daemon]")),
        ("prot = 1\n", ("config.toml", "prot stands in no section", SECTIONS)),
        ("daemon = 1\n", ("config.toml", "daemon", "[daemon]")),
        ('[daemon]\nport = "8377"\n', ("config.toml", "daemon.port", "'8377'", "whole number from 0 to 65535")),
        ("[daemon]\nport = 70000\n", ("config.toml", "daemon.port", "70000", "from 0 to 65535")),
        ("[daemon]\nport = true\n", ("config.toml", "daemon.port", "True", "whole number")),
        ("[daemon]\nport = 1.0\n", ("config.toml", "daemon.port", "1.0", "whole number")),
        ("[daemon]\ndrain_seconds = nan\n", ("config.toml", "daemon.drain_seconds", "nan", "from 0 to 3600")),
        ("[daemon]\nask_ttl_seconds = inf\n", ("config.toml", "daemon.ask_ttl_seconds", "inf", "number")),
        ("[daemon]\nquestion_wait_cap_seconds = 601\n", ("question_wait_cap_seconds", "601", "from 1 to 600")),
        ('[daemon]\nlog_level = "loud"\n', ("daemon.log_level", "'loud'", "debug, info, warning, error")),
        ('[daemon]\nhost = ""\n', ("daemon.host", "''", "host name or an IP address")),
        ('[mesh]\ncircles = ["one"]\n', ("mesh.circles", "['one']", "one, tmux")),
        ("[spawn.commands]\ncodecs = 'x'\n", ("spawn.commands", "'codecs'", "claude-code, opencode, codex")),
        ("[spawn.commands]\npi = ' '\n", ("spawn.commands", "command lines by kind of agent")),
        ("[spawn]\nallowed_paths = ['src']\n", ("spawn.allowed_paths", "'src'", "absolute paths")),
        ("[spawn]\nallowed_paths = '/src'\n", ("spawn.allowed_paths", "a list of absolute paths")),
        ("[spawn.profiles.pi.fast]\nargz = ['x']\n", ("spawn.profiles", "argz", "`args`")),
        ("[spawn.env]\n'A B' = 'x'\n", ("spawn.env", "'A B'", "name of variable")),
        ("[spawn]\ntmux_socket = 'x'\n", ("spawn.tmux_socket", "'x'", "absolute path")),
        ("[daemon\n", ("config.toml", "is not TOML", "line 1")),
        (b'[daemon]\nhost = "\xff"\n', ("config.toml", "is not TOML")),
        ("a = " + "[" * 100_000, ("config.toml", "too deep")),
        ("[daemon]\nport = 0x" + "f" * 5_000, ("config.toml", "daemon.port", "this value", "whole number")),
        ("#" * 2_000_000, ("config.toml", "2000000 bytes", "at most")),
    ],
)
def test_a_mistake_names_its_place_and_what_is_allowed(home: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(written(home, text), {})
    assert all(word in str(caught.value) for word in (str(home), *words)), caught.value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("REPOWIRE_DAEMON__PORT", "eighty", ("'eighty'", "whole number from 0 to 65535")),
        ("REPOWIRE_DAEMON__PORT", "80.0", ("'80.0'", "whole number")),
        ("REPOWIRE_DAEMON__DRAIN_SECONDS", "nan", ("'nan'", "from 0 to 3600")),
        ("REPOWIRE_DAEMON__PROT", "1", ("unknown key daemon.prot", "port")),
        (
            "REPOWIRE_RELAY__API_KEY",
            "x",
            ("unknown section [relay]", SECTIONS),
        ),
        ("REPOWIRE_SPAWN__COMMANDS", '{"pi": 1}', ("spawn.commands", '"pi": 1')),
        ("REPOWIRE_SPAWN__COMMANDS", "claude", ("spawn.commands", "'claude'")),
        ("REPOWIRE_SPAWN__COMMANDS", "[" * 100_000, ("spawn.commands", "[[[…")),
        ("REPOWIRE_STORE__", "x", ("unknown key store.", "checkpoint_bytes")),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    home: Path, name: str, text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(home, {name: text})
    assert all(word in str(caught.value) for word in (name, *words)), caught.value


@pytest.mark.parametrize("token", ["two words", "new\nline", "naïve"])
def test_a_refused_token_is_not_shown(home: Path, token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        config.load(home, {"REPOWIRE_DAEMON__AUTH_TOKEN": token})
    assert token not in str(caught.value)


def test_other_variables_are_not_settings(home: Path) -> None:
    others = {"REPOWIRE_AUTH_TOKEN": "x", "REPOWIRE_DAEMON_URL": "y", "PATH": "z", "OTHER__KEY": "w"}
    assert config.load(home, others) == config.Config(home)


@as_root
def test_a_config_of_another_user_is_refused(home: Path) -> None:
    os.chown(written(home, "") / "config.toml", 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        config.load(home, {})


def test_a_config_that_cannot_be_read_says_so(home: Path) -> None:
    (home / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.toml: cannot be read"):
        config.load(home, {})


def test_a_config_that_is_a_pipe_or_a_device_is_refused_at_once(home: Path) -> None:
    home.mkdir()
    os.mkfifo(home / "config.toml")
    with pytest.raises(ConfigError, match=r"config\.toml: is not a plain file"):
        config.load(home, {})
    (home / "config.toml").unlink()
    (home / "config.toml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"config\.toml: is not a plain file"):
        config.load(home, {})


# -- the page ------------------------------------------------------------------


def row(section: str, key: str) -> str:
    """A key as `docs/config.md` must tell it."""
    known, default = settings.keys(section)[key], settings.SECTIONS[section]._field_defaults[key]
    words = default
    if isinstance(default, bool | tuple | dict):
        words = json.dumps(default)
    shown = "unset" if default is None else f"`{words}`"
    name = f"REPOWIRE_{section}__{key}".upper()
    return f"| `{section}.{key}` | {known.unit} | {shown} | {known.allowed} | {known.meaning} | `{name}` |"


def test_the_page_tells_every_key_and_no_other() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if "`REPOWIRE_" in line and line.startswith("| `")]
    assert rows == [row(section, key) for section, key in KEYS]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_default_is_allowed_and_every_key_explained(section: str, key: str) -> None:
    known, default = settings.keys(section)[key], settings.SECTIONS[section]._field_defaults[key]
    assert default is None or known.read(default) == default
    assert known.unit
    assert known.allowed
    assert known.meaning.endswith(".")


def test_a_key_that_names_seconds_or_bytes_has_that_unit() -> None:
    for section, key in KEYS:
        for unit in ("seconds", "bytes", "days"):
            assert not key.endswith(f"_{unit}") or settings.keys(section)[key].unit == unit


# -- start-up time -------------------------------------------------------------


def test_the_import_brings_in_nothing_slow() -> None:
    slow = ("dataclasses", "inspect", "json", "tomllib", "logging", "asyncio", "secrets", "socket")
    code = f"import sys, repowire.config as c; c.load(); print([m for m in {slow} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": "/nonexistent"}, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(found.stdout) == []


# -- the home ------------------------------------------------------------------


def test_the_home_is_made_private(tmp_path: Path) -> None:
    config.prepare_home(tmp_path / "new" / "home")
    assert mode(tmp_path / "new" / "home") == 0o700


@pytest.mark.parametrize("loose", [0o755, 0o750, 0o777, 0o500])
def test_an_empty_home_is_tightened(home: Path, loose: int) -> None:
    home.mkdir()
    home.chmod(loose)
    config.prepare_home(home)
    assert mode(home) == 0o700


def test_a_home_of_ours_that_others_read_is_tightened(home: Path) -> None:
    written(home, "").chmod(0o755)
    config.prepare_home(home)
    assert mode(home) == 0o700


def test_a_home_where_others_could_plant_a_file_is_refused(home: Path) -> None:
    written(home, "").chmod(0o775)
    with pytest.raises(ConfigError, match=r"written by others.*0775.*chmod 700"):
        config.prepare_home(home)
    assert mode(home) == 0o775


def test_a_folder_of_other_things_is_left_alone(home: Path) -> None:
    home.mkdir()
    (home / "letters").write_text("")
    home.chmod(0o755)
    with pytest.raises(ConfigError, match="holds other things"):
        config.prepare_home(home)
    assert mode(home) == 0o755


def test_a_symlinked_home_is_refused(tmp_path: Path, home: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    home.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="symbolic link"):
        config.prepare_home(home)


def test_a_home_that_is_a_file_is_refused(home: Path) -> None:
    home.write_text("")
    with pytest.raises(ConfigError, match="cannot be used as the home"):
        config.prepare_home(home)


@as_root
def test_a_home_of_another_user_is_refused(home: Path) -> None:
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)
    with pytest.raises(ConfigError, match=r"another user.*12345"):
        config.prepare_home(home)


# -- the token -----------------------------------------------------------------


def test_the_token_is_long_private_and_new_each_time(home: Path) -> None:
    config.prepare_home(home)
    assert config.read_token(home) is None
    first = config.write_token(home)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first)
    assert mode(home / "token") == 0o600
    assert config.read_token(home) == first
    assert config.write_token(home) != first
    assert os.listdir(home) == ["token"]


def test_a_token_is_written_whole_or_not_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.prepare_home(home)
    first = config.write_token(home)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config, "sync_file", full)
    with pytest.raises(ConfigError, match="token: cannot be written: No space left"):
        config.write_token(home)
    assert config.read_token(home) == first
    assert os.listdir(home) == ["token"]


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o602])
def test_a_token_that_others_may_have_is_refused(home: Path, bits: int) -> None:
    config.prepare_home(home)
    config.write_token(home)
    (home / "token").chmod(bits)
    with pytest.raises(ConfigError, match=r"can be read by others.*--rotate"):
        config.read_token(home)


def test_a_symlinked_token_is_refused(tmp_path: Path, home: Path) -> None:
    config.prepare_home(home)
    (tmp_path / "elsewhere").write_text("secret")
    (home / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        config.read_token(home)


def test_a_token_that_is_no_file_is_refused_without_waiting_for_a_writer(home: Path) -> None:
    config.prepare_home(home)
    os.mkfifo(home / "token", 0o600)
    with pytest.raises(ConfigError, match="not a file of your own"):
        config.read_token(home)


@as_root
def test_a_token_of_another_user_is_refused(home: Path) -> None:
    config.prepare_home(home)
    config.write_token(home)
    os.chown(home / "token", 12345, 12345)
    with pytest.raises(ConfigError, match="not a file of your own"):
        config.read_token(home)


def test_an_empty_token_file_never_opens_the_door(home: Path) -> None:
    config.prepare_home(home)
    (home / "token").touch(0o600)
    assert config.read_token(home) is None
    made = config.tcp_token(config.load(home, {}))
    assert made is not None
    assert len(made) == 43
    assert config.tcp_token(config.load(home, {})) == made


def test_only_an_empty_setting_opens_tcp(home: Path) -> None:
    config.prepare_home(home)
    assert config.tcp_token(config.load(home, {"REPOWIRE_DAEMON__AUTH_TOKEN": ""})) is None
    assert config.tcp_token(config.load(home, {"REPOWIRE_DAEMON__AUTH_TOKEN": "mine"})) == "mine"
    assert not (home / "token").exists()


# -- lock and socket -----------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\xff"])
def test_a_lock_without_words_is_none(home: Path, text: str | None) -> None:
    config.prepare_home(home)
    if text is not None:
        (home / "daemon.lock").write_text(text, encoding="latin-1")
    assert config.read_lock(home) is None


def test_a_lock_tells_what_the_daemon_wrote(home: Path) -> None:
    config.prepare_home(home)
    (home / "daemon.lock").write_text('{"pid": 7, "port": 8377}')
    assert config.read_lock(home) == {"pid": 7, "port": 8377}


def test_a_short_socket_path_stays_as_it_is() -> None:
    assert config.socket_address(Path("/h/daemon.sock")) == "/h/daemon.sock"


@pytest.mark.skipif(sys.platform != "linux", reason="the alias goes through /proc")
def test_a_long_socket_path_gets_an_alias_that_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    path = folder / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(config.socket_address(path))
        server.listen(1)
        assert path.is_socket()
        client.connect(config.socket_address(path))
    assert config.socket_address(path) == config.socket_address(path)


def test_a_long_socket_path_is_refused_where_there_is_no_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="shorter REPOWIRE_HOME"):
        config.socket_address(Path("/" + "x" * 120))
