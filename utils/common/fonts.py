"""Fonts that have the letters of a text: names of classes are in any script."""

import functools
import importlib.util
import os
import sys
from collections.abc import Collection
from pathlib import Path

from utils.common.progress import say_once


def find_font(text: str) -> Path:
    """A font with all letters of a text: DejaVu Sans, which comes with matplotlib, or another.

    Where no installed font has them all, it is the one with the most, and a line says which letters
    are missing.
    """
    # DejaVu has the letters of ASCII, and importing matplotlib takes a second.
    return dejavu() if text.isascii() else _find_font(frozenset("".join(text.split())))


@functools.cache
def dejavu() -> Path:
    """DejaVu Sans, which has Latin, Greek, Cyrillic and Arabic letters."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.origin is not None  # it is in requirements.txt
    return Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _find_font(letters: frozenset[str]) -> Path:
    forget_backend()
    from matplotlib.font_manager import findSystemFonts

    best, missing = dejavu(), _missing(dejavu(), letters)
    installed = map(Path, findSystemFonts() if missing else [])
    for path in sorted(installed, key=lambda path: ("Regular" not in path.stem, path.name)):
        if path.stem.startswith("LastResort"):  # has a box for every letter
            continue
        left = _missing(path, letters)
        if len(left) < len(missing):
            best, missing = path, left
    if missing:
        say_once(
            f"note: no font here has {' '.join(sorted(missing))}: boxes are drawn for them: "
            "install one that has, such as Noto Sans CJK"
        )
    return best


def _missing(path: Path, letters: Collection[str]) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        glyphs = FT2Font(str(path)).get_charmap()
    except (OSError, RuntimeError):  # no font, or one of another kind
        glyphs = {}
    return {letter for letter in letters if ord(letter) not in glyphs}


def forget_backend() -> None:
    """Let matplotlib be imported: a notebook's MPLBACKEND may name what its scripts have not."""
    if not {"matplotlib", "ipykernel"} & sys.modules.keys():
        os.environ.pop("MPLBACKEND", None)
