"""Reading masks: what their indices, or their colours, stand for."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.image_files import ImageError, open_image

IGNORE_INDEX = 255  # void: the borders of objects, and what a crop adds around an image
UNKNOWN = 254  # in a table: neither a class nor void

MaskReader = Callable[[Path], Tensor]  # a file to uint8 (H, W), classes and `IGNORE_INDEX` alone


class IndexMasks:
    """Reads index masks: palette PNGs or grey ones of 1 to 8 bits.

    Args:
        num_classes: C.
        palette: uint8 (256, 3), if the data set has one: a mask that has the colours of the classes
            and of void under other indices is refused. Masks in colours of their own are not.
        values: uint8 (256,), the class, void or `UNKNOWN` that a stored index stands for; None: for
            itself.
        hint: how a value that is no class could be made one, for the error.
    """

    def __init__(
        self,
        num_classes: int,
        palette: np.ndarray | None = None,
        values: np.ndarray | None = None,
        hint: str = "",
    ) -> None:
        self.num_classes, self.palette, self.values, self.hint = num_classes, palette, values, hint

    def __call__(self, path: Path) -> Tensor:
        """Read one mask.

        Raises:
            ImageError: the file is missing, cut off, no PNG, stores colours in place of indices, or
                holds another value than a class or void.
        """
        image = open_mask(path, "P L 1")
        stored = np.array(image, dtype=np.uint8)
        if image.mode == "L":  # Pillow has stretched fewer bits to the range of eight
            with path.open("rb") as file:
                bit_depth = file.read(25)[24]
            stored //= {2: 85, 4: 17}.get(bit_depth, 1)
        if image.mode == "P" and self.palette is not None:
            colours = bytes(image.getpalette() or ())
            check_palette(path, stored, colours, self.palette, self.num_classes)
        target = stored if self.values is None else self.values[stored]
        # In bytes 255 + 1 is 0: one pass over the mask tells whether all is in order.
        if (target + np.uint8(1)).max() > self.num_classes:
            wrong = stored[(target >= self.num_classes) & (target != IGNORE_INDEX)]
            raise ImageError(
                f"{path}: value {wrong[0]} is neither a class (0 to {self.num_classes - 1}) nor "
                f"void ({IGNORE_INDEX}){self.hint}"
            )
        return torch.from_numpy(target)


class ColourMasks:
    """Reads masks of any kind of PNG by their colours, whatever their indices.

    Args:
        classes: the class, or void, of each colour (R, G, B).
        source: the file that names the colours, for the error.
    """

    def __init__(self, classes: Mapping[tuple[int, ...], int], source: Path) -> None:
        self.classes, self.source = tuple(classes.items()), source

    def __call__(self, path: Path) -> Tensor:
        """Read one mask.

        Raises:
            ImageError: the file is missing, cut off, no PNG, or has a colour without a class.
        """
        image = open_mask(path, "P L 1 RGB RGBA").convert("RGB")
        target = colour_table(self.classes).take(colour_codes(image))
        target = target.reshape(image.height, image.width)
        unknown = target == UNKNOWN
        if unknown.any():
            colours = np.array(image)[unknown]
            raise ImageError(
                f"{path}: {len(colours)} pixels have colours that {self.source} does not name, "
                f"such as {','.join(map(str, colours[0]))}: add a line for them (with the name "
                "void, if they do not count), or correct the mask"
            )
        return torch.from_numpy(target)


def colour_codes(image: Image.Image) -> np.ndarray:
    """The colours of an RGB image as numbers R + 256 G + 65536 B: uint32 (H * W,)."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), "<u4") & 0xFFFFFF


@functools.lru_cache(maxsize=2)
def colour_table(classes: tuple[tuple[tuple[int, ...], int], ...]) -> np.ndarray:
    """The class of every colour there is: uint8 (2 ** 24,), once for all threads of a process."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for (red, green, blue), index in classes:
        table[red + 256 * green + 65536 * blue] = index
    return table


def open_mask(path: Path, modes: str) -> Image.Image:
    """Open a PNG of one of Pillow's modes."""
    image = open_image(path)
    if image.format == "PNG" and image.mode in modes.split():
        return image
    raise ImageError(
        f"{path}: the mask is stored as {image.mode} in a {image.format} file, but class indices "
        "are needed: save it, from its original, as a palette (P) or 8-bit grey (L) PNG whose "
        "values are the indices, or name its colours in labelmap.txt (--dataset custom)"
    )


def check_palette(
    path: Path, target: np.ndarray, stored: bytes, palette: np.ndarray, num_classes: int
) -> None:
    """Refuse a mask whose colours are those of classes and void, each once, at other indices."""
    if palette.tobytes().startswith(stored):
        return
    indices = [*range(num_classes), IGNORE_INDEX]
    index_of = dict(zip(map(tuple, palette[indices].tolist()), indices, strict=True))
    used = [index for index in np.unique(target).tolist() if 3 * index < len(stored)]
    meant = [index_of.get(tuple(stored[3 * index : 3 * index + 3])) for index in used]
    if None in meant or len(set(meant)) < len(meant) or meant == used:
        return
    index, other = next(pair for pair in zip(used, meant, strict=True) if pair[0] != pair[1])
    raise ImageError(
        f"{path}: the palette has the classes' colours under other indices (that of {other} under "
        f"{index}), as image editors leave it: save the mask in VOC's palette, or, if its indices "
        "are right, as grey"
    )
