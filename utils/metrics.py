"""Segmentation scores from one confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch


class StreamSegMetrics:
    """Counts predictions batch by batch, on `device`, and scores them all at the end.

    Attributes:
        confusion: int64 (C, C), rows are targets and columns predictions, in pixels.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, target: torch.Tensor, pred: torch.Tensor) -> None:
        """Add a batch: target (classes and `ignore_index`) and pred, integers (N, H, W)."""
        self.confusion += confusion_matrix(target, pred, self.num_classes, self.ignore_index)

    def compute(self) -> dict[str, Any]:
        """Score all that was added; see `scores_from_confusion`."""
        return scores_from_confusion(self.confusion)


def confusion_matrix(
    target: torch.Tensor, pred: torch.Tensor, num_classes: int, ignore_index: int = 255
) -> torch.Tensor:
    """Count the pixels of each (target, pred) pair: int64 (C, C), rows are targets."""
    n = num_classes
    # Ignored pixels go to one bin behind the matrix: no mask to build, nothing to copy out.
    bins = torch.where(target == ignore_index, n * n, target.long() * n + pred)
    return torch.bincount(bins.flatten(), minlength=n * n + 1)[: n * n].view(n, n)


def scores_from_confusion(confusion: torch.Tensor, detailed: bool = False) -> dict[str, Any]:
    """The scores of a confusion matrix (C, C), rows are targets; all in [0, 1].

    Returns:
        `pixel_acc`: correct pixels / pixels. `mean_acc`: mean over the classes in the target of
        correct / target pixels. `class_iou`: list of C numbers, intersection / union, None for a
        class in neither target nor prediction. `miou`: their mean without the None. `fw_iou`: their
        mean weighted by the class's share of the target. All 0 if nothing was counted.

        With `detailed` also the lists `class_precision` (correct / predicted pixels, 0 for a class
        that is in the target and never predicted), `class_recall` (correct / target pixels, None
        for a class that is not in the target) and `class_f1` (2 * intersection / sum of both, Dice)
        and their means `mean_precision`, `mean_recall` (which is `mean_acc`) and `mean_f1`.
    """
    counts = confusion.cpu().double()  # not every device has float64
    correct = counts.diagonal()
    in_target, in_pred = counts.sum(1), counts.sum(0)
    both = in_target + in_pred
    total = in_target.sum().clamp(min=1)
    iou = correct / (both - correct)  # NaN where the class is nowhere
    recall = correct / in_target
    scores = {
        "pixel_acc": float(correct.sum() / total),
        "mean_acc": _mean(recall),
        "miou": _mean(iou),
        "fw_iou": float((in_target * iou.nan_to_num()).sum() / total),
        "class_iou": _numbers(iou),
    }
    if detailed:
        precision = torch.where(both > 0, correct / in_pred.clamp(min=1), torch.nan)
        parts = {"precision": precision, "recall": recall, "f1": 2 * correct / both}
        scores |= {f"mean_{name}": _mean(values) for name, values in parts.items()}
        scores |= {f"class_{name}": _numbers(values) for name, values in parts.items()}
    return scores


def target_miou(confusion: torch.Tensor) -> tuple[float, int]:
    """The mIoU over the classes of the ground truth alone, and how many these are.

    For one image or a handful: there the few stray pixels of a class that no target has would count
    as much as a class that fills the images. Over a whole split `miou` of `scores_from_confusion`
    is the score. (0, 0) if nothing was counted.
    """
    class_iou = scores_from_confusion(confusion)["class_iou"]
    ious = [iou for iou, row in zip(class_iou, confusion.tolist(), strict=True) if any(row)]
    return sum(ious) / max(len(ious), 1), len(ious)


def _mean(values: torch.Tensor) -> float:
    """The mean of the numbers that are not NaN; 0 if there is none."""
    return float(values.nanmean().nan_to_num())


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [None if value.isnan() else float(value) for value in values]


def format_scores(
    scores: dict[str, Any], class_names: Sequence[str], detailed: bool = False
) -> str:
    """A table of the scores in percent, for people; `detailed` has more columns than the IoU."""
    columns = {"class_iou": "IoU"}
    if detailed:
        columns |= {"class_precision": "precision", "class_recall": "recall", "class_f1": "F1"}
    width = max(len(name) for name in class_names)
    rows = [f"{', '.join(columns.values())} by class, in percent:"]
    for name, *values in zip(class_names, *(scores[key] for key in columns), strict=True):
        rows.append(f"  {name:<{width}}  " + "  ".join(map(_percent, values)))
    names = {"miou": "mIoU", "pixel_acc": "pixel acc", "mean_acc": "mean acc", "fw_iou": "fw IoU"}
    if detailed:
        names |= {"mean_precision": "mean precision", "mean_f1": "mean F1"}
    rows.append(", ".join(f"{text} {100 * scores[key]:.2f}" for key, text in names.items()))
    return "\n".join(rows)


def _percent(value: float | None) -> str:
    return f"{'-' if value is None else f'{100 * value:.2f}':>6}"
