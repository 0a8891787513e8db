"""The flags of `visualize.py`: a figure has those that it heeds."""

import argparse
import sys
from collections.abc import Sequence

from datasets import DATASETS, add_data_args
from utils.common.errors import UserError
from utils.options import HelpFormatter
from utils.precision import PRECISIONS


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", default="report", help="folder of the figures")
    parser.add_argument("--format", choices=["png", "pdf", "svg"], default="png", help="of figures")
    parser.add_argument("--dpi", type=int, default=200, help="dots per inch of what is 8 in wide")


def _add_image_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_set", default="train", help="split to show")


def _add_val_image_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--val_image_set", default="val", help="split of the scores")


def _add_pick_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, help="another choice of images; 0 is the first (default: as stored)"
    )
    parser.add_argument(
        "--pick", nargs="+", action="extend", metavar="CLASS=ID", help="decide images yourself"
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", nargs="+", help="names below --runs_dir, or paths")
    parser.add_argument("--runs_dir", default="runs", help="where runs are kept")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=list(DATASETS), help="only runs on this data set")


def _add_x(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--x", choices=["iterations", "epochs"], default="epochs", help="axis of the curves"
    )


def _add_sam(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sam_dir", default="sam_results", help="what sam_infer.py has left")


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the models")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=int, default=0, help="errors: look at so many images; 0 for all"
    )


# What each figure is, and the flags that it has beside those of data and output.
FLAGS: dict[str, tuple] = {
    "report": (
        "all figures, report.md and report.tex (the default)",
        _add_image_set, _add_val_image_set, _add_pick_flags, _add_run_flags, _add_x, _add_sam,
        _add_model_flags, _add_limit,
    ),
    "classes": ("an image of each class with its target", _add_image_set, _add_pick_flags),
    "distribution": ("share of the pixels by class", _add_image_set, _add_val_image_set),
    "curves": ("mIoU, loss and learning rate of runs", _add_run_flags, _add_x),
    "compare": (
        "predictions of one to four runs beside each other",
        _add_image_set, _add_run_flags, _add_sam, _add_model_flags,
    ),
    "errors": (
        "worst and best images of a run, and its confusion matrix",
        _add_val_image_set, _add_run_flags, _add_model_flags, _add_limit,
    ),
}  # fmt: skip


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; without the name of a figure it is the report.

    Raises:
        UserError: a number is out of range.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE")
    for name, (text, *parts) in FLAGS.items():
        figure = figures.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=HelpFormatter,
        )
        # Curves are in the logs: they need no data set on the disk.
        add_data_flags = _add_dataset if name == "curves" else add_data_args
        for add_flags in (add_data_flags, _add_output_flags, *parts):
            add_flags(figure)
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in (*FLAGS, "-h", "--help"):
        words = ["report", *words]
    args = parser.parse_args(words)
    if args.dpi < 1:
        raise UserError(f"--dpi {args.dpi}: at least 1")
    if getattr(args, "limit", 0) < 0:
        raise UserError(f"--limit {args.limit}: at least 1, or 0 for all images")
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
