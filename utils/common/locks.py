"""One kind of lock between processes, on every system."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from utils.common.errors import UserError

LOCK_TIMEOUT = 7200.0  # seconds


@contextlib.contextmanager
def locked(path: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold a lock file; while another process holds it, wait and say so.

    The lock is SQLite's on an empty file: on every system it ends with the process that holds it,
    so a killed run leaves nothing that would block the next one. The file stays: a lock on one that
    was removed would exclude nobody. Where a folder has no working locks (some network file
    systems), that is said.

    Raises:
        UserError: the wait was in vain.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    connection = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    start, told = time.monotonic(), False
    with contextlib.closing(connection):
        while not connection.in_transaction:
            try:
                connection.execute("PRAGMA journal_mode = MEMORY")  # no second file
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                if "locked" not in str(error):
                    print(f"{path}: no locks there ({error}): start nothing else in this folder")
                    break
                if time.monotonic() - start > timeout:
                    raise UserError(
                        f"{path}: another process holds it: wait for its end, or end it"
                    ) from None
                if not told:
                    print(f"{path}: held by another process, waiting for it to finish", flush=True)
                told = True
        yield
