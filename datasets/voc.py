"""PASCAL VOC 2012 semantic segmentation, and the base of every data set in VOC's layout."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.download import VOC2012_SIZE, install_voc2012
from datasets.files import (
    available_memory,
    find_files,
    image_size,
    read_ids,
    read_image,
    read_mask,
)
from utils.errors import UserError

IGNORE_INDEX = 255  # void: the borders of objects, and what a crop adds around an image

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

Transform = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def voc_palette() -> np.ndarray:
    """VOC's colours for all 256 indices: uint8 (256, 3), RGB.

    Bit k of red, green and blue is bit 3k', 3k'+1 and 3k'+2 of the index (k' counts down from the
    highest bit), as in the VOC development kit. Index 255 is the cream of the void.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette


PALETTE = voc_palette()


def decode_target(target: torch.Tensor | np.ndarray) -> np.ndarray:
    """Colour an index map.

    Args:
        target: integer (..., H, W), class indices and 255.

    Returns:
        uint8 (..., H, W, 3), RGB in VOC's palette.
    """
    return PALETTE[np.asarray(target)]


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

    Raises:
        UserError: an id has no image or no mask.
    """

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
        self.ids = list(ids)
        self.class_names = tuple(class_names)
        self.transform = transform
        self.target_paths = find_files(folder / target_folder, self.ids, "mask", (".png",))
        self.image_paths = (
            [] if masks_only else find_files(folder / "JPEGImages", self.ids, "image")
        )
        self.cache: SampleCache | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

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
        target = read_mask(self.target_paths[index])
        # In bytes 255 + 1 is 0: one pass over the mask tells whether all is in order.
        if (target + 1).max() > self.num_classes:
            wrong = target[(target >= self.num_classes) & (target != IGNORE_INDEX)]
            raise UserError(
                f"{self.target_paths[index]}: value {int(wrong[0])} is neither a class "
                f"(0 to {self.num_classes - 1}) nor {IGNORE_INDEX} (void)"
            )
        return target

    def _read_sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = read_image(self.image_paths[index])
        target = self.read_target(index)
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
            for _ in tqdm(pool.map(fill, range(len(self))), "decode", len(self), leave=False):
                pass
        self.cache = cache

    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every image, from the headers alone."""
        return [image_size(path) for path in self.image_paths]

    decode_target = staticmethod(decode_target)


class VOCSegmentation(SegmentationDataset):
    """PASCAL VOC 2012, 21 classes and void (255).

    Args:
        root: holds `VOCdevkit/VOC2012` (or is that folder, or `VOCdevkit`).
        image_set: `train` (1,464), `val` (1,449), `trainval` (2,913), or `trainaug`: every mask in
            `SegmentationClassAug/` (Hariharan et al., ICCV 2011) that is not in `val` (10,582).
        year: "2012"; the other years have no archive here, but are read where they lie.
        transform: `(image, target) -> (image, target)`.
        download: fetch the archive (2 GB) if the data set is not there.
        archive: a VOC archive already on disk, to extract in place of a download.
        masks_only: do not ask for images.

    Raises:
        UserError: the data set, a list or a file is missing.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        year: str = "2012",
        transform: Transform | None = None,
        download: bool = False,
        archive: str | Path | None = None,
        masks_only: bool = False,
    ) -> None:
        folder = find_voc(Path(root), year)
        if folder is None:
            folder = self._install(Path(root), year, download, archive)
        target_folder = "SegmentationClass"
        if image_set == "trainaug":
            target_folder = "SegmentationClassAug"
            ids = list_trainaug(folder)
        else:
            ids = read_ids(folder / "ImageSets" / "Segmentation" / f"{image_set}.txt")
        super().__init__(folder, ids, CLASS_NAMES, transform, target_folder, masks_only)

    @staticmethod
    def _install(root: Path, year: str, download: bool, archive: str | Path | None) -> Path:
        if year == "2012" and (download or archive):
            install_voc2012(root, archive)
            return root / "VOCdevkit" / "VOC2012"
        raise UserError(
            f"{root}: no VOCdevkit/VOC{year} there: give --data_root where it is, or "
            "--voc_archive FILE with VOCtrainval_11-May-2012.tar, or leave out --no_download "
            f"({VOC2012_SIZE / 1e9:.1f} GB), or try --dataset shapes"
        )


def find_voc(root: Path, year: str) -> Path | None:
    """The folder `VOC<year>` in or at `root`, known by its masks; None if there is none."""
    for folder in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (folder / "SegmentationClass").is_dir() and (folder / "ImageSets").is_dir():
            return folder
    return None


def list_trainaug(folder: Path) -> list[str]:
    """The ids of `trainaug`: all masks of `SegmentationClassAug/` less `val`, sorted."""
    masks = folder / "SegmentationClassAug"
    if not masks.is_dir():
        raise UserError(
            f"{masks}: not there: --image_set trainaug needs the augmented masks "
            "(SegmentationClassAug) in this folder"
        )
    val = set(read_ids(folder / "ImageSets" / "Segmentation" / "val.txt"))
    return sorted({path.stem for path in masks.glob("*.png")} - val)
