"""Problem 3: what was trained, how, with which result, and what another loss gave."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utils.common.flags import show
from utils.optim import build_optimizer, build_scheduler
from utils.report.contents import Block, Code, Findings, Heading, Table, code, points, spread
from utils.report.curves import loss_name
from utils.report.runs import (
    UNCOMPARED,
    all_settings,
    class_mean,
    group_runs,
    list_notes,
    measured_on,
    runs_to_compare,
    special_settings,
)
from utils.report.score_tables import SCORES, class_table, summary, with_keys
from utils.run_records import Run, best_run

Groups = Mapping[str, Sequence[Run]]  # runs that differ in the seed alone, by their key: R1, ...
COURSE_MIOU = 0.65  # that the course asks of cross entropy on VOC's val, as whole images
NUM_CLASSES = 3  # so many that gain or lose most are named
LAST = 3  # evaluations that say how far a run of one seed goes up and down
SETTINGS = (
    "image_set", "output_stride", "backbone_weights", "loss", "lr", "backbone_lr_factor",
    "lr_policy", "step_size", "total_itrs", "batch_size", "crop_size",
)  # fmt: skip


def training(found: Findings, answers: Mapping[str, list[Block]]) -> list[Block]:
    """The blocks of problem 3.

    Args:
        found: its runs may be none.
        answers: what speaks for a loss, and against it, by the loss's name.
    """
    title = Heading(2, "Problem 3: training and evaluation")
    if not found.runs:
        return [title, f"No run yet: {code(found.main_command)} makes one.", *found.notes]
    groups = with_keys(group_runs(found.runs))
    who, *scores = summary(groups)
    return [
        title,
        who,
        Heading(3, "Problem 3.1: the optimizer and its learning rates"),
        _said_of(groups, _optimizer),
        Code(_lines_of(build_optimizer)),
        Heading(3, "Problem 3.2: the schedule of the learning rates"),
        _said_of(groups, _schedule),
        Code(_lines_of(build_scheduler)),
        Heading(3, "Problem 3.3: the runs, and their mIoU after each evaluation"),
        _best(found.runs),
        *found.show("curves"),
        *scores,
        _settings_table(groups),
        *list_notes(found.runs),
        *([found.notes] if found.notes else []),
        class_table(groups),
        Heading(3, "Problem 3.4: which other loss, and why?"),
        *_other_loss(runs_to_compare(found.runs), list(groups.values()), answers),
        Heading(3, "Problem 3.5: the best models, and what they predict"),
        _compared_table(runs_to_compare(found.runs)),
        *found.show("compare", "errors", "confusion"),
    ]


def _lines_of(function: Callable) -> str:
    """What a function does: its lines behind the docstring."""
    return inspect.cleandoc(inspect.getsource(function).split('"""', 2)[2])


def _said_of(groups: Groups, describe: Callable[[Run], str]) -> list[str]:
    """A sentence for all groups of which the same is to say."""
    keys: dict[str, list[str]] = {}
    for key, group in groups.items():
        keys.setdefault(describe(group[0]), []).append(key)
    return [f"{', '.join(those)}: {text}" for text, those in keys.items()]


def _optimizer(run: Run) -> str:
    settings = all_settings(run)
    lr, factor = settings["lr"], settings["backbone_lr_factor"]
    begin = settings["ckpt"] or settings["backbone_weights"]
    return (
        f"SGD with momentum {settings['momentum']:g} and weight decay "
        f"{settings['weight_decay']:g}. The backbone, which "
        + ("begins with random weights" if begin == "none" else f"begins with {code(begin)}")
        + f", has the learning rate {lr * factor:g}, the head, which is new, {lr:g}."
    )


