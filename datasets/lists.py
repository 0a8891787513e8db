"""Lists of samples, and the files of each sample."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from datasets.image_files import picture_suffixes
from utils.common.errors import UserError
from utils.common.progress import say_once


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped, in Unicode's NFC; no empty ones at its end."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    return [normalize(line.strip()) for line in text.splitlines()]


def read_ids(path: Path) -> list[str]:
    """A list of sample ids, one a line, as in `ImageSets/Segmentation/train.txt`."""
    ids = [line for line in read_lines(path) if line]
    if not ids:
        raise UserError(f"{path}: the list is empty")
    for sample in ids:
        if "/" in sample or "\\" in sample or "\0" in sample:
            raise UserError(f"{path}: {sample!r} is not an id: give the file name without folders")
    return ids


def normalize(name: str) -> str:
    """The one spelling of a name whose accents are parts of letters in some files (NFC)."""
    return unicodedata.normalize("NFC", name)


def list_files(folder: Path, kind: str) -> dict[str, list[Path]]:
    """The files of each id in a folder, sorted: masks are PNGs, images whatever Pillow reads.

    Hidden files, folders and other files are left out.

    Args:
        folder: to list.
        kind: "image" or "mask".

    Raises:
        UserError: the folder cannot be read.
    """
    suffixes = {".png"} if kind == "mask" else picture_suffixes()
    files: dict[str, list[Path]] = {}
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}): it holds the {kind}s"
        ) from None
    for path in map(folder.joinpath, names):
        if path.suffix.lower() in suffixes and path.name[0] != ".":
            files.setdefault(normalize(path.stem), []).append(path)
    return files


def find_files(folder: Path, ids: Sequence[str], kind: str) -> list[Path]:
    """The file of each id in `folder`; the first in the alphabet if there are several.

    Raises:
        UserError: the folder, or the file of an id, is missing.
    """
    files = list_files(folder, kind)
    missing = [sample for sample in ids if sample not in files]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{folder / missing[0]}{'.png' if kind == 'mask' else '.jpg'}: the {kind} of an id in "
            f"the list is missing{more}: add it, or take the id out of the list"
        )
    several = [files[sample] for sample in ids if len(files[sample]) > 1]
    if several:
        first, second = several[0][:2]
        say_once(
            f"note: {folder}: {len(several)} ids have several {kind}s: the first is taken "
            f"({first.name}, and not {second.name})"
        )
    return [files[sample][0] for sample in ids]
