"""Reading images and masks, with errors that name the file."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import write_atomically

# Pillow refuses what has more than twice its MAX_IMAGE_PIXELS, as a decompression bomb.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
# Formats that Pillow recognises but cannot draw by itself; a folder may hold such files.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# What brings the stored pixels of each EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}  # of them


class ImageError(UserError):
    """One file cannot be read; the message names it and says why. Others may still be done."""


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
        ImageError: the file is missing, empty, cut off, no image, or above the pixel limit.
    """
    with open_image(path) as image:
        rgb = to_rgb(image)
        if target_size != (rgb.height, rgb.width):
            turn = TURNS.get(exif_orientation(image))
            rgb = rgb if turn is None else rgb.transpose(turn)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def image_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """Height and width, from the file's header alone.

    Args:
        path: the file.
        upright: of the image as a viewer shows it; else of the stored pixels.
    """
    with open_image(path, load=False) as image:
        turned = upright and exif_orientation(image) in SIDEWAYS
        return (image.width, image.height) if turned else (image.height, image.width)


def check_fit(path: Path, target_path: Path) -> None:
    """Compare the sizes of an image and its mask, from their headers alone.

    Raises:
        ImageError: they differ, or one of the two cannot be read.
    """
    size, target_size = image_size(path), image_size(target_path)
    if target_size != size and target_size != image_size(path, upright=True):
        raise misfit(path, target_path, size, target_size)


def misfit(
    path: Path, target_path: Path, size: tuple[int, ...], target_size: tuple[int, ...]
) -> ImageError:
    """What is to be said of an image and a mask whose sizes (height, width) differ."""
    return ImageError(
        f"{target_path}: the mask is {target_size[1]}x{target_size[0]}, but its image {path} is "
        f"{size[1]}x{size[0]}: they must be of one size"
    )


def open_image(path: Path, load: bool = True) -> Image.Image:
    """Open (and decode) with Pillow; every failure becomes an `ImageError`."""
    try:
        image = Image.open(path)
        if load:
            image.load()
        return image
    except Image.DecompressionBombError:
        raise ImageError(
            f"{path}: has more pixels than the limit against decompression bombs: scale it down "
            "(in predict.py --max_pixels raises the limit)"
        ) from None
    except Image.UnidentifiedImageError:
        reason = unidentified(path)
    except Exception as error:  # Pillow's formats raise whatever a broken file leads them to
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        reason = f"cannot be read ({reason or type(error).__name__})"
    with contextlib.suppress(Exception):  # perhaps the pixels are whole, and only their profile not
        image = Image.open(io.BytesIO(strip_metadata(path.read_bytes())))
        image.load()
        return image
    raise ImageError(f"{path}: {reason}: replace it, or leave it out")


def unidentified(path: Path) -> str:
    """Why Pillow does not know a file."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF whose kind of pixels Pillow does not read: save it with 8 bits a channel"
    return "not an image" if head else "the file is empty"


def strip_metadata(file: bytes) -> bytes:
    """A JPEG whose colour profile is not read, a PNG with nothing but its pixels, or nothing."""
    if file.startswith(b"\xff\xd8"):
        return file.replace(b"\xff\xe2", b"\xff\xec")  # another marker, which nobody reads
    if not file.startswith(b"\x89PNG"):
        return b""
    start, kept = 8, [file[:8]]
    while start < len(file):
        end = start + 12 + int.from_bytes(file[start : start + 4], "big")
        if file[start + 4 : start + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(file[start:end])
        start = end
    return b"".join(kept)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or it cannot be read."""
    if image.format == "TIFF":  # Pillow turns it while it decodes it
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as broken as the tags may be, the pixels are not
        return 1


def keeps_orientation(path: Path, target_path: Path) -> bool:
    """Whether `read_image` passes an orientation over, since the mask fits the stored pixels.

    Headers alone are read. A file that cannot be read says so when its pixels are.
    """
    with contextlib.suppress(Exception), Image.open(path) as image:
        if "exif" in image.info and exif_orientation(image) in TURNS:
            return (image.height, image.width) == image_size(target_path)
    return False


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
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies


def picture_suffixes() -> set[str]:
    """The suffixes of all formats that Pillow reads, in lower case."""
    formats = Image.registered_extensions().items()
    readable = Image.OPEN.keys() - NOT_PICTURES
    return {suffix for suffix, name in formats if name in readable}


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all; quickly rather than small."""
    with write_atomically(path) as partial:
        image.save(partial, format="PNG", compress_level=1)
