"""Lists of samples, and the files of each sample."""

import glob
import os
import unicodedata
from collections.abc import Mapping, Sequence
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
    others = [other.name for other in list_lists(path.parent)]
    if others and not path.exists():
        raise UserError(f"{path}: there is no such list, but {', '.join(others)}: name one of them")
    ids = [line for line in read_lines(path) if line]
    if not ids or any(char in sample for sample in ids for char in "/\\\0"):
        raise UserError(f"{path}: is no list of ids: one file name a line, without its folder")
    return ids


def list_lists(folder: Path) -> list[Path]:
    """The lists in a folder such as `ImageSets/Segmentation/`, sorted."""
    return sorted(path for path in folder.glob("*.txt") if path.name[0] != ".")


def normalize(name: str) -> str:
    """The one spelling of a name whose accents are parts of letters in some files (NFC)."""
    return unicodedata.normalize("NFC", name)


def list_files(folder: Path, kind: str) -> dict[str, list[Path]]:
    """The files of each id in a folder, sorted: a "mask" is a PNG, an "image" what Pillow reads.

    Hidden files, folders and other files are left out.
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


def find_files(
    folder: Path, ids: Sequence[str], kind: str, files: Mapping[str, list[Path]]
) -> list[Path]:
    """The file of each id, of those that `list_files` gives; the first if there are several.

    Raises:
        UserError: the file of an id is missing.
    """
    missing = [sample for sample in ids if sample not in files]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{folder / missing[0]}{'.png' if kind == 'mask' else '.jpg'}: the {kind} of an id is "
            f"missing{more}: {_remedy(folder, missing[0], files)}"
        )
    several = [files[sample] for sample in ids if len(files[sample]) > 1]
    if several:
        first, second = several[0][:2]
        say_once(
            f"note: {folder}: {len(several)} ids have several {kind}s: the first is taken "
            f"({first.name}, and not {second.name})"
        )
    return [files[sample][0] for sample in ids]


def _remedy(folder: Path, sample: str, files: Mapping[str, list[Path]]) -> str:
    """What to do about an id without a file, from what lies in the folder instead."""
    for known in (sample.split()[0], Path(sample).stem):
        if known in files:
            return f"a list holds ids alone: {known!r} has a file, take off what follows it"
    pattern = f"{glob.escape(sample)}.*"
    for path in (*sorted(folder.glob(pattern)), *sorted(folder.glob(f"*/{pattern}"))):
        return (
            f"there is {path.relative_to(folder)}, but masks must be PNG files, images such as "
            "Pillow reads, and both lie in the folder itself"
        )
    return "add it, or take the id out of the list (without lists: its mask out of the folder)"
