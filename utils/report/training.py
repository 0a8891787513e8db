"""Problem 3: what was trained, how, with which result, and what another loss gave."""

import inspect
import math
from collections.abc import Callable, Sequence
from statistics import fmean

from utils.common.flags import show
from utils.optim import build_optimizer, build_scheduler
from utils.report.contents import Answers, Block, Code, Findings, Heading, Table, code, points
from utils.report.curves import COURSE_MIOU, loss_name
from utils.report.runs import (
    all_settings,
    group_runs,
    images_of,
    measured_on,
    runs_to_compare,
    special_settings,
)
from utils.run_records import Run, best_run

Groups = dict[str, list[Run]]  # runs that differ in the seed alone, by what tables call them: R1
SCORES = {"mIoU": "miou", "pixel acc.": "pixel_acc", "mean acc.": "mean_acc", "fw IoU": "fw_iou"}
NUM_CLASSES = 3  # so many that gain or lose most are named
LAST = 3  # evaluations that say how far a run of one seed goes up and down
SETTINGS = (
    "output_stride", "backbone_weights", "loss", "lr", "backbone_lr_factor", "lr_policy",
    "step_size", "total_itrs", "batch_size", "crop_size",
)  # fmt: skip


def training(found: Findings, answers: Answers) -> list[Block]:
    """Problem 3; `answers` has what speaks for a loss, and against it, by the loss's name."""
    title = Heading(2, "Problem 3: training and evaluation")
    if not found.runs:
        return [title, f"No run yet: {code(found.main_command)} makes one.", *found.notes]
    groups = {f"R{number}": group for number, group in enumerate(group_runs(found.runs), 1)}
    compared = runs_to_compare(found.runs)
    return [
        title,
        [f"{key}: {_description(group)}" for key, group in groups.items()],
        Heading(3, "Problem 3.1: the optimizer and its learning rates"),
        _said_of(groups, _optimizer),
        Code(_lines_of(build_optimizer)),
        Heading(3, "Problem 3.2: the schedule of the learning rates"),
        _said_of(groups, _schedule),
        Code(_lines_of(build_scheduler)),
        Heading(3, "Problem 3.3: the runs, and their mIoU after each evaluation"),
        _best(found.runs),
        *found.show("curves"),
        _score_table(groups),
        _settings_table(groups),
        *([found.notes] if found.notes else []),
        _class_table(groups),
        Heading(3, "Problem 3.4: which other loss, and why?"),
        *_other_loss(compared, groups, answers),
        Heading(3, "Problem 3.5: the best models, and what they predict"),
        _compared_table(compared),
        *found.show("compare", "errors", "confusion"),
    ]


def _description(group: Sequence[Run]) -> str:
    """What the runs of a group are, on what they were scored, and where they were trained."""
    first, name = group[0], group[0].name
    if len(group) > 1:
        name = f"{first.variant}_s{{{','.join(str(run.setting('seed')) for run in group)}}}"
    device, precision = (first.environment.get(key, "-") for key in ("device", "precision"))
    machine = first.environment.get("gpu") if "cuda" in device else device
    return (
        f"{code(name)}, {code(first.setting('model'))}, evaluated on {measured_on(first)}; "
        f"{machine}, {precision}"
    )


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
    else:
        text = f"both rates become a tenth after every {step:,} of {total:,} iterations"
    return text + (f", and rise over the first {warmup:,}." if warmup else ".")


def _best(runs: Sequence[Run]) -> str:
    """The best run, beside what the course asks for on VOC."""
    run = best_run(runs)
    epoch = f"epoch {run.best['epoch']:g}, " if math.isfinite(run.best["epoch"]) else ""
    text = (
        f"The best run is {code(run.name)} ({loss_name(run)}) with {points(run.best['miou'])} % "
        f"mIoU on {measured_on(run)}, after {epoch}iteration {run.best['iteration']:,}."
    )
    if run.setting("dataset") == "voc":
        text += f" The course asks for {COURSE_MIOU} % with cross entropy, on whole images."
    return text


def _score_table(groups: Groups) -> Table:
    """What each group scored, how long it took, and in how much memory."""
    rows = []
    for key, group in groups.items():
        row = [key]
        for name in SCORES.values():
            scores = [run.best[name] for run in group]
            half = f" ± {points((max(scores) - min(scores)) / 2)}" if len(group) > 1 else ""
            row.append(points(fmean(scores)) + half)
        memory = [mb for run in group for mb in run.column("max_memory_mb") if math.isfinite(mb)]
        minutes = fmean(run.log[-1]["seconds"] for run in group) / 60
        rows.append([*row, f"{minutes:,.1f}", f"{max(memory):,.0f} MB" if memory else "-"])
    caption = (
        "Best evaluation of each run while it was trained, in percent: mean ± half the range over "
        "the seeds. Minutes are of a whole run with its evaluations, their mean; memory is the peak"
        " that PyTorch had allocated on the GPU."
    )
    return Table(caption, ["", *SCORES, "minutes", "memory"], rows, "lrrrrrr")


