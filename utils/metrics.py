"""Segmentation scores from one confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch


class StreamSegMetrics:
    """Counts predictions batch by batch, on the device, and scores them all at the end.

    Args:
        num_classes: C.
        ignore_index: pixels with this target do not count.
        device: where the confusion matrix lies; batches must be there too.

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


def scores_from_confusion(confusion: torch.Tensor) -> dict[str, Any]:
    """The scores of a confusion matrix (C, C), rows are targets; all in [0, 1].

    Returns:
        `pixel_acc`: correct pixels / pixels. `mean_acc`: mean over the classes in the target of
        correct / target pixels. `class_iou`: list of C numbers, intersection / union, None for a
        class in neither target nor prediction. `miou`: their mean without the None. `fw_iou`: their
        mean weighted by the class's share of the target. All 0 if nothing was counted.
    """
    counts = confusion.double().cpu()
    correct = counts.diagonal()
    in_target, in_pred = counts.sum(1), counts.sum(0)
    union = in_target + in_pred - correct
    total = in_target.sum().clamp(min=1)
    iou = correct / union  # NaN where the class is nowhere
    accuracy = (correct / in_target)[in_target > 0]
    present = iou[union > 0]
    return {
        "pixel_acc": float(correct.sum() / total),
        "mean_acc": float(accuracy.mean()) if len(accuracy) else 0.0,
        "miou": float(present.mean()) if len(present) else 0.0,
        "fw_iou": float((in_target * iou.nan_to_num()).sum() / total),
        "class_iou": [None if value.isnan() else float(value) for value in iou],
    }


def format_scores(scores: dict[str, Any], class_names: Sequence[str]) -> str:
    """A table of the scores in percent, for people."""
    width = max(len(name) for name in class_names)
    rows = [
        f"  {name:<{width}}  {'-' if iou is None else f'{100 * iou:.2f}':>6}"
        for name, iou in zip(class_names, scores["class_iou"], strict=True)
    ]
    names = {"miou": "mIoU", "pixel_acc": "pixel acc", "mean_acc": "mean acc", "fw_iou": "fw IoU"}
    summary = ", ".join(f"{text} {100 * scores[key]:.2f}" for key, text in names.items())
    return "\n".join(["IoU by class, in percent:", *rows, summary])
