"""The course's questions: what was measured, in the words of `answers.md`."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from network.modeling import build_model
from utils.report.charts import percent
from utils.report.contents import Findings, code, duration, points, spread
from utils.report.image_choice import has_background, object_classes
from utils.report.markdown import bullets, paragraph, table
from utils.report.runs import (
    class_mean,
    differences,
    evaluation_key,
    group_runs,
    list_notes,
    measured_on,
    runs_to_compare,
)
from utils.run_records import Run, best_run

EQUAL = 0.005  # mIoU; what is closer than half a point is called equal whatever the spread is
LAST = 3  # evaluations at the end of a run that tell its variation
SAM_PARAMETERS = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608}
WORDS = {
    name: " ".join(text.split())
    for name, text in re.findall(
        r"^## (.+)\n([^#]+)",
        (Path(__file__).parent / "answers.md").read_text("utf-8"),
        re.MULTILINE,
    )
}


def say(text: str, /, **values: Any) -> str:
    """A text of `answers.md` with its numbers."""
    return WORDS[text].format(**values).strip()


def balance(found: Findings) -> list[str]:
    """Problem 1.2: how many classes there are, whether they are balanced, and what is hard."""
    names, measured, objects = (
        found.class_names,
        found.statistics,
        object_classes(found.class_names),
    )
    background = f": the background and {len(objects)} object classes"
    text = say("classes", classes=len(names), background=background * has_background(names))
    pixels = measured.pixel_counts.tolist() if measured else [0] * len(names)
    order = sorted((i for i in objects if pixels[i]), key=pixels.__getitem__)
    if not measured or not order:
        return [paragraph(f"{text} {say('unmeasured balance')}")]
    share = [number / sum(pixels) for number in pixels]
    images = measured.image_counts.tolist()
    fills = {i: pixels[i] / int(measured.image_pixels[i]) for i in order}
    absent = ", ".join(code(names[i]) for i in objects if i not in order)
    chosen = {
        "small": order[0], "large": order[-1], "top": share.index(max(share)),
        "few": min(order, key=images.__getitem__),
    }  # fmt: skip
    is_balanced = max(share) < 2 / len(names) and share[order[-1]] < 2 * share[order[0]]
    values = {
        **{name: code(names[i]) for name, i in chosen.items()},
        **{f"{name}_share": percent(share[i]) for name, i in chosen.items()},
        **{f"{name}_images": f"{images[i]:,}" for name, i in chosen.items()},
        "balanced": "about" if is_balanced else "not",
        "kind": "objects" if has_background(names) else "classes",
        "ratio": share[order[-1]] / share[order[0]],
        "absent": absent and f"No pixel at all has {absent}.",
        "rarest": ", ".join(f"{code(names[i])} {percent(share[i])}" for i in order[:3]),
        "images": found.images,
        "void": percent(measured.void_pixels / (sum(pixels) + measured.void_pixels)),
    }
    for name, pick in (("low", min), ("high", max)):
        values[name] = code(names[pick(order, key=fills.__getitem__)])
        values[f"{name}_share"] = percent(pick(fills.values()))
    items = [say(name, **values) for name in ("bias", "rare", "few", "void", "scale")]
    blocks = [paragraph(f"{text} {say('balance', **values)}"), paragraph(say("challenges"))]
    return [*blocks, bullets([*items, look_alikes(found)])]


def look_alikes(found: Findings) -> str:
    """Which object is taken for which most often, if a confusion matrix is there."""
    if found.confusion is None:
        return say("unmeasured alike")
    run, number, confusion = found.confusion
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    shares.fill_diagonal_(0)
    if has_background(found.class_names):  # what is taken for it is missed, and not confused
        shares[:, 0] = shares[0] = 0
    target, pred = (code(found.class_names[i]) for i in divmod(int(shares.argmax()), len(shares)))
    return say(
        "alike", run=code(run), confused=percent(float(shares.max())), target=target, pred=pred,
        confused_images=number, split=code(found.val_image_set),
        kind="objects" if has_background(found.class_names) else "classes",
    )  # fmt: skip


def accuracy_against_miou(found: Findings) -> list[str]:
    """Problem 1.3: an example of the data set's own."""
    texts, split = [say("metrics")], code(found.val_image_set)
    if found.constant is None:
        texts.append(say("unmeasured constant", split=split))
    else:
        name, scores = found.constant
        accuracy, miou = points(scores["pixel_acc"]), points(scores["miou"])
        ious = [iou for iou in scores["class_iou"] if iou is not None]
        number = f" ({found.val_images:,} images)" if found.val_images else ""
        texts.append(
            say(
                "constant",
                name=code(name),
                accuracy=accuracy,
                split=split,
                number=number,
                miou=miou,
                iou=points(max(ious)),
                others=len(ious) - 1,
            )  # fmt: skip
        )
    run = best_run(found.runs)
    if run is not None:
        accuracy, miou = points(run.best["pixel_acc"]), points(run.best["miou"])
        where = measured_on(run)
        texts.append(say("best", key=found.key(run), accuracy=accuracy, miou=miou, where=where))
    return [paragraph(" ".join(texts))]


