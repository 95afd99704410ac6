"""`repowire` and `python -m repowire`. The version is said before anything of the command line is imported."""

import os
import sys

from repowire import __version__, cli


def main() -> int:
    """The exit code is the process's: 0 ok, 1 refused or failed, 2 usage, 3 no daemon, 4 pending, 130 interrupted."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_closed_streams()
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


def _open_closed_streams() -> None:
    """Started with `>&-`: the number of a closed stream would go to the next file that is opened, and be written to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


if __name__ == "__main__":
    sys.exit(main())
