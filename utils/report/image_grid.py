"""Pictures for a page: grids of images with captions, and what every figure shares.

Figures are `matplotlib.figure.Figure` objects without pyplot, so nothing needs a display. They are
made for `PAGE_WIDTH`: on a page of 165 mm their letters are about 7 points high.
"""

import dataclasses
import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
Color = Sequence[int]  # RGB in 0 to 255
WRONG_COLOR, RIGHT_COLOR = (220, 30, 30), (40, 40, 40)

# Names of runs and classes may hold a `$`, which must not start a formula. The salt makes the ids
# in SVG files the same every time.
STYLE = {
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
) -> list[tuple[str, Color]]:
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
    """The sizes of a grid, and its texts in lines that fit. See `image_grid` for the arguments.

    Attributes:
        places: for each panel of a row its column; between pairs there is a narrow, empty one.
        columns: relative widths of the columns.
        ratios: height / width of each row's boxes.
        width: of a panel, in inches.
        size: width and height of the figure.
    """

    def __init__(self, rows, heads, legend, ratio, pairs) -> None:
        self.span, self.texts = 1 + pairs, (rows, heads, legend)
        self.places = [n + n // 2 if pairs else n for n in range(max(map(len, rows)))]
        self.columns = [PAIR_GAP if pairs and n % 3 == 2 else 1 for n in range(self.places[-1] + 1)]
        self.ratios = [ratio or min(max(MIN_RATIO, *map(_ratio, row)), MAX_RATIO) for row in rows]
        self.fit_texts(PAGE_WIDTH / sum(self.columns) - 2 * PAD)
        images = self.width * sum(self.ratios)
        if self.size[1] > PAGE_HEIGHT:  # what is too high gets narrower
            scale = (PAGE_HEIGHT - self.size[1]) / images + 1
            self.fit_texts(self.width * max(scale, MIN_SCALE))
        self.middle = 1 + PAD / self.width if pairs else 0.5  # of a head, in its first panel

    def fit_texts(self, width: float) -> None:
        """Break the texts for panels of a width."""
        rows, heads, legend = self.texts
        room, total = self.span * width, sum(self.columns) * (width + 2 * PAD)
        self.heads = [(fit(head, room, 4), fit(small, room, 4, SMALL)) for head, small in heads]
        self.captions = [[fit(p.caption, room, 3) for p in row[:: self.span]] for row in rows]
        height = max((_height(a) + _height(b, SMALL) + 0.05 for a, b in self.heads), default=0)
        height += sum(max(map(_height, row)) + 3 * PAD for row in self.captions)
        height += math.ceil(len(legend) / _legend_columns(legend, total)) * 1.6 * FONT_SIZE / 72
        self.width, self.size = width, (total, height + width * sum(self.ratios))


@styled
def image_grid(
    rows: Sequence[Sequence[Panel]],
    heads: Sequence[tuple[str, str]] = (),
    legend: Sequence[tuple[str, Color]] = (),
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
    plan = _Plan(rows, heads, legend, ratio, pairs)
    figure = Figure(plan.size, layout="constrained")
    figure.get_layout_engine().set(w_pad=PAD, h_pad=PAD, wspace=0, hspace=0)
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
    for axes in figure.axes:
        _center_image(axes)
    return figure


def _ratio(panel: Panel) -> float:
    return panel.image.shape[0] / panel.image.shape[1]


def _height(text: str, size: float = FONT_SIZE) -> float:
    return (len(text.splitlines()) * 1.32 * size - 2 * bool(text)) / 72


def _center_image(axes: Axes) -> None:
    """Let axes show all of their image, in its own proportions, and what is beside it."""
    height, width = axes.images[0].get_array().shape[:2]
    box = axes.get_window_extent()
    scale = max(width / box.width, height / box.height)
    x, y = scale * box.width / 2, scale * box.height / 2
    axes.set_xlim((width - 1) / 2 - x, (width - 1) / 2 + x)
    axes.set_ylim((height - 1) / 2 + y, (height - 1) / 2 - y)


def _draw_head(axes: Axes, middle: float, head: str, small: str) -> None:
    if not head:
        axes.set_title(small, x=middle, pad=3, fontsize=SMALL)
        return
    # The title makes the room for both: in the layout the small text would widen its column.
    axes.set_title(head, x=middle, pad=6 + 72 * _height(small, SMALL))
    place, offset = {"xycoords": "axes fraction"}, {"textcoords": "offset points", "ha": "center"}
    small_text = axes.annotate(small, (middle, 1), (0, 3), **place, **offset, fontsize=SMALL)
    small_text.set_in_layout(False)


def _legend_columns(legend: Sequence[tuple[str, Color]], width: float) -> int:
    longest = max((len(name) for name, _ in legend), default=0)
    longest = min(longest, letters(width / 2 - LEGEND_PATCH)) + letters(LEGEND_PATCH)
    return max(min(letters(width) // longest, len(legend)), 1)


def _draw_legend(figure: Figure, legend: Sequence[tuple[str, Color]]) -> None:
    width = figure.get_figwidth()
    patches = [
        Patch(
            facecolor=np.divide(color, 255),
            edgecolor="0.4",
            label=fit(name, width / 2 - LEGEND_PATCH),
        )
        for name, color in legend
    ]
    columns = _legend_columns(legend, width)
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
