"""Reading images and masks, with errors that name the file."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import write_atomically

# Pillow refuses what has more than twice its MAX_IMAGE_PIXELS, as a decompression bomb.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
# Formats that Pillow recognises but cannot draw by itself; a folder may hold such files.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@contextlib.contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow refuse images of more than `max_pixels`, and be silent about smaller ones."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_image(path: Path, target_size: tuple[int, int] | None = None) -> Tensor:
    """Read any image as a viewer shows it.

    Transparent parts lie on white; deep grey is scaled to 8 bits; of several frames it is the
    first; a colour profile is not applied. What EXIF says of the orientation is done, but where
    the stored pixels fit a mask, the mask was drawn on those.

    Args:
        path: a file of any format that Pillow reads.
        target_size: (height, width) of the image's mask, if it has one.

    Returns:
        uint8 (3, H, W), RGB, channels last in memory.

    Raises:
        UserError: the file is missing, empty, cut off, no image, or above the pixel limit.
    """
    with open_image(path) as image:
        if target_size != (image.height, image.width):
            # Broken tags turn nothing; in place, those that cannot be written again do no harm.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
        rgb = to_rgb(image)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the stored pixels, from the file's header alone."""
    with open_image(path, load=False) as image:
        return image.height, image.width


def check_fit(path: Path, target_path: Path) -> bool:
    """Compare the sizes of an image and its mask, from their headers alone.

    Returns:
        Whether EXIF tells to turn the image, which `read_image` passes over, since the mask fits
        the stored pixels.

    Raises:
        UserError: the mask fits neither these nor the turned ones, or a file cannot be read.
    """
    target_size, turn = image_size(target_path), 1
    with open_image(path, load=False) as image:
        size = image.height, image.width
        # Pillow turns a TIFF by itself, and asks for all of a PNG to see whether it has tags.
        if image.format != "TIFF" and ("exif" in image.info or size != target_size):
            with contextlib.suppress(Exception):  # as broken as they may be, the pixels are not
                turn = image.getexif()[ExifTags.Base.Orientation]
    if target_size != size and (target_size != size[::-1] or turn not in (5, 6, 7, 8)):
        raise misfit(path, target_path, size, target_size)
    return target_size == size and turn in range(2, 9)


def misfit(path: Path, target_path: Path, size: Sequence[int], target: Sequence[int]) -> UserError:
    """What is to be said of an image and a mask whose sizes (height, width) differ."""
    return UserError(
        f"{target_path}: the mask is {target[1]}x{target[0]}, but its image {path} is "
        f"{size[1]}x{size[0]}: they must be of one size"
    )


def open_image(path: Path, load: bool = True) -> Image.Image:
    """Open (and decode) with Pillow; every failure becomes a `UserError`."""
    try:
        image = Image.open(path)
        if load:
            image.load()
        return image
    except Image.DecompressionBombError:
        reason = "above the limit of pixels, which --max_pixels of predict.py raises"
    except Image.UnidentifiedImageError:
        is_empty = path.stat().st_size == 0
        reason = "the file is empty" if is_empty else "not an image that Pillow reads"
    except Exception as error:  # Pillow's formats raise whatever a broken file leads them to
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        reason = f"cannot be read ({reason or type(error).__name__})"
    raise UserError(f"{path}: {reason}: replace it, or leave it out")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB.

    Deep grey values are integers in [0, 65535], or floats in [0, 1] or [0, 255]; what lies outside
    is clipped.
    """
    if image.mode.startswith("I") or image.mode == "F":  # deep grey, which convert() would clip
        grey = np.nan_to_num(np.asarray(image, np.float32))
        most = 65535 if image.mode != "F" else 255 if grey.max() > 1 else 1
        grey = (grey * np.float32(255 / most)).round().clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # else it cannot be RGBA
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies


@functools.cache
def picture_suffixes() -> set[str]:
    """The suffixes of all formats that Pillow reads, in lower case."""
    formats = Image.registered_extensions().items()
    readable = Image.OPEN.keys() - NOT_PICTURES
    return {suffix for suffix, name in formats if name in readable}


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all; quickly rather than small."""
    with write_atomically(path) as partial:
        image.save(partial, format="PNG", compress_level=1)
