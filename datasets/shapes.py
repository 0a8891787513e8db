"""A generated data set in VOC's layout: textured shapes, for a first run without a download.

    from datasets.shapes import ShapesSegmentation
    train = ShapesSegmentation("data")  # draws data/shapes once, in seconds

Like VOC it has 20 object classes besides background, unequal ones, and a void band around every
object. A class is a texture on a shape in two colours. Every shape comes in four textures, every
texture on five shapes, and every colour in two classes or more: none of them alone tells a class.
"""

import colorsys
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from datasets.base import IGNORE_INDEX, SegmentationDataset, Transform
from datasets.lists import read_ids
from datasets.voc import PALETTE
from utils.common.download import locked
from utils.common.errors import UserError

VERSION = 2  # raise it with every change to what is drawn: sets on disk are then drawn anew
SEED = 5  # every class is in at least 10 images of val
NUM_TRAIN, NUM_VAL = 480, 120
IMAGE_SETS = ("train", "val", "trainval")

SIZES = ((96, 128), (112, 128), (128, 96), (128, 112), (128, 128))  # (height, width)
COUNT_SHARES = (0.1, 0.25, 0.35, 0.3)  # of the images that hold 1, 2, 3 and 4 objects
RADIUS = 20.3  # pixels, of the disc of the same area as a medium object
RADIUS_RANGE = (13.0, 40.0)

# (hue, saturation, value), each in [0, 1]
COLOURS = {
    "red": (0.99, 0.88, 0.85),
    "orange": (0.07, 0.92, 0.98),
    "yellow": (0.14, 0.88, 1.00),
    "green": (0.36, 0.80, 0.58),
    "turquoise": (0.49, 0.88, 0.70),
    "blue": (0.62, 0.85, 0.80),
    "purple": (0.77, 0.75, 0.62),
    "pink": (0.91, 0.60, 0.98),
    "black": (0.65, 0.25, 0.14),
    "white": (0.12, 0.06, 1.00),
}

# First and second colour, and the planned percentage of the labelled pixels: as unequal as VOC's,
# which go from 4.6 % (person) down to 0.4 %.
OBJECTS = {
    "checkered_disc": ("red", "white", 1.3),
    "checkered_heart": ("pink", "black", 0.6),
    "checkered_square": ("blue", "yellow", 2.6),
    "checkered_star": ("orange", "white", 0.8),
    "checkered_triangle": ("green", "white", 1.1),
    "dotted_disc": ("white", "red", 1.0),
    "dotted_heart": ("pink", "white", 1.4),
    "dotted_square": ("black", "yellow", 0.6),
    "dotted_star": ("yellow", "black", 1.5),
    "dotted_triangle": ("blue", "pink", 0.5),
    "plain_disc": ("orange", "orange", 1.5),
    "plain_heart": ("red", "red", 0.8),
    "plain_square": ("turquoise", "turquoise", 1.1),
    "plain_star": ("yellow", "yellow", 1.2),
    "plain_triangle": ("purple", "purple", 0.8),
    "striped_disc": ("black", "white", 4.6),
    "striped_heart": ("green", "yellow", 0.45),
    "striped_square": ("turquoise", "orange", 1.8),
    "striped_star": ("blue", "white", 1.2),
    "striped_triangle": ("purple", "white", 1.4),
}
CLASS_NAMES = ("background", *OBJECTS)
SHARES = np.array([share for *_, share in OBJECTS.values()])


