"""Pictures, read back from the figures: what is drawn where, and that nothing overlaps."""

import warnings
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from datasets.colours import PALETTE, default_colours
from datasets.voc import CLASS_NAMES
from tests.conftest import run_python
from tests.utils.common.test_fonts import OTHER
from utils.common.fonts import dejavu
from utils.report import image_grid as image_grid_module
from utils.report.image_grid import (
    MAX_HEIGHT,
    PAGE_WIDTH,
    STYLE,
    Panel,
    class_legend,
    color_map,
    drawing,
    error_map,
    fit,
    image_grid,
    photo,
    save_figure,
    width_of,
)

LONG = "voc_deeplabv3plus_resnet50_focal_output_stride_8_with_very_many_words_and_a_$seed$_of_17"
VOC = PALETTE[:21]


def check_layout(figure: Figure, smallest: float = 7) -> None:
    """The figure fits a page, and its texts lie inside it, can be read, and overlap with nothing.

    What texts may overlap with is other texts and images.
    """
    with drawing():
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert width <= PAGE_WIDTH + 0.01 and height <= MAX_HEIGHT + 0.01
    unseen = set()  # labels of ticks beyond the ends of an axis exist, but are not drawn
    for axes in figure.axes:
        unseen |= set() if axes.axison else {*axes.get_xticklabels(), *axes.get_yticklabels()}
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            pairs = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
            low, high = min(low, high), max(low, high)
            unseen |= {label for place, label in pairs if not low <= place <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    texts = [text for text in texts if text not in unseen]
    assert all(text.get_fontsize() >= smallest for text in texts)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    page = figure.bbox
    for text, box in boxes:
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, text
    images = [("image", axes.get_window_extent()) for axes in figure.axes if axes.images]
    for (one, box), (other, other_box) in combinations([*boxes, *images], 2):
        if one != "image" or other != "image":
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width <= 1 or height <= 1, (one, other)


def random_panel(height, width, caption=""):
    rng = np.random.default_rng(height * width)
    return Panel(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), caption)


def drawn_box(axes):
    """Where the image is drawn: its own corners, in inches."""
    x0, x1, y0, y1 = axes.images[0].get_extent()
    corners = axes.transData.transform([(x0, y0), (x1, y1)])
    return Bbox(corners / axes.figure.dpi)


def test_shortened_text_keeps_its_ends_and_fits():
    with drawing():
        short = fit(LONG, 2)
        assert fit("short", 1) == "short"
        assert 1.9 < width_of(short) <= 2 < width_of(LONG)
    assert short.startswith("voc_deep") and short.endswith("_of_17") and "\u2026" in short


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        (((30, 40), (90, 30), (20, 200)), 3 / 4),  # a portrait does not make its row higher
        (((30, 60), (20, 60)), 1 / 2),
        (((2, 300),), 1 / 5),
    ],
)
def test_grid_shows_each_image_in_its_proportions_in_boxes_of_one_size(sizes, ratio):
    panels = [random_panel(*size) for size in sizes]
    figure = image_grid([panels])
    figure.draw_without_rendering()
    for axes, panel, (height, width) in zip(figure.axes, panels, sizes, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), panel.image)
        cell, box = axes.get_window_extent(), drawn_box(axes)
        assert cell.height / cell.width == pytest.approx(ratio, rel=0.02)
        assert box.height / box.width == pytest.approx(height / width, rel=0.01)
        cell = [value / figure.dpi for value in cell.extents]
        gaps = np.abs(np.array(cell) - box.extents)
        assert max(gaps[:2] - gaps[2:]) < 0.01 and min(gaps[0], gaps[1]) < 0.01  # in the middle


def test_panels_stand_24_pixels_apart_in_300_dpi():
    row = [random_panel(135, 364, "pair") for _ in range(5)]
    figure = image_grid([row, row], ["image | ground truth"], [("void", (9, 9, 9))])
    check_layout(figure)
    one, two, below = (drawn_box(figure.axes[number]) for number in (0, 1, 5))
    assert 300 * (two.x0 - one.x1) == pytest.approx(24, abs=1)
    assert 300 * one.width == pytest.approx(364, abs=2)  # a pair keeps its pixels
    assert 0.1 < one.y0 - below.y1 < 0.3  # inches, with a line of text between them


def test_photos_are_smoothed_and_maps_keep_their_colours():
    image = torch.zeros(3, 5, 4, dtype=torch.uint8)
    image[0] = 200
    figure = image_grid([[photo(image), color_map(torch.full((5, 4), 3), default_colours("abcd"))]])
    one, other = (axes.images[0] for axes in figure.axes)
    assert (one.get_interpolation(), other.get_interpolation()) == ("auto", "nearest")
    assert one.get_array()[0, 0].tolist() == [200, 0, 0]
    assert other.get_array()[0, 0].tolist() == default_colours("abcd")[3].tolist()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 2), (5, 7)])
