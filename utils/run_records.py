"""What finished runs have to show: their settings and scores, and which of them is the best."""

import dataclasses
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
from utils.options import parse_args
from utils.run_folder import ARGS_FILE, BEST_FILE, read_log_and_note

# What curves and tables read of a log line beside the iteration; what it does not say is NaN.
_NUMBERS = (
    "miou", "pixel_acc", "mean_acc", "fw_iou", "epoch", "train_loss", "lr", "backbone_lr",
    "seconds", "val_seconds", "max_memory_mb",
)  # fmt: skip
_UNSAID: dict[str, Any] = {**dict.fromkeys(_NUMBERS, math.nan), "class_iou": {}}


@dataclasses.dataclass
class Run:
    """A run as its files tell it.

    Attributes:
        folder: `runs/<run_name>`.
        args: the settings in `args.json`.
        class_names: of its data set.
        environment: versions and machine, as in `args.json`.
        lists: `images` (their number) and `ids` (a hash) of its lists "train" and "val"; empty if
            the run does not say.
        log: one record per evaluation, oldest first; a number that is missing is NaN.
        notes: what is wrong or unfinished, one line each.
    """

    folder: Path
    args: dict[str, Any]
    class_names: list[str]
    environment: dict[str, Any]
    lists: dict[str, dict[str, Any]]
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

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
    def source(self) -> DataSource:
        """Where its data are from."""
        names = {field.name for field in dataclasses.fields(DataSource)} & self.args.keys()
        return DataSource(**{name: self.args[name] for name in names})

    def is_on(self, class_names: Sequence[str], root: Path, lists: Collection[str]) -> bool:
        """Whether its data are those; the one rule, wherever runs are chosen.

        Published data are the same wherever they lie. Of the user's own, the folder decides if both
        are on this machine, else (they were moved, or the run was copied here) the images do.

        Args:
            class_names: of the data set; `--dataset` is the run's.
            root: its folder, as `--data_root`.
            lists: hashes of lists of its images.
        """
        if list(class_names) != self.class_names:
            return False
        own = Path(self.source.data_root)
        if self.source.dataset != "custom" or own.resolve() == root.resolve():
            return True
        were_moved = not (own.exists() and root.exists())
        return were_moved and not self.list_hashes.isdisjoint(lists)

    def is_on_data_of(self, other: "Run") -> bool:
        """Whether both are on one data set."""
        root = Path(other.source.data_root)
        is_same_kind = self.source.dataset == other.source.dataset
        return is_same_kind and self.is_on(other.class_names, root, other.list_hashes)

    def compares_with(self, other: "Run") -> bool:
        """Whether their scores do: on the same data, list of images and protocol."""
        one, two = (
            (run.setting("crop_val"), run.lists.get("val", {}).get("ids")) for run in (self, other)
        )
        return one == two and self.is_on_data_of(other)

    @property
    def list_hashes(self) -> set[str]:
        """The hashes of its lists of images."""
        return {part["ids"] for part in self.lists.values()}

    def setting(self, name: str) -> Any:
        """One of the settings; None if the run does not say."""
        return self.args.get(name)

    def column(self, name: str) -> list[float]:
        """One number of every record."""
        return [record[name] for record in self.log]


def load_run(folder: Path) -> Run:
    """Read a run's settings and log.

    Raises:
        UserError: it is no run, has no evaluation yet, or its files are broken.
    """
    return _with_log(read_settings(folder))


def read_settings(folder: Path) -> Run:
    """A run without its log."""
    stored = read_json(folder / ARGS_FILE)
    args, class_names = stored.get("args"), stored.get("class_names")
    if not isinstance(args, dict) or not isinstance(class_names, list):
        raise UserError(f"{folder / ARGS_FILE}: holds no settings of a run")
    return Run(folder, args, class_names, stored.get("environment", {}), stored.get("data", {}))


def _with_log(run: Run) -> Run:
    """The same run, with its log and with notes on what is wrong in it."""
    records, note = read_log_and_note(run.folder)
    if not records:
        raise UserError(f"{run.folder}: has no evaluation yet: train it on with main.py --resume")
    run.log = [
        _UNSAID | {name: value for name, value in record.items() if value is not None}
        for record in records
    ]
    last, total = run.log[-1]["iteration"], run.setting("total_itrs") or 0
    is_short = f"{run.folder}: is not finished: evaluated at {last} of {total} iterations"
    run.notes = [*([note] if note else []), *([is_short] if last < total else [])]
    return run


