"""A process that is Claude Code to the daemon: it is called `claude`, runs the real hook script, has an inbox socket
and a registry file. It does what it is told, one JSON line each, and answers each with a line.

    {"hook": "Stop", "body": {...}}      run the hook; -> {"out": what it printed, "code": its exit code}
    {"status": "waiting"}                write the registry file
    {"inbox": false}                     close the inbox socket
    {"taken": true}                      -> {"taken": [the texts that came into the inbox so far]}
"""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

HOOK = Path(__file__).parent.parent / "repowire" / "hook_stdio.py"


class Inbox:
    """The socket that takes messages; what came is kept in order."""

    def __init__(self, path: Path) -> None:
        self.taken: list[str] = []
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen(64)
        self.path = path
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self.listening.accept()
                with link, link.makefile("rb") as lines:
                    for line in lines:
                        said = json.loads(line)
                        if said["type"] == "user":
                            self.taken.append(said["message"]["content"])

    def close(self) -> None:
        self.listening.close()
        self.path.unlink()


class Agent:
    def __init__(self, folder: Path, with_inbox: bool) -> None:
        self.config = folder / ".claude"
        (self.config / "sessions").mkdir(parents=True, exist_ok=True)
        self.registry = self.config / "sessions" / f"{os.getpid()}.json"
        self.inbox = Inbox(folder / f"{os.getpid()}.sock") if with_inbox else None

    def hook(self, event: str, body: dict[str, Any]) -> dict[str, Any]:
        session = body.get("session_id", "s-1")
        transcript = self.config / "projects" / "p" / f"{session}.jsonl"
        facts = {
            "session_id": session,
            "transcript_path": str(transcript),
            "cwd": os.getcwd(),
            "hook_event_name": event,
        }
        environ = {**os.environ, "CLAUDE_PID": str(os.getpid()), "CLAUDE_CODE_SESSION_ID": session}
        if self.inbox is not None:
            environ["CLAUDE_CODE_MESSAGING_SOCKET"] = str(self.inbox.path)
            environ["CLAUDE_CODE_MESSAGING_TOKEN"] = "t"
        done = subprocess.run(
            [os.path.realpath(sys.executable), "-I", "-S", str(HOOK), "claude-code", event],
            input=json.dumps({**facts, **body}).encode(),
            capture_output=True,
            env=environ,
            check=False,
        )
        return {"out": done.stdout.decode(), "err": done.stderr.decode(), "code": done.returncode}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if "hook" in order:
            return self.hook(order["hook"], order.get("body", {}))
        if "status" in order:
            new = self.registry.with_suffix(".new")
            new.write_text(json.dumps({"pid": os.getpid(), "status": order["status"]}))
            new.rename(self.registry)
        if order.get("inbox") is False and self.inbox is not None:
            self.inbox.close()
            self.inbox = None
        return {"taken": list(self.inbox.taken) if self.inbox else []}


def main() -> None:
    agent = Agent(Path(sys.argv[1]), "--inbox" in sys.argv)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(agent.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
