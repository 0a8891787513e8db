"""Every figure of the report, and the report, from the data set and the runs on the disk.

python visualize.py                                  # all of it, into report/
python visualize.py --dataset shapes
python visualize.py classes --pick aeroplane=2007_000032
python visualize.py distribution --image_set val
python visualize.py curves --runs NAME NAME NAME --x epochs
python visualize.py curves --runs_dir results        # from the logs alone
python visualize.py compare --runs NAME NAME
python visualize.py errors --runs NAME
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from datasets import add_data_args, build_dataset
from datasets.base import SegmentationDataset
from datasets.class_counts import class_statistics, distribution_csv
from utils.common.errors import UserError, run_script
from utils.common.files import write_text
from utils.precision import choose_device, choose_precision
from utils.report.charts import percent, plot_curves
from utils.report.contents import Findings, Missing, code, points
from utils.report.figures import (
    analyse_errors,
    constant_scores,
    draw_classes,
    draw_comparison,
    draw_confusion,
    draw_distribution,
    draw_errors,
    find_sam_pictures,
    load_predictor,
)
from utils.report.image_choice import has_background, load_or_make_picks, make_picks, object_classes
from utils.report.image_grid import PAGE_WIDTH, save_figure
from utils.report.markup import Picture
from utils.report.options import parse_args, parse_wishes
from utils.report.runs import SAM_SCORES_FILE, read_sam_scores
from utils.report.sections import write_report
from utils.run_records import Run, best_run, find_runs, load_named_runs

MAX_COMPARED = 4
FOLDERS = {"output_dir": "report", "runs_dir": "runs", "sam_dir": "sam_results"}  # defaults


def show_classes(found: Findings, args: argparse.Namespace) -> None:
    """`classes`: an image of each class, and its target."""
    picks = get_picks(found, args)
    dataset = build_dataset(args, args.image_set)
    figure = draw_classes(dataset, picks["classes"])
    caption = f"An image of `{args.image_set}` for each class, and its ground truth."
    save(found, args, "classes", figure, caption)
    names = [dataset.class_names[index] for index in object_classes(dataset.class_names)]
    left_out = [name for name in names if name not in picks["classes"]]
    if left_out:
        found.notes.append(f"no image of {args.image_set} is left for: {', '.join(left_out)}")


def get_picks(found: Findings, args: argparse.Namespace) -> dict[str, Any]:
    """The chosen images: those stored, unless `--seed` or `--pick` ask for others."""
    if found.picks is not None:
        return found.picks
    path = Path(args.output_dir) / "picks.json"
    seed, wishes = getattr(args, "seed", None), getattr(args, "pick", None)
    if seed is None and wishes is None:
        found.picks = load_or_make_picks(path, args, args.image_set)
    else:
        found.picks = make_picks(path, args, args.image_set, seed or 0, parse_wishes(wishes or []))
    return found.picks


def show_distribution(found: Findings, args: argparse.Namespace) -> None:
    """`distribution`: the share of each class, also as CSV, and what a constant scores."""
    dataset = build_dataset(args, args.image_set, masks_only=True)
    found.images, found.statistics = len(dataset), class_statistics(dataset)
    counts, void = found.statistics.pixel_counts, found.statistics.void_pixels
    name = f"{args.dataset} {args.image_set}"
    figure = draw_distribution(name, dataset.class_names, counts, void, len(dataset))
    save(found, args, "distribution", figure, f"Share of the labelled pixels in `{name}`.")
    path = Path(args.output_dir) / "distribution.csv"
    write_text(path, distribution_csv(dataset.class_names, found.statistics))
    labelled = int(counts.sum())
    print(
        f"{path}\n{dataset.class_names[0]} has {percent(int(counts[0]) / max(labelled, 1))} of the "
        f"labelled pixels of {args.image_set}, void "
        f"{percent(void / max(labelled + void, 1))} of all pixels"
    )
    constant = 0 if has_background(dataset.class_names) else int(counts.argmax())
    found.constant = score_constant(found, args, constant)


def score_constant(
    found: Findings, args: argparse.Namespace, index: int
) -> tuple[str, dict[str, Any]] | None:
    """The class and its scores if it is predicted everywhere; None if there are no targets."""
    try:
        val_set = build_dataset(args, args.val_image_set, masks_only=True)
    except UserError as error:
        command = command_of("visualize.py distribution", args) + " --val_image_set NAME"
        found.missing.append(Missing("the scores of a constant prediction", str(error), command))
        return None
    name = val_set.class_names[index]
    found.val_images = len(val_set)
    scores = constant_scores(class_statistics(val_set).pixel_counts, index)
    print(
        f"predicting {name} everywhere on {args.val_image_set} ({len(val_set)} images): pixel "
        f"accuracy {points(scores['pixel_acc'])} %, mIoU {points(scores['miou'])} %"
    )
    return name, scores


def show_curves(found: Findings, args: argparse.Namespace) -> None:
    """`curves`: how the runs went."""
    runs = get_runs(found, args)
    data = [(run.setting("dataset"), run.class_names) for run in runs]
    for run, its_data in zip(runs, data, strict=True):
        if its_data != data[0]:
            raise UserError(
                f"{runs[0].folder} and {run.folder}: not on the same data set: choose with --runs "
                "or --dataset"
            )
    caption = "Validation mIoU, training loss and learning rate of the runs."
    save(found, args, "curves", plot_curves(runs, args.x), caption)


def get_runs(found: Findings, args: argparse.Namespace) -> list[Run]:
    """The runs that `--runs` names, else all of the data set.

    Raises:
        UserError: there is none.
    """
    if not find_or_load_runs(found, args):
        which = f"no run on {args.dataset}" if args.dataset else "no run"
        raise UserError(
            f"{args.runs_dir}: {which} there: {found.main_command} makes one, and --runs_dir names "
            "another folder"
        )
    return found.runs


def find_or_load_runs(found: Findings, args: argparse.Namespace) -> list[Run]:
    """Fill `found.runs` if that was not done; it may stay empty without `--runs`."""
    if not found.runs:
        dataset = None
        if args.figure != "curves":  # they are in the logs
            image_set = getattr(args, "image_set", getattr(args, "val_image_set", "train"))
            dataset = build_dataset(args, image_set, masks_only=True)
        runs_dir = Path(args.runs_dir)
        if args.runs:
            found.runs = load_named_runs(args.runs, runs_dir, args.dataset, dataset)
        else:
            found.runs, notes = find_runs(runs_dir, args.dataset, dataset)
            found.notes += notes
        found.notes += [note for run in found.runs for note in run.notes]
    return found.runs


def show_comparison(found: Findings, args: argparse.Namespace) -> None:
    """`compare`: RGB, ground truth, one to four models, and SAM, for the five images."""
    runs = choose_compared(found, args)
    ids = get_picks(found, args)["five"]
    dataset = build_dataset(args, args.image_set)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    sam = get_sam(found, args, dataset, ids)
    figure = draw_comparison(dataset, ids, runs, device, precision, sam)
    caption = (
        f"Predictions on images of `{args.image_set}`; above each column the mIoU of the run on "
        "its validation images, below each prediction the mIoU of that image."
    )
    if any(run.setting("image_set") == args.image_set for run in runs):
        caption += " These are images that the models were trained on."
    save(found, args, "compare", figure, caption)


def choose_compared(found: Findings, args: argparse.Namespace) -> list[Run]:
    """The runs to compare: those named, else the best one of each loss of the course."""
    runs = get_runs(found, args)
    if args.runs and len(runs) <= MAX_COMPARED:
        return runs
    if args.runs and args.figure == "compare":
        raise UserError(f"--runs: {len(runs)} given: compare has room for {MAX_COMPARED} at most")
    chosen = []
    for loss in ("ce", "focal"):
        run = best_run(runs, loss)
        if run is not None:
            chosen.append(run)
        else:
            command = f"{found.main_command} --loss {loss}"
            reason = f"no such run in {args.runs_dir}"
            found.missing.append(Missing(f"a model trained with --loss {loss}", reason, command))
    return chosen or [best_run(runs)]


def get_sam(
    found: Findings, args: argparse.Namespace, dataset: SegmentationDataset, ids: Sequence[str]
) -> tuple[str, list[Path]] | None:
    """SAM's scores, into `found`; head and pictures of its column, None if they are not there."""
    folder = Path(args.sam_dir)
    found.sam, reason = read_sam_scores(folder, args.dataset, dataset.class_names)
    pictures = find_sam_pictures(folder, dataset, ids)
    if found.sam is None:
        found.missing.append(Missing("the numbers of SAM", reason, found.sam_command))
    of_other_data = found.sam is None and (folder / SAM_SCORES_FILE).exists()
    if pictures is None or of_other_data:
        text = f"{folder} does not hold pictures of all the images compared"
        found.missing.append(Missing("the column of SAM", text, found.sam_command))
        return None
    head = "SAM"
    for key, name in (("sam_deeplab", "+ DeepLab"), ("oracle", "oracle")):
        score = ((found.sam or {}).get(key) or {}).get("miou")
        if score is not None:
            head += f"\n{name} {points(score)}"
    return head, pictures


