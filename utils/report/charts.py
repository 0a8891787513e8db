"""Charts: how often the classes are, how runs went, and what is taken for what."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from datasets.voc import PALETTE
from utils.report.image_grid import FONT_SIZE, PAGE_WIDTH, shorten, styled, wrap
from utils.report.runs import group_runs
from utils.run_records import Run

MAX_NAME_WIDTH = 2.0  # inches, of a class beside an axis
MAX_MARKED = 60  # more evaluations than these merge into a thick line
MAX_SIDE = 20.0  # inches, of the confusion matrix
MAX_NUMBERED = 25  # more classes than these leave no room for numbers in the confusion matrix


def percent(share: float) -> str:
    """A share as people read it: two decimals, and more where it would be 0.00."""
    value = 100 * share
    if value >= 0.01 or value == 0:
        return f"{value:.2f} %"
    return np.format_float_positional(value, precision=1, fractional=False) + " %"


@styled
def plot_distribution(
    class_names: Sequence[str], pixel_counts: Sequence[int], title: str
) -> Figure:
    """The share of the labelled pixels that each class has, the largest on top, on a log scale.

    Args:
        class_names: one per class.
        pixel_counts: pixels of each class, void left out.
        title: above the chart.
    """
    counts = np.asarray(pixel_counts, dtype=np.float64)
    shares = counts / max(counts.sum(), 1)
    order = np.argsort(shares, kind="stable")  # bars are drawn from the bottom up
    figure = Figure((PAGE_WIDTH, 1.0 + 0.19 * len(counts)), layout="constrained")
    axes = figure.subplots()
    colors = PALETTE[order] / 255
    axes.barh(range(len(order)), shares[order], color=colors, edgecolor="0.4", linewidth=0.6)
    smallest = min(shares[shares > 0], default=1e-3)
    left = smallest / 2
    for place, index in enumerate(order):
        text = percent(shares[index]) if counts[index] else "no pixels"
        axes.text(max(shares[index], left) * 1.05, place, f" {text}", va="center", ha="left")
    axes.set_xscale("log")
    # Room for the numbers: the longest, "73.36 %", takes a tenth of the axis.
    axes.set_xlim(left, max(shares.max(), smallest) * (1 / left) ** 0.12 * 1.2)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_yticks(range(len(order)), [_class_tick(class_names[index]) for index in order])
    axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share of the labelled pixels (log scale)")
    figure.suptitle(wrap(title, PAGE_WIDTH - 0.4), fontsize=FONT_SIZE)
    return figure


def _percent_tick(share: float, _place: int | None = None) -> str:
    number = np.format_float_positional(100 * share, precision=3, fractional=False, trim="-")
    return f"{number} %" if share <= 1.0001 else ""


def _class_tick(name: str) -> str:
    return shorten(name, MAX_NAME_WIDTH, FONT_SIZE - 1)


def epochs_of(run: Run) -> list[float]:
    """The epoch of each record, with its fraction where a run was evaluated within one.

    The log holds whole epochs; their length follows from the first evaluation, which is made at
    the end of one (unless the run is shorter).
    """
    first = run.log[0]
    if not first["epoch"] >= 1:
        return [record["epoch"] for record in run.log]
    per_epoch = first["iteration"] / first["epoch"]
    exact = [record["iteration"] / per_epoch for record in run.log]
    fits = all(
        math.floor(value + 1e-9) == record["epoch"]
        for value, record in zip(exact, run.log, strict=True)
    )
    return exact if fits else [record["epoch"] for record in run.log]


@styled
def plot_curves(runs: Sequence[Run], x: str = "iterations") -> Figure:
    """Validation mIoU of runs with the best point marked; below it training loss and learning rate.

    A panel that no run has numbers for is left out. Runs that differ in the seed alone share a
    colour and an entry of the legend.

    Args:
        runs: at least one.
        x: "iterations" or "epochs".
    """
    wanted = ("train_loss", "lr")
    panels = ["miou", *(name for name in wanted if any(map(_has(name), runs)))]
    groups = group_runs(runs)
    names = [_legend_entry(group) for group in groups]
    lines = sum(len(name.splitlines()) for name in names)
    height = 2.9 + 1.5 * (len(panels) - 1) + 0.18 * lines
    figure = Figure((PAGE_WIDTH, height), layout="constrained")
    ratios = [2] + [1] * (len(panels) - 1)
    grid = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )
    by_name = dict(zip(panels, grid[:, 0], strict=True))
    drawn = [
        [_draw_run(by_name, run, x, number) for run in group] for number, group in enumerate(groups)
    ]
    _label_panels(by_name, x)
    figure.legend([lines[0] for lines in drawn], names, loc="outside lower left", frameon=False)
    return figure


def _has(name: str):
    return lambda run: any(math.isfinite(value) for value in run.column(name))


def _legend_entry(group: Sequence[Run]) -> str:
    run, best = group[0], group[0].best
    if len(group) > 1:
        seeds = ", ".join(str(run.setting("seed")) for run in group)
        scores = ", ".join(f"{100 * run.best['miou']:.2f}" for run in group)
        return wrap(f"{run.variant}: best mIoU {scores} (seeds {seeds})", PAGE_WIDTH - 0.9)
    where = f"iteration {best['iteration']}"
    if math.isfinite(best["epoch"]):
        where = f"epoch {best['epoch']:g}, {where}"
    score = f": best mIoU {100 * best['miou']:.2f} ({where})"
    return wrap(run.name + score, PAGE_WIDTH - 0.9)


def _draw_run(by_name: dict[str, Axes], run: Run, x: str, number: int):
    """Draw a run into all panels; returns its mIoU line, for the legend."""
    colors = matplotlib.colormaps["tab10"].colors
    style = {
        "color": colors[number % len(colors)],
        "linestyle": ("-", "--", ":", "-.")[number // len(colors) % 4],
        "marker": "." if len(run.log) <= MAX_MARKED else "",
    }
    places = epochs_of(run) if x == "epochs" else run.column("iteration")
    best = run.log.index(run.best)
    axes = by_name["miou"]
    (line,) = axes.plot(places, 100 * np.array(run.column("miou")), **style)
    axes.plot(
        places[best], 100 * run.best["miou"], "*", color=line.get_color(), markersize=13,
        markeredgecolor="black", markeredgewidth=0.7, zorder=5,
    )  # fmt: skip
    if "train_loss" in by_name:
        by_name["train_loss"].plot(places, run.column("train_loss"), **style)
    if "lr" in by_name:
        by_name["lr"].plot(places, run.column("lr"), **style)
        if run.column("backbone_lr") != run.column("lr"):
            by_name["lr"].plot(places, run.column("backbone_lr"), **style, alpha=0.45)
    return line


def _label_panels(by_name: dict[str, Axes], x: str) -> None:
    labels = {
        "miou": "validation mIoU (%)",
        "train_loss": "training loss",
        "lr": "learning rate",
    }
    for name, axes in by_name.items():
        axes.set_ylabel(labels[name])
        axes.grid(alpha=0.3)
    if "lr" in by_name:
        axes = by_name["lr"]
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        values = values[np.isfinite(values)]
        if values.min() > 0:  # a schedule that ends at 0 has no place on a log scale
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if any(line.get_alpha() for line in axes.lines):
            axes.annotate(
                "full colour: head, pale: backbone", (1, 1), xycoords="axes fraction",
                ha="right", va="bottom", fontsize=FONT_SIZE - 1,
            )  # fmt: skip
    last = list(by_name.values())[-1]
    last.set_xlabel({"iterations": "iteration", "epochs": "epoch"}[x])
    last.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last.set_xlim(left=0)
    by_name["miou"].margins(y=0.12)  # the star is large


@styled
def plot_confusion(class_names: Sequence[str], confusion: np.ndarray, title: str) -> Figure:
    """The confusion matrix with rows normalised to percent.

    Args:
        class_names: one per class.
        confusion: integer (C, C) in pixels, rows are targets.
        title: above it.
    """
    number = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, 100 * confusion / np.maximum(totals, 1), np.nan)
    per_class = 0.27 if number <= MAX_NUMBERED else 0.17
    side = min(max(2.2 + per_class * number, 4.5), MAX_SIDE)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")  # what shows where a class is in no target
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    size = min(FONT_SIZE - 1.5, 72 * 0.75 * (side - 2.5) / number)
    names = [shorten(name, MAX_NAME_WIDTH, size) for name in class_names]
    axes.set_xticks(range(number), names, rotation=90, fontsize=size)
    axes.set_yticks(range(number), names, fontsize=size)
    axes.set_xlabel("prediction")
    axes.set_ylabel("target")
    figure.suptitle(wrap(title, side - 0.4), fontsize=FONT_SIZE)
    if number <= MAX_NUMBERED:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            value = shares[row, column]
            color = "white" if value > 60 else "black"
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", color=color,
                fontsize=FONT_SIZE - 2,
            )  # fmt: skip
    else:
        figure.colorbar(image, shrink=0.5, label="% of the target's pixels")
    return figure
