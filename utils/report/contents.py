"""What the report is made of, and how it names and prints things.

A document is a list of blocks, which `markdown.py` and `latex.py` write. In their texts `backticks`
mark what is set in typewriter letters; everything else is taken literally.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DataSource
from datasets.class_counts import ClassStatistics
from utils.run_records import Run


class Heading(NamedTuple):
    """Level 1 is the title, 2 a problem, 3 a question."""

    level: int
    text: str


class Table(NamedTuple):
    """Rows below a header; `align` has a letter per column, `l` for left or `r` for right."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str


class Picture(NamedTuple):
    """A figure beside the document.

    Its file has this name and a suffix.
    """

    name: str
    caption: str


class Code(NamedTuple):
    """Lines of Python."""

    text: str


Block = str | list[str] | Heading | Table | Picture | Code  # paragraphs, lists, and the rest
Answers = dict[str, list[Block]]  # what is said on a problem, or for a loss, by its name


@dataclasses.dataclass
class Findings:
    """All that figures and report show."""

    source: DataSource  # the data set
    again: str  # this command once more
    main_command: str = ""  # trains on this data set
    image_set: str = "train"  # the split that is described and trained on
    class_names: Sequence[str] = ()  # of the data set
    images: int = 0  # in `image_set`; 0 if they were not counted
    statistics: ClassStatistics | None = None  # of the targets of `image_set`
    constant: list[str] | None = None  # a class everywhere: name, on, accuracy, mIoU
    picks: dict[str, Any] = dataclasses.field(default_factory=dict)  # `picks.json`
    runs: list[Run] = dataclasses.field(default_factory=list)  # all runs to report
    sam: dict[str, Any] | None = None  # SAM's `scores.json`
    pictures: dict[str, Picture] = dataclasses.field(default_factory=dict)  # by name
    missing: list[str] = dataclasses.field(default_factory=list)  # what could not be made, and why
    notes: list[str] = dataclasses.field(default_factory=list)  # what a reader should know

    @property
    def data_title(self) -> str:
        """The data set's name for people: that of its folder if it is the user's own."""
        if self.source.dataset == "custom":
            return Path(self.source.data_root).resolve().name
        return {"voc": "PASCAL VOC 2012"}.get(self.source.dataset, self.source.dataset)

    def miss(self, what: str, reason: str, command: str) -> None:
        """Note that something is not there, and the command that would make it."""
        self.missing.append(f"{what}: {reason}. To make it: {code(command)}")

    def show(self, *names: str) -> list[Block]:
        """Those pictures that there are."""
        return [self.pictures[name] for name in names if name in self.pictures]


def code(name: object) -> str:
    """A name in typewriter letters."""
    return "`" + str(name).replace("`", "'") + "`"


def points(share: float | None) -> str:
    """A share in percent, without the sign: two decimals, of less one digit; `-` if unknown."""
    if share is None or not math.isfinite(share):
        return "-"
    value = 100 * share
    return f"{value:.1g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
