"""What finished runs have to show: their settings and scores, and which of them is the best."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.base import SegmentationDataset
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.metrics import format_scores
from utils.run_folder import ARGS_FILE, BEST_FILE, LOG_FILE, read_log_and_note

# What curves and tables read of a log line beside the iteration; the last three may be missing.
_NUMBERS = (
    "miou", "pixel_acc", "mean_acc", "fw_iou", "epoch", "train_loss", "lr", "backbone_lr",
    "seconds", "val_seconds", "max_memory_mb",
)  # fmt: skip


@dataclasses.dataclass
class Run:
    """A run as its files tell it.

    Attributes:
        folder: `runs/<run_name>`.
        args: the settings in `args.json`.
        class_names: of its data set.
        environment: versions and machine, as in `args.json`.
        log: one record per evaluation, oldest first; a number that is missing is NaN.
        notes: what is wrong or unfinished, one line each.
    """

    folder: Path
    args: dict[str, Any]
    class_names: list[str]
    environment: dict[str, Any]
    log: list[dict[str, Any]]
    notes: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def variant(self) -> str:
        """The name without its trailing `_s<seed>`."""
        return self.name.removesuffix(f"_s{self.setting('seed')}")

    @property
    def best(self) -> dict[str, Any]:
        """The record with the highest mIoU, the earliest of equals."""
        return max(self.log, key=lambda record: _or_lowest(record["miou"]))

    @property
    def best_checkpoint(self) -> Path:
        """The weights of that record."""
        return self.folder / BEST_FILE

    def setting(self, name: str) -> Any:
        """One of the settings; None if the run does not say."""
        return self.args.get(name)

    def column(self, name: str) -> list[float]:
        """One number of every record."""
        return [record[name] for record in self.log]


def _or_lowest(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def load_run(folder: Path) -> Run:
    """Read a run's settings and log.

    Raises:
        UserError: it is no run, has no evaluation yet, or its files are broken.
    """
    args, class_names, environment = _read_settings(folder)
    records, note = read_log_and_note(folder)
    notes = [note] if note else []
    path = folder / LOG_FILE
    for record in records:
        wrong = _clean_numbers(record)
        if wrong:
            notes.append(
                f"{path}: {' and '.join(wrong)} not a number at iteration {record['iteration']}: "
                "left out"
            )
    if not any(math.isfinite(record["miou"]) for record in records):
        raise UserError(f"{folder}: has no evaluation yet: train it on with main.py --resume")
    last, total = records[-1]["iteration"], args.get("total_itrs")
    if isinstance(total, int) and last < total:
        notes.append(f"{folder}: is not finished: evaluated at {last} of {total} iterations")
    return Run(folder, args, class_names, environment, records, notes)


def _read_settings(folder: Path) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Settings, class names and environment of a run."""
    stored = read_json(folder / ARGS_FILE)
    args, class_names = stored.get("args"), stored.get("class_names")
    if not isinstance(args, dict) or not isinstance(class_names, list):
        raise UserError(f"{folder / ARGS_FILE}: holds no settings of a run")
    environment = stored.get("environment")
    return args, class_names, environment if isinstance(environment, dict) else {}


def _clean_numbers(record: dict[str, Any]) -> list[str]:
    """Make what is no finite number NaN, in place; the names of those that are there but wrong."""
    wrong = []
    for name in _NUMBERS:
        value = record.get(name)
        record[name] = math.nan
        if isinstance(value, int | float) and math.isfinite(value):
            record[name] = float(value)
        elif value is not None:
            wrong.append(name)
    class_iou = record.get("class_iou")
    record["class_iou"] = class_iou if isinstance(class_iou, dict) else {}
    return wrong


def find_runs(
    runs_dir: Path, dataset_name: str | None, dataset: SegmentationDataset | None
) -> tuple[list[Run], list[str]]:
    """All runs on a data set, by name.

    Args:
        runs_dir: the folder of the runs.
        dataset_name: as `--dataset` names it; None for any.
        dataset: that data set; a run on other classes is no run on it. None: not at hand.

    Returns:
        The runs that have an evaluation, and one line for each that could not be read.
    """
    runs, notes = [], []
    for folder in _folders(runs_dir):
        try:
            args, class_names, _ = _read_settings(folder)
            if not _misfit(args, class_names, dataset_name, dataset):
                runs.append(load_run(folder))
        except UserError as error:
            notes.append(str(error))
    return runs, notes


