"""From images to class indices: test-time augmentation, and windows where an image is large."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from datasets.image_files import read_image, to_rgb
from network._deeplab import DeepLab
from network.fusion import fuse_for_inference
from utils.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from utils.common.errors import UserError
from utils.precision import DTYPES, autocast, choose_device, choose_precision
from utils.windows import ALIGNMENT, place_windows, upsample_in_strips, window_weights

WINDOW = 1025  # pixels

AnyImage = str | Path | Image.Image | np.ndarray | torch.Tensor
Decide = Callable[[torch.Tensor], torch.Tensor]  # scores (N, C, H, W) to uint8 (N, ..., H, W)


def best_class(scores: torch.Tensor) -> torch.Tensor:
    """Scores (N, C, H, W) to class indices uint8 (N, H, W)."""
    return scores.argmax(1).byte()


class Predictor:
    """Class indices of images of any size, in bounded memory.

    Images of up to two windows' area (2.1 megapixels with the default window) pass through the
    model whole. Larger ones are predicted in overlapping squares of about that area. Their logits
    are blended before the upsampling, on the grid that the head has for the whole image (4 bytes
    per class for every 16 pixels with V3+, for every 64 or 256 with V3), with weights that fall
    linearly towards the borders of a square; the upsampling is then the whole image's, in strips.

    Test-time augmentation (V3, section 4.1: "multi-scale inputs" and "left-right flipped") averages
    the softmax over all scales, each with and without a flip: at the image's size, or on the grid
    of a square. With a single view the logits decide.

    Args:
        model: on the device of the images to come. What predicts is a copy of it with folded batch
            norms, made here: training may go on.
        precision: "bf16", "fp16" or "fp32".
        scales: factors of height and width, or a single one.
        flip: add the mirrored image at each scale.
        resize: another factor of all scales, that of the training (`main.py --resize`).
        window: side in pixels of half the area of the largest part, at least 32; neighbouring parts
            share a quarter of it.

    Raises:
        UserError: a scale or the window is out of range.
    """

    # What `from_checkpoint` adds.
    checkpoint: Checkpoint
    class_names: Sequence[str] = ()
    palette: np.ndarray  # the colour of each class, uint8 (C, 3)
    output_stride: int | None = None

    def __init__(
        self,
        model: DeepLab,
        precision: str,
        scales: float | Sequence[float] = (1.0,),
        flip: bool = False,
        resize: float = 1.0,
        window: int = WINDOW,
    ) -> None:
        scales = (scales,) if isinstance(scales, int | float) else tuple(scales)
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise UserError(f"--scales {' '.join(map(str, scales))}: must be positive numbers")
        if window < 2 * ALIGNMENT:
            raise UserError(f"--window {window}: must be at least {2 * ALIGNMENT}")
        self.model = fuse_for_inference(model, DTYPES[precision])
        self.device = next(model.parameters()).device
        self.precision = precision
        self.scales = scales
        self.resize = resize
        self.flip = flip
        self.overlap = window // 4  # pixels that neighbours share, at least
        self.whole_pixels = 2 * window**2
        self.side = math.isqrt(self.whole_pixels) // ALIGNMENT * ALIGNMENT  # of a square
        self.views = len(self.scales) * (1 + flip)

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path | Checkpoint,
        device: torch.device | str | None = None,
        precision: str = "auto",
        output_stride: int | None = None,
        **options: Any,
    ) -> "Predictor":
        """Any checkpoint, ready to predict.

        Args:
            source: a file, "torchvision" for its weights, or what `load_checkpoint` made of them.
            device: where to compute; None chooses as the scripts do.
            precision: "auto", "bf16", "fp16" or "fp32".
            output_stride: 8 or 16, for a file that does not say.
            options: `scales`, `flip` and `window`.

        Raises:
            UserError: see `load_checkpoint`, `model_from_checkpoint` and `choose_precision`.
        """
        checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
        device = choose_device(str(device or "auto"))
        precision = choose_precision(precision, device)
        model = model_from_checkpoint(checkpoint, output_stride)
        model = model.to(device).to(memory_format=torch.channels_last)
        predictor = cls(model, precision, resize=checkpoint.resize, **options)
        predictor.checkpoint = checkpoint
        predictor.output_stride = output_stride or checkpoint.output_stride
        predictor.class_names = checkpoint.shown_names
        predictor.palette = checkpoint.palette
        return predictor

    def predict_image(self, image: AnyImage) -> np.ndarray:
        """Class indices, uint8 (H, W), of a file, a PIL image, an array or a tensor.

        Arrays are uint8 (H, W, 3), tensors uint8 (3, H, W), both RGB. EXIF orientation is applied.

        Raises:
            UserError: the file cannot be read.
            TypeError: it is none of these, or not of bytes.
            ValueError: it has another shape.
        """
        return self(to_tensor(image)[None].to(self.device))[0].cpu().numpy()

    def predict_with_confidence(self, image: AnyImage) -> tuple[np.ndarray, np.ndarray]:
        """What `predict_image` gives, and the softmax of these classes, averaged over the views.

        Both are uint8 (H, W); a probability of 1 is 255.
        """
        images = to_tensor(image)[None].to(self.device)
        pred, confidence = self(images, self._best_and_confidence)[0].cpu().numpy()
        return pred, confidence

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, decide: Decide = best_class) -> torch.Tensor:
        """Uint8 images (N, 3, H, W), RGB, to class indices uint8 (N, H, W), or what `decide` makes.

        Raises:
            TypeError: the images are not of bytes.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 in [0, 255], not {images.dtype}")
        size = images.shape[-2:]
        if size.numel() > self.whole_pixels:
            return torch.stack([self.predict_in_windows(image, decide) for image in images])
        # A batch may take the memory of two whole images of the largest size.
        parts = images.split(max(2 * self.whole_pixels // size.numel(), 1))
        return torch.cat([decide(self._scores(part, size)) for part in parts])

    def predict_in_windows(self, image: torch.Tensor, decide: Decide = best_class) -> torch.Tensor:
        """The same of one image (3, H, W), whatever its size."""
        size, (num_classes, stride) = image.shape[1:], self._grid
        grid = [math.ceil(length / stride) for length in size]
        total = torch.zeros(num_classes, *grid, device=image.device)
        weight = torch.zeros(grid, device=image.device)
        for rows, columns in place_windows(size, self.side, self.overlap):
            y, x = (
                slice(part.start // stride, math.ceil(part.stop / stride))
                for part in (rows, columns)
            )
            ramps = window_weights(weight[y, x].shape, self.overlap / stride).to(weight)
            scores = self._scores(image[None, :, rows, columns], ramps.shape, on_grid=True)[0]
            total[:, y, x] += scores * ramps
            weight[y, x] += ramps
        strips = upsample_in_strips(total.div_(weight), size)
        return torch.cat([decide(strip)[0] for strip in strips], dim=-2)

    def _best_and_confidence(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N, C, H, W) to class indices and their probability: uint8 (N, 2, H, W)."""
        classes = scores.argmax(1, keepdim=True)
        probability = scores.gather(1, classes)
        if self.views == 1:
            probability = (probability - scores.logsumexp(1, keepdim=True)).exp()
        confidence = (255 / self.views * probability).round()
        return torch.cat([classes.byte(), confidence.byte()], dim=1)

    @cached_property
    def _grid(self) -> tuple[int, int]:
        """The number of classes, and the pixels from one logit of the head to the next."""
        side = 4 * ALIGNMENT
        image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.device)
        logits = self._logits(image, on_grid=True)
        return logits.shape[1], side // logits.shape[-1]

    def _logits(self, images: torch.Tensor, on_grid: bool) -> torch.Tensor:
        """The one place where the model runs: (N, 3, H, W) to float logits, at any size."""
        with autocast(self.precision, self.device):
            if not on_grid:
                return self.model(images)
            features = self.model.backbone(self.model.normalize(images))
            return self.model.classifier(features).float()

    def _scores(
        self, images: torch.Tensor, size: Sequence[int], on_grid: bool = False
    ) -> torch.Tensor:
        """The sum of the softmax over the views, or the logits of a single one.

        Args:
            images: uint8 (N, 3, H, W).
            size: height and width of the result.
            on_grid: take the head's logits before the model upsamples them.

        Returns:
            float (N, C, *size).
        """
        total: torch.Tensor | None = None
        for scale in self.scales:
            view = resize_images(images, self.resize * scale)
            for mirrored in (False, True)[: 1 + self.flip]:
                logits = self._logits(view.flip(-1) if mirrored else view, on_grid)
                if logits.shape[-2:] != torch.Size(size):
                    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
                if self.views == 1:
                    return logits
                scores = logits.softmax(dim=1)
                scores = scores.flip(-1) if mirrored else scores
                total = scores if total is None else total.add_(scores)
        assert total is not None  # there is a scale
        return total


def resize_images(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Uint8 (N, 3, H, W) to float, bilinear and without aliasing; at factor 1 as they are."""
    if factor == 1:
        return images
    size = [max(round(length * factor), 1) for length in images.shape[-2:]]
    try:
        return F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    except NotImplementedError:  # on Apple's GPUs with torch 2.6
        on_cpu = images.cpu().float()
        return F.interpolate(on_cpu, size, mode="bilinear", antialias=True).to(images.device)


def to_tensor(image: AnyImage) -> torch.Tensor:
    """An image as uint8 (3, H, W); see `Predictor.predict_image`."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.array(to_rgb(ImageOps.exif_transpose(image)))
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(f"{type(image).__name__}: give a path, a PIL image, an array or a tensor")
    shape = tuple(image.shape)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.require(image, requirements=["C", "W"])).movedim(-1, 0)
    if image.dim() != 3 or len(image) != 3:
        raise ValueError(f"an array must be (H, W, 3), a tensor (3, H, W), RGB, not {shape}")
    return image
