"""Regions of a class map: components, borders, and classes for masks that have none."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F


def connected_components(classes: torch.Tensor) -> torch.Tensor:
    """Number the 8-connected regions of equal value.

    Horizontal runs of equal value are the nodes of a graph. Each round hangs the root of a run
    under the smallest root among its neighbours, then flattens the trees, until neighbours agree.

    Args:
        classes: integer (H, W).

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


@dataclasses.dataclass
class Prompts:
    """A box and a point for each mask that is wanted, and its class.

    Attributes:
        boxes: int64 (N, 4), left, top, right and bottom pixel.
        points: int64 (N, 2), column and row.
        classes: int64 (N,).
    """

    boxes: torch.Tensor
    points: torch.Tensor
    classes: torch.Tensor


def component_prompts(classes: torch.Tensor, first_class: int = 0) -> Prompts:
    """A box around each connected component and a point deep inside it.

    The point is the pixel from which the component goes on farthest in all four directions of the
    axes; of several, the one farthest from both ends of its row and of its column.

    Args:
        classes: integer (H, W), for instance a prediction.
        first_class: components of lower classes are left out.
    """
    components = connected_components(classes)
    height, width = components.shape
    count = int(components.max()) + 1
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def reduce(values: torch.Tensor, how: str) -> torch.Tensor:
        start = torch.zeros(count, dtype=torch.int64)
        flat = values.flatten()
        return start.scatter_reduce(0, components.flatten(), flat, how, include_self=False)

    up_down = torch.minimum(*(_to_end(components, turns) for turns in (0, 2)))
    left_right = torch.minimum(*(_to_end(components, turns) for turns in (1, 3)))
    depth, spread = torch.minimum(up_down, left_right), up_down * left_right
    rating = depth * (height * width + 1) + spread  # the spread decides among equals
    is_best = rating == reduce(rating, "amax")[components]
    points = reduce(torch.where(is_best, rows * width + columns, height * width), "amin")
    boxes = [reduce(values, how) for how in ("amin", "amax") for values in (columns, rows)]
    classes = classes.flatten()[points].long()
    points = torch.stack([points % width, points // width], dim=1)
    wanted = classes >= first_class
    return Prompts(torch.stack(boxes, dim=1)[wanted], points[wanted], classes[wanted])


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

    Args:
        values: integer (H, W), for instance a target.
        width: of the band on one side of a border, in pixels.
        ignore_index: the value of void.
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

    Of two classes with as many pixels the lower index wins. A mask without a class in `source`
    (void alone) is left out.

    Args:
        masks: bool (H, W) each; later ones lie over earlier ones.
        source: integer (H, W), classes; other values do not count.
        base: integer (H, W), what pixels outside all masks keep.
        num_classes: C.
    """
    painted = base.clone()
    for mask in masks:
        inside = source[mask]
        counts = torch.bincount(inside[inside < num_classes].flatten(), minlength=num_classes)
        if counts.any():
            painted[mask] = int(counts.argmax())
    return painted
