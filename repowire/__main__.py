"""`repowire` and `python -m repowire`. The version is said before anything of the command line is imported."""

import os
import sys

from repowire import __version__, cli


def main() -> int:
    """The exit code is the process's: 0 ok, 1 refused or failed, 2 usage, 3 no daemon, 4 pending, 130 interrupted."""
    argv = sys.argv[1:]
    if argv in (["--version"], ["-V"]):
        print(f"repowire {__version__}")
        return 0
    try:
        code = cli.main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough; the interpreter would complain when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
