"""Photos of every kind in; palette masks and overlays out. Pillow alone, no data set."""

import contextlib
import math
import warnings
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from datasets.voc import PALETTE
from utils.common.errors import UserError
from utils.common.files import write_atomically

# Pillow refuses what has more than twice its MAX_IMAGE_PIXELS, as a decompression bomb.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
# Formats that Pillow recognises but cannot draw by itself; a folder may hold such files.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
STRIP = 256  # rows that are blended at a time


class ImageError(Exception):
    """One image cannot be read; the message says why. Others may still be done."""


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow refuse images of more than `max_pixels`, and be silent about smaller ones."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The images that the words of a command line name, in order, each once.

    Args:
        inputs: files, whatever their suffix, and folders. In a folder, the files whose suffix is
            one of a format that Pillow reads, in any case; no sub-folders, no hidden files.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    suffixes = picture_suffixes()
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        files = list_folder(path, suffixes) if path.is_dir() else [path]
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: give the path of an image")
        if not files:
            raise UserError(
                f"{path}: no image in this folder: name another one (its sub-folders are not "
                "searched), or the files themselves"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def list_folder(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files of a folder with one of these suffixes, hidden ones left out, sorted."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return [
        file
        for file in files
        if file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()
    ]


def picture_suffixes() -> set[str]:
    """The suffixes of all formats that Pillow reads, in lower case."""
    formats = Image.registered_extensions()
    return {
        suffix
        for suffix, name in formats.items()
        if name in Image.OPEN and name not in NOT_PICTURES
    }


def read_photo(path: Path) -> torch.Tensor:
    """Read any image as a viewer shows it.

    EXIF orientation is applied; transparent parts lie on white; 16-bit grey is scaled to 8 bits;
    of several frames it is the first. (Images of a data set: `datasets.image_files.read_image`.)

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        ImageError: the file is missing, empty, cut off, no image, or above the pixel limit.
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ImageError(
            "has more pixels than the limit against decompression bombs: --max_pixels raises it"
        ) from None
    except Image.UnidentifiedImageError:
        reason = "the file is empty" if path.stat().st_size == 0 else "not an image"
        raise ImageError(reason) from None
    except Exception as error:  # Pillow's formats raise whatever a broken file leads them to
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ImageError(f"cannot be read ({reason or type(error).__name__})") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB, all values in their range."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scale deep grey values, which `Image.convert` would clip.

    Args:
        grey: (H, W); integers in [0, 65535], or floats in [0, 1] or [0, 255]. What lies outside
            is clipped.

    Returns:
        uint8 (H, W).
    """
    scale = 255 / 65535
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey)
        scale = 255 if grey.max() <= 1 else 1
    return (grey * np.float32(scale)).round().clip(0, 255).astype(np.uint8)


def name_outputs(paths: Sequence[Path], output_dir: Path) -> list[str]:
    """A name below `output_dir` for each input: its stem, with a number where that is taken.

    `<name>.png` and `<name>_overlay.png` of all inputs differ, also where case does not count, and
    none of them is an input.
    """
    taken = {path.resolve() for path in paths}
    taken_names = {path.name.casefold() for path in taken if path.parent == output_dir.resolve()}
    names = []
    for path in paths:
        name, number = path.stem, 1
        while not taken_names.isdisjoint(file.casefold() for file in output_files(name)):
            number += 1
            name = f"{path.stem}_{number}"
        taken_names.update(file.casefold() for file in output_files(name))
        names.append(name)
    return names


def output_files(name: str) -> tuple[str, str]:
    """The files of one input: mask and overlay."""
    return f"{name}.png", f"{name}_overlay.png"


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all; quickly rather than small."""
    with write_atomically(path) as partial:
        image.save(partial, format="PNG", compress_level=1)


def save_pred(path: Path, pred: np.ndarray) -> None:
    """Write class indices as a palette PNG in VOC's colours, as VOC's server takes it.

    Args:
        path: the file.
        pred: uint8 (H, W), class indices.
    """
    image = Image.fromarray(pred)
    image.putpalette(PALETTE.tobytes())
    save_png(path, image)


def classes_in(pred: np.ndarray) -> list[int]:
    """The values that occur in uint8 (H, W), in order; Pillow counts them without a copy."""
    return [index for index, count in enumerate(Image.fromarray(pred).histogram()) if count]


def draw_overlay(image: torch.Tensor, pred: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """The prediction over the image, half and half, and below it a legend of the classes in it.

    Args:
        image: uint8 (3, H, W), RGB.
        pred: uint8 (H, W), class indices.
        class_names: one name per index.

    Returns:
        RGB; the upper left (H, W) is the picture. Narrow images are filled up with white, so that
        the longest name has room.
    """
    height, width = pred.shape
    entries = [(class_names[i], tuple(PALETTE[i].tolist())) for i in classes_in(pred)]
    legend = draw_legend(entries, width)
    canvas = Image.new("RGB", (max(width, legend.width), height + legend.height), "white")
    half = PALETTE // 2
    for top in range(0, height, STRIP):  # a strip at a time: large photos have large copies
        rows = slice(top, top + STRIP)
        part = image[:, rows].permute(1, 2, 0).numpy() // 2 + half[pred[rows]]
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
    font = ImageFont.load_default(size)
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
