"""Runs as the report groups, compares and describes them, and what SAM left beside them."""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json
from utils.options import IRRELEVANT_SETTINGS, parse_args, settings_to_store
from utils.run_records import Run
from utils.scores import protocol

# What may differ between runs of one variant.
UNCOMPARED = IRRELEVANT_SETTINGS | {"seed", "cache"}  # older runs had the last


@functools.cache
def default_settings(dataset_name: str) -> dict[str, Any]:
    """What `main.py` takes for a data set if no other flag is given."""
    return settings_to_store(parse_args("", ["--dataset", dataset_name]))


def all_settings(run: Run) -> dict[str, Any]:
    """The settings of a run; what an older run does not know is as `main.py` has it by default."""
    return {**default_settings(str(run.setting("dataset"))), **run.args}


def special_settings(run: Run) -> set[str]:
    """The names of the settings that are not the default of the run's data set."""
    defaults = default_settings(str(run.setting("dataset")))
    unused = (None, False, "none")  # what a flag is that was given up since
    return {
        name
        for name, value in all_settings(run).items()
        if (value != defaults[name] if name in defaults else value not in unused)
    } - UNCOMPARED


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that differ in the seed alone, also by their names, by their seeds.

    The order of the groups is that of their first runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in all_settings(run).items() if k not in UNCOMPARED}
        data = [data_name(run), run.class_names, run.lists]
        key = json.dumps([run.variant, data, settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: run.setting("seed") or 0) for group in groups.values()]


def name_of(group: Sequence[Run]) -> str:
    """What a group is called: the run's name, or `NAME_s{0,1}`."""
    if len(group) == 1:
        return group[0].name
    return f"{group[0].variant}_s{{{','.join(str(run.setting('seed')) for run in group)}}}"


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

    Returns:
        One or two runs; none if there is none.
    """
    ranked = sorted(runs, key=lambda run: -run.best["miou"])  # stable: the first of equals
    pairs = []
    for run in ranked:
        others = [other for other in ranked if other.setting("loss") != run.setting("loss")]
        pairs.append([run, *[other for other in others if are_alike(run, other)][:1]])
    best = max(pairs, key=len, default=[])
    return sorted(best, key=lambda run: str(run.setting("loss")))


def class_mean(group: Sequence[Run], name: str) -> float:
    """The mean over runs of a class's IoU, or of a score, at the best; NaN if unknown."""
    shares = [{**run.best, **run.best["class_iou"]}.get(name) for run in group]
    known = [float(x) for x in shares if isinstance(x, int | float) and math.isfinite(x)]
    return fmean(known) if known else math.nan


def data_name(run: Run) -> str:
    """The data set: its folder's name if it is one of the user's own."""
    folder = Path(str(run.setting("data_root"))).name
    return folder if run.setting("dataset") == "custom" else str(run.setting("dataset"))


def images_of(run: Run, part: str) -> str:
    """The split and the number of its images, for `part` "train" or "val"."""
    split = all_settings(run)[{"train": "image_set", "val": "val_image_set"}[part]]
    images = run.lists.get(part, {}).get("images")
    return f"`{split}` ({images:,} images)" if isinstance(images, int) else f"`{split}`"


def list_notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know who compares the scores of these runs."""
    notes = []
    lists = {run.lists["train"]["ids"] for run in runs if "train" in run.lists}
    if len(lists) > 1:
        notes.append(
            "The runs were trained on different lists of images, so part of their difference may "
            "come from it."
        )
    if not all(are_alike(run, runs[0]) for run in runs):
        notes.append(
            "Not all runs are known to be evaluated on the same images by the same protocol: "
            "scores of those that were not do not compare."
        )
    return notes


def measured_on(run: Run) -> str:
    """What the scores of a run are of: split, number of images, protocol."""
    settings = all_settings(run)
    crop = settings["crop_size"][0] if settings["crop_val"] else None
    return f"{images_of(run, 'val')}, {protocol(crop, settings['resize'])}"


def hardware(run: Run) -> str:
    """The GPU of a run, or the kind of its processor."""
    device = str(run.environment.get("device") or run.setting("device")).partition(":")[0]
    kinds = {"cpu": "CPU", "mps": "Apple GPU"}
    gpu = run.environment.get("gpu") or ("CPU" if device in ("auto", "None") else device)
    return kinds.get(device, str(gpu))


def read_sam_scores(folder: Path, dataset_name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """What `sam_infer.py` measured on this data set.

    Raises:
        UserError: it is not there, cannot be read, or is of other data.
    """
    path = folder / "scores.json"
    if not path.exists():
        raise UserError(f"{path}: not there")
    scores = read_json(path)
    if scores.get("dataset") != dataset_name:
        raise UserError(f"{path}: of the data set {scores.get('dataset')}, not {dataset_name}")
    measured = (scores.get(key) or {} for key in ("deeplab", "sam_deeplab", "oracle"))
    if not {name for part in measured for name in part.get("class_iou", {})} <= set(class_names):
        raise UserError(f"{path}: of other classes")
    return scores
