"""Paired transforms: `(image, target) -> (image, target)`, uint8 in, uint8 out.

Images are (3, H, W) RGB, targets (H, W). Random choices come from torch's default CPU generator,
so any transform of `torchvision.transforms.v2` fits beside these. Normalisation is not among them:
images travel as bytes, and the model normalises them. torchvision is imported where it is used,
here and elsewhere: it takes as long as torch, and `--help` needs neither its transforms nor models.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.base import IGNORE_INDEX, Transform
from utils.common.imagenet import MEAN

MEAN_COLOR = tuple(round(255 * value) for value in MEAN)  # of padding: 0 when normalised


def resize(image: Tensor, target: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Resize to (height, width): bilinear with antialiasing, the target by nearest neighbour.

    The image comes out channels last.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    # Dense and channels last, as torch's kernel for bytes computes: it need not change the layout.
    image = image[None].contiguous(memory_format=torch.channels_last)
    image = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)[0]
    return image, F.resize(target[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


class RandomScaleCrop:
    """Scale by a random factor and crop at random, in one step.

    The part of the image that the crop will show is cut out first and only that is resized: the
    same distribution of views as scaling the whole image and cropping it, to within a pixel of the
    image, at a fraction of the work. Where the scaled image is smaller than the crop, it lies at a
    random place in it, surrounded by the mean colour and the target 255.

    Args:
        crop_size: (height, width) of the result.
        scale: range of the factor, drawn uniformly.
    """

    def __init__(self, crop_size: tuple[int, int], scale: tuple[float, float] = (0.5, 2.0)) -> None:
        self.crop_size = crop_size
        self.scale = scale

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Image and target of `crop_size`."""
        scale = torch.empty(()).uniform_(*self.scale).item()
        rows, height, above = self._draw_side(target.shape[0], self.crop_size[0], scale)
        columns, width, left = self._draw_side(target.shape[1], self.crop_size[1], scale)
        image, target = resize(image[:, rows, columns], target[rows, columns], (height, width))
        if (height, width) == self.crop_size:
            return image, target
        row = torch.tensor(MEAN_COLOR, dtype=torch.uint8).repeat(self.crop_size[1])
        canvas = row.repeat(self.crop_size[0], 1).view(*self.crop_size, 3).permute(2, 0, 1)
        canvas[:, above : above + height, left : left + width] = image
        void = torch.full(self.crop_size, IGNORE_INDEX, dtype=torch.uint8)
        void[above : above + height, left : left + width] = target
        return canvas, void

    @staticmethod
    def _draw_side(length: int, crop: int, scale: float) -> tuple[slice, int, int]:
        """For one axis: the part of the source, its length when scaled, its place in the crop."""
        part = max(round(crop / scale), 1)
        if part < length:
            start = int(torch.randint(length - part + 1, ()))
            return slice(start, start + part), crop, 0
        scaled = min(max(round(length * scale), 1), crop)
        return slice(0, length), scaled, int(torch.randint(crop - scaled + 1, ()))


def random_flip(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right with probability one half, both or none."""
    return (image.flip(-1), target.flip(-1)) if torch.rand(()) < 0.5 else (image, target)


def train_transform(
    crop_size: tuple[int, int], resize: float = 1.0, color_jitter: float = 0.0
) -> Transform:
    """The augmentation of training: random scale 0.5 to 2.0, random crop, horizontal flip.

    Args:
        crop_size: (height, width).
        resize: another factor of all scales.
        color_jitter: brightness, contrast and saturation change by factors of 1 - color_jitter to
            1 + color_jitter.
    """
    from torchvision.transforms import v2

    transforms = [RandomScaleCrop(crop_size, (0.5 * resize, 2 * resize)), random_flip]
    if color_jitter:  # of several tensors torchvision changes the first
        transforms.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose(transforms)


class ShortSideCenterCrop:
    """The public ancestor's validation view: short side to `size`, then the centre square."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Image and target of (size, size)."""
        from torchvision.transforms.v2 import functional as F

        height, width = target.shape
        factor = self.size / min(height, width)
        image, target = resize(image, target, (round(height * factor), round(width * factor)))
        return F.center_crop(image, [self.size]), F.center_crop(target, [self.size])
