"""Images and targets to compute with, drawn at random."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.custom import CustomSegmentation
from datasets.shapes import CLASS_NAMES, draw_sample

# (height, width): common sizes in VOC, as often as they come there.
VOC_SIZES = [(375, 500)] * 8 + [(333, 500)] * 5 + [(500, 375)] * 4 + [(500, 334)] * 3
VOC_SIZES += [(500, 333)] * 2 + [(281, 500)]


def draw_batch(size: int, number: int, num_classes: int) -> list[Tensor]:
    """Random images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices; as the loader's."""
    generator = torch.Generator().manual_seed(0)
    shape = (number, size, size)
    images = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
    targets = torch.randint(num_classes, shape, generator=generator, dtype=torch.uint8)
    batch = [images.permute(0, 3, 1, 2), targets, torch.arange(number)]
    return [part.pin_memory() for part in batch] if torch.cuda.is_available() else batch


def draw_images(folder: Path, number: int, shrink: int = 1) -> CustomSegmentation:
    """Draw a data set into a new folder, all sides those of VOC's divided by `shrink`."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    rng = np.random.default_rng(0)
    for index in range(number):
        height, width = VOC_SIZES[index % len(VOC_SIZES)]
        height -= index // len(VOC_SIZES)  # more images are more sizes, as in VOC
        objects = [(int(rng.integers(1, len(CLASS_NAMES))), height / shrink / 6) for _ in range(4)]
        image, target = draw_sample((height // shrink, width // shrink), objects, rng)
        # As many bytes a pixel as VOC's.
        Image.fromarray(image).save(folder / "JPEGImages" / f"{index:04d}.jpg", quality=95)
        Image.fromarray(target).save(folder / "SegmentationClass" / f"{index:04d}.png")
    return CustomSegmentation(folder, "trainval")
