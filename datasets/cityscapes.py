"""Cityscapes, fine annotations."""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.lists import list_files
from datasets.masks import IndexMasks
from utils.common.errors import UserError

# Each class with its value in the files `*_labelIds.png`, and its colour.
CLASSES = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)), "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)), "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
SUFFIXES = {"mask": "_gtFine_labelIds", "image": "_leftImg8bit"}


class Cityscapes(SegmentationDataset):
    """The 19 classes of the benchmark; everything else in the files is void.

    Args:
        root: holds `cityscapes/{leftImg8bit,gtFine}/<image_set>/<city>/`, or these two folders.
        image_set: `train` (2,975) or `val` (500); the masks of `test` are void alone.
        options: transform and others, see `SegmentationDataset`.

    Raises:
        UserError: a folder or a file is missing.
    """

    def __init__(self, root: str | Path, image_set: str = "train", **options: Any) -> None:
        inside = Path(root) / "cityscapes"
        folder = inside if inside.is_dir() else Path(root)
        self.folders = {"mask": f"gtFine/{image_set}", "image": f"leftImg8bit/{image_set}"}
        for kind, name in self.folders.items():
            is_needed = kind == "mask" or not options.get("masks_only")
            if is_needed and not (folder / name).is_dir():  # the licence forbids a download
                archive = f"{name.partition('/')[0]}_trainvaltest.zip"
                raise UserError(
                    f"{folder / name}: not there: unpack {archive} (from www.cityscapes-dataset."
                    f"com, after registration) in {folder}, or give --data_root, or another split"
                )
        ids = sorted(self.list_files(folder / self.folders["mask"], "mask"))
        super().__init__(folder, ids, list(CLASSES), **options)
        self.colours = np.array([colour for _, colour in CLASSES.values()], np.uint8)
        train_ids = {value: index for index, (value, _) in enumerate(CLASSES.values())}
        self.masks = IndexMasks(len(CLASSES), dict.fromkeys(range(256), IGNORE_INDEX) | train_ids)

    def list_files(self, folder: Path, kind: str) -> dict[str, list[Path]]:
        """The files of each id, such as aachen_000000_000019, in the folders of all cities."""
        files = {}
        for city in sorted(path for path in folder.iterdir() if path.is_dir()):
            for stem, paths in list_files(city, kind).items():
                if stem.endswith(SUFFIXES[kind]):
                    files[stem.removesuffix(SUFFIXES[kind])] = paths
        return files
