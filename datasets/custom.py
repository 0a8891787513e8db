"""Any data set in VOC's layout with its own classes: labelme's VOC export, CVAT's masks."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.colours import has_background
from datasets.lists import list_files, list_lists, normalize, read_ids, read_lines
from datasets.masks import UNKNOWN, ColourMasks, IndexMasks
from utils.common.errors import UserError
from utils.common.progress import say_once

FOLDERS = SegmentationDataset.folders
# A line of labelmap.txt, as CVAT writes it: name:R,G,B:parts:actions.
LABEL = re.compile(r"([^:]+?)\s*:\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(?::.*)?")
VOID_NAMES = {"void", "ignore", "ignored"}


class CustomSegmentation(SegmentationDataset):
    """A folder with `JPEGImages/`, `SegmentationClass/` and `class_names.txt` or `labelmap.txt`.

    `class_names.txt` holds one name a line, index 0 first; a first line `__ignore__` (labelme's
    name for void) is passed over. Palette masks have VOC's colours, as labelme writes them, or any
    others. Where there is a `labelmap.txt` (CVAT's "Segmentation mask 1.1"), it names the classes,
    and masks are read by the colours in it.

    With `ImageSets/Segmentation/<image_set>.txt` the lists decide. Without lists, or with lists of
    other names than train and val, all masks are split by `val_fraction`.

    Args:
        root: the folder.
        image_set: the name of a list; without lists `train`, `val` or `trainval`.
        val_fraction: the rough share of `val` where there are no lists, in (0, 1).
        split_seed: with an image's name it decides that split.
        void_value: what index masks hold for void besides 255.
        object_value: what masks of two classes hold for the second, in place of 1.
        options: transform and others, see `SegmentationDataset`.

    Raises:
        UserError: a folder, a list or a file is missing, the split would be empty, or a value is
            already a class.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        *,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        void_value: int | None = None,
        object_value: int | None = None,
        **options: Any,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder: --data_root names the folder of the data set")
        ids = find_ids(root, image_set, val_fraction, split_seed)
        path, labelmap = root / "class_names.txt", root / "labelmap.txt"
        if labelmap.exists():
            if void_value is not None or object_value is not None:
                raise UserError(
                    "--void_value and --object_value: do nothing, since masks are read by the "
                    f"colours in {labelmap}: leave them out"
                )
            if path.exists():
                say_once(f"note: {labelmap} names the classes, {path} is not read")
            names, colours, void = read_labelmap(labelmap)
            super().__init__(root, ids, names, **options)
            self.colours, self.masks = colours, ColourMasks(colours, void, labelmap)
        else:
            names = read_class_names(path)
            super().__init__(root, ids, names, **options)
            meanings = index_meanings(names, void_value, object_value)
            self.masks = IndexMasks(len(names), meanings, "; another void is told by --void_value")


def index_meanings(
    names: Sequence[str], void_value: int | None, object_value: int | None
) -> dict[int, int]:
    """What the indices stand for that do not stand for the class of their number."""
    meanings = {}
    if void_value is not None:
        if void_value < len(names) and not is_void(names[void_value]):
            raise UserError(
                f"--void_value {void_value}: is the class {names[void_value]!r}, line "
                f"{void_value + 1} of class_names.txt: give another value, or name that line void"
            )
        meanings[void_value] = IGNORE_INDEX
    if object_value is not None:
        if len(names) != 2 or object_value in (0, 1, void_value):
            raise UserError(
                f"--object_value {object_value}: what masks of two classes hold for the second in "
                f"place of 1, but there are {len(names)}, and 0, 1 and void are taken: leave it out"
            )
        meanings |= {1: UNKNOWN, object_value: 1}
    return meanings


def is_void(name: str) -> bool:
    """Whether a label is none of a class, such as `void` or `__ignore__`."""
    return name.strip("_").lower() in VOID_NAMES


def check_number(path: Path, names: Sequence[str]) -> None:
    """Raise a `UserError` if a file names too few classes or too many."""
    if not 2 <= len(names) <= UNKNOWN:
        raise UserError(f"{path}: {len(names)} classes, but from 2 to {UNKNOWN} are needed")


def read_class_names(path: Path) -> list[str]:
    """The names of the classes, index 0 first."""
    names = read_lines(path)
    for index, name in enumerate(names):
        if not name or name.startswith("#") or name in names[:index]:
            raise UserError(
                f"{path}: line {index + 1} is blank, a comment or a name of a line before it, but "
                "every line stands for a class: take it out, or name it"
            )
    names = names[1:] if names[:1] == ["__ignore__"] else names
    check_number(path, names)
    return names


def read_labelmap(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read lines of `name:R,G,B:parts:actions`; the last two parts are not used.

    Returns:
        The names of the classes, in the order of the file but for a background, which comes first;
        their colours, uint8 (C, 3); and those of the labels that are void, uint8 (N, 3).

    Raises:
        UserError: the file cannot be read, or a line is not as it should be.
    """
    colour_of: dict[str, list[int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        found = LABEL.fullmatch(line)
        name, *words = found.groups() if found else ("", "256")
        colour = [int(word) for word in words]
        if max(colour) > 255 or name in colour_of or colour in colour_of.values():
            raise UserError(
                f"{path}: line {number} is not name:R,G,B:: with numbers up to 255, and a name "
                "and a colour that no line before it has"
            )
        colour_of[name] = colour
    names = [name for name in colour_of if not is_void(name)]
    names.sort(key=lambda name: not has_background([name]))  # stable
    check_number(path, names)
    void = [name for name in colour_of if is_void(name)]
    colours = np.array([colour_of[name] for name in names + void], np.uint8)
    return names, colours[: len(names)], colours[len(names) :]


def find_ids(root: Path, image_set: str, val_fraction: float, seed: int) -> list[str]:
    """The ids of a list, or, without train.txt and val.txt, one side of a split of all masks.

    Lists of other names, such as CVAT's default.txt, say which masks these are.
    """
    folder, masks_folder = root / "ImageSets" / "Segmentation", root / FOLDERS["mask"]
    lists = list_lists(folder)
    names = {path.stem for path in lists}
    if image_set in names or {"train", "val"} & {name.lower() for name in names}:
        return read_ids(folder / f"{image_set}.txt")
    masks = set(list_files(masks_folder, "mask"))
    if not masks:
        others = sorted(path.name for path in masks_folder.iterdir() if path.name[0] != ".")
        there = f"there is {others[0]} ({len(others)} entries in all)" if others else "it is empty"
        raise UserError(
            f"{masks_folder}: no masks, which are PNG files in the folder itself, but {there}"
        )
    if lists:
        images = {normalize(sample) for path in lists for sample in read_ids(path)}
        say_once(
            f"note: {folder}: no train.txt or val.txt: the ids of "
            f"{', '.join(path.name for path in lists)} are split into these by their names"
        )
        masks &= images
    else:
        is_there = (root / FOLDERS["image"]).is_dir()
        images = set(list_files(root / FOLDERS["image"], "image")) if is_there else set()
    if images - masks:
        say_once(f"note: {root}: {len(images - masks)} of {len(images)} images are unused: no mask")
    return split_ids(sorted(masks), image_set, val_fraction, seed)


def split_ids(ids: Sequence[str], image_set: str, val_fraction: float, seed: int) -> list[str]:
    """Split ids that have no lists: a hash of its name and the seed decides each.

    So a new image moves no other from one side to the other; `val_fraction` is met roughly.
    """
    if image_set == "trainval":
        return list(ids)
    if image_set not in ("train", "val"):
        raise UserError(
            f"--image_set {image_set}: the data set has no such list in ImageSets/Segmentation/: "
            "without lists there are train, val and trainval"
        )
    hashes = [hashlib.sha256(f"{seed}/{sample}".encode()).digest() for sample in ids]
    in_val = [int.from_bytes(part[:8], "big") < val_fraction * 2**64 for part in hashes]
    if not 0 < sum(in_val) < len(ids):
        raise UserError(
            f"--val_fraction {val_fraction}: leaves {sum(in_val)} of {len(ids)} masks in val, and "
            "neither train nor val may be empty: give another fraction or --split_seed, or lists "
            "in ImageSets/Segmentation/"
        )
    is_val = image_set == "val"
    return [sample for sample, inside in zip(ids, in_val, strict=True) if inside == is_val]