class ShapesSegmentation(SegmentationDataset):
    """The generated data set, 21 classes and void (255), drawn into `<root>/shapes` if not there.

    A set that lies there is read as it is, also one that `install_shapes` drew of fewer images.

    Args:
        root: the folder that holds `shapes`, or will.
        image_set: `train` (480), `val` (120) or `trainval` (600).
        transform: `(image, target) -> (image, target)`.
        masks_only: do not ask for images.

    Raises:
        UserError: no such image set, or `<root>/shapes` cannot be written or is something else.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        transform: Transform | None = None,
        masks_only: bool = False,
    ) -> None:
        if image_set not in IMAGE_SETS:
            raise UserError(
                f"--image_set {image_set}: the data set shapes has no such set: "
                f"give one of {', '.join(IMAGE_SETS)}"
            )
        folder = install_shapes(root)
        ids = read_ids(folder / "ImageSets" / "Segmentation" / f"{image_set}.txt")
        super().__init__(folder, ids, CLASS_NAMES, transform, masks_only=masks_only)


def is_drawn(folder: Path) -> bool:
    """Whether `folder` holds a complete set of this version.

    Raises:
        UserError: it holds something else than a set of any version.
    """
    if not folder.exists():
        return False
    try:
        if not any(folder.iterdir()):
            return False
        return json.loads((folder / "version.json").read_text())["shapes_version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder}: not a data set that --dataset shapes has drawn (no version.json of its "
            "own): move it away, or give another --data_root"
        ) from None


def install_shapes(
    root: str | Path, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, seed: int = SEED
) -> Path:
    """Draw the data set into `<root>/shapes`, unless a set of this version lies there.

    It is drawn in a temporary folder beside, and renamed: complete, or not at all. A set of another
    version is replaced. Of several processes one draws, and the others wait for it.

    Returns:
        The folder, with `JPEGImages`, `SegmentationClass`, `ImageSets`, `class_names.txt` and
        `version.json`.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    folder = Path(root) / "shapes"
    with contextlib.suppress(UserError):  # perhaps it is being replaced: the lock will tell
        if is_drawn(folder):
            return folder
    try:
        with locked(folder.parent / ".shapes.lock"):
            if not is_drawn(folder):
                number = num_train + num_val
                print(f"Drawing the data set shapes ({number} images) into {folder}", flush=True)
                with tempfile.TemporaryDirectory(prefix=".shapes-", dir=folder.parent) as temporary:
                    fresh = Path(temporary, "shapes")
                    draw_set(fresh, num_train, num_val, seed)
                    if folder.exists():
                        folder.rename(Path(temporary, "old"))
                    fresh.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}): give another --data_root"
        ) from None
    return folder


def draw_set(folder: Path, num_train: int, num_val: int, seed: int) -> None:
    """Draw all images, masks and lists into a new folder.

    Every image has its own random generator, from (seed, number): the files are a function of the
    arguments alone (bit for bit with the same NumPy and Pillow).
    """
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(seed)  # the same as (seed, 0): images count from 1
    plan = plan_objects(num_train, rng) + plan_objects(num_val, rng)
    ids = [f"shapes_{number:06d}" for number in range(1, len(plan) + 1)]
    samples = zip(ids, plan, strict=True)
    for number, (name, classes) in enumerate(tqdm(samples, "shapes", len(ids)), 1):
        image, target = draw_sample(classes, np.random.default_rng([seed, number]))
        image_path = folder / "JPEGImages" / f"{name}.jpg"
        Image.fromarray(image).save(image_path, quality=92, subsampling=0)
        mask = Image.fromarray(target)
        mask.putpalette(PALETTE.tobytes())
        mask.save(folder / "SegmentationClass" / f"{name}.png")
    for image_set, chosen in zip(IMAGE_SETS, (ids[:num_train], ids[num_train:], ids), strict=True):
        path = folder / "ImageSets" / "Segmentation" / f"{image_set}.txt"
        path.write_text("".join(f"{name}\n" for name in chosen))
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    settings = {"shapes_version": VERSION, "train": num_train, "val": num_val, "seed": seed}
    (folder / "version.json").write_text(json.dumps(settings) + "\n")


