"""Curves: how runs went."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.report.image_grid import MAX_HEIGHT, PAGE_WIDTH, SMALL, drawing, fit
from utils.report.runs import group_runs
from utils.run_records import Run

COURSE_MIOU = 65  # percent, what the course asks for on VOC's val
LOSS_NAMES = {
    "ce": "cross entropy", "focal": "focal loss", "lovasz": "Lovász-softmax", "dice": "Dice loss",
    "ce_lovasz": "cross entropy + Lovász", "ohem": "OHEM cross entropy",
}  # fmt: skip


def places_of(run: Run, x: str) -> list[float]:
    """Where each record of a run stands on an axis of "epochs" or "iterations".

    A log holds whole epochs; their length follows from the first record, made at the end of one.
    """
    first = run.log[0]
    length = first["iteration"] / first["epoch"] if x == "epochs" else 1
    return [iteration / length for iteration in run.column("iteration")]


def loss_name(run: Run) -> str:
    """The loss for people; two runs of one name have losses of one kind."""
    name = LOSS_NAMES.get(str(run.setting("loss")), str(run.setting("loss")))
    if run.setting("focal_gamma") is not None:
        name += f", gamma {run.setting('focal_gamma'):g}"
    if run.setting("class_weights") not in (None, "none"):
        name += f", {run.setting('class_weights')} weights"
    return name + (", auxiliary head" if run.setting("aux_weight") else "")


def plot_curves(runs: Sequence[Run], x: str = "epochs") -> Figure:
    """Validation mIoU of runs with the best point marked, training loss, and learning rate.

    Losses of different kinds have a panel each. Runs that differ in the seed alone share a colour
    and an entry of the legend. Later lines are thinner, and broken: of equal ones both are seen.
    `x` is "epochs" or "iterations".
    """
    if not all(run.log[0]["epoch"] >= 1 for run in runs):
        x = "iterations"  # a run is shorter than an epoch
    panels = ["miou", *dict.fromkeys(map(loss_name, runs)), "lr"]
    groups = group_runs(runs)
    names = _legend_entries(groups, x)
    with drawing(names):
        height = min(2.3 + (len(panels) - 1) + 0.16 * len(names), MAX_HEIGHT)
        figure = Figure((PAGE_WIDTH, height), layout="constrained")
        ratios = [2] + [1] * (len(panels) - 1)
        axes = figure.subplots(len(panels), sharex=True, height_ratios=ratios)
        by_name = dict(zip(panels, axes, strict=True))
        handles = [
            [_draw_run(by_name, run, x, number) for run in group][0]
            for number, group in enumerate(groups)
        ]
        _label_panels(by_name, x, any(run.setting("lr_policy") == "step" for run in runs))
        if all(run.setting("dataset") == "voc" for run in runs):
            miou, text = by_name["miou"], f"the course asks for {COURSE_MIOU}"
            miou.axhline(COURSE_MIOU, color="0.3", linestyle=(0, (1, 2)), linewidth=1)
            miou.annotate(text, (0, COURSE_MIOU), (3, 1), textcoords="offset points", size=SMALL)
        fitting = [fit(name, PAGE_WIDTH - 0.9) for name in names]
        figure.legend(handles, fitting, loc="outside lower left", frameon=False, handlelength=4)
    return figure


def _legend_entries(groups: Sequence[Sequence[Run]], x: str) -> list[str]:
    """Loss and best score of each group; with the names of those that share a loss."""
    losses = [loss_name(group[0]) for group in groups]
    entries = []
    for loss, group in zip(losses, groups, strict=True):
        scores = ", ".join(f"{100 * run.best['miou']:.1f}" for run in group)
        best, unit = group[0].best, x.removesuffix("s")
        place = f"{unit} {best[unit]:g}"
        if len(group) > 1:
            place = "seeds " + ", ".join(str(run.setting("seed")) for run in group)
        name = group[0].variant if len(group) > 1 else group[0].name
        prefix = f"{name}: " if Counter(losses)[loss] > 1 else ""
        entries.append(f"{prefix}{loss}, best {scores} ({place})")
    return entries


def _draw_run(by_name: dict[str, Axes], run: Run, x: str, number: int) -> Line2D:
    """Draw a run into all panels; returns its mIoU line, for the legend."""
    style: dict[str, Any] = {
        "color": f"C{number}",
        "linestyle": ("-", "--", ":", "-.")[number % 4],
        "linewidth": max(2 - 0.4 * number, 1),
        "marker": ".",
        "zorder": 2 + 0.01 * number,
    }
    places, mious = places_of(run, x), [100 * miou for miou in run.column("miou")]
    (line,) = by_name["miou"].plot(places, mious, **style)
    best = run.log.index(run.best)
    by_name["miou"].plot(
        places[best], mious[best], "*", color=style["color"], markersize=11,
        markeredgecolor="black", markeredgewidth=0.6, zorder=5,
    )  # fmt: skip
    by_name[loss_name(run)].plot(places, run.column("train_loss"), **style)
    head, backbone = run.column("lr"), run.column("backbone_lr")
    by_name["lr"].plot(places, head, **style)
    if head != backbone:
        by_name["lr"].plot(places, backbone, **style, alpha=0.45)
    return line


def _label_panels(by_name: dict[str, Axes], x: str, is_stepped: bool) -> None:
    labels = {"miou": "validation mIoU (%)", "lr": "learning rate"}
    for name, axes in by_name.items():
        axes.set_ylabel(labels.get(name, "training loss"))
        axes.grid(alpha=0.3)
        if name not in labels:
            axes.set_title(fit(name, PAGE_WIDTH - 1, SMALL), loc="right", pad=2, fontsize=SMALL)
    rates = by_name["lr"]
    if is_stepped:
        rates.set_yscale("log", nonpositive="mask")  # older logs end at 0
        rates.yaxis.set_major_formatter("{x:.0e}")
        rates.minorticks_off()
    if any(line.get_alpha() for line in rates.lines):
        text = "full colour: head, pale: backbone"
        rates.set_title(text, loc="right", pad=2, fontsize=SMALL)
    rates.set_xlabel(x.removesuffix("s"))
    rates.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rates.set_xlim(left=0)
