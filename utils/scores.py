"""Scoring a checkpoint on a data set: what `main.py --test_only` and `predict.py --split` share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import DataSource, build_val_set
from datasets.base import SegmentationDataset
from datasets.class_counts import present_and_absent
from datasets.loader import build_val_loader
from utils.checkpoint import Checkpoint, first_difference
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.processes import is_main, print_main
from utils.engine import evaluate
from utils.metrics import format_scores
from utils.precision import out_of_memory_explained
from utils.predictor import Predictor
from utils.run_folder import ARGS_FILE

Keep = Callable[[str, np.ndarray], None]


def protocol(args: argparse.Namespace) -> str:
    """How the evaluation looks at images; every score says so."""
    if args.crop_val:
        return f"centre crops: short side {args.crop_size[0]}, centre square"
    return "whole images at native size"


def score_checkpoint(
    predictor: Predictor, args: argparse.Namespace, folder: Path, keep: Keep | None = None
) -> dict[str, Any]:
    """Score a checkpoint on a split, write its scores, then print them.

    Args:
        predictor: from `Predictor.from_checkpoint`.
        args: the flags of the data and of the evaluation.
        folder: where `scores_<split>[_<protocol>].json` goes; see `scores_file`.
        keep: called with each sample's id and its class indices, uint8 (H, W).

    Returns:
        What that file holds.

    Raises:
        UserError: the data set or the checkpoint is not as it should be, or they do not fit.
    """
    checkpoint, device = predictor.checkpoint, predictor.device
    crop = args.crop_size[0] if args.crop_val else None
    val_set, sizes = build_val_set(DataSource.of(args), args.val_image_set, crop)
    name = f"{args.dataset}, {args.val_image_set}"
    check_classes(checkpoint, val_set, args.dataset)
    say_other_images(checkpoint, args, val_set)
    loader = build_val_loader(
        val_set, sizes, args.val_batch_size, args.num_workers, pin_memory=device.type == "cuda"
    )

    def visit(index: int, image: torch.Tensor, target: torch.Tensor, pred: torch.Tensor) -> None:
        if keep:
            keep(val_set.ids[index], pred.cpu().numpy())

    remedy = "lower --val_batch_size, or use --precision bf16 or fp16"
    with out_of_memory_explained(device, remedy):
        metrics = evaluate(predictor, val_set, loader, visit)
    present, absent = present_and_absent(metrics.confusion.sum(1), val_set.class_names)
    if len(present) < 2:
        raise UserError(
            f"{name}: its masks hold no other class than {''.join(present) or 'void'}, so that "
            "scores would say nothing: check the masks"
        )
    measured = metrics.compute()
    trained = checkpoint.content["args"] if checkpoint.kind == "own" else {}
    scores = {
        "checkpoint": str(checkpoint.path),
        "dataset": args.dataset,
        "image_set": args.val_image_set,
        "images": len(val_set),
        "protocol": protocol(args),
        "crop_size": args.crop_size[0] if args.crop_val else None,
        "output_stride": predictor.output_stride,
        "trained": {key: trained.get(key) for key in ("dataset", "output_stride")},
        "precision": predictor.precision,
        "resize": predictor.resize,
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        **measured,
        "class_iou": dict(zip(val_set.class_names, measured["class_iou"], strict=True)),
    }
    if is_main():
        write_json(folder / scores_file(scores), scores)
    print_main(
        f"{checkpoint.path} on {name} ({len(val_set)} images, {scores['protocol']}, "
        f"scales {scores['scales']}{', flipped' * predictor.flip})\n"
        + format_scores(measured, val_set.class_names)
        + (f"\nno pixel in the masks: {', '.join(absent)}" if absent else "")
        + f"\nscores in {folder / scores_file(scores)}"
    )
    return scores


def scores_file(scores: dict[str, Any]) -> str:
    """`scores_<split>[_<protocol>].json`: evaluations that differ have files of their own.

    The name says what differs from the usual: other weights than `best.pth`, another data set or
    output stride than the training's, centre crops, several scales, flips.
    """
    checkpoint, trained = Path(scores["checkpoint"]).stem, scores["trained"]
    scales = "-".join(f"{scale:g}" for scale in scores["scales"])
    parts = {
        checkpoint: checkpoint != "best",
        scores["dataset"]: scores["dataset"] != trained["dataset"],
        f"os{scores['output_stride']}": scores["output_stride"] != trained["output_stride"],
        f"crop{scores['crop_size']}": scores["crop_size"] is not None,
        f"scales{scales}": scales != "1",
        "flip": scores["flip"],
    }
    return "_".join(["scores", scores["image_set"], *(k for k, v in parts.items() if v)]) + ".json"


def check_classes(checkpoint: Checkpoint, val_set: SegmentationDataset, dataset: str) -> None:
    """Refuse a data set with other classes; say where a file does not name its own."""
    if difference := first_difference(checkpoint, val_set.class_names):
        raise UserError(
            f"{checkpoint.path}: --dataset {dataset} has other classes ({difference}): give the "
            "data set that it was trained on"
        )
    if not checkpoint.class_names:
        print_main(f"{checkpoint.path}: its classes are taken to be those of --dataset {dataset}")


def say_other_images(
    checkpoint: Checkpoint, args: argparse.Namespace, val_set: SegmentationDataset
) -> None:
    """Say it in one line if the split holds other images than when the run was trained."""
    content, path = checkpoint.content, checkpoint.path.with_name(ARGS_FILE)
    if "data" not in content and path.is_file():
        content = read_json(path)
    settings = content.get("args")
    if checkpoint.kind != "own" or not isinstance(settings, dict):
        return
    for role, split in (("train", "image_set"), ("val", "val_image_set")):
        before = content.get("data", {}).get(role, {})
        same = all(settings.get(key) == getattr(args, key) for key in ("dataset", "data_root"))
        if same and settings.get(split) == args.val_image_set and before:
            if before["ids"] != val_set.ids_hash:
                print_main(
                    f"{args.val_image_set}: holds other images than when {checkpoint.path} was "
                    f"trained ({before['images']} then, {len(val_set)} now)"
                )
