"""The base of all data sets: pairs of images and masks."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import torch
from torch.utils.data import Dataset

from datasets.colours import default_colours
from datasets.image_files import check_fit, image_size, misfit, read_image
from datasets.lists import find_files, list_files, normalize
from datasets.masks import IGNORE_INDEX as IGNORE_INDEX
from datasets.masks import ColourMasks, IndexMasks
from utils.common.progress import say_once

Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class SegmentationDataset(Dataset):
    """Pairs of `JPEGImages/<id>.*` and `SegmentationClass/<id>.png` below one folder.

    Args:
        folder: the folder that holds both.
        ids: the samples, in order; one that is listed several times is taken once.
        class_names: one name per index.
        transform: `(image, target) -> (image, target)`, applied to each sample.
        masks_only: do not ask for images (for statistics of the masks alone).
        masks_optional: be content if no id has a mask: then there are no `target_paths`, and
            images alone.

    Attributes:
        folders: the folders of masks and images.
        colours: uint8 (C, 3), those that the classes are shown in.
        masks: reads a mask.

    Raises:
        UserError: an id has no image or no mask, or their sizes differ.
    """

    folders = {"mask": "SegmentationClass", "image": "JPEGImages"}

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str],
        class_names: Sequence[str],
        transform: Transform | None = None,
        *,
        masks_only: bool = False,
        masks_optional: bool = False,
    ) -> None:
        self.folder = folder
        self.ids = list(dict.fromkeys(map(normalize, ids)))
        if len(self.ids) < len(ids):
            say_once(
                f"note: {folder}: ids are listed again: {len(self.ids)} of {len(ids)} are taken"
            )
        self.class_names = tuple(class_names)
        self.colours = default_colours(self.class_names)
        self.masks: IndexMasks | ColourMasks = IndexMasks(self.num_classes)
        self.transform = transform
        self.target_paths = self._find("mask", masks_optional)
        self.image_paths = [] if masks_only else self._find("image")
        with ThreadPoolExecutor() as pool:
            are_kept = pool.map(check_fit, self.image_paths, self.target_paths)
            kept = list(compress(self.image_paths, are_kept))
        if kept:
            say_once(
                f"note: {kept[0]}: EXIF tells to turn it, but its mask fits the stored pixels, so "
                f"these are used ({len(kept)} such images in {folder})"
            )

    def _find(self, kind: str, optional: bool = False) -> list[Path]:
        """The file of each id; none at all where that is allowed and no id has one."""
        folder = self.folder / self.folders[kind]
        if optional and not folder.is_dir():
            return []
        files = self.list_files(folder, kind)
        if optional and files.keys().isdisjoint(self.ids):
            return []
        return find_files(folder, self.ids, kind, files)

    def list_files(self, folder: Path, kind: str) -> dict[str, list[Path]]:
        """The files of each id in one of the `folders`."""
        return list_files(folder, kind)

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
        target = self.read_target(index)
        image = read_image(self.image_paths[index], (target.shape[0], target.shape[1]))
        if image.shape[1:] != target.shape:  # the files are others than at the start
            paths = self.image_paths[index], self.target_paths[index]
            raise misfit(*paths, image.shape[1:], target.shape)
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target

    def read_target(self, index: int) -> torch.Tensor:
        """The mask alone, untransformed: uint8 (H, W), classes and 255."""
        return self.masks(self.target_paths[index])

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every sample, from the headers of the masks."""
        return [image_size(path) for path in self.target_paths]
