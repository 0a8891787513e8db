"""Charts, read back from the figures and compared with the numbers that went in."""

import math

import numpy as np
import pytest
import torch

from datasets.class_counts import ClassStatistics
from datasets.colours import PALETTE
from datasets.voc import CLASS_NAMES
from tests.utils.report.test_image_grid import LONG, check_layout
from utils.common.errors import UserError
from utils.report.charts import plot_confusion, plot_distribution
from utils.report.heads import draw_heads


def statistics(pixel_counts, void=0, images=None):
    counts = torch.tensor(pixel_counts)
    return ClassStatistics(counts, void, torch.tensor(images or pixel_counts), counts)


def long_names(number):
    return [f"{LONG}_{index}" if index % 3 else f"c{index}" for index in range(number)]


def test_distribution_shows_shares_and_images_and_breaks_off_what_dwarfs_the_others():
    names, colours = ["background", "cat", "dog", "cow"], PALETTE[:4]
    counted = statistics([700, 50, 250, 0], 250, [20, 7, 9, 0])
    figure = plot_distribution("data", names, colours, counted)
    shares, images = figure.axes
    assert [tick.get_text() for tick in shares.get_yticklabels()] == ["cow", "cat", "dog", names[0]]
    assert [bar.get_width() for bar in shares.patches] == pytest.approx([0, 5, 25, 1.2 * 25])
    assert [text.get_text() for text in shares.texts] == [
        "no pixels", "5.00 %", "25.00 %", "70.00 %",
    ]  # fmt: skip
    assert [text.get_text() for text in images.texts] == ["0", "7", "9", "20"]
    colors = [bar.get_facecolor()[:3] for bar in shares.patches]
    np.testing.assert_allclose(np.array(colors) * 255, PALETTE[[3, 1, 2, 0]])
    assert shares.get_xscale() == "linear" and shares.get_xlim() == (0, pytest.approx(39))
    assert len(shares.lines) == 2  # the strokes across the bar that is broken
    assert figure.get_suptitle() == "data; void (not counted) has 20.00 % of all pixels"
    figure = plot_distribution("data", names, colours, statistics([500, 50, 250, 200]))
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1.3 * 50)  # not more than twice the next
    assert not figure.axes[0].lines


def test_masks_of_void_alone_have_no_distribution():
    with pytest.raises(UserError, match="data: no labelled pixel in its masks: see --image_set"):
        plot_distribution("data", ["a", "b"], PALETTE[:2], statistics([0, 0], 9))


@pytest.mark.parametrize(("number", "smallest"), [(2, 1), (21, 10**4), (60, 10**8)])
def test_distribution_does_not_overlap(number, smallest):
    names = long_names(number)
    counts = [10**8] + [smallest * (1 + index) for index in range(number - 2)] + [0]
    figure = plot_distribution(
        LONG * 2, names, PALETTE[:number], statistics(counts, 9, [1464 - n for n in range(number)])
    )
    check_layout(figure, smallest=5 if number == 60 else 7)


def test_confusion_is_normalised_by_row_and_its_diagonal_framed():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 8]])
    figure = plot_confusion(["a", "b", "c"], confusion, "title")
    axes = figure.axes[0]
    expected = [[75, 25, 0], [math.nan] * 3, [0, 20, 80]]
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), math.nan), expected)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "ground truth")
    assert figure.get_suptitle() == "title; grey rows: not in the ground truth"
    assert plot_confusion("ab", np.eye(2), "title").get_suptitle() == "title"
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {
        (0, 0, "75"), (1, 0, "25"), (1, 2, "20"), (2, 2, "80"),
    }  # fmt: skip
    assert [frame.get_xy() for frame in axes.patches] == [(n - 0.5, n - 0.5) for n in range(3)]


@pytest.mark.parametrize("names", [long_names(2), CLASS_NAMES, long_names(21), long_names(60)])
def test_confusion_fits_a_page_and_does_not_overlap(names):
    number = len(names)
    figure = plot_confusion(names, np.eye(number, dtype=int), LONG * 2)
    axes = figure.axes[0]
    for text in axes.texts:  # the numbers in the cells
        text.set_visible(False)
    check_layout(figure, smallest=7 if number <= 21 else 3)
    if names is CLASS_NAMES:  # all are shown
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list(CLASS_NAMES)


def test_the_drawing_of_both_heads_has_the_boxes_of_the_network():
    figure = draw_heads()
    check_layout(figure)
    three, plus = (
        [text.get_text() for text in axes.texts if text.get_text()] for axes in figure.axes
    )
    for number in (6, 12, 18):
        assert f"3x3, rate {number}" in three
    more = ["1x1, 48", "concat", "low-level\nfeatures, 1/4", "upsample\nx 4"]
    assert sorted(set(plus) - set(three)) == more
    assert set(three) - set(plus) == {"upsample\nx 16"}
