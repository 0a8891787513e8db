"""Charts: how often the classes are, how runs went, and what is taken for what."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from datasets.class_counts import ClassStatistics
from datasets.voc import PALETTE
from utils.common.errors import UserError
from utils.report.image_grid import FONT_SIZE, PAGE_WIDTH, SMALL, fit, styled
from utils.report.runs import group_runs
from utils.run_records import Run

MAX_NAME_WIDTH = 2.0  # inches, of a class beside an axis
MAX_MARKED = 60  # more evaluations than these merge into a thick line
MAX_SIDE = 20.0  # inches, of the confusion matrix
MAX_NUMBERED = 25  # more classes than these leave no room for numbers in the confusion matrix
LOSS_NAMES = {
    "ce": "cross entropy", "focal": "focal loss", "lovasz": "Lovász-softmax", "dice": "Dice loss",
    "ce_lovasz": "cross entropy + Lovász", "ohem": "OHEM cross entropy",
}  # fmt: skip


def percent(share: float) -> str:
    """A share as people read it: two decimals, and more where it would be 0.00."""
    value = 100 * share
    if value >= 0.01 or value == 0:
        return f"{value:.2f} %"
    return np.format_float_positional(value, precision=1, fractional=False) + " %"


@styled
def plot_distribution(name: str, class_names: Sequence[str], statistics: ClassStatistics) -> Figure:
    """The share of the labelled pixels that each class has, the largest on top.

    Args:
        name: of what was counted.
        class_names: one per class.
        statistics: of its masks.

    Raises:
        UserError: all pixels are void.
    """
    counts = statistics.pixel_counts.double().numpy()
    if not counts.any():
        raise UserError(f"{name}: no labelled pixel in its masks: see --image_set")
    shares = counts / counts.sum()
    order = np.argsort(shares, kind="stable")  # bars are drawn from the bottom up
    figure = Figure((PAGE_WIDTH, 1.0 + 0.19 * len(counts)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(order)), 100 * shares[order], color=PALETTE[order] / 255)
    for bar in bars:
        bar.set(edgecolor="0.4", linewidth=0.6)
    labels = [percent(shares[index]) if counts[index] else "no pixels" for index in order]
    axes.bar_label(bars, labels, padding=4)
    axes.margins(x=0.12, y=0.01)  # room for the numbers
    names = [fit(class_names[index], MAX_NAME_WIDTH, size=FONT_SIZE - 1) for index in order]
    axes.set_yticks(range(len(order)), names)
    axes.set_xlabel("share of the labelled pixels (%)")
    void = percent(statistics.void_pixels / (counts.sum() + statistics.void_pixels))
    title = f"{name}; void (not counted) has {void} of all pixels"
    figure.suptitle(fit(title, PAGE_WIDTH - 0.4, 3), fontsize=FONT_SIZE)
    return figure


def epochs_of(run: Run) -> list[float]:
    """The epoch of each record, with its fraction where a run was evaluated within one.

    A log may hold whole epochs; their length follows from the first evaluation, which is made at
    the end of one (unless the run is shorter).
    """
    logged, first = run.column("epoch"), run.log[0]
    if not first["epoch"] >= 1:
        return logged
    exact = [record["iteration"] * first["epoch"] / first["iteration"] for record in run.log]
    fits = [math.floor(value + 1e-9) for value in exact] == logged
    return exact if fits else logged


def loss_name(run: Run) -> str:
    """The loss for people; two runs of one name have losses of one kind."""
    name = LOSS_NAMES.get(str(run.setting("loss")), str(run.setting("loss")))
    if run.setting("focal_gamma") is not None:
        name += f", gamma {run.setting('focal_gamma'):g}"
    if run.setting("class_weights") not in (None, "none"):
        name += f", {run.setting('class_weights')} weights"
    return name + (", auxiliary head" if run.setting("aux_weight") else "")


@styled
def plot_curves(runs: Sequence[Run], x: str = "epochs") -> Figure:
    """Validation mIoU of runs with the best point marked, training loss, and learning rate.

    Losses of different kinds have a panel each; a panel that no run has numbers for is left out.
    Runs that differ in the seed alone share a colour and an entry of the legend. Later lines are
    thinner, and broken: of equal ones both are seen.

    Args:
        runs: at least one.
        x: "epochs" or "iterations".
    """
    if not any(max(epochs_of(run)) >= 1 for run in runs):
        x = "iterations"  # of runs shorter than an epoch
    kinds = sorted({loss_name(run) for run in runs if _has(run, "train_loss")})
    panels = ["miou", *kinds, *(["lr"] if any(_has(run, "lr") for run in runs) else [])]
    groups = group_runs(runs)
    names = [fit(_legend_entry(group), PAGE_WIDTH - 0.9, 3) for group in groups]
    height = 2.8 + 1.3 * (len(panels) - 1) + 0.18 * sum(len(name.splitlines()) for name in names)
    figure = Figure((PAGE_WIDTH, height), layout="constrained")
    ratios = [2] + [1] * (len(panels) - 1)
    grid = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )
    by_name = dict(zip(panels, grid[:, 0], strict=True))
    drawn = []
    for number, group in enumerate(groups):
        drawn.append([_draw_run(by_name, run, x, number) for run in group][0])
    _label_panels(by_name, x)
    figure.legend(drawn, names, loc="outside lower left", frameon=False, handlelength=4)
    return figure


def _has(run: Run, column: str) -> bool:
    return any(map(math.isfinite, run.column(column)))


def _legend_entry(group: Sequence[Run]) -> str:
    run, best = group[0], group[0].best
    if len(group) > 1:
        seeds = ", ".join(str(run.setting("seed")) for run in group)
        scores = ", ".join(f"{100 * run.best['miou']:.2f}" for run in group)
        return f"{run.variant}: best mIoU {scores} (seeds {seeds})"
    epoch = f"epoch {best['epoch']:g}, " if math.isfinite(best["epoch"]) else ""
    where = f"{epoch}iteration {best['iteration']}"
    return f"{run.name}: best mIoU {100 * best['miou']:.2f} ({where})"


def _draw_run(by_name: dict[str, Axes], run: Run, x: str, number: int) -> Line2D:
    """Draw a run into all panels; returns its mIoU line, for the legend."""
    style: dict[str, Any] = {
        "color": matplotlib.colormaps["tab10"](number % 10),
        "linestyle": ("-", "--", ":", "-.")[number % 4],
        "linewidth": max(2.4 - 0.5 * number, 1.2),
        "marker": "." if len(run.log) <= MAX_MARKED else "",
        "zorder": 2 + 0.01 * number,
    }
    places = epochs_of(run) if x == "epochs" else run.column("iteration")
    best = run.log.index(run.best)
    axes = by_name["miou"]
    (line,) = axes.plot(places, 100 * np.array(run.column("miou")), **style)
    axes.plot(
        places[best], 100 * run.best["miou"], "*", color=line.get_color(), markersize=13,
        markeredgecolor="black", markeredgewidth=0.7, zorder=5,
    )  # fmt: skip
    if loss_name(run) in by_name:
        by_name[loss_name(run)].plot(places, run.column("train_loss"), **style)
    if "lr" in by_name:
        style["drawstyle"] = "steps-post" if run.setting("lr_policy") == "step" else "default"
        by_name["lr"].plot(places, run.column("lr"), **style)
        if run.column("backbone_lr") != run.column("lr"):
            by_name["lr"].plot(places, run.column("backbone_lr"), **style, alpha=0.45)
    return line


def _label_panels(by_name: dict[str, Axes], x: str) -> None:
    labels = {"miou": "validation mIoU (%)", "lr": "learning rate"}
    for name, axes in by_name.items():
        axes.set_ylabel(labels.get(name, "training loss"))
        axes.grid(alpha=0.3)
        if name not in labels:
            axes.set_title(
                fit(name, PAGE_WIDTH - 1, size=SMALL), loc="right", pad=2, fontsize=SMALL
            )
    if "lr" in by_name:
        axes = by_name["lr"]
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        if np.nanmin(values) > 0:  # a schedule that ends at 0 has no place on a log scale
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if any(line.get_alpha() for line in axes.lines):
            text = "full colour: head, pale: backbone"
            axes.set_title(text, loc="right", pad=2, fontsize=SMALL)
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
    side = min(max(2.2 + (0.27 if number <= MAX_NUMBERED else 0.17) * number, 4.5), MAX_SIDE)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")  # what shows where a class is in no target
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    size = min(FONT_SIZE - 1.5, 72 * 0.75 * (side - 2.5) / number)
    names = [fit(name, MAX_NAME_WIDTH, size=size) for name in class_names]
    axes.set_xticks(range(number), names, rotation=90, fontsize=size)
    axes.set_yticks(range(number), names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="target")
    title += "; grey rows: in no target" if not totals.all() else ""
    figure.suptitle(fit(title, side - 0.4, 4), fontsize=FONT_SIZE)
    if number > MAX_NUMBERED:
        figure.colorbar(image, shrink=0.5, label="% of the target's pixels")
        return figure
    for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
        value = shares[row, column]
        color = "white" if value > 60 else "black"
        text = axes.text(column, row, f"{value:.0f}", color=color, ha="center", va="center")
        text.set_fontsize(FONT_SIZE - 2)
    return figure
