"""The figures of the report, each from a data set, its picks and runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.image_files import image_size, read_image
from utils.common.errors import UserError
from utils.metrics import confusion_matrix, scores_from_confusion
from utils.predictor import Predictor
from utils.report.charts import percent, plot_confusion, plot_distribution
from utils.report.image_grid import (
    WRONG_COLOR,
    Panel,
    class_legend,
    color_map,
    error_map,
    image_grid,
    photo,
)
from utils.run_records import Run

PAIRS_PER_ROW = 5
NUM_EXTREMES = 3  # so many of the worst and of the best images


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
    return image_grid(rows, group=2, columns=min(columns, len(panels)))


def draw_distribution(
    name: str, class_names: Sequence[str], pixel_counts: torch.Tensor, void_pixels: int, images: int
) -> Figure:
    """The share of each class, and in the title that of void.

    Args:
        name: of the data set and split.
        class_names: one per class.
        pixel_counts: int64 (C,).
        void_pixels: pixels that are 255.
        images: how many were counted.

    Raises:
        UserError: all pixels are void.
    """
    labelled = int(pixel_counts.sum())
    if labelled == 0:
        raise UserError(f"{name}: no labelled pixel in its {images} masks: see --image_set")
    void = percent(void_pixels / (labelled + void_pixels))
    title = f"{name}: {images:,} images; void (not counted) has {void} of all pixels"
    return plot_distribution(class_names, pixel_counts.tolist(), title)


def constant_scores(pixel_counts: torch.Tensor, index: int) -> dict[str, float]:
    """The scores of predicting one class everywhere.

    Args:
        pixel_counts: int64 (C,), the targets' pixels of each class.
        index: that class.
    """
    confusion = torch.zeros(len(pixel_counts), len(pixel_counts), dtype=torch.int64)
    confusion[:, index] = pixel_counts
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


def predict(predictor: Predictor, image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Uint8 image (3, H, W) to class indices uint8 (H, W), on the CPU."""
    return predictor(image[None].to(device))[0].cpu()


def image_confusion(
    target: torch.Tensor, pred: torch.Tensor, dataset: SegmentationDataset
) -> torch.Tensor:
    """The confusion matrix of one image: int64 (C, C)."""
    return confusion_matrix(target, pred, dataset.num_classes, IGNORE_INDEX)


def miou_text(confusion: torch.Tensor) -> str:
    """The mIoU of a confusion matrix, for a caption."""
    if not confusion.any():
        return "no labelled pixel"
    return f"mIoU {100 * scores_from_confusion(confusion)['miou']:.1f}"


def draw_comparison(
    dataset: SegmentationDataset,
    ids: Sequence[str],
    runs: Sequence[Run],
    device: torch.device,
    precision: str,
    sam: tuple[str, Sequence[Path]] | None = None,
) -> Figure:
    """RGB, ground truth and the predictions of some runs, one image per row.

    Args:
        dataset: holds the images.
        ids: the images.
        runs: each gives a column, headed by its name and mIoU.
        device: for the models.
        precision: for the models.
        sam: head and pictures of a last column.

    Raises:
        UserError: weights cannot be read.
    """
    samples = [dataset[dataset.ids.index(sample)] for sample in ids]
    rows = [
        [photo(image, sample), color_map(target)]
        for sample, (image, target) in zip(ids, samples, strict=True)
    ]
    heads = ["RGB", "Ground truth"]
    shown = [target for _, target in samples]
    for run in runs:
        predictor = load_predictor(run, device, precision)
        heads.append(f"{run.name}\nmIoU {100 * run.best['miou']:.2f}")
        for row, (image, target) in zip(rows, samples, strict=True):
            pred = predict(predictor, image, device)
            row.append(color_map(pred, miou_text(image_confusion(target, pred, dataset))))
            shown.append(pred)
    if sam:
        heads.append(sam[0])
        for row, path in zip(rows, sam[1], strict=True):
            row.append(Panel(read_image(path).permute(1, 2, 0).numpy(), is_photo=True))
    return image_grid(rows, heads, class_legend(dataset.class_names, shown))


