"""Pictures for a page: grids of images with captions, and what every figure shares.

Figures are `matplotlib.figure.Figure` objects without pyplot, so nothing needs a display. They are
made for `PAGE_WIDTH`: on a page of 165 mm their letters are about 7 points high.
"""

import dataclasses
import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from datasets.base import IGNORE_INDEX
from datasets.voc import PALETTE, decode_target
from utils.common.files import write_atomically

PAGE_WIDTH, PAGE_HEIGHT = 8.0, 10.5  # inches
MIN_SCALE = 0.6  # of the images of a grid that is higher than a page
FONT_SIZE, SMALL = 9, 7  # points
PAD = 0.03  # inches around each panel
LEGEND_PATCH = 0.6  # inches, with the gaps beside it
PAIR_GAP = 0.12  # between pairs, of a panel's width
MIN_RATIO, MAX_RATIO = 0.2, 1.5  # height / width of a panel's box
WRONG_COLOR, RIGHT_COLOR = (220, 30, 30), (40, 40, 40)

# Names of runs and classes may hold a `$`, which must not start a formula. The salt makes the ids
# in SVG files the same every time.
STYLE: Any = {
    "font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE - 1, "ytick.labelsize": FONT_SIZE - 1,
    "legend.fontsize": FONT_SIZE, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False, "svg.hashsalt": "deeplab",
}  # fmt: skip


@dataclasses.dataclass
class Panel:
    """One image of a grid.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        caption: below the image.
        is_photo: smoothed when scaled; colour maps are not, since mixed colours mean other classes.
    """

    image: np.ndarray
    caption: str = ""
    is_photo: bool = False


Rows = Sequence[Sequence[Panel]]
Heads = Sequence[tuple[str, str]]  # a text, and one in small letters below it
Legend = Sequence[tuple[str, Sequence[int]]]  # names, and colours: RGB in 0 to 255
Texts = tuple[Heads, Legend]


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with `STYLE`, whatever a user's matplotlibrc says about these."""

    @functools.wraps(plot)
    def plot_in_style(*args, **options) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **options)

    return plot_in_style


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure in the format that the suffix names; the same figure gives the same bytes."""
    file_format = path.suffix.removeprefix(".")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context(STYLE), write_atomically(path) as partial:
        figure.savefig(partial, format=file_format, dpi=dpi, metadata=dates.get(file_format))


def photo(image: torch.Tensor, caption: str = "") -> Panel:
    """A panel of an image: uint8 (3, H, W)."""
    return Panel(image.permute(1, 2, 0).numpy(), caption, is_photo=True)


def color_map(target: torch.Tensor, caption: str = "") -> Panel:
    """A panel of a target or prediction, integer (H, W), in VOC's colours."""
    return Panel(decode_target(target), caption)


def error_map(
    image: torch.Tensor, target: torch.Tensor, pred: torch.Tensor, caption: str = ""
) -> Panel:
    """Where a prediction (H, W) is wrong; the right pixels are those of a dark grey image."""
    colors = np.repeat(image.float().mean(0)[..., None].numpy() / 3, 3, axis=2).astype(np.uint8)
    colors[(pred != target).numpy()] = WRONG_COLOR
    colors[(target == IGNORE_INDEX).numpy()] = PALETTE[IGNORE_INDEX]
    return Panel(colors, caption)


def class_legend(
    class_names: Sequence[str], maps: Iterable[torch.Tensor]
) -> list[tuple[str, Sequence[int]]]:
    """The legend of the classes that some targets and predictions show, void last."""
    shown = sorted({int(value) for index_map in maps for value in index_map.unique()})
    names = dict(enumerate(class_names)) | {IGNORE_INDEX: "void (not scored)"}
    return [(names[value], PALETTE[value].tolist()) for value in shown]


def letters(width: float, size: float = FONT_SIZE) -> int:
    """How many letters of usual width a line of so many inches holds."""
    return max(int(width * 72 / (0.62 * size)), 2)


