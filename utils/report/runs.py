"""Runs as the report groups, compares and describes them, and what SAM left beside them."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json
from utils.options import IRRELEVANT_SETTINGS, OFF, parse_args, settings_to_store
from utils.run_records import Run
from utils.scores import protocol

# What may differ between runs of one variant.
UNCOMPARED = IRRELEVANT_SETTINGS | {"seed", "cache"}  # older runs had the last


@functools.cache
def default_settings(dataset_name: str) -> dict[str, Any]:
    """What `main.py` takes for a data set if no other flag is given."""
    return settings_to_store(parse_args("", ["--dataset", dataset_name]))


def all_settings(run: Run) -> dict[str, Any]:
    """A run's settings but `UNCOMPARED`; what an older run does not know is the default."""
    settings = default_settings(run.source.dataset) | run.args
    return {name: value for name, value in settings.items() if name not in UNCOMPARED}


def special_settings(run: Run) -> set[str]:
    """The names of those that are not the default of the run's data set."""
    defaults = default_settings(run.source.dataset)
    return {
        name
        for name, value in all_settings(run).items()
        if (value != defaults[name] if name in defaults else value not in OFF)  # a flag given up
    }


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs of one data set together that differ in the seed alone, also by their names.

    Each group is in the order of its seeds, and the groups in that of their first runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.variant, run.lists, all_settings(run)], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: run.setting("seed") or 0) for group in groups.values()]


def are_alike(one: Run, two: Run) -> bool:
    """Whether the scores of two runs compare: the data and the protocol."""
    names = ("val_image_set", "val_fraction", "split_seed", "void_value", "object_value", "resize")
    settings = all_settings(one), all_settings(two)
    asked, other = ([of[name] for name in names] for of in settings)
    crops = {tuple(of["crop_size"]) for of in settings if of["crop_val"]}
    return one.compares_with(two) and asked == other and len(crops) < 2


def runs_to_compare(runs: Sequence[Run]) -> list[Run]:
    """The best run of each loss, of the two best losses at most, by the loss's name.

    Text, figure and errors all compare these. They were evaluated on the same data by the same
    protocol: of several the one under which two losses were trained, then the one of the best run.
    """
    ranked = sorted(runs, key=lambda run: -run.best["miou"])  # stable: the first of equals
    pairs = []
    for run in ranked:
        others = [other for other in ranked if other.setting("loss") != run.setting("loss")]
        pairs.append([run, *[other for other in others if are_alike(run, other)][:1]])
    best = max(pairs, key=len, default=[])
    return sorted(best, key=lambda run: str(run.setting("loss")))


def images_of(run: Run, part: str) -> str:
    """The split and the number of its images, for `part` "train" or "val"."""
    split = all_settings(run)[{"train": "image_set", "val": "val_image_set"}[part]]
    images = run.lists.get(part, {}).get("images")
    return f"`{split}` ({images:,} images)" if isinstance(images, int) else f"`{split}`"


def measured_on(run: Run) -> str:
    """What the scores of a run are of: split, number of images, protocol."""
    settings = all_settings(run)
    crop = settings["crop_size"][0] if settings["crop_val"] else None
    return f"{images_of(run, 'val')}, {protocol(crop, settings['resize'])}"


def read_sam_scores(folder: Path, dataset_name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """What `sam_infer.py` measured on this data set.

    Raises:
        UserError: it is not there, cannot be read, or is of other data.
    """
    path = folder / "scores.json"
    if not path.exists():
        raise UserError(f"{path}: not there")
    scores = read_json(path)
    measured = (scores.get(key) or {} for key in ("deeplab", "sam_deeplab", "oracle"))
    names = {name for part in measured for name in part.get("class_iou", {})}
    if scores.get("dataset") != dataset_name or not names <= set(class_names):
        raise UserError(f"{path}: not of {dataset_name} with these classes")
    return scores
