"""Every figure of the report, and the report, from the data set and the runs on the disk.

python visualize.py                                  # all of it, into report/
python visualize.py --dataset shapes
python visualize.py classes --pick aeroplane=2007_000032
python visualize.py distribution --image_set val
python visualize.py curves --runs NAME NAME NAME --x iterations
python visualize.py curves --runs_dir results        # from the logs alone
python visualize.py compare --runs NAME NAME
python visualize.py errors --runs NAME
"""

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from datasets import DataSource, add_data_args, build_dataset
from datasets.base import SegmentationDataset
from datasets.class_counts import class_statistics, distribution_csv
from datasets.colours import has_background
from utils.common.errors import UserError, run_script
from utils.common.files import write_text
from utils.common.flags import Parser
from utils.precision import choose_device
from utils.report.charts import percent, plot_confusion, plot_curves, plot_distribution
from utils.report.contents import Findings, Missing, code, points
from utils.report.figures import (
    Column,
    analyse_errors,
    constant_scores,
    draw_classes,
    draw_comparison,
    draw_errors,
    find_sam_pictures,
    load_predictor,
    sam_head,
)
from utils.report.image_choice import load_or_make_picks, object_classes
from utils.report.image_grid import save_figure
from utils.report.markdown import picture
from utils.report.options import FLAGS, parse_args, parse_wishes
from utils.report.runs import (
    SAM_SCORES_FILE,
    data_name,
    evaluation_key,
    read_sam_scores,
    runs_to_compare,
)
from utils.report.sections import build_report
from utils.run_records import Run, find_runs, load_named_runs

MAX_COMPARED = 4
FOLDERS = {name: FLAGS[name]["default"] for name in ("output_dir", "runs_dir", "sam_dir")}


def show_classes(found: Findings, args: argparse.Namespace) -> None:
    """`classes`: an image of each class, and its target."""
    picked = get_picks(found, args)["classes"]
    dataset = build_dataset(DataSource.of(args), args.image_set)
    caption = f"An image of `{args.image_set}` for each class, and its ground truth."
    save(found, args, "classes", draw_classes(dataset, picked), caption)
    names = [dataset.class_names[index] for index in object_classes(dataset.class_names)]
    left_out = ", ".join(name for name in names if name not in picked)
    if left_out:
        found.notes.append(f"no image of {args.image_set} is left for: {left_out}")


def get_picks(found: Findings, args: argparse.Namespace) -> dict[str, Any]:
    """The chosen images: those stored, unless `--seed` or `--pick` ask for others."""
    if found.picks is None:
        path = Path(args.output_dir) / "picks.json"
        seed, wishes = getattr(args, "seed", None), getattr(args, "pick", None)
        fixed = None if wishes is None else parse_wishes(wishes)
        source = DataSource.of(args)
        found.picks = load_or_make_picks(path, source, args.image_set, seed, fixed)
    return found.picks


def show_distribution(found: Findings, args: argparse.Namespace) -> None:
    """`distribution`: the share of each class, also as CSV, and what a constant scores."""
    dataset = build_dataset(DataSource.of(args), args.image_set, masks_only=True)
    found.images, found.statistics = len(dataset), class_statistics(dataset)
    counts, void = found.statistics.pixel_counts, found.statistics.void_pixels
    name = f"{args.dataset} {args.image_set} ({len(dataset):,} images)"
    figure = plot_distribution(name, dataset.class_names, found.statistics)
    save(found, args, "distribution", figure, f"Share of the labelled pixels in {name}.")
    path = Path(args.output_dir) / "distribution.csv"
    write_text(path, distribution_csv(dataset.class_names, found.statistics))
    labelled = int(counts.sum())
    print(
        f"{path}\n{dataset.class_names[0]} has {percent(int(counts[0]) / labelled)} of the "
        f"labelled pixels of {args.image_set}, void {percent(void / (labelled + void))} of all "
        "pixels"
    )
    score_constant(found, args, 0 if has_background(dataset.class_names) else int(counts.argmax()))


def score_constant(found: Findings, args: argparse.Namespace, index: int) -> None:
    """What a class scores if it is predicted everywhere, into `found`."""
    try:
        val_set = build_dataset(DataSource.of(args), args.val_image_set, masks_only=True)
    except UserError as error:
        command = command_of(f"visualize.py {args.figure}", args, output_dir="output_dir")
        command += " --val_image_set NAME"
        found.missing.append(Missing("the scores of a constant prediction", str(error), command))
        return
    name, scores = val_set.class_names[index], constant_scores(val_set, index)
    found.constant, found.val_images = (name, scores), len(val_set)
    print(
        f"predicting {name} everywhere on {args.val_image_set} ({len(val_set)} images): pixel "
        f"accuracy {points(scores['pixel_acc'])} %, mIoU {points(scores['miou'])} %"
    )