def fit(text: str, width: float, lines: int = 1, size: float = FONT_SIZE) -> str:
    """Break each paragraph into lines of `width` inches; what is too long loses its middle."""
    room, result = letters(width, size), []
    for paragraph in text.splitlines():
        if len(paragraph) > room * lines:
            kept = room * lines - 1
            paragraph = paragraph[: (kept + 1) // 2] + "\u2026" + paragraph[-(kept // 2) :]
        # Names break behind their underscores.
        broken = textwrap.wrap(paragraph.replace("_", "_ "), room) or [""]
        if len(broken) > lines:  # whole words take too many lines
            broken = [paragraph[start : start + room] for start in range(0, len(paragraph), room)]
        result += [line.replace("_ ", "_") for line in broken]
    return "\n".join(result)


class _Plan:
    """The sizes of a grid in inches, and its texts in lines that fit; arguments as `image_grid`'s.

    Attributes:
        places: for each panel of a row its column; between pairs there is a narrow, empty one.
        columns: relative widths of the columns.
        ratios: height / width of each row's boxes.
        middle: of a head or a caption, in widths of its (first) panel.
        size: width and height of the figure.
    """

    def __init__(self, rows: Rows, texts: Texts, ratio: float | None, pairs: bool) -> None:
        self.span = 1 + pairs
        self.places = [n + n // 2 if pairs else n for n in range(max(map(len, rows)))]
        self.columns = [PAIR_GAP if pairs and n % 3 == 2 else 1 for n in range(self.places[-1] + 1)]
        highest = [max(p.image.shape[0] / p.image.shape[1] for p in row) for row in rows]
        self.ratios = [ratio or min(max(MIN_RATIO, own), MAX_RATIO) for own in highest]
        width = PAGE_WIDTH / sum(self.columns) - 2 * PAD  # of a panel
        self.fit_texts(rows, texts, width)
        if self.size[1] > PAGE_HEIGHT:  # what is too high gets narrower
            scale = 1 - (self.size[1] - PAGE_HEIGHT) / (width * sum(self.ratios))
            width *= max(scale, MIN_SCALE)
            self.fit_texts(rows, texts, width)
        self.middle = 1 + PAD / width if pairs else 0.5

    def fit_texts(self, rows: Rows, texts: Texts, width: float) -> None:
        """Break the texts for panels of a width."""
        room, total = self.span * width, sum(self.columns) * (width + 2 * PAD)
        self.heads = [(fit(head, room, 4), fit(small, room, 4, SMALL)) for head, small in texts[0]]
        self.captions = [[fit(p.caption, room, 3) for p in row[:: self.span]] for row in rows]
        height = max((_height(a) + _height(b, SMALL) + 0.05 for a, b in self.heads), default=0)
        height += sum(max(map(_height, row)) + 3 * PAD for row in self.captions)
        height += math.ceil(len(texts[1]) / _legend_columns(texts[1], total)) * 1.6 * FONT_SIZE / 72
        self.size = total, height + width * sum(self.ratios)


@styled
def image_grid(
    rows: Rows,
    heads: Heads = (),
    legend: Legend = (),
    ratio: float | None = None,
    pairs: bool = False,
) -> Figure:
    """Images in rows, each in its own proportions in the middle of a box.

    Args:
        rows: the panels. A row may be shorter than the others.
        heads: above each column, or each pair: a text, and one in small letters below it.
        legend: names and colours, below all.
        ratio: height / width of all boxes; by default that of the highest image of the row.
        pairs: two neighbours belong together: they share a head, and the caption of the first.
    """
    plan = _Plan(rows, (heads, legend), ratio, pairs)
    layout = ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD, wspace=0, hspace=0)
    figure = Figure(plan.size, layout=layout)
    grid = figure.add_gridspec(
        len(rows), len(plan.columns), width_ratios=plan.columns, height_ratios=plan.ratios
    )
    for row, panels in enumerate(rows):
        drawn = [figure.add_subplot(grid[row, place]) for place in plan.places[: len(panels)]]
        for axes, panel in zip(drawn, panels, strict=True):
            smoothing = "antialiased" if panel.is_photo else "nearest"
            axes.imshow(panel.image, interpolation=smoothing, aspect="auto")
            axes.set(xticks=[], yticks=[], facecolor="0.9" if ratio else "none")
            axes.spines[:].set_visible(False)
        for axes, text in zip(drawn[:: plan.span], plan.captions[row], strict=True):
            axes.set_xlabel(text, x=plan.middle, labelpad=2)
    for axes, texts in zip(figure.axes[:: plan.span], plan.heads, strict=False):
        _draw_head(axes, plan.middle, *texts)
    if legend:
        _draw_legend(figure, legend)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the cells stay as they are
    for axes, panel in zip(figure.axes, chain(*rows), strict=True):
        _center_image(axes, panel)
    return figure


def _height(text: str, size: float = FONT_SIZE) -> float:
    return (len(text.splitlines()) * 1.32 * size - 2 * bool(text)) / 72


def _center_image(axes: Axes, panel: Panel) -> None:
    """Let axes show all of their image, in its own proportions, and what is beside it."""
    height, width, _ = panel.image.shape
    box = axes.get_window_extent()
    scale = max(width / box.width, height / box.height) / 2
    x, y = (width - 1) / 2, (height - 1) / 2
    axes.set_xlim(x - scale * box.width, x + scale * box.width)
    axes.set_ylim(y + scale * box.height, y - scale * box.height)


def _draw_head(axes: Axes, middle: float, head: str, small: str) -> None:
    if not head:
        axes.set_title(small, x=middle, pad=3, fontsize=SMALL)
        return
    # The title makes the room for both: in the layout the small text would widen its column.
    axes.set_title(head, x=middle, pad=6 + 72 * _height(small, SMALL))
    below = axes.annotate(
        small, (middle, 1), (0, 3), "axes fraction", "offset points", ha="center", fontsize=SMALL
    )
    below.set_in_layout(False)


def _legend_columns(legend: Legend, width: float) -> int:
    longest = max((len(fit(name, width / 2 - LEGEND_PATCH)) for name, _ in legend), default=0)
    return max(min(letters(width) // (longest + letters(LEGEND_PATCH)), len(legend)), 1)


def _draw_legend(figure: Figure, legend: Legend) -> None:
    width = figure.get_figwidth()
    patches = []
    for name, (red, green, blue) in legend:
        color, label = (red / 255, green / 255, blue / 255), fit(name, width / 2 - LEGEND_PATCH)
        patches.append(Patch(facecolor=color, edgecolor="0.4", label=label))
    columns = _legend_columns(legend, width)
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