def find_runs(
    runs_dir: Path, dataset_name: str | None, dataset: SegmentationDataset | None
) -> tuple[list[Run], list[str]]:
    """All runs on a data set, by name.

    Args:
        runs_dir: the folder of the runs.
        dataset_name: as `--dataset` names it; None for any.
        dataset: that data set; see `Run.is_on` for what is no run on it. None: not at hand.

    Returns:
        The runs that have an evaluation, and one line for each that could not be read, or that is
        on other data of the same name.
    """
    runs, notes = [], []
    for folder in _folders(runs_dir):
        try:
            run = read_settings(folder)
            misfit = _misfit(run, dataset_name, dataset)
            if misfit is None:
                runs.append(_with_log(run))
            elif run.source.dataset == dataset_name:
                notes.append(f"{folder}: left out: {misfit}")
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
        folder = runs_dir / name if (runs_dir / name / ARGS_FILE).exists() else Path(name)
        if not (folder / ARGS_FILE).exists():
            known = ", ".join(path.name for path in _folders(runs_dir)) or "none"
            raise UserError(f"--runs {name}: no such run; in {runs_dir} there are: {known}")
        run = read_settings(folder)
        if misfit := _misfit(run, dataset_name, dataset):
            raise UserError(f"--runs {name}: {misfit}")
        if any(folder.resolve() == other.folder.resolve() for other in runs):
            raise UserError(f"--runs {name}: given twice: name each run once")
        runs.append(_with_log(run))
    return runs


def best_run(runs: Sequence[Run]) -> Run | None:
    """The run with the highest mIoU, the first of equals."""
    return max(runs, key=lambda run: run.best["miou"], default=None)


def summarise(run: Run) -> str:
    """What the end of a training prints: scores at the best evaluation, costs, what to type next.

    Scores are in percent.
    """
    best, last = run.best, run.log[-1]
    minutes, seconds = divmod(round(last["seconds"]), 60)
    memory = last["max_memory_mb"]
    scores = best | {"class_iou": list(best["class_iou"].values())}
    data = ["--runs_dir", str(run.folder.parent), *run.source.flags()]
    commands = [_python("predict.py", "--ckpt", str(run.best_checkpoint), "IMAGE_OR_FOLDER")]
    if run.setting("loss") == "ce":  # the course asks for a second one, and for SAM
        commands += [second_loss_command(run, run.source), _python("sam_infer.py", *data)]
    commands.append(_python("visualize.py", *data))
    return "\n".join(
        [
            format_scores(scores, list(best["class_iou"])),
            f"best of {len(run.log)} evaluations: epoch {best['epoch']:g}, iteration "
            f"{best['iteration']}, in {run.best_checkpoint}",
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
            + (f", {memory:,.0f} MB of GPU memory" if math.isfinite(memory) else ""),
            "next: " + "\n      ".join(commands),
        ]
    )


def second_loss_command(run: Run, source: DataSource) -> str:
    """The command that trains a run once more, on `source`, with another loss and a folder."""
    loss = "focal" if run.setting("loss") == "ce" else "ce"
    words = ["--args", str(run.folder / ARGS_FILE), "--loss", loss]
    new = parse_args("", words)
    if DataSource.of(new) != source:
        words += source.flags()
    if Path(new.runs_dir).resolve() != run.folder.parent.resolve():
        words += ["--runs_dir", str(run.folder.parent)]
    if (run.folder.parent / new.run_name).exists():
        words += ["--run_name", f"{run.name}_{loss}"]
    return _python("main.py", *words)


def _python(*words: str) -> str:
    return shlex.join(["python", *words])


def _folders(runs_dir: Path) -> list[Path]:
    return sorted(path.parent for path in runs_dir.glob(f"*/{ARGS_FILE}"))


def _misfit(run: Run, dataset_name: str | None, dataset: SegmentationDataset | None) -> str | None:
    """Why a run is not of this data set; None if it is."""
    other = run.source.dataset
    if dataset_name not in (None, other):
        return f"a run on {other}, not on {dataset_name}: give --dataset {other}"
    if dataset is None:
        return None
    if run.is_on(dataset.class_names, dataset.folder, [dataset.ids_hash]):
        return None
    kind = "images" if list(dataset.class_names) == run.class_names else "classes"
    return (
        f"a run on other {kind} than those in {dataset.folder}: give its --data_root "
        f"{run.source.data_root}"
    )


def default_checkpoint(
    runs_dir: Path, dataset_name: str | None = None, dataset: SegmentationDataset | None = None
) -> tuple[Path | None, str]:
    """The weights to use where none are named: the best run of a data set.

    Args:
        runs_dir: the folder of the runs.
        dataset_name: as in `find_runs`; None: the data set of the newest run.
        dataset: the same.

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
    best, source = max(rivals, key=lambda run: run.best["miou"]), newest.source
    data = f"custom data in {source.data_root}" if source.dataset == "custom" else source.dataset
    reason = f"mIoU {100 * best.best['miou']:.2f}, the best of {len(rivals)} on {data}"
    if others := len(runs) - len(rivals):
        reason += f", the newest run's; {others} on other data or scored otherwise left out"
    return best.best_checkpoint, f"{reason}; --ckpt FILE takes another"
