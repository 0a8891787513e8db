"""The flags of `sam_infer.py`."""

import argparse
import importlib.util

from datasets import add_data_args
from utils.common.errors import UserError
from utils.options import HelpFormatter
from utils.precision import PRECISIONS
from utils.sam.mask_maker import SAM_MODELS, MaskSettings

PROMPTS = ("grid", "deeplab")


def build_parser(description: str) -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("images", nargs="*", help="images and folders, if not the report's five")
    data = add_data_args(parser)
    data.add_argument("--split", help="take the images of this split, such as val")
    data.add_argument("--limit", type=int, help="take the first so many images alone")

    sam = parser.add_argument_group("SAM")
    defaults = MaskSettings()
    sam.add_argument("--sam_model", choices=list(SAM_MODELS), default="vit_b", help="its size")
    sam.add_argument("--sam_checkpoint", help="its weights, if not the official ones")
    sam.add_argument(
        "--prompts",
        choices=PROMPTS,
        default="grid",
        help="what SAM is asked about: a grid of points, or a box and a point for each connected "
        "region of an object class in DeepLab's prediction",
    )
    sam.add_argument(
        "--points_per_side", type=int, help=f"of the grid, if not {defaults.points_per_side}"
    )
    sam.add_argument(
        "--points_per_batch",
        type=int,
        default=defaults.points_per_batch,
        help="prompts at a time, fewer for large images",
    )
    sam.add_argument(
        "--pred_iou_thresh",
        type=float,
        default=defaults.pred_iou_thresh,
        help="lowest predicted IoU of a mask, 0 for all",
    )
    sam.add_argument(
        "--stability_score_thresh",
        type=float,
        default=defaults.stability_score_thresh,
        help="lowest stability of a mask, 0 for all",
    )
    sam.add_argument(
        "--min_mask_region_area",
        type=int,
        default=defaults.min_mask_region_area,
        help="remove smaller holes and islands, in pixels; needs OpenCV",
    )

    deeplab = parser.add_argument_group("DeepLab")
    deeplab.add_argument("--ckpt", help="checkpoint, if not that of the data set's best run")
    deeplab.add_argument(
        "--output_stride", type=int, choices=[8, 16], help="for a checkpoint that does not say"
    )
    deeplab.add_argument("--runs_dir", default="runs", help="where runs are kept")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="sam_results", help="for the results")
    run.add_argument("--report_dir", default="report", help="holds picks.json")
    run.add_argument("--overwrite", action="store_true", help="do again what is already done")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of DeepLab's convolutions and SAM's image encoder; the rest of SAM is fp32",
    )
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read."""
    if args.images and args.split:
        raise UserError(f"--split {args.split}: give images or a split, not both")
    if args.prompts == "deeplab" and args.points_per_side is not None:
        raise UserError("--points_per_side: is for --prompts grid: leave it out")
    for flag in ("limit", "points_per_side", "points_per_batch"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    for flag in ("pred_iou_thresh", "stability_score_thresh"):
        if not 0 <= getattr(args, flag) <= 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be between 0 and 1")
    if args.min_mask_region_area < 0:
        raise UserError(f"--min_mask_region_area {args.min_mask_region_area}: at least 0")
    if args.min_mask_region_area and importlib.util.find_spec("cv2") is None:
        raise UserError(
            f"--min_mask_region_area {args.min_mask_region_area}: needs OpenCV, which is not "
            "installed: pip install opencv-python-headless, or leave the flag out"
        )


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags.

    Raises:
        UserError: flags that cannot work, or not together.
    """
    args = build_parser(description).parse_args(argv)
    check_args(args)
    args.points_per_side = args.points_per_side or MaskSettings.points_per_side
    return args