def show_curves(found: Findings, args: argparse.Namespace) -> None:
    """`curves`: how the runs went."""
    first = found.runs[0]
    for run in found.runs:
        if (data_name(run), run.class_names) != (data_name(first), first.class_names):
            raise UserError(
                f"{first.folder} and {run.folder}: not on the same data set: choose with --runs "
                "or --dataset"
            )
    caption = "Validation mIoU, training loss and learning rate of the runs."
    save(found, args, "curves", plot_curves(found.runs, args.x), caption)


def load_runs(found: Findings, args: argparse.Namespace) -> None:
    """Read the runs that `--runs` names, else all of the data set, into `found`.

    Raises:
        UserError: a named one cannot be read, or there is none; but a report has other parts.
    """
    dataset = None
    if args.figure != "curves":  # they are in the logs
        image_set = getattr(args, "image_set", getattr(args, "val_image_set", "train"))
        dataset = build_dataset(DataSource.of(args), image_set, masks_only=True)
    place = (Path(args.runs_dir), args.dataset, dataset)
    if args.runs:
        found.runs = load_named_runs(args.runs, *place)
    else:
        found.runs, notes = find_runs(*place)
        found.notes += notes
    found.notes += [note for run in found.runs for note in run.notes]
    if not found.runs and args.figure != "report":
        which = f"no run on {args.dataset}" if args.dataset else "no run"
        raise UserError(
            f"{args.runs_dir}: {which} there: {found.main_command} makes one, and --runs_dir names "
            "another folder"
        )


def show_comparison(found: Findings, args: argparse.Namespace) -> None:
    """`compare`: image, ground truth, one to four models, and SAM, for the five images."""
    runs = choose_compared(found, args)
    picks = get_picks(found, args)
    classes = {sample: name for name, sample in picks["classes"].items()}
    ids = {sample: classes.get(sample, "") for sample in picks["five"]}
    dataset = build_dataset(DataSource.of(args), args.image_set)
    device = choose_device(args.device)
    models = ((run, load_predictor(run, device, args.precision)) for run in runs)
    figure = draw_comparison(dataset, ids, models, get_sam(found, args, dataset, ids))
    caption = (
        f"Predictions on images of `{args.image_set}`. Above a column is the run's mIoU, and what "
        "it was measured on; below a prediction are the mIoU of that image, over the classes of "
        "its ground truth, and its pixel accuracy."
    )
    if any(run.setting("image_set") == args.image_set for run in runs):
        caption += " These are images that the models were trained on."
    save(found, args, "compare", figure, caption)


def choose_compared(found: Findings, args: argparse.Namespace) -> list[Run]:
    """The runs to compare: those named, else the best one of each of two losses.

    Raises:
        UserError: too many are named, or their scores do not compare.
    """
    runs = found.runs
    if args.runs and (args.figure == "compare" or len(runs) <= MAX_COMPARED):
        if len(runs) > MAX_COMPARED:
            raise UserError(f"--runs: {len(runs)} given: compare has room for {MAX_COMPARED}")
        other = next((r for r in runs if evaluation_key(r) != evaluation_key(runs[0])), None)
        if other:
            raise UserError(
                f"--runs: {runs[0].name} and {other.name} were not evaluated alike (images, "
                "--crop_val, --resize): name runs whose scores compare"
            )
        return runs
    chosen = runs_to_compare(runs)
    aside = [run.name for run in runs if evaluation_key(run) != evaluation_key(chosen[0])]
    if aside:
        found.notes.append(f"not compared, since evaluated otherwise: {', '.join(aside)}")
    if len(chosen) == 1:
        loss = "focal" if chosen[0].setting("loss") == "ce" else "ce"
        missing = (f"a model trained with --loss {loss}", f"no such run in {args.runs_dir}")
        found.missing.append(Missing(*missing, f"{found.main_command} --loss {loss}"))
    return chosen


def get_sam(
    found: Findings, args: argparse.Namespace, dataset: SegmentationDataset, ids: Iterable[str]
) -> Column | None:
    """SAM's scores, into `found`; head and pictures of its column, None if they are not there."""
    folder = Path(args.sam_dir)
    found.sam, reason = read_sam_scores(folder, args.dataset, dataset.class_names)
    if found.sam is None:
        found.missing.append(Missing("the numbers of SAM", str(reason), found.sam_command))
    of_other_data = found.sam is None and (folder / SAM_SCORES_FILE).exists()
    pictures = None if of_other_data else find_sam_pictures(folder, dataset, ids)
    if pictures is None:
        text = f"{folder} does not hold pictures of all the images compared"
        found.missing.append(Missing("the column of SAM", text, found.sam_command))
        return None
    return sam_head(found.sam or {}), pictures


