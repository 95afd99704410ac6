"""The login shell: the PATH that its user has in a terminal, which a daemon that was started elsewhere has not.

Asked once in a daemon's life, off the loop, in a session of its own, and given up on when it takes too long.
"""

import asyncio
import os
import pwd
import signal
from contextlib import suppress
from tempfile import TemporaryFile

MARK = b"[repowire: the environment begins]"


class LoginShell:
    """What the user's shell says of its PATH, kept from the first answer on."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._asking = asyncio.Lock()
        self.trouble: str | None = None  # why the daemon's own PATH is used

    async def path(self, seconds: float) -> str:
        """Its PATH; the daemon's own where the shell does not say one in time."""
        async with self._asking:
            if self._path is None:
                self._path = await self._ask(seconds) or os.environ.get("PATH") or os.defpath
        return self._path

    async def _ask(self, seconds: float) -> str | None:
        shell = os.environ.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
        words = f"printf '%s\\n' '{MARK.decode()}'; env"  # `env`, since shells do not agree on what "$PATH" is
        with TemporaryFile() as said:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(shell, "-l", "-i", "-c", words),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=said,  # a file: what a shell's start leaves running would hold a pipe open
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self.trouble = f"{shell} cannot be run: {error.strerror}"
                return None
            try:
                async with asyncio.timeout(seconds):
                    await process.wait()
            except TimeoutError:
                self.trouble = f"{shell} did not say its PATH within {seconds:g} s"
                return None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await asyncio.shield(process.wait())
            said.seek(0)
            _, _, lines = said.read(1 << 20).rpartition(MARK)
        found = [line for line in lines.split(b"\n") if line.startswith(b"PATH=")]
        if not found:
            self.trouble = f"{shell} does not say its PATH"
            return None
        return os.fsdecode(found[0].removeprefix(b"PATH="))
