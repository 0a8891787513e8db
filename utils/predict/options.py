"""The flags of `predict.py`."""

import argparse
from collections.abc import Mapping
from typing import Any

from datasets import add_data_args
from datasets.image_files import MAX_PIXELS
from datasets.loader import default_num_workers
from utils.common.errors import UserError
from utils.options import HelpFormatter
from utils.precision import PRECISIONS
from utils.predictor import OVERLAP, WINDOW

# What an own checkpoint's run says about its evaluation; explicit flags win.
STORED_SETTINGS = ("dataset", "data_root", "val_fraction", "split_seed", "crop_size")


def build_parser(description: str) -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("inputs", nargs="*", help="images, and folders of images")
    model = parser.add_argument_group("model")
    model.add_argument("--ckpt", help="weights, if not the newest run's best.pth or torchvision's")
    model.add_argument("--runs_dir", default="runs", help="where to look for the newest run")
    model.add_argument(
        "--output_stride", type=int, choices=[8, 16], help="if not what the checkpoint says"
    )
    model.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these")
    model.add_argument("--flip", action="store_true", help="average over mirrored images as well")
    model.add_argument(
        "--window", type=int, default=WINDOW, help="images of more than twice its area go in parts"
    )
    model.add_argument("--overlap", type=int, default=OVERLAP, help="pixels that windows share")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="predictions", help="folder of the results")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    run.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the convolutions")
    run.add_argument(
        "--max_pixels", type=int, default=MAX_PIXELS, help="refuse larger images as bombs"
    )
    _add_score_args(parser)
    add_data_args(parser)
    return parser


def _add_score_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--split", dest="val_image_set", metavar="NAME", help="score this split, such as val"
    )
    group.add_argument(
        "--crop_val", action="store_true", help="score centre crops (the public ancestor's way)"
    )
    group.add_argument(
        "--crop_size", type=int, nargs="+", default=[513], help="of --crop_val, if not the run's"
    )
    group.add_argument("--save_predictions", action="store_true", help="write <id>.png as well")
    group.add_argument("--val_batch_size", type=int, default=8, help="images of one size at a time")
    group.add_argument("--num_workers", type=int, default=default_num_workers(), help="loaders")


def parse_args(
    description: str, argv: list[str] | None = None, stored: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Parse the flags.

    Args:
        description: of the script.
        argv: the words, those of the command line if None.
        stored: settings of the run that the checkpoint is from; they replace the defaults.

    Raises:
        UserError: flags that do not go together.
    """
    parser = build_parser(description)
    args = parser.parse_intermixed_args(argv)
    given = explicit_flags(description, argv)
    check_flags(args, given)
    if stored:
        keys = STORED_SETTINGS
        if "dataset" in given and args.dataset != stored.get("dataset"):
            keys = ("crop_size",)  # the others are about another data set
        parser.set_defaults(**{key: stored[key] for key in keys if key in stored})
        args = parser.parse_intermixed_args(argv)
    if args.crop_val and (len(set(args.crop_size)) != 1 or min(args.crop_size) < 1):
        raise UserError(f"--crop_val: needs one side as --crop_size, not {args.crop_size}")
    return args


def explicit_flags(description: str, argv: list[str] | None = None) -> set[str]:
    """The flags that the command line gives."""
    parser = build_parser(description)
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([]))))
    args = parser.parse_intermixed_args(argv)
    return {key for key, value in vars(args).items() if value not in (None, [])}


def check_flags(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse flags that would do nothing, and values that cannot work."""
    if args.val_image_set is None:
        check_image_flags(args, given)
    elif args.inputs:
        raise UserError(f"{args.inputs[0]}: images and --split are two things: give one of them")
    elif "max_pixels" in given:
        raise UserError("--max_pixels: is for images on the command line, not for --split")
    if "crop_size" in given and not args.crop_val:
        raise UserError("--crop_size: is for --crop_val alone: give both or none")
    if "runs_dir" in given and args.ckpt:
        raise UserError("--runs_dir: has no use with --ckpt: give one of them")
    for flag, least in (("max_pixels", 1), ("val_batch_size", 1), ("num_workers", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {least}")


def check_image_flags(args: argparse.Namespace, given: set[str]) -> None:
    """Without --split there must be images, and no flag about scores."""
    if not args.inputs:
        raise UserError("no images: name files or folders, or give --split to score a data set")
    scores = argparse.ArgumentParser()
    _add_score_args(scores)
    add_data_args(scores)
    if useless := sorted(given & set(vars(scores.parse_args([])))):
        raise UserError(f"--{useless[0]}: is for scores alone: give --split with it")
