"""The report: what was found, as text, tables and figures; and what is missing."""

import math
from pathlib import Path

from utils.common.files import write_text
from utils.report.charts import percent
from utils.report.contents import Findings, code, duration, hardware, points, protocol, run_key
from utils.report.markup import Block, Bullets, Heading, Table, Text, to_latex, to_markdown
from utils.report.questions import answer_questions
from utils.run_records import Run

RUNS_PER_TABLE = 6  # columns that fit on a page


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
    """The whole report."""
    return [
        Heading(1, f"Semantic segmentation of {found.dataset_name} with DeepLab"),
        *_data(found),
        *_runs(found),
        *_comparison(found),
        *_sam(found),
        Heading(2, "Questions and answers"),
        *answer_questions(found),
        *_missing(found),
    ]


def _pictures(found: Findings, *names: str) -> list[Block]:
    return [found.pictures[name] for name in names if name in found.pictures]


def _data(found: Findings) -> list[Block]:
    """The data set: figures, and the table of the classes."""
    blocks: list[Block] = [Heading(2, "Data"), *_pictures(found, "classes", "distribution")]
    if found.statistics is None:
        return blocks
    counts, images = found.statistics.pixel_counts, found.statistics.image_counts
    void = found.statistics.void_pixels
    labelled = max(int(counts.sum()), 1)
    rows = [
        [code(name), f"{int(pixels):,}", percent(int(pixels) / labelled), f"{int(number):,}"]
        for name, pixels, number in zip(found.class_names, counts, images, strict=True)
    ]
    caption = (
        f"Classes of {code(found.image_set)} ({found.images:,} images). Void, "
        f"{percent(void / (labelled + void))} of all pixels, is not counted."
    )
    header = ["class", "pixels", "share of the labelled pixels", "images"]
    return [*blocks, Table(caption, header, rows, "lrrr")]


def _runs(found: Findings) -> list[Block]:
    """What was trained, how, and with which result."""
    blocks: list[Block] = [Heading(2, "Runs")]
    if not found.runs:
        return [*blocks, Text(f"No run yet: {code(found.main_command)} makes one.")]
    names = [[run_key(found, run), code(run.name), hardware(run)] for run in found.runs]
    blocks += [
        Table("Runs.", ["", "run", "trained on"], names, "lpp"),
        Table("Settings.", ["", *SETTINGS], [_settings(found, run) for run in found.runs], "l" * 9),
        Table(
            f"Scores on {code(found.val_image_set)} in percent, at the best evaluation.",
            ["", "mIoU", "pixel acc.", "mean acc.", "fw IoU", "epoch", "time", "memory"],
            [_scores(found, run) for run in found.runs],
            "lrrrrrrr",
        ),
        Text(
            "Time is that of the whole run with its evaluations; memory is the peak of the "
            "GPU's memory that PyTorch had allocated."
        ),
    ]
    protocols = {protocol(run) for run in found.runs}
    for text in sorted(protocols):
        those = ", ".join(run_key(found, run) for run in found.runs if protocol(run) == text)
        blocks.append(Text(f"Protocol of {those}: {text}."))
    if len(protocols) > 1:
        blocks.append(Text("Scores of different protocols cannot be compared with each other."))
    if found.notes:
        blocks.append(Bullets(found.notes))
    return [*blocks, *_pictures(found, "curves"), *_class_tables(found)]


SETTINGS = ("model", "stride", "backbone", "loss", "lr", "schedule", "iterations", "crop")


def _settings(found: Findings, run: Run) -> list[str]:
    crop = "\N{MULTIPLICATION SIGN}".join(map(str, run.setting("crop_size") or "?"))
    loss = str(run.setting("loss"))
    if run.setting("focal_gamma") is not None:
        loss += f" {run.setting('focal_gamma'):g}"
    schedule = str(run.setting("lr_policy"))
    if schedule == "step":
        schedule += f" {run.setting('step_size')}"
    times = f"{run.setting('total_itrs')} \N{MULTIPLICATION SIGN} {run.setting('batch_size')}"
    weights = Path(str(run.setting("backbone_weights"))).name
    return [
        run_key(found, run), str(run.setting("model")), str(run.setting("output_stride")),
        weights, loss, f"{run.setting('lr')}", schedule, times, crop,
    ]  # fmt: skip


def _scores(found: Findings, run: Run) -> list[str]:
    best = run.best
    scores = [points(best[key]) for key in ("miou", "pixel_acc", "mean_acc", "fw_iou")]
    epoch = f"{best['epoch']:g}" if math.isfinite(best["epoch"]) else "-"
    seconds = max((s for s in run.column("seconds") if math.isfinite(s)), default=math.nan)
    memory = max((m for m in run.column("max_memory_mb") if math.isfinite(m)), default=math.nan)
    return [
        run_key(found, run), *scores, epoch, duration(seconds),
        f"{memory:,.0f} MB" if math.isfinite(memory) else "-",
    ]  # fmt: skip


def _class_tables(found: Findings) -> list[Block]:
    """The IoU of each class, a few runs at a time."""
    blocks: list[Block] = []
    for start in range(0, len(found.runs), RUNS_PER_TABLE):
        runs = found.runs[start : start + RUNS_PER_TABLE]
        rows = [
            [code(name), *(points(run.best["class_iou"].get(name)) for run in runs)]
            for name in found.class_names
        ]
        keys = [run_key(found, run) for run in runs]
        caption = "IoU of each class in percent, at the best evaluation."
        blocks.append(Table(caption, ["class", *keys], rows, "l" + "r" * len(runs)))
    return blocks


def _comparison(found: Findings) -> list[Block]:
    pictures = _pictures(found, "compare", "errors", "confusion")
    return [Heading(2, "Predictions"), *pictures] if pictures else []


def _sam(found: Findings) -> list[Block]:
    """What `sam_infer.py` measured; any part may be missing."""
    if not found.sam:
        return []
    sam = found.sam
    names = {
        "deeplab": "DeepLab",
        "sam_deeplab": "SAM's masks, classes from DeepLab",
        "oracle": "SAM's masks, classes from the ground truth",
    }
    rows = [[text, points((sam.get(key) or {}).get("miou"))] for key, text in names.items()]
    for width, scores in (sam.get("borders") or {}).items():
        for key in ("deeplab", "sam_deeplab"):
            name = f"{names[key]}, within {width} pixels of a border"
            rows.append([name, points((scores or {}).get(key))])
    rows += [
        [text, f"{sam[key]:.1f}"]
        for key, text in {
            "masks_per_image": "masks per image",
            "masks_per_region": "masks per region of the ground truth",
            "seconds_per_image": "seconds per image",
        }.items()
        if isinstance(sam.get(key), int | float)
    ]
    rows = [row for row in rows if row[1] != "-"]
    caption = f"SAM on {len(sam.get('images') or [])} images of {code(sam.get('image_set'))}"
    if sam.get("checkpoint"):
        caption += f", with the predictions of {code(sam['checkpoint'])}"
    table = Table(f"{caption}; mIoU in percent.", ["", "value"], rows, "pr")
    return [Heading(2, "Segment Anything"), table]


def _missing(found: Findings) -> list[Block]:
    if not found.missing:
        return []
    items = [f"{m.what}: {m.reason}. To make it: {code(m.command)}" for m in found.missing]
    return [Heading(2, "What is missing"), Bullets(items)]
