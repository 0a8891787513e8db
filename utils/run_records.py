"""What finished runs have to show: their settings and scores, and which of them is the best."""

import dataclasses
import datetime
import math
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from datasets import DataSource
from datasets.base import SegmentationDataset
from utils.common.errors import UserError
from utils.common.files import read_json
from utils.metrics import format_scores
from utils.run_folder import ARGS_FILE, BEST_FILE, read_log


@dataclasses.dataclass
class Run:
    """A run as its files tell it."""

    folder: Path  # runs/<run_name>
    args: dict[str, Any]  # the settings in args.json
    class_names: list[str]
    environment: dict[str, Any]  # versions and machine
    lists: dict[str, dict[str, Any]]  # of "train" and "val": "images", their number, and "ids"
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # oldest first, None is NaN

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
        return max(self.log, key=lambda record: record["miou"])

    @property
    def best_checkpoint(self) -> Path:
        """The weights of that record."""
        return self.folder / BEST_FILE

    @property
    def notes(self) -> list[str]:
        """What is unfinished, one line each."""
        last, total = self.log[-1]["iteration"], self.setting("total_itrs") or 0
        is_short = f"{self.folder}: is not finished: evaluated at {last} of {total} iterations"
        return [is_short] if last < total else []

    @property
    def source(self) -> DataSource:
        """Where its data are from."""
        names = {field.name for field in dataclasses.fields(DataSource)} & self.args.keys()
        return DataSource(**{name: self.args[name] for name in names})

    def setting(self, name: str) -> Any:
        """One of the settings; None if the run does not say."""
        return self.args.get(name)

    def column(self, name: str) -> list[float]:
        """One number of every record."""
        return [record[name] for record in self.log]

    def is_on(self, source: DataSource, class_names: Sequence[str], lists: Collection[str]) -> bool:
        """Whether its data are those; the one rule, wherever runs are chosen.

        Published data are the same wherever they lie. Of the user's own, the folder decides if both
        are on this machine, else (they were moved, or the run was copied here) the images do: one
        of `lists`, hashes of lists of images, is the run's.
        """
        if (source.dataset, list(class_names)) != (self.source.dataset, self.class_names):
            return False
        own, other = Path(self.source.data_root), Path(source.data_root)
        if source.dataset != "custom" or own.resolve() == other.resolve():
            return True
        were_moved = not (own.exists() and other.exists())
        return were_moved and any(part["ids"] in lists for part in self.lists.values())

    def is_on_data_of(self, other: "Run") -> bool:
        """Whether both are on one data set."""
        lists = [part["ids"] for part in other.lists.values()]
        return self.is_on(other.source, other.class_names, lists)

    def compares_with(self, other: "Run") -> bool:
        """Whether their scores do: on the same data, list of images and protocol."""
        one, two = (
            (run.setting("crop_val"), run.lists.get("val", {}).get("ids")) for run in (self, other)
        )
        return one == two and self.is_on_data_of(other)


def read_settings(folder: Path) -> Run:
    """A run without its log."""
    stored = read_json(folder / ARGS_FILE)
    args, class_names = stored.get("args"), stored.get("class_names")
    if not isinstance(args, dict) or not isinstance(class_names, list):
        raise UserError(f"{folder / ARGS_FILE}: holds no settings of a run")
    return Run(folder, args, class_names, stored.get("environment", {}), stored.get("data", {}))


def load_run(
    folder: Path, dataset_name: str | None = None, dataset: SegmentationDataset | None = None
) -> Run:
    """Read a run's settings and log.

    It must be on `dataset_name`, as `--dataset` has it, and on the very `dataset`; None for any.

    Raises:
        UserError: it is no run, on other data, has no evaluation yet, or its files are broken.
    """
    run = read_settings(folder)
    name = run.source.dataset
    if dataset_name not in (None, name):
        raise UserError(f"{folder}: a run on {name}, not on {dataset_name}: give --dataset {name}")
    if dataset is not None:
        source = DataSource(name, str(dataset.folder))
        if not run.is_on(source, dataset.class_names, [dataset.ids_hash]):
            raise UserError(
                f"{folder}: a run on other classes or images than those in {dataset.folder}: give "
                f"its --data_root {run.source.data_root}"
            )
    run.log = [
        {key: math.nan if value is None else value for key, value in record.items()}
        for record in read_log(folder)
    ]
    if not run.log:
        raise UserError(f"{folder}: has no evaluation yet: train it on with main.py --resume")
    return run


