"""Contradictions: where what is recorded of a peer and what is so do not agree, and what mends it.

Pure: from facts that somebody gathered to a list, in one order. Each says its evidence, and the command that mends it
where there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from repowire import __version__, presence
from repowire.agents import claude_code_hooks as claude
from repowire.agents.claude_code_setup import Drift
from repowire.asks import Ask
from repowire.deliveries import Delivery
from repowire.peers import Peer
from repowire.protocol import HELD_BY_USER, HUMAN
from repowire.sessions import Session
from repowire.survey import Place

ERROR, WARNING = "error", "warning"
STALE_ASK_SECONDS = 1800.0  # wire.md 4.2
SETTLED_SECONDS = 5.0  # a runtime may say that it is idle a moment before its hook does
CODES = (
    "ONLINE_BUT_NO_WS",
    "PANE_MISSING",
    "AGENT_PID_DEAD",
    "HOOK_PEERID_MISMATCH",
    "WS_PANE_MISMATCH",
    "STALE_PENDING_ASK",
    "DEAD_BUT_BUSY",
    "HELD_MAIL",
    "HOOKS_MISSING",
    "HOOKS_STALE",
    "INBOX_HELD",
    "TMUX_SERVER_CHANGED",
    "VERSION_SKEW",
)

# What lets a held message through, by the gate that holds it; {pane} and {name} are the peer's, {id} the delivery's
OPENERS = {
    "draft": "send or clear the text in the input box of pane {pane}",
    "typing": "take your hands off pane {pane} for some seconds, or: repowire deliver --now {id}",
    "dialog_open": "answer the dialog in pane {pane}; no message ever does",
    "mid_turn": "wait: the end of its turn carries it",
    "copy_mode": "leave copy mode in pane {pane} (q)",
    "input_off": "tmux select-pane -e -t {pane}",
    "panes_synchronized": "tmux set-option -w -t {pane} synchronize-panes off",
    "no_bracketed_paste": "wait until the program in pane {pane} is at its prompt",
    "screen_unknown": "bring pane {pane} to its empty prompt; what it shows is none that is known",
    "pane_left": "nothing to do: its agent has another way in, or what serves pane {pane} comes back",
    HELD_BY_USER: "repowire peer release {name}, or for this one: repowire deliver --now {id}",
    "receiver_policy": 'write "crossSessionInbound": "accept" into the settings, and begin a new session',
    "shell_prompt": "start the program in pane {pane} again: a shell would run the text",
    "tmux_hangs": "tmux does not answer: repowire doctor",
    "tmux_server_changed": "repowire link",
    "pane_gone": "repowire link",
    "agent_gone": "repowire link",
    "not_the_agent": "bring the agent to the front in pane {pane} (fg)",
}
OTHERWISE = "repowire trace {id}"
STOPPED = "it is stopped: kill -CONT {pid}, or fg in pane {pane} where its shell has the keys"


class Contradiction(NamedTuple):
    """One of them; `fix` names what `repowire peer doctor --fix` does about it."""

    code: str
    severity: str
    detail: str
    repair: str
    evidence: Mapping[str, Any]
    fix: str | None = None

    def json(self) -> dict[str, Any]:
        """As the report shows it."""
        return {**self._asdict(), "evidence": dict(self.evidence)}


@dataclass(frozen=True)
class Facts:
    """What is known of a peer at one moment; what was not looked at is None."""

    peer: Peer
    now: float  # unix seconds
    status: str
    here: bool  # it does not say that it is on another host
    local: bool  # and is known to be on this one (wire.md 4.2)
    connected: bool  # a socket is open
    channel: bool  # its runtime takes messages itself
    ws_pane_id: str | None
    place: Place | None  # its pane, where it was found
    server_answers: bool | None  # whether its recorded tmux server is the one that answers
    agent_alive: bool | None
    agent_stopped: bool
    says: str | None  # what its runtime says of itself
    session: Session | None
    hook_peer: Peer | None  # whom the hooks of its pane spoke for last
    pending: int
    oldest_ask: Ask | None
    held: Sequence[Delivery]  # oldest first
    drift: Sequence[tuple[str, Drift]] | None  # a file of its settings, and what is not as setup wrote it
    setup: str  # the command that writes them anew
    version: str | None  # of what is behind its socket

    @property
    def named(self) -> str:
        """How a command names it."""
        return self.peer.peer_id


def found(facts: Facts) -> list[Contradiction]:
    """All of them, those of the contract first, each kind at most once."""
    return [one for rule in RULES for one in rule(facts)]


# -- those of the contract (wire.md 4.2) ------------------------------------------


def _no_way_in(facts: Facts) -> Iterator[Contradiction]:
    peer = facts.peer
    awake = facts.status in (presence.ONLINE, presence.BUSY)
    if facts.local and awake and not facts.connected and not facts.channel and peer.role != HUMAN:
        in_pane = peer.pane_id is not None
        yield Contradiction(
            "ONLINE_BUT_NO_WS",
            ERROR,
            f"{peer.display_name} is {facts.status}, and nothing is connected for it",
            f"repowire peer rehook {facts.named} --apply" if in_pane else f"repowire inbox --peer {facts.named}",
            {"status": facts.status, "pane_id": peer.pane_id, "waiting": len(facts.held)},
            fix="rehook" if in_pane else None,
        )


def _no_pane(facts: Facts) -> Iterator[Contradiction]:
    peer = facts.peer
    if facts.local and peer.pane_id is not None and facts.server_answers is not None and facts.place is None:
        yield Contradiction(
            "PANE_MISSING",
            ERROR,
            f"tmux has no pane {peer.pane_id} of {peer.display_name}",
            f"repowire peer unregister {facts.named}" if facts.agent_alive is not True else "repowire link",
            {"pane_id": peer.pane_id, "server": peer.pane_server, "agent_pid_alive": facts.agent_alive},
        )


def _no_process(facts: Facts) -> Iterator[Contradiction]:
    peer = facts.peer
    if facts.here and facts.agent_alive is False:
        yield Contradiction(
            "AGENT_PID_DEAD",
            ERROR,
            f"process {peer.agent_pid} of {peer.display_name} has ended",
            f"repowire peer unregister {facts.named}",
            {"agent_pid": peer.agent_pid, "agent_started": peer.agent_started},
        )


def _hooks_of_another(facts: Facts) -> Iterator[Contradiction]:
    peer, other = facts.peer, facts.hook_peer
    if facts.local and other is not None and other.peer_id != peer.peer_id:
        yield Contradiction(
            "HOOK_PEERID_MISMATCH",
            ERROR,
            f"the hooks in pane {peer.pane_id} speak for {other.display_name}, not for {peer.display_name}",
            f"repowire peer unregister {facts.named}",
            {"pane_id": peer.pane_id, "hook_peer_id": other.peer_id, "hook_display_name": other.display_name},
        )


def _socket_of_another_pane(facts: Facts) -> Iterator[Contradiction]:
    if facts.local and facts.ws_pane_id is not None and facts.ws_pane_id != facts.peer.pane_id:
        yield Contradiction(
            "WS_PANE_MISMATCH",
            WARNING,
            f"its socket is of pane {facts.ws_pane_id}, and it is registered in {facts.peer.pane_id or 'none'}",
            f"repowire peer rehook {facts.named} --apply",
            {"ws_pane_id": facts.ws_pane_id, "pane_id": facts.peer.pane_id},
            fix="rehook",
        )


def _old_ask(facts: Facts) -> Iterator[Contradiction]:
    ask = facts.oldest_ask
    if facts.here and ask is not None and (age := facts.now - ask.created_at) > STALE_ASK_SECONDS:
        yield Contradiction(
            "STALE_PENDING_ASK",
            WARNING,
            f"{ask.correlation_id} has waited for an answer for {age / 60:.0f} min",
            f"repowire trace {ask.correlation_id}",
            {"correlation_id": ask.correlation_id, "age_seconds": round(age, 3), "pending": facts.pending},
        )


# -- ours ------------------------------------------------------------------------


def _dead_but_busy(facts: Facts) -> Iterator[Contradiction]:
    peer = facts.peer
    if not facts.here or not (facts.status == presence.BUSY or peer.turn_state == "working"):
        return
    idle = facts.says == "idle" and facts.now - peer.last_seen > SETTLED_SECONDS
    if facts.agent_alive is False:
        why, repair = f"its process {peer.agent_pid} has ended", f"repowire peer unregister {facts.named}"
    elif facts.agent_stopped:
        why, repair = f"its process {peer.agent_pid} is stopped", f"kill -CONT {peer.agent_pid}"
    elif idle:
        why, repair = "its runtime says that it is idle: the hook that ends a turn was not heard", facts.setup
    else:
        return
    said = {"status": facts.status, "turn_state": peer.turn_state, "runtime": facts.says, "agent_pid": peer.agent_pid}
    yield Contradiction("DEAD_BUT_BUSY", ERROR, f"{peer.display_name} is said to be at work, and {why}", repair, said)


def _held_mail(facts: Facts) -> Iterator[Contradiction]:
    if not facts.held:
        return
    oldest = facts.held[0]
    reason, age = oldest.reason or "unknown", facts.now - oldest.created_at
    words = {"pane": facts.peer.pane_id or "?", "name": facts.named, "id": oldest.delivery_id}
    opener = STOPPED if reason == "not_the_agent" and facts.agent_stopped else OPENERS.get(reason, OTHERWISE)
    yield Contradiction(
        "HELD_MAIL",
        WARNING,
        f"{len(facts.held)} held, the oldest for {age:.0f} s: {reason}",
        opener.format(**words, pid=facts.peer.agent_pid),
        {
            "count": len(facts.held),
            "oldest_delivery_id": oldest.delivery_id,
            "reason": reason,
            "age_seconds": round(age, 3),
            "attempts": oldest.attempts,
        },
    )


def _settings(facts: Facts) -> Iterator[Contradiction]:
    """What of the agent's settings is not as setup wrote it: what lacks, and what was changed or leads nowhere."""
    drift = [(file, one) for file, one in facts.drift or () if one.what != "other version"]
    for code, missing, words in (("HOOKS_MISSING", True, "lack"), ("HOOKS_STALE", False, "no longer say as written")):
        of_it = [(file, one) for file, one in drift if (one.what == "missing") is missing]
        if of_it:
            yield Contradiction(
                code,
                ERROR if any(one.entry.startswith("hooks") for _, one in of_it) else WARNING,
                f"its settings {words}: {', '.join(one.entry for _, one in of_it)}",
                facts.setup,
                {"entries": [{"file": file, "entry": one.entry, "what": one.what} for file, one in of_it]},
            )


