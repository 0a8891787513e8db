"""Regions of a class map: components, borders, and classes for masks that have none."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F


def connected_components(classes: torch.Tensor) -> torch.Tensor:
    """Number the 8-connected regions of equal value.

    Horizontal runs of equal value are the nodes of a graph. Each round hangs the root of a run
    under the smallest root among its neighbours, then flattens the trees, until neighbours agree.

    Returns:
        int64 (H, W), from 0 on, in the order of the regions' first pixels.
    """
    starts = torch.ones(classes.shape, dtype=torch.bool)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    runs = starts.flatten().cumsum(0).view(classes.shape) - 1
    pairs = []
    straight, left, right = slice(None), slice(None, -1), slice(1, None)
    for upper, lower in ((straight, straight), (left, right), (right, left)):
        # Two runs first meet where one of them starts: one pixel of each pair is enough.
        meet = starts[:-1, upper] | starts[1:, lower]
        meet &= classes[:-1, upper] == classes[1:, lower]
        pairs.append(torch.stack([runs[:-1, upper][meet], runs[1:, lower][meet]]))
    first, second = torch.cat(pairs, dim=1)
    roots = torch.arange(int(runs[-1, -1]) + 1)
    while not torch.equal(roots[first], roots[second]):
        low = torch.minimum(roots[first], roots[second])
        high = torch.maximum(roots[first], roots[second])
        roots = roots.scatter_reduce(0, high, low, "amin")
        while not torch.equal(roots, roots[roots]):
            roots = roots[roots]
    return roots.unique(return_inverse=True)[1][runs]


class Prompts(NamedTuple):
    """A box and a point for each of N masks that are wanted, and its class: int64."""

    boxes: torch.Tensor  # (N, 4), left, top, right and bottom pixel
    points: torch.Tensor  # (N, 2), column and row
    classes: torch.Tensor  # (N,)


def component_prompts(classes: torch.Tensor, first_class: int = 0) -> Prompts:
    """A box around each connected component and a point deep inside it.

    The point is the pixel from which the component goes on farthest in all four directions of the
    axes; of several, the one farthest from both ends of its row and of its column. Classes, integer
    (H, W), that are below `first_class` are left out.
    """
    components = connected_components(classes)
    up_down = torch.minimum(*(_to_end(components, turns) for turns in (0, 2)))
    left_right = torch.minimum(*(_to_end(components, turns) for turns in (1, 3)))
    depth, spread = torch.minimum(up_down, left_right), up_down * left_right
    rating = depth * classes.numel() + spread  # the spread decides among equals
    sizes = components.flatten().bincount().tolist()
    found = []  # left, top, right, bottom, column, row and class
    for pixels in components.flatten().argsort(stable=True).split(sizes):
        rows, columns = pixels // classes.shape[1], pixels % classes.shape[1]
        best = rating.flatten()[pixels].argmax()
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        point_and_class = [columns[best], rows[best], classes.flatten()[pixels[0]]]
        found.append([int(value) for value in box + point_and_class])
    table = torch.tensor(found)
    table = table[table[:, 6] >= first_class]
    return Prompts(table[:, :4], table[:, 4:6], table[:, 6])


def _to_end(components: torch.Tensor, turns: int) -> torch.Tensor:
    """Pixels from each one up to the end of its component, after so many quarter turns."""
    turned = components.rot90(turns)
    rows = torch.arange(len(turned))[:, None]
    starts = torch.zeros_like(turned)
    starts[1:] = torch.where(turned[1:] != turned[:-1], rows[1:], 0)
    return (rows - starts.cummax(dim=0).values + 1).rot90(-turns)


def border_band(values: torch.Tensor, width: int, ignore_index: int = 255) -> torch.Tensor:
    """The pixels with another value in the square of side 2 width + 1 around them: bool (H, W).

    Void is another value too, but no part of the band. So where void covers the borders, as in
    VOC, this is the trimap of Kohli et al. (2009) and DeepLab (V3+, section 4.4); where classes
    touch, the band has `width` pixels on each side of their common border.
    """
    planes = torch.stack([values, -values.long()]).float()  # maximum, and minimum with other sign
    highest, lowest = F.max_pool2d(planes, 2 * width + 1, stride=1, padding=width)
    return (highest != -lowest) & (values != ignore_index)


def index_map(masks: Iterable[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
    """The number of the last mask, bool (H, W), over each pixel: int64 (H, W), -1 for none."""
    indices = torch.full(size, -1)
    for index, mask in enumerate(masks):
        indices[mask] = index
    return indices


def paint_classes(
    masks: Iterable[torch.Tensor], source: torch.Tensor, base: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Give each mask the class of most of its pixels in `source`, and lay it over a copy of `base`.

    Masks are bool (H, W), source and base integer (H, W). Of two classes with as many pixels the
    lower index wins; a mask without a class in `source` (void alone) is left out.
    """
    painted = base.clone()
    for mask in masks:
        inside = source[mask]
        counts = torch.bincount(inside[inside < num_classes].flatten(), minlength=num_classes)
        if counts.any():
            painted[mask] = int(counts.argmax())
    return painted
