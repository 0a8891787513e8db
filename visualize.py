"""Every figure of the report, and the report, from the data set and the runs on the disk.

    python visualize.py                                  # all of it, into report/
    python visualize.py --dataset shapes
    python visualize.py classes --pick aeroplane=2007_000032
    python visualize.py distribution --image_set val
    python visualize.py curves --runs NAME NAME NAME --x iterations
    python visualize.py curves --runs_dir results        # from the logs alone
    python visualize.py compare --runs NAME NAME
    python visualize.py errors --runs NAME

Figures are in --output_dir, with report.md and report.tex if no figure is named.
"""

import utils  # noqa: F401  # before torch, which reads what it sets

# isort: split
import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import DataSource, build_dataset
from datasets.base import SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.colours import has_background
from utils.common.errors import UserError, run_script
from utils.common.files import write_text
from utils.metrics import scores_from_confusion
from utils.precision import choose_device
from utils.report.contents import Findings, Heading, Picture, code, points
from utils.report.image_choice import load_or_make_picks, object_classes
from utils.report.latex import to_latex
from utils.report.markdown import to_markdown
from utils.report.options import FIGURES, parse_args, parse_wishes
from utils.report.runs import are_alike, measured_on, read_sam_scores, runs_to_compare
from utils.run_records import Run, best_run, find_runs, load_named_runs, second_loss_command

if TYPE_CHECKING:  # matplotlib is slow to import: what draws comes where it is used
    from matplotlib.figure import Figure

MAX_COMPARED = 4

Drawn = Iterator[tuple["Figure", Picture]]


def save(found: Findings, args: argparse.Namespace, figure: "Figure", picture: Picture) -> None:
    """Write a figure, for the report also as PDF, and note it."""
    from utils.report.image_grid import save_figure

    for suffix in sorted({args.format, "pdf"} if args.figure == "report" else {args.format}):
        path = Path(args.output_dir) / f"{picture.name}.{suffix}"
        save_figure(figure, path, args.dpi)
        print(path)
    found.pictures[picture.name] = picture


def draw_classes(found: Findings, args: argparse.Namespace) -> Drawn:
    """`classes`: an image of each class, and its target."""
    from utils.report import figures

    dataset, picked = build_dataset(found.source, args.image_set), found.picks["classes"]
    caption = f"An image of {code(args.image_set)} for each class, and its ground truth."
    left_out = [name for name in object_classes(dataset.class_names) if name not in picked]
    if left_out:
        print(f"note: no image of {args.image_set} is left for: {', '.join(left_out)}")
        caption += f" No image is left for {', '.join(map(code, left_out))}."
    yield figures.draw_classes(dataset, picked), Picture("classes", caption)


def draw_distribution(found: Findings, args: argparse.Namespace) -> Drawn:
    """`distribution`: the share of each class, and what a constant scores."""
    from utils.report.charts import plot_distribution
    from utils.report.figures import constant_scores

    dataset = build_dataset(found.source, args.image_set, masks_only=True)
    found.images, found.statistics = len(dataset), class_statistics(dataset)
    names = dataset.class_names
    title = f"{found.data_title} {args.image_set} ({len(dataset):,} images)"
    figure = plot_distribution(title, names, dataset.colours, found.statistics)
    caption = f"Share of the labelled pixels that each class of {title} has, and its images."
    yield figure, Picture("distribution", caption)
    counts, void = found.statistics.pixel_counts, found.statistics.void_pixels
    labelled = int(counts.sum())
    print(
        f"{names[0]} has {points(int(counts[0]) / labelled)} % of the labelled pixels of "
        f"{args.image_set}, void {points(void / (labelled + void))} % of all pixels"
    )
    try:
        val_set = build_dataset(found.source, args.val_image_set, masks_only=True)
    except UserError as error:
        command = f"{found.again} --val_image_set NAME"
        found.miss("the scores of a constant prediction", str(error), command)
        return
    index = 0 if has_background(names) else int(counts.argmax())
    scores = constant_scores(val_set, index)
    accuracy, miou = points(scores["pixel_acc"]), points(scores["miou"])
    on = f"{code(args.val_image_set)} ({len(val_set):,} images)"
    found.constant = [f"{code(names[index])} everywhere", on, accuracy, miou]
    everywhere = f"predicting {names[index]} everywhere on {args.val_image_set}"
    print(f"{everywhere}: pixel accuracy {accuracy} %, mIoU {miou} %")


