"""What the reported runs scored, as Markdown: one row per variant, its classes, its command.

    python -m utils.report.score_tables                               # the runs in results/
    python -m utils.report.score_tables results --baseline camvid_ce  # with differences to one
    python -m utils.report.score_tables results --write README.md     # into its block of results

A run is reported by its `args.json`, its `log.jsonl` and, where its best weights were scored once
more, by `scores*.json`, in a folder of its own. Runs that differ in the seed alone are one variant:
`NAME_s0`, `NAME_s1`, ... are called `NAME`.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.common.errors import UserError, run_script
from utils.common.files import read_json, write_text
from utils.options import HelpFormatter
from utils.options import parse_args as parse_main_args
from utils.report.contents import code, hardware, points
from utils.report.markup import Block, Table, Text, to_markdown
from utils.report.runs import UNCOMPARED, data_name, group_runs
from utils.run_folder import ARGS_FILE
from utils.run_records import Run, load_run

START, END = "<!-- results -->", "<!-- /results -->"
PER_CLASS = "IoU of each class in percent, at the best evaluation, mean over the seeds"


def spread(shares: Sequence[Any]) -> str:
    """Mean ± half the range in percent; the mean alone of one share, a dash if none is known."""
    known = [share for share in shares if points(share) != "-"]
    if not known:
        return "-"
    text = points(fmean(known))
    if len(known) > 1:
        text += f" ± {points((max(known) - min(known)) / 2)}"
    return text if len(known) == len(shares) else f"{text} ({len(known)} of {len(shares)})"


def compare(runs: Sequence[Run], baseline: str | None = None) -> tuple[list[Block], str]:
    """The tables of runs, and their commands.

    Args:
        runs: at least one.
        baseline: the variant that the others are compared with, class by class.

    Raises:
        UserError: there is no such variant, or two have the same name.
    """
    groups = group_runs(runs)
    names = [group[0].variant for group in groups]
    for group in groups:
        group.sort(key=lambda run: run.setting("seed") or 0)
        if names.count(group[0].variant) > 1:
            those = ", ".join(run.name for run in runs if run.variant == group[0].variant)
            raise UserError(f"{those}: differ in more than the seed: give one another name")
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no such variant; there are: {', '.join(names)}")
    groups.sort(key=lambda group: (data_name(group[0]), group[0].variant != baseline))
    blocks = [summary(groups), *class_tables(groups, baseline)]
    return blocks, "\n".join(line for group in groups for line in command_lines(group))


def summary(groups: Sequence[Sequence[Run]]) -> Table:
    """A row per variant."""
    scores = [[read_scores(run) for run in group] for group in groups]
    evaluations = sorted({name for group in scores for by_name in group for name in by_name})
    rows = []
    for group, scored in zip(groups, scores, strict=True):
        first = group[0]
        seeds = ", ".join(str(run.setting("seed")) for run in group if "seed" in run.args)
        memory = max((m for run in group for m in known(run.column("max_memory_mb"))), default=None)
        seconds = [run.log[-1]["seconds"] for run in group]
        machines = {f"{hardware(run)}, {run.environment.get('precision', '-')}" for run in group}
        rows.append([
            data_name(first), code(first.setting("model")), code(first.variant), seeds or "-",
            spread([run.best["miou"] for run in group]),
            spread([run.best["pixel_acc"] for run in group]),
            *(spread([by_name.get(name) for by_name in scored]) for name in evaluations),
            f"{fmean(seconds):,.0f} s" if known(seconds) == seconds else "-",
            "-" if memory is None else f"{memory:,.0f} MB",
            " / ".join(sorted(machines)),
        ])  # fmt: skip
    caption = (
        "Best evaluation of each run while it was trained, in percent: mean ± half the range over "
        "the seeds. Time is that of a whole run with its evaluations, the mean over the seeds; "
        "memory is the peak of the GPU's memory that PyTorch had allocated."
    )
    header = ["data", "model", "run", "seeds", "mIoU", "pixel acc."]
    header += [*(f"mIoU on {name}" for name in evaluations), "time", "memory", "trained on"]
    return Table(caption, header, rows, "llll" + "r" * (len(header) - 5) + "l")


def known(values: Sequence[float]) -> list[float]:
    """Those that are not NaN."""
    return [value for value in values if math.isfinite(value)]


def read_scores(run: Run) -> dict[str, float]:
    """The mIoU of each `scores*.json` of a run, by what was evaluated."""
    found: dict[str, float] = {}
    for path in sorted(run.folder.glob("scores*.json")):
        scores = read_json(path)
        if not isinstance(scores.get("miou"), int | float):
            raise UserError(f"{path}: holds no mIoU: take it away, or score the run once more")
        name = evaluation_name(scores, run)
        if name in found:
            raise UserError(f"{path}: a second score on {name} of one run: keep one of them")
        found[name] = scores["miou"]
    return found


def evaluation_name(scores: dict[str, Any], run: Run) -> str:
    """The split, and what was not as it is while training."""
    words = [code(scores.get("image_set"))]
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


def class_tables(groups: Sequence[Sequence[Run]], baseline: str | None) -> list[Table]:
    """A table per data set: rows are classes, columns variants."""
    by_data: dict[tuple, list[Sequence[Run]]] = {}
    for group in groups:
        by_data.setdefault((data_name(group[0]), *group[0].class_names), []).append(group)
    return [
        class_table(data, class_names, those, baseline)
        for (data, *class_names), those in by_data.items()
    ]


def class_table(
    data: str, class_names: Sequence[str], groups: Sequence[Sequence[Run]], baseline: str | None
) -> Table:
    """The IoU of each class and variant; behind it the difference to the first, the baseline."""
    has_baseline = groups[0][0].variant == baseline
    rows = []
    for name in [*class_names, "mIoU"]:
        means = [class_mean(group, name) for group in groups]
        cells = [points(mean) for mean in means]
        if has_baseline and math.isfinite(means[0]):
            cells[1:] = [
                f"{cell} ({100 * (mean - means[0]):+.2f})" if cell != "-" else cell
                for cell, mean in zip(cells[1:], means[1:], strict=True)
            ]
        rows.append([code(name) if name in class_names else name, *cells])
    caption = f"{data}: {PER_CLASS}"
    if has_baseline and len(groups) > 1:
        caption += f"; in brackets the difference to {code(baseline)}"
    header = ["class", *(code(group[0].variant) for group in groups)]
    return Table(caption + ".", header, rows, "l" + "r" * len(groups))


def class_mean(group: Sequence[Run], name: str) -> float:
    """The mean over the seeds of a class's IoU, or of `mIoU`, at the best; NaN if unknown."""
    shares = [{"mIoU": run.best["miou"], **run.best["class_iou"]}.get(name) for run in group]
    shares = [share for share in shares if points(share) != "-"]
    return fmean(shares) if shares else math.nan


