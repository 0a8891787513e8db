"""The flags of `visualize.py`: a figure has those that it heeds."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from datasets import DATASETS, add_data_args
from utils.common.errors import UserError
from utils.common.flags import Parser, whole
from utils.precision import PRECISIONS

FLAGS: dict[str, dict[str, Any]] = {
    "output_dir": {"default": "report", "help": "folder of the figures"},
    "format": {
        "choices": ["png", "pdf", "svg"], "default": "png",
        "help": "of figures; report.tex has them as PDF",
    },
    "dpi": {"type": whole(1, 1200), "default": 300, "help": "dots per inch of 165 mm"},
    "dataset": {"choices": list(DATASETS), "help": "only runs on this data set"},
    "image_set": {"default": "train", "help": "split to show"},
    "val_image_set": {"default": "val", "help": "split of the scores"},
    "pick": {
        "nargs": "+", "action": "extend", "metavar": "CLASS=ID", "help": "decide images yourself",
    },
    "runs": {"nargs": "+", "help": "names below --runs_dir, or paths"},
    "runs_dir": {"default": "runs", "help": "where runs are kept"},
    "x": {
        "choices": ["iterations", "epochs"], "default": "epochs", "help": "axis of the curves",
    },
    "sam_dir": {"default": "sam_results", "help": "what sam_infer.py has left"},
    "device": {"default": "auto", "help": "auto, cpu, cuda, cuda:1, mps"},
    "precision": {"choices": PRECISIONS, "default": "auto", "help": "of the models"},
    "limit": {"type": whole(), "default": 0, "help": "errors: look at so many images; 0 for all"},
    "author": {"help": "who wrote the report (default: left open)"},
}  # fmt: skip
OUTPUT = ("output_dir", "format", "dpi")
RUNS, MODELS = ("runs", "runs_dir"), ("device", "precision")

# What each figure is, and the flags that it has beside those of data and output.
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "report": (
        "all figures, report.tex and report.md (the default)",
        ("image_set", "val_image_set", "pick", *RUNS, "x", "sam_dir", *MODELS, "limit", "author"),
    ),
    "classes": ("an image of each class with its target", ("image_set", "pick")),
    "distribution": ("share of the pixels by class", ("image_set", "val_image_set")),
    "curves": ("mIoU, loss and learning rate of runs", ("dataset", *RUNS, "x")),
    "compare": (
        "predictions of one to four runs beside each other",
        ("image_set", "pick", *RUNS, "sam_dir", *MODELS),
    ),
    "errors": (
        "worst and best images of a run, and its confusion matrix",
        ("val_image_set", *RUNS, *MODELS, "limit"),
    ),
}  # fmt: skip


def build_parsers(description: str) -> tuple[Parser, dict[str, Parser]]:
    """The parser that names the figures, and each figure's own."""
    parser = Parser(description=description)
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE")
    for name, (text, flags) in FIGURES.items():
        figure = figures.add_parser(name, help=text, description=text)
        if name != "curves":  # are in the logs: they need no data set on the disk
            add_data_args(figure)
        for flag in (*OUTPUT, *flags):
            figure.add_argument(f"--{flag}", **FLAGS[flag])
    return parser, dict(figures.choices)


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without the name of a figure it is the report.

    Raises:
        UserError: a number is out of range, or a flag would do nothing.
    """
    parser, figures = build_parsers(description)
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ("-h", "--help"):
        parser.parse_args(words)
    name, words = (words[0], words[1:]) if words and words[0] in FIGURES else ("report", words)
    given = figures[name].given(words)
    args = argparse.Namespace(figure=name, **figures[name].defaults() | given)
    figures[name].check_needs(args, given)
    return args


def parse_wishes(wishes: Sequence[str]) -> dict[str, str]:
    """`CLASS=ID` words to {class: id}."""
    fixed: dict[str, str] = {}
    for wish in wishes:
        name, equals, sample = wish.partition("=")
        if not equals or name in fixed:
            raise UserError(f"--pick {wish}: give CLASS=ID, each class once")
        fixed[name] = sample
    return fixed