def _schedule(run: Run) -> str:
    settings = all_settings(run)
    total, step, warmup = (settings[key] for key in ("total_itrs", "step_size", "warmup_itrs"))
    if settings["lr_policy"] == "poly":
        text = f"both rates are multiplied by (1 - i / {total:,})^0.9 in iteration i"
    elif step < total:
        end = settings["lr"] * 0.1 ** ((total - 1) // step)
        text = (
            f"both rates become a tenth every {step:,} of {total:,} iterations, so the head's ends "
            f"at {end:.1g}"
        )
    else:
        text = f"both rates stay as they are: a step after {step:,} of {total:,} iterations is none"
    return text + (f", and rise over the first {warmup:,}." if warmup else ".")


def _best(runs: Sequence[Run]) -> str:
    """The best run and, on VOC, how far it is from what the course asks for."""
    run = max(runs, key=lambda run: run.best["miou"])
    epoch = f"epoch {run.best['epoch']:g}, " if math.isfinite(run.best["epoch"]) else ""
    text = (
        f"The best run is {code(run.name)} ({loss_name(run)}) with {points(run.best['miou'])} % "
        f"mIoU on {measured_on(run)}, after {epoch}iteration {run.best['iteration']:,}."
    )
    on_voc = [run for run in runs if run.setting("dataset") == "voc"]
    asked = best_run([run for run in on_voc if not run.setting("crop_val")], "ce")
    if asked is None:
        return text
    miou = asked.best["miou"]
    return (
        f"{text} The course asks for {points(COURSE_MIOU)} % with cross entropy; the best run with "
        f"it has {points(miou)} %, {points(abs(miou - COURSE_MIOU))} points "
        f"{'more' if miou >= COURSE_MIOU else 'less'}."
    )


def _settings_table(groups: Groups) -> Table:
    """The settings of a recipe, and all that are not the data set's default; a column per group."""
    settings = [all_settings(group[0]) for group in groups.values()]
    settings = [s | ({} if s["lr_policy"] == "step" else {"step_size": None}) for s in settings]
    special = {key for group in groups.values() for key in special_settings(group[0])}
    rows = [
        [code(key), *("-" if s.get(key) is None else show(s[key]) for s in settings)]
        for key in (*SETTINGS, *sorted(special - {"model", *SETTINGS}))
    ]
    caption = "Settings of the recipe, and every other one that is not the data set's default."
    return Table(caption, ["", *groups], rows, "l" * (1 + len(groups)))


def _other_loss(
    compared: Sequence[Run], groups: Sequence[Sequence[Run]], answers: Mapping[str, list[Block]]
) -> list[Block]:
    """Which loss is proposed, what it changes, and whether that is more than chance."""
    if len(compared) < 2:
        return [f"So far only {loss_name(compared[0])} was trained."]
    pair = sorted(compared, key=lambda run: (run.setting("loss") != "ce", run.best["miou"]))
    first, other = (next(group for group in groups if run in group) for run in pair)
    because, *_ = answers.get(str(other[0].setting("loss")), ["of these numbers."])
    return [
        f"I propose {loss_name(other[0])}, because {because}",
        f"With {_result(first)}; with {_result(other)}. {_verdict(first, other)}",
        f"{_classes(first, other)} {_also_different(pair)}",
    ]


def _result(group: Sequence[Run]) -> str:
    miou, accuracy = (spread([run.best[name] for run in group]) for name in ("miou", "pixel_acc"))
    over = f" over {len(group)} seeds" if len(group) > 1 else ""
    return f"{loss_name(group[0])} the mIoU is {miou} % and the pixel accuracy {accuracy} %{over}"


def _verdict(first: Sequence[Run], other: Sequence[Run]) -> str:
    """Whether the other loss is better, equal or worse, by what two seeds may differ in."""
    gain, accuracy = (
        class_mean(other, name) - class_mean(first, name) for name in ("miou", "pixel_acc")
    )
    by_seed = [[run.best["miou"] for run in group] for group in (first, other)]
    last = [run.column("miou")[-LAST:] for group in (first, other) for run in group]
    is_seeds = max(map(len, by_seed)) > 1
    chance = max(
        np.nanmax(values) - np.nanmin(values) for values in (by_seed if is_seeds else last)
    )
    text = f"That is {100 * gain:+.2f} points of mIoU and {100 * accuracy:+.2f} of pixel accuracy."
    if max(map(len, (*by_seed, *last))) < 2:
        return f"{text} Of one seed and one evaluation nobody can tell whether it is chance."
    of = "seeds of one loss" if is_seeds else "last evaluations of one run"
    by = f"the {points(chance)} by which the {of} differ"
    if abs(gain) <= chance:
        return f"{text} The first is no more than {by}: no run tells which loss is better."
    better = "better" if gain > 0 else "worse"
    names = loss_name(other[0]), loss_name(first[0])
    return f"{text} The first is more than {by}: {names[0]} is {better} here than {names[1]}."


def _classes(first: Sequence[Run], other: Sequence[Run]) -> str:
    """The classes that gain and lose most by the other loss."""
    gains = (
        (class_mean(other, name) - class_mean(first, name), name) for name in first[0].class_names
    )
    order = sorted(pair for pair in gains if math.isfinite(pair[0]))
    up = [f"{code(name)} (+{points(gain)})" for gain, name in order[::-1][:NUM_CLASSES] if gain > 0]
    down = [f"{code(name)} ({points(gain)})" for gain, name in order[:NUM_CLASSES] if gain < 0]
    return (
        f"Most is gained for {', '.join(up) or 'no class'}, and most is lost for "
        f"{', '.join(down) or 'no class'}."
    )


def _also_different(pair: Sequence[Run]) -> str:
    """The settings beside the loss in which two runs differ."""
    one, two = map(all_settings, pair)
    of_loss = UNCOMPARED | {"loss", "focal_gamma", "class_weights"}
    names = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    listed = ", ".join(code(name) for name in names if name not in of_loss)
    if not listed:
        return "The runs differ in no other setting."
    return f"The runs also differ in {listed}: what the loss alone changes, they do not tell."


def _compared_table(compared: Sequence[Run]) -> Table:
    rows = [
        [code(run.name), loss_name(run), *(points(run.best[name]) for name in SCORES.values())]
        for run in compared
    ]
    caption = f"The best run of each loss, on {measured_on(compared[0])}, in percent."
    return Table(caption, ["run", "loss", *SCORES], rows, "ll" + "r" * len(SCORES))
