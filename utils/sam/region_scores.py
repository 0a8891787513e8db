"""How masks without classes compare with a prediction."""

from collections.abc import Sequence
from typing import Any

import torch

from datasets.base import IGNORE_INDEX
from utils.metrics import StreamSegMetrics, target_miou
from utils.sam.regions import border_band, connected_components, index_map, paint_classes

BAND_WIDTHS = (3, 5, 10)  # pixels; see `border_band`
COLUMNS = {"deeplab": "DeepLab", "sam_deeplab": "SAM + DeepLab", "oracle": "oracle"}


class RegionScores:
    """How masks without classes compare with a prediction, over a set of images.

    Three class maps are scored against the target: `deeplab`, the prediction; `sam_deeplab`, where
    each mask takes the class that most of the prediction's pixels in it have; `oracle`, where it
    takes the class of most of its ground truth. Pixels outside all masks keep the prediction.

    The oracle counts what later masks leave to be seen of a mask, not what they cover: so no other
    choice of classes gets more pixels right, and it is the ceiling of these masks.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # By the width of the band around borders that is looked at; 0 for all pixels.
        self.metrics = {
            width: {name: StreamSegMetrics(num_classes) for name in COLUMNS}
            for width in (0, *BAND_WIDTHS)
        }
        self.mask_counts: list[int] = []  # of the images
        self.num_regions = 0

    def update(
        self, target: torch.Tensor, masks: Sequence[torch.Tensor], pred: torch.Tensor | None
    ) -> None:
        """Add an image.

        Args:
            target: integer (H, W), classes and 255 for void, which does not count.
            masks: bool (H, W) each; later ones lie over earlier ones.
            pred: integer (H, W), classes; None to count masks and regions alone.
        """
        self.mask_counts.append(len(masks))
        regions = connected_components(target)[target != IGNORE_INDEX]
        self.num_regions += len(regions.unique())
        if pred is None:
            return
        indices = index_map(masks, target.shape)
        seen = (indices == index for index in range(len(masks)))
        preds = {
            "deeplab": pred,
            "sam_deeplab": paint_classes(masks, pred, pred, self.num_classes),
            "oracle": paint_classes(seen, target, pred, self.num_classes),
        }
        for width, by_name in self.metrics.items():
            inside = border_band(target, width) if width else target != IGNORE_INDEX
            for name, metrics in by_name.items():
                metrics.update(target[inside], preds[name][inside])

    def compute(self, class_names: Sequence[str], is_split: bool = True) -> dict[str, Any]:
        """All scores so far, in [0, 1]; without a prediction the counts alone.

        Args:
            class_names: of the C classes.
            is_split: the images are a whole split. Of fewer images the mIoU is the mean over the
                classes of their ground truth; see `utils.metrics.target_miou`.

        Returns:
            `deeplab`, `sam_deeplab` and `oracle`: {`miou`, `class_iou`: {name: number or None}};
            `borders`: {width: {`deeplab`: mIoU, ...}}; `classes`: how many classes the mIoU is the
            mean over, None for a split; `masks_per_image`; `masks_per_region`: masks per connected
            region of one class in the target, background included; None if there is no region.
        """

        def miou(metrics: StreamSegMetrics) -> float:
            return metrics.compute()["miou"] if is_split else target_miou(metrics.confusion)[0]

        scores: dict[str, Any] = {}
        whole, total = self.metrics[0], sum(self.mask_counts)
        if whole["deeplab"].confusion.any():
            for name, metrics in whole.items():
                class_iou = zip(class_names, metrics.compute()["class_iou"], strict=True)
                scores[name] = {"miou": miou(metrics), "class_iou": dict(class_iou)}
            scores["borders"] = {
                str(width): {name: miou(metrics) for name, metrics in self.metrics[width].items()}
                for width in BAND_WIDTHS
            }
            scores["classes"] = None if is_split else target_miou(whole["deeplab"].confusion)[1]
        scores["masks_per_image"] = total / max(len(self.mask_counts), 1)
        scores["masks_per_region"] = total / self.num_regions if self.num_regions else None
        return scores


def format_comparison(scores: dict[str, Any]) -> str:
    """The scores of `compute()`, with `seconds_per_image`, as a table in percent, for people."""
    counts = f"{scores['masks_per_image']:.1f} masks per image"
    if scores["masks_per_region"] is not None:
        counts += f", {scores['masks_per_region']:.2f} per ground-truth region"
    counts += f"; {scores['seconds_per_image']:.1f} s per image"
    if "deeplab" not in scores:
        return counts
    rows = {
        name: [scores[key]["class_iou"][name] for key in COLUMNS]
        for name in scores["deeplab"]["class_iou"]
    }
    miou = f"mIoU of {scores['classes']} true classes" if scores["classes"] else "mIoU"
    rows[miou] = [scores[key]["miou"] for key in COLUMNS]
    for pixels, mious in scores["borders"].items():
        rows[f"mIoU, {pixels} px at borders"] = [mious[key] for key in COLUMNS]
    width, heads = max(map(len, rows)), "".join(f"{head:>15}" for head in COLUMNS.values())
    lines = [f"IoU by class, in percent:\n  {'':<{width}}{heads}"]
    for name, values in rows.items():
        cells = ("-" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join([*lines, counts])
