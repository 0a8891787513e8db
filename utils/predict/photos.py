"""Which images the words of a command line name, and what their results are called."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets.image_files import picture_suffixes
from utils.common.errors import UserError

# Pictures that Pillow does not read by itself: in a folder they are counted, not passed over.
OTHER_PICTURES = {".heic", ".heif", ".svg", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
OVERLAY_END = "_overlay.png"


def find_images(inputs: Sequence[str | Path], output_dir: Path | None = None) -> list[Path]:
    """The images that the words of a command line name, in order, each once.

    Args:
        inputs: files, whatever their suffix, and folders. In a folder, the files whose suffix is
            one of a format that Pillow reads, in any case; no sub-folders, no hidden files. What
            is left out is said.
        output_dir: where results go; those of an earlier run are no images.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        try:
            path.stat()
        except (OSError, ValueError) as error:  # such as a name that is too long
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, FileNotFoundError):
                reason = "no such file or folder"
            raise UserError(f"{path}: {reason}: give the path of an image") from None
        files = list_folder(path, output_dir) if path.is_dir() else [path]
        if not files:
            raise UserError(
                f"{path}: no image in this folder: name another one (its sub-folders are not "
                "searched), or the files themselves"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def list_folder(folder: Path, output_dir: Path | None) -> list[Path]:
    """The images of a folder, hidden ones left out, sorted; says which pictures are none here."""
    try:
        files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    results: set[Path] = set()
    if output_dir is not None and folder.resolve() == output_dir.resolve():
        results = find_results(files)
    suffixes, images = picture_suffixes(), []
    left_out: Counter[str] = Counter()
    for file in files:
        suffix = file.suffix.lower()
        if suffix not in OTHER_PICTURES | suffixes or file.is_dir():
            continue
        if not file.is_file():
            left_out["broken link"] += 1
        elif suffix not in suffixes:
            left_out[suffix] += 1
        elif file in results:
            left_out["result of an earlier run"] += 1
        else:
            images.append(file)
    if left_out:
        counts = ", ".join(f"{number} x {kind}" for kind, number in left_out.items())
        print(f"{folder}: leaves out {counts}", file=sys.stderr)
    return images


def find_results(files: Sequence[Path]) -> set[Path]:
    """Of the files of a folder, the pairs `<name>.png` and `<name>_overlay.png`."""
    overlays = {
        file.with_name(file.name.removesuffix(OVERLAY_END) + ".png"): file
        for file in files
        if file.name.endswith(OVERLAY_END)
    }  # by the paths of their masks
    masks = overlays.keys() & set(files)
    return masks | {overlays[mask] for mask in masks}


def name_outputs(paths: Sequence[Path], output_dir: Path) -> list[str]:
    """A name below `output_dir` for each input: its stem, with a number where that is taken.

    `<name>.png` and `<name>_overlay.png` of all inputs differ, also where case does not count, and
    none of them is an input.
    """
    taken = {path.resolve() for path in paths}
    taken_names = {path.name.casefold() for path in taken if path.parent == output_dir.resolve()}
    names = []
    for path in paths:
        name, number = path.stem, 1
        while not taken_names.isdisjoint(file.casefold() for file in output_files(name)):
            number += 1
            name = f"{path.stem}_{number}"
        taken_names.update(file.casefold() for file in output_files(name))
        names.append(name)
    return names


def output_files(name: str) -> tuple[str, str]:
    """The files of one input: mask and overlay."""
    return f"{name}.png", f"{name}{OVERLAY_END}"
