"""The base of every data set in VOC's layout: pairs of images and masks."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.colours import default_colours
from datasets.image_files import image_size, keeps_orientation, read_image, read_mask
from datasets.lists import find_files, normalize
from utils.common.errors import UserError
from utils.common.progress import say_once

IGNORE_INDEX = 255  # void: the borders of objects, and what a crop adds around an image

Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


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
        image, target = self._read_sample(index)
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target

    def read_target(self, index: int) -> torch.Tensor:
        """The mask alone, untransformed: uint8 (H, W)."""
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

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every sample, from the headers of the masks: images must fit them."""
        return [image_size(path) for path in self.target_paths]
