"""The flags of `predict.py`."""

import argparse
from collections.abc import Mapping
from typing import Any

from datasets import add_data_args
from datasets.image_files import MAX_PIXELS
from datasets.loader import default_num_workers
from utils.common.errors import UserError
from utils.common.flags import (
    DATA_FLAGS,
    HelpFormatter,
    check_needs,
    check_values,
    merge,
    parse,
    refuse,
)
from utils.options import add_device_flags
from utils.predictor import OVERLAP, WINDOW

# What an own checkpoint's run says about its evaluation; explicit flags win.
STORED_SETTINGS = ("dataset", "data_root", "val_fraction", "split_seed", "crop_size")
# Flags that only scores heed.
SCORE_FLAGS = DATA_FLAGS | {
    "crop_val", "crop_size", "save_predictions", "val_batch_size", "num_workers"
}  # fmt: skip


def build_parser(description: str) -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("inputs", nargs="*", default=[], help="images, and folders of images")
    add = parser.add_argument_group("model").add_argument
    add("--ckpt", help="weights, if not those of a run or torchvision's")
    add("--runs_dir", default="runs", help="where to look for a run")
    add("--output_stride", type=int, choices=[8, 16], help="if not what the checkpoint says")
    add("--scales", type=float, nargs="+", default=[1.0], help="average over these")
    add("--flip", action="store_true", help="average over mirrored images as well")
    add("--window", type=int, default=WINDOW, help="images of more than twice its area go in parts")
    add("--overlap", type=int, default=OVERLAP, help="pixels that windows share")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="predictions", help="folder of the results")
    add_device_flags(run, "of the convolutions")
    text = "refuse larger images as bombs"
    run.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help=text)

    add = parser.add_argument_group("scores").add_argument
    add("--split", dest="val_image_set", metavar="NAME", help="score this split, such as val")
    add("--crop_val", action="store_true", help="score centre crops (the public ancestor's way)")
    add("--crop_size", type=int, nargs="+", default=[513], help="of --crop_val, if not the run's")
    add("--save_predictions", action="store_true", help="write <id>.png as well")
    add("--val_batch_size", type=int, default=8, help="images of one size at a time")
    add("--num_workers", type=int, default=default_num_workers(), help="loaders")
    add_data_args(parser)
    return parser


def parse_args(
    description: str, argv: list[str] | None = None, stored: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Parse the flags.

    `stored` are the settings of the run that the checkpoint is from, empty if it is from elsewhere;
    explicit flags win over them. None: the checkpoint is not known yet.

    Raises:
        UserError: flags that do not go together.
    """
    parser = build_parser(description)
    defaults, given = parse(parser, argv)
    known = {key: value for key, value in (stored or {}).items() if value is not None}
    settings = {key: known[key] for key in STORED_SETTINGS if key in known}
    check_values(parser, settings, "the checkpoint's settings: ")
    if "dataset" in given and given["dataset"] != settings.get("dataset"):
        # The others are about another data set.
        settings = {key: value for key, value in settings.items() if key == "crop_size"}
    args = merge(defaults, settings, given)
    check_flags(args, given)
    if stored is not None or "dataset" in given:  # otherwise the checkpoint will name it
        check_needs(args, given)
    return args


def check_flags(args: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Refuse flags that would do nothing."""
    if args.val_image_set is None:
        if not args.inputs:
            raise UserError("no images: name files or folders, or give --split to score a data set")
        refuse(SCORE_FLAGS, given, "is for scores alone: give --split with it")
    elif args.inputs:
        raise UserError(f"{args.inputs[0]}: images and --split are two things: give one of them")
    else:
        refuse({"max_pixels"}, given, "is for images on the command line, not for --split")
    if not args.crop_val:
        refuse({"crop_size"}, given, "is for --crop_val alone: give both or none")
    elif len(set(args.crop_size)) != 1:
        raise UserError(f"--crop_val: needs one side as --crop_size, not {args.crop_size}")
    if args.ckpt:
        refuse({"runs_dir"}, given, "has no use with --ckpt: give one of them")
