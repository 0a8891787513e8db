"""Where the windows of a large image lie, how they are blended, and upsampling in strips."""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

ALIGNMENT = 16  # pixels: the largest stride in a backbone
STRIP_PIXELS = 1 << 19  # that are upsampled at a time


def place_windows(size: Sequence[int], side: int, overlap: int) -> list[tuple[slice, slice]]:
    """Cover an image with overlapping squares; the last of a row or a column are cut short.

    They start at multiples of 16, where a backbone's strides put the whole image's features too.

    Args:
        size: height and width of the image, in pixels as the rest.
        side: of a square, a multiple of 16.
        overlap: what neighbours share, at least.

    Returns:
        The rows and the columns of each window.
    """
    step = (side - overlap) // ALIGNMENT * ALIGNMENT
    rows, columns = (
        [
            slice(start, min(start + side, length))
            for start in range(0, max(length - (side - step), 1), step)
        ]
        for length in size
    )
    return list(itertools.product(rows, columns))


def window_weights(size: Sequence[int], overlap: float) -> torch.Tensor:
    """The weight of each logit of a window: 1, and falling linearly over `overlap` at its borders.

    `size` (height and width) and `overlap` are in logits; float (height, width), above 0.
    """
    sides = []
    for length in size:
        position = torch.arange(length) + 0.5
        sides.append((torch.minimum(position, length - position) / max(overlap, 1)).clamp(max=1))
    return sides[0][:, None] * sides[1]


def upsample_in_strips(scores: torch.Tensor, size: Sequence[int]) -> Iterator[torch.Tensor]:
    """Upsample bilinearly, a strip of rows at a time, which bounds the memory.

    Args:
        scores: float (C, h, w).
        size: height and width of the whole result.

    Yields:
        float (1, C, rows, width): one below the other `F.interpolate(scores, size, "bilinear")`.
    """
    height, width = size
    rows = torch.arange(height, device=scores.device)
    position = ((rows + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    upper = position.long()
    lower = (upper + 1).clamp(max=scores.shape[1] - 1)
    fraction = (position - upper)[:, None]
    for strip in rows.split(max(STRIP_PIXELS // width, 1)):
        mixed = torch.lerp(scores[:, upper[strip]], scores[:, lower[strip]], fraction[strip])
        yield F.interpolate(mixed[None], (len(strip), width), mode="bilinear", align_corners=False)
