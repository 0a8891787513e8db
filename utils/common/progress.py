"""One kind of progress bar for everything that takes long, and lines beside it."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from tqdm import tqdm

from utils.common.processes import is_main

LOG_SECONDS = 30  # between two lines where the bar is no terminal's but a file's


def progress(items: Iterable | None, text: str, total: int | None = None, **options: Any) -> tqdm:
    """A bar over `items`; in a log file one short line every half a minute; in one process alone.

    Without items it is moved by `update()`; `options` are tqdm's.
    """
    options.setdefault("disable", not is_main())
    if not sys.stderr.isatty():
        rarely = dict.fromkeys(("mininterval", "maxinterval", "delay"), LOG_SECONDS)
        options = rarely | options
        options |= {"bar_format": "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}{postfix}\n"}
        options |= {"position": 0, "leave": True}  # no moves of a cursor, nothing wiped out
    return tqdm(items, text, total, **options)


def say(text: str) -> None:
    """Print, also while bars are shown; of several processes the first one does."""
    if not is_main():
        return
    if sys.stderr.isatty():
        tqdm.write(text)
    else:
        print(text, flush=True)


@functools.cache
def say_once(line: str) -> None:
    """Print a line to stderr: once in a process, and in the first of several processes alone."""
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        print(line, file=sys.stderr, flush=True)


class Unbroken:
    """A stream that nobody need read: what cannot be written is lost, and the program goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream or open(os.devnull, "w")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or do not."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do not."""
        with contextlib.suppress(OSError):
            self.stream.flush()


def outlive_output() -> None:
    """Go on where the terminal is gone, the reader of a pipe has enough, or the disk is full."""
    sys.stdout, sys.stderr = cast(TextIO, Unbroken(sys.stdout)), cast(TextIO, Unbroken(sys.stderr))
