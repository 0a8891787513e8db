"""How often each class occurs in the targets of a data set."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import torch

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import available_cores
from utils.common.progress import progress

_counted: WeakKeyDictionary[SegmentationDataset, torch.Tensor] = WeakKeyDictionary()


@dataclasses.dataclass
class ClassStatistics:
    """Counts over a data set of C classes."""

    pixel_counts: torch.Tensor  # int64 (C,), pixels of each class
    void_pixels: int  # pixels that are 255
    image_counts: torch.Tensor  # int64 (C,), images that hold the class
    image_pixels: torch.Tensor  # int64 (C,), pixels that are not void in the images that hold it


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

    Reads masks alone, on all cores, with a progress bar, and each data set once.
    """
    if dataset not in _counted:

        def count(index: int) -> torch.Tensor:
            return torch.bincount(dataset.read_target(index).flatten(), minlength=256)

        with ThreadPoolExecutor(available_cores()) as pool:
            counts = pool.map(count, range(len(dataset)))
            _counted[dataset] = torch.stack(list(progress(counts, "count classes", len(dataset))))
    return _counted[dataset]


def present_and_absent(
    pixel_counts: torch.Tensor, class_names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The names of the classes that have pixels, and of those that have none.

    Args:
        pixel_counts: (C,), of all targets; the rows of a confusion matrix sum up to them.
        class_names: (C,).
    """
    counts = list(zip(class_names, pixel_counts.tolist(), strict=True))
    return [name for name, count in counts if count], [name for name, count in counts if not count]


def distribution_csv(class_names: Sequence[str], statistics: ClassStatistics) -> str:
    """One line per class, and one for void: pixels, shares in [0, 1], images."""
    labelled = max(int(statistics.pixel_counts.sum()), 1)
    total = labelled + statistics.void_pixels
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "pixels", "share_of_labelled", "share_of_all", "images"])
    counts = statistics.pixel_counts.tolist(), statistics.image_counts.tolist()
    for name, pixels, images in zip(class_names, *counts, strict=True):
        table.writerow([name, pixels, f"{pixels / labelled:.8f}", f"{pixels / total:.8f}", images])
    void = statistics.void_pixels
    table.writerow(["void", void, "", f"{void / total:.8f}", ""])
    return text.getvalue()
