"""The folder of a run: settings, log and checkpoints, each written whole or not at all."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

from utils.common.errors import UserError
from utils.common.files import write_text

ARGS_FILE, LOG_FILE = "args.json", "log.jsonl"
BEST_FILE, LAST_FILE = "best.pth", "last.pth"
RUN_FILES = (ARGS_FILE, LOG_FILE, BEST_FILE, LAST_FILE)


def check_run_dir(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make sure that no run is lost: a folder that holds one is only entered on demand.

    Raises:
        UserError: the folder holds a run and neither flag was given, or `--resume` finds none.
    """
    if resume and not (folder / LAST_FILE).exists():
        raise UserError(f"--resume: {folder / LAST_FILE} is not there: --overwrite starts again")
    if not resume and not overwrite and any((folder / name).exists() for name in RUN_FILES):
        raise UserError(
            f"{folder}: holds a run: --resume goes on with it, --overwrite starts again, "
            "--run_name NAME takes another folder"
        )


def clear_run_dir(folder: Path, resume: bool) -> None:
    """Remove what a killed run left half-written and, unless it is resumed, the run itself."""
    for path in [*folder.glob(".*.partial"), *(folder / name for name in RUN_FILES if not resume)]:
        path.unlink(missing_ok=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first; a last line that a kill cut off is left out."""
    return read_log_and_note(folder)[0]


def read_log_and_note(folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The evaluations of a run, oldest first, and a note if its last line is cut off.

    Raises:
        UserError: the log cannot be read, or another line than the last is broken.
    """
    path = folder / LOG_FILE
    if not path.exists():
        return [], None
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise UserError(f"{path}: line {number} is not a JSON object: take it out of the log")
        else:
            return records, f"{path}: the last line is cut off and was left out"
    return records, None


def write_log(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write the log anew: it is small, and so never half a line."""
    write_text(folder / LOG_FILE, "".join(json.dumps(record) + "\n" for record in records))


def describe_environment() -> dict[str, str | None]:
    """Versions, the git commit and the machine, for `args.json`."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this code, `-dirty` behind it if files were changed; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        here = Path(__file__).parent
        return subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
