"""Pictures for a page: grids of images with captions, and what every figure shares.

Figures are `matplotlib.figure.Figure` objects without pyplot, so nothing needs a display. They are
made for `PAGE_WIDTH`: on a page of 165 mm their letters are about 7 points high.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path

from datasets.base import IGNORE_INDEX
from datasets.voc import PALETTE, decode_target
from utils.common.files import write_atomically

PAGE_WIDTH, PAGE_HEIGHT = 8.0, 10.5  # inches
MIN_SCALE = 0.6  # of the images of a grid that is higher than a page
FONT_SIZE = 9  # points
LINE_HEIGHT = 1.3 * FONT_SIZE / 72  # inches
MARGIN, GAP, GROUP_GAP = 0.08, 0.04, 0.14  # inches: page border, between images, between groups
MAX_RATIO = 1.5  # height / width of a panel; taller images are drawn narrower
WRONG_COLOR = (220, 30, 30)

# Names of runs and classes may hold a `$`, which must not start a formula. The salt makes the ids
# in SVG files the same every time.
STYLE = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "legend.fontsize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "svg.hashsalt": "deeplab",
}


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
    """A panel of where a prediction is wrong.

    Args:
        image: uint8 (3, H, W).
        target: integer (H, W), classes and 255.
        pred: integer (H, W), classes.
        caption: below it.

    Returns:
        Wrong pixels red, void ones cream, the right ones a dark grey image.
    """
    colors = np.repeat(image.float().mean(0)[..., None].numpy() / 3, 3, axis=2).astype(np.uint8)
    is_void = (target == IGNORE_INDEX).numpy()
    colors[(pred != target).numpy()] = WRONG_COLOR
    colors[is_void] = PALETTE[IGNORE_INDEX]
    return Panel(colors, caption)


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Width of one line of text in inches."""
    properties = FontProperties(size=size)
    return text_to_path.get_text_width_height_descent(text, properties, ismath=False)[0] / 72


