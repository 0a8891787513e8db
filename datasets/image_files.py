"""Reading images, masks and lists, with errors that name the file."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from utils.common.errors import UserError
from utils.common.files import write_atomically

# Pillow refuses what has more than twice its MAX_IMAGE_PIXELS, as a decompression bomb.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
# Formats that Pillow recognises but cannot draw by itself; a folder may hold such files.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


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


def read_image(path: Path) -> torch.Tensor:
    """Read an image of a data set as it is stored (no EXIF rotation: masks are drawn on that).

    Returns:
        uint8 (3, H, W), RGB, channels last in memory.

    Raises:
        UserError: the file is missing, cut off or no image.
    """
    with open_image(path) as image:
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies
        array = np.array(rgb)  # (H, W, 3)
    return torch.from_numpy(array).permute(2, 0, 1)


def read_mask(path: Path) -> torch.Tensor:
    """Read an index mask: a palette PNG or an 8-bit grey one.

    Returns:
        uint8 (H, W), the stored indices.

    Raises:
        UserError: the file is missing, cut off, or stores colours in place of indices.
    """
    with open_image(path) as image:
        if image.mode not in ("P", "L"):
            raise UserError(
                f"{path}: the mask is stored as {image.mode}, but class indices are needed: save "
                "it as a palette (P) or 8-bit grey (L) PNG whose values are the indices"
            )
        return torch.from_numpy(np.array(image))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header alone."""
    with open_image(path, load=False) as image:
        return image.height, image.width


def open_image(path: Path, load: bool = True) -> Image.Image:
    """Open (and decode) with Pillow; every failure becomes a `UserError` that names the file."""
    try:
        image = Image.open(path)
        if load:
            image.load()
        return image
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(f"'{path}'", "it")
        raise UserError(
            f"{path}: cannot be read as an image ({reason}): replace the file, or take its id out "
            "of the list"
        ) from None


def available_memory() -> float:
    """Bytes of memory that can be had without swapping; infinite where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    fields = (line.split() for line in lines)
    return next((1024 * int(kib) for name, kib, *_ in fields if name == "MemAvailable:"), math.inf)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped, empty ones left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason})") from None
    return [line.strip() for line in lines if line.strip()]


def read_ids(path: Path) -> list[str]:
    """A list of sample ids, one a line, as in `ImageSets/Segmentation/train.txt`."""
    ids = read_lines(path)
    if not ids:
        raise UserError(f"{path}: the list is empty")
    for sample in ids:
        if "/" in sample or "\\" in sample or "\0" in sample:
            raise UserError(f"{path}: {sample!r} is not an id: give the file name without folders")
    return ids


def find_files(
    folder: Path, ids: Sequence[str], kind: str, suffixes: Sequence[str] | None = None
) -> list[Path]:
    """The file of each id in `folder`, whatever the case of its suffix.

    Raises:
        UserError: the folder, or the file of an id, is missing.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}): it holds the {kind}s"
        ) from None
    by_stem: dict[str, Path] = {}
    for path in files:
        if suffixes is None or path.suffix.lower() in suffixes:
            by_stem.setdefault(path.stem, path)
    missing = [sample for sample in ids if sample not in by_stem]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{folder / missing[0]}{(suffixes or ['.jpg'])[0]}: the {kind} of an id in the list is "
            f"missing{more}: add it, or take the id out of the list"
        )
    return [by_stem[sample] for sample in ids]


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


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all; quickly rather than small."""
    with write_atomically(path) as partial:
        image.save(partial, format="PNG", compress_level=1)
