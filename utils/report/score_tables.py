"""What runs scored, as Markdown tables: one row per variant, and the IoU of each class.

    python -m utils.report.score_tables results > results/scores.md

A run is reported by its `args.json`, its `log.jsonl` and, where its best weights were scored once
more, by `scores*.json`, in a folder of its own. Runs that differ in the seed alone are one variant,
`NAME_s{0,1}`.
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.common.errors import UserError, run_script
from utils.common.files import read_json
from utils.common.flags import Parser
from utils.report.contents import Block, Table, code, duration, points, spread
from utils.report.markdown import to_markdown
from utils.report.runs import (
    class_mean,
    data_name,
    group_runs,
    hardware,
    list_notes,
    measured_on,
    name_of,
)
from utils.run_folder import ARGS_FILE
from utils.run_records import Run, load_run

SCORES = {"mIoU": "miou", "pixel acc.": "pixel_acc", "mean acc.": "mean_acc", "fw IoU": "fw_iou"}


def compare(runs: Sequence[Run]) -> list[Block]:
    """The tables of runs, at least one."""
    groups = with_keys(sorted(group_runs(runs), key=lambda group: data_name(group[0])))
    by_data: dict[tuple[str, ...], dict[str, list[Run]]] = {}
    for key, group in groups.items():
        by_data.setdefault((data_name(group[0]), *group[0].class_names), {})[key] = group
    blocks = summary(groups)
    for of_data in by_data.values():
        blocks.append(class_table(of_data))
        blocks += list_notes([run for group in of_data.values() for run in group])
    return blocks


def with_keys(groups: Sequence[list[Run]]) -> dict[str, list[Run]]:
    """R1, R2, ...: what tables call each group, since names are long."""
    return {f"R{number}": group for number, group in enumerate(groups, 1)}


def summary(groups: Mapping[str, Sequence[Run]]) -> list[Block]:
    """What the runs are, and what they scored; a group is called by its key."""
    items, rows, later = [], [], []
    for key, group in groups.items():
        memory = [m for run in group for m in run.column("max_memory_mb") if math.isfinite(m)]
        machines = {f"{hardware(run)}, {run.environment.get('precision', '-')}" for run in group}
        items.append(
            f"{key}: {code(name_of(group))}, {code(group[0].setting('model'))} on "
            f"{data_name(group[0])}, evaluated on {measured_on(group[0])}; "
            f"{' / '.join(sorted(machines))}"
        )
        rows.append([
            key,
            *(spread([run.best[name] for run in group]) for name in SCORES.values()),
            duration(fmean(run.log[-1]["seconds"] for run in group)),
            f"{max(memory):,.0f} MB" if memory else "-",
        ])  # fmt: skip
        scores = [read_scores(run) for run in group]
        for name in sorted({name for by_name in scores for name in by_name}):
            later.append([key, name, spread([by_name.get(name) for by_name in scores])])
    caption = (
        "Best evaluation of each run while it was trained, in percent: mean ± half the range over "
        "the seeds. Time is that of a whole run with its evaluations, the mean over the seeds; "
        "memory is the peak of the GPU's memory that PyTorch had allocated."
    )
    blocks: list[Block] = [items, Table(caption, ["", *SCORES, "time", "memory"], rows, "lrrrrrr")]
    if later:
        caption = "mIoU in percent of the best weights, scored once more."
        blocks.append(Table(caption, ["", "on", "mIoU"], later, "llr"))
    return blocks


def read_scores(run: Run) -> dict[str, float]:
    """The mIoU of each `scores*.json` of a run, by what was evaluated."""
    found: dict[str, float] = {}
    for path in sorted(run.folder.glob("scores*.json")):
        scores = read_json(path)
        if not isinstance(scores.get("miou"), int | float):
            raise UserError(f"{path}: holds no mIoU: take it away, or score the run once more")
        name = evaluation_name(scores, run)
        found[f"{name} ({path.stem})" if name in found else name] = scores["miou"]
    return found


def evaluation_name(scores: dict[str, Any], run: Run) -> str:
    """The split, the number of its images, and what was not as it is while training."""
    words = [code(scores.get("image_set"))]
    if isinstance(scores.get("images"), int):
        words[0] += f" ({scores['images']:,} images)"
    if "whole" not in str(scores.get("protocol", "whole")):
        words.append(str(scores["protocol"]))
    stride = scores.get("output_stride")
    if stride is not None and stride != run.setting("output_stride"):
        words.append(f"output stride {stride}")
    scales = scores.get("scales") or [1.0]
    if list(scales) != [1.0]:
        words.append("scales " + " ".join(f"{scale:g}" for scale in scales))
    if scores.get("flip"):
        words.append("flipped too")
    return ", ".join(words)


def class_table(groups: Mapping[str, Sequence[Run]]) -> Table:
    """The IoU of each class and group, on one data set."""
    first = next(iter(groups.values()))[0]
    scores = [*((name, code(name)) for name in first.class_names), ("miou", "mIoU")]
    rows = [
        [shown, *(points(class_mean(group, name)) for group in groups.values())]
        for name, shown in scores
    ]
    caption = (
        f"{data_name(first)}: IoU of each class in percent, at the best evaluation, mean over the "
        "seeds."
    )
    return Table(caption, ["class", *groups], rows, "l" + "r" * len(groups))


def main(argv: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="results", help="where the runs are")
    folder = parser.parse_args(argv).folder
    runs = [load_run(path.parent) for path in sorted(Path(folder).glob(f"*/{ARGS_FILE}"))]
    if not runs:
        raise UserError(f"{folder}: holds no run: copy args.json and log.jsonl of one there")
    for note in (note for run in runs for note in run.notes):
        print(f"note: {note}", file=sys.stderr)
    command = shlex.join(["python", "-m", "utils.report.score_tables", folder])
    again = shlex.join(["python", "main.py", "--args", f"{folder}/NAME/{ARGS_FILE}"])
    text = f"{code(command)} prints these tables; {code(again)} runs NAME again."
    print(to_markdown([*compare(runs), text]), end="")


if __name__ == "__main__":
    run_script(main)
