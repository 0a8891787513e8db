"""The pictures of the report, each from a data set, its picks and runs."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.image_files import image_size, read_image
from datasets.loader import build_val_loader, default_num_workers
from utils.common.errors import UserError
from utils.engine import evaluate
from utils.metrics import confusion_matrix, scores_from_confusion
from utils.predictor import Predictor
from utils.report.charts import loss_name
from utils.report.image_grid import (
    RIGHT_COLOR,
    WRONG_COLOR,
    class_legend,
    color_map,
    error_map,
    image_grid,
    photo,
)
from utils.run_records import Run

PAIRS_PER_ROW = 5
NUM_EXTREMES = 3  # so many of the worst and of the best images
BATCH_SIZE = 8  # of the error analysis
SHORT_NAMES = {
    "deeplabv3": "DeepLabV3", "deeplabv3plus": "DeepLabV3+", "resnet50": "R50",
    "resnet101": "R101", "mobilenet": "MobileNetV2", "efficientnet_lite0": "EffNet-Lite0",
    "efficientnet_lite1": "EffNet-Lite1", "efficientnet_lite2": "EffNet-Lite2",
}  # fmt: skip
Column = tuple[tuple[str, str], Sequence[Path]]  # its head, and its pictures


def draw_classes(dataset: SegmentationDataset, classes: Mapping[str, str]) -> Figure:
    """An image of each class with its target beside it, five such pairs in a row.

    Args:
        dataset: holds the images.
        classes: {class name: id}.
    """
    panels = []
    for name, sample in classes.items():
        image, target = dataset[dataset.ids.index(sample)]
        panels += [photo(image, name), color_map(target)]
    columns = 2 * PAIRS_PER_ROW
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heads = [("", "image | ground truth")] * (len(rows[0]) // 2)
    return image_grid(rows, heads, ratio=3 / 4, pairs=True)


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


def image_scores(
    target: torch.Tensor, pred: torch.Tensor, num_classes: int
) -> tuple[float, float] | None:
    """The mIoU of one image over the classes of its target, and its pixel accuracy, in [0, 1].

    A class that a few stray pixels of the prediction have takes no part: it would count as much as
    one that fills the image. None if the target has no labelled pixel.
    """
    confusion = confusion_matrix(target, pred, num_classes, IGNORE_INDEX)
    if not confusion.any():
        return None
    scores, in_target = scores_from_confusion(confusion), confusion.any(1).tolist()
    ious = [iou for iou, present in zip(scores["class_iou"], in_target, strict=True) if present]
    return fmean(ious), scores["pixel_acc"]


def scores_text(scores: tuple[float, float] | None) -> str:
    """An image's scores, for its caption."""
    if scores is None:
        return "no labelled pixel"
    return f"mIoU {100 * scores[0]:.1f}\naccuracy {100 * scores[1]:.1f} %"


def run_head(run: Run, score: str) -> tuple[str, str]:
    """What stands above a run's predictions: model, loss and score; and, small, its name."""
    words = str(run.setting("model")).split("_", 1)
    model = " ".join(SHORT_NAMES.get(word, word) for word in words)
    return f"{model}, {loss_name(run)}\n{score}", run.name


def draw_comparison(
    dataset: SegmentationDataset,
    ids: Mapping[str, str],
    models: Iterable[tuple[Run, Predictor]],
    sam: Column | None = None,
) -> Figure:
    """Images, ground truth and the predictions of some runs, one image per row.

    Args:
        dataset: holds the images.
        ids: {id: the class that it was chosen for}.
        models: each gives a column, headed by its mIoU and what that was measured on.
        sam: a last column.

    Raises:
        UserError: weights cannot be read.
    """
    samples = [dataset[dataset.ids.index(sample)] for sample in ids]
    rows = [
        [photo(image, f"{name}\n{sample}"), color_map(target)]
        for (sample, name), (image, target) in zip(ids.items(), samples, strict=True)
    ]
    heads = [("image", ""), ("ground truth", "")]
    shown = [target for _, target in samples]
    for run, predictor in models:
        score = f"mIoU {100 * run.best['miou']:.1f} on {run.setting('val_image_set') or 'val'}"
        score += ", centre crops" if run.setting("crop_val") else ""
        heads.append(run_head(run, score))
        for row, (image, target) in zip(rows, samples, strict=True):
            pred = predict(predictor, image)
            scores = image_scores(target, pred, dataset.num_classes)
            row.append(color_map(pred, scores_text(scores)))
            shown.append(pred)
    if sam:
        heads.append(sam[0])
        for row, path in zip(rows, sam[1], strict=True):
            row.append(photo(read_image(path)))
    return image_grid(rows, heads, class_legend(dataset.class_names, shown))


