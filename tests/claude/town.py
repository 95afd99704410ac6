"""Claude Codes who are peers: a daemon, a user who ran setup, and what is proven of a message."""

import re
from typing import Any

from conftest import Live, TmuxServer, end_daemons, until

from claude.driver import NEWEST, PATIENCE_SECONDS, Claude, User, content
from claude.model import Block, Model, Turn, tool

ASK = re.compile(r"· ask #(ask-[0-9a-f]+)\n.*?(\d+)", re.DOTALL)
WAYS = ("inbox", "panes")  # with the runtime's own inbox, or with its pane and hooks alone


class Town:
    """`way` says how messages come in; every Claude's rules are those of `habits` and what the test adds."""

    def __init__(self, live: Live, tmux: TmuxServer, model: Model, way: str) -> None:
        self.live, self.tmux, self.model, self.way = live, tmux, model, way
        self.user = User(live.folder.parent, model)
        self.claudes: list[Claude] = []
        self.start_daemon()
        done = live.cli("setup", "claude-code", "--yes", HOME=str(self.user.home))
        assert done.returncode == 0, done.stderr
        permissions = self.user.read(self.user.settings)["permissions"]
        self.user.change_settings(permissions={**permissions, "allow": ["mcp__repowire"]})
        habits(model)

    def start_daemon(self) -> None:
        self.live.start(REPOWIRE_DELIVERY__INBOX="true" if self.way == "inbox" else "false")

    def without_mcp(self) -> None:
        """Take repowire's MCP server off its Claudes: it starts a daemon itself, as soon as none answers."""
        self.user.write(self.user.state, self.user.read(self.user.state) | {"mcpServers": {}})

    def claude(self, name: str, version: str = NEWEST) -> Claude:
        """A Claude that is not started yet. All that a town shall have are to be made before the first starts."""
        self.claudes.append(Claude(self.tmux, self.user, name, version))
        return self.claudes[-1]

    def arrive(self, claude: Claude, *arguments: str) -> Claude:
        """Start it, in the mode that asks for permission, and wait until it is a peer that can be reached."""
        claude.start(*arguments, bypass=False)
        claude.until(lambda: self.reachable(claude.name), "it is a peer with a way in")
        return claude

    def peer(self, name: str) -> dict[str, Any]:
        """The peer as the daemon lists it; empty when there is none."""
        found: list[dict[str, Any]] = self.live.get("/peers")["peers"]
        return next((peer for peer in found if peer["display_name"] == name), {})

    def reachable(self, name: str) -> bool:
        return self.peer(name).get("status") in ("online", "busy")

    def close(self) -> None:
        """End every Claude, and the daemon that its MCP server may have started in place of one that ended."""
        for claude in self.claudes:
            claude.kill()
        self.live.close()
        until(lambda: not end_daemons(self.live.folder))

    # -- messages

    def tell(self, name: str, text: str) -> str:
        """A note of the user to a peer; the delivery's id."""
        return str(self.live.post("/notify", to_peer=name, text=text)["delivery_id"])

    def state(self, delivery_id: str) -> str:
        return str(self.live.get(f"/deliveries/{delivery_id}")["state"])

    def reason(self, delivery_id: str) -> str:
        return str(self.live.get(f"/deliveries/{delivery_id}")["reason"])

    def until_state(self, claude: Claude, delivery_id: str, *states: str, seconds: float = PATIENCE_SECONDS) -> None:
        try:
            until(lambda: self.state(delivery_id) in states, seconds)
        except AssertionError:
            found = self.live.get(f"/messages/{delivery_id}")
            raise AssertionError(f"not {states} but {found}\n{claude.name} shows:\n{claude.screen()}") from None

    def until_seen(self, claude: Claude, *ids: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Told once, by the recipient's transcript, and known to be shown, by whatever way it went in."""
        for one in ids:
            self.until_state(claude, one, "seen", "answered", seconds=seconds)
            claude.until(lambda one=one: times_told(claude, one) == 1, f"{one} was told once")


def times_told(claude: Claude, one: str) -> int:
    """How often the message was put to that Claude, over all its sessions, by its own transcripts."""
    return sum(f"#{one}\n" in text for text in told(claude))


def told(claude: Claude) -> list[str]:
    """What it was told, in order, over all its sessions: prompts, what it heard while it worked, what hooks gave."""
    found = []
    for session in claude.sessions():
        for line in claude.transcript(session):
            if line["type"] == "user":
                found += [block["text"] for block in content(line) if block["type"] == "text"]
            elif line["type"] == "attachment" and line["attachment"]["type"] == "queued_command":
                found.append(str(line["attachment"]["prompt"]))
            elif line["type"] == "attachment" and line["attachment"]["type"] == "hook_additional_context":
                found += line["attachment"]["content"]
    return found


def habits(model: Model) -> None:
    """Who is asked for a number answers with twice it and one; who is to ask asks, waits and says what came back."""

    def answers(turn: Turn) -> list[Block]:
        asked = dict(ASK.findall(turn.heard))
        return [tool("mcp__repowire__ack", correlation_id=one, message=doubled(n)) for one, n in asked.items()]

    def waits(turn: Turn) -> Block:
        return tool("mcp__repowire__wait_on_ack", correlation_id=turn.result, timeout_seconds=30)

    model.on(r"^shell (.*)$", lambda turn: tool("Bash", command=turn.match[1], description="d"), "It ran.")
    model.on(r"· notify #(\S+)\n", lambda turn: f"Noted {turn.match[1]}.")
    model.on(ASK.pattern, answers, "Answered.")
    model.on(
        r"^ask (\w+): (.*)$",
        lambda turn: tool("mcp__repowire__ask", peer_name=turn.match[1], query=turn.match[2]),
        waits,
        lambda turn: f"The peer says: {turn.result}",
    )


def doubled(number: str) -> str:
    return f"twice and one is {2 * int(number) + 1}"
