"""Colours of classes: VOC's, and others where a data set has no background."""

import functools
from collections.abc import Sequence

import numpy as np


def voc_palette() -> np.ndarray:
    """VOC's colours for all 256 indices: uint8 (256, 3), RGB.

    Bit k of red, green and blue is bit 3k', 3k'+1 and 3k'+2 of the index (k' counts down from the
    highest bit), as in the VOC development kit. Index 255 is the cream of the void.
    """
    index, channel = np.arange(256)[:, None], np.arange(3)
    bits = [((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)]
    return np.stack(bits).sum(0).astype(np.uint8)


PALETTE = voc_palette()


def has_background(class_names: Sequence[str]) -> bool:
    """Whether class 0 is what is left beside the objects (labelme calls it `_background_`)."""
    return class_names[0].strip("_").lower() == "background"


def default_colours(class_names: Sequence[str]) -> np.ndarray:
    """The colours of classes that bring none: uint8 (C, 3), RGB, for up to 255 classes.

    VOC's where the first class is a background, which is black in them. Else `distinct_colours`.
    """
    colours = PALETTE if has_background(class_names) else distinct_colours()
    return colours[: len(class_names)]


def full_palette(colours: np.ndarray) -> np.ndarray:
    """The colours of classes, uint8 (C, 3), and VOC's for all other indices: uint8 (256, 3)."""
    return np.concatenate([colours, PALETTE[len(colours) :]])


@functools.cache
def distinct_colours() -> np.ndarray:
    """255 colours, uint8 (255, 3), of which the first few are as unlike as can be.

    Each is, of a grid of colours, the one that is farthest in CIE L*a*b* from all before it, from
    black, from white and from the void's cream.
    """
    levels = range(32, 225, 32)
    grid = np.array([(r, g, b) for r in levels for g in levels for b in levels])
    places = lab(grid)
    taken = lab(np.array([(0, 0, 0), (255, 255, 255), PALETTE[255]]))
    distance = np.linalg.norm(places[:, None] - taken, axis=2).min(1)
    chosen = [int((grid == (64, 128, 224)).all(1).argmax())]  # a friendly blue
    while len(chosen) < 255:
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return grid[chosen].astype(np.uint8)


def lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (white D65) of sRGB colours in [0, 255]: float (..., 3)."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
