"""The report, problem by problem: what was found, as text, tables and figures; what is missing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from network.modeling import build_model
from utils.common.flags import show
from utils.report.charts import loss_name, percent
from utils.report.contents import Findings, code, points
from utils.report.markdown import bullets, heading, paragraph, table
from utils.report.runs import (
    UNCOMPARED,
    all_settings,
    group_runs,
    list_notes,
    measured_on,
    runs_to_compare,
)
from utils.report.score_tables import class_table, summary, with_keys
from utils.run_records import Run, best_run

SETTINGS = (
    "image_set", "output_stride", "backbone_weights", "loss", "lr", "backbone_lr_factor",
    "lr_policy", "step_size", "total_itrs", "batch_size", "crop_size",
)  # fmt: skip
# The texts of `answers.md`, by the number of the problem.
ANSWERS = {
    problem: text.strip()
    for problem, text in re.findall(
        r"^## (\S+)\n(.+?)(?=^## |\Z)",
        (Path(__file__).parent / "answers.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
}


def build_report(found: Findings) -> str:
    """The whole report as Markdown, in the order of the course's problems."""
    below_title = ", ".join(filter(None, (found.author, found.date)))
    blocks = [
        heading(1, f"Semantic segmentation of {found.data_title} with DeepLab"),
        *([paragraph(below_title)] if below_title else []),
        *_data(found),
        heading(2, "Problem 2: the network"),
        heading(3, "Problem 2.2: what differs between the heads of DeepLabV3 and DeepLabV3+?"),
        ANSWERS["2.2"],
        _size_table(found),
        *_runs(found),
        *_sam(found),
        *_missing(found),
    ]
    return "\n\n".join(blocks) + "\n"


def _pictures(found: Findings, *names: str) -> list[str]:
    """Those pictures that there are."""
    return [found.pictures[name] for name in names if name in found.pictures]


def _data(found: Findings) -> list[str]:
    return [
        heading(2, "Problem 1: the data"),
        heading(3, "Problem 1.2: how many classes are there, are they balanced, what is hard?"),
        *_class_table(found),
        *_pictures(found, "distribution"),
        ANSWERS["1.2"],
        heading(3, "Problem 1.3: why is mIoU the better metric than pixel accuracy?"),
        ANSWERS["1.3"],
        *_accuracy_table(found),
        heading(3, "Problem 1.4: images and their ground truth"),
        *_pictures(found, "classes"),
    ]


def _class_table(found: Findings) -> list[str]:
    if found.statistics is None:
        return []
    counts, images = found.statistics.pixel_counts, found.statistics.image_counts
    void, labelled = found.statistics.void_pixels, max(int(counts.sum()), 1)
    rows = [
        [code(name), f"{int(pixels):,}", percent(int(pixels) / labelled), f"{int(number):,}"]
        for name, pixels, number in zip(found.class_names, counts, images, strict=True)
    ]
    caption = (
        f"{len(rows)} classes of {code(found.image_set)} ({found.images:,} images). Void, "
        f"{percent(void / (labelled + void))} of all pixels, is not counted."
    )
    return [table(caption, ["class", "pixels", "share of the labelled", "images"], rows, "lrrr")]


def _accuracy_table(found: Findings) -> list[str]:
    """Both metrics of a constant prediction and of the best run."""
    rows: list[tuple[str, str, dict[str, Any]]] = []
    run = best_run(found.runs)
    if found.constant:
        name, scores = found.constant
        on = f"{code(found.val_image_set)} ({found.val_images:,} images)"
        rows.append((f"{code(name)} everywhere", on, scores))
    if run:
        rows.append((f"{code(run.name)}, the best run", measured_on(run), run.best))
    cells = [[what, on, points(by["pixel_acc"]), points(by["miou"])] for what, on, by in rows]
    caption = "Pixel accuracy and mIoU in percent."
    return [table(caption, ["", "on", "pixel acc.", "mIoU"], cells, "llrr")] if rows else []


