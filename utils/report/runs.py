"""Runs as the report groups them, and what SAM left beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.common.files import read_json
from utils.options import IRRELEVANT_SETTINGS, build_parser
from utils.run_records import Run

SAM_SCORES_FILE = "scores.json"

# What may differ between runs of one variant; a checkpoint to start from changes what is learnt.
UNCOMPARED = (IRRELEVANT_SETTINGS - {"ckpt"}) | {"seed"}


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that differ in the seed alone, also by their names; order is kept.

    Settings that an older run does not know count as the defaults of `main.py`.
    """
    defaults = vars(build_parser("").parse_args([]))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in {**defaults, **run.args}.items() if k not in UNCOMPARED}
        key = json.dumps([run.variant, data_name(run), run.class_names, settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def evaluation_key(run: Run) -> tuple:
    """What two runs must share for their scores to be compared: the data and the protocol."""
    settings = {**vars(build_parser("").parse_args([])), **run.args}
    crop = tuple(settings["crop_size"]) if settings["crop_val"] else None
    split = tuple(settings[name] for name in ("val_image_set", "val_fraction", "split_seed"))
    return (data_name(run), tuple(run.class_names), *split, crop, settings["resize"])


def runs_to_compare(runs: Sequence[Run]) -> list[Run]:
    """The best run of each loss, of the two best losses at most, by the loss's name.

    Text, figure and errors all compare these. They were evaluated on the same data by the same
    protocol: of several the one under which two losses were trained, then the one of the best run.

    Returns:
        One or two runs; none if there is none.
    """
    by_key: dict[tuple, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: -run.best["miou"]):  # stable: the first of equals
        by_key.setdefault(evaluation_key(run), {}).setdefault(str(run.setting("loss")), run)
    pairs = [list(by_loss.values())[:2] for by_loss in by_key.values()]
    return sorted(max(pairs, key=len, default=[]), key=lambda run: str(run.setting("loss")))


def data_name(run: Run) -> str:
    """The data set: its folder's name if it is one of the user's own."""
    folder = Path(str(run.setting("data_root"))).name
    return folder if run.setting("dataset") == "custom" else str(run.setting("dataset"))


def read_sam_scores(
    folder: Path, dataset_name: str, class_names: Sequence[str]
) -> tuple[dict[str, Any] | None, str | None]:
    """What `sam_infer.py` measured on this data set, and otherwise a note why there is nothing.

    Raises:
        UserError: the file is there, but cannot be read.
    """
    path = folder / SAM_SCORES_FILE
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
