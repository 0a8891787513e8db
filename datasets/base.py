"""The base of every data set in VOC's layout: pairs of images and masks."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, compress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.colours import default_colours
from datasets.image_files import image_size, keeps_orientation, read_image, read_mask
from datasets.lists import find_files, normalize
from utils.common.errors import UserError
from utils.common.progress import progress, say_once

IGNORE_INDEX = 255  # void: the borders of objects, and what a crop adds around an image

Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class SampleCache:
    """Decoded samples in memory.

    All are parts of one tensor: workers that are forked read the same pages, and for workers that
    are spawned torch moves one tensor to shared memory.

    Args:
        sizes: (height, width) of each sample.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = sizes
        self.starts = [0, *accumulate(4 * height * width for height, width in sizes)]
        self.memory = torch.empty(self.starts[-1], dtype=torch.uint8)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image uint8 (3, H, W), channels last in memory, and target uint8 (H, W), not copied."""
        height, width = self.sizes[index]
        pixels = self.memory[self.starts[index] : self.starts[index + 1]].view(4, height, width)
        return pixels[:3].view(height, width, 3).permute(2, 0, 1), pixels[3]


class SegmentationDataset(Dataset):
    """Pairs of `JPEGImages/<id>.*` and `<target_folder>/<id>.png` below one folder.

    Args:
        folder: the folder that holds both.
        ids: the samples, in order.
        class_names: one name per index.
        transform: `(image, target) -> (image, target)`, applied to each sample.
        target_folder: the folder of the masks.
        masks_only: do not ask for images (for statistics of the masks alone).

    Attributes:
        colours: uint8 (C, 3), those that the classes are shown in.
        palette: uint8 (256, 3), the colours that a palette mask is expected to have; None where
            there is none. Other colours are taken, but not these under other indices.

    Raises:
        UserError: an id has no image or no mask.
    """

    palette: np.ndarray | None = None

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str],
        class_names: Sequence[str],
        transform: Transform | None = None,
        target_folder: str = "SegmentationClass",
        masks_only: bool = False,
    ) -> None:
        self.folder = folder
        self.ids = [normalize(sample) for sample in ids]
        self.class_names = tuple(class_names)
        self.colours = default_colours(self.class_names)
        self.transform = transform
        self.target_paths = find_files(folder / target_folder, self.ids, "mask")
        self.image_paths: list[Path] = []
        if not masks_only:
            self.image_paths = find_files(folder / "JPEGImages", self.ids, "image")
        self.cache: SampleCache | None = None
        with ThreadPoolExecutor() as pool:
            kept = list(pool.map(keeps_orientation, self.image_paths, self.target_paths))
        if any(kept):
            first = next(compress(self.image_paths, kept))
            say_once(
                f"note: {first}: EXIF tells to turn it, but its mask fits the stored pixels, so "
                f"these are used ({sum(kept)} such images in {self.folder})"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @property
    def ids_hash(self) -> str:
        """Twelve hexadecimal digits that tell whether two sets hold the same ids, in any order."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read, check and transform one sample.

        Returns:
            image uint8 (3, H, W) RGB and target uint8 (H, W), unless the transform says otherwise.

        Raises:
            UserError: a file cannot be read, the sizes differ, or the mask holds another value
                than a class or 255.
        """
        if self.cache is None:
            image, target = self._read_sample(index)
        else:
            image, target = self.cache[index]
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target

    def read_target(self, index: int) -> torch.Tensor:
        """The mask alone, untransformed: uint8 (H, W)."""
        if self.cache is not None:
            return self.cache[index][1]
        target = read_mask(self.target_paths[index], self.palette, self.num_classes)
        # In bytes 255 + 1 is 0: one pass over the mask tells whether all is in order.
        if (target + 1).max() > self.num_classes:
            wrong = target[(target >= self.num_classes) & (target != IGNORE_INDEX)]
            raise UserError(
                f"{self.target_paths[index]}: value {int(wrong[0])} is neither a class "
                f"(0 to {self.num_classes - 1}) nor {IGNORE_INDEX} (void)"
            )
        return target

    def _read_sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.read_target(index)
        image = read_image(self.image_paths[index], (target.shape[0], target.shape[1]))
        if image.shape[1:] != target.shape:
            image_size, target_size = (f"{w}x{h}" for h, w in (image.shape[1:], target.shape))
            raise UserError(
                f"{self.target_paths[index]}: the mask is {target_size}, but its image "
                f"{self.image_paths[index]} is {image_size}: they must be of one size"
            )
        return image, target

    def cache_in_ram(self) -> None:
        """Decode all samples, with a progress bar; from then on there is only the transform to do.

        Call it before workers start. Several processes (torchrun) hold a copy each.

        Raises:
            UserError: a file is not as it should be, or there is not memory enough.
        """
        sizes = self.image_sizes()
        needed, available = sum(4 * height * width for height, width in sizes), available_memory()
        if needed > available:
            raise UserError(
                f"--cache ram: the {len(self)} images and masks in {self.folder} take "
                f"{needed / 1e9:.1f} GB, but {available / 1e9:.1f} GB of memory are available: use "
                "--cache none"
            )
        cache = SampleCache(sizes)

        def fill(index: int) -> None:
            for kept, read in zip(cache[index], self._read_sample(index), strict=True):
                kept.copy_(read)

        with ThreadPoolExecutor() as pool:
            for _ in progress(pool.map(fill, range(len(self))), "decode", len(self)):
                pass
        self.cache = cache

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every sample, from the headers of the masks: images must fit them."""
        return [image_size(path) for path in self.target_paths]


def available_memory() -> float:
    """Bytes of memory that can be had without swapping; infinite where Linux does not tell."""
    path = Path("/proc/meminfo")
    found = path.exists() and re.search(r"MemAvailable:\s+(\d+) kB", path.read_text())
    return 1024 * int(found[1]) if found else math.inf