def _class_table(groups: Groups) -> Table:
    """The IoU of each class and group."""
    rows = [
        [code(name), *(points(_mean(group, name)) for group in groups.values())]
        for name in next(iter(groups.values()))[0].class_names
    ]
    caption = "IoU of each class in percent, at the best evaluation, mean over the seeds."
    return Table(caption, ["class", *groups], rows, "l" + "r" * len(groups))


def _mean(group: Sequence[Run], class_name: str) -> float:
    """The mean over runs of a class's IoU at the best; NaN if a run has none."""
    shares = [run.best["class_iou"].get(class_name) for run in group]
    return math.nan if None in shares else fmean(shares)


def _settings_table(groups: Groups) -> Table:
    """The settings of a recipe, and all that are not the data set's default; a column per group."""
    firsts = [group[0] for group in groups.values()]
    settings = [all_settings(run) for run in firsts]
    for those in settings:
        if those["lr_policy"] != "step":
            those["step_size"] = None
    special = set().union(*map(special_settings, firsts)) - {"model", "image_set", *SETTINGS}
    rows = [["trained on", *(images_of(run, "train") for run in firsts)]]
    rows += [
        [code(key), *("-" if s.get(key) is None else show(s[key]) for s in settings)]
        for key in (*SETTINGS, *sorted(special))
    ]
    caption = "Settings of the recipe, and every other one that is not the data set's default."
    return Table(caption, ["", *groups], rows, "l" * (1 + len(groups)))


def _other_loss(compared: Sequence[Run], groups: Groups, answers: Answers) -> list[Block]:
    """Which loss is proposed, what it changes, and whether that is more than chance."""
    if len(compared) < 2:
        return [f"So far only {loss_name(compared[0])} was trained."]
    pair = sorted(compared, key=lambda run: (run.setting("loss") != "ce", run.best["miou"]))
    keys = [next(key for key, group in groups.items() if run in group) for run in pair]
    first, other = (groups[key] for key in keys)
    names = [loss_name(run) for run in pair]
    because, *_ = answers.get(str(pair[1].setting("loss")), ["of these numbers."])
    gain, accuracy = (
        100 * (fmean(run.best[name] for run in other) - fmean(run.best[name] for run in first))
        for name in ("miou", "pixel_acc")
    )
    return [
        f"I propose {names[1]}, because {because}",
        f"With {names[1]} ({keys[1]}) in place of {names[0]} ({keys[0]}) the mIoU changes by "
        f"{gain:+.2f} points and the pixel accuracy by {accuracy:+.2f}. "
        + _verdict(gain, first, other),
        f"{_classes(first, other)} {_also_different(*pair)}",
    ]


def _verdict(gain: float, first: Sequence[Run], other: Sequence[Run]) -> str:
    """Whether the other loss is better, equal or worse, by what seeds or evaluations differ in."""
    of, several = "seeds of one loss", [[run.best["miou"] for run in by] for by in (first, other)]
    if max(map(len, several)) < 2:
        of = "last evaluations of one run"
        several = [run.column("miou")[-LAST:] for run in (*first, *other)]
    if max(map(len, several)) < 2:
        return "Of one seed and one evaluation nobody can tell whether it is chance."
    chance = 100 * max(max(values) - min(values) for values in several)
    by = f"the {chance:.2f} by which the {of} differ"
    if abs(gain) <= chance:
        return f"The first is no more than {by}: no run tells which loss is better."
    better = "better" if gain > 0 else "worse"
    return f"The first is more than {by}: {loss_name(other[0])} is {better} here."


def _classes(first: Sequence[Run], other: Sequence[Run]) -> str:
    """The classes that gain and lose most by the other loss."""
    gains = {name: _mean(other, name) - _mean(first, name) for name in first[0].class_names}
    order = sorted((name for name in gains if math.isfinite(gains[name])), key=gains.__getitem__)
    gained = [name for name in order[::-1] if gains[name] > 0]
    lost = [name for name in order if gains[name] < 0]
    up, down = (
        ", ".join(f"{code(name)} ({100 * gains[name]:+.2f})" for name in names[:NUM_CLASSES])
        for names in (gained, lost)
    )
    return f"Most is gained for {up or 'no class'}, and most is lost for {down or 'no class'}."


def _also_different(one: Run, two: Run) -> str:
    """The settings beside the loss in which two runs differ, and whether their images do."""
    settings, others = all_settings(one), all_settings(two)
    names = {key for key in settings.keys() | others if settings.get(key) != others.get(key)}
    names -= {"loss", "focal_gamma", "class_weights"}
    words = [*map(code, sorted(names))]
    if one.lists.get("train") != two.lists.get("train"):
        words.append("the images that they were trained on")
    if not words:
        return "The runs differ in no other setting."
    listed = ", ".join(words)
    return f"The runs also differ in {listed}: what the loss alone changes, they do not tell."


def _compared_table(compared: Sequence[Run]) -> Table:
    rows = [
        [code(run.name), loss_name(run), *(points(run.best[name]) for name in SCORES.values())]
        for run in compared
    ]
    caption = f"The best run of each loss, on {measured_on(compared[0])}, in percent."
    return Table(caption, ["run", "loss", *SCORES], rows, "ll" + "r" * len(SCORES))