def heads(found: Findings) -> list[str]:
    """Problem 2.2: how the heads are built, their sizes, and two runs that differ in them."""
    run = best_run(found.runs)
    backbone = str(run.setting("model") if run else "_resnet50").partition("_")[2]
    models = {key: f"deeplab{key}_{backbone}" for key in ("v3", "v3plus")}
    with torch.device("meta"):  # shapes alone
        built = [build_model(name, len(found.class_names)) for name in models.values()]
    v3_size, plus_size = (sum(p.numel() for p in model.parameters()) for model in built)
    v3, plus = map(code, models.values())
    numbers = {"classes": len(found.class_names), "v3_size": v3_size, "plus_size": plus_size}
    text = paragraph(say("heads", v3=v3, plus=plus, **numbers))
    runs = [[r for r in found.runs if r.setting("model") == name] for name in models.values()]
    pairs = [(a, b) for a in runs[0] for b in runs[1] if evaluation_key(a) == evaluation_key(b)]
    if not pairs:
        missing = [name for name, its in zip(models.values(), runs, strict=True) if not its]
        missing = missing or list(models.values())
        commands = (code(f"{found.main_command} --model {name}") for name in missing)
        return [text, paragraph(say("unmeasured heads", commands=" and ".join(commands)))]
    fair = min(pairs, key=lambda p: (len(differences(*p)), -sum(r.best["miou"] for r in p)))
    return [text, *compare(found, *fair, "model")[0]]


def losses(found: Findings) -> list[str]:
    """Problem 3.4: the loss that is proposed, why, and how it came out."""
    pair = runs_to_compare(found.runs)
    pair.sort(key=lambda run: (run.setting("loss") != "ce", run.best["miou"]))
    if not pair or [run.setting("loss") for run in pair] == ["ce"]:
        command = code(f"{found.main_command} --loss focal")
        return [paragraph(say("unmeasured loss", command=command))]
    loss, gamma = pair[-1].setting("loss"), pair[-1].setting("focal_gamma")
    gamma = 2.0 if gamma is None else gamma
    easy, hard = percent(0.1**gamma), percent(0.9**gamma)
    because = say(f"{loss} because", gamma=gamma, easy=easy, hard=hard)
    proposal = paragraph(say("proposal", name=say(f"{loss} name"), because=because))
    if len(pair) == 1:
        command = code(f"{found.main_command} --loss ce")
        return [proposal, paragraph(say("unmeasured ce", command=command))]
    blocks, verdict = compare(found, pair[0], pair[1], "loss")
    return [proposal, *blocks, paragraph(say(verdict, against=say(f"{loss} against")))]


def compare(found: Findings, one: Run, other: Run, subject: str) -> tuple[list[str], str]:
    """What two runs scored, with their seeds; the second is "better", "equal" or "worse".

    `subject` is the setting in which they should differ.
    """
    groups = [next(g for g in group_runs(found.runs) if run in g) for run in (one, other)]
    first, second = (class_mean(group, "mIoU") for group in groups)
    has_seeds = max(map(len, groups)) > 1
    width = max(EQUAL, *(variation(group, has_seeds) for group in groups))
    rows = [[key, *(str(run.setting(key)) for run in (one, other))] for key in ("model", "loss")]
    rows.append(["mIoU", *(spread([run.best["miou"] for run in group]) for group in groups)])
    for part, names in halves(found, groups).items():
        means = (fmean(class_mean(group, name) for name in names) for group in groups)
        rows.append([f"mean IoU of the {len(names)} {part} classes", *map(points, means)])
    times = (fmean(run.log[-1]["seconds"] for run in group) for group in groups)
    rows.append(["time of a run", *map(duration, times)])
    keys = [", ".join(map(found.key, group)) for group in groups]
    caption = f"On {measured_on(one)}, in percent; of several seeds mean ± half the range."
    differing = differences(one, other)
    text = say(
        "compared", gain=100 * abs(second - first), more="more" if second > first else "less",
        source="range over the seeds" if has_seeds else f"range of the last {LAST} evaluations",
        spread=100 * width,
        settings=", ".join(code(f"--{key}") for key in differing) or "none",
    )  # fmt: skip
    notes = list_notes([one, other])
    if set(differing) - {subject, "focal_gamma", "val_interval"}:
        notes.insert(0, say("confounded", subject=subject))
    verdict = "better" if second > first else "worse"
    return (
        [table(caption, ["", *keys], rows, "lrr"), paragraph(" ".join([text, *notes]))],
        "equal" if abs(second - first) <= width else verdict,
    )


def variation(group: Sequence[Run], has_seeds: bool) -> float:
    """The range of the best mIoU of several seeds, or of the last evaluations of one run."""
    values = [run.best["miou"] for run in group] if has_seeds else group[0].column("miou")[-LAST:]
    values = [value for value in values if points(value) != "-"]
    return max(values, default=0) - min(values, default=0)


def halves(found: Findings, groups: Sequence[Sequence[Run]]) -> dict[str, list[str]]:
    """The rarer half of the classes that all runs have a score for, and the other half."""
    if found.statistics is None:
        return {}
    counts = dict(zip(found.class_names, found.statistics.pixel_counts.tolist(), strict=True))
    names = [n for n in counts if all(points(class_mean(group, n)) != "-" for group in groups)]
    names.sort(key=lambda name: (counts[name], name))
    middle = len(names) // 2
    return {"rarer": names[:middle], "more frequent": names[middle:]} if middle else {}


def against_sam(found: Findings) -> list[str]:
    """Problem 4.1: what each does, and how large SAM is."""
    used = ((found.sam or {}).get("sam") or {}).get("sam_model")
    sizes = ", ".join(
        f"{code(name)}{' (used here)' * (name == used)} {number / 1e6:.1f}"
        for name, number in SAM_PARAMETERS.items()
    )
    missing = "" if found.sam else say("unmeasured SAM", command=code(found.sam_command))
    return [paragraph(f"{say('SAM', sizes=sizes)} {missing}".strip())]
