"""A generated data set in VOC's layout: textured shapes, for a first run without a download.

    from datasets.shapes import ShapesSegmentation
    train = ShapesSegmentation("data")  # draws data/shapes-v4 once, in seconds

Like VOC it has 20 object classes besides background, unequal ones, and a void band around every
object. A class is a texture on a shape in two colours. Every shape comes in four textures, every
texture on five shapes, and every colour in two classes or more: none of them alone tells a class.
"""

import colorsys
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.lists import read_ids
from datasets.voc import PALETTE
from utils.common.download import disk_errors
from utils.common.locks import locked
from utils.common.progress import progress

VERSION = 4  # of the folder's name: raise it with every change to what is drawn
SEED = 5  # every class is in at least 10 images of val
NUM_TRAIN, NUM_VAL = 480, 120

SIZES = ((96, 128), (112, 128), (128, 96), (128, 112), (128, 128))  # (height, width)
COUNT_SHARES = (0.1, 0.25, 0.35, 0.3)  # of the images that hold 1, 2, 3 and 4 objects
RADIUS = 20.3  # pixels, of the disc of the same area as a medium object
RADIUS_RANGE = (13.0, 40.0)
SCALE = 3  # an object is drawn so many times as large: soft borders

# First and second colour, and the planned percentage of the labelled pixels: as unequal as VOC's,
# which go from 4.6 % (person) down to 0.4 %.
OBJECTS = {
    "checkered_disc": ("crimson", "white", 1.3),
    "checkered_heart": ("hotpink", "#1b1c24", 0.6),
    "checkered_square": ("royalblue", "gold", 2.6),
    "checkered_star": ("darkorange", "white", 0.8),
    "checkered_triangle": ("forestgreen", "white", 1.1),
    "dotted_disc": ("white", "royalblue", 1.0),
    "dotted_heart": ("hotpink", "white", 1.4),
    "dotted_square": ("#1b1c24", "gold", 0.6),
    "dotted_star": ("gold", "#1b1c24", 1.5),
    "dotted_triangle": ("royalblue", "hotpink", 0.5),
    "plain_disc": ("darkorange", "darkorange", 1.5),
    "plain_heart": ("crimson", "crimson", 0.8),
    "plain_square": ("lightseagreen", "lightseagreen", 1.1),
    "plain_star": ("gold", "gold", 1.2),
    "plain_triangle": ("rebeccapurple", "rebeccapurple", 0.8),
    "striped_disc": ("#1b1c24", "white", 4.6),
    "striped_heart": ("forestgreen", "gold", 0.9),
    "striped_square": ("lightseagreen", "darkorange", 1.8),
    "striped_star": ("royalblue", "white", 1.2),
    "striped_triangle": ("rebeccapurple", "white", 1.4),
}
CLASS_NAMES = ("background", *OBJECTS)
SHARES = np.array([share for *_, share in OBJECTS.values()])


class ShapesSegmentation(SegmentationDataset):
    """The generated data set, 21 classes and void (255), drawn below `root` if not there.

    Args:
        root: the folder to draw into.
        image_set: `train` (480), `val` (120) or `trainval` (600).
        options: transform and others, see `SegmentationDataset`.

    Raises:
        UserError: no such image set, or the folder cannot be written.
    """

    def __init__(self, root: str | Path, image_set: str = "train", **options: Any) -> None:
        folder = install_shapes(root)
        ids = read_ids(folder / "ImageSets" / "Segmentation" / f"{image_set}.txt")
        super().__init__(folder, ids, CLASS_NAMES, **options)


def install_shapes(root: str | Path) -> Path:
    """Draw the data set into a folder below `root`, and return that, unless it is there.

    It is drawn in a temporary folder beside, and renamed: complete, or not at all. Of several
    processes one draws, and the others wait for it. Each version has a folder of its own.
    """
    folder = Path(root) / f"shapes-v{VERSION}"
    if folder.exists():
        return folder
    with disk_errors(folder.parent), locked(folder.parent / ".shapes.lock"):
        if not folder.exists():
            print(f"Drawing the data set shapes into {folder}", flush=True)
            with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root) as temporary:
                draw_set(Path(temporary, "set"))
                Path(temporary, "set").rename(folder)
    return folder


