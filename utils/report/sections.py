"""The report, problem by problem: what was found, as text, tables and figures; what is missing."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from utils.common.files import write_text
from utils.report.charts import percent
from utils.report.contents import Findings, code, duration, points, spread
from utils.report.markup import Block, Bullets, Heading, Table, Text, to_latex, to_markdown
from utils.report.questions import accuracy_against_miou, against_sam, balance, heads, losses
from utils.report.runs import (
    class_mean,
    group_runs,
    hardware,
    images_of,
    list_notes,
    measured_on,
    protocol,
    runs_to_compare,
)
from utils.report.score_tables import PER_CLASS
from utils.run_records import Run

GROUPS_PER_TABLE = 6  # columns that fit on a page
SCORES = {"mIoU": "miou", "pixel acc.": "pixel_acc", "mean acc.": "mean_acc", "fw IoU": "fw_iou"}
SCORES_CAPTION = (
    "Scores in percent, at the best evaluation of each run; of runs that differ in the seed alone "
    "mean ± half the range. Time is that of a whole run with its evaluations; memory is the peak "
    "of what PyTorch had allocated on the GPU."
)


def write_report(found: Findings, folder: Path, picture_suffix: str) -> list[Path]:
    """Write `report.md` and `report.tex`.

    Args:
        found: everything.
        folder: holds the pictures.
        picture_suffix: of the pictures that LaTeX can read.

    Returns:
        The files.
    """
    blocks = build_report(found)
    markdown, latex = folder / "report.md", folder / "report.tex"
    write_text(markdown, to_markdown(blocks))
    write_text(latex, to_latex(blocks, picture_suffix))
    return [markdown, latex]


def build_report(found: Findings) -> list[Block]:
    """The whole report, in the order of the course's problems."""
    title = f"Semantic segmentation of {found.data_title} with DeepLab"
    return [
        Heading(1, title, ", ".join(filter(None, (found.author, found.date)))),
        *_data(found),
        Heading(2, "Problem 2: the network"),
        Heading(3, "Problem 2.2: what differs between the heads of DeepLabV3 and DeepLabV3+?"),
        *heads(found),
        *_runs(found),
        *_sam(found),
        *_missing(found),
    ]


def _pictures(found: Findings, *names: str, heading: str = "") -> list[Block]:
    """Those pictures that there are, with a heading if there is one."""
    pictures = [found.pictures[name] for name in names if name in found.pictures]
    return [*([Heading(3, heading)] if heading and pictures else []), *pictures]


def _data(found: Findings) -> list[Block]:
    return [
        Heading(2, "Problem 1: the data"),
        Heading(3, "Problem 1.2: how many classes are there, are they balanced, what is hard?"),
        *balance(found),
        *_class_table(found),
        *_pictures(found, "distribution"),
        Heading(3, "Problem 1.3: why is mIoU the better metric than pixel accuracy?"),
        *accuracy_against_miou(found),
        *_pictures(found, "classes", heading="Problem 1.4: images and their ground truth"),
    ]


def _class_table(found: Findings) -> list[Block]:
    if found.statistics is None:
        return []
    counts, images = found.statistics.pixel_counts, found.statistics.image_counts
    void, labelled = found.statistics.void_pixels, max(int(counts.sum()), 1)
    rows = [
        [code(name), f"{int(pixels):,}", percent(int(pixels) / labelled), f"{int(number):,}"]
        for name, pixels, number in zip(found.class_names, counts, images, strict=True)
    ]
    caption = (
        f"Classes of {code(found.image_set)} ({found.images:,} images). Void, "
        f"{percent(void / (labelled + void))} of all pixels, is not counted."
    )
    return [Table(caption, ["class", "pixels", "share of the labelled", "images"], rows, "lrrr")]


