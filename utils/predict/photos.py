"""Which images a command line names, how they are read, and what their results are called."""

import glob
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from datasets.image_files import picture_suffixes, read_image
from utils.common.errors import UserError

THREADS = 2  # that read, or write, beside the model
AHEAD = 2  # images that wait to be predicted, or to be written, while others are

# Pictures that Pillow does not read by itself: in a folder they are counted, not passed over.
OTHER_PICTURES = {".heic", ".heif", ".svg", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
OVERLAY_END = "_overlay.png"


def find_images(inputs: Sequence[str | Path], output_dir: Path | None = None) -> list[Path]:
    """The images that the words of a command line name, in order, each once.

    Words are files, whatever their suffix, folders, and wildcards that no shell expanded. In a
    folder it is the files whose suffix is one of a format that Pillow reads, in any case, but no
    hidden ones, and no results of an earlier run in `output_dir`.

    Raises:
        UserError: a path does not exist, or a folder or a wildcard has no image.
    """
    found: dict[Path, Path] = {}
    for word in map(str, inputs):
        paths = [word] if os.path.exists(word) else sorted(glob.glob(word))
        if not paths:
            raise UserError(f"{word}: no such file or folder: give the path of an image")
        for path in map(Path, paths):
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
    own = output_dir.resolve() if output_dir else None
    results = find_results(files) if folder.resolve() == own else set()
    kinds = {
        file: "result of an earlier run" if file.name in results else kind_of(file)
        for file in files
        if file.resolve() != own
    }
    left_out = Counter(kind for kind in kinds.values() if kind not in ("image", None))
    if left_out:
        counts = ", ".join(f"{number} x {kind}" for kind, number in left_out.items())
        print(f"{folder}: leaves out {counts}", file=sys.stderr)
    return [file for file, kind in kinds.items() if kind == "image"]


def kind_of(file: Path) -> str | None:
    """What a picture in a folder is: "image", or what it is instead; None if it is no picture."""
    suffix, suffixes = file.suffix.lower(), picture_suffixes()
    if file.is_dir():
        inside = {Path(name).suffix.lower() for _, _, names in os.walk(file) for name in names}
        return "sub-folder with images" if inside & suffixes else None
    if suffix in suffixes:
        return "image"
    return suffix if suffix in OTHER_PICTURES else None


def read_ahead(paths: Iterable[Path]) -> Iterator[tuple[Path, Future]]:
    """Each path with the future of its image, uint8 (3, H, W); the next ones are being read."""
    readings: deque[tuple[Path, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for path in paths:
            readings.append((path, pool.submit(read_image, path)))
            if len(readings) > AHEAD:
                yield readings.popleft()
        yield from readings


def find_results(files: Sequence[Path]) -> set[str]:
    """The names of an earlier run's files: mask and overlay, or the picture beside SAM's masks."""
    there = {file.name for file in files}
    overlays = (name for name in there if name.endswith(OVERLAY_END))
    results = [output_files(name.removesuffix(OVERLAY_END)) for name in overlays]
    pictures = {f"{name.removesuffix('.npz')}.png" for name in there if name.endswith(".npz")}
    return pictures | {name for own in results if own[0] in there for name in own}


def name_outputs(paths: Sequence[Path], output_dir: Path) -> list[str]:
    """A name below `output_dir` for each input: its stem, with a number where that is taken.

    The output files of all inputs differ, also where case does not count, and none is an input.
    """
    folder = output_dir.resolve()
    inputs = (path for path in map(Path.resolve, paths) if path.parent == folder)
    taken, names = {path.name.casefold() for path in inputs}, []
    for path in paths:
        name, number = path.stem, 1
        while not taken.isdisjoint(output_files(name.casefold())):
            number += 1
            name = f"{path.stem}_{number}"
        taken.update(output_files(name.casefold()))
        names.append(name)
    return names


def output_files(name: str) -> tuple[str, str, str]:
    """The files of one input: mask, overlay, and confidence if it is asked for."""
    return f"{name}.png", f"{name}{OVERLAY_END}", f"{name}_confidence.png"
