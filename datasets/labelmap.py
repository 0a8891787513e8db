"""`labelmap.txt`, which names the classes of masks and their colours, as CVAT writes it."""

import re
from pathlib import Path

import numpy as np

from datasets.colours import has_background
from datasets.lists import read_lines
from datasets.masks import UNKNOWN
from utils.common.errors import UserError

LINE = re.compile(r"([^:]+?)\s*:\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(?::.*)?")
VOID_NAMES = {"void", "ignore", "ignored"}


def is_void(name: str) -> bool:
    """Whether a label is none of a class, such as `void` or `__ignore__`."""
    return name.strip("_").lower() in VOID_NAMES


def check_number(path: Path, names: list[str]) -> None:
    """Raise a `UserError` if a file names too few classes or too many."""
    if not 2 <= len(names) <= UNKNOWN:
        raise UserError(f"{path}: {len(names)} classes, but from 2 to {UNKNOWN} are needed")


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
        found = LINE.fullmatch(line)
        name, *words = found.groups() if found else ("", "256")
        colour = [int(word) for word in words]
        if max(colour) > 255:
            raise UserError(f"{path}: line {number} is not name:R,G,B:: with numbers up to 255")
        if name in colour_of or colour in colour_of.values():
            raise UserError(f"{path}: line {number} has a name or a colour of a line before it")
        colour_of[name] = colour
    names = [name for name in colour_of if not is_void(name)]
    names.sort(key=lambda name: not has_background([name]))  # stable
    check_number(path, names)
    void = [name for name in colour_of if is_void(name)]
    colours = np.array([colour_of[name] for name in names + void], np.uint8)
    return names, colours[: len(names)], colours[len(names) :]