def plan_objects(num_images: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The classes (1 to 20) of the objects of each image.

    The number of objects of a class goes with the root of its share, and so does the area of one
    (`draw_radius`): a rare class is both rarer and smaller, yet in images enough to learn it from.
    """
    counts = rng.choice(len(COUNT_SHARES), size=num_images, p=COUNT_SHARES) + 1
    weights = np.sqrt(SHARES)
    # Stratified: every class gets its part to within one object, whatever the seed.
    quantiles = (np.arange(counts.sum()) + 0.5) / counts.sum()
    classes = np.searchsorted(np.cumsum(weights) / weights.sum(), quantiles) + 1
    return np.split(rng.permutation(classes), np.cumsum(counts)[:-1])


def draw_sample(classes: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image with one object of each of the given classes (1 to 20).

    Returns:
        image uint8 (H, W, 3) and target uint8 (H, W).
    """
    size = SIZES[rng.integers(len(SIZES))]
    image = draw_background(size, rng)
    classes_and_radii = [(index, draw_radius(index, rng)) for index in classes]
    # Large ones first: a small object is never hidden behind a large one.
    classes_and_radii.sort(key=lambda item: -item[1])
    target = np.zeros(size, np.uint8)
    instances = np.zeros(size, np.uint8)
    placed: list[tuple[np.ndarray, float]] = []
    for number, (index, radius) in enumerate(classes_and_radii, 1):
        centre = choose_centre(size, radius, placed, rng)
        placed.append((centre, radius))
        inside = draw_object(image, CLASS_NAMES[index], centre, radius, rng)
        target[inside], instances[inside] = index, number
    target[find_borders(instances)] = IGNORE_INDEX
    image += rng.normal(0, rng.uniform(2, 6), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), target


def draw_radius(index: int, rng: np.random.Generator) -> float:
    """An object's radius in pixels: that of the disc of its area."""
    medium = RADIUS * (SHARES[index - 1] / SHARES.mean()) ** 0.25
    return float(np.clip(medium * np.exp(rng.normal(0, 0.2)), *RADIUS_RANGE))


def choose_centre(
    size: tuple[int, int],
    radius: float,
    placed: Sequence[tuple[np.ndarray, float]],
    rng: np.random.Generator,
) -> np.ndarray:
    """The roomiest of a few random places: objects overlap, but seldom cover each other."""
    margin = 0.6 * radius
    candidates = rng.uniform(margin, np.array(size) - margin, (4, 2))
    room = [
        min((np.hypot(*(candidate - other)) - far for other, far in placed), default=0.0)
        for candidate in candidates
    ]
    return candidates[int(np.argmax(room))]


def find_borders(instances: np.ndarray) -> np.ndarray:
    """The pixels with a 4-neighbour of another instance: bool (H, W), a band of two pixels."""
    borders = np.zeros(instances.shape, bool)
    down = instances[1:] != instances[:-1]
    right = instances[:, 1:] != instances[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def draw_background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Muted colours that flow into each other, with soft clutter: float32 (H, W, 3) in [0, 255]."""
    height, width = size
    tints = [
        colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.4, 0.95))
        for _ in range(9)
    ]
    image = 255 * enlarge(np.array(tints).reshape(3, 3, 3), size)
    for cells in (6, 14, 40):  # clutter from coarse to fine
        noise = rng.normal(0, rng.uniform(2, 8), (cells * height // width, cells, 1))
        image += enlarge(noise, size)
    return image


def enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic interpolation of (h, w, C) to float32 (H, W, C)."""
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(grid, -1, 0)]
    resized = [plane.resize(size[::-1], Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def draw_object(
    image: np.ndarray, name: str, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw one object with its shadow onto `image`, in place.

    Args:
        image: float32 (H, W, 3), in [0, 255].
        name: its class, `<texture>_<shape>`.
        centre: row and column, in pixels.
        radius: of the disc of its area, in pixels.
        rng: decides on its turn, proportions, colours and texture.

    Returns:
        bool (H, W): the pixels whose centre lies in it.
    """
    texture, shape = name.split("_")
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    y, x = rows + 0.5 - centre[0], columns + 0.5 - centre[1]
    angle, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.normal(0, 0.06))
    u = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    v = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    distance = radius * DISTANCES[shape](u / radius, v / radius)
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]  # a border one pixel soft

    period = rng.uniform(8.5, 11) * (radius / RADIUS) ** 0.5
    mix = TEXTURES[texture](u + rng.uniform(0, period), v + rng.uniform(0, period), period)
    first, second = (jitter_colour(COLOURS[colour], rng) for colour in OBJECTS[name][:2])
    colours = first + mix[..., None] * (second - first)
    light = 1 - 0.12 * (x + y) / radius  # from the top left
    rim = 1 - 0.35 * np.clip(distance + 2, 0, 1)
    colours = np.clip(colours * (light * rim)[..., None], 0, 255)

    below = Image.fromarray(np.uint8(255 * np.pad(alpha[:-2, :-2, 0], ((2, 0), (2, 0)))))
    shadow = np.asarray(below.filter(ImageFilter.GaussianBlur(2.5)), np.float32) / 255
    image *= 1 - 0.4 * shadow[..., None]
    image += alpha * (colours - image)
    return distance < 0


def jitter_colour(colour: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A colour near the given one (hue, saturation, value): RGB in [0, 255]."""
    hue, saturation, value = np.array(colour) + rng.uniform(-1, 1, 3) * (0.02, 0.08, 0.08)
    return 255 * np.array(
        colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1))
    )


# Shapes: the signed distance to the border, negative inside, of a shape of area pi around (0, 0).


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the unit circle."""
    return np.hypot(u, v) - 1


def polygon(u: np.ndarray, v: np.ndarray, sides: int) -> np.ndarray:
    """Distance to the (prolonged) nearest side of a regular polygon."""
    step = np.pi / sides
    from_side = (np.arctan2(v, u) + step) % (2 * step) - step
    return np.hypot(u, v) * np.cos(from_side) - np.sqrt(np.pi / (sides * np.tan(step)))


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a square."""
    return polygon(u, v, 4)


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to an equilateral triangle."""
    return polygon(u, v, 3)


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a star of five points whose notches lie half as far out as its points."""
    step, notch = np.pi / 5, 0.5
    outer = np.sqrt(np.pi / (5 * notch * np.sin(step)))
    normal = np.arctan((1 / notch - np.cos(step)) / np.sin(step))
    from_point = np.abs((np.arctan2(v, u) + step) % (2 * step) - step)
    return np.hypot(u, v) * np.cos(from_point - normal) - outer * np.cos(normal)


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to a square with a half disc on each of two adjacent sides."""
    half = np.sqrt(np.pi / (4 + np.pi))
    u, v = u + 0.4 * half, v + 0.4 * half
    body = np.maximum(np.abs(u), np.abs(v))
    return np.minimum(body, np.minimum(np.hypot(u - half, v), np.hypot(u, v - half))) - half


# Textures: the part of the second colour in [0, 1], from (u, v) and the period in pixels.


def plain(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """The first colour alone."""
    return np.zeros(np.broadcast_shapes(u.shape, v.shape))


def striped(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Stripes, as wide as the gaps between them."""
    wave = np.sin(2 * np.pi * u / period)
    return np.clip(0.5 + period / (2 * np.pi) * wave, 0, 1)


def checkered(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """A chessboard of squares."""
    wave = np.sin(np.pi * u / period) * np.sin(np.pi * v / period)
    return np.clip(0.5 + period / np.pi * wave, 0, 1)


def dotted(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Dots on a square grid."""
    to_dot = np.hypot(u % period - period / 2, v % period - period / 2)
    return np.clip(0.5 + 0.3 * period - to_dot, 0, 1)


Field = Callable[..., np.ndarray]
DISTANCES: dict[str, Field] = {
    shape.__name__: shape for shape in (disc, heart, square, star, triangle)
}
TEXTURES: dict[str, Field] = {
    texture.__name__: texture for texture in (checkered, dotted, plain, striped)
}
