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
from datasets.loader import build_val_loader
from utils.checkpoint import Checkpoint, first_difference
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.processes import is_main, print_main
from utils.engine import evaluate
from utils.metrics import format_scores, scores_from_confusion
from utils.precision import out_of_memory_explained
from utils.predictor import Predictor
from utils.run_folder import ARGS_FILE, BEST_FILE
from utils.run_records import read_settings

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
    """How an evaluation looks at images; every score says so.

    Args:
        crop: as in `Evaluation`.
        resize: the model sees images resized by it; `main.py --resize`.
    """
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
        folder: where the scores go, under the name that `scores_file` gives; None: beside the
            checkpoint.
        keep: called for each sample with its id, the file that its prediction belongs in, and the
            prediction: class indices uint8 (H, W).

    Returns:
        The file of the scores.

    Raises:
        UserError: the data set or the checkpoint is not as it should be, or they do not fit.
    """
    checkpoint, device = predictor.checkpoint, predictor.device
    val_set, sizes = build_val_set(evaluation.source, evaluation.image_set, evaluation.crop)
    settings = describe_evaluation(predictor, evaluation, val_set)
    file = scores_file(settings, folder)
    loader = build_val_loader(
        val_set, sizes, evaluation.batch_size, evaluation.num_workers, device.type == "cuda"
    )

    def visit(index: int, image: torch.Tensor, target: torch.Tensor, pred: torch.Tensor) -> None:
        if keep:
            sample = val_set.ids[index]
            keep(sample, predictions_folder(file) / f"{sample}.png", pred.cpu().numpy())

    remedy = "lower --val_batch_size, or use --precision bf16 or fp16"
    with out_of_memory_explained(device, remedy):
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
    scores = {**settings, **by_name}
    if is_main():
        write_json(file, scores)
    print_main(
        f"{checkpoint.path} on {evaluation.name} ({len(val_set)} images, {scores['protocol']}, "
        f"scales {scores['scales']}{', flipped' * predictor.flip})\n"
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
    checkpoint = predictor.checkpoint
    check_classes(checkpoint, dataset, evaluation.source.dataset)
    say_other_images(checkpoint, evaluation, dataset)
    trained = checkpoint.content["args"] if checkpoint.kind == "own" else {}
    usual = ("dataset", "data_root", "output_stride", "precision")
    return {
        "checkpoint": str(checkpoint.path),
        "dataset": evaluation.source.dataset,
        "data_root": evaluation.source.data_root,
        "void_value": evaluation.source.void_value,
        "object_value": evaluation.source.object_value,
        "image_set": evaluation.image_set,
        "images": len(dataset),
        "ids": dataset.ids_hash,
        "protocol": protocol(evaluation.crop, predictor.resize),
        "crop_size": evaluation.crop,
        "output_stride": predictor.output_stride,
        "trained": {key: trained.get(key) for key in usual},
        "precision": predictor.precision,
        "resize": predictor.resize,
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        "window": predictor.side,
        "overlap": predictor.overlap,
    }


def scores_file(settings: Mapping[str, Any], folder: Path | None = None) -> Path:
    """`scores_<split>[_<what is unusual>].json`: no two evaluations have the same.

    The name says what is not as the training had it: other weights than `best.pth`, other data,
    another precision or output stride, centre crops, several scales, flips; and the run, where the
    folder (by default its own) is not the run's. Where all that is not enough, a hash is added.
    """
    path, trained = Path(settings["checkpoint"]), settings["trained"]
    folder = folder or path.parent
    is_beside = folder.resolve() == path.parent.resolve()
    scales = "-".join(f"{scale:g}" for scale in settings["scales"])
    is_custom = settings["dataset"] == "custom"
    unusual = {
        path.parent.name or path.name: not is_beside,
        path.stem: path.name != BEST_FILE,
        Path(settings["data_root"]).name if is_custom else settings["dataset"]: any(
            settings[key] != trained[key] for key in ("dataset", "data_root")[: 1 + is_custom]
        ),
        settings["precision"]: settings["precision"] != trained["precision"],
        f"os{settings['output_stride']}": settings["output_stride"] != trained["output_stride"],
        f"crop{settings['crop_size']}": settings["crop_size"] is not None,
        f"scales{scales}": scales != "1",
        "flip": settings["flip"],
    }
    words = ["scores", settings["image_set"], *(word for word, is_so in unusual.items() if is_so)]
    file = folder / ("_".join(words) + ".json")
    if not file.exists():
        return file
    stored = {**settings, **read_json(file)}  # older files do not say all
    paths = ["data_root"] if is_beside else ["data_root", "checkpoint"]
    others = settings.keys() - {"data_root", "checkpoint", "trained", "protocol"}
    if all(settings[key] == stored[key] for key in others) and all(
        Path(settings[key]).resolve() == Path(stored[key]).resolve() for key in paths
    ):
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
        print_main(f"{checkpoint.path}: its classes are taken to be those of --dataset {dataset}")


def say_other_images(
    checkpoint: Checkpoint, evaluation: Evaluation, val_set: SegmentationDataset
) -> None:
    """Say it in one line if the split holds other images than when the run was trained."""
    if not checkpoint.path.with_name(ARGS_FILE).is_file():
        return
    run = read_settings(checkpoint.path.parent)
    split = (evaluation.source.dataset, evaluation.source.data_root, evaluation.image_set)
    for role, flag in (("train", "image_set"), ("val", "val_image_set")):
        before = run.lists.get(role, {"ids": val_set.ids_hash})
        trained = (run.source.dataset, run.source.data_root, run.setting(flag))
        if trained == split and before["ids"] != val_set.ids_hash:
            print_main(
                f"{evaluation.image_set}: holds other images than when {checkpoint.path} was "
                f"trained ({before['images']} then, {len(val_set)} now)"
            )
