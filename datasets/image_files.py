"""Reading images, masks and lists, with errors that name the file."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.common.errors import UserError


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
