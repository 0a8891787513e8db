"""The folder of a run: settings, log and checkpoints, each written whole or not at all."""

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch

from datasets.base import SegmentationDataset
from utils.common.errors import UserError
from utils.common.files import read_json, write_json, write_text
from utils.common.locks import locked
from utils.common.processes import get_world_size, is_main
from utils.common.progress import say, say_once

ARGS_FILE, LOG_FILE = "args.json", "log.jsonl"
BEST_FILE, LAST_FILE = "best.pth", "last.pth"
LOCK_FILE = ".lock"
RUN_FILES = (ARGS_FILE, LOG_FILE, BEST_FILE, LAST_FILE)


class RunFolder:
    """Everything below `runs/<run_name>/`; of several processes, the first one writes."""

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        self.path = path
        self.best, self.last = path / BEST_FILE, path / LAST_FILE
        if tensorboard and find_spec("tensorboard") is None:
            raise UserError("--tensorboard: pip install tensorboard, or leave it out")
        self.tensorboard = tensorboard
        self._writer: Any = None

    def check(self, resume: bool, overwrite: bool) -> None:
        """Make sure that no run is lost: a folder that holds one is only entered on demand.

        Raises:
            UserError: the folder holds a run and neither flag was given, or none to resume.
        """
        if resume and not self.last.exists():
            raise UserError(f"--resume: {self.last} is not there: --overwrite starts again")
        has_run = any((self.path / name).exists() for name in RUN_FILES)
        if is_main() and not resume and not overwrite and has_run:
            raise UserError(
                f"{self.path}: holds a run: --resume goes on with it, --overwrite starts again, "
                "--run_name NAME takes another folder"
            )

    @contextlib.contextmanager
    def held(self, resume: bool, overwrite: bool) -> Iterator[None]:
        """Keep other runs out; first remove what a kill left half-written, or the old run.

        Raises:
            UserError: another process trains in this folder.
        """
        if not is_main():
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / LOCK_FILE, timeout=0))
            except OSError as error:
                raise UserError(
                    f"{self.path}: cannot be written ({error.strerror}): give another --runs_dir"
                ) from None
            self.check(resume, overwrite)  # another run may have come and gone
            leavings = ("scores*.json", "predictions_*.json", "predictions_*/*", "events.out.*")
            old = [*RUN_FILES, *leavings] if not resume else []
            for pattern in (".*.partial", *old):
                for path in self.path.glob(pattern):
                    path.unlink(missing_ok=True)
            yield

    def write_settings(
        self,
        command: str,
        settings: Mapping[str, Any],
        train_set: SegmentationDataset,
        val_set: SegmentationDataset,
        device: torch.device,
    ) -> None:
        """Write `args.json`, which is enough to run again; a resume with other images says so.

        `settings` are the flags' values, with what `auto` came to; the command stays the first one.
        """
        if not is_main():
            return
        path, sets = self.path / ARGS_FILE, {"train": train_set, "val": val_set}
        stored = read_json(path) if path.exists() else {}
        data = {name: {"images": len(part), "ids": part.ids_hash} for name, part in sets.items()}
        for name, before in stored.get("data", {}).items():
            if before != data[name]:
                counts = f"{before['images']}, now {len(sets[name])}"
                say(f"note: the run began with other {name} images ({counts})")
        environment = {
            **describe_environment(),
            "device": str(device),
            "precision": settings["precision"],
            "processes": get_world_size(),
        }
        content = {
            "command": stored.get("command", command),
            "args": settings,
            "class_names": train_set.class_names,
            "data": data,
            "environment": environment,
        }
        write_json(path, content)

    def append_log(self, record: dict[str, Any]) -> None:
        """Add the record of an evaluation."""
        if not is_main():
            return
        path = self.path / LOG_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): make room") from None
        ious = {f"class_iou/{name}": iou for name, iou in record["class_iou"].items()}
        self.plot(record["iteration"], record | ious)

    def drop_log_after(self, iteration: int) -> None:
        """Take out what was logged later: a resumed run will log it again."""
        if not is_main():
            return
        if records := read_log(self.path):
            kept = [json.dumps(r) + "\n" for r in records if r["iteration"] <= iteration]
            write_text(self.path / LOG_FILE, "".join(kept))
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path), purge_step=iteration + 1)

    def plot(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Show the numbers among these in TensorBoard, if that was asked for."""
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, iteration)
            self._writer.flush()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first; a last line that is cut off is left out, and said.

    Raises:
        UserError: another line than the last is no record.
    """
    path = folder / LOG_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
            if number == len(lines):
                say_once(f"{path}: the last line is cut off and was left out")
                break
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            raise UserError(
                f"{path}: line {number} is not a JSON object with an iteration: take it out"
            )
        records.append(record)
    return records


def describe_environment() -> dict[str, str | None]:
    """Versions, the git commit (`-dirty` behind it if files were changed), and the machine."""
    import torchvision

    git = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        output = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
        commit = output.stdout.strip()
    except OSError:  # there is no git
        commit = ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git_commit": commit or None,
    }
