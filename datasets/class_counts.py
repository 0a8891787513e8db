"""How often each class occurs in the targets of a data set."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import available_cores
from utils.common.errors import UserError


@dataclasses.dataclass
class ClassStatistics:
    """Counts over a data set of C classes.

    Attributes:
        pixel_counts: int64 (C,), pixels of each class.
        void_pixels: pixels that are 255.
        image_counts: int64 (C,), images that hold the class.
        image_pixels: int64 (C,), pixels that are not void in the images that hold the class.
    """

    pixel_counts: torch.Tensor
    void_pixels: int
    image_counts: torch.Tensor
    image_pixels: torch.Tensor


def class_statistics(dataset: SegmentationDataset) -> ClassStatistics:
    """Count the classes of all targets."""
    counts = count_pixels(dataset)
    classes = counts[:, : dataset.num_classes]
    present = classes > 0
    return ClassStatistics(
        pixel_counts=classes.sum(0),
        void_pixels=int(counts[:, IGNORE_INDEX].sum()),
        image_counts=present.sum(0),
        image_pixels=(present * classes.sum(1, keepdim=True)).sum(0),
    )


def count_pixels(dataset: SegmentationDataset) -> torch.Tensor:
    """Pixels of each value in each target: int64 (len(dataset), 256).

    Reads masks alone, on all cores, with a progress bar.
    """

    def count(index: int) -> torch.Tensor:
        return torch.bincount(dataset.read_target(index).flatten(), minlength=IGNORE_INDEX + 1)

    with ThreadPoolExecutor(available_cores()) as pool:
        bar = tqdm(pool.map(count, range(len(dataset))), "count classes", len(dataset), leave=False)
        return torch.stack(list(bar))


def balanced_weights(dataset: SegmentationDataset) -> torch.Tensor:
    """How often to show each image so that every class is drawn equally often.

    A draw is a class that occurs, and then one of the images that hold it, all alike.

    Returns:
        float64 (len(dataset),), with a mean of 1; images without a valid pixel have 0.

    Raises:
        UserError: no target has a valid pixel.
    """
    present = count_pixels(dataset)[:, : dataset.num_classes] > 0
    if not present.any():
        raise UserError(
            f"--balanced_sampling: no target in {dataset.folder} holds a valid pixel: check them"
        )
    images = present.sum(0)
    weights = (present / images.clamp(min=1)).double().sum(1)
    return weights / weights.mean()


def distribution_csv(class_names: Sequence[str], statistics: ClassStatistics) -> str:
    """One line per class, and one for void: pixels, shares in [0, 1], images."""
    labelled = max(int(statistics.pixel_counts.sum()), 1)
    total = labelled + statistics.void_pixels
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "pixels", "share_of_labelled", "share_of_all", "images"])
    rows = zip(
        class_names,
        statistics.pixel_counts.tolist(),
        statistics.image_counts.tolist(),
        strict=True,
    )
    for name, pixels, images in rows:
        table.writerow([name, pixels, f"{pixels / labelled:.8f}", f"{pixels / total:.8f}", images])
    void = statistics.void_pixels
    table.writerow(["void", void, "", f"{void / total:.8f}", ""])
    return text.getvalue()
