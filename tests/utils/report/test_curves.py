"""Curves, read back from the figures and compared with the logs that went in."""

import math

import numpy as np
import pytest

from tests.utils.report.test_image_grid import LONG, check_layout
from tests.utils.report.test_runs import make_run
from utils.report.curves import plot_curves


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / "first", (0.2, 0.45, 0.4), dataset="shapes"),
        make_run(tmp_path / "second", (0.3, math.nan, 0.35, 0.3), loss="focal", focal_gamma=2),
    ]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("x", "places", "best"),
    [
        ("iterations", [10, 20, 30], ("iteration 20", "iteration 30")),
        ("epochs", [2, 4, 6], ("epoch 4", "epoch 6")),
    ],
)
def test_curves_show_the_logs_and_mark_the_best_points(runs, x, places, best):
    figure = plot_curves(runs, x)
    miou, loss, other_loss, lr = figure.axes
    first, first_star, second, second_star = miou.lines
    np.testing.assert_allclose(first.get_xdata(), places)
    np.testing.assert_allclose(first.get_ydata(), [20, 45, 40])
    np.testing.assert_allclose(second.get_ydata(), [30, math.nan, 35, 30])
    assert (first_star.get_xdata()[0], first_star.get_ydata()[0]) == (places[1], 45)
    assert (second_star.get_xdata()[0], second_star.get_ydata()[0]) == (places[2], 35)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1, 1 / 2, 1 / 3])
    assert lr.get_xlabel() == x.rstrip("s") and lr.get_xlim()[0] == 0
    assert legend_of(figure) == [
        f"cross entropy, best 45.0 ({best[0]})", f"focal loss, gamma 2, best 35.0 ({best[1]})",
    ]  # fmt: skip
    assert first.get_color() == first_star.get_color() != second.get_color()
    titles = [axes.get_title(loc="right") for axes in (loss, other_loss)]
    assert titles == ["cross entropy", "focal loss, gamma 2"]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "validation mIoU (%)", "training loss", "training loss", "learning rate",
    ]  # fmt: skip


@pytest.mark.parametrize("dataset", ["voc", "shapes"])
def test_what_the_course_asks_for_is_a_line_where_the_data_is_voc(tmp_path, dataset):
    axes = plot_curves([make_run(tmp_path / "a", dataset=dataset)]).axes[0]
    is_there = dataset == "voc"
    assert ([65, 65] in [list(line.get_ydata()) for line in axes.lines]) == is_there
    assert [text.get_text() for text in axes.texts] == ["the course asks for 65"] * is_there


def test_seeds_of_a_variant_share_colour_and_legend(tmp_path):
    mious = {"ce_s0": (0.3, 0.4), "ce_s1": (0.2, 0.5), "focal_s0": (0.1, 0.6)}
    runs = [
        make_run(tmp_path / name, values, loss=name[:-3], seed=int(name[-1]), dataset="shapes")
        for name, values in mious.items()
    ]
    figure = plot_curves(runs)
    assert legend_of(figure) == [
        "cross entropy, best 40.0, 50.0 (seeds 0, 1)", "focal loss, best 60.0 (epoch 4)",
    ]  # fmt: skip
    miou, ce, focal, lr = figure.axes
    for axes in (miou, lr):  # with its star; head and backbone
        colors = [line.get_color() for line in axes.lines]
        one, other = colors[0], colors[-1]
        assert colors == [one] * 4 + [other] * 2 and one != other
    assert [line.get_color() for line in ce.lines] == [one] * 2
    assert [line.get_color() for line in focal.lines] == [other]


def test_runs_that_share_a_loss_are_told_apart_by_their_names_and_share_its_panel(tmp_path):
    runs = [make_run(tmp_path / name, lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    figure = plot_curves(runs)
    assert legend_of(figure) == [f"{n}: cross entropy, best 40.0 (epoch 4)" for n in "ab"]
    assert len(figure.axes) == 3 and len(figure.axes[1].lines) == 2


@pytest.mark.parametrize(("policy", "scale"), [("step", "log"), ("poly", "linear")])
def test_rates_are_those_that_the_log_has(tmp_path, policy, scale):
    lr = plot_curves([make_run(tmp_path / "a", lr_policy=policy)]).axes[-1]
    np.testing.assert_allclose(lr.lines[0].get_ydata(), [0.1, 0.01, 0.001])
    np.testing.assert_allclose(lr.lines[1].get_ydata(), [0.001, 0.0001, 0.00001])
    assert lr.lines[1].get_alpha() < 1 and lr.get_yscale() == scale


def test_of_equal_lines_both_are_seen(tmp_path):
    runs = [make_run(tmp_path / name, lr_policy=name) for name in ("poly", "step")]
    for axes in plot_curves(runs).axes:
        lines = [line for line in axes.lines if line.get_marker() != "*" and len(line._x) > 2]
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


def test_epochs_have_fractions_where_the_log_was_written_within_one(tmp_path):
    run = make_run(tmp_path / "a")
    for record, iteration, epoch in zip(run.log, (3, 6, 7), (1, 2, 2), strict=True):
        record.update(iteration=iteration, epoch=epoch)
    line = plot_curves([run]).axes[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([1, 2, 7 / 3])


@pytest.mark.parametrize(
    ("number", "mious", "x"),
    [(1, (0.5,), "iterations"), (1, (0.5,), "epochs"), (13, (0.2, 0.5, 0.4), "epochs")],
)
def test_curves_do_not_overlap(tmp_path, number, mious, x):
    runs = [make_run(tmp_path / f"{LONG}_{index}", mious) for index in range(number)]
    figure = plot_curves(runs, x)
    check_layout(figure)
    assert all(float(tick).is_integer() for tick in figure.axes[-1].get_xticks())