def show_errors(found: Findings, args: argparse.Namespace) -> None:
    """`errors`: the worst and the best images of a run, and its confusion matrix."""
    runs = get_runs(found, args)
    if args.figure == "errors" and args.runs and len(runs) > 1:
        raise UserError(f"--runs: {len(runs)} given: errors looks at one run")
    run = best_run(runs)
    dataset = build_dataset(args, args.val_image_set)
    device = choose_device(args.device)
    predictor = load_predictor(run, device, choose_precision(args.precision, device))
    analysis = analyse_errors(dataset, predictor, device, args.limit)
    number = len(analysis.indices)
    found.confusion = (run.name, number, analysis.confusion)
    figure = draw_errors(dataset, analysis, run, predictor, device)
    caption = f"{code(run.name)}: worst and best of {number} images of `{args.val_image_set}`."
    save(found, args, "errors", figure, caption)
    figure = draw_confusion(dataset, analysis, run)
    caption = f"{code(run.name)}: confusion matrix of {number} images of `{args.val_image_set}`."
    save(found, args, "confusion", figure, caption)


def save(
    found: Findings, args: argparse.Namespace, name: str, figure: Figure, caption: str
) -> None:
    """Write a figure in `--format`, and for the report also as LaTeX can read it."""
    path = Path(args.output_dir) / f"{name}.{args.format}"
    save_figure(figure, path, args.dpi)
    print(path)
    if args.figure == "report" and args.format == "svg":
        save_figure(figure, path.with_suffix(".pdf"), args.dpi)
    width = min(figure.get_figwidth() / PAGE_WIDTH, 1.0)
    found.pictures[name] = Picture(name, path.suffix, caption, width)


