"""How masks without classes compare with a prediction."""

import itertools
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
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # By class map, and by the width of the band around borders; 0 for all pixels.
        keys = itertools.product(COLUMNS, (0, *BAND_WIDTHS))
        self.metrics = {key: StreamSegMetrics(num_classes) for key in keys}
        self.mask_counts: list[int] = []  # of the images
        self.num_regions = 0

    def update(
        self, target: torch.Tensor, masks: Sequence[torch.Tensor], pred: torch.Tensor | None
    ) -> None:
        """Add an image: target and pred are integers (H, W), masks bool (H, W) each.

        Later masks lie over earlier ones. Without a pred masks and regions are counted alone.
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
        bands = {width: border_band(target, width) for width in BAND_WIDTHS}
        bands[0] = target != IGNORE_INDEX
        for (name, width), metrics in self.metrics.items():
            metrics.update(target[bands[width]], preds[name][bands[width]])

    def compute(self, class_names: Sequence[str], is_split: bool = True) -> dict[str, Any]:
        """All scores so far, in [0, 1]; without a prediction the counts alone.

        If the images are no whole split, the mIoU is the mean over the classes of their ground
        truth; see `utils.metrics.target_miou`.

        Returns:
            `deeplab`, `sam_deeplab` and `oracle`: {`miou`, `class_iou`: {name: number or None}};
            `borders`: {width: {`deeplab`: mIoU, ...}}; `classes`: how many classes the mIoU is the
            mean over, None for a split; `masks_per_image`; `masks_per_region`: masks per connected
            region of one class in the target, background included; None if there is no region.
        """
        scores: dict[str, Any] = {}
        if self.metrics["deeplab", 0].confusion.any():
            found = {key: metrics.compute() for key, metrics in self.metrics.items()}
            true = {key: target_miou(metrics.confusion) for key, metrics in self.metrics.items()}
            miou = {key: found[key]["miou"] if is_split else true[key][0] for key in found}
            for name in COLUMNS:
                class_iou = zip(class_names, found[name, 0]["class_iou"], strict=True)
                scores[name] = {"miou": miou[name, 0], "class_iou": dict(class_iou)}
            scores["borders"] = {
                str(width): {name: miou[name, width] for name in COLUMNS} for width in BAND_WIDTHS
            }
            scores["classes"] = None if is_split else true["deeplab", 0][1]
        total = sum(self.mask_counts)
        scores["masks_per_image"] = total / max(len(self.mask_counts), 1)
        scores["masks_per_region"] = total / self.num_regions if self.num_regions else None
        return scores


def format_comparison(scores: dict[str, Any]) -> str:
    """The mIoUs and counts of `compute()`, with `seconds_per_image`, for people."""
    counts = f"{scores['masks_per_image']:.1f} masks per image"
    if scores["masks_per_region"] is not None:
        counts += f", {scores['masks_per_region']:.2f} per ground-truth region"
    counts += f"; {scores['seconds_per_image']:.1f} s per image"
    if "deeplab" not in scores:
        return counts
    miou = f"mIoU of {scores['classes']} true classes" if scores["classes"] else "mIoU"
    rows = {f"{miou}, in percent": {name: scores[name]["miou"] for name in COLUMNS}}
    rows |= {f"{width} px at borders": mious for width, mious in scores["borders"].items()}
    lines = [" " * 34 + "".join(f"{head:>15}" for head in COLUMNS.values())]
    for text, mious in rows.items():
        lines.append(f"{text:<34}" + "".join(f"{100 * mious[name]:>15.2f}" for name in COLUMNS))
    return "\n".join([*lines, counts])
