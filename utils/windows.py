"""Where the windows of a large image lie, how they are blended, and upsampling in strips."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

ALIGNMENT = 16  # pixels: the largest stride in a backbone
STRIP_PIXELS = 1 << 19  # that are upsampled at a time


def place_windows(size: Sequence[int], max_pixels: int, overlap: int) -> list[tuple[slice, slice]]:
    """Cover an image with overlapping windows that have the fewest pixels in all.

    They start at multiples of 16, where the backbone's strides put the features of the whole image
    too.

    Args:
        size: height and width of the image.
        max_pixels: of a window.
        overlap: pixels that neighbours share, at least.

    Returns:
        The rows and the columns of each window.
    """
    best, fewest = [], math.inf
    for row_count in range(1, size[0] // ALIGNMENT + 2):
        rows = split_axis(size[0], row_count, overlap)
        height = sum(part.stop - part.start for part in rows)
        if height * size[1] >= fewest:  # more rows overlap more
            break
        columns = fit_axis(size[1], max_pixels // rows[0].stop, overlap)
        pixels = height * sum(part.stop - part.start for part in columns)
        if columns and pixels < fewest:
            best, fewest = [(y, x) for y in rows for x in columns], pixels
    return best


def fit_axis(length: int, longest: int, overlap: int) -> list[slice]:
    """`split_axis` into as few windows as can be of `longest` pixels; none if these are too few."""
    if length <= longest:
        return [slice(0, length)]
    if longest < overlap + 2 * ALIGNMENT:
        return []
    count = math.ceil((length - overlap) / (longest - overlap))
    while split_axis(length, count, overlap)[0].stop > longest:  # rounded up to 16 pixels
        count += 1
    return split_axis(length, count, overlap)


def split_axis(length: int, count: int, overlap: int) -> list[slice]:
    """Cover an axis evenly with the shortest windows that share `overlap` pixels.

    Args:
        length: of the axis, in pixels.
        count: of the windows.
        overlap: of neighbours, in pixels, at least.

    Returns:
        Windows that start at multiples of 16 and are as long, but for the last, which may be
        shorter.
    """
    if count == 1:
        return [slice(0, length)]
    window = math.ceil((length + (count - 1) * overlap) / count / ALIGNMENT) * ALIGNMENT
    while True:
        last = max(math.ceil((length - window) / ALIGNMENT), 0)  # start of the last, in steps of 16
        if window - math.ceil(last / (count - 1)) * ALIGNMENT >= overlap:
            break
        window += ALIGNMENT
    starts = [last * index // (count - 1) * ALIGNMENT for index in range(count)]
    return [slice(start, min(start + window, length)) for start in starts]


def window_weights(size: Sequence[int], overlap: float) -> torch.Tensor:
    """The weight of each logit of a window: 1, and falling linearly over `overlap` at its borders.

    Args:
        size: height and width, in logits.
        overlap: in logits.

    Returns:
        float (height, width), above 0.
    """
    sides = []
    for length in size:
        position = torch.arange(length) + 0.5
        sides.append((torch.minimum(position, length - position) / max(overlap, 1)).clamp(max=1))
    return sides[0][:, None] * sides[1]


def upsampled_argmax(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Upsample bilinearly and take the best class, in strips that bound the memory.

    Args:
        scores: float (C, h, w).
        size: height and width of the result.

    Returns:
        uint8 (height, width): the argmax of `F.interpolate(scores, size, mode="bilinear")`.
    """
    height, width = size
    pred = torch.empty(height, width, dtype=torch.uint8, device=scores.device)
    rows = torch.arange(height, device=scores.device)
    position = ((rows + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    upper = position.long()
    lower = (upper + 1).clamp(max=scores.shape[1] - 1)
    fraction = (position - upper)[:, None]
    for strip in rows.split(max(STRIP_PIXELS // width, 1)):
        mixed = torch.lerp(scores[:, upper[strip]], scores[:, lower[strip]], fraction[strip])
        mixed = F.interpolate(
            mixed[None], (len(strip), width), mode="bilinear", align_corners=False
        )
        pred[strip] = mixed[0].argmax(0).to(torch.uint8)
    return pred
