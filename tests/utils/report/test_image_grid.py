"""Pictures, read back from the figures: what is drawn where, and that nothing overlaps."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox
from PIL import Image

from datasets.voc import CLASS_NAMES, PALETTE
from utils.report.image_grid import (
    PAGE_HEIGHT,
    PAGE_WIDTH,
    STYLE,
    Panel,
    class_legend,
    color_map,
    error_map,
    fit,
    image_grid,
    photo,
    save_figure,
)

LONG = "voc_deeplabv3plus_resnet50_focal_output_stride_8_with_very_many_words_and_a_$seed$_of_17"


def check_layout(figure: Figure) -> None:
    """Every text lies inside the figure, and no two texts, nor a text and an image, overlap."""
    figure.draw_without_rendering()
    unseen = set()  # labels of ticks beyond the ends of an axis exist, but are not drawn
    for axes in (axes for axes in figure.axes if axes.axison):
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            pairs = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
            low, high = min(low, high), max(low, high)
            unseen |= {label for place, label in pairs if not low <= place <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    texts = [text for text in texts if text not in unseen]
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


def width_of(text):
    """Inches, as matplotlib measures them."""
    return max(
        text_to_path.get_text_width_height_descent(line, FontProperties(size=9), False)[0] / 72
        for line in text.splitlines()
    )


def test_shortened_text_keeps_its_ends_and_fits():
    assert fit("short", 1) == "short"
    short = fit(LONG, 2)
    assert width_of(short) <= 2 < width_of(LONG)
    assert short.startswith("voc_deep") and short.endswith("_of_17") and "\u2026" in short


def test_broken_text_fits_and_keeps_every_letter():
    text = fit(LONG + "\nmIoU 66.12", 2, lines=9)
    assert text.replace("\n", "") == LONG + "mIoU 66.12"
    assert text.splitlines()[-1] == "mIoU 66.12" and width_of(text) <= 2
    assert fit("two words_joined", 0.8, lines=9) == "two words_\njoined"


def test_too_many_lines_lose_their_middle_but_not_the_next_paragraph():
    text = fit(LONG + "\nmIoU 66.12", 1, lines=3)
    assert len(text.splitlines()) == 4 and text.splitlines()[-1] == "mIoU 66.12"
    assert width_of(text) <= 1


def drawn_box(axes):
    """Where an image is drawn: its own corners, in the figure's dots."""
    height, width, _ = axes.images[0].get_array().shape
    return Bbox(axes.transData.transform([(-0.5, height - 0.5), (width - 0.5, -0.5)]))


def test_grid_shows_each_image_in_its_proportions():
    panels = [random_panel(*size) for size in ((30, 40), (90, 30), (20, 200))]
    for ratio in (None, 3 / 4):
        figure = image_grid([panels], ratio=ratio)
        figure.draw_without_rendering()
        assert len(figure.axes) == 3
        for axes, panel in zip(figure.axes, panels, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), panel.image)
            box, cell = drawn_box(axes), axes.get_window_extent()
            height, width, _ = panel.image.shape
            assert box.height / box.width == pytest.approx(height / width, rel=0.01)
            assert cell.x0 - 0.1 <= box.x0 and box.x1 <= cell.x1 + 0.1  # nothing is cut off
            assert cell.y0 - 0.1 <= box.y0 and box.y1 <= cell.y1 + 0.1


def test_boxes_of_one_ratio_have_one_size_and_are_grey_beside_the_image():
    panels = [random_panel(*size, "name") for size in ((30, 40), (30, 20), (10, 40), (30, 40))]
    figure = image_grid([panels] * 4, ratio=3 / 4, pairs=True)
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):
        assert box.height / box.width == pytest.approx(3 / 4, rel=0.05)
        assert (box.width, box.height) == pytest.approx((boxes[0].width, boxes[0].height), abs=0.5)
        assert axes.get_facecolor()[:3] == (0.9, 0.9, 0.9)


def test_rows_stand_close_together():
    figure = image_grid([[random_panel(375, 500, "a name")] * 10] * 4, ratio=3 / 4, pairs=True)
    figure.draw_without_rendering()
    for upper, lower in zip(figure.axes[:30], figure.axes[10:], strict=True):
        gap = upper.get_window_extent().y0 - lower.get_window_extent().y1
        assert 0 < gap / figure.dpi < 0.35  # inches, with the line of text between them


def test_only_photos_are_smoothed():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    figure = image_grid([[photo(image), color_map(image[0])]])
    assert [axes.images[0].get_interpolation() for axes in figure.axes] == [
        "antialiased",
        "nearest",
    ]


