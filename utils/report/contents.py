"""What the report is made of, and how it names and prints things."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets.class_counts import ClassStatistics
from utils.run_records import Run


@dataclasses.dataclass
class Missing:
    """Something that the report should have, and the command that would make it."""

    what: str
    reason: str
    command: str


@dataclasses.dataclass
class Findings:
    """All that figures and report show."""

    dataset_name: str  # as `--dataset` names it
    class_names: Sequence[str]  # of the data set
    image_set: str  # the split that is described and trained on
    val_image_set: str  # the split that the constant prediction is scored on
    main_command: str  # trains on this data set
    sam_command: str  # runs SAM on it
    data_root: str = ""  # the folder of the data set
    author: str = ""  # below the title, as the date
    date: str = ""
    images: int = 0  # in `image_set`; 0 if they were not counted, also below
    val_images: int = 0
    statistics: ClassStatistics | None = None  # of the targets of `image_set`
    constant: tuple[str, dict[str, Any]] | None = None  # the class predicted everywhere, its scores
    picks: dict[str, Any] | None = None  # `picks.json`
    runs: list[Run] = dataclasses.field(default_factory=list)  # all runs to report
    sam: dict[str, Any] | None = None  # SAM's `scores.json`
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)  # Markdown, by name
    missing: list[Missing] = dataclasses.field(default_factory=list)  # what could not be made
    notes: list[str] = dataclasses.field(default_factory=list)  # what a reader should know

    @property
    def data_title(self) -> str:
        """The data set's name for people: that of its folder if it is the user's own."""
        own = Path(self.data_root).resolve().name if self.data_root else "own images"
        return {"voc": "PASCAL VOC 2012", "custom": own}.get(self.dataset_name, self.dataset_name)


def code(name: object) -> str:
    """A name in typewriter letters."""
    return "`" + str(name).replace("`", "'") + "`"


def points(share: Any) -> str:
    """A share in percent, without the sign; `-` where there is none."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return "-"
    return f"{100 * share:.2f}"


def spread(shares: Sequence[Any]) -> str:
    """Mean ± half the range in percent; the mean alone of one share, a dash if none is known."""
    known = [share for share in shares if points(share) != "-"]
    if not known:
        return "-"
    text = points(fmean(known))
    if len(known) > 1:
        text += f" ± {points((max(known) - min(known)) / 2)}"
    return text if len(known) == len(shares) else f"{text} ({len(known)} of {len(shares)})"


def duration(seconds: float) -> str:
    """Time as people read it."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
