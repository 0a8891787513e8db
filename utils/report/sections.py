"""The report, problem by problem: what was found, as text, tables and figures; what is missing."""

from pathlib import Path

import torch

from network.modeling import build_model
from utils.report.contents import Answers, Block, Findings, Heading, Table, code, points
from utils.report.runs import measured_on
from utils.report.training import training
from utils.run_records import best_run

SAM_ROWS = {
    "deeplab": "DeepLab",
    "sam_deeplab": "SAM's masks, classes from DeepLab",
    "oracle": "SAM's masks, classes from the ground truth",
}


def build_report(found: Findings) -> dict[str, list[Block]]:
    """The blocks of the report, by the names of its parts: the course's problems in their order."""
    answers = read_answers()
    parts = {
        "problem1": _data(found, answers),
        "problem2": _network(found, answers),
        "problem3": training(found, answers),
        "problem4": _sam(found, answers),
    }
    if found.missing:
        parts["missing"] = [Heading(2, "What is missing"), found.missing]
    return parts


def read_answers() -> Answers:
    """The paragraphs of `answers.md`, by the heading that they stand under; a list is a block."""
    text = (Path(__file__).parent / "answers.md").read_text("utf-8")
    answers: Answers = {}
    for part in text.split("\n## ")[1:]:
        title, *texts = part.strip().split("\n\n")
        answers[title] = []
        for text in texts:
            first, *items = (" ".join(item.split()) for item in f"\n{text}".split("\n- "))
            answers[title].append(items or first)
    return answers


def _data(found: Findings, answers: Answers) -> list[Block]:
    return [
        Heading(2, "Problem 1: the data"),
        Heading(3, "Problem 1.2: how many classes are there, are they balanced, what is hard?"),
        *_balance(found),
        *found.show("distribution"),
        *answers["1.2"],
        Heading(3, "Problem 1.3: why is mIoU the better metric than pixel accuracy?"),
        *answers["1.3"],
        *_accuracy_table(found),
        Heading(3, "Problem 1.4: images and their ground truth"),
        *found.show("classes"),
    ]


def _balance(found: Findings) -> list[Block]:
    """Whether the classes are balanced, and the numbers that say so."""
    if found.statistics is None:
        return []
    counts, images = found.statistics.pixel_counts.tolist(), found.statistics.image_counts.tolist()
    void, labelled = found.statistics.void_pixels, max(sum(counts), 1)
    by_size = sorted(zip(counts, map(code, found.class_names), strict=True), reverse=True)
    (most, largest), (least, smallest) = by_size[0], [pair for pair in by_size if pair[0]][-1]
    shares = f"{largest} has {points(most / labelled)} % of the labelled pixels"
    if most * len(counts) < 2 * labelled:
        answer = f"They are balanced: {shares}, less than twice the mean of all classes"
    else:
        answer = (
            f"They are not balanced: {shares}, {smallest} {points(least / labelled)} %, "
            f"{most / least:,.0f} times fewer"
        )
    rows = [
        [code(name), f"{pixels:,}", points(pixels / labelled), f"{number:,}"]
        for name, pixels, number in zip(found.class_names, counts, images, strict=True)
    ]
    caption = (
        f"{len(rows)} classes of {code(found.image_set)} ({found.images:,} images). Void, "
        f"{points(void / (labelled + void))} % of all pixels, is not counted."
    )
    header = ["class", "pixels", "% of the labelled", "images"]
    return [
        f"There are {len(counts)} classes. {answer}.",
        Table(caption, header, rows, "lrrr"),
    ]


def _accuracy_table(found: Findings) -> list[Block]:
    """Both metrics of a constant prediction and of the best run."""
    rows = [found.constant] if found.constant else []
    if found.runs:
        run = best_run(found.runs)
        scores = points(run.best["pixel_acc"]), points(run.best["miou"])
        rows.append([f"{code(run.name)}, the best run", measured_on(run), *scores])
    caption = "Pixel accuracy and mIoU in percent."
    return [Table(caption, ["", "on", "pixel acc.", "mIoU"], rows, "llrr")] if rows else []


def _network(found: Findings, answers: Answers) -> list[Block]:
    """What differs between the heads, and their sizes with the backbone of the best run."""
    run, number = best_run(found.runs) if found.runs else None, len(found.class_names)
    backbone = str(run.setting("model") if run else "_resnet50").partition("_")[2]
    rows = []
    for name in (f"deeplabv3_{backbone}", f"deeplabv3plus_{backbone}"):
        with torch.device("meta"):  # shapes alone
            parameters = build_model(name, number).parameters()
        rows.append([code(name), f"{sum(p.numel() for p in parameters):,}"])
    return [
        Heading(2, "Problem 2: the network"),
        Heading(3, "Problem 2.2: what differs between the heads of DeepLabV3 and DeepLabV3+?"),
        *found.show("heads"),
        *answers["2.2"],
        Table(f"Sizes with {number} classes.", ["model", "parameters"], rows, "lr"),
    ]


def _sam(found: Findings, answers: Answers) -> list[Block]:
    """What `sam_infer.py` measured; any part may be missing."""
    blocks: list[Block] = [
        Heading(2, "Problem 4: Segment Anything"),
        Heading(3, "Problem 4.1: what differs between semantic segmentation and SAM?"),
        *answers["4.1"],
    ]
    if found.sam is None:
        return blocks
    sam, borders = found.sam, found.sam.get("borders") or {}
    names = ("masks_per_image", "masks_per_region", "seconds_per_image")
    numbers = [f"{sam[name]:.1f} {name.replace('_', ' ')}" for name in names if sam.get(name)]
    blocks.append(f"Here it gives {', '.join(numbers)}; regions are those of the ground truth.")
    rows = [
        [name, points(sam[key]["miou"]), *(points(mious.get(key)) for mious in borders.values())]
        for key, name in SAM_ROWS.items()
        if sam.get(key)
    ]
    number, classes = len(sam.get("images") or []), sam.get("classes")
    caption = (
        f"mIoU in percent of {number} image{'s' * (number != 1)} of {code(sam.get('image_set'))}, "
        f"over {f'the {classes} classes of their ground truth' if classes else 'all classes'}: no "
        f"score of a whole split compares with it. DeepLab is {code(sam.get('checkpoint'))}."
    )
    header = ["", "mIoU", *(f"within {width} pixels of a border" for width in borders)]
    table = Table(caption, header, rows, "l" + "r" * (len(header) - 1))
    return [*blocks, table] if rows else blocks