def test_nothing_overlaps_on_a_page_that_holds_all(rows, columns):
    caption = f"{LONG}, 0.123"
    grid = [[random_panel(90, 120, caption) for _ in range(columns)] for _ in range(rows)]
    grid[-1][-1] = random_panel(120, 90, "portrait")
    heads = [f"(a) {LONG}\nmIoU 12.3", "(b) ground truth"][:columns]
    legend = [(LONG, (9, 9, 9))] + [(f"class {number}", (9, 9, 9)) for number in range(20)]
    check_layout(image_grid(grid, heads, legend))


def test_a_grid_is_as_high_as_it_has_to_be():
    one, two, many = (
        image_grid([[random_panel(60, 80, "a")] * 4] * rows).get_figheight() for rows in (1, 2, 9)
    )
    assert 1.2 < one < 1.6 and 2.5 < two < 3.0 and many == pytest.approx(MAX_HEIGHT)


def test_legend_names_the_classes_shown_in_their_colours():
    maps = [torch.tensor([[0, 15]]), torch.tensor([[255, 15]])]
    legend = class_legend(CLASS_NAMES, VOC, maps)
    assert legend == [
        ("background", [0, 0, 0]), ("person", [192, 128, 128]), ("void", [224, 224, 192]),
    ]  # fmt: skip
    (drawn,) = image_grid([[random_panel(9, 9)]], legend=legend).legends
    assert [text.get_text() for text in drawn.get_texts()] == ["background", "person", "void"]
    colors = [patch.get_facecolor()[:3] for patch in drawn.get_patches()]
    np.testing.assert_allclose(np.array(colors) * 255, PALETTE[[0, 15, 255]])
    streets = default_colours(["sky", "road"])
    assert class_legend(["sky", "road"], streets, [torch.tensor(1)]) == [
        ("road", streets[1].tolist())
    ]


def test_error_map_shows_wrong_void_and_right_pixels():
    image = torch.full((3, 1, 4), 100, dtype=torch.uint8)
    target = torch.tensor([[1, 1, 255, 0]], dtype=torch.uint8)
    pred = torch.tensor([[1, 2, 2, 0]], dtype=torch.uint8)
    assert error_map(image, target, pred).image.tolist() == [
        [[100, 100, 100], [255, 0, 255], [224, 224, 192], [100, 100, 100]]
    ]
    assert [255, 0, 255] not in PALETTE.tolist()


def test_a_dollar_in_a_name_is_no_formula():
    figure = image_grid([[random_panel(9, 9, "a_$x^2$_b")]])
    assert figure.axes[0].xaxis.label.get_parse_math() is False


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes_whatever_matplotlibrc_says(tmp_path, file_format):
    wild = {
        "text.usetex": True, "font.family": "serif", "savefig.bbox": "tight", "lines.linewidth": 9,
        "figure.facecolor": "red", "axes.grid": True, "image.cmap": "jet", "pdf.fonttype": 42,
    }  # fmt: skip
    for name, settings in (("a", {}), ("b", wild)):
        with matplotlib.rc_context(settings):
            before = {name: matplotlib.rcParams[name] for name in wild}
            figure = image_grid([[random_panel(9, 9, "caption")]], ["head"], [("cat", (9, 9, 9))])
            save_figure(figure, tmp_path / f"{name}.{file_format}", 50)
            assert all(matplotlib.rcParams[name] == before[name] for name in wild)
    one, other = ((tmp_path / f"{name}.{file_format}").read_bytes() for name in "ab")
    assert one == other and len(one) > 500
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.slow
def test_a_notebooks_backend_does_not_stop_the_figures():
    code = "import utils.report.image_grid, visualize; print('there')"
    ended = run_python(code, MPLBACKEND="module://matplotlib_inline.backend_inline")
    assert ended.stdout.strip() == "there", ended.stderr


def test_letters_that_the_usual_font_has_not_come_from_another_without_a_warning(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(image_grid_module, "find_fonts", lambda texts: [dejavu(), OTHER])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = image_grid([[random_panel(9, 9, "Ⓐ 天")]])  # which neither of both has
        save_figure(figure, tmp_path / "a.pdf", 50)
    assert figure.axes[0].xaxis.label.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]


def test_png_has_the_size_that_dpi_says(tmp_path):
    figure = image_grid([[random_panel(10, 10)]])
    save_figure(figure, tmp_path / "a.png", 300)
    assert Image.open(tmp_path / "a.png").width == 1948  # 165 mm
    assert STYLE["font.size"] == 8
