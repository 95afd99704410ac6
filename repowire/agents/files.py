"""Files that an agent keeps or names, read as what they may be: another program's, a pipe, or without an end."""

import os
import stat

MOST_BYTES = 4 * 1024 * 1024  # settings and registry files have some kilobytes


def text_of(path: str) -> str:
    """A file's text. Raises OSError when it cannot be read, is no file, or is too large; never waits for a writer."""
    try:
        with open(path, "rb", opener=_opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("is no file")
            data = file.read(MOST_BYTES + 1)
    except ValueError as error:  # a path may hold what no path may
        raise OSError(str(error)) from None
    if len(data) > MOST_BYTES:
        raise OSError("is too large")
    return data.decode("utf-8", "replace")


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
