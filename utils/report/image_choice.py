"""The choice of images that figures show: one for each object class, and five for comparisons.

The choice is a function of the masks and the wishes of a person, and is kept in
`report/picks.json`:

    {"dataset": "voc", "data_root": "data", "image_set": "train",
     "classes": {"aeroplane": "2007_000032", ...}, "five": ["2007_000032", ...]}
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from datasets import DataSource, build_dataset
from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.colours import has_background
from datasets.loader import available_cores
from utils.common.errors import UserError
from utils.common.files import read_json, write_json
from utils.common.progress import progress, say

MAX_VOID = 0.25  # of all pixels; above it an image is taken only if there is no other


def load_or_make_picks(
    path: Path,
    source: DataSource,
    image_set: str | None = None,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read the picks if they are of this data set; else choose images and write them.

    Args:
        path: `picks.json`.
        source: the data set.
        image_set: the split to choose from; None: that of the stored picks, else `train`.
        fixed: see `pick_images`; if given, the choice is made anew.

    Returns:
        `dataset`, `data_root`, `image_set`, `classes` ({class name: id}) and `five` (ids).

    Raises:
        UserError: the file holds something else.
    """
    stored = read_json(path) if path.exists() else {}
    image_set = image_set or stored.get("image_set", "train")
    dataset = build_dataset(source, image_set, masks_only=True)
    root = str(stored.get("data_root", ""))  # which may spell the same folder otherwise
    root = root if Path(root).resolve() == Path(source.data_root).resolve() else source.data_root
    picks = {"dataset": source.dataset, "data_root": root, "image_set": image_set}
    if stored and not fixed:
        try:
            names, ids = set(stored["classes"]), {*stored["classes"].values(), *stored["five"]}
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: holds no choice of images: delete it") from None
        is_known = names <= set(dataset.class_names) and ids <= set(dataset.ids)
        if is_known and picks.items() <= stored.items():
            return stored
        say(f"note: {path}: of other images than {dataset.folder}, {image_set}: chosen anew")
    picks |= pick_images(dataset, fixed or {})
    write_json(path, picks)
    return picks


def object_classes(class_names: Sequence[str]) -> Sequence[str]:
    """All classes but the background."""
    return class_names[int(has_background(class_names)) :]


def pick_images(dataset: SegmentationDataset, fixed: Mapping[str, str]) -> dict[str, Any]:
    """Choose one image for each object class, each image at most once, and five of them.

    An image is good for a class that is large in it, whole, and alone (see `rate_images`). The
    class with the fewest images chooses first, the best one that is left.

    Args:
        dataset: reads masks alone.
        fixed: {class name: id} as a person wants it.

    Returns:
        `classes`: {class name: id}, in the order of the classes, without those that no image was
        left for; `five`: ids, see `pick_five`.

    Raises:
        UserError: a fixed class or image is not in the set, or does not fit.
    """
    ratings = rate_images(dataset)  # (images, C)
    chosen = check_fixed(dataset, ratings, fixed)
    names = dataset.class_names
    numbers = dict(zip(names, (ratings > 0).sum(0).tolist(), strict=True))  # of images
    for name in sorted(object_classes(names), key=numbers.__getitem__):
        left = ratings[:, names.index(name)].clone()
        left[list(chosen.values())] = 0
        best = int(left.argmax())  # the first of equals
        if name not in chosen and left[best] > 0:
            chosen[name] = best
    classes = {name: dataset.ids[chosen[name]] for name in names if name in chosen}
    return {"classes": classes, "five": pick_five(classes, fixed)}


def pick_five(classes: Mapping[str, str], fixed: Collection[str] = ()) -> list[str]:
    """Five of the picks, {class name: id}: those of the fixed classes, and others.

    The others are spread evenly over the classes, since neighbours are often of one kind.
    """
    wanted = [sample for name, sample in classes.items() if name in fixed][:5]
    others = [sample for sample in classes.values() if sample not in wanted]
    number = min(5 - len(wanted), len(others))
    chosen = {*wanted, *(others[place * len(others) // number] for place in range(number))}
    return [sample for sample in classes.values() if sample in chosen]


def rate_images(dataset: SegmentationDataset) -> torch.Tensor:
    """Rate every image for every class: float64 (images, C), 0 where the class is not in it.

    The rating is a product: the share of all pixels that the class has; the tenth power of the
    share of the image's edge that it leaves free; the square of its share of all objects' pixels;
    a half unless the image is about as wide as cameras make it, 4:3 to 3:2. Images with much void
    come after all others.
    """
    first = int(has_background(dataset.class_names))  # of the objects

    def rate(index: int) -> torch.Tensor:
        target = dataset.read_target(index)
        edge = torch.cat([target[0], target[-1], target[1:-1, 0], target[1:-1, -1]])
        counts, cut = (
            torch.bincount(part.flatten(), minlength=IGNORE_INDEX)[: dataset.num_classes].double()
            for part in (target, edge)
        )
        free = 1 - cut / (len(edge) + 1)  # never 0, so that the class counts as present
        alone = counts / counts[first:].sum().clamp(min=1)
        rating = counts / target.numel() * free**10 * alone.clamp(max=1) ** 2
        height, width = target.shape
        rating *= 1.0 if 1.2 <= width / height <= 1.6 else 0.5
        void = 1 - float(counts.sum()) / target.numel()
        return rating * (1.0 if void < MAX_VOID else 1e-9)

    with ThreadPoolExecutor(available_cores()) as pool:
        results = pool.map(rate, range(len(dataset)))
        return torch.stack(list(progress(results, "pick images", len(dataset), leave=False)))


def check_fixed(
    dataset: SegmentationDataset, ratings: torch.Tensor, fixed: Mapping[str, str]
) -> dict[str, int]:
    """The indices of the images that a person wants, by class name."""
    allowed = object_classes(dataset.class_names)
    places = {sample: index for index, sample in enumerate(dataset.ids)}
    chosen: dict[str, int] = {}
    for name, sample in fixed.items():
        pick = f"--pick {name}={sample}"
        if name not in allowed:
            raise UserError(f"{pick}: no such object class: choose from {', '.join(allowed)}")
        if sample not in places:
            raise UserError(f"{pick}: no such image in this set: see --image_set, or pick another")
        if places[sample] in chosen.values():
            raise UserError(f"{pick}: the image was picked for another class: pick another")
        if ratings[places[sample], dataset.class_names.index(name)] == 0:
            raise UserError(f"{pick}: the image holds no {name}: pick another")
        chosen[name] = places[sample]
    return chosen
