"""Getting PASCAL VOC 2012: downloaded or from an archive, whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from utils.common.download import (
    CONNECT_TIMEOUT,
    STALL_TIMEOUT,
    DownloadError,
    check_file,
    check_space,
    disk_errors,
    download_file,
    extract_archive,
    file_size,
    locked,
    part_of,
)
from utils.common.errors import UserError

VOC2012_NAME = "VOCtrainval_11-May-2012.tar"
VOC2012_SIZE = 1_999_639_040  # bytes
VOC2012_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
VOC2012_URLS = (  # the official host is often down
    f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC2012_NAME}",
    f"http://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC2012_NAME}",
    f"http://d2l-data.s3-accelerate.amazonaws.com/{VOC2012_NAME}",
    f"https://data.pjreddie.com/files/{VOC2012_NAME}",
)
PARTIAL = ".voc2012-partial"
VOC2012_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


def install_voc2012(
    root: Path,
    archive: str | Path | None = None,
    *,
    urls: Sequence[str] = VOC2012_URLS,
    size: int = VOC2012_SIZE,
    md5: str = VOC2012_MD5,
    connect_timeout: float = CONNECT_TIMEOUT,
    stall_timeout: float = STALL_TIMEOUT,
) -> None:
    """Make `root/VOCdevkit/VOC2012`, whole or not at all; nothing to do if it is there.

    A downloaded archive is removed afterwards; one that was there before is kept.

    Args:
        root: the folder to install into; made if missing. Other years in it are kept.
        archive: `VOCtrainval_11-May-2012.tar` on disk, to extract in place of a download.
        urls: mirrors; these and the following are as in `download_file()`.
        size: bytes of the archive.
        md5: its MD5.
        connect_timeout: seconds.
        stall_timeout: seconds.

    Raises:
        UserError: no mirror answers, the archive is another file, the disk is too full, or `root`
            cannot be written.
    """
    root = Path(root)
    with disk_errors(root):
        if _is_installed(root):
            return
        if archive is not None:
            check_file(Path(archive), size, md5)  # before anything is written
        with locked(root / ".voc2012.lock"):
            if _is_installed(root):  # by the process that held the lock
                return
            shutil.rmtree(root / PARTIAL, ignore_errors=True)  # a killed run's
            path = Path(archive or root / VOC2012_NAME)
            downloads = not path.exists()
            missing = size - file_size(part_of(path)) if downloads else 0
            check_space(root, missing + size + size // 20)  # 5%: small files fill whole blocks
            if archive is None:
                _download_voc2012(path, urls, size, md5, connect_timeout, stall_timeout)
            _extract_voc2012(path, root)
            if downloads:
                path.unlink()
            elif archive is None:
                print(f"kept {path}, which was there before: it is not needed any more", flush=True)


def _is_installed(root: Path) -> bool:
    """Whether VOC 2012 is there; a `UserError` if only some of it is."""
    folder = root / "VOCdevkit" / "VOC2012"
    missing = [name for name in VOC2012_FOLDERS if not (folder / name).is_dir()]
    if missing and folder.exists():
        raise UserError(
            f"{folder}: is there without {missing[0]}: complete it, or move it away to have it "
            "installed anew"
        )
    return not missing


def _download_voc2012(
    path: Path, urls: Sequence[str], size: int, md5: str, *timeouts: float
) -> None:
    """Download the archive; without one, say how else to get going."""
    try:
        download_file(urls, path, size, md5, *timeouts)
    except DownloadError as error:
        raise UserError(
            f"{path.parent}: PASCAL VOC 2012 is missing there and could not be downloaded: give "
            f"--voc_archive FILE ({VOC2012_NAME}), or --data_root DIR where VOC is, or try "
            f"--dataset shapes ({error})"
        ) from None


def _extract_voc2012(archive: Path, root: Path) -> None:
    """Extract beside the final place, check, and move into place in one step."""
    partial = root / PARTIAL
    print(f"extracting {archive} to {root / 'VOCdevkit' / 'VOC2012'}", flush=True)
    try:
        extract_archive(archive, partial)
        if not _is_installed(partial):
            raise UserError(f"{archive}: has no VOCdevkit/VOC2012: give {VOC2012_NAME}")
        (root / "VOCdevkit").mkdir(exist_ok=True)
        os.replace(partial / "VOCdevkit" / "VOC2012", root / "VOCdevkit" / "VOC2012")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