def sam_head(scores: Mapping[str, Any]) -> tuple[str, str]:
    """What stands above SAM's pictures: its scores, and which images they are of."""
    words = []
    for key, name in (("sam_deeplab", "DeepLab's classes"), ("oracle", "the true classes")):
        if scores.get(key):
            words.append(f"with {name} {100 * scores[key]['miou']:.1f}")
    on = f"mIoU on {len(scores.get('images') or [])} images of {scores.get('image_set')}: "
    return "masks of SAM", on + ", ".join(words) if words else ""


def find_sam_pictures(
    folder: Path, dataset: SegmentationDataset, ids: Iterable[str]
) -> list[Path] | None:
    """SAM's picture of each image; None unless all are there, each of its image's size."""
    paths = {folder / f"{name}.png": dataset.target_paths[dataset.ids.index(name)] for name in ids}
    fit = all(p.exists() and image_size(p) == image_size(mask) for p, mask in paths.items())
    return list(paths) if fit else None


@dataclasses.dataclass
class ErrorAnalysis:
    """What a run gets wrong.

    Attributes:
        dataset: the images that were predicted.
        measured_on: the same in words.
        scores: mIoU, pixel accuracy and index of each image, the worst first; those without a
            labelled pixel are left out.
        confusion: int64 (C, C) over all of them, rows are targets.
    """

    dataset: SegmentationDataset
    measured_on: str
    scores: list[tuple[float, float, int]]
    confusion: torch.Tensor

    @property
    def score_text(self) -> str:
        """The mIoU over all images."""
        miou = scores_from_confusion(self.confusion)["miou"]
        return f"mIoU {100 * miou:.1f} on {self.measured_on}"


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
            scored.append((*scores, index))

    loader = build_val_loader(data, data.image_sizes(), BATCH_SIZE, default_num_workers())
    metrics = evaluate(predictor, data, loader, visit)
    if not scored:
        raise UserError(f"{dataset.folder}: no labelled pixel in these images: see --val_image_set")
    return ErrorAnalysis(data, measured_on, sorted(scored), metrics.confusion.cpu())


def draw_errors(analysis: ErrorAnalysis, run: Run, predictor: Predictor) -> Figure:
    """The worst and the best images, with a map of where the prediction is wrong."""
    number, dataset = len(analysis.scores), analysis.dataset
    worst = analysis.scores[: min(NUM_EXTREMES, (number + 1) // 2)]
    best = analysis.scores[max(number - NUM_EXTREMES, len(worst)) :][::-1]
    named = [(f"worst {rank}", *scores) for rank, scores in enumerate(worst, start=1)]
    named += [(f"best {rank}", *scores) for rank, scores in enumerate(best, start=1)]
    rows, shown = [], []
    for name, miou, accuracy, index in named:
        image, target = dataset[index]
        pred = predict(predictor, image)
        wrong = f"{100 * (1 - accuracy):.1f} % wrong"
        rows.append([
            photo(image, f"{name}\n{dataset.ids[index]}"), color_map(target),
            color_map(pred, scores_text((miou, accuracy))), error_map(image, target, pred, wrong),
        ])  # fmt: skip
        shown += [target, pred]
    legend = class_legend(dataset.class_names, shown)
    legend += [("wrong", WRONG_COLOR), ("right (darkened)", RIGHT_COLOR)]
    heads = [("image", ""), ("ground truth", ""), run_head(run, analysis.score_text)]
    return image_grid(rows, [*heads, ("errors", "")], legend)
