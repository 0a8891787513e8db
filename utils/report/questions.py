"""The course's written questions, answered from what was measured."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from network.modeling import build_model
from utils.report.charts import percent
from utils.report.contents import Findings, code, duration, points, protocol, run_key
from utils.report.image_choice import has_background, object_classes
from utils.report.markup import Block, Heading, Text
from utils.run_records import Run, best_run

# Settings that may differ between two runs without making their comparison unfair.
FREE_SETTINGS = {
    "run_name", "runs_dir", "data_root", "no_download", "voc_archive", "ckpt", "device",
    "num_workers", "val_batch_size", "save_interval", "val_interval",
}  # fmt: skip
EQUAL = 0.005  # mIoU; what is closer than half a point is called equal


def answer_questions(found: Findings) -> list[Block]:
    """All questions, each with one or more paragraphs."""
    questions = {
        "How many classes are there, and are they balanced?": balance(found),
        "Why is mIoU the better metric than pixel accuracy?": accuracy_against_miou(found),
        "What differs between the heads of DeepLabV3 and DeepLabV3+?": heads(found),
        "Cross entropy or focal loss, and why?": ce_against_focal(found),
        "What is the difference between semantic segmentation and SAM?": against_sam(found),
    }
    blocks: list[Block] = []
    for question, paragraphs in questions.items():
        blocks += [Heading(3, question), *map(Text, paragraphs)]
    return blocks


def balance(found: Findings) -> list[str]:
    """Number of classes, and the largest against the smallest."""
    names = found.class_names
    number = f"There are {len(names)} classes"
    if has_background(names):
        number += f": the background and {len(names) - 1} object classes"
    if found.statistics is None:
        return [f"{number}. Their balance was not measured."]
    counts = found.statistics.pixel_counts
    shares = counts.double() / counts.sum().clamp(min=1)
    present = [index for index in object_classes(names) if counts[index]]
    if len(present) == 0:
        return [f"{number}. The targets hold no object."]
    largest = max(present, key=lambda index: int(counts[index]))
    smallest = min(present, key=lambda index: int(counts[index]))
    ratio = int(counts[largest]) / int(counts[smallest])
    images = found.statistics.image_counts
    text = f"{number}, in {found.images:,} images of {code(found.image_set)}. "
    if has_background(names):
        text += f"The background alone has {percent(float(shares[0]))} of the labelled pixels. "
    text += (
        f"Of the object classes, {code(names[largest])} is the largest with "
        f"{percent(float(shares[largest]))} (in {int(images[largest]):,} images), and "
        f"{code(names[smallest])} the smallest with {percent(float(shares[smallest]))} (in "
        f"{int(images[smallest]):,} images): {ratio:.1f} times fewer pixels. "
    )
    top = float(shares.max())
    is_balanced = ratio < 2 and top < 2 / len(names)
    text += "The classes are about balanced." if is_balanced else "The classes are not balanced."
    absent = [code(names[index]) for index in object_classes(names) if not counts[index]]
    if absent:
        text += f" No pixel at all has {', '.join(absent)}."
    return [text]


def accuracy_against_miou(found: Findings) -> list[str]:
    """What a constant prediction scores, and the best run beside it."""
    paragraphs = []
    if found.constant is None:
        paragraphs.append(
            f"What a constant prediction scores was not measured: the masks of "
            f"{code(found.val_image_set)} are missing."
        )
    else:
        name, scores = found.constant
        ious = [iou for iou in scores["class_iou"] if iou is not None]
        paragraphs.append(
            f"Predicting {code(name)} everywhere, without looking at the image, scores "
            f"{points(scores['pixel_acc'])} % pixel accuracy on {code(found.val_image_set)}, but "
            f"only {points(scores['miou'])} % mIoU: {points(max(ious))} % for that class and 0 for "
            f"the {len(ious) - 1} others."
        )
    run = best_run(found.runs)
    if run is not None:
        text = (
            f"The best run ({run_key(found, run)}) has {points(run.best['pixel_acc'])} % pixel "
            f"accuracy and {points(run.best['miou'])} % mIoU."
        )
        ious = _class_ious(run)
        if ious:
            high, low = max(ious, key=ious.get), min(ious, key=ious.get)
            text += (
                f" Its IoU goes from {points(ious[low])} % ({code(low)}) to "
                f"{points(ious[high])} % ({code(high)}), which the accuracy does not show."
            )
        paragraphs.append(text)
    paragraphs.append(
        "Pixel accuracy counts every pixel once, so the most frequent class decides it. The mIoU "
        "counts every class once, and takes false positives off a class as well as missed pixels."
    )
    return paragraphs


def heads(found: Findings) -> list[str]:
    """How the heads are built, their sizes, and the two best runs that differ in them."""
    run = best_run(found.runs)
    model = str(run.setting("model")) if run else "deeplabv3plus_resnet50"
    backbone = model.partition("_")[2]
    v3, plus = f"deeplabv3_{backbone}", f"deeplabv3plus_{backbone}"
    sizes = [_count_parameters(name, len(found.class_names)) for name in (v3, plus)]
    built = (
        "Both apply ASPP (parallel atrous convolutions of several rates, and image pooling) to the "
        "backbone's last features. DeepLabV3 predicts at that resolution, 1/16 or 1/8 of the "
        "image, and enlarges the logits in one step. DeepLabV3+ adds a decoder: ASPP's result is "
        "enlarged to 1/4 of the image and joined with 48 channels that are computed from the "
        "backbone's early features there, before the last convolutions; so the borders can "
        f"follow details that 1/16 has lost. With {len(found.class_names)} classes {code(v3)} has "
        f"{sizes[0]:,} parameters and {code(plus)} {sizes[1]:,}."
    )
    pair = _best_pair(found.runs, lambda run: str(run.setting("model")), v3, plus)
    if pair is None:
        have = {str(run.setting("model")) for run in found.runs}
        wanted = [name for name in (v3, plus) if name not in have]
        commands = " and ".join(code(f"{found.main_command} --model {name}") for name in wanted)
        return [built, f"Their difference was not measured: run {commands}."]
    return [built, *_compare(found, *pair)]


def _count_parameters(model: str, num_classes: int) -> int:
    with torch.device("meta"):  # shapes alone
        return sum(p.numel() for p in build_model(model, num_classes).parameters())


def ce_against_focal(found: Findings) -> list[str]:
    """The best run of each loss, class by class, and what the focal loss does."""
    pair = _best_pair(found.runs, lambda run: str(run.setting("loss")), "ce", "focal")
    gamma = (pair[1].setting("focal_gamma") if pair else None) or 2.0
    why = (
        "The focal loss multiplies the cross entropy of each pixel by (1 - p)^gamma, where p is "
        f"the probability of its true class. With gamma = {gamma:g} a pixel with p = 0.9 counts "
        f"{percent(0.1**gamma)} of its cross entropy, and one with p = 0.1 "
        f"{percent(0.9**gamma)}. Large even regions soon become easy and lose their "
        "weight to borders and confused objects. It knows nothing of how rare a class is: rare "
        "classes gain only where they are also hard. And its gradients are smaller "
        "altogether, so that the same learning rate takes smaller steps; errors in the ground "
        "truth, being hard, gain weight too."
    )
    if pair is None:
        have = {run.setting("loss") for run in found.runs}
        commands = " and ".join(
            code(f"{found.main_command} --loss {loss}")
            for loss in ("ce", "focal")
            if loss not in have
        )
        return [why, f"Which is better here was not measured: run {commands}."]
    return [*_compare(found, *pair), *_rare_against_frequent(found, *pair), why]


def _rare_against_frequent(found: Findings, ce: Run, focal: Run) -> list[str]:
    """Whether the rarer half of the classes gained more than the other half."""
    if found.statistics is None:
        return []
    one, other = _class_ious(ce), _class_ious(focal)
    counts = dict(zip(found.class_names, found.statistics.pixel_counts.tolist(), strict=True))
    names = sorted(set(one) & set(other), key=lambda name: (counts[name], name))
    half = len(names) // 2
    if half == 0:
        return []
    rare, frequent = (
        float(np.mean([other[name] - one[name] for name in part]))
        for part in (names[:half], names[half:])
    )
    return [
        f"From cross entropy to focal loss, the {half} rarer classes change by "
        f"{100 * rare:+.2f} points of IoU on average, and the {len(names) - half} more frequent "
        f"ones by {100 * frequent:+.2f}."
    ]


def _best_pair(runs: Sequence[Run], kind, first: str, second: str) -> tuple[Run, Run] | None:
    """The best run of each of two kinds; if possible a pair with equal settings otherwise."""
    pairs = [
        (one, other)
        for one in runs
        for other in runs
        if kind(one) == first and kind(other) == second
    ]
    if not pairs:
        return None
    fewest = min(len(_differences(*pair)) for pair in pairs)
    fair = [pair for pair in pairs if len(_differences(*pair)) == fewest]
    return max(fair, key=lambda pair: pair[0].best["miou"] + pair[1].best["miou"])


def _differences(one: Run, other: Run) -> list[str]:
    """The settings that two runs do not share, beside those that decide nothing."""
    keys = (set(one.args) | set(other.args)) - FREE_SETTINGS
    return sorted(key for key in keys if one.args.get(key) != other.args.get(key))


def _compare(found: Findings, one: Run, other: Run) -> list[str]:
    """The scores of two runs, the classes that differ most, and whether it is a fair test."""
    difference = other.best["miou"] - one.best["miou"]
    keys = [f"{run_key(found, run)} ({code(run.name)})" for run in (one, other)]
    text = (
        f"Measured: {keys[0]} reaches {points(one.best['miou'])} % mIoU and {keys[1]} "
        f"{points(other.best['miou'])} %: "
    )
    if abs(difference) < EQUAL:
        text += f"equal within half a point ({100 * difference:+.2f}). "
    else:
        text += f"{abs(100 * difference):.2f} points {'more' if difference > 0 else 'less'}. "
    text += _extremes(one, other)
    times = [duration(run.log[-1]["seconds"]) for run in (one, other)]
    memory = [run.log[-1]["max_memory_mb"] for run in (one, other)]
    if "-" not in times:
        text += f" The runs took {times[0]} and {times[1]}"
        if all(map(math.isfinite, memory)):
            text += f", with {memory[0]:,.0f} and {memory[1]:,.0f} MB of GPU memory"
        text += "."
    caveats = "One run of each says nothing of the spread between seeds."
    differing = [code(f"--{key}") for key in _differences(one, other)]
    caveats += f" Settings in which the two differ: {', '.join(differing)}."
    if protocol(one) != protocol(other):
        caveats += " They were evaluated by different protocols, so the numbers do not compare."
    return [text, caveats]


def _extremes(one: Run, other: Run) -> str:
    """The classes that gain most and least from one run to the other."""
    first, second = _class_ious(one), _class_ious(other)
    gains = {name: second[name] - first[name] for name in first if name in second}
    if len(gains) < 2:
        return ""
    order = sorted(gains, key=lambda name: (-gains[name], name))
    number = min(3, len(order) // 2)
    most, least = (
        ", ".join(f"{code(name)} {100 * gains[name]:+.1f}" for name in part)
        for part in (order[:number], order[-number:][::-1])
    )
    return f"By class, in points of IoU, the highest changes are {most}; the lowest {least}."


def _class_ious(run: Run) -> dict[str, float]:
    ious = run.best["class_iou"]
    return {name: iou for name, iou in ious.items() if isinstance(iou, float | int)}


def against_sam(found: Findings) -> list[str]:
    """What each does, and the measured value of putting them together."""
    paragraphs = [
        "Semantic segmentation gives every pixel one of the classes it was trained on, and does "
        "not tell one object of a class from the next. SAM gives masks of whatever a point or a "
        "box may mean: objects, their parts, or regions of the background, overlapping, "
        "without names, and of any kind, since it was trained to separate and not to name."
    ]
    sam = found.sam or {}
    scores = {key: (sam.get(key) or {}).get("miou") for key in ("deeplab", "sam_deeplab", "oracle")}
    measured = []
    if isinstance(sam.get("masks_per_image"), int | float):
        measured.append(f"SAM finds {sam['masks_per_image']:.1f} masks per image")
    if isinstance(sam.get("masks_per_region"), int | float):
        measured.append(f"{sam['masks_per_region']:.1f} masks for each region of the ground truth")
    if isinstance(scores["deeplab"], float) and isinstance(scores["sam_deeplab"], float):
        change = 100 * (scores["sam_deeplab"] - scores["deeplab"])
        measured.append(
            f"giving its masks DeepLab's classes changes the mIoU from "
            f"{points(scores['deeplab'])} to {points(scores['sam_deeplab'])} % ({change:+.2f})"
        )
    if isinstance(scores["oracle"], float):
        measured.append(
            f"with the classes of the ground truth it would be {points(scores['oracle'])} %, the "
            "most that its regions allow"
        )
    if not measured:
        return [*paragraphs, f"In numbers it was not measured: run {code(found.sam_command)}."]
    number = len(sam.get("images") or [])
    images = f"On {number} image{'s' * (number != 1)} of {code(sam.get('image_set'))}: "
    return [*paragraphs, images + "; ".join(measured) + "."]
