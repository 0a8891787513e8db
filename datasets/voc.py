"""PASCAL VOC 2012 semantic segmentation."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import SegmentationDataset
from datasets.colours import PALETTE
from datasets.lists import list_files, read_ids
from utils.common.download import DownloadError, check_file, check_space, disk_errors, download_file
from utils.common.errors import UserError
from utils.common.locks import locked
from utils.common.progress import progress, say_once

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

VOC2012_NAME = "VOCtrainval_11-May-2012.tar"
VOC2012_SIZE = 1_999_639_040  # bytes
VOC2012_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
VOC2012_URLS = (  # the official host is often down
    f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC2012_NAME}",
    f"http://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC2012_NAME}",
    f"http://d2l-data.s3-accelerate.amazonaws.com/{VOC2012_NAME}",
    f"https://data.pjreddie.com/files/{VOC2012_NAME}",
)


def decode_target(target: torch.Tensor | np.ndarray) -> np.ndarray:
    """Colour an index map.

    Args:
        target: integer (..., H, W), class indices and 255.

    Returns:
        uint8 (..., H, W, 3), RGB in VOC's palette.
    """
    return PALETTE[np.asarray(target)]


class VOCSegmentation(SegmentationDataset):
    """PASCAL VOC 2012, 21 classes and void (255).

    Args:
        root: holds `VOCdevkit/VOC2012` (or is that folder, or `VOCdevkit`).
        image_set: `train` (1,464), `val` (1,449), `trainval` (2,913), or `trainaug`: every mask in
            `SegmentationClassAug/` (Hariharan et al., ICCV 2011) that is not in `val` (10,582).
        download: fetch the archive (2 GB) if the data set is not there.
        archive: a VOC archive already on disk, to extract in place of a download.
        options: transform and others, see `SegmentationDataset`.

    Raises:
        UserError: the data set, a list or a file is missing.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        download: bool = False,
        archive: str | Path | None = None,
        **options: Any,
    ) -> None:
        folder = find_voc(Path(root))
        if folder is None:
            if not (download or archive):
                raise UserError(
                    f"{root}: no VOCdevkit/VOC2012 there: give --data_root where it is, or "
                    f"--voc_archive FILE with {VOC2012_NAME}, or leave out --no_download "
                    f"({VOC2012_SIZE / 1e9:.1f} GB), or try --dataset shapes"
                )
            folder = install_voc2012(Path(root), archive)
        names, lists = folder / "class_names.txt", folder / "ImageSets" / "Segmentation"
        if names.exists():
            say_once(
                f"note: {names}: not read, since the classes of --dataset voc are VOC's: for other "
                "ones there is --dataset custom"
            )
        if image_set == "trainaug":
            self.folders = {**self.folders, "mask": "SegmentationClassAug"}
            augmented = list_files(folder / self.folders["mask"], "mask")
            ids = sorted(augmented.keys() - set(read_ids(lists / "val.txt")))
        else:
            ids = read_ids(lists / f"{image_set}.txt")
        super().__init__(folder, ids, CLASS_NAMES, **options)

    decode_target = staticmethod(decode_target)


def find_voc(root: Path) -> Path | None:
    """The folder `VOC2012` in or at `root`, known by its lists; None if there is none."""
    folders = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((folder for folder in folders if (folder / "ImageSets").is_dir()), None)


def install_voc2012(root: Path, archive: str | Path | None = None) -> Path:
    """Make `root/VOCdevkit/VOC2012`, whole or not at all, and return it; it may be there.

    A downloaded archive is removed afterwards; one that was there before is kept.

    Args:
        root: the folder to install into; made if missing. Other years in it are kept.
        archive: `VOCtrainval_11-May-2012.tar` on disk, to extract in place of a download.

    Raises:
        UserError: no mirror answers, the archive is another file, or the disk cannot be written.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    with disk_errors(root):
        if archive is not None:
            check_file(Path(archive), VOC2012_SIZE, VOC2012_MD5)  # before anything is written
        with locked(root / ".voc2012.lock"):
            if (folder / "SegmentationClass").is_dir():  # from the process that held the lock
                return folder
            if folder.exists():
                raise UserError(
                    f"{folder}: is there without SegmentationClass: complete it, or move it away "
                    "to have it installed anew"
                )
            path = Path(archive or root / VOC2012_NAME)
            is_download = not path.exists()
            # 5 % more: small files fill whole blocks
            check_space(root, VOC2012_SIZE * (205 if is_download else 105) // 100)
            if archive is None:
                _download_voc2012(path)
            _extract_voc2012(path, folder)
            if is_download:
                path.unlink()
    return folder


def _download_voc2012(path: Path) -> None:
    """Download the archive; without one, say how else to get going."""
    try:
        download_file(VOC2012_URLS, path, VOC2012_SIZE, VOC2012_MD5)
    except DownloadError as error:
        raise UserError(
            f"{path.parent}: PASCAL VOC 2012 is missing there and could not be downloaded: give "
            f"--voc_archive FILE ({VOC2012_NAME}), or --data_root DIR where VOC is, or try "
            f"--dataset shapes ({error})"
        ) from None


def _extract_voc2012(archive: Path, folder: Path) -> None:
    """Extract beside the final place, and move into place in one step."""
    print(f"extracting {archive} to {folder}", flush=True)
    partial = folder.parents[1] / ".voc2012-partial"
    shutil.rmtree(partial, ignore_errors=True)  # a killed run's
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, progress(tar, "extract", leave=False), filter="data")
        folder.parent.mkdir(exist_ok=True)
        (partial / "VOCdevkit" / "VOC2012").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