def draw_curves(found: Findings, args: argparse.Namespace) -> Drawn:
    """`curves`: how the runs went."""
    from utils.report.curves import plot_curves

    first = found.runs[0]
    other = next((run for run in found.runs if not run.is_on_data_of(first)), None)
    if other:
        raise UserError(
            f"{first.folder} and {other.folder}: not on the same data set: choose with --runs or "
            "--dataset"
        )
    caption = "mIoU, training loss and learning rate at each evaluation; the best has a star."
    yield plot_curves(found.runs, args.x), Picture("curves", caption)


def draw_comparison(found: Findings, args: argparse.Namespace) -> Drawn:
    """`compare`: image, ground truth, one to four models, and SAM, for the five images."""
    from utils.report import figures
    from utils.report.curves import loss_name

    runs = choose_compared(found, args)
    ids, dataset = found.picks["five"], build_dataset(found.source, args.image_set)
    device = choose_device(args.device)
    models = ((run, figures.load_predictor(run, device, args.precision)) for run in runs)
    figure = figures.draw_comparison(dataset, ids, models, find_sam(found, args, dataset, ids))
    columns = "; ".join(
        f"({letter}) {code(run.setting('model'))}, {loss_name(run)}, {code(run.name)}"
        for letter, run in zip("cdef", runs, strict=False)
    )
    caption = (
        f"Predictions on images of {code(args.image_set)}: {columns}. Above, the mIoU on "
        f"{measured_on(runs[0])}; below, that of the image, over the classes of its ground truth, "
        "and its pixel accuracy."
    )
    if any(run.setting("image_set") == args.image_set for run in runs):
        caption += " These are images that the models were trained on."
    yield figure, Picture("compare", caption)


def choose_compared(found: Findings, args: argparse.Namespace) -> list[Run]:
    """The runs that are named, else the best run of each of two losses.

    Raises:
        UserError: those that are named are too many, or their scores do not compare.
    """
    is_named = args.runs and (args.figure == "compare" or len(found.runs) <= MAX_COMPARED)
    chosen = found.runs if is_named else runs_to_compare(found.runs)
    if len(chosen) > MAX_COMPARED:
        raise UserError(f"--runs: {len(chosen)} given: compare has room for {MAX_COMPARED}")
    unlike = ", ".join(run.name for run in found.runs if not are_alike(run, chosen[0]))
    if is_named and unlike:
        raise UserError(
            f"--runs: evaluated otherwise than {chosen[0].name} (images, --crop_val, --resize): "
            f"{unlike}: name runs whose scores compare"
        )
    if unlike:
        found.notes.append(f"not compared, since evaluated otherwise: {unlike}")
    if not is_named and len(chosen) == 1:
        what, reason = "a model trained with another loss", f"no such run beside {chosen[0].name}"
        found.miss(what, reason, second_loss_command(chosen[0], found.source))
    return chosen


def find_sam(
    found: Findings, args: argparse.Namespace, dataset: SegmentationDataset, ids: Iterable[str]
) -> list[Path]:
    """SAM's scores, into `found`; the pictures of its column, none if they are not all there."""
    folder = Path(args.sam_dir)
    pictures = [folder / f"{name}.png" for name in ids]
    try:
        found.sam = read_sam_scores(folder, found.source.dataset, dataset.class_names)
        if not all(path.exists() and path.with_suffix(".npz").exists() for path in pictures):
            raise UserError(f"{folder} does not hold masks of all the images compared")
        return pictures
    except UserError as error:
        folders = ["--runs_dir", args.runs_dir, "--report_dir", args.output_dir]
        words = [*found.source.flags(), *folders, "--output_dir", args.sam_dir]
        command = shlex.join(["python", "sam_infer.py", *words])
        found.miss("the column of SAM", str(error), command)
        return []


