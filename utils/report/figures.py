"""The pictures of the report, each from a data set, its picks and runs."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from PIL.Image import Resampling

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.image_files import read_image
from datasets.loader import build_loader, default_num_workers, size_batches
from utils.common.errors import UserError
from utils.engine import evaluate
from utils.metrics import confusion_matrix, scores_from_confusion, target_miou
from utils.predictor import Predictor
from utils.report.curves import loss_name
from utils.report.image_grid import (
    RIGHT_COLOR,
    WRONG_COLOR,
    Panel,
    class_legend,
    color_map,
    error_map,
    image_grid,
    photo,
)
from utils.run_records import Run
from utils.sam.mask_files import load_masks

PAIRS_PER_ROW = 5
HALF_SIZE, PAIR_GAP = (180, 135), 4  # pixels: a pair is as wide as its panel in 300 dpi
NUM_EXTREMES = 3  # so many of the worst and of the best images
BATCH_SIZE = 8  # of the error analysis


def draw_classes(dataset: SegmentationDataset, classes: Mapping[str, str]) -> Figure:
    """The image of each class, {name: id}, with its target beside it, five such pairs in a row."""
    panels = []
    for name, sample in classes.items():
        image, target = dataset[dataset.ids.index(sample)]
        mask = target == dataset.class_names.index(name)
        panels.append(pair(photo(image), color_map(target, dataset.colours), mask, name))
    rows = [panels[start : start + PAIRS_PER_ROW] for start in range(0, len(panels), PAIRS_PER_ROW)]
    void = class_legend(dataset.class_names, dataset.colours, [torch.tensor(IGNORE_INDEX)])
    return image_grid(rows, ["image | ground truth"], void)


def pair(left: Panel, right: Panel, mask: torch.Tensor, caption: str) -> Panel:
    """A photo and a map of it, cut to 4:3 with their middles as near that of bool (H, W) as can be.

    They are scaled to the size of print here, since a map must not be smoothed.
    """
    size = torch.tensor(mask.shape)
    kept = size.minimum(size.flip(0) * torch.tensor([3 / 4, 4 / 3]))
    start = (mask.nonzero().double().mean(0) - kept / 2) / (size - kept)  # of what is cut off
    y, x = start.nan_to_num(0.5).clamp(0, 1).tolist()
    one, other = (
        np.asarray(ImageOps.fit(Image.fromarray(half.image), HALF_SIZE, method, centering=(x, y)))
        for half, method in ((left, Resampling.LANCZOS), (right, Resampling.NEAREST))
    )
    gap = np.full((HALF_SIZE[1], PAIR_GAP, 3), 255, np.uint8)
    return Panel(np.hstack([one, gap, other]), caption)


def constant_scores(dataset: SegmentationDataset, index: int) -> dict[str, Any]:
    """The scores of predicting one class everywhere."""
    confusion = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    confusion[:, index] = class_statistics(dataset).pixel_counts
    return scores_from_confusion(confusion)


def load_predictor(run: Run, device: torch.device, precision: str) -> Predictor:
    """The best weights of a run, ready to predict.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    if not run.best_checkpoint.exists():
        raise UserError(
            f"{run.best_checkpoint}: not there: copy it beside the log, or name other --runs"
        )
    return Predictor.from_checkpoint(run.best_checkpoint, device, precision)


def predict(predictor: Predictor, image: torch.Tensor) -> torch.Tensor:
    """Uint8 image (3, H, W) to class indices uint8 (H, W), on the CPU."""
    return predictor(image[None].to(predictor.device))[0].cpu()


def ground_truth(target: torch.Tensor, colours: np.ndarray) -> Panel:
    """A panel of a target (H, W), and how many classes it has."""
    number = len(set(target.unique().tolist()) - {IGNORE_INDEX})
    return color_map(target, colours, "1 class" if number == 1 else f"{number} classes")


def prediction(target: torch.Tensor, pred: torch.Tensor, colours: np.ndarray) -> Panel:
    """A panel of a prediction (H, W), its mIoU over the classes of the target, and its accuracy."""
    confusion = confusion_matrix(target, pred, len(colours), IGNORE_INDEX)
    (miou, number), accuracy = target_miou(confusion), scores_from_confusion(confusion)["pixel_acc"]
    text = f"mIoU {100 * miou:.1f}, acc. {100 * accuracy:.1f} %" if number else "no labelled pixel"
    return color_map(pred, colours, text)