def _inbox(facts: Facts) -> Iterator[Contradiction]:
    session, peer = facts.session, facts.peer
    if not facts.here or session is None or session.inbox is None:
        return
    if claude.takes_messages(session.mode, session.inbound):
        return
    yield Contradiction(
        "INBOX_HELD",
        WARNING if peer.pane_id is not None else ERROR,
        "its settings keep what comes into its inbox from its model"
        + ("; its pane is used" if peer.pane_id is not None else "; the end of its turns carries it"),
        OPENERS["receiver_policy"],
        {"crossSessionInbound": session.inbound, "permission_mode": session.mode, "pane_id": peer.pane_id},
    )


def _another_server(facts: Facts) -> Iterator[Contradiction]:
    if facts.local and facts.peer.pane_id is not None and facts.server_answers is False:
        yield Contradiction(
            "TMUX_SERVER_CHANGED",
            ERROR,
            f"the tmux server of its pane {facts.peer.pane_id} has ended; a pane of that id is a stranger's",
            "repowire link",
            {"server": facts.peer.pane_server, "pane_id": facts.peer.pane_id},
        )


def _versions(facts: Facts) -> Iterator[Contradiction]:
    other = [one.entry for _, one in facts.drift or () if one.what == "other version"]
    skewed = facts.connected and facts.version not in (None, __version__)
    if skewed or other:
        yield Contradiction(
            "VERSION_SKEW",
            WARNING,
            f"the daemon is {__version__}, and "
            + (f"what is connected for it is {facts.version}" if skewed else "its settings run another installation"),
            "repowire daemon restart" if skewed else facts.setup,
            {"daemon": __version__, "connected": facts.version, "entries": other},
        )


RULES = (
    _no_way_in,
    _no_pane,
    _no_process,
    _hooks_of_another,
    _socket_of_another_pane,
    _old_ask,
    _dead_but_busy,
    _held_mail,
    _settings,
    _inbox,
    _another_server,
    _versions,
)
