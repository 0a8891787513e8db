"""A drawing of both heads: what DeepLabV3+ adds to DeepLabV3."""

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from utils.report.image_grid import PAGE_WIDTH, SMALL, drawing

SHARED, ADDED = "#dde8f5", "#ffd9a0"
BRANCHES = ("1x1", "3x3, rate 6", "3x3, rate 12", "3x3, rate 18", "image pooling")


def draw_heads() -> Figure:
    """Boxes of both heads, one below the other; those that DeepLabV3+ adds are orange."""
    with drawing():
        figure = Figure((PAGE_WIDTH, 3.5), layout="constrained")
        upper, lower = figure.subplots(2, height_ratios=(5.7, 7.2))
        _draw_head(upper, "DeepLabV3", -2.5)
        _draw_head(lower, "DeepLabV3+", -4)
    return figure


def _draw_head(axes: Axes, name: str, bottom: float) -> None:
    """From the backbone's features to logits of the image's size."""
    axes.set_title(f"{name}, output stride 16", loc="left", pad=2)
    axes.set(xlim=(-0.6, 8.5), ylim=(bottom, 3.2))
    axes.set_axis_off()
    axes.text(1.5, 2.8, "ASPP", ha="center", va="center", fontsize=SMALL)
    features = _draw_box(axes, 0, 0, "features\n1/16")
    path, enlarged = [_draw_box(axes, 3, 0, "concat,\n1x1, 256")], 16
    for number, branch in enumerate(BRANCHES):
        _draw_chain(axes, [features, _draw_box(axes, 1.5, 2 - number, branch), path[0]])
    if name == "DeepLabV3+":
        concat, enlarged = _draw_box(axes, 5, 0, "concat", ADDED), 4
        path += [_draw_box(axes, 4, 0, "upsample\nx 4", ADDED), concat]
        low_level = _draw_box(axes, 0, -3.3, "low-level\nfeatures, 1/4", ADDED)
        _draw_chain(axes, [low_level, _draw_box(axes, 5, -3.3, "1x1, 48", ADDED), concat])
    for number, text in enumerate(("3x3, 256", "1x1,\nclasses", f"upsample\nx {enlarged}")):
        path.append(_draw_box(axes, 6 + number, 0, text))
    _draw_chain(axes, path)


def _draw_box(axes: Axes, x: float, y: float, text: str, color: str = SHARED) -> Text:
    style = {"boxstyle": "round", "facecolor": color, "edgecolor": "0.4", "linewidth": 0.6}
    return axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, bbox=style)


def _draw_chain(axes: Axes, boxes: list[Text]) -> None:
    for start, end in pairwise(boxes):
        style = {
            "arrowstyle": "-|>", "facecolor": "0.3", "edgecolor": "0.3", "linewidth": 0.6,
            "patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch(),
            "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7,
        }  # fmt: skip
        axes.annotate("", end.get_position(), start.get_position(), arrowprops=style)
