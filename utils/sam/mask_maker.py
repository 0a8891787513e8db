"""SAM's masks of an image, from a grid of points or from prompts."""

import math
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    area_from_rle,
    batched_mask_to_box,
    box_xyxy_to_xywh,
    calculate_stability_score,
    mask_to_rle_pytorch,
)
from segment_anything.utils.transforms import ResizeLongestSide

from utils.precision import autocast, choose_precision
from utils.sam.mask_files import Masks
from utils.sam.regions import Prompts

MASK_BYTES = 2**31  # what the logits of one batch of points may take at the image's size


class _Resize(ResizeLongestSide):
    """For images of every shape, and for devices without float64."""

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        return super().apply_coords(coords, original_size).astype(np.float32)


class _Predictor(SamPredictor):
    """Has the image encoder, and only that, in `precision`.

    The encoder ends in a normalisation with fp32 weights: what it gives is fp32.
    """

    def __init__(self, sam: Sam, precision: str) -> None:
        super().__init__(sam)
        self.transform = _Resize(sam.image_encoder.img_size)
        self.precision = precision

    def set_torch_image(self, *args: Any) -> None:
        """Encode an image."""
        with autocast(self.precision, self.device):
            super().set_torch_image(*args)


class MaskMaker:
    """Makes the masks of images.

    Args:
        sam: the model.
        device: where it runs.
        precision: of the image encoder, a name in `utils.precision.PRECISIONS`.
        settings: arguments of `SamAutomaticMaskGenerator`; `points_per_batch` is less for large
            images.
    """

    def __init__(self, sam: Sam, device: torch.device, precision: str, **settings: Any) -> None:
        chosen = choose_precision(precision, device)
        if precision == "auto" and chosen == "fp16":
            chosen = "fp32"  # SAM's attention overflows in fp16
        self.device, self.predictor = device, _Predictor(sam, chosen)
        self.generator = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **settings)
        self.generator.predictor = self.predictor
        self.batch = self.generator.points_per_batch

    def __call__(self, image: torch.Tensor, prompts: Prompts | None = None) -> Masks:
        """The masks of an image, uint8 (3, H, W): one for each prompt, or those of a grid."""
        self.predictor.model.to(self.device)
        _, height, width = image.shape
        fitting = MASK_BYTES // (3 * 4 * height * width)  # three float masks a point
        self.generator.points_per_batch = max(min(self.batch, fitting), 1)
        array = image.permute(1, 2, 0).numpy()
        records = self.generator.generate(array) if prompts is None else self._ask(array, prompts)
        return masks_from_records(records, (height, width))

    def _ask(self, image: np.ndarray, prompts: Prompts) -> list[dict[str, Any]]:
        """The masks that meet the thresholds, as the package's generator describes its own."""
        if not len(prompts.classes):
            return []
        predictor, size, records = self.predictor, image.shape[:2], []
        predictor.set_image(image)
        threshold = predictor.model.mask_threshold
        least_iou = self.generator.pred_iou_thresh or -math.inf  # 0 is met by all
        least_stability = self.generator.stability_score_thresh
        points = predictor.transform.apply_coords_torch(prompts.points, size).to(self.device)
        boxes = predictor.transform.apply_boxes_torch(prompts.boxes, size).to(self.device)
        for numbers in torch.arange(len(points)).split(self.generator.points_per_batch):
            logits, ious, _ = predictor.predict_torch(
                points[numbers, None],
                torch.ones(len(numbers), 1, dtype=torch.int, device=self.device),
                boxes[numbers],
                multimask_output=False,  # a box leaves no doubt: the part or the whole
                return_logits=True,
            )
            stability = calculate_stability_score(logits[:, 0], threshold, 1.0)
            masks = (logits[:, 0] > threshold).cpu()
            rles, around = mask_to_rle_pytorch(masks), batched_mask_to_box(masks)
            is_kept = (ious[:, 0] >= least_iou) & (stability >= least_stability)
            for row in is_kept.nonzero()[:, 0].tolist():
                number = int(numbers[row])
                records.append({
                    "segmentation": rles[row],
                    "area": area_from_rle(rles[row]),
                    "bbox": box_xyxy_to_xywh(around[row]).tolist(),
                    "predicted_iou": float(ious[row]),
                    "stability_score": float(stability[row]),
                    "point_coords": [prompts.points[number].tolist()],
                    "prompt_box": prompts.boxes[number].tolist(),
                    "class": int(prompts.classes[number]),
                })  # fmt: skip
        return records


def masks_from_records(records: list[dict[str, Any]], size: tuple[int, int]) -> Masks:
    """Sort the records of an image of (H, W) by area, largest first; empty masks are dropped."""
    records = sorted((record for record in records if record["area"]), key=lambda r: -r["area"])

    def column(name: str, dtype: type, missing: Any = None) -> np.ndarray:
        return np.array([record.get(name, missing) for record in records], dtype)

    boxes = column("bbox", np.int32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + 1  # the package's width is last pixel less first pixel
    return Masks(
        size=size,
        counts=[np.array(record["segmentation"]["counts"], np.int32) for record in records],
        boxes=boxes,
        predicted_iou=column("predicted_iou", np.float32),
        stability=column("stability_score", np.float32),
        points=column("point_coords", np.float32).reshape(-1, 2),
        prompt_boxes=column("prompt_box", np.float32, [np.nan] * 4).reshape(-1, 4),
        classes=column("class", np.int64, -1),
    )
