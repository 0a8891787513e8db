"""Colours of classes: VOC's, and others where a data set has no background."""

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
# Each is, of a grid of colours, the one that is farthest in CIE L*a*b* from all before it, from
# black, from white and from the void's cream.
UNLIKE = np.frombuffer(
    bytes.fromhex(
        "4080e0 e02020 20e020 e020e0 e0c020 a02060 206020 20e0a0 2020e0 a06020"
        "20c0e0 e0a0e0 202060 806060 a0e060 6020a0 206080 802020 808020 e08080"
        "60a080 e020a0 20a040 8060a0 404020 a0a0c0 e0e080 e04060 c060e0 a0e0a0"
        "e0a040 602040 4060e0 a0e0e0 40a0e0 c0e020 e06020 c0a080 802080 204040"
    ),
    np.uint8,
).reshape(-1, 3)


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


def distinct_colours() -> np.ndarray:
    """255 colours, uint8 (255, 3): those of `UNLIKE`, then the others of VOC's."""
    rest = [colour for colour in PALETTE[1:255] if not (UNLIKE == colour).all(1).any()]
    return np.concatenate([UNLIKE, rest])[:255]
