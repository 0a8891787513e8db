"""Any data set in VOC's layout with its own classes, such as labelme's VOC export."""

from pathlib import Path

import torch

from datasets.base import IGNORE_INDEX, SegmentationDataset, Transform
from datasets.image_files import read_ids, read_lines
from utils.common.errors import UserError


class CustomSegmentation(SegmentationDataset):
    """A folder with `JPEGImages/`, `SegmentationClass/` and `class_names.txt`.

    `class_names.txt` holds one name a line, index 0 first; a first line `__ignore__` (labelme's
    name for void) is passed over. With `ImageSets/Segmentation/<image_set>.txt` the lists decide;
    without that folder the masks are split by `val_fraction`.

    Args:
        root: the folder.
        image_set: the name of a list; without lists `train`, `val` or `trainval`.
        transform: `(image, target) -> (image, target)`.
        val_fraction: the share of `val` where there are no lists, in (0, 1).
        seed: decides that split, and nothing else does.
        masks_only: do not ask for images.

    Raises:
        UserError: a folder, a list or a file is missing, or the split would be empty.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        transform: Transform | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        masks_only: bool = False,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder: --data_root names the folder of the data set")
        lists = root / "ImageSets" / "Segmentation"
        if lists.is_dir():
            ids = read_ids(lists / f"{image_set}.txt")
        else:
            ids = split_ids(root, image_set, val_fraction, seed)
        class_names = read_class_names(root / "class_names.txt")
        super().__init__(root, ids, class_names, transform, masks_only=masks_only)


def read_class_names(path: Path) -> list[str]:
    """The names of the classes, index 0 first."""
    names = read_lines(path)
    if names and names[0] == "__ignore__":
        names = names[1:]
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise UserError(
            f"{path}: {len(names)} class names: one a line, from 2 to {IGNORE_INDEX} are needed"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: the class name {twice!r} stands there twice")
    return names


def split_ids(root: Path, image_set: str, val_fraction: float, seed: int) -> list[str]:
    """Split the masks of a data set without lists: shuffled by the seed, `val` taken first."""
    masks = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))
    if image_set == "trainval":
        return masks
    if image_set not in ("train", "val"):
        raise UserError(
            f"--image_set {image_set}: {root} has no ImageSets/Segmentation/: without lists there "
            "are train, val and trainval"
        )
    num_val = round(len(masks) * val_fraction)
    if not 0 < num_val < len(masks):
        raise UserError(
            f"{root}: --val_fraction {val_fraction} of {len(masks)} masks leaves train or val "
            "empty: give another fraction, or lists in ImageSets/Segmentation/"
        )
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = order[:num_val] if image_set == "val" else order[num_val:]
    return sorted(masks[index] for index in chosen)
