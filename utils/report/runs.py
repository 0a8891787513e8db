"""Runs as the report groups, compares and describes them, and what SAM left beside them."""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.common.files import read_json
from utils.options import IRRELEVANT_SETTINGS, parse_args, settings_to_store
from utils.run_records import Run
from utils.scores import protocol

# What may differ between runs of one variant.
UNCOMPARED = IRRELEVANT_SETTINGS | {"seed"}


@functools.cache
def default_settings(dataset_name: str) -> dict[str, Any]:
    """What `main.py` takes for a data set if no other flag is given."""
    return settings_to_store(parse_args("", ["--dataset", dataset_name]))


def all_settings(run: Run) -> dict[str, Any]:
    """The settings of a run; what an older run does not know is as `main.py` has it by default."""
    settings = {**default_settings(str(run.setting("dataset"))), **run.args}
    settings.pop("cache", None)  # older runs had a choice that changed nothing but their speed
    return settings


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
        key = json.dumps([run.variant, data_name(run), run.class_names, settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: run.setting("seed") or 0) for group in groups.values()]


def name_of(group: Sequence[Run]) -> str:
    """What a group is called: the run's name, or `NAME_s{0,1}`."""
    if len(group) == 1:
        return group[0].name
    return f"{group[0].variant}_s{{{','.join(str(run.setting('seed')) for run in group)}}}"


def are_alike(one: Run, two: Run) -> bool:
    """Whether the scores of two runs compare: the data and the protocol."""
    keys = []
    for settings in map(all_settings, (one, two)):
        names = ["val_image_set", "val_fraction", "split_seed", "void_value", "object_value"]
        names += ["resize"] + ["crop_size"] * settings["crop_val"]
        keys.append([settings[name] for name in names])
    return one.compares_with(two) and keys[0] == keys[1]


def runs_to_compare(runs: Sequence[Run]) -> list[Run]:
    """The best run of each loss, of the two best losses at most, by the loss's name.

    Text, figure and errors all compare these. They were evaluated on the same data by the same
    protocol: of several the one under which two losses were trained, then the one of the best run.

    Returns:
        One or two runs; none if there is none.
    """
    alike: list[dict[str, Run]] = []  # each by the loss
    for run in sorted(runs, key=lambda run: -run.best["miou"]):  # stable: the first of equals
        by_loss = next((those for those in alike if are_alike(run, [*those.values()][0])), {})
        if not by_loss:
            alike.append(by_loss)
        by_loss.setdefault(str(run.setting("loss")), run)
    pairs = [list(by_loss.values())[:2] for by_loss in alike]
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
    """A sentence where lists of images, as far as they are known, or protocols differ."""
    notes = []
    for part, verb, so in (
        ("train", "trained", "part of their difference may come from it"),
        ("val", "evaluated", "their scores do not compare"),
    ):
        by_list: dict[str, list[Run]] = {}
        for run in runs:
            by_list.setdefault(run.lists.get(part, {}).get("ids", ""), []).append(run)
        by_list.pop("", None)
        if len(by_list) > 1:
            those = "; ".join(
                f"{', '.join(f'`{run.name}`' for run in group)} on {images_of(group[0], part)}"
                for group in by_list.values()
            )
            notes.append(f"The runs were {verb} on different lists of images, so {so}: {those}.")
    if len({bool(run.setting("crop_val")) for run in runs}) > 1:
        notes.append("Scores of different protocols do not compare.")
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


def read_sam_scores(
    folder: Path, dataset_name: str, class_names: Sequence[str]
) -> tuple[dict[str, Any] | None, str | None]:
    """What `sam_infer.py` measured on this data set, and otherwise a note why there is nothing.

    Raises:
        UserError: the file is there, but cannot be read.
    """
    path = folder / "scores.json"
    if not path.exists():
        return None, f"{path}: not there"
    scores = read_json(path)
    if scores.get("dataset") != dataset_name:
        return None, f"{path}: of the data set {scores.get('dataset')}, not {dataset_name}"
    measured = (scores.get(key) for key in ("deeplab", "sam_deeplab", "oracle"))
    names = {name for part in measured if part for name in part.get("class_iou", {})}
    if not names <= set(class_names):
        return None, f"{path}: of other classes"
    return scores, None