def report(found: Findings, args: argparse.Namespace) -> None:
    """`report`: everything; what cannot be made is named in it."""
    found.class_names = build_dataset(args, args.image_set, masks_only=True).class_names
    get_picks(found, args)  # wishes that cannot be fulfilled end here
    steps = {
        "classes": ("the images of the classes", show_classes),
        "distribution": ("the share of the classes", show_distribution),
    }
    if find_or_load_runs(found, args):
        steps |= {
            "curves": ("the curves", show_curves),
            "compare": ("the comparison of predictions", show_comparison),
            "errors": ("the errors and the confusion matrix", show_errors),
        }
    else:
        reason = f"{args.runs_dir} holds no run on {args.dataset}"
        what = "scores, curves, the comparison of predictions, and errors"
        found.missing.append(Missing(what, reason, found.main_command))
    for name, (what, show) in steps.items():
        try:
            show(found, args)
        except UserError as error:
            command = command_of(f"visualize.py {name}", args)
            found.missing.append(Missing(what, str(error), command))
    suffix = ".pdf" if args.format == "svg" else f".{args.format}"
    for path in write_report(found, Path(args.output_dir), suffix):
        print(path)


def command_of(script: str, args: argparse.Namespace, **folders: str) -> str:
    """A command line on the same data set and folders.

    Args:
        script: the words it begins with.
        args: the flags of this command line.
        folders: flags of that script, each with the name of the flag here that has its value.
    """
    parser = argparse.ArgumentParser()
    add_data_args(parser)
    defaults = vars(parser.parse_args([]))
    values = {name: (getattr(args, name, None), old) for name, old in defaults.items()}
    for name, here in folders.items():
        values[name] = (getattr(args, here, FOLDERS[here]), FOLDERS[here])
    words = ["python", *script.split()]
    for name, (value, default) in values.items():
        if value not in (None, default):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)


FIGURES = {
    "report": report,
    "classes": show_classes,
    "distribution": show_distribution,
    "curves": show_curves,
    "compare": show_comparison,
    "errors": show_errors,
}


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
    FIGURES[args.figure](found, args)
    for note in found.notes:
        print(f"note: {note}")
    for missing in found.missing:
        print(f"missing: {missing.what}: {missing.reason}: {missing.command}")


if __name__ == "__main__":
    run_script(main)
