"""What the report is made of, and how it names and prints things."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from datasets.class_counts import ClassStatistics
from utils.report.markup import Picture
from utils.run_records import Run


@dataclasses.dataclass
class Missing:
    """Something that the report should have, and the command that would make it."""

    what: str
    reason: str
    command: str


@dataclasses.dataclass
class Findings:
    """All that figures and report show.

    Attributes:
        dataset_name: as `--dataset` names it.
        class_names: of the data set.
        image_set: the split that is described and trained on.
        val_image_set: the split that runs are evaluated on.
        main_command: the command that trains on this data set.
        sam_command: the command that runs SAM on it.
        images: number of images in `image_set`.
        statistics: of the targets of `image_set`.
        constant: the class that is predicted everywhere, and its scores on `val_image_set`.
        picks: `picks.json`.
        runs: all runs to report.
        compared: those in the comparison.
        sam: SAM's `scores.json`.
        pictures: by name.
        missing: what could not be made.
        notes: what a reader should know, one line each.
    """

    dataset_name: str
    class_names: Sequence[str]
    image_set: str
    val_image_set: str
    main_command: str
    sam_command: str
    images: int = 0
    statistics: ClassStatistics | None = None
    constant: tuple[str, dict[str, Any]] | None = None
    picks: dict[str, Any] | None = None
    runs: list[Run] = dataclasses.field(default_factory=list)
    compared: list[Run] = dataclasses.field(default_factory=list)
    sam: dict[str, Any] | None = None
    pictures: dict[str, Picture] = dataclasses.field(default_factory=dict)
    missing: list[Missing] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def code(name: object) -> str:
    """A name in typewriter letters."""
    return "`" + str(name).replace("`", "'") + "`"


def run_key(found: Findings, run: Run) -> str:
    """R1, R2, ...: how tables call a run."""
    return f"R{found.runs.index(run) + 1}"


def protocol(run: Run) -> str:
    """How a run was evaluated."""
    if run.setting("crop_val"):
        crop = (run.setting("crop_size") or ["?"])[0]
        return f"centre crops (short side {crop}, then the centre square), one confusion matrix"
    return "whole images at native size, void left out, one confusion matrix over the whole set"


def hardware(run: Run) -> str:
    """The GPU of a run, or the kind of its processor."""
    device = str(run.setting("device"))
    gpu = run.environment.get("gpu")
    if device.startswith("cpu") or not gpu:
        return "CPU" if device in ("auto", "None") else device
    return str(gpu)


def points(share: Any) -> str:
    """A share in percent, without the sign; `-` where there is none."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return "-"
    return f"{100 * share:.2f}"


def duration(seconds: float) -> str:
    """Time as people read it."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