@pytest.mark.parametrize("columns", [2, 7])
@pytest.mark.parametrize("size", [(300, 40), (20, 200), (1, 1)])
def test_grid_with_long_texts_does_not_overlap(columns, size):
    rows = [[random_panel(*size, LONG)] * columns] * 2
    heads = [(f"{LONG}\nmIoU 66.12", LONG)] * columns
    legend = [(f"{name}_{LONG}", color) for name, color in class_legend(CLASS_NAMES, [])]
    legend += [(name, (0, 0, 9)) for name in (*CLASS_NAMES, LONG)]
    check_layout(image_grid(rows, heads, legend))


def test_grid_of_60_pairs_does_not_overlap():
    rows = [[random_panel(60, 80, LONG)] * 10] * 12
    check_layout(image_grid(rows, [("", "image | ground truth")] * 5, ratio=3 / 4, pairs=True))


def test_high_grid_is_made_to_fit_a_page_without_white_between_its_columns():
    figure = image_grid([[random_panel(60, 60, "a")] * 4] * 6, [("head", "small")] * 4)
    assert figure.get_figheight() == pytest.approx(PAGE_HEIGHT, abs=0.1)
    figure.draw_without_rendering()
    left, right = (drawn_box(axes) for axes in figure.axes[:2])
    assert 0 < (right.x0 - left.x1) / figure.dpi < 0.15
    assert image_grid([[random_panel(60, 60, "a")] * 4]).get_figwidth() == PAGE_WIDTH


def test_caption_and_head_of_a_pair_are_centred_on_it():
    row = [random_panel(9, 9, "pair"), random_panel(9, 9)] * 2
    figure = image_grid([row], [("", "image | ground truth")] * 2, pairs=True)
    figure.draw_without_rendering()
    assert [axes.get_xlabel() for axes in figure.axes] == ["pair", "", "pair", ""]
    for first, second in (figure.axes[:2], figure.axes[2:]):
        left, right = first.get_window_extent(), second.get_window_extent()
        caption = first.xaxis.label.get_window_extent()
        head = first.title.get_window_extent()
        assert first.get_title() == "image | ground truth" and second.get_title() == ""
        for text in (caption, head):
            assert (text.x0 + text.x1) / 2 == pytest.approx((left.x0 + right.x1) / 2, abs=3)
        assert caption.y1 < left.y0 and head.y0 > left.y1


def test_legend_names_the_classes_shown_in_vocs_colours():
    legend = class_legend(CLASS_NAMES, [torch.tensor([[0, 15]]), torch.tensor([[255, 15]])])
    assert legend == [
        ("background", [0, 0, 0]),
        ("person", [192, 128, 128]),
        ("void (not scored)", [224, 224, 192]),
    ]
    figure = image_grid([[random_panel(9, 9)]], legend=legend)
    (drawn,) = figure.legends
    assert [text.get_text() for text in drawn.get_texts()] == [
        "background",
        "person",
        "void (not scored)",
    ]
    colors = [patch.get_facecolor()[:3] for patch in drawn.get_patches()]
    np.testing.assert_allclose(np.array(colors) * 255, PALETTE[[0, 15, 255]])


def test_error_map_shows_wrong_void_and_right_pixels():
    image = torch.full((3, 1, 4), 90, dtype=torch.uint8)
    target = torch.tensor([[1, 1, 255, 0]], dtype=torch.uint8)
    pred = torch.tensor([[1, 2, 2, 0]], dtype=torch.uint8)
    assert error_map(image, target, pred).image.tolist() == [
        [[30, 30, 30], [220, 30, 30], [224, 224, 192], [30, 30, 30]]
    ]


def test_a_dollar_in_a_name_is_no_formula():
    figure = image_grid([[random_panel(9, 9, "a_$x^2$_b")]])
    assert figure.axes[0].xaxis.label.get_parse_math() is False


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, file_format):
    for name in "ab":
        figure = image_grid(
            [[random_panel(9, 9, "caption")]], [("head", "small")], [("cat", (9, 9, 9))]
        )
        save_figure(figure, tmp_path / f"{name}.{file_format}", 50)
    one, other = ((tmp_path / f"{name}.{file_format}").read_bytes() for name in "ab")
    assert one == other and len(one) > 500
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b"]


def test_png_has_the_size_that_dpi_says(tmp_path):
    figure = image_grid([[random_panel(10, 10)]])
    save_figure(figure, tmp_path / "a.png", 50)
    width, height = Image.open(tmp_path / "a.png").size
    assert width == 50 * PAGE_WIDTH and abs(height - 50 * figure.get_figheight()) <= 1


def test_drawing_leaves_matplotlibs_settings_alone():
    before = {name: matplotlib.rcParams[name] for name in STYLE}
    image_grid([[random_panel(9, 9, "x")]])
    assert {name: matplotlib.rcParams[name] for name in STYLE} == before != STYLE
