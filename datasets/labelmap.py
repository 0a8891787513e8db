"""`labelmap.txt`, which names the classes of masks and their colours, as CVAT writes it."""

import dataclasses
from pathlib import Path

import numpy as np

from datasets.colours import PALETTE, has_background
from datasets.lists import read_lines
from datasets.masks import IGNORE_INDEX, UNKNOWN
from utils.common.errors import UserError

VOID_NAMES = {"void", "ignore", "ignored"}


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """The classes of a data set: names, colours uint8 (C, 3), and what each colour stands for."""

    names: tuple[str, ...]
    colours: np.ndarray
    classes: dict[tuple[int, ...], int]


def is_void(name: str) -> bool:
    """Whether a label is none of a class, such as `void` or `__ignore__`."""
    return name.strip("_").lower() in VOID_NAMES


def read_labelmap(path: Path) -> LabelMap:
    """Read lines of `name:R,G,B:parts:actions`; the last two parts are not used.

    Classes keep the order of the file, but a background comes first. A label that `is_void` is
    void, and so is VOC's cream where no label has it.

    Raises:
        UserError: the file cannot be read, or a line is not as it should be.
    """
    colour_of: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        name, colour_text = (part.strip() for part in f"{line}::".split(":")[:2])
        words = [word.strip() for word in colour_text.split(",")]
        colour = tuple(int(word) if word.isdecimal() and len(word) < 4 else 256 for word in words)
        if not name or len(colour) != 3 or max(colour) > 255:
            raise UserError(f"{path}: line {number} is not name:R,G,B:: with numbers up to 255")
        if name in colour_of or colour in colour_of.values():
            raise UserError(f"{path}: line {number} has a name or a colour of a line before it")
        colour_of[name] = colour
    names = [name for name in colour_of if not is_void(name)]
    names.sort(key=lambda name: not has_background([name]))  # stable
    if not 2 <= len(names) < UNKNOWN:
        raise UserError(f"{path}: {len(names)} classes: from 2 to {UNKNOWN - 1} are needed")
    classes = {tuple(PALETTE[IGNORE_INDEX].tolist()): IGNORE_INDEX}
    classes |= dict.fromkeys(colour_of.values(), IGNORE_INDEX)
    classes |= {colour_of[name]: index for index, name in enumerate(names)}
    return LabelMap(tuple(names), np.array([colour_of[n] for n in names], np.uint8), classes)
