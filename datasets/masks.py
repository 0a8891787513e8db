"""Reading masks: what their indices, or their colours, stand for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.colours import PALETTE
from datasets.image_files import open_image
from utils.common.errors import UserError

IGNORE_INDEX = 255  # void: the borders of objects, and what a crop adds around an image
UNKNOWN = 254  # in a table: neither a class nor void


class IndexMasks:
    """Reads palette PNGs, and grey ones of 1 to 8 bits, by what is stored.

    A mask that has VOC's colours of classes and void under other indices is refused; masks in
    colours of their own are not.

    Args:
        num_classes: C, at most 254.
        meanings: the class, void or `UNKNOWN` of the indices that do not stand for themselves.
        hint: how a value that is no class could be made one, for the error.
    """

    def __init__(
        self, num_classes: int, meanings: Mapping[int, int] | None = None, hint: str = ""
    ) -> None:
        self.table = np.full(256, UNKNOWN, np.uint8)
        self.table[:num_classes] = range(num_classes)
        self.table[IGNORE_INDEX] = IGNORE_INDEX
        for index, meaning in (meanings or {}).items():
            self.table[index] = meaning
        self.hint = f"classes are 0 to {num_classes - 1}, void is {IGNORE_INDEX}{hint}"

    def __call__(self, path: Path) -> Tensor:
        """Read one mask; see `look_up`."""
        image = open_mask(path, "P L 1")
        stored = np.array(image, dtype=np.uint8)
        if image.mode == "P":
            check_palette(path, image, np.flatnonzero(self.table != UNKNOWN).tolist())
        elif image.mode == "L":  # Pillow has stretched fewer bits to the range of eight
            with path.open("rb") as file:
                bit_depth = file.read(25)[24]
            stored //= 255 // (2**bit_depth - 1)
        return look_up(path, stored, self.table, self.hint)


class ColourMasks:
    """Reads any kind of PNG by its colours, whatever their indices; a code is R + 256 G + 65536 B.

    Args:
        colours: uint8 (C, 3), of the classes.
        void: uint8 (N, 3), of what is void beside VOC's cream.
        source: the file that names them, for the error.
    """

    def __init__(self, colours: np.ndarray, void: np.ndarray, source: Path) -> None:
        self.table = np.full(1 << 24, UNKNOWN, np.uint8)
        self.table[colour_codes([PALETTE[IGNORE_INDEX], *void])] = IGNORE_INDEX
        self.table[colour_codes(colours)] = range(len(colours))
        self.hint = (
            f"{source} does not name this colour: add a line for it (with the name void, if it "
            "does not count), or correct the mask"
        )

    def __call__(self, path: Path) -> Tensor:
        """Read one mask; see `look_up`."""
        image = open_mask(path, "P L 1 RGB RGBA")
        if image.mode == "P":  # not all pixels need be converted, but only the colours
            stored = bytes(image.getpalette() or ()).ljust(768, b"\0")
            palette = np.frombuffer(stored, np.uint8).reshape(256, 3)
            codes = colour_codes(palette)[np.array(image)]
        else:
            rgbx = image.convert("RGB").tobytes("raw", "RGBX")
            codes = np.frombuffer(rgbx, "<u4").reshape(image.height, image.width) & 0xFFFFFF
        return look_up(path, codes, self.table, self.hint)


def look_up(path: Path, codes: np.ndarray, table: np.ndarray, hint: str) -> Tensor:
    """The classes of a mask's pixels: uint8 (H, W), classes and `IGNORE_INDEX` alone.

    Args:
        path: the mask.
        codes: its indices uint8 or colours uint32 (H, W): places in the table.
        table: uint8, the class, void or `UNKNOWN` that each code stands for.
        hint: what could be done about a pixel that is neither a class nor void.

    Raises:
        UserError: a pixel is neither.
    """
    target = table.take(codes, mode="clip")  # sooner than with a check of bounds
    if (target == UNKNOWN).any():
        unknown = codes[target == UNKNOWN]
        first = ",".join(map(str, unknown[:1].view(np.uint8)[:3]))  # an index, or R,G,B
        raise UserError(
            f"{path}: {len(unknown)} pixels are neither a class nor void, such as those of value "
            f"{first}: {hint}"
        )
    return torch.from_numpy(target)


def colour_codes(colours: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """The numbers of colours (N, 3): uint32 (N,)."""
    return (np.asarray(colours) @ (1, 256, 65536)).astype("<u4")


def open_mask(path: Path, modes: str) -> Image.Image:
    """Open a PNG of one of Pillow's modes."""
    image = open_image(path)
    if image.format == "PNG" and image.mode in modes.split():
        return image
    raise UserError(
        f"{path}: the mask is stored as {image.mode} in a {image.format} file, but class indices "
        "are needed: save it, from its original, as a palette (P) or 8-bit grey (L) PNG whose "
        "values are the indices, or name its colours in labelmap.txt (--dataset custom)"
    )


def check_palette(path: Path, image: Image.Image, expected: list[int]) -> None:
    """Refuse a mask with VOC's colours of the expected indices, each once, at other indices."""
    stored = bytes(image.getpalette() or ())
    if PALETTE.tobytes().startswith(stored):
        return
    index_of = {PALETTE[index].tobytes(): index for index in expected}
    counts = image.histogram()[: len(stored) // 3]
    used = [index for index, count in enumerate(counts) if count]
    meant = [index_of.get(stored[3 * index : 3 * index + 3]) for index in used]
    if None in meant or len(set(meant)) < len(meant) or meant == used:
        return
    index, other = next(pair for pair in zip(used, meant, strict=True) if pair[0] != pair[1])
    raise UserError(
        f"{path}: the palette has the classes' colours under other indices (that of {other} under "
        f"{index}), as image editors leave it: save the mask in VOC's palette, or, if its indices "
        "are right, as grey"
    )