def command_lines(group: Sequence[Run]) -> list[str]:
    """What trains the runs of a variant: a loop over the seeds where the names allow it."""
    variant, seeds = group[0].variant, [str(run.setting("seed")) for run in group]
    command = shlex.join(["python", "main.py", *to_words(find_flags(group[0]))])
    names = [run.name for run in group]
    if len(group) > 1 and names == [f"{variant}_s{seed}" for seed in seeds]:
        train = f"{command} --seed $s --run_name {shlex.quote(variant)}_s$s"
        return [f"for s in {' '.join(seeds)}; do {train}; done"]
    return [
        f"{command}{f' --seed {seed}' if seed not in ('0', 'None') else ''} --run_name "
        f"{shlex.quote(name)}"
        for seed, name in zip(seeds, names, strict=True)
    ]


def find_flags(run: Run) -> dict[str, Any]:
    """The fewest flags of `main.py` that lead to the settings of a run, by name.

    What a flag implies for others needs no flag of its own. The folder of a data set of one's own
    is taken to lie in `data/`.
    """
    is_custom = run.setting("dataset") == "custom"
    free = UNCOMPARED - {"data_root"} if is_custom else UNCOMPARED
    wanted = {name: value for name, value in run.args.items() if name not in free}
    if is_custom:
        wanted["data_root"] = f"data/{data_name(run)}"
    flags: dict[str, Any] = {}
    while missing := differing(flags, wanted):
        flags |= missing
    for name in list(flags):
        fewer = {other: value for other, value in flags.items() if other != name}
        try:
            if not differing(fewer, wanted):
                flags = fewer
        except UserError:  # what is left does not go together
            continue
    return flags


def differing(flags: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted settings that these flags do not lead to.

    Settings that `main.py` has no more, and None, which no flag gives, do not count.
    """
    settings = vars(parse_main_args("", to_words(flags)))
    return {
        name: value
        for name, value in wanted.items()
        if name in settings and value is not None and settings[name] != value
    }


def to_words(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line has them."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def write_block(path: Path, text: str) -> None:
    """Put `text` between the two markers of a file.

    Raises:
        UserError: the file cannot be read, or has no markers.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--write {path}: cannot be read ({reason})") from None
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UserError(f"--write {path}: put the lines {START} and {END} where the results belong")
    write_text(path, f"{before}{START}\n\n{text}\n{END}{after}")


def main(argv: list[str] | None = None) -> None:
    """Print the comparison, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", nargs="?", default="results", help="where the runs are")
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare the others with")
    parser.add_argument("--write", metavar="FILE", help="replace the block of results in this file")
    args = parser.parse_args(argv)
    runs = [load_run(path.parent) for path in sorted(Path(args.folder).glob(f"*/{ARGS_FILE}"))]
    if not runs:
        raise UserError(f"{args.folder}: holds no run: copy args.json and log.jsonl of one there")
    for note in (note for run in runs for note in run.notes):
        print(f"note: {note}", file=sys.stderr)
    blocks, commands = compare(runs, args.baseline)
    words = ["python", "-m", "utils.report.score_tables", args.folder]
    words += ["--baseline", args.baseline] if args.baseline else []
    command = code(shlex.join(words))
    blocks.append(
        Text(f"{command} prints these tables. The runs, with data of one's own in `data/`:")
    )
    text = f"{to_markdown(blocks)}\n```bash\n{commands}\n```\n"
    if args.write:
        write_block(Path(args.write), text)
        print(args.write)
    else:
        print(text, end="")


if __name__ == "__main__":
    run_script(main)
