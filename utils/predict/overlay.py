"""Predictions as palette masks, and laid over their images with a legend."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from datasets.colours import full_palette, has_background
from utils.common.fonts import best_font

MIN_SHARE = 0.001  # of the pixels; a class that has less is not in the legend


def palette_image(pred: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Class indices, uint8 (H, W), in their colours, uint8 (C, 3)."""
    image = Image.fromarray(pred)
    image.putpalette(full_palette(colours).tobytes())
    return image


def draw_overlay(
    image: torch.Tensor, pred: np.ndarray, class_names: Sequence[str], colours: np.ndarray
) -> Image.Image:
    """The classes over the image, half and half with white borders, and below it their legend.

    A background is left as it is; narrow images are filled up, so that the longest name has room.

    Args:
        image: uint8 (3, H, W).
        pred: uint8 (H, W), class indices.
        class_names: one name per index.
        colours: uint8 (C, 3).
    """
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    classes = palette_image(pred, colours)
    painted = Image.fromarray(pred >= int(has_background(class_names)))
    photo.paste(Image.blend(photo, classes.convert("RGB"), 0.5), mask=painted)
    thickness = max(round(max(pred.shape) / 1000), 1)
    photo.paste("white", mask=Image.fromarray(find_borders(pred, thickness)))
    counts = classes.histogram(painted)
    shown = [index for index, count in enumerate(counts) if count >= MIN_SHARE * pred.size]
    entries = [(class_names[index], tuple(colours[index].tolist())) for index in shown]
    legend = draw_legend(entries, photo.width, best_font(class_names))
    canvas = Image.new("RGB", (legend.width, photo.height + legend.height), "white")
    canvas.paste(photo)
    canvas.paste(legend, (0, photo.height))
    return canvas


def find_borders(pred: np.ndarray, thickness: int) -> np.ndarray:
    """The rims of the regions of uint8 (H, W): bool (H, W).

    Of two neighbours the one of the higher class has the rim: a background has none.
    """
    border = np.zeros(pred.shape, bool)
    for values, rim in ((pred, border), (pred.T, border.T)):
        rim[:-thickness] |= values[:-thickness] > values[thickness:]
        rim[thickness:] |= values[thickness:] > values[:-thickness]
    return border


def draw_legend(
    entries: Sequence[tuple[str, tuple[int, int, int]]], image_width: int, font_file: Path
) -> Image.Image:
    """A white panel, as wide as the image or a name, with a coloured box for each name, in rows."""
    size = max(12, image_width // 50)  # of the letters, in pixels
    font = ImageFont.truetype(str(font_file), size)
    longest = max((font.getlength(name) for name, _ in entries), default=0)
    cell = 3 * size + math.ceil(longest)
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
