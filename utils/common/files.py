"""Files that are written whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.common.errors import UserError


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and put it in `path`'s place at the end.

    Whatever happens on the way, `path` is either the old file or the new one, whole.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old file is still there.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # another for each writer
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs no file that is only read
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        kept = "the previous file is kept: " if path.exists() else ""
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): {kept}make room or choose "
            "another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor's mark may be there
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path}: cannot be read as JSON ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value
