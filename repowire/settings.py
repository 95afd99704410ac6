"""What can be set: every key of the config with its unit, its meaning, what is allowed and its default.

`config.py` reads them. Every command line starts here, so the imports stay few.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

MIB = 1024 * 1024
YEAR = 366 * 86_400  # seconds

# -- model ---------------------------------------------------------------------
# Named tuples, not dataclasses: those import inspect, ast and dis, more than all the rest of a short command.


class Setting(NamedTuple):
    """What a key of the config is in: its `unit`, `meaning`, what is `allowed` in words, and how a value is read.

    `read` takes a TOML value, `parse` turns an environment variable's text into one; both raise ValueError.
    """

    unit: str
    meaning: str
    allowed: str
    read: Callable[[object], object]
    parse: Callable[[str], object] = str


def _number(unit: str, least: float, most: float, meaning: str, *, whole: bool) -> Setting:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ValueError
        if not least <= value <= most:  # false for nan too
            raise ValueError
        return value

    def parse(text: str) -> object:
        return int(text) if whole or text.strip().isdigit() else float(text)

    return Setting(unit, meaning, f"a {'whole ' if whole else ''}number from {least} to {most}", read, parse)


def _whole(unit: str, least: int, most: int, meaning: str) -> Setting:
    return _number(unit, least, most, meaning, whole=True)


def _seconds(least: float, most: float, meaning: str) -> Setting:
    return _number("seconds", least, most, meaning, whole=False)


def _flag(meaning: str) -> Setting:
    words = {"true": True, "1": True, "false": False, "0": False}

    def read(value: object) -> object:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def parse(text: str) -> object:
        return words.get(text.strip().lower())  # None is no flag, and `read` says so

    return Setting("flag", meaning, "true or false", read, parse)


def _one_of(unit: str, choices: tuple[str, ...], meaning: str) -> Setting:
    return _text(unit, "one of " + ", ".join(choices), choices.__contains__, meaning)


def _text(unit: str, allowed: str, good: Callable[[str], bool], meaning: str) -> Setting:
    def read(value: object) -> object:
        if not isinstance(value, str) or not good(value):
            raise ValueError
        return value

    return Setting(unit, meaning, allowed, read)


def _made_of(unit: str, allowed: str, good: Callable[[Any], bool], meaning: str) -> Setting:
    """A table or a list of the TOML; JSON in a variable."""

    def read(value: object) -> object:
        if not good(value):
            raise ValueError
        return value

    def parse(text: str) -> object:
        import json  # here, since most homes set none of these

        return json.loads(text)

    return Setting(unit, meaning, allowed, read, parse)


def _words(value: object) -> bool:
    return isinstance(value, list) and all(_word(one) for one in value)


def _word(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def _by_agent(value: object, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(key in STARTABLE and good(one) for key, one in value.items())


def _profiles(value: object) -> bool:
    return isinstance(value, dict) and all(_is_name(name) and _profile(one) for name, one in value.items())


def _profile(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() - {"args", "description"}:
        return False
    return _words(value.get("args", [])) and isinstance(value.get("description", ""), str)


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 64 and all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in value)


def _variables(value: object) -> bool:
    return isinstance(value, dict) and all(
        name.isascii() and name.isidentifier() and isinstance(one, str) and "\0" not in one
        for name, one in value.items()
    )


def _folders(value: object) -> bool:
    return _words(value) and all(os.path.isabs(os.path.expanduser(one)) for one in value)  # type: ignore[attr-defined]


def _names(meaning: str) -> Setting:
    def read(value: object) -> object:
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and one for one in value):
            raise ValueError
        return tuple(value)

    def parse(text: str) -> object:
        return [name.strip() for name in text.split(",") if name.strip()]

    return Setting("names", meaning, "a list of names, in the environment with commas between", read, parse)


def _json(text: str) -> object:
    import json  # here, since nearly nobody writes a table into a variable

    return json.loads(text)


def _rules(meaning: str) -> Setting:
    known = {"tool": str, "arguments": dict, "other_arguments": bool}

    def good(rule: object) -> bool:
        if not isinstance(rule, dict) or not rule.get("tool") or not rule.keys() <= known.keys():
            return False
        named = rule.get("arguments", {})
        return all(isinstance(value, known[key]) for key, value in rule.items()) and all(
            isinstance(pattern, str) for pattern in named.values()
        )

    def read(value: object) -> object:
        if not isinstance(value, (list, tuple)) or not all(map(good, value)):
            raise ValueError
        return tuple(value)

    return Setting("rules", meaning, "a list of { tool, arguments = { name = pattern }, other_arguments }", read, _json)


def _sections(meaning: str) -> Setting:
    def read(value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError
        return {name: _own_approvals(name, table) for name, table in value.items()}

    return Setting("tables", meaning, "a table each, with gated_tools, allow or hold_open", read, _json)


def _own_approvals(name: str, table: object) -> "OwnApprovals":
    if not name or not isinstance(table, dict) or not table.keys() <= set(OwnApprovals._fields):
        raise ValueError
    read: dict[str, Any] = {key: _OWN[key].read(value) for key, value in table.items()}
    return OwnApprovals(**read)


def sendable(value: str) -> bool:
    """Whether an HTTP header carries it unchanged."""
    return all("!" <= letter <= "~" for letter in value)


def _is_host(value: str) -> bool:
    return value != "" and sendable(value)


HOST = _text(
    "host",
    "a host name or an IP address",
    _is_host,
    "TCP address to listen on; any other than loopback is refused without a token.",
)
TOKEN = _text(
    "text",
    "printable ASCII without spaces, or empty",
    sendable,
    "Bearer token of the TCP side; unset means the one in the home's `token` file, empty opens loopback TCP.",
)
PORT = _whole("port", 0, 65_535, "TCP port to listen on; 0 takes any free one.")
DRAIN = _seconds(0, 3_600, "How long requests may finish when the daemon stops.")
WAIT_CAP = _seconds(1, 600, "The longest that a blocking question waits for its answer.")
QUEUE_TTL = _seconds(1, YEAR, "How long a message waits for a peer before it expires.")
QUEUE_MAX = _whole("messages", 1, 1_000_000, "How many messages may wait for one peer; one more is refused.")
LEASE = _seconds(1, 3_600, "How long a handed message may lack its receipt before its state is `unknown`.")
ASK_TTL = _seconds(1, YEAR, "How long an ask stays open without an answer.")
REMINDER_BUDGET = _whole(
    "bytes",
    0,
    20_000,
    "What one turn's end may say of unanswered asks, less the mail it carries (never cut); 0 for no reminders.",
)
DESCRIPTION_TTL = _seconds(0, YEAR, "How long a peer's description of its work is shown; 0 for ever.")
HEARTBEAT = _seconds(1, 3_600, "How often an orchestrator is to be heard of; after two of these its role can be taken.")
REAP_TTL = _seconds(1, YEAR, "How long an offline peer stays in the list of peers.")
MAX_SOCKETS = _whole("sockets", 1, 1_000_000, "How many WebSockets may be open at once.")
LOG_LEVEL = _one_of(
    "level", ("debug", "info", "warning", "error"), "The least severe line that the daemon's log keeps."
)
CIRCLES = _one_of(
    "choice",
    ("one", "tmux"),
    "Circle of an agent that names none: `one` for the whole host, or with `tmux` its tmux session.",
)
INBOX = _flag("Hand messages to an agent's own inbox where its session has one; `false` uses its pane alone.")
STARTABLE = ("claude-code", "opencode", "codex", "gemini", "antigravity", "pi")
COMMANDS = _made_of(
    "table",
    f"a table of command lines by kind of agent: {', '.join(STARTABLE)}",
    lambda value: _by_agent(value, _word),
    "What may be started, by kind of agent; without any nothing is.",
)
ALLOWED_COMMANDS = _made_of(
    "list",
    "a list of command lines",
    _words,
    "More command lines that may be started, word for word; the name of the program says the kind of agent.",
)
ALLOWED_PATHS = _made_of(
    "list",
    "a list of absolute paths",
    _folders,
    "Folders in which, and below which, agents may be started; links are followed first. Without any nothing is.",
)
PROFILES = _made_of(
    "table",
    "tables by kind of agent and name, each with a list `args` and a text `description`",
    lambda value: _by_agent(value, _profiles),
    "Sets of arguments that a start may ask for by name; they are added to the command.",
)
SPAWN_ENV = _made_of(
    "table", "a table of texts by name of variable", _variables, "Environment variables of what is started."
)
ENV_PATH = _text("path", "folders with a colon between them", lambda value: "\0" not in value, "Put before its PATH.")
LOGIN_SHELL = _flag("Give what is started the PATH of your login shell, asked once; `false` gives it the daemon's own.")
LOGIN_SHELL_SECONDS = _seconds(0.1, 60, "How long the login shell may take to say its PATH.")
TMUX_SOCKET = _text(
    "path",
    "the absolute path of a socket, or empty",
    lambda value: value == "" or os.path.isabs(value),
    "The tmux server in which agents are started; empty means your own.",
)
MAX_AGENTS = _whole("agents", 1, 10_000, "How many started agents may run at once; one more is refused.")
SETTLE = _seconds(
    0, 60, "How long a start is watched: what ends within it has failed, and is told with what it showed."
)
GATED_TOOLS = _names("Tools that wait for a person, `*` for any run of letters; Read, Glob, Grep and LS never do.")
ALLOW = _rules("Calls of gated tools that need no person; see docs/approvals.md for what a pattern matches.")
HOLD_OPEN = _flag(
    "Let a tool permission wait until it is answered, as long as the agent's runtime waits, past the cap above."
)
OWN_CIRCLES = _sections("A stricter policy for the peers of a circle, by its name; it never loosens the one here.")
OWN_PEERS = _sections(
    "Another policy for one peer: by its id it wins over the one here, by its name it only tightens it."
)
_OWN = {"gated_tools": GATED_TOOLS, "allow": ALLOW, "hold_open": HOLD_OPEN}
CHECKPOINT_BYTES = _whole("bytes", 65_536, 1024 * MIB, "Size of the write-ahead log that starts a checkpoint.")
CHECKPOINT_SECONDS = _seconds(1, 86_400, "How long a write may stay in the write-ahead log without a checkpoint.")
SEGMENT_BYTES = _whole("bytes", 4_096, 1024 * MIB, "Size at which a trace file is closed and the next one begun.")
RETENTION_DAYS = _number("days", 0.01, 36_500, "Age at which a closed trace file is removed.", whole=False)
RETENTION_BYTES = _whole(
    "bytes", 4_096, 2**50, "Total of all trace files above which the oldest closed one is removed."
)


class Daemon(NamedTuple):
    """`[daemon]`: where it listens, and how long things may take."""

    host: Annotated[str, HOST] = "127.0.0.1"
    port: Annotated[int, PORT] = 8377
    auth_token: Annotated[str | None, TOKEN] = None
    drain_seconds: Annotated[float, DRAIN] = 5
    question_wait_cap_seconds: Annotated[float, WAIT_CAP] = 55
    delivery_queue_ttl_seconds: Annotated[float, QUEUE_TTL] = 86_400
    delivery_queue_max_per_peer: Annotated[int, QUEUE_MAX] = 100
    delivery_lease_seconds: Annotated[float, LEASE] = 60
    ask_ttl_seconds: Annotated[float, ASK_TTL] = 86_400
    reminder_budget_bytes: Annotated[int, REMINDER_BUDGET] = 2_000
    description_ttl_seconds: Annotated[float, DESCRIPTION_TTL] = 900
    heartbeat_interval_seconds: Annotated[float, HEARTBEAT] = 30
    peer_reap_ttl_seconds: Annotated[float, REAP_TTL] = 600
    max_sockets: Annotated[int, MAX_SOCKETS] = 10_000
    log_level: Annotated[str, LOG_LEVEL] = "info"


class MeshSection(NamedTuple):
    """`[mesh]`: who may reach whom."""

    circles: Annotated[str, CIRCLES] = "one"


class DeliverySection(NamedTuple):
    """`[delivery]`: which way messages take to an agent."""

    inbox: Annotated[bool, INBOX] = True


class SpawnSection(NamedTuple):
    """`[spawn]`: which agents may be started, where, and how."""

    commands: Annotated[Mapping[str, str], COMMANDS] = {}
    allowed_commands: Annotated[Sequence[str], ALLOWED_COMMANDS] = []
    allowed_paths: Annotated[Sequence[str], ALLOWED_PATHS] = []
    profiles: Annotated[Mapping[str, Any], PROFILES] = {}
    env: Annotated[Mapping[str, str], SPAWN_ENV] = {}
    env_path: Annotated[str, ENV_PATH] = ""
    login_shell: Annotated[bool, LOGIN_SHELL] = True
    login_shell_seconds: Annotated[float, LOGIN_SHELL_SECONDS] = 5
    tmux_socket: Annotated[str, TMUX_SOCKET] = ""
    settle_seconds: Annotated[float, SETTLE] = 2
    max_agents: Annotated[int, MAX_AGENTS] = 64


class OwnApprovals(NamedTuple):
    """What `[approvals.peers.NAME]` or `[approvals.circles.NAME]` says; None: as the next wider one."""

    gated_tools: tuple[str, ...] | None = None
    allow: tuple[dict[str, Any], ...] | None = None
    hold_open: bool | None = None


class Approvals(NamedTuple):
    """`[approvals]`: which tools of an agent wait for a person."""

    gated_tools: Annotated[tuple[str, ...], GATED_TOOLS] = ("Bash", "Edit", "Write", "MultiEdit", "NotebookEdit")
    allow: Annotated[tuple[dict[str, Any], ...], ALLOW] = ()
    hold_open: Annotated[bool, HOLD_OPEN] = False
    circles: Annotated[Mapping[str, OwnApprovals], OWN_CIRCLES] = {}
    peers: Annotated[Mapping[str, OwnApprovals], OWN_PEERS] = {}

    @property
    def gated_anywhere(self) -> tuple[str, ...]:
        """Every tool that waits for a person somewhere: by the config itself, of a circle, or of a peer."""
        own = [*self.circles.values(), *self.peers.values()]
        return tuple(dict.fromkeys([*self.gated_tools, *(tool for one in own for tool in one.gated_tools or ())]))


class Store(NamedTuple):
    """`[store]`: how the database is kept."""

    checkpoint_bytes: Annotated[int, CHECKPOINT_BYTES] = 4 * MIB
    checkpoint_seconds: Annotated[float, CHECKPOINT_SECONDS] = 60


class LedgerSection(NamedTuple):
    """`[ledger]`: how much history is kept."""

    segment_bytes: Annotated[int, SEGMENT_BYTES] = 16 * MIB
    retention_days: Annotated[float, RETENTION_DAYS] = 30
    retention_bytes: Annotated[int, RETENTION_BYTES] = 1024 * MIB


SECTIONS: dict[str, type[Any]] = {
    "daemon": Daemon,
    "mesh": MeshSection,
    "delivery": DeliverySection,
    "spawn": SpawnSection,
    "approvals": Approvals,
    "store": Store,
    "ledger": LedgerSection,
}


def keys(section: str) -> dict[str, Setting]:
    """The keys of a section."""
    return {key: hint.__metadata__[0] for key, hint in SECTIONS[section].__annotations__.items()}
