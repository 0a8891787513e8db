"""Scoring a checkpoint on a data set: what `main.py --test_only` and `predict.py --split` share."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import DataSource, build_val_set
from datasets.base import SegmentationDataset
from datasets.class_counts import present_and_absent
from datasets.loader import build_loader, size_batches
from utils.checkpoint import Checkpoint, first_difference
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.processes import is_main
from utils.common.progress import say
from utils.engine import evaluate
from utils.metrics import format_scores, scores_from_confusion
from utils.precision import out_of_memory_explained
from utils.predictor import Predictor
from utils.run_folder import BEST_FILE

Keep = Callable[[str, Path, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a checkpoint is scored on, and how."""

    source: DataSource
    image_set: str = "val"
    crop: int | None = None  # side of the centre squares of `--crop_val`; None: whole images
    batch_size: int = 8
    num_workers: int = 0
    detailed: bool = False  # print more of each class than its IoU

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Evaluation":
        """What the flags of a command line say."""
        crop = args.crop_size[0] if args.crop_val else None
        detailed = getattr(args, "metrics", "iou") == "all"
        loading = (args.val_batch_size, args.num_workers)
        return cls(DataSource.of(args), args.val_image_set, crop, *loading, detailed)

    @property
    def name(self) -> str:
        """Data set and split."""
        return f"{self.source.dataset}, {self.image_set}"


def protocol(crop: int | None, resize: float = 1.0) -> str:
    """How an evaluation looks at images (see `Evaluation`, `main.py --resize`); scores say so."""
    seen = "" if resize == 1 else f", seen resized by {resize:g}"
    if crop is None:
        return f"whole images at native size{seen}"
    return f"centre crops: short side {crop}, centre square{seen}"


def score_checkpoint(
    predictor: Predictor,
    evaluation: Evaluation,
    folder: Path | None = None,
    keep: Keep | None = None,
) -> Path:
    """Score a checkpoint on a split, write its scores, then print them.

    Args:
        predictor: from `Predictor.from_checkpoint`.
        evaluation: on what, and how.
        folder: of the scores; None: that of the checkpoint.
        keep: called for each sample with its id, the file that its prediction belongs in, and the
            prediction: class indices uint8 (H, W).

    Returns:
        The file of the scores.

    Raises:
        UserError: the data set or the checkpoint is not as it should be, or they do not fit.
    """
    device = predictor.device
    val_set, sizes = build_val_set(evaluation.source, evaluation.image_set, evaluation.crop)
    settings = describe_evaluation(predictor, evaluation, val_set)
    file = scores_file(settings, folder)
    batches = size_batches(sizes, evaluation.batch_size)
    loader = build_loader(val_set, batches, evaluation.num_workers, device.type == "cuda")

    def visit(index: int, target: torch.Tensor, pred: torch.Tensor) -> None:
        if keep:
            sample = val_set.ids[index]
            keep(sample, predictions_folder(file) / f"{sample}.png", pred.cpu().numpy())

    remedy = "lower --val_batch_size, or use --precision bf16 or fp16"
    with out_of_memory_explained(remedy):
        confusion = evaluate(predictor, val_set, loader, visit).confusion
    present, absent = present_and_absent(confusion.sum(1), val_set.class_names)
    if len(present) < 2:
        raise UserError(
            f"{evaluation.name}: its masks hold no other class than {''.join(present) or 'void'}, "
            "so that scores would say nothing: check the masks"
        )
    measured = scores_from_confusion(confusion, detailed=True)
    by_name = {
        key: dict(zip(val_set.class_names, values, strict=True)) if "class_" in key else values
        for key, values in measured.items()
    }
    if is_main():
        write_json(file, settings | by_name)
    say(
        f"{predictor.checkpoint.path} on {evaluation.name} ({len(val_set)} images, "
        f"{settings['protocol']}, scales {settings['scales']}{', flipped' * predictor.flip})\n"
        + format_scores(measured, val_set.class_names, evaluation.detailed)
        + (f"\nno pixel in the masks: {', '.join(absent)}" if absent else "")
        + f"\nscores in {file}"
    )
    return file


def describe_evaluation(
    predictor: Predictor, evaluation: Evaluation, dataset: SegmentationDataset
) -> dict[str, Any]:
    """Everything that tells one evaluation from another, as the file of its scores has it.

    Raises:
        UserError: the checkpoint has other classes than the data set.
    """
    checkpoint, source = predictor.checkpoint, evaluation.source
    check_classes(checkpoint, dataset, source.dataset)
    return {
        "checkpoint": str(checkpoint.path),
        "dataset": source.dataset,
        "data_root": source.data_root,
        "void_value": source.void_value,
        "object_value": source.object_value,
        "image_set": evaluation.image_set,
        "images": len(dataset),
        "ids": dataset.ids_hash,
        "protocol": protocol(evaluation.crop, predictor.resize),
        "crop_size": evaluation.crop,
        "output_stride": predictor.output_stride,
        "precision": predictor.precision,
        "resize": predictor.resize,
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        "window": predictor.side,
        "overlap": predictor.overlap,
    }


def scores_file(
    settings: Mapping[str, Any], folder: Path | None = None, kind: str = "scores"
) -> Path:
    """`<kind>_<split>[_<run>][_<weights>][_<views>].json`: no two evaluations have the same.

    The run is named where the folder (by default its own) is not the run's, the weights where they
    are not `best.pth`, and views where they are not the whole image at its size. Where another
    evaluation has that name already, a hash is added.
    """
    path, crop = Path(settings["checkpoint"]), settings["crop_size"]
    folder = folder or path.parent
    scales = "-".join(f"{scale:g}" for scale in settings["scales"])
    words = [
        kind,
        settings["image_set"],
        path.parent.name if folder.resolve() != path.parent.resolve() else "",
        path.stem if path.name != BEST_FILE else "",
        f"crop{crop}" if crop else "",
        f"scales{scales}" if scales != "1" else "",
        "flip" if settings["flip"] else "",
    ]
    file = folder / ("_".join(filter(None, words)) + ".json")
    there = read_json(file) if file.exists() else settings
    if all(there.get(key) == value for key, value in settings.items()):
        return file
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return file.with_stem(f"{file.stem}_{digest[:6]}")


def predictions_folder(file: Path) -> Path:
    """Where the masks of an evaluation go: beside its scores, under the same name."""
    return file.with_name("predictions" + file.stem.removeprefix("scores"))


def check_classes(checkpoint: Checkpoint, val_set: SegmentationDataset, dataset: str) -> None:
    """Refuse a data set with other classes; say where a file does not name its own."""
    if difference := first_difference(checkpoint, val_set.class_names):
        raise UserError(
            f"{checkpoint.path}: --dataset {dataset} has other classes ({difference}): give the "
            "data set that it was trained on"
        )
    if not checkpoint.class_names:
        say(f"{checkpoint.path}: its classes are taken to be those of --dataset {dataset}")
