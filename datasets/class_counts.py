"""How often each class occurs in the targets of a data set."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import available_cores
from utils.common.progress import progress


@dataclasses.dataclass
class ClassStatistics:
    """Counts over a data set of C classes."""

    pixel_counts: torch.Tensor  # int64 (C,), pixels of each class
    void_pixels: int  # pixels that are 255
    image_counts: torch.Tensor  # int64 (C,), images that hold the class
    image_pixels: torch.Tensor  # int64 (C,), pixels that are not void in the images that hold it


@functools.lru_cache(maxsize=8)
def class_statistics(dataset: SegmentationDataset) -> ClassStatistics:
    """Count the classes of all targets.

    Reads masks alone, on all cores, with a progress bar, and each data set once.
    """

    def count(index: int) -> torch.Tensor:
        return torch.bincount(dataset.read_target(index).flatten(), minlength=256)

    with ThreadPoolExecutor(available_cores()) as pool:
        counts = pool.map(count, range(len(dataset)))
        per_image = torch.stack(list(progress(counts, "count classes", len(dataset))))
    classes = per_image[:, : dataset.num_classes]
    present = classes > 0
    return ClassStatistics(
        pixel_counts=classes.sum(0),
        void_pixels=int(per_image[:, IGNORE_INDEX].sum()),
        image_counts=present.sum(0),
        image_pixels=(present * classes.sum(1, keepdim=True)).sum(0),
    )


def present_and_absent(
    pixel_counts: torch.Tensor, class_names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The names of the classes that have pixels, and of those that have none.

    `pixel_counts` (C,) are of all targets; the rows of a confusion matrix sum up to them.
    """
    counts = list(zip(class_names, pixel_counts.tolist(), strict=True))
    return [name for name, count in counts if count], [name for name, count in counts if not count]