def find_runs(
    runs_dir: Path, dataset_name: str | None, dataset: SegmentationDataset | None
) -> tuple[list[Run], list[str]]:
    """All runs on a data set, by name; see `load_run`.

    Returns:
        The runs that have an evaluation, and one line for each that could not be read, or that is
        on other data of the same name.
    """
    runs, notes = [], []
    for folder in _folders(runs_dir):
        try:
            if dataset_name in (None, read_settings(folder).source.dataset):
                runs.append(load_run(folder, dataset_name, dataset))
        except UserError as error:
            notes.append(f"left out: {error}")
    return runs, notes


def load_named_runs(
    names: Sequence[str],
    runs_dir: Path,
    dataset_name: str | None,
    dataset: SegmentationDataset | None,
) -> list[Run]:
    """The runs that `--runs` names, each by its name below `runs_dir` or by its path.

    Raises:
        UserError: one is unknown; or see `load_run`.
    """
    runs: list[Run] = []
    for name in names:
        folder = runs_dir / name if (runs_dir / name / ARGS_FILE).exists() else Path(name)
        if not (folder / ARGS_FILE).exists():
            known = ", ".join(path.name for path in _folders(runs_dir)) or "none"
            raise UserError(f"--runs {name}: no such run; in {runs_dir} there are: {known}")
        runs.append(load_run(folder, dataset_name, dataset))
    return runs


def _folders(runs_dir: Path) -> list[Path]:
    return sorted(path.parent for path in runs_dir.glob(f"*/{ARGS_FILE}"))


def best_run(runs: Sequence[Run]) -> Run:
    """The run with the highest mIoU, the first of equals, of at least one."""
    return max(runs, key=lambda run: run.best["miou"])


def default_checkpoint(
    runs_dir: Path, dataset_name: str | None = None, dataset: SegmentationDataset | None = None
) -> tuple[Path | None, str]:
    """The weights to use where none are named: the best run of a data set, as in `load_run`.

    Without a data set it is that of the newest run.

    Returns:
        The file, None if there is no run; and why, in words that follow the file's name.
    """
    runs, notes = find_runs(runs_dir, dataset_name, dataset)
    for note in notes:
        print(note, file=sys.stderr)
    runs = [run for run in runs if run.best_checkpoint.is_file()]
    if not runs:
        on = f" on {dataset_name}" if dataset_name else ""
        return None, f"no finished run{on} in {runs_dir}"
    newest = max(runs, key=lambda run: run.best_checkpoint.stat().st_mtime)
    rivals = [run for run in runs if run.compares_with(newest)]
    best, source = best_run(rivals), newest.source
    data = f"custom data in {source.data_root}" if source.dataset == "custom" else source.dataset
    reason = f"mIoU {100 * best.best['miou']:.2f}, the best of {len(rivals)} on {data}"
    if others := len(runs) - len(rivals):
        reason += f", the newest run's; {others} on other data or scored otherwise left out"
    return best.best_checkpoint, f"{reason}; --ckpt FILE takes another"


def summarise(run: Run) -> str:
    """What the end of a training prints: scores at the best evaluation, costs, what to type next.

    Scores are in percent.
    """
    best, last = run.best, run.log[-1]
    time, memory = datetime.timedelta(seconds=round(last["seconds"])), last["max_memory_mb"]
    scores = best | {"class_iou": list(best["class_iou"].values())}
    lines = [
        format_scores(scores, list(best["class_iou"])),
        f"best of {len(run.log)} evaluations: epoch {best['epoch']:g}, iteration "
        f"{best['iteration']}, in {run.best_checkpoint}",
        f"{time} h" + (f", {memory:,.0f} MB of GPU memory" if math.isfinite(memory) else ""),
        f"next: {_python('predict.py', '--ckpt', str(run.best_checkpoint), 'IMAGE_OR_FOLDER')}",
    ]
    data = ["--runs_dir", str(run.folder.parent), *run.source.flags()]
    if run.setting("loss") == "ce":  # the course asks for a second one, and for SAM
        lines.append(f"      {second_loss_command(run, run.source)}")
        lines.append(f"      {_python('sam_infer.py', *data)}")
    lines.append(f"      {_python('visualize.py', *data)}")
    return "\n".join(lines)


def second_loss_command(run: Run, source: DataSource) -> str:
    """The command that trains a run once more, on `source`, with another loss and a folder."""
    before = run.setting("loss")
    loss = "focal" if before == "ce" else "ce"
    name = f"{run.name.removesuffix(f'_{before}')}_{loss}"
    words = ["--args", str(run.folder / ARGS_FILE), "--loss", loss]
    words += ["--runs_dir", str(run.folder.parent), "--run_name", name]
    return _python("main.py", *words, *(source.flags() if source != run.source else []))


def _python(*words: str) -> str:
    return shlex.join(["python", *words])