def shorten(text: str, width: float, size: float = FONT_SIZE) -> str:
    """Cut out the middle of a text that is wider than `width` inches."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: (kept + 1) // 2] + "\N{HORIZONTAL ELLIPSIS}" + text[-(kept // 2) :]
        if text_width(short, size) <= width:
            return short
    return text[:1]


def wrap(text: str, width: float, max_lines: int = 4, size: float = FONT_SIZE) -> str:
    """Break each line of a text into at most `max_lines` of at most `width` inches.

    It is broken at spaces, `_`, `-` and `/`. A piece that is wider than a line, and what would need
    too many lines, lose their middle.
    """
    result = []
    for paragraph in text.splitlines():
        lines, line = [], ""
        for piece in _pieces(paragraph):
            if line and text_width((line + piece).rstrip(), size) > width:
                lines.append(line)
                line = ""
            line += piece
        lines.append(line)
        lines[max_lines - 1 :] = ["".join(lines[max_lines - 1 :])] if lines[max_lines - 1 :] else []
        result += [shorten(line.rstrip(), width, size) for line in lines]
    return "\n".join(result)


def _pieces(text: str) -> Iterable[str]:
    piece = ""
    for character in text:
        piece += character
        if character in " _-/":
            yield piece
            piece = ""
    yield piece


@styled
def image_grid(
    rows: Sequence[Sequence[Panel]],
    heads: Sequence[str] = (),
    legend: Sequence[tuple[str, Sequence[int]]] = (),
    group: int = 1,
    columns: int | None = None,
) -> Figure:
    """Images in rows, each in its own proportions.

    Args:
        rows: the panels. A row may be shorter than the others.
        heads: one text above each column.
        legend: (name, RGB in 0 to 255), below all.
        group: so many neighbours belong together: they stand closer, and the caption of the first
            is centred below all of them.
        columns: images per row that there is room for; by default as many as the longest row has.
    """
    columns = columns or max(map(len, rows))
    groups = math.ceil(columns / group)
    free = PAGE_WIDTH - 2 * MARGIN - (columns - groups) * GAP - (groups - 1) * GROUP_GAP
    width = free / columns
    group_width = group * width + (group - 1) * GAP
    lefts = [
        MARGIN + (number // group) * (group_width + GROUP_GAP) + (number % group) * (width + GAP)
        for number in range(columns)
    ]
    heads = [wrap(head, width) for head in heads]
    captions = [
        [wrap(panel.caption, group_width, max_lines=3) for panel in row[::group]] for row in rows
    ]
    heights = [min(max(map(_ratio, row)), MAX_RATIO) * width for row in rows]
    legend_columns, legend_height = _legend_size([name for name, _ in legend])

    height = 2 * MARGIN + _text_height(heads) + legend_height
    height += sum(_text_height(row) + GROUP_GAP for row in captions)
    scale = min(max((PAGE_HEIGHT - height) / sum(heights), MIN_SCALE), 1)
    heights = [scale * row_height for row_height in heights]
    height += sum(heights)
    figure = Figure((PAGE_WIDTH, height))
    top = height - MARGIN - _text_height(heads)
    for left, head in zip(lefts, heads, strict=False):
        _text(figure, left + width / 2, top + 0.04, head, "bottom")
    for row, texts, row_height in zip(rows, captions, heights, strict=True):
        top -= row_height
        for left, panel in zip(lefts, row, strict=False):
            _draw_panel(figure, panel, (left, top, width, row_height))
        for left, text in zip(lefts[::group], texts, strict=False):
            _text(figure, left + group_width / 2, top - 0.03, text, "top")
        top -= _text_height(texts) + GROUP_GAP
    if legend:
        _draw_legend(figure, legend, legend_columns)
    return figure


def _ratio(panel: Panel) -> float:
    return panel.image.shape[0] / panel.image.shape[1]


def _text_height(texts: Sequence[str]) -> float:
    """Inches for the highest of some texts that stand side by side."""
    lines = max((len(text.splitlines()) for text in texts), default=0)
    return lines * LINE_HEIGHT + 0.04 * (lines > 0)


def _text(figure: Figure, x: float, y: float, text: str, vertical: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, ha="center", va=vertical, linespacing=1.15)


def _draw_panel(figure: Figure, panel: Panel, box: tuple[float, float, float, float]) -> None:
    """Draw an image in the middle of a box (left, bottom, width, height) in inches."""
    page_width, page_height = figure.get_size_inches()
    left, bottom, width, height = box
    axes = figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )
    axes.imshow(panel.image, interpolation="antialiased" if panel.is_photo else "nearest")
    axes.set_anchor("S")  # on its caption
    axes.set_axis_off()


def _legend_size(names: Sequence[str]) -> tuple[int, float]:
    """Columns and height in inches of the legend below a figure."""
    if not names:
        return 0, 0.0
    widest = max(text_width(_legend_name(name)) for name in names) + 0.55
    columns = max(min(int((PAGE_WIDTH - 2 * MARGIN) / widest), len(names)), 1)
    return columns, math.ceil(len(names) / columns) * 1.55 * FONT_SIZE / 72 + 0.15


def _legend_name(name: str) -> str:
    return shorten(name, PAGE_WIDTH / 3)


def _draw_legend(figure: Figure, legend: Sequence[tuple[str, Sequence[int]]], columns: int) -> None:
    handles = [
        Patch(facecolor=np.asarray(color) / 255, edgecolor="0.4", label=_legend_name(name))
        for name, color in legend
    ]
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)


def class_legend(
    class_names: Sequence[str], maps: Iterable[torch.Tensor]
) -> list[tuple[str, Sequence[int]]]:
    """The legend of the classes that some targets and predictions show, void last."""
    shown = sorted({int(value) for index_map in maps for value in index_map.unique()})
    names = dict(enumerate(class_names)) | {IGNORE_INDEX: "void"}
    return [(names[value], PALETTE[value].tolist()) for value in shown]