def _size_table(found: Findings) -> str:
    """The parameters of both heads' models, with the backbone of the best run."""
    run, number = best_run(found.runs), len(found.class_names)
    backbone = str(run.setting("model") if run else "_resnet50").partition("_")[2]
    rows = []
    for name in (f"deeplabv3_{backbone}", f"deeplabv3plus_{backbone}"):
        with torch.device("meta"):  # shapes alone
            parameters = build_model(name, number).parameters()
        rows.append([code(name), f"{sum(p.numel() for p in parameters):,}"])
    return table(f"Sizes with {number} classes.", ["model", "parameters"], rows, "lr")


def _runs(found: Findings) -> list[str]:
    """Problem 3: what was trained, how, and with which result."""
    blocks: list[str] = [heading(2, "Problem 3: training and evaluation")]
    if not found.runs:
        blocks.append(paragraph(f"No run yet: {code(found.main_command)} makes one."))
        return [*blocks, *map(paragraph, found.notes)]
    compared = (
        f"{code(run.name)} ({loss_name(run)}) with {points(run.best['miou'])} % mIoU on "
        f"{measured_on(run)}"
        for run in runs_to_compare(found.runs)
    )
    groups = with_keys(group_runs(found.runs))
    return [
        *blocks,
        heading(3, "Problem 3.3: the runs, and their mIoU after each evaluation"),
        *summary(groups),
        _settings_table(groups),
        *map(paragraph, list_notes(found.runs)),
        *([bullets(found.notes)] if found.notes else []),
        class_table(groups),
        *_pictures(found, "curves"),
        heading(3, "Problem 3.4: which other loss, and why?"),
        ANSWERS["3.4"],
        heading(3, "Problem 3.5: the best models, and what they predict"),
        paragraph(f"The best run of each loss: {', '.join(compared)}."),
        *_pictures(found, "compare", "errors", "confusion"),
    ]


def _settings_table(groups: Mapping[str, Sequence[Run]]) -> str:
    """The settings of a recipe, and all others in which the runs differ; a column per group."""
    settings = [all_settings(group[0]) for group in groups.values()]
    keys = sorted({key for each in settings for key in each} - UNCOMPARED - {"model", *SETTINGS})
    differ = [key for key in keys if any(s.get(key) != settings[0].get(key) for s in settings)]
    rows = [
        [code(key), *("-" if s.get(key) is None else show(s[key]) for s in settings)]
        for key in (*SETTINGS, *differ)
    ]
    caption = "Settings of the recipe, and every other one in which the runs differ."
    return table(caption, ["", *groups], rows, "l" * (1 + len(groups)))


def _sam(found: Findings) -> list[str]:
    """What `sam_infer.py` measured; any part may be missing."""
    sam = found.sam or {}
    names = {
        "deeplab": "DeepLab",
        "sam_deeplab": "SAM's masks, classes from DeepLab",
        "oracle": "SAM's masks, classes from the ground truth",
    }
    cells = {f"mIoU of {names[key]}": points((sam.get(key) or {}).get("miou")) for key in names}
    for width, scores in (sam.get("borders") or {}).items():
        for key in ("deeplab", "sam_deeplab"):
            name = f"mIoU of {names[key]}, within {width} pixels of a border"
            cells[name] = points((scores or {}).get(key))
    for key in ("masks_per_image", "masks_per_region", "seconds_per_image"):
        cells[key.replace("_", " ")] = f"{sam[key]:.1f}" if sam.get(key) is not None else "-"
    rows = [row for row in cells.items() if row[1] != "-"]
    number, split = len(sam.get("images") or []), code(sam.get("image_set"))
    caption = (
        f"SAM on {number} image{'s' * (number != 1)} of {split}, mIoU in percent over these images "
        "alone: no score of a whole split compares with it. Regions are those of the ground truth."
    )
    if sam.get("checkpoint"):
        caption += f" DeepLab is {code(sam['checkpoint'])}."
    return [
        heading(2, "Problem 4: Segment Anything"),
        heading(3, "Problem 4.1: what differs between semantic segmentation and SAM?"),
        ANSWERS["4.1"],
        *([table(caption, ["", "value"], rows, "lr")] if rows else []),
    ]


def _missing(found: Findings) -> list[str]:
    if not found.missing:
        return []
    items = [f"{m.what}: {m.reason}. To make it: {code(m.command)}" for m in found.missing]
    return [heading(2, "What is missing"), bullets(items)]