def show_errors(found: Findings, args: argparse.Namespace) -> None:
    """`errors`: the worst and the best images of a run, and its confusion matrix."""
    if args.figure == "errors" and args.runs and len(args.runs) > 1:
        raise UserError(f"--runs: {len(args.runs)} given: errors looks at one run")
    run = max(runs_to_compare(found.runs), key=lambda run: run.best["miou"])
    dataset = build_dataset(DataSource.of(args), args.val_image_set)
    predictor = load_predictor(run, choose_device(args.device), args.precision)
    analysis = analyse_errors(dataset, args.val_image_set, predictor, args.limit)
    caption = f"{code(run.name)}: worst and best of {analysis.measured_on}, as whole images."
    save(found, args, "errors", draw_errors(analysis, run, predictor), caption)
    title = f"{run.name}\n{analysis.score_text}; % of each row"
    figure = plot_confusion(dataset.class_names, analysis.confusion.numpy(), title)
    caption = f"{code(run.name)}: confusion matrix of {analysis.measured_on}."
    save(found, args, "confusion", figure, caption)


def save(
    found: Findings, args: argparse.Namespace, name: str, figure: Figure, caption: str
) -> None:
    """Write a figure in `--format`, and note it for the report."""
    path = Path(args.output_dir) / f"{name}.{args.format}"
    save_figure(figure, path, args.dpi)
    print(path)
    found.pictures[name] = picture(path.name, caption)


def report(found: Findings, args: argparse.Namespace) -> None:
    """`report`: everything; what cannot be made is named in it."""
    found.class_names = build_dataset(
        DataSource.of(args), args.image_set, masks_only=True
    ).class_names
    get_picks(found, args)  # wishes that cannot be fulfilled end here
    if not found.runs:
        reason = f"{args.runs_dir} holds no run on {args.dataset}"
        what = "scores, curves, the comparison of predictions, and errors"
        found.missing.append(Missing(what, reason, found.main_command))
    again = command_of("visualize.py", args, **{folder: folder for folder in FOLDERS})
    for what, needs_runs, show in FIGURES.values():
        try:
            if found.runs or not needs_runs:
                show(found, args)
        except UserError as error:
            found.missing.append(Missing(what, str(error), again))
    path = Path(args.output_dir) / "report.md"
    write_text(path, build_report(found))
    print(path)


# What each figure shows, whether it is of runs, and what draws it.
FIGURES = {
    "classes": ("the images of the classes", False, show_classes),
    "distribution": ("the share of the classes", False, show_distribution),
    "curves": ("the curves", True, show_curves),
    "compare": ("the comparison of predictions", True, show_comparison),
    "errors": ("the errors and the confusion matrix", True, show_errors),
}


def command_of(script: str, args: argparse.Namespace, **folders: str) -> str:
    """A command line on the same data set and folders.

    Args:
        script: the words it begins with.
        args: the flags of this command line.
        folders: flags of that script, each with the name of the flag here that has its value.
    """
    parser = Parser()
    add_data_args(parser)
    values = {
        name: (getattr(args, name, None), parser.get_default(name))
        for name in vars(parser.parse_args([]))
    }
    values |= {
        n: (getattr(args, here, FOLDERS[here]), FOLDERS[here]) for n, here in folders.items()
    }
    words = ["python", *script.split()]
    for name, (value, default) in values.items():
        if value not in (None, default):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> None:
    """Make the figure that the command line names, or all."""
    args = parse_args(__doc__, argv)
    found = Findings(
        dataset_name=args.dataset,
        data_root=getattr(args, "data_root", ""),
        author=getattr(args, "author", None) or "",
        date=getattr(args, "date", None) or "",
        class_names=[],
        image_set=getattr(args, "image_set", "train"),
        val_image_set=getattr(args, "val_image_set", "val"),
        main_command=command_of("main.py", args, runs_dir="runs_dir"),
        sam_command=command_of(
            "sam_infer.py", args, output_dir="sam_dir", report_dir="output_dir", runs_dir="runs_dir"
        ),
    )
    if hasattr(args, "runs"):
        load_runs(found, args)
    if args.figure == "report":
        report(found, args)
    else:
        FIGURES[args.figure][-1](found, args)
    for note in found.notes:
        print(f"note: {note}")
    for missing in found.missing:
        print(f"missing: {missing.what}: {missing.reason}: {missing.command}")


if __name__ == "__main__":
    run_script(main)
