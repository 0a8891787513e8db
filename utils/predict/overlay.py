"""Predictions as palette masks, and laid over their images with a legend."""

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.image_files import save_png
from datasets.voc import PALETTE
from utils.predictor import AnyImage, to_tensor

STRIP = 256  # rows that are blended at a time


def save_pred(path: Path, pred: np.ndarray) -> None:
    """Write class indices, uint8 (H, W), as a palette PNG in VOC's colours, as its server takes."""
    image = Image.fromarray(pred)
    image.putpalette(PALETTE.tobytes())
    save_png(path, image)


def classes_in(pred: np.ndarray) -> list[int]:
    """The values that occur in uint8 (H, W), in order; Pillow counts them without a copy."""
    return [index for index, count in enumerate(Image.fromarray(pred).histogram()) if count]


def draw_overlay(image: AnyImage, pred: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """The prediction over the image, half and half, and below it a legend of the classes in it.

    Args:
        image: whatever `Predictor.predict_image` takes.
        pred: uint8 (H, W), class indices: what it gives.
        class_names: one name per index.

    Returns:
        RGB; the upper left (H, W) is the picture. Narrow images are filled up with white, so that
        the longest name has room.
    """
    pixels = to_tensor(image)
    height, width = pred.shape
    entries = [(class_names[i], tuple(PALETTE[i].tolist())) for i in classes_in(pred)]
    legend = draw_legend(entries, width)
    canvas = Image.new("RGB", (max(width, legend.width), height + legend.height), "white")
    half = PALETTE // 2
    for top in range(0, height, STRIP):  # a strip at a time: large photos have large copies
        rows = slice(top, top + STRIP)
        part = pixels[:, rows].permute(1, 2, 0).numpy() // 2 + half[pred[rows]]
        canvas.paste(Image.fromarray(part), (0, top))
    canvas.paste(legend, (0, height))
    return canvas


def draw_legend(
    entries: Sequence[tuple[str, tuple[int, int, int]]], image_width: int
) -> Image.Image:
    """A white panel with a coloured box and a name for each entry, in rows.

    Args:
        entries: (name, RGB colour).
        image_width: width in pixels to fill; the panel is wider if a name needs it.
    """
    size = max(12, image_width // 50)  # of the letters, in pixels
    font = ImageFont.truetype(str(find_font()), size)
    cell = 3 * size + math.ceil(max(font.getlength(name) for name, _ in entries))
    columns = max(1, image_width // cell)
    rows = math.ceil(len(entries) / columns)
    panel = Image.new("RGB", (max(image_width, cell), 2 * size * rows), "white")
    draw = ImageDraw.Draw(panel)
    for number, (name, colour) in enumerate(entries):
        row, column = divmod(number, columns)
        left, top = column * cell + size // 2, 2 * size * row + size // 2
        draw.rectangle((left, top, left + size, top + size), fill=colour, outline="black")
        draw.text((left + size * 3 // 2, top + size // 2), name, "black", font, anchor="lm")
    return panel


@cache
def find_font() -> Path:
    """Matplotlib's DejaVu Sans: Pillow's own font has no Cyrillic and no Greek letters."""
    package = importlib.util.find_spec("matplotlib")  # importing it takes a second
    assert package is not None and package.origin is not None  # it is in requirements.txt
    return Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
