"""The flags of `predict.py`."""

import argparse
from collections.abc import Mapping
from typing import Any

from datasets import DATA_FLAGS, add_data_args
from datasets.image_files import MAX_PIXELS
from utils.checkpoint import require_checkpoint
from utils.common.errors import UserError
from utils.common.flags import SIDE, Parser, real, refuse, whole
from utils.options import add_device_flags, add_loader_flags
from utils.predictor import WINDOW

# What an own checkpoint's run says about its evaluation; explicit flags win.
STORED_SETTINGS = DATA_FLAGS - {"no_download", "voc_archive"} | {"crop_size"}
# Flags that only scores heed.
SCORE_FLAGS = DATA_FLAGS | {
    "crop_val", "crop_size", "metrics", "save_predictions", "val_batch_size", "num_workers"
}  # fmt: skip


def build_parser(description: str) -> Parser:
    """All flags, in groups."""
    parser = Parser(description=description)
    parser.add_argument("inputs", nargs="*", default=[], help="images, and folders of images")
    add = parser.add_argument_group("model").add_argument
    add("--ckpt", help="weights, if not those of a run or torchvision's")
    add("--runs_dir", default="runs", help="where to look for a run")
    add("--output_stride", type=int, choices=[8, 16], help="if not what the checkpoint says")
    add("--scales", type=real(0.01, 16), nargs="+", default=[1.0], help="average over these")
    add("--flip", action="store_true", help="average over mirrored images as well")
    text = "images of more than twice its area go in parts"
    add("--window", type=whole(32, 2**16), default=WINDOW, help=text)

    run = parser.add_argument_group("run")
    add = run.add_argument
    text = "folder of the results (default: predictions; of scores: that of the checkpoint)"
    add("--output_dir", help=text)
    add_device_flags(run, "of the convolutions")
    text = "refuse larger images as bombs"
    add("--max_pixels", type=whole(1, 10**12), default=MAX_PIXELS, help=text)
    add("--confidence", action="store_true", help="write <stem>_confidence.png as well")

    scores = parser.add_argument_group("scores")
    add = scores.add_argument
    add("--split", dest="val_image_set", metavar="NAME", help="score this split, such as val")
    add("--crop_val", action="store_true", help="score centre crops (the public ancestor's way)")
    text = "of --crop_val, if not the run's"
    add("--crop_size", type=SIDE, nargs="+", default=[513], help=text)
    add("--metrics", choices=["iou", "all"], default="iou", help="what is printed of each class")
    text = "write predictions_<split>/<id>.png as well, also of a split without masks"
    add("--save_predictions", action="store_true", help=text)
    add_loader_flags(scores)
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
    given = parser.given(argv)
    settings = {key: value for key, value in (stored or {}).items() if key in STORED_SETTINGS}
    if "dataset" in given and given["dataset"] != settings.get("dataset"):
        # The others are about another data set.
        settings = {key: value for key, value in settings.items() if key == "crop_size"}
    known = parser.stored(settings, "the checkpoint's settings")
    args = argparse.Namespace(**parser.defaults() | known | given)
    check_flags(args, given)
    require_checkpoint(args.ckpt)
    if stored is not None or "dataset" in given:  # otherwise the checkpoint will name it
        parser.check_needs(args, given)
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
        useless = {"max_pixels", "confidence"}
        refuse(useless, given, "is for images on the command line, not for --split")
    if not args.crop_val:
        refuse({"crop_size"}, given, "is for --crop_val alone: give both or none")
    elif len(set(args.crop_size)) != 1:
        raise UserError(f"--crop_val: needs one side as --crop_size, not {args.crop_size}")
    if args.ckpt:
        refuse({"runs_dir"}, given, "has no use with --ckpt: give one of them")