def _runs(found: Findings) -> list[Block]:
    """Problem 3: what was trained, how, and with which result."""
    blocks: list[Block] = [Heading(2, "Problem 3: training and evaluation")]
    if not found.runs:
        blocks.append(Text(f"No run yet: {code(found.main_command)} makes one."))
        return [*blocks, *map(Text, found.notes)]
    compared = (
        f"{found.key(run)} (loss {loss_of(run)}) with {points(run.best['miou'])} % mIoU on "
        f"{measured_on(run)}"
        for run in runs_to_compare(found.runs)
    )
    names = [
        [found.key(run), code(run.name), images_of(run, "train"), hardware(run)]
        for run in found.runs
    ]
    settings = [{"": found.key(run), **_settings(run)} for run in found.runs]
    cells = [list(row.values()) for row in settings]
    groups = group_runs(found.runs)
    return [
        *blocks,
        Heading(3, "Problem 3.3: the runs, and their mIoU after each evaluation"),
        Table("Runs.", ["", "run", "trained on", "hardware"], names, "llll"),
        Table("Settings; iterations × images in each.", list(settings[0]), cells, "l" * 9),
        _score_table(found, groups),
        Text(" ".join([*_protocols(found), *list_notes(found.runs)])),
        *([Bullets(found.notes)] if found.notes else []),
        *_class_ious(found, groups),
        *_pictures(found, "curves"),
        Heading(3, "Problem 3.4: which other loss, and why?"),
        *losses(found),
        Heading(3, "Problem 3.5: the best models, and what they predict"),
        Text(f"The best run of each loss: {', '.join(compared)}."),
        *_pictures(found, "compare", "errors", "confusion"),
    ]


def _protocols(found: Findings) -> list[str]:
    keys: dict[str, list[str]] = {}
    for run in found.runs:
        keys.setdefault(protocol(run), []).append(found.key(run))
    texts = [f"Protocol of {', '.join(those)}: {text}." for text, those in keys.items()]
    return [*texts, *["Scores of different protocols do not compare."] * (len(keys) > 1)]


def loss_of(run: Run) -> str:
    """A run's loss with what was set of it."""
    gamma, weights = run.setting("focal_gamma"), run.setting("class_weights")
    text = f"{run.setting('loss')}" + ("" if gamma is None else f", gamma {gamma:g}")
    return text if weights in (None, "none") else f"{text}, weights {weights}"


def _settings(run: Run) -> dict[str, str]:
    schedule = str(run.setting("lr_policy"))
    return {
        "model": str(run.setting("model")),
        "stride": str(run.setting("output_stride")),
        "backbone": Path(str(run.setting("backbone_weights"))).name,
        "loss": loss_of(run),
        "lr": str(run.setting("lr")),
        "schedule": f"step {run.setting('step_size')}" if schedule == "step" else schedule,
        "iterations": f"{run.setting('total_itrs')} × {run.setting('batch_size')}",
        "crop": "×".join(map(str, run.setting("crop_size") or "?")),
    }


def _score_table(found: Findings, groups: Sequence[Sequence[Run]]) -> Table:
    rows = []
    for group in groups:
        seconds = fmean(run.log[-1]["seconds"] for run in group)
        memory = [m for run in group for m in run.column("max_memory_mb") if math.isfinite(m)]
        rows.append([
            ", ".join(map(found.key, group)),
            *(spread([run.best[key] for run in group]) for key in SCORES.values()),
            ", ".join(f"{run.best['epoch']:g}".replace("nan", "-") for run in group),
            duration(seconds),
            f"{max(memory):,.0f} MB" if memory else "-",
            ", ".join(sorted({images_of(run, "val") for run in group})),
        ])  # fmt: skip
    header = ["", *SCORES, "epoch", "time", "memory", "evaluated on"]
    return Table(SCORES_CAPTION, header, rows, "lrrrrrrrl")


def _class_ious(found: Findings, groups: Sequence[Sequence[Run]]) -> list[Block]:
    """The IoU of each class, a few groups of runs at a time."""
    blocks: list[Block] = []
    for start in range(0, len(groups), GROUPS_PER_TABLE):
        those = groups[start : start + GROUPS_PER_TABLE]
        rows = [
            [code(name), *(points(class_mean(group, name)) for group in those)]
            for name in found.class_names
        ]
        splits = ", ".join(sorted({images_of(run, "val") for group in those for run in group}))
        header = ["class", *(", ".join(map(found.key, group)) for group in those)]
        blocks.append(Table(f"{PER_CLASS}, on {splits}.", header, rows, "l" + "r" * len(those)))
    return blocks


def _sam(found: Findings) -> list[Block]:
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
        Heading(2, "Problem 4: Segment Anything"),
        Heading(3, "Problem 4.1: what differs between semantic segmentation and SAM?"),
        *against_sam(found),
        *([Table(caption, ["", "value"], rows, "lr")] if rows else []),
    ]


def _missing(found: Findings) -> list[Block]:
    if not found.missing:
        return []
    items = [f"{m.what}: {m.reason}. To make it: {code(m.command)}" for m in found.missing]
    return [Heading(2, "What is missing"), Bullets(items)]