def draw_errors(found: Findings, args: argparse.Namespace) -> Drawn:
    """`errors`: the worst and the best images of a run, and its confusion matrix."""
    from utils.report import figures
    from utils.report.charts import plot_confusion

    if args.figure == "errors" and args.runs and len(args.runs) > 1:
        raise UserError(f"--runs: {len(args.runs)} given: errors looks at one run")
    run = best_run(runs_to_compare(found.runs))
    dataset, on = build_dataset(found.source, args.val_image_set), args.val_image_set
    if 0 < args.limit < len(dataset):
        on = f"{args.limit:,} of {len(dataset):,} images of {on}"
        dataset = figures.thin_out(dataset, args.limit)
    predictor = figures.load_predictor(run, choose_device(args.device), args.precision)
    order, confusion = figures.analyse_errors(dataset, predictor)
    miou = scores_from_confusion(confusion)["miou"]
    caption = f"{code(run.name)}: worst and best of {on}, as whole images."
    yield figures.draw_errors(dataset, order, predictor, miou), Picture("errors", caption)
    title = f"mIoU {100 * miou:.1f} on {on}; % of each row"
    figure = plot_confusion(dataset.class_names, confusion.numpy(), title)
    caption = f"{code(run.name)}: confusion matrix of {on}."
    yield figure, Picture("confusion", caption)


DRAW = {
    "classes": draw_classes,
    "distribution": draw_distribution,
    "curves": draw_curves,
    "compare": draw_comparison,
    "errors": draw_errors,
}


def report(found: Findings, args: argparse.Namespace) -> None:
    """`report`: everything; what cannot be made is named in it."""
    from utils.report.heads import draw_heads
    from utils.report.sections import build_report

    if not found.runs:
        what = "scores, curves, the comparison of predictions, and errors"
        reason = f"{args.runs_dir} holds no run on {args.dataset}"
        found.miss(what, reason, found.main_command)
    for name, draw in DRAW.items():
        what, flags = FIGURES[name]
        try:
            if found.runs or "runs" not in flags:
                for figure, picture in draw(found, args):
                    save(found, args, figure, picture)
        except UserError as error:
            found.miss(what, str(error), found.again)
    caption = "Both heads at output stride 16; what DeepLabV3+ adds is orange."
    save(found, args, draw_heads(), Picture("heads", caption))
    title, parts = f"Semantic segmentation of {found.data_title} with DeepLab", build_report(found)
    author = args.author or ""
    blocks = [Heading(1, title), *filter(None, [author]), *chain(*parts.values())]
    files = {"report.md": to_markdown(blocks, args.format), **to_latex(title, author, parts)}
    folder = Path(args.output_dir)
    (folder / "missing.tex").unlink(missing_ok=True)  # of an earlier report
    for name, text in files.items():
        write_text(folder / name, text)
    print(folder / "report.md", folder / "report.tex", sep="\n")


def load_runs(
    found: Findings, args: argparse.Namespace, dataset: SegmentationDataset | None
) -> None:
    """Read the runs that `--runs` names, else all of the data set, into `found`.

    Raises:
        UserError: a named one cannot be read, or there is none; but a report has other parts.
    """
    place = (Path(args.runs_dir), args.dataset, dataset)
    if args.runs:
        found.runs = load_named_runs(args.runs, *place)
    else:
        found.runs, found.notes = find_runs(*place)
    found.notes += [note for run in found.runs for note in run.notes]
    words = [*found.source.flags(), "--runs_dir", args.runs_dir]
    found.main_command = shlex.join(["python", "main.py", *words])
    if not found.runs and args.figure != "report":
        which = f"no run on {args.dataset}" if args.dataset else "no run"
        raise UserError(
            f"{args.runs_dir}: {which} there: {found.main_command} makes one, and --runs_dir names "
            "another folder"
        )


def main(argv: list[str] | None = None) -> None:
    """Make the figure that the command line names, or all."""
    args = parse_args(__doc__, argv)
    again = shlex.join(["python", "visualize.py", *(sys.argv[1:] if argv is None else argv)])
    dataset = None
    if args.figure == "curves":  # are in the logs
        found = Findings(DataSource(args.dataset or "voc"), again)
    else:
        found = Findings(DataSource.of(args), again)
        found.image_set = args.val_image_set if args.figure == "errors" else args.image_set
        dataset = build_dataset(found.source, found.image_set, masks_only=True)
        found.class_names = dataset.class_names
    if hasattr(args, "runs"):
        load_runs(found, args, dataset)
    if hasattr(args, "pick"):
        path, fixed = Path(args.output_dir) / "picks.json", parse_wishes(args.pick or ())
        found.picks = load_or_make_picks(path, found.source, args.image_set, fixed)
    if args.figure == "report":
        report(found, args)
    else:
        for figure, picture in DRAW[args.figure](found, args):
            save(found, args, figure, picture)
    for note in found.notes:
        print(f"note: {note}")
    for missing in found.missing:
        print(f"missing: {missing}")


if __name__ == "__main__":
    run_script(main)
