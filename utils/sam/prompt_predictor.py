"""The predictor of the package `segment_anything`, fitted to this project.

`mask_maker` imports this file when there are masks to make: nothing else needs the package.
"""

from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from utils.precision import autocast


class _Resize(ResizeLongestSide):
    """For images of every shape, and for devices without float64."""

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        height, width = ResizeLongestSide.get_preprocess_shape(oldh, oldw, long_side_length)
        return max(height, 1), max(width, 1)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        return super().apply_coords(coords, original_size).astype(np.float32)


class PromptPredictor(SamPredictor):
    """Has the image encoder, and only that, in `precision`, and adds a box to each point.

    The encoder ends in a normalisation with fp32 weights: what it gives is fp32. The points must
    come once, in the order of the boxes, integer (N, 4).
    """

    def __init__(self, sam: Sam, precision: str, boxes: np.ndarray | None) -> None:
        super().__init__(sam)
        self.transform = _Resize(sam.image_encoder.img_size)
        self.precision = precision
        self.boxes = boxes

    def set_torch_image(self, *args: Any) -> None:
        """Encode an image, in `precision`."""
        with autocast(self.precision, self.device):
            super().set_torch_image(*args)

    def predict_torch(
        self, coords: torch.Tensor, ones: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the masks of points; where there are boxes, one for each point and its box."""
        if self.boxes is not None:
            boxes, self.boxes = self.boxes[: len(coords)], self.boxes[len(coords) :]
            boxes = self.transform.apply_boxes(boxes, self.original_size)
            options["boxes"] = torch.from_numpy(boxes).to(self.device)
            options["multimask_output"] = False  # a box leaves no doubt: the part or the whole
        return super().predict_torch(coords, ones, **options)
