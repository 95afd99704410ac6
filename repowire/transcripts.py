"""Transcripts: what a runtime wrote down of a session, by its agent's facts. Nothing is ever written to one."""

import json
from pathlib import Path
from typing import Any

from repowire.agents import claude_code_hooks as claude
from repowire.agents import files
from repowire.protocol import shown

NEWEST_BYTES = 1 << 16  # of its end, in which a line with a moment stands


def shown_in(transcript: Path, tail_bytes: int | None = None) -> set[str]:
    """The ids of the whole messages that the model was given, by the transcript, or by its last `tail_bytes`.

    Reads a file line by line, so it is for a thread. A transcript that is not there shows nothing.
    """
    found: set[str] = set()
    try:
        with files.opened(str(transcript)) as file:
            if tail_bytes is not None:
                file.seek(max(0, file.seek(0, 2) - tail_bytes))
            for line in file:
                if b"[repowire " in line:
                    found.update(_shown_by(line))
    except OSError:
        return found
    return found


def newest_at(transcript: Path) -> float | None:
    """When the newest of its last lines was written, in unix seconds; None when none of them says. For a thread."""
    try:
        with files.opened(str(transcript)) as file:
            file.seek(max(0, file.seek(0, 2) - NEWEST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    return max((at for line in lines if (at := claude.written_at(line)) is not None), default=None)


def _shown_by(line: bytes) -> list[str]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # the first line of a tail is cut, the last line may be half written
        return []
    return _in(said) if isinstance(said, dict) and claude.shows(said) else []


def _in(value: Any) -> list[str]:
    """The ids in every string."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return [one for part in value.values() for one in _in(part)]
    return [one for part in value for one in _in(part)] if isinstance(value, list) else []
