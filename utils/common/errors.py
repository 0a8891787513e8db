"""Errors that a user can mend, and how a script reports them."""

import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: a file, a flag or a folder that the user can mend.

    The message is one line that names the file or flag and says what to do. Scripts print it and
    exit with status 2 (`run_script`); library users catch it like any exception.
    """


def run_script(main: Callable[..., int | None], argv: list[str] | None = None) -> None:
    """Run a script's `main(argv)` and exit with its status; a `UserError` is one line, status 2.

    Ctrl-C is one line as well, and status 130; where nobody reads the output on (`| head`), the
    script ends quietly with status 1. Every other exception is a fault of the program and keeps its
    traceback. What the terminal's encoding cannot print is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not if somebody put another object there
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
        sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        line = str(error).replace("\n", "\\n")  # names may hold line breaks
        print("error:", line, file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # what is still buffered has no reader either
        sys.exit(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more ends what is left at once
        print("\nstopped: files that are complete are kept, none is half-written", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