def draw_comparison(
    dataset: SegmentationDataset,
    ids: Iterable[str],
    models: Iterable[tuple[Run, Predictor]],
    sam: Sequence[Path] = (),
) -> Figure:
    """Images, ground truth and the predictions of some runs, one image per row.

    Args:
        dataset: holds the images.
        ids: of the images.
        models: each gives a column, headed by its loss and mIoU.
        sam: SAM's picture of each image, beside its masks, for a last column.

    Raises:
        UserError: weights or masks cannot be read.
    """
    named = {sample: dataset[dataset.ids.index(sample)] for sample in ids}
    rows = [
        [photo(image, sample), ground_truth(target, dataset.colours)]
        for sample, (image, target) in named.items()
    ]
    heads = ["image", "ground truth"]
    shown = [target for _, target in named.values()]
    for run, predictor in models:
        kind = loss_name(run).partition(",")[0]
        heads.append(f"{kind}\nmIoU {100 * run.best['miou']:.1f}")
        for row, (image, target) in zip(rows, named.values(), strict=True):
            pred = predict(predictor, image)
            row.append(prediction(target, pred, dataset.colours))
            shown.append(pred)
    if sam:
        heads.append("masks of SAM")
        for row, path in zip(rows, sam, strict=True):
            number = len(load_masks(path.with_suffix(".npz")))
            row.append(photo(read_image(path), f"{number} masks"))
    legend = class_legend(dataset.class_names, dataset.colours, shown)
    return image_grid(rows, heads, legend)


def thin_out(dataset: SegmentationDataset, number: int) -> SegmentationDataset:
    """The data set with so many of its images, evenly spread."""
    part = copy.copy(dataset)
    for name in ("ids", "image_paths", "target_paths"):
        values = getattr(dataset, name)
        setattr(part, name, [values[n * len(values) // number] for n in range(number)])
    return part


def analyse_errors(
    dataset: SegmentationDataset, predictor: Predictor
) -> tuple[list[int], torch.Tensor]:
    """Predict the whole images of a set.

    Returns:
        The indices of the images by their mIoU, the worst first, without those that have no
        labelled pixel; and the confusion matrix, int64 (C, C), rows are targets.
    """
    mious: dict[int, float] = {}

    def visit(index: int, target: torch.Tensor, pred: torch.Tensor) -> None:
        confusion = confusion_matrix(target, pred.cpu(), dataset.num_classes, IGNORE_INDEX)
        miou, number = target_miou(confusion)
        if number:
            mious[index] = miou

    batches = size_batches(dataset.image_sizes(), BATCH_SIZE)
    loader = build_loader(dataset, batches, default_num_workers())
    metrics = evaluate(predictor, dataset, loader, visit)
    if not mious:
        raise UserError(f"{dataset.folder}: no labelled pixel in these images: see --val_image_set")
    return sorted(mious, key=lambda index: (mious[index], index)), metrics.confusion.cpu()


def draw_errors(
    dataset: SegmentationDataset, order: Sequence[int], predictor: Predictor, miou: float
) -> Figure:
    """The worst and the best images, with a map of where the prediction is wrong.

    `order` has the images' indices, the worst first; `miou` is that of all.
    """
    number = min(NUM_EXTREMES, (len(order) + 1) // 2)
    named = [(f"worst {rank}", index) for rank, index in enumerate(order[:number], 1)]
    best = order[number:][::-1][:NUM_EXTREMES]
    named += [(f"best {rank}", index) for rank, index in enumerate(best, 1)]
    rows, shown = [], []
    for name, index in named:
        image, target = dataset[index]
        pred = predict(predictor, image)
        rows.append([
            photo(image, f"{name}: {dataset.ids[index]}"),
            ground_truth(target, dataset.colours),
            prediction(target, pred, dataset.colours),
            error_map(image, target, pred),
        ])  # fmt: skip
        shown += [target, pred]
    legend = class_legend(dataset.class_names, dataset.colours, shown)
    legend += [("wrong", WRONG_COLOR), ("right", RIGHT_COLOR)]
    heads = ["image", "ground truth", f"prediction\nmIoU {100 * miou:.1f}", "errors"]
    return image_grid(rows, heads, legend)