def find_sam_pictures(
    folder: Path, dataset: SegmentationDataset, ids: Sequence[str]
) -> list[Path] | None:
    """SAM's picture of each image; None unless all are there, each of its image's size."""
    paths = [folder / f"{sample}.png" for sample in ids]
    targets = [dataset.target_paths[dataset.ids.index(sample)] for sample in ids]
    for path, target in zip(paths, targets, strict=True):
        if not path.exists() or image_size(path) != image_size(target):
            return None
    return paths


@dataclasses.dataclass
class ErrorAnalysis:
    """What a run gets wrong.

    Attributes:
        indices: of the images, the worst first; those without a labelled pixel are left out.
        mious: their mIoU, in [0, 1].
        confusion: int64 (C, C) over all of them, rows are targets.
    """

    indices: list[int]
    mious: list[float]
    confusion: torch.Tensor


def analyse_errors(
    dataset: SegmentationDataset, predictor: Predictor, device: torch.device, limit: int = 0
) -> ErrorAnalysis:
    """Predict the whole images of a set and sort them by their mIoU.

    Args:
        dataset: whole images.
        predictor: from `load_predictor`.
        device: of the predictor's model.
        limit: at most so many images, evenly spread over the set; 0 for all.
    """
    number = min(limit or len(dataset), len(dataset))
    chosen = [place * len(dataset) // number for place in range(number)]
    total = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    scored = []
    for index in tqdm(chosen, "find errors", leave=False):
        image, target = dataset[index]
        confusion = image_confusion(target, predict(predictor, image, device), dataset)
        total += confusion
        if confusion.any():
            scored.append((scores_from_confusion(confusion)["miou"], index))
    if not scored:
        raise UserError(f"{dataset.folder}: no labelled pixel in these images: see --val_image_set")
    mious, indices = zip(*sorted(scored), strict=True)
    return ErrorAnalysis(list(indices), list(mious), total)


def draw_errors(
    dataset: SegmentationDataset,
    analysis: ErrorAnalysis,
    run: Run,
    predictor: Predictor,
    device: torch.device,
) -> Figure:
    """The worst and the best images, with a map of where the prediction is wrong."""
    number = len(analysis.indices)
    worst = list(range(min(NUM_EXTREMES, (number + 1) // 2)))
    best = list(range(number - 1, max(number - 1 - NUM_EXTREMES, worst[-1]), -1))
    rows, shown = [], []
    for kind, places in (("worst", worst), ("best", best)):
        for rank, place in enumerate(places, start=1):
            index = analysis.indices[place]
            image, target = dataset[index]
            pred = predict(predictor, image, device)
            rows.append(
                [
                    photo(image, f"{kind} {rank}: {dataset.ids[index]}"),
                    color_map(target),
                    color_map(pred, f"mIoU {100 * analysis.mious[place]:.1f}"),
                    error_map(image, target, pred, wrong_text(target, pred)),
                ]
            )
            shown += [target, pred]
    legend = [*class_legend(dataset.class_names, shown), ("wrong", WRONG_COLOR)]
    heads = ["RGB", "Ground truth", f"{run.name}\nmIoU {100 * run.best['miou']:.2f}", "Errors"]
    return image_grid(rows, heads, legend)


def wrong_text(target: torch.Tensor, pred: torch.Tensor) -> str:
    """The share of the labelled pixels that are wrong, for a caption."""
    is_labelled = target != IGNORE_INDEX
    share = ((pred != target) & is_labelled).sum() / is_labelled.sum()
    return f"{100 * float(share):.1f} % wrong"


def draw_confusion(dataset: SegmentationDataset, analysis: ErrorAnalysis, run: Run) -> Figure:
    """The confusion matrix of the analysed images."""
    miou = scores_from_confusion(analysis.confusion)["miou"]
    title = f"{run.name}: {len(analysis.indices):,} images, mIoU {100 * miou:.2f}; % of each row"
    return plot_confusion(dataset.class_names, analysis.confusion.numpy(), title)
