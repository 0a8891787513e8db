"""Fonts that have the letters of a text: names of classes are in any script."""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.common.progress import say_once


def find_fonts(texts: Iterable[str]) -> Sequence[Path]:
    """Fonts that together have all letters of some texts: DejaVu Sans, and installed ones.

    A line says which letters no font has.
    """
    letters = "".join(texts)
    # DejaVu has the letters of ASCII, and importing matplotlib takes a second.
    return [dejavu()] if letters.isascii() else _find_fonts(frozenset("".join(letters.split())))


def best_font(texts: Sequence[str]) -> Path:
    """The one font that has most letters of some texts."""
    fonts, letters = find_fonts(texts), "".join(texts)
    return fonts[0] if len(fonts) == 1 else min(fonts, key=lambda font: len(missing(font, letters)))


@functools.cache
def dejavu() -> Path:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.origin is not None  # it is in requirements.txt
    return Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _find_fonts(letters: frozenset[str]) -> Sequence[Path]:
    forget_backend()
    from matplotlib.font_manager import findSystemFonts

    fonts, left = [dejavu()], missing(dejavu(), letters)
    installed = [Path(file) for file in findSystemFonts()] if left else []
    installed.sort(key=lambda path: (len(missing(path, left)), "Regular" not in path.stem, path))
    for path in installed:
        # LastResort has a box for every letter.
        if not path.stem.startswith("LastResort") and missing(path, left) < left:
            fonts.append(path)
            left = missing(path, left)
    if left:
        say_once(
            f"note: no font here has {' '.join(sorted(left))}: boxes are drawn for them: install "
            "one that has, such as Noto Sans CJK"
        )
    return fonts


def missing(path: Path, letters: Iterable[str]) -> set[str]:
    """The letters that a font has not."""
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