def draw_set(folder: Path) -> None:
    """Draw all images, masks and lists into a new folder.

    Every image has its own random generator, from (seed, number): the files are always the same
    (bit for bit with the same NumPy and Pillow).
    """
    images, masks, lists = (
        folder / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    rng = np.random.default_rng(SEED)  # the same as (SEED, 0): images count from 1
    plan = plan_objects(NUM_TRAIN, rng) + plan_objects(NUM_VAL, rng)
    ids = [f"shapes_{number:06d}" for number in range(1, len(plan) + 1)]
    samples = zip(ids, progress(plan, "shapes", leave=False), strict=True)
    for number, (sample, classes) in enumerate(samples, 1):
        rng = np.random.default_rng([SEED, number])
        size = SIZES[rng.integers(len(SIZES))]
        image, target = draw_sample(size, [(c, draw_radius(c, rng)) for c in classes], rng)
        Image.fromarray(image).save(images / f"{sample}.jpg", quality=92, subsampling=0)
        mask = Image.fromarray(target)
        mask.putpalette(PALETTE.tobytes())
        mask.save(masks / f"{sample}.png")
    sets = {"train": ids[:NUM_TRAIN], "val": ids[NUM_TRAIN:], "trainval": ids}
    for image_set, chosen in sets.items():
        (lists / f"{image_set}.txt").write_text("\n".join(chosen) + "\n")
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")


def plan_objects(num_images: int, rng: np.random.Generator) -> list[list[int]]:
    """The classes (1 to 20) of the objects of each image.

    The number of objects of a class goes with the root of its share, and so does the area of one
    (`draw_radius`): a rare class is both rarer and smaller, yet in images enough to learn it from.
    """
    counts = rng.choice(len(COUNT_SHARES), size=num_images, p=COUNT_SHARES) + 1
    weights = np.sqrt(SHARES)
    # Stratified: every class gets its part to within one object, whatever the seed.
    quantiles = (np.arange(counts.sum()) + 0.5) / counts.sum()
    classes = np.searchsorted(np.cumsum(weights) / weights.sum(), quantiles) + 1
    return [part.tolist() for part in np.split(rng.permutation(classes), np.cumsum(counts)[:-1])]


def draw_radius(index: int, rng: np.random.Generator) -> float:
    """An object's radius in pixels: that of the disc of its area."""
    medium = RADIUS * (SHARES[index - 1] / SHARES.mean()) ** 0.25
    return float(np.clip(medium * np.exp(rng.normal(0, 0.2)), *RADIUS_RANGE))


def draw_sample(
    size: tuple[int, int], objects: Sequence[tuple[int, float]], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw objects, given by class (1 to 20) and radius in pixels.

    Returns:
        image uint8 (H, W, 3) and target uint8 (H, W).
    """
    image = draw_background(size, rng)
    target, instances = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    placed: list[tuple[np.ndarray, float]] = []
    # Large ones first: a small object is never hidden behind a large one.
    for number, (index, radius) in enumerate(sorted(objects, key=lambda item: -item[1]), 1):
        # The roomiest of four places: objects overlap, but seldom cover each other.
        places = rng.uniform(0.6 * radius, np.array(size) - 0.6 * radius, (4, 2))
        room = [min((np.hypot(*(p - c)) - far for c, far in placed), default=0.0) for p in places]
        placed.append((places[np.argmax(room)], radius))
        inside = draw_object(image, CLASS_NAMES[index], *placed[-1], rng)
        target[inside], instances[inside] = index, number
    padded = np.pad(instances, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    target[np.any([other != instances for other in neighbours], axis=0)] = IGNORE_INDEX
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(2, 6), (*size, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), target


def draw_background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Muted colours that flow into each other, with soft clutter."""
    muted = ((rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.4, 0.95)) for _ in range(9))
    tints = 255 * np.array([colorsys.hsv_to_rgb(*colour) for colour in muted]).reshape(3, 3, 3)
    image = enlarge(Image.fromarray(np.uint8(tints)), size)
    for cells in (6, 14, 40):  # clutter from coarse to fine
        noise = rng.normal(0, rng.uniform(2, 8), (cells * size[0] // size[1], cells))
        image = image + enlarge(Image.fromarray(np.float32(noise)), size)[..., None]
    return Image.fromarray(np.uint8(np.clip(image, 0, 255)))


def enlarge(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Bicubic interpolation to float32 (H, W) or (H, W, 3)."""
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)


def draw_object(
    image: Image.Image, name: str, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw an object `<texture>_<shape>` and its shadow onto an image.

    Returns:
        bool (H, W): the pixels that it covers.
    """
    texture, shape = name.split("_")
    side = int(3.6 * radius)  # of a tile that holds every shape, however it is turned
    first, second = (
        tuple(np.uint8(np.clip(ImageColor.getrgb(colour) + rng.uniform(-20, 20, 3), 0, 255)))
        for colour in OBJECTS[name][:2]
    )
    tile, mask = (Image.new(mode, (SCALE * side, SCALE * side)) for mode in ("RGB", "L"))
    period = SCALE * rng.uniform(8.5, 11) * (radius / RADIUS) ** 0.5
    draw_texture(tile, texture, (first, second), period, rng.uniform(0, 2 * period, 2))
    stretch = np.exp(rng.normal(0, 0.06))
    points = SCALE * (side / 2 + radius * OUTLINES[shape] * (stretch, 1 / stretch))
    ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=255)
    tile.putalpha(mask)
    tile = tile.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR).reduce(SCALE)
    alpha = tile.getchannel("A")
    light = 1 - 0.12 * (np.mgrid[:side, :side].sum(0) - side) / radius  # from the top left
    rim = np.asarray(ImageChops.subtract(alpha, alpha.filter(ImageFilter.MinFilter(3)))) / 255
    lit = np.clip(np.asarray(tile)[..., :3] * (light * (1 - 0.35 * rim))[..., None], 0, 255)

    left, top = round(centre[1] - side / 2), round(centre[0] - side / 2)
    shadow, covered = Image.new("L", image.size), Image.new("L", image.size)
    shadow.paste(alpha.point(lambda value: 0.4 * value), (left + 2, top + 2))
    image.paste("black", mask=shadow.filter(ImageFilter.GaussianBlur(2.5)))
    image.paste(Image.fromarray(np.uint8(lit)), (left, top), alpha)
    covered.paste(alpha, (left, top))
    return np.asarray(covered) >= 128


def draw_texture(
    tile: Image.Image, texture: str, colours: tuple, period: float, offset: np.ndarray
) -> None:
    """Fill a tile with the first colour, and draw the texture over it in the second."""
    tile.paste(colours[0], (0, 0, *tile.size))
    draw, steps = ImageDraw.Draw(tile), range(int(tile.width / period) + 3)
    for i, j in itertools.product(steps, steps):
        x, y = i * period - offset[0], j * period - offset[1]
        if texture == "striped":
            draw.rectangle((x, y, x + period / 2, y + period), colours[1])
        elif texture == "checkered" and (i + j) % 2:
            draw.rectangle((x, y, x + period, y + period), colours[1])
        elif texture == "dotted":
            box = [at + part * period for part in (0.22, 0.78) for at in (x, y)]
            draw.ellipse(box, colours[1])


def outline(corners: Sequence[complex]) -> np.ndarray:
    """The corners (N, 2) of a shape, scaled to an area of pi."""
    points = np.array(corners)
    area = np.sum(points.conj() * np.roll(points, -1)).imag / 2
    return np.stack([points.real, points.imag], axis=1) * np.sqrt(np.pi / area)


TURNS = np.exp(2j * np.pi * np.arange(60) / 60)  # around the unit circle
HALF = TURNS[:31] / 1j  # from below to above, on the right
OUTLINES = {
    "disc": outline(TURNS),
    # A square with a half disc on each of two adjacent sides.
    "heart": outline([-1 - 1j, *(1 + HALF), *(1j + 1j * HALF)]) - 0.27,
    "square": outline(TURNS[::15] * (1 + 1j)),
    "star": outline(TURNS[::6] * np.tile([1, 0.5], 5)),
    "triangle": outline(TURNS[::20]),
}
