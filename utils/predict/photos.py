"""Photos of every kind in; palette masks and overlays out. Pillow alone, no data set."""

from collections.abc import Container, Sequence
from pathlib import Path

from datasets.image_files import picture_suffixes
from utils.common.errors import UserError


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The images that the words of a command line name, in order, each once.

    Args:
        inputs: files, whatever their suffix, and folders. In a folder, the files whose suffix is
            one of a format that Pillow reads, in any case; no sub-folders, no hidden files.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    suffixes = picture_suffixes()
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        files = list_folder(path, suffixes) if path.is_dir() else [path]
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: give the path of an image")
        if not files:
            raise UserError(
                f"{path}: no image in this folder: name another one (its sub-folders are not "
                "searched), or the files themselves"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def list_folder(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files of a folder with one of these suffixes, hidden ones left out, sorted."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return [
        file
        for file in files
        if file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()
    ]


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
    return f"{name}.png", f"{name}_overlay.png"
