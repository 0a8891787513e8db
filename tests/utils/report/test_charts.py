"""Charts, read back from the figures and compared with the numbers that went in."""

import math

import numpy as np
import pytest
import torch

from datasets.class_counts import ClassStatistics
from datasets.voc import CLASS_NAMES, PALETTE
from tests.utils.report.test_image_grid import LONG, check_layout
from tests.utils.report.test_runs import write_run
from utils.common.errors import UserError
from utils.report.charts import epochs_of, percent, plot_confusion, plot_curves, plot_distribution
from utils.run_records import load_run


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.73357, "73.36 %"),
        (0, "0.00 %"),
        (0.0001, "0.01 %"),
        (3.2e-6, "0.0003 %"),
        (1, "100.00 %"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text


def statistics(pixel_counts, void=0):
    counts = torch.tensor(pixel_counts)
    return ClassStatistics(counts, void, counts > 0, counts)


def test_distribution_shows_shares_as_bars_on_a_linear_axis():
    names = ["background", "cat", "dog", "cow"]
    figure = plot_distribution("data", names, statistics([700, 50, 250, 0], 250))
    axes = figure.axes[0]
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    widths = {
        tick.get_text(): bar.get_width()
        for tick, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    assert widths == pytest.approx({"cow": 0, "cat": 5, "dog": 25, "background": 70})
    assert list(widths) == ["cow", "cat", "dog", "background"]  # upwards
    assert [text.get_text() for text in axes.texts] == [
        "no pixels", "5.00 %", "25.00 %", "70.00 %",
    ]  # fmt: skip
    colors = [bar.get_facecolor()[:3] for bar in axes.patches]
    np.testing.assert_allclose(np.array(colors) * 255, PALETTE[[3, 1, 2, 0]])
    assert figure.get_suptitle() == "data; void (not counted) has 20.00 % of all pixels"


def test_masks_of_void_alone_have_no_distribution():
    with pytest.raises(UserError, match="data: no labelled pixel in its masks: see --image_set"):
        plot_distribution("data", ["a", "b"], statistics([0, 0], 9))


@pytest.mark.parametrize(("number", "smallest"), [(2, 1), (21, 10**4), (60, 1), (60, 10**8)])
def test_distribution_does_not_overlap(number, smallest):
    names = [f"{LONG}_{index}" if index % 3 else f"c{index}" for index in range(number)]
    counts = [10**8] + [smallest * (1 + index) for index in range(number - 2)] + [0]
    check_layout(plot_distribution(LONG * 2, names, statistics(counts)))


@pytest.fixture
def runs(tmp_path):
    return [
        load_run(write_run(tmp_path / "first", (0.2, 0.45, 0.4))),
        load_run(write_run(tmp_path / "second", (0.3, math.nan, 0.35, 0.3))),
    ]


@pytest.mark.parametrize(("x", "places"), [("iterations", [10, 20, 30]), ("epochs", [2, 4, 6])])
def test_curves_show_the_logs_and_mark_the_best_points(runs, x, places):
    figure = plot_curves(runs, x)
    miou, loss, lr = figure.axes
    first, first_star, second, second_star = miou.lines
    np.testing.assert_allclose(first.get_xdata(), places)
    np.testing.assert_allclose(first.get_ydata(), [20, 45, 40])
    np.testing.assert_allclose(second.get_ydata(), [30, math.nan, 35, 30])
    assert (first_star.get_xdata()[0], first_star.get_ydata()[0]) == (places[1], 45)
    assert (second_star.get_xdata()[0], second_star.get_ydata()[0]) == (places[2], 35)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(lr.lines[0].get_ydata(), [0.1, 0.01, 0.001])
    np.testing.assert_allclose(lr.lines[1].get_ydata(), [0.001, 0.0001, 0.00001])
    assert lr.get_yscale() == "log" and lr.get_xlabel() == x.rstrip("s")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "first: best mIoU 45.00 (epoch 4, iteration 20)",
        "second: best mIoU 35.00 (epoch 6, iteration 30)",
    ]
    assert first.get_color() != second.get_color()


def test_seeds_of_a_variant_share_colour_and_legend(tmp_path):
    mious = {"ce_s0": (0.3, 0.4), "ce_s1": (0.2, 0.5), "focal_s0": (0.1, 0.6)}
    runs = [
        load_run(write_run(tmp_path / name, values, loss=name[:-3], seed=int(name[-1])))
        for name, values in mious.items()
    ]
    figure = plot_curves(runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ce: best mIoU 40.00, 50.00 (seeds 0, 1)",
        "focal_s0: best mIoU 60.00 (epoch 4, iteration 20)",
    ]
    miou, ce, focal, lr = figure.axes
    for axes in (miou, lr):  # with its star; head and backbone
        colors = [line.get_color() for line in axes.lines]
        one, other = colors[0], colors[-1]
        assert colors == [one] * 4 + [other] * 2 and one != other
    assert [line.get_color() for line in ce.lines] == [one] * 2
    assert [line.get_color() for line in focal.lines] == [other]


def test_losses_of_different_kinds_have_their_own_panels(tmp_path):
    settings = ({}, {"loss": "focal", "focal_gamma": 0.5}, {"loss": "focal", "focal_gamma": 2})
    runs = [load_run(write_run(tmp_path / str(n), **args)) for n, args in enumerate(settings)]
    titles = [axes.get_title(loc="right") for axes in plot_curves(runs).axes]
    assert titles[1:-1] == ["cross entropy", "focal loss, gamma 0.5", "focal loss, gamma 2"]
    twice = [load_run(write_run(tmp_path / name, lr=lr)) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert len(plot_curves(twice).axes[1].lines) == 2 and len(plot_curves(twice).axes) == 3


@pytest.mark.parametrize(("policy", "style"), [("step", "steps-post"), ("poly", "default")])
def test_the_learning_rate_is_drawn_in_steps_where_it_steps(tmp_path, policy, style):
    run = load_run(write_run(tmp_path / "a", lr_policy=policy))
    miou, _, lr = plot_curves([run]).axes
    assert [line.get_drawstyle() for line in lr.lines] == [style] * 2
    assert miou.lines[0].get_drawstyle() == "default"


def test_of_equal_lines_both_are_seen(tmp_path):
    runs = [load_run(write_run(tmp_path / name, lr_policy=name)) for name in ("poly", "step")]
    for axes in plot_curves(runs).axes:
        lines = [line for line in axes.lines if line.get_marker() != "*"]
        first, last = lines[0], lines[-1]
        assert last.get_zorder() > first.get_zorder()  # is above it,
        assert last.get_linestyle() == "--" and first.get_linestyle() == "-"  # has gaps,
        assert last.get_linewidth() < first.get_linewidth()  # and is thinner


def test_epochs_are_the_default_but_for_runs_shorter_than_one(runs):
    assert plot_curves(runs).axes[-1].get_xlabel() == "epoch"
    for run in runs:
        for record in run.log:
            record["epoch"] = 0.0
    assert plot_curves(runs).axes[-1].get_xlabel() == "iteration"


def test_learning_rate_that_ends_at_0_is_drawn_on_a_linear_scale(runs):
    runs[0].log[-1]["lr"] = 0.0
    assert plot_curves(runs).axes[2].get_yscale() == "linear"


def test_panels_without_numbers_are_left_out(runs):
    for record in runs[0].log:
        record["train_loss"] = math.nan
    assert [axes.get_ylabel() for axes in plot_curves(runs[:1]).axes] == [
        "validation mIoU (%)",
        "learning rate",
    ]
    assert len(plot_curves(runs).axes) == 3


def test_epochs_have_fractions_where_the_log_was_written_within_one(tmp_path):
    run = load_run(write_run(tmp_path / "a"))
    run.log[0].update(iteration=3, epoch=1.0)
    run.log[1].update(iteration=6, epoch=2.0)
    run.log[2].update(iteration=7, epoch=2.0)
    assert epochs_of(run) == pytest.approx([1, 2, 7 / 3])
    run.log[0].update(epoch=0.0)  # shorter than an epoch: nothing to go by
    assert epochs_of(run) == [0, 2, 2]


@pytest.mark.parametrize(
    ("number", "mious", "x"),
    [(1, (0.5,), "iterations"), (1, (0.5,), "epochs"), (13, (0.2, 0.5, 0.4), "epochs")],
)
def test_curves_do_not_overlap(tmp_path, number, mious, x):
    runs = [load_run(write_run(tmp_path / f"{LONG}_{index}", mious)) for index in range(number)]
    figure = plot_curves(runs, x)
    check_layout(figure)
    ticks = [tick for tick in figure.axes[-1].get_xticks()]
    assert all(float(tick).is_integer() for tick in ticks)


def test_confusion_is_normalised_by_row():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 8]])
    figure = plot_confusion(["a", "b", "c"], confusion, "title")
    axes = figure.axes[0]
    expected = [[75, 25, 0], [math.nan] * 3, [0, 20, 80]]
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), math.nan), expected)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "target")
    assert figure.get_suptitle() == "title; grey rows: in no target"
    assert plot_confusion("ab", np.eye(2), "title").get_suptitle() == "title"
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {
        (0, 0, "75"), (1, 0, "25"), (1, 2, "20"), (2, 2, "80"),
    }  # fmt: skip


@pytest.mark.parametrize("number", [2, 21, 60])
def test_confusion_does_not_overlap(number):
    names = [f"{LONG}_{index}" if index % 3 else f"c{index}" for index in range(number)]
    figure = plot_confusion(names, np.eye(number, dtype=int), LONG)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [tick.get_window_extent() for tick in ticks]
        for one, other in zip(boxes, boxes[1:], strict=False):
            assert not one.overlaps(other)
        assert all(box.x0 >= -1 and box.y0 >= -1 for box in boxes)


def test_class_names_of_voc_are_all_shown():
    figure = plot_confusion(CLASS_NAMES, np.eye(21, dtype=int), "title")
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == list(CLASS_NAMES)
