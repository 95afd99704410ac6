"""A scripted peer, as `repowire listen --exec` runs it: the message comes on stdin, what is printed is the reply.

    repowire listen --name scout --exec 'python docs/demo/peer.py scout'

It answers from the checkout that it stands in. The historian knows what changed; how big that is it asks the scout.
"""

import subprocess
import sys
from pathlib import Path


def git(*arguments: str) -> list[str]:
    """Lines of a git command; none where there is no history."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def scout(message: str, notebook: Path) -> str:
    """Counts files and lines; writes down what it shall remember."""
    if message.startswith("remember:"):
        with notebook.open("a") as book:
            print(message, file=book)
        return "noted"
    words = message.removesuffix("?").split()
    place = words[-1] if words and Path(words[-1]).exists() else "."
    files = git("ls-files", "--", place) or [str(path) for path in Path(place).rglob("*.py")]
    lines = sum(len(Path(file).read_bytes().splitlines()) for file in files if Path(file).is_file())
    return f"{place}: {len(files)} files, {lines} lines"


def historian(message: str) -> str:
    """Says what the last commit was, and asks the scout about the folder that it touched."""
    last = git("log", "-1", "--format=%h %s")
    touched = git("log", "-1", "--name-only", "--format=") or ["repowire/"]
    folder = str(Path(touched[0]).parent)
    asked = subprocess.run(
        [sys.executable, "-m", "repowire", "ask", "scout", f"how big is {folder}?", "--wait", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    size = asked.stdout.strip() or f"the scout did not answer ({asked.stderr.strip()})"
    return f"{last[0] if last else 'no commit yet'}\nthe scout says of it: {size}"


def main(name: str, notebook: str) -> None:
    message = sys.stdin.read().strip()
    print(scout(message, Path(notebook)) if name == "scout" else historian(message))


if __name__ == "__main__":
    main(*sys.argv[1:])
