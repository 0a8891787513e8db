"""The pictures of the report, each from a data set, its picks and runs."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from PIL.Image import Resampling

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.image_files import image_size, read_image
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
SHORT_NAMES = {
    "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3+", "resnet50": "R50",
    "resnet101": "R101", "mobilenet": "MobileNetV2", "efficientnet_lite0": "EffNet-Lite0",
    "efficientnet_lite1": "EffNet-Lite1", "efficientnet_lite2": "EffNet-Lite2",
}  # fmt: skip


def draw_classes(dataset: SegmentationDataset, classes: Mapping[str, str]) -> Figure:
    """An image of each class with its target beside it, five such pairs in a row.

    Args:
        dataset: holds the images.
        classes: {class name: id}.
    """
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


class ImageScores(NamedTuple):
    """The scores of one image; the mean is over the classes of its target."""

    miou: float
    pixel_acc: float

    def __str__(self) -> str:
        return f"mIoU {100 * self.miou:.1f}, acc. {100 * self.pixel_acc:.1f} %"


def image_scores(target: torch.Tensor, pred: torch.Tensor, num_classes: int) -> ImageScores | None:
    """The scores of one image; None if the target has no labelled pixel."""
    confusion = confusion_matrix(target, pred, num_classes, IGNORE_INDEX)
    if not confusion.any():
        return None
    return ImageScores(target_miou(confusion)[0], scores_from_confusion(confusion)["pixel_acc"])


def number_of_classes(target: torch.Tensor) -> str:
    """How many classes a target has, in words."""
    number = len(set(target.unique().tolist()) - {IGNORE_INDEX})
    return "1 class" if number == 1 else f"{number} classes"


def model_name(run: Run) -> str:
    """Head and backbone of a run's model, for people."""
    words = str(run.setting("model")).split("_", 1)
    return " ".join(SHORT_NAMES.get(word, word) for word in words)


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
        sam: SAM's picture of each image, for a last column.

    Raises:
        UserError: weights or masks cannot be read.
    """
    named = {sample: dataset[dataset.ids.index(sample)] for sample in ids}
    rows = [
        [photo(image, sample), color_map(target, dataset.colours, number_of_classes(target))]
        for sample, (image, target) in named.items()
    ]
    heads = ["image", "ground truth"]
    shown = [target for _, target in named.values()]
    for run, predictor in models:
        kind = loss_name(run).partition(",")[0]
        heads.append(f"{kind}\nmIoU {100 * run.best['miou']:.1f}")
        for row, (image, target) in zip(rows, named.values(), strict=True):
            pred = predict(predictor, image)
            scores = image_scores(target, pred, dataset.num_classes)
            row.append(color_map(pred, dataset.colours, str(scores or "no labelled pixel")))
            shown.append(pred)
    if sam:
        heads.append("masks of SAM")
        for row, path in zip(rows, sam, strict=True):
            number = len(load_masks(path.with_suffix(".npz")))
            row.append(photo(read_image(path), f"{number} masks"))
    legend = class_legend(dataset.class_names, dataset.colours, shown)
    return image_grid(rows, heads, legend)


def find_sam_pictures(folder: Path, dataset: SegmentationDataset, ids: Iterable[str]) -> list[Path]:
    """SAM's pictures, each beside its masks and of its image's size; none unless all are there."""
    paths = {folder / f"{name}.png": dataset.target_paths[dataset.ids.index(name)] for name in ids}
    fit = all(
        path.exists() and path.with_suffix(".npz").exists() and image_size(path) == image_size(mask)
        for path, mask in paths.items()
    )
    return list(paths) if fit else []


@dataclasses.dataclass
class ErrorAnalysis:
    """What a run gets wrong.

    Attributes:
        dataset: the images that were predicted.
        measured_on: the same in words.
        scores: mIoU and index of each image, the worst first; those without a labelled pixel are
            left out.
        confusion: int64 (C, C) over all of them, rows are targets.
    """

    dataset: SegmentationDataset
    measured_on: str
    scores: list[tuple[float, int]]
    confusion: torch.Tensor

    @property
    def miou(self) -> float:
        """The mIoU over all images."""
        return scores_from_confusion(self.confusion)["miou"]


def analyse_errors(
    dataset: SegmentationDataset, image_set: str, predictor: Predictor, limit: int = 0
) -> ErrorAnalysis:
    """Predict the whole images of a set and sort them by their mIoU.

    Args:
        dataset: whole images.
        image_set: its name.
        predictor: of the run.
        limit: at most so many images, evenly spread over the set; 0 for all.
    """
    data, measured_on = dataset, image_set
    if 0 < limit < len(dataset):
        measured_on = f"{limit:,} of {len(dataset):,} images of {image_set}"
        data = copy.copy(dataset)
        for name in ("ids", "image_paths", "target_paths"):
            values = getattr(dataset, name)
            setattr(data, name, [values[n * len(dataset) // limit] for n in range(limit)])
    scored = []

    def visit(index: int, _: torch.Tensor, target: torch.Tensor, pred: torch.Tensor) -> None:
        scores = image_scores(target, pred.cpu(), dataset.num_classes)
        if scores:
            scored.append((scores.miou, index))

    batches = size_batches(data.image_sizes(), BATCH_SIZE)
    loader = build_loader(data, batches, default_num_workers())
    metrics = evaluate(predictor, data, loader, visit)
    if not scored:
        raise UserError(f"{dataset.folder}: no labelled pixel in these images: see --val_image_set")
    return ErrorAnalysis(data, measured_on, sorted(scored), metrics.confusion.cpu())


def draw_errors(analysis: ErrorAnalysis, predictor: Predictor) -> Figure:
    """The worst and the best images, with a map of where the prediction is wrong."""
    number, dataset = len(analysis.scores), analysis.dataset
    worst = analysis.scores[: min(NUM_EXTREMES, (number + 1) // 2)]
    best = analysis.scores[max(number - NUM_EXTREMES, len(worst)) :][::-1]
    named = [(f"worst {rank}", index) for rank, (_, index) in enumerate(worst, start=1)]
    named += [(f"best {rank}", index) for rank, (_, index) in enumerate(best, start=1)]
    rows, shown = [], []
    for name, index in named:
        image, target = dataset[index]
        pred = predict(predictor, image)
        scores = image_scores(target, pred, dataset.num_classes)
        assert scores is not None  # it was ranked by them
        rows.append([
            photo(image, f"{name}: {dataset.ids[index]}"),
            color_map(target, dataset.colours, number_of_classes(target)),
            color_map(pred, dataset.colours, str(scores)),
            error_map(image, target, pred, f"{100 * (1 - scores.pixel_acc):.1f} % wrong"),
        ])  # fmt: skip
        shown += [target, pred]
    legend = class_legend(dataset.class_names, dataset.colours, shown)
    legend += [("wrong", WRONG_COLOR), ("right", RIGHT_COLOR)]
    heads = ["image", "ground truth", f"prediction\nmIoU {100 * analysis.miou:.1f}", "errors"]
    return image_grid(rows, heads, legend)