def load_named_runs(
    names: Sequence[str],
    runs_dir: Path,
    dataset_name: str | None,
    dataset: SegmentationDataset | None,
) -> list[Run]:
    """The runs that `--runs` names, each by its name below `runs_dir` or by its path.

    They are on `dataset`, as in `find_runs`.

    Raises:
        UserError: one is unknown, given twice, of another data set, or cannot be read.
    """
    runs: list[Run] = []
    for name in names:
        folder = runs_dir / name
        if not (folder / ARGS_FILE).exists():
            folder = Path(name)
        if not (folder / ARGS_FILE).exists():
            known = ", ".join(path.name for path in _folders(runs_dir)) or "none"
            raise UserError(f"--runs {name}: no such run; in {runs_dir} there are: {known}")
        args, class_names, _ = _read_settings(folder)
        misfit = _misfit(args, class_names, dataset_name, dataset)
        if misfit:
            raise UserError(f"--runs {name}: {misfit}")
        run = load_run(folder)
        if any(run.folder.resolve() == other.folder.resolve() for other in runs):
            raise UserError(f"--runs {name}: given twice: name each run once")
        runs.append(run)
    return runs


def best_run(runs: Sequence[Run], loss: str | None = None) -> Run | None:
    """The run with the highest mIoU, of those with this loss; the first of equals."""
    fitting = [run for run in runs if loss is None or run.setting("loss") == loss]
    return max(fitting, key=lambda run: run.best["miou"], default=None)


def summarise(run: Run) -> str:
    """What the end of a training prints: scores at the best evaluation, costs, what to type next.

    Scores are in percent.
    """
    best, last = run.best, run.log[-1]
    minutes, seconds = divmod(round(last["seconds"]), 60)
    memory = last["max_memory_mb"]
    scores = {**best, "class_iou": list(best["class_iou"].values())}
    predict = ["python", "predict.py", "--ckpt", str(run.best_checkpoint), "IMAGE_OR_FOLDER"]
    figures = ["python", "visualize.py", "--runs_dir", str(run.folder.parent)]
    return "\n".join(
        [
            format_scores(scores, list(best["class_iou"])),
            f"best of {len(run.log)} evaluations: epoch {best['epoch']:g}, iteration "
            f"{best['iteration']}, in {run.best_checkpoint}",
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
            + (f", {memory:,.0f} MB of GPU memory" if math.isfinite(memory) else ""),
            f"next: {shlex.join(predict)}",
            f"      {shlex.join([*figures, '--dataset', str(run.setting('dataset'))])}",
        ]
    )


def _folders(runs_dir: Path) -> list[Path]:
    return sorted(path.parent for path in runs_dir.glob(f"*/{ARGS_FILE}"))


def _misfit(
    args: dict[str, Any],
    class_names: Sequence[str],
    dataset_name: str | None,
    dataset: SegmentationDataset | None,
) -> str | None:
    """Why a run is not of this data set; None if it is."""
    other = args.get("dataset")
    if dataset_name not in (None, other):
        return f"a run on {other}, not on {dataset_name}: give --dataset {other}"
    if dataset is not None and list(class_names) != list(dataset.class_names):
        return (
            f"a run on other classes than those in {dataset.folder}: give its --data_root "
            f"{args.get('data_root')}"
        )
    return None


def default_checkpoint(runs_dir: Path) -> tuple[Path | None, str]:
    """The weights to use where none are named: the best run on the newest run's data set.

    Runs of other classes, or scored by another protocol, are not compared with the newest.

    Returns:
        The file, None if there is no run; and why, in words that follow the file's name.
    """
    runs, notes = find_runs(runs_dir, None, None)
    for note in notes:
        print(note, file=sys.stderr)
    runs = [run for run in runs if run.best_checkpoint.is_file()]
    if not runs:
        return None, f"no finished run in {runs_dir}"
    newest = max(runs, key=lambda run: run.best_checkpoint.stat().st_mtime)
    rivals = [run for run in runs if _what_is_scored(run) == _what_is_scored(newest)]
    best = best_run(rivals) or newest
    reason = f"mIoU {100 * best.best['miou']:.2f}, "
    if len(runs) == 1:
        reason += f"the only run in {runs_dir}"
    else:
        reason += f"the best of {len(rivals)} on {newest.setting('dataset')} in {runs_dir}"
        reason += " by the newest's data" if len(rivals) < len(runs) else ""
    return best.best_checkpoint, f"{reason}; --ckpt FILE takes another"


def _what_is_scored(run: Run) -> tuple:
    return run.setting("dataset"), run.class_names, run.setting("crop_val")
