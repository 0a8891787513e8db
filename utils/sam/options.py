"""The flags of `sam_infer.py`."""

import argparse

from datasets import DATA_FLAGS, add_data_args
from utils.checkpoint import require_checkpoint
from utils.common.flags import SHARE, Parser, refuse, whole
from utils.options import add_device_flags
from utils.sam.weights import SAM_MODELS

# Those that decide on the masks, as `SamAutomaticMaskGenerator` names them.
MASK_FLAGS = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")


def build_parser(description: str) -> Parser:
    """All flags, in groups."""
    parser = Parser(description=description)
    parser.add_argument("images", nargs="*", default=[], help="images and folders of your own")
    data = add_data_args(parser)
    text = "decide images of the five yourself, as in visualize.py"
    data.add_argument("--pick", nargs="+", action="extend", metavar="CLASS=ID", help=text)
    data.add_argument("--split", help="take the images of this split, such as val")
    data.add_argument("--limit", type=whole(1), help="take the first so many images alone")

    parser.needs["points_per_side"] = ("prompts", "grid")
    add = parser.add_argument_group("SAM").add_argument
    add("--sam_model", choices=list(SAM_MODELS), default="vit_b", help="its size")
    add("--sam_checkpoint", help="its weights, if not the official ones")
    text = "a grid of points, or a box and a point for each object region that DeepLab predicts"
    add("--prompts", choices=["grid", "deeplab"], default="grid", help=text)
    # Thresholds and numbers are the package's own defaults.
    add("--points_per_side", type=whole(1, 256), default=32, help="of the grid")
    add("--points_per_batch", type=whole(1, 4096), default=64, help="fewer for large images")
    add("--pred_iou_thresh", type=SHARE, default=0.88, help="lowest predicted IoU, 0 for all")
    add("--stability_score_thresh", type=SHARE, default=0.95, help="lowest stability, 0 for all")

    add = parser.add_argument_group("DeepLab").add_argument
    add("--ckpt", help="checkpoint, if not that of the data set's best run")
    add("--output_stride", type=int, choices=[8, 16], help="for a checkpoint that does not say")
    add("--runs_dir", default="runs", help="where runs are kept")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="sam_results", help="for the results")
    run.add_argument("--report_dir", default="report", help="holds picks.json")
    run.add_argument("--overwrite", action="store_true", help="do again what is already done")
    add_device_flags(run, "of DeepLab's convolutions and SAM's image encoder; the rest is fp32")
    return parser


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags; what would do nothing is refused before anything is read.

    Raises:
        UserError: flags that cannot work, or not together.
    """
    parser = build_parser(description)
    given = parser.given(argv)
    args = argparse.Namespace(**parser.defaults() | given)
    parser.check_needs(args, given)
    if args.images:
        refuse(DATA_FLAGS | {"split", "report_dir", "pick"}, given, "has no use with images")
    if args.images and args.prompts == "grid":
        useless = {"ckpt", "output_stride", "runs_dir"}
        refuse(useless, given, "images have no scores: give --prompts deeplab with it")
    if args.split:
        refuse({"report_dir", "pick"}, given, "has no use with --split: give one of them")
    if args.ckpt:
        refuse({"runs_dir"}, given, "has no use with --ckpt: give one of them")
    require_checkpoint(args.ckpt)
    return args
