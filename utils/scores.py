"""Scoring a checkpoint on a data set: what `main.py --test_only` and `predict.py --split` share."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from datasets import build_dataset
from datasets.base import SegmentationDataset
from datasets.loader import EvaluationData, LoaderSettings, build_val_loader
from datasets.transforms import ShortSideCenterCrop
from utils.checkpoint import Checkpoint
from utils.common.errors import UserError
from utils.distributed import print_main
from utils.engine import evaluate
from utils.metrics import format_scores
from utils.precision import is_out_of_memory
from utils.predictor import Predictor

Keep = Callable[[str, np.ndarray], None]


def build_val_data(args: argparse.Namespace, pin_memory: bool) -> EvaluationData:
    """The evaluation's data: whole images, or the crops of `--crop_val`."""
    crop = args.crop_size[0]
    transform = ShortSideCenterCrop(crop) if args.crop_val else None
    val_set = build_dataset(args, args.val_image_set, transform)
    sizes = [(crop, crop)] * len(val_set) if args.crop_val else val_set.image_sizes()
    settings = LoaderSettings(
        args.val_batch_size, num_workers=args.num_workers, pin_memory=pin_memory
    )
    return EvaluationData(val_set, build_val_loader(val_set, sizes, settings))


def protocol(args: argparse.Namespace) -> str:
    """How the evaluation looks at images; every score says so."""
    if args.crop_val:
        return f"centre crops: short side {args.crop_size[0]}, centre square"
    return "whole images at native size"


def score_checkpoint(
    checkpoint: Checkpoint,
    args: argparse.Namespace,
    device: torch.device,
    precision: str,
    keep: Keep | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score a checkpoint on a split, and print its scores.

    Args:
        checkpoint: from `load_checkpoint`.
        args: the flags of the data, of the evaluation, and `output_stride`.
        device: where to compute.
        precision: "bf16", "fp16" or "fp32".
        keep: called with each sample's id and its class indices, uint8 (H, W).
        options: of `Predictor`, such as `scales` and `flip`.

    Returns:
        What `scores.json` holds.

    Raises:
        UserError: the data set or the checkpoint is not as it should be, or they do not fit.
    """
    data = build_val_data(args, pin_memory=device.type == "cuda")
    val_set = data.dataset
    check_classes(checkpoint, val_set, args.dataset)
    predictor = Predictor.from_checkpoint(
        checkpoint, device, precision, args.output_stride, **options
    )

    def visit(index: int, image: torch.Tensor, target: torch.Tensor, pred: torch.Tensor) -> None:
        keep(val_set.ids[index], pred.cpu().numpy())

    try:
        measured = evaluate(predictor, data, keep and visit).compute()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{device} is out of memory: lower --val_batch_size, or use --precision bf16 or fp16"
        ) from None
    scores = {
        "checkpoint": str(checkpoint.path),
        "dataset": args.dataset,
        "image_set": args.val_image_set,
        "images": len(val_set),
        "protocol": protocol(args),
        "output_stride": args.output_stride or checkpoint.output_stride,
        "resize": predictor.resize,
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        **measured,
    }
    print_main(
        f"{checkpoint.path} on {args.dataset}, {args.val_image_set} ({len(val_set)} images, "
        f"{scores['protocol']}, scales {scores['scales']}{', flipped' * predictor.flip})\n"
        + format_scores(scores, val_set.class_names)
    )
    scores["class_iou"] = dict(zip(val_set.class_names, scores["class_iou"], strict=True))
    return scores


def check_classes(checkpoint: Checkpoint, val_set: SegmentationDataset, dataset: str) -> None:
    """Refuse a data set with another number of classes; say if the names differ."""
    if val_set.num_classes != checkpoint.num_classes:
        raise UserError(
            f"{checkpoint.path}: has {checkpoint.num_classes} classes, but --dataset {dataset} has "
            f"{val_set.num_classes}: give the data set that it was trained on"
        )
    names = checkpoint.class_names or val_set.class_names
    for name, other in zip(names, val_set.class_names, strict=True):
        if name != other:
            print_main(
                f"warning: {checkpoint.path} was trained with a class {name!r} where --dataset "
                f"{dataset} has {other!r}"
            )
            return
