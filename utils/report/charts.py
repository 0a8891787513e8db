"""Charts: how often the classes are, and what is taken for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datasets.class_counts import ClassStatistics
from utils.common.errors import UserError
from utils.report.contents import points
from utils.report.image_grid import MAX_HEIGHT, PAGE_WIDTH, SMALL, drawing, fit

MAX_NAME_WIDTH = 1.6  # inches, of a class beside an axis
MAX_NUMBERED = 25  # more classes than these leave no room for numbers in the confusion matrix


def plot_distribution(
    name: str, class_names: Sequence[str], colours: np.ndarray, statistics: ClassStatistics
) -> Figure:
    """Each class's share of the labelled pixels, the largest on top, and its images beside it.

    A class that dwarfs all others, such as background, is broken off. `name` says what was counted;
    colours are uint8 (C, 3).

    Raises:
        UserError: all pixels are void.
    """
    counts, void = statistics.pixel_counts.double().numpy(), statistics.void_pixels
    if not counts.any():
        raise UserError(f"{name}: no labelled pixel in its masks: see --image_set")
    shares = counts / counts.sum()
    order = np.argsort(shares, kind="stable")  # bars are drawn from the bottom up
    with drawing([name, *class_names]):
        height = min(0.8 + 0.17 * len(counts), MAX_HEIGHT)
        figure = Figure((PAGE_WIDTH, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 2))
        labels = [f"{points(shares[index])} %" if counts[index] else "no pixels" for index in order]
        _draw_bars(left, 100 * shares[order], labels, colours[order] / 255)
        images = statistics.image_counts.numpy()[order]
        _draw_bars(right, images, [f"{number:,}" for number in images], "0.8")
        size = min(SMALL, 50 * height / len(counts))
        names = [fit(class_names[index], MAX_NAME_WIDTH, size) for index in order]
        left.set_yticks(range(len(order)), names, fontsize=size)
        left.set_xlabel("share of the labelled pixels (%)")
        right.set_xlabel("images with the class")
        share = points(void / (counts.sum() + void))
        figure.suptitle(f"{fit(name, 3)}; void (not counted) has {share} % of all pixels")
    return figure


def _draw_bars(axes: Axes, values: np.ndarray, labels: Sequence[str], colours: Any) -> None:
    """Bars with their labels; the longest is broken off if it has more than twice the second."""
    second, longest = np.sort(values)[-2:] if len(values) > 1 else (0, values[0])
    end = 1.2 * second if longest > 2 * second > 0 else longest
    bars = axes.barh(
        range(len(values)), np.minimum(values, end), color=colours, edgecolor="0.4", linewidth=0.5
    )
    axes.bar_label(bars, labels, padding=3, fontsize=SMALL)
    if end < longest:
        place = int(values.argmax())
        for x in (1.05 * second, 1.08 * second):  # two strokes across the bar
            axes.plot((x, 1.02 * x), (place - 0.5, place + 0.5), "white", linewidth=2)
    axes.set(xlim=(0, 1.3 * end), ylim=(-0.6, len(values) - 0.4))  # with room for the labels
    axes.tick_params(axis="y", length=0)


def plot_confusion(class_names: Sequence[str], confusion: np.ndarray, title: str) -> Figure:
    """A confusion matrix, integer (C, C) with targets as rows, in percent of each row."""
    number = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, 100 * confusion / np.maximum(totals, 1), np.nan)
    title += "; grey rows: not in the ground truth" if not totals.all() else ""
    with drawing([title, *class_names]):
        height = min(max(2.5 + 0.25 * number, 4.5), PAGE_WIDTH)
        figure = Figure((PAGE_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("0.8")  # what shows where a class is in no target
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        size = min(SMALL, 54 * (PAGE_WIDTH - 2.6) / number)  # of many, for a screen
        names = [fit(name, MAX_NAME_WIDTH, size) for name in class_names]
        axes.set_xticks(range(number), names, rotation=90, fontsize=size)
        axes.set_yticks(range(number), names, fontsize=size)
        axes.set(xlabel="prediction", ylabel="ground truth")
        figure.suptitle(fit(title, PAGE_WIDTH - 0.2))
        for place in range(number):
            axes.add_patch(
                Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, ec="0.2", lw=0.7)
            )
        if number > MAX_NUMBERED:
            figure.colorbar(image, shrink=0.5, label="% of the ground truth's pixels")
            return figure
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            value = shares[row, column]
            color = "white" if value > 60 else "black"
            text = axes.text(column, row, f"{value:.0f}", ha="center", va="center")
            text.set(color=color, fontsize=SMALL)
    return figure
