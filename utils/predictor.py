"""From images to class indices: test-time augmentation, and windows where an image is large."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from network._deeplab import DeepLab
from network.fusion import fuse_for_inference
from utils.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from utils.common.errors import UserError
from utils.precision import DTYPES, autocast, choose_device, choose_precision

WINDOW, OVERLAP = 1025, 256  # pixels
ALIGNMENT = 16  # pixels: the largest stride in a backbone
STRIP_PIXELS = 1 << 19  # that are upsampled at a time


class Predictor:
    """Class indices of images of any size, in bounded memory.

    Images of up to two windows' area (2.1 megapixels with the default window) pass through the
    model whole. Larger ones are predicted in overlapping windows. Their logits are blended before
    the upsampling, on the grid that the head has for the whole image, with weights that fall
    linearly towards the borders of a window; the upsampling is then the whole image's, a strip of
    rows at a time. The logits of the grid are kept: 4 bytes per class for every 16 pixels (V3+) or
    for every 64 or 256 (V3).

    Test-time augmentation (V3, section 4.1: "multi-scale inputs" and "left-right flipped") averages
    the softmax over all scales, each with and without a flip: at the image's size, or on the grid
    of a window. With a single view the logits decide.

    Args:
        model: on the device of the images to come. What predicts is a copy of it with folded batch
            norms, made here: training may go on.
        precision: "bf16", "fp16" or "fp32".
        scales: factors of height and width.
        flip: add the mirrored image at each scale.
        resize: another factor of all scales, that of the training (`main.py --resize`).
        window: side of a window in pixels, rounded down to a multiple of 16.
        overlap: pixels that neighbouring windows share, at least.

    Raises:
        UserError: a scale, the window or the overlap is out of range.
    """

    def __init__(
        self,
        model: DeepLab,
        precision: str,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        resize: float = 1.0,
        window: int = WINDOW,
        overlap: int = OVERLAP,
    ) -> None:
        if not all(0 < scale < math.inf for scale in scales):
            raise UserError(f"--scales {' '.join(map(str, scales))}: must be positive numbers")
        if window < 2 * ALIGNMENT:
            raise UserError(f"--window {window}: must be at least {2 * ALIGNMENT} (pixels)")
        if not 0 <= overlap <= window - 2 * ALIGNMENT:
            raise UserError(
                f"--overlap {overlap}: must be from 0 to {window - 2 * ALIGNMENT} with --window "
                f"{window}"
            )
        self.model = fuse_for_inference(model, DTYPES[precision])
        self.device = next(model.parameters()).device
        self.precision = precision
        self.scales = tuple(scales)
        self.resize = resize
        self.flip = flip
        self.window = window - window % ALIGNMENT
        self.overlap = overlap
        self.whole_pixels = 2 * window**2

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path | Checkpoint,
        device: torch.device | None = None,
        precision: str = "auto",
        output_stride: int | None = None,
        **options: Any,
    ) -> "Predictor":
        """Any checkpoint, ready to predict.

        Args:
            source: a file, or what `load_checkpoint` made of it.
            device: where to compute; None chooses as the scripts do.
            precision: "auto", "bf16", "fp16" or "fp32".
            output_stride: 8 or 16, for a file that does not say.
            options: `scales`, `flip`, `window` and `overlap`.

        Raises:
            UserError: see `load_checkpoint` and `model_from_checkpoint`.
        """
        checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
        device = device or choose_device()
        model = model_from_checkpoint(checkpoint, output_stride)
        model = model.to(device, memory_format=torch.channels_last)
        precision = choose_precision(precision, device)
        predictor = cls(model, precision, resize=checkpoint.resize, **options)
        predictor.checkpoint = checkpoint
        return predictor

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Uint8 images (N, 3, H, W), RGB, to class indices uint8 (N, H, W)."""
        size = images.shape[-2:]
        if size.numel() > self.whole_pixels:
            return torch.stack([self.predict_in_windows(image) for image in images])
        # A batch may take the memory of two whole images of the largest size.
        parts = images.split(max(2 * self.whole_pixels // size.numel(), 1))
        preds = [self._scores(self.model, part, size).argmax(1) for part in parts]
        return torch.cat(preds).to(torch.uint8)

    @torch.inference_mode()
    def predict_in_windows(self, image: torch.Tensor) -> torch.Tensor:
        """Uint8 image (3, H, W) to class indices uint8 (H, W), whatever its size."""
        size = image.shape[1:]
        probe = self._grid_logits(torch.zeros(1, 3, 64, 64, device=image.device))
        stride = 64 // probe.shape[-1]  # of the grid, in pixels
        grid = [math.ceil(length / stride) for length in size]
        total = probe.new_zeros(probe.shape[1], *grid)  # (C, h, w)
        weight = probe.new_zeros(grid)
        for rows in place_windows(size[0], self.window, self.overlap):
            for columns in place_windows(size[1], self.window, self.overlap):
                y, x = (
                    slice(part.start // stride, math.ceil(part.stop / stride))
                    for part in (rows, columns)
                )
                ramps = window_weights(weight[y, x].shape, self.overlap / stride).to(weight)
                part = image[None, :, rows, columns]
                scores = self._scores(self._grid_logits, part, ramps.shape)[0]
                total[:, y, x] += scores * ramps
                weight[y, x] += ramps
        return upsampled_argmax(total.div_(weight), size)

    def _grid_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to float logits (N, C, h, w) before the upsampling."""
        normalized = self.model.normalize(images)
        return self.model.classifier(self.model.backbone(normalized)).float()

    def _scores(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        size: Sequence[int],
    ) -> torch.Tensor:
        """Mean softmax over the views, or the logits of a single one.

        Args:
            forward: images to logits.
            images: uint8 (N, 3, H, W).
            size: height and width of the result.

        Returns:
            float (N, C, *size).
        """
        total = None
        for scale in self.scales:
            factor, view = self.resize * scale, images
            if factor != 1:
                scaled = [max(round(length * factor), 1) for length in images.shape[-2:]]
                view = F.interpolate(images.float(), scaled, mode="bilinear", antialias=True)
            scores = self._view_scores(forward, view, size)
            if self.flip:
                scores += self._view_scores(forward, view.flip(-1), size).flip(-1)
            total = scores if total is None else total.add_(scores)
        return total

    def _view_scores(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        size: Sequence[int],
    ) -> torch.Tensor:
        with autocast(self.precision, images.device):
            logits = forward(images)
        if logits.shape[-2:] != torch.Size(size):
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        is_single = len(self.scales) == 1 and not self.flip
        return logits if is_single else logits.softmax(dim=1)


def place_windows(length: int, window: int, overlap: int) -> list[slice]:
    """Cover an axis with as few windows as share `overlap` pixels, spaced evenly.

    They start at multiples of 16, where the backbone's strides put the features of the whole image
    too.

    Args:
        length: of the axis, in pixels.
        window: pixels of each but the last, which may be shorter.
        overlap: below `window - 16`.
    """
    if length <= window:
        return [slice(0, length)]
    last = math.ceil((length - window) / ALIGNMENT)  # start of the last window, in steps of 16
    count = math.ceil(last / ((window - overlap) // ALIGNMENT)) + 1
    starts = [last * index // (count - 1) * ALIGNMENT for index in range(count)]
    return [slice(start, min(start + window, length)) for start in starts]


def window_weights(size: Sequence[int], overlap: float) -> torch.Tensor:
    """The weight of each logit of a window: 1, and falling linearly over `overlap` at its borders.

    Args:
        size: height and width, in logits.
        overlap: in logits.

    Returns:
        float (height, width), above 0.
    """
    sides = []
    for length in size:
        position = torch.arange(length) + 0.5
        sides.append((torch.minimum(position, length - position) / max(overlap, 1)).clamp(max=1))
    return sides[0][:, None] * sides[1]


def upsampled_argmax(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Upsample bilinearly and take the best class, in strips that bound the memory.

    Args:
        scores: float (C, h, w).
        size: height and width of the result.

    Returns:
        uint8 (height, width): the argmax of `F.interpolate(scores, size, mode="bilinear")`.
    """
    height, width = size
    pred = torch.empty(height, width, dtype=torch.uint8, device=scores.device)
    rows = torch.arange(height, device=scores.device)
    position = ((rows + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    upper = position.long()
    lower = (upper + 1).clamp(max=scores.shape[1] - 1)
    fraction = (position - upper)[:, None]
    for strip in rows.split(max(STRIP_PIXELS // width, 1)):
        mixed = torch.lerp(scores[:, upper[strip]], scores[:, lower[strip]], fraction[strip])
        mixed = F.interpolate(
            mixed[None], (len(strip), width), mode="bilinear", align_corners=False
        )
        pred[strip] = mixed[0].argmax(0).to(torch.uint8)
    return pred
