"""Images and masks to measure on: as large as VOC's, and as hard to decode."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.base import IGNORE_INDEX

NUM_CLASSES = 21
# (width, height): common sizes in VOC, as often as they come there.
SIZES = [(500, 375)] * 8 + [(500, 333)] * 5 + [(375, 500)] * 4 + [(334, 500)] * 3
SIZES += [(333, 500)] * 2 + [(500, 281)]


def draw_inputs(folder: Path, number: int, shrink: int = 1) -> None:
    """Draw a data set for `CustomSegmentation`, without lists; all sides divided by `shrink`."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    names = "".join(f"class {index}\n" for index in range(NUM_CLASSES))
    (folder / "class_names.txt").write_text(names)
    for index, (width, height) in enumerate(islice(cycle(SIZES), number)):
        # More images are more sizes, as in VOC, and not larger batches.
        height -= index // len(SIZES)
        image, target = draw_photo((width // shrink, height // shrink), rng)
        # As many bytes a pixel as VOC's.
        image.save(folder / "JPEGImages" / f"{index:04d}.jpg", quality=95)
        target.save(folder / "SegmentationClass" / f"{index:04d}.png")


def draw_photo(size: tuple[int, int], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Smooth colours, four rectangles with void borders, and the noise of a camera."""
    width, height = size
    clouds = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    image = Image.fromarray(clouds).resize(size, Image.Resampling.BICUBIC)
    target = Image.new("L", size)
    for index in rng.integers(1, NUM_CLASSES, 4).tolist():
        left, top = (rng.random(2) * size * 0.7).astype(int).tolist()
        box = (left, top, left + width // 4, top + height // 4)
        ImageDraw.Draw(image).rectangle(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
        ImageDraw.Draw(target).rectangle(box, fill=index, outline=IGNORE_INDEX)
    noisy = np.asarray(image) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8)), target
