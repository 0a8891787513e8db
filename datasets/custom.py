"""Any data set in VOC's layout with its own classes, such as labelme's VOC export."""

import hashlib
from pathlib import Path

from datasets.base import IGNORE_INDEX, SegmentationDataset, Transform
from datasets.lists import list_files, read_ids, read_lines
from datasets.voc import PALETTE
from utils.common.errors import UserError


class CustomSegmentation(SegmentationDataset):
    """A folder with `JPEGImages/`, `SegmentationClass/` and `class_names.txt`.

    `class_names.txt` holds one name a line, index 0 first; a first line `__ignore__` (labelme's
    name for void) is passed over. With `ImageSets/Segmentation/<image_set>.txt` the lists decide;
    without that folder the masks are split by `val_fraction`. Palette masks have VOC's colours, as
    labelme writes them, or any others.

    Args:
        root: the folder.
        image_set: the name of a list; without lists `train`, `val` or `trainval`.
        val_fraction: the rough share of `val` where there are no lists, in (0, 1).
        seed: with an image's name it decides that split.
        transform, masks_only: see `SegmentationDataset`.

    Raises:
        UserError: a folder, a list or a file is missing, or the split would be empty.
    """

    palette = PALETTE

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
    for number, name in enumerate(names, 1):
        if not name or name.startswith("#"):
            raise UserError(
                f"{path}: line {number} is {'a comment' if name else 'blank'}, which would shift "
                "the classes behind it: take it out"
            )
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
    """Split the masks of a data set without lists: a hash of its name and the seed decides each.

    So a new image moves no other from one side to the other; `val_fraction` is met roughly.
    """
    ids = sorted(list_files(root / "SegmentationClass", "mask"))
    if image_set == "trainval":
        return ids
    if image_set not in ("train", "val"):
        raise UserError(
            f"--image_set {image_set}: {root} has no ImageSets/Segmentation/: without lists there "
            "are train, val and trainval"
        )
    hashes = [hashlib.sha256(f"{seed}/{sample}".encode()).digest() for sample in ids]
    in_val = [int.from_bytes(part[:8], "big") < val_fraction * 2**64 for part in hashes]
    if not 0 < sum(in_val) < len(ids):
        raise UserError(
            f"{root}: --val_fraction {val_fraction} leaves {sum(in_val)} of {len(ids)} masks in "
            "val, and neither train nor val may be empty: give another fraction or --split_seed, "
            "or lists in ImageSets/Segmentation/"
        )
    is_val = image_set == "val"
    return [sample for sample, inside in zip(ids, in_val, strict=True) if inside == is_val]
