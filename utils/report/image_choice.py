"""The choice of images that figures show: one for each object class, and five for comparisons.

The choice is a function of the masks, a seed and the wishes of a person, and is kept in
`report/picks.json`:

    {"dataset": "voc", "data_root": "data", "image_set": "train",
     "classes": {"aeroplane": "2007_000032", ...}, "five": ["2007_000032", ...]}
"""

import json
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
from utils.common.files import write_json
from utils.common.progress import progress

MAX_VOID = 0.25  # of all pixels; above it an image is taken only if there is no other
NUM_CANDIDATES = 10  # a seed other than 0 draws among so many of the best images of a class


def object_classes(class_names: Sequence[str]) -> list[int]:
    """The indices of the object classes: all but the background."""
    return list(range(int(has_background(class_names)), len(class_names)))


def pick_images(
    dataset: SegmentationDataset, seed: int = 0, fixed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Choose one image for each object class, each image at most once, and five of them.

    An image is good for a class that is large in it, whole, and alone (see `rate_images`). The
    class with the fewest images chooses first. With `seed` 0 it takes the best image that is left,
    with another one of the ten best.

    Args:
        dataset: reads masks alone.
        seed: 0, or another choice.
        fixed: the image of a class, decided by a person.

    Returns:
        `classes`: {class name: id}, in the order of the classes, without those that no image was
        left for; `five`: ids, see `pick_five`.

    Raises:
        UserError: a fixed class or image is not in the set, or does not fit.
    """
    ratings = rate_images(dataset)  # (images, C)
    chosen = check_fixed(dataset, ratings, fixed or {})
    generator = torch.Generator().manual_seed(seed)
    names = dataset.class_names
    numbers = (ratings > 0).sum(0).tolist()  # of images, by class
    for index in sorted(object_classes(names), key=numbers.__getitem__):
        if names[index] in chosen:
            continue
        left = ratings[:, index].clone()
        left[list(chosen.values())] = 0
        order = left.argsort(descending=True, stable=True)
        order = order[left[order] > 0][: NUM_CANDIDATES if seed else 1]
        if len(order):
            draw = int(torch.randint(len(order), (), generator=generator))
            chosen[names[index]] = int(order[draw])
    classes = {name: dataset.ids[chosen[name]] for name in names if name in chosen}
    return {"classes": classes, "five": pick_five(classes, fixed or {})}


def pick_five(classes: Mapping[str, str], fixed: Collection[str] = ()) -> list[str]:
    """Five of the picks: those that a person wants, and others spread evenly over the classes.

    Spread, since neighbours are often of one kind.

    Args:
        classes: {class name: id}.
        fixed: names of the classes whose images a person decided.
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
    first = object_classes(dataset.class_names)[0]

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
    allowed = [dataset.class_names[index] for index in object_classes(dataset.class_names)]
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


def load_or_make_picks(
    path: Path,
    source: DataSource,
    image_set: str = "train",
    seed: int | None = None,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read the picks if they are of this data set; else choose images and write them.

    Args:
        path: `picks.json`.
        source: the data set.
        image_set: the split to choose from.
        seed: see `pick_images`; if given, as with `fixed`, the choice is made anew.
        fixed: see `pick_images`.

    Returns:
        `dataset`, `data_root`, `image_set`, `classes` ({class name: id}) and `five` (ids).
    """
    dataset = build_dataset(source, image_set, masks_only=True)
    place = {"dataset": source.dataset, "data_root": source.data_root, "image_set": image_set}
    picks = read_picks(path)
    if picks is not None and seed is None and fixed is None:
        known = {**place, "data_root": picks["data_root"]}.items() <= picks.items()
        known &= Path(picks["data_root"]).resolve() == Path(source.data_root).resolve()
        known &= set(picks["classes"]) <= set(dataset.class_names)
        if known and {*picks["classes"].values(), *picks["five"]} <= set(dataset.ids):
            return picks
    picks = {**place, **pick_images(dataset, seed or 0, fixed)}
    write_json(path, picks)
    return picks


def read_picks(path: Path) -> dict[str, Any] | None:
    """The picks in a file; None if it is not there or is something else."""
    try:
        picks = json.loads(path.read_text(encoding="utf-8"))
        return {
            **{key: str(picks[key]) for key in ("dataset", "data_root", "image_set")},
            "classes": {str(name): str(sample) for name, sample in picks["classes"].items()},
            "five": [str(sample) for sample in picks["five"]],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
