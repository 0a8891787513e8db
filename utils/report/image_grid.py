"""Grids of pictures, and what every figure shares.

Figures are `matplotlib.figure.Figure` objects without pyplot, so nothing needs a display. They are
as wide as the text of a page, and at most 80 % of a page high: printed as they are, their letters
are 7 points high or more.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path

from datasets.base import IGNORE_INDEX
from datasets.colours import full_palette
from utils.common.files import write_atomically
from utils.common.fonts import find_fonts

PAGE_WIDTH, MAX_HEIGHT = 165 / 25.4, 7.4  # inches
PANEL_GAP = 24 / 300  # inches between panels
MIN_RATIO, MAX_RATIO = 1 / 5, 3 / 4  # height / width of a panel's box
FONT_SIZE, SMALL = 8, 7  # points
LEGEND_COLUMNS, LEGEND_NAME = 4, 1.1  # number, and inches
WRONG_COLOR, RIGHT_COLOR = (255, 0, 255), (120, 120, 120)  # no class of VOC is magenta

# Names of runs and classes may hold a `$`, which must not start a formula. The salt makes the ids
# in SVG files the same every time.
STYLE: dict[str, Any] = {
    "font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": FONT_SIZE,
    "figure.titlesize": FONT_SIZE, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False, "svg.hashsalt": "deeplab",
}  # fmt: skip


@dataclasses.dataclass
class Panel:
    """One image of a grid.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        caption: below the image, one line.
        is_photo: smoothed when scaled; colour maps are not, since mixed colours mean other classes.
    """

    image: np.ndarray
    caption: str = ""
    is_photo: bool = False


Legend = list[tuple[str, Sequence[int]]]  # names, and colours: RGB in 0 to 255


@contextlib.contextmanager
def drawing(texts: Iterable[str] = ()) -> Iterator[None]:
    """Where all drawing is done: in `STYLE`, and nothing of a user's matplotlibrc.

    Args:
        texts: what may hold letters that DejaVu Sans has not: an installed font has them.
    """
    families = ["DejaVu Sans"]
    for path in find_fonts(texts)[1:]:
        fontManager.addfont(path)
        families.append(FontProperties(fname=path).get_name())
    with matplotlib.style.context(["default", {**STYLE, "font.family": families}]):
        with warnings.catch_warnings():  # a line has said which letters no font has
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            yield


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure in the format that the suffix names; the same figure gives the same bytes."""
    file_format = path.suffix.removeprefix(".")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with drawing(), write_atomically(path) as partial:
        figure.savefig(partial, format=file_format, dpi=dpi, metadata=dates.get(file_format))


def photo(image: torch.Tensor, caption: str = "") -> Panel:
    """A panel of an image: uint8 (3, H, W)."""
    return Panel(image.permute(1, 2, 0).numpy(), caption, is_photo=True)


def color_map(target: torch.Tensor, colours: np.ndarray, caption: str = "") -> Panel:
    """A panel of a target or prediction, integer (H, W), in the classes' colours, uint8 (C, 3)."""
    return Panel(full_palette(colours)[target.numpy()], caption)


def error_map(
    image: torch.Tensor, target: torch.Tensor, pred: torch.Tensor, caption: str = ""
) -> Panel:
    """Where a prediction (H, W) is wrong; the right pixels are those of a grey image."""
    grey = (40 + 0.6 * image.float().mean(0)).byte()
    pixels = grey[..., None].expand(-1, -1, 3).numpy().copy()
    pixels[(pred != target).numpy()] = WRONG_COLOR
    void = (target == IGNORE_INDEX).numpy()
    pixels[void] = full_palette(np.empty((0, 3), np.uint8))[IGNORE_INDEX]
    return Panel(pixels, caption)


def class_legend(
    class_names: Sequence[str], colours: np.ndarray, maps: Iterable[torch.Tensor]
) -> Legend:
    """The legend of the classes that some targets and predictions show, void last."""
    shown = sorted({int(value) for index_map in maps for value in index_map.unique()})
    names, palette = {**dict(enumerate(class_names)), IGNORE_INDEX: "void"}, full_palette(colours)
    return [(names[value], palette[value].tolist()) for value in shown]


def width_of(text: str, size: float = FONT_SIZE) -> float:
    """The width of a line in inches; call it inside `drawing`."""
    font = FontProperties(size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def fit(text: str, width: float, size: float = FONT_SIZE) -> str:
    """A line that is at most `width` inches wide: a longer one loses its middle."""
    short, kept = text, len(text)
    while width_of(short, size) > width and kept > 2:
        kept -= 1
        short = text[: (kept + 1) // 2] + "\u2026" + text[len(text) - kept // 2 :]
    return short


def image_grid(
    rows: Sequence[Sequence[Panel]], heads: Sequence[str] = (), legend: Legend | None = None
) -> Figure:
    """Images in rows, each in its own proportions in the middle of a box.

    All boxes of a row have the proportions of its highest image, but are never higher than 3:4.

    Args:
        rows: the panels. A row may be shorter than the others.
        heads: above the columns, one or two lines each; several are lettered, for the caption.
        legend: names and colours, below all.
    """
    captions = [panel.caption for row in rows for panel in row]
    with drawing([*captions, *heads, *(name for name, _ in legend or [])]):
        columns = max(map(len, rows))
        width = PAGE_WIDTH / columns - PANEL_GAP
        highest = [max(len(panel.image) / panel.image.shape[1] for panel in row) for row in rows]
        ratios = np.clip(highest, MIN_RATIO, MAX_RATIO)
        layout = ConstrainedLayoutEngine(w_pad=PANEL_GAP / 2, h_pad=0.03, wspace=0, hspace=0)
        figure = Figure((PAGE_WIDTH, MAX_HEIGHT), layout=layout)
        grid = figure.add_gridspec(len(rows), columns, height_ratios=ratios)
        for row, (panels, ratio) in enumerate(zip(rows, ratios, strict=True)):
            for column, panel in enumerate(panels):
                axes = figure.add_subplot(grid[row, column], box_aspect=ratio, frame_on=False)
                axes.imshow(panel.image, interpolation=None if panel.is_photo else "nearest")
                axes.set(xticks=[], yticks=[], adjustable="datalim")  # in the middle of its box
                axes.set_xlabel(fit(panel.caption, width, SMALL), fontsize=SMALL, labelpad=2)
        for letter, head, axes in zip(ascii_lowercase, heads, figure.axes, strict=False):
            lines = (f"({letter}) {head}" if len(heads) > 1 else head).splitlines()
            axes.set_title("\n".join(fit(line, width) for line in lines), pad=3)
        if legend:
            _draw_legend(figure, legend)
        for _ in range(2):  # as long as boxes are narrower than their columns, texts take no height
            figure.draw_without_rendering()
            firsts = [figure.axes[sum(map(len, rows[:row]))] for row in range(len(rows))]
            share = sum(axes.get_position(original=True).height for axes in firsts)
            height = (1 - share) * figure.get_figheight() + width * ratios.sum()
            figure.set_figheight(min(height, MAX_HEIGHT))
    return figure


def _draw_legend(figure: Figure, legend: Legend) -> None:
    patches = [
        Patch(
            fc="#{:02x}{:02x}{:02x}".format(*color), ec="0.4", lw=0.5, label=fit(name, LEGEND_NAME)
        )
        for name, color in legend
    ]
    columns = min(LEGEND_COLUMNS, len(patches))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)
