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

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import DataSource, build_dataset
from datasets.base import SegmentationDataset
from datasets.class_counts import class_statistics
from datasets.colours import has_background
from utils.common.errors import UserError, run_script
from utils.common.files import write_text
from utils.precision import choose_device
from utils.report.contents import Findings, Heading, Picture, code, points
from utils.report.image_choice import load_or_make_picks, object_classes
from utils.report.latex import to_latex
from utils.report.markdown import to_markdown
from utils.report.options import FIGURES, FLAGS, parse_args, parse_wishes
from utils.report.runs import are_alike, read_sam_scores, runs_to_compare
from utils.run_records import Run, find_runs, load_named_runs, second_loss_command

if TYPE_CHECKING:  # matplotlib is slow to import: what draws comes where it is used
    from matplotlib.figure import Figure

MAX_COMPARED = 4


@dataclasses.dataclass
class Output:
    """Where figures go, and as which files."""

    folder: Path
    formats: tuple[str, ...]
    dpi: int

    def save(self, found: Findings, figure: "Figure", picture: Picture) -> None:
        """Write a figure in all formats, and note it for the report."""
        from utils.report.image_grid import PAGE_WIDTH, save_figure

        for suffix in self.formats:
            path = self.folder / f"{picture.name}.{suffix}"
            save_figure(figure, path, self.dpi)
            print(path)
        width = min(figure.get_figwidth() / PAGE_WIDTH, 1.0)
        found.pictures[picture.name] = picture._replace(width=width)


def show_classes(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`classes`: an image of each class, and its target."""
    from utils.report.figures import draw_classes

    picked = found.picks["classes"]
    dataset = build_dataset(DataSource.of(args), args.image_set)
    caption = f"An image of {code(args.image_set)} for each class, and its ground truth."
    text = f"shows an image of {code(args.image_set)} for each class beside its ground truth."
    output.save(found, draw_classes(dataset, picked), Picture("classes", caption, text))
    names = [dataset.class_names[index] for index in object_classes(dataset.class_names)]
    left_out = ", ".join(name for name in names if name not in picked)
    if left_out:
        found.notes.append(f"no image of {args.image_set} is left for: {left_out}")


def show_distribution(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`distribution`: the share of each class, also as CSV, and what a constant scores."""
    from utils.report.charts import distribution_csv, plot_distribution

    dataset = build_dataset(DataSource.of(args), args.image_set, masks_only=True)
    found.images, found.statistics = len(dataset), class_statistics(dataset)
    counts, void = found.statistics.pixel_counts, found.statistics.void_pixels
    name = f"{found.data_title} {args.image_set} ({len(dataset):,} images)"
    figure = plot_distribution(name, dataset.class_names, dataset.colours, found.statistics)
    text = "shows the share of the labelled pixels that each class has."
    picture = Picture("distribution", f"Share of the labelled pixels in {name}.", text)
    output.save(found, figure, picture)
    path = output.folder / "distribution.csv"
    write_text(path, distribution_csv(dataset.class_names, found.statistics))
    labelled = int(counts.sum())
    print(
        f"{path}\n{dataset.class_names[0]} has {points(int(counts[0]) / labelled)} % of the "
        f"labelled pixels of {args.image_set}, void {points(void / (labelled + void))} % of all "
        "pixels"
    )
    try:
        val_set = build_dataset(DataSource.of(args), args.val_image_set, masks_only=True)
    except UserError as error:
        command = f"{found.again} --val_image_set NAME"
        found.miss("the scores of a constant prediction", str(error), command)
    else:
        index = 0 if has_background(dataset.class_names) else int(counts.argmax())
        score_constant(found, val_set, index)


def score_constant(found: Findings, val_set: SegmentationDataset, index: int) -> None:
    """What a class scores if it is predicted everywhere, into `found`."""
    from utils.report.figures import constant_scores

    name, scores = val_set.class_names[index], constant_scores(val_set, index)
    found.constant, found.val_images = (name, scores), len(val_set)
    print(
        f"predicting {name} everywhere on {found.val_image_set} ({len(val_set)} images): pixel "
        f"accuracy {points(scores['pixel_acc'])} %, mIoU {points(scores['miou'])} %"
    )


def show_curves(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`curves`: how the runs went."""
    from utils.report.curves import plot_curves

    first = found.runs[0]
    for run in found.runs:
        if not run.is_on_data_of(first):
            raise UserError(
                f"{first.folder} and {run.folder}: not on the same data set: choose with --runs "
                "or --dataset"
            )
    caption = "Validation mIoU, training loss and learning rate of the runs."
    text = "shows how the runs went; a star is the best evaluation of a run."
    output.save(found, plot_curves(found.runs, args.x), Picture("curves", caption, text))


def load_runs(found: Findings, args: argparse.Namespace) -> None:
    """Read the runs that `--runs` names, else all of the data set, into `found`.

    Raises:
        UserError: a named one cannot be read, or there is none; but a report has other parts.
    """
    dataset = None
    if args.figure != "curves":  # they are in the logs
        image_set = getattr(args, "image_set", found.val_image_set)
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


def show_comparison(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`compare`: image, ground truth, one to four models, and SAM, for the five images."""
    from utils.report.curves import loss_name
    from utils.report.figures import draw_comparison, load_predictor, model_name

    named = bool(args.runs) and (args.figure == "compare" or len(found.runs) <= MAX_COMPARED)
    runs = check_compared(found.runs) if named else choose_compared(found)
    classes = {sample: name for name, sample in found.picks["classes"].items()}
    ids = {sample: classes.get(sample, "") for sample in found.picks["five"]}
    dataset = build_dataset(DataSource.of(args), args.image_set)
    device = choose_device(args.device)
    models = ((run, load_predictor(run, device, args.precision)) for run in runs)
    figure = draw_comparison(dataset, ids, models, get_sam(found, Path(args.sam_dir), dataset, ids))
    columns = "; ".join(
        f"({letter}) {model_name(run)}, {loss_name(run)}, {code(run.name)}, mIoU on "
        f"{run.setting('val_image_set') or 'val'}{', centre crops' * bool(run.setting('crop_val'))}"
        for letter, run in zip("cdef", runs, strict=False)
    )
    caption = (
        f"Predictions on images of {code(args.image_set)}: {columns}. Below a prediction are the "
        "mIoU of that image, over the classes of its ground truth, and its pixel accuracy."
    )
    if any(run.setting("image_set") == args.image_set for run in runs):
        caption += " These are images that the models were trained on."
    text = "shows what they predict."
    output.save(found, figure, Picture("compare", caption, text))


def check_compared(runs: list[Run]) -> list[Run]:
    """The runs that were named.

    Raises:
        UserError: they are too many, or their scores do not compare.
    """
    if len(runs) > MAX_COMPARED:
        raise UserError(f"--runs: {len(runs)} given: compare has room for {MAX_COMPARED}")
    other = next((run for run in runs if not are_alike(run, runs[0])), None)
    if other:
        raise UserError(
            f"--runs: {runs[0].name} and {other.name} were not evaluated alike (images, "
            "--crop_val, --resize): name runs whose scores compare"
        )
    return runs


def choose_compared(found: Findings) -> list[Run]:
    """The best run of each of two losses."""
    chosen = runs_to_compare(found.runs)
    aside = [run.name for run in found.runs if not are_alike(run, chosen[0])]
    if aside:
        found.notes.append(f"not compared, since evaluated otherwise: {', '.join(aside)}")
    if len(chosen) == 1:
        what, reason = "a model trained with another loss", f"no such run beside {chosen[0].name}"
        found.miss(what, reason, second_loss_command(chosen[0], found.source))
    return chosen


def get_sam(
    found: Findings, folder: Path, dataset: SegmentationDataset, ids: Iterable[str]
) -> list[Path]:
    """SAM's scores, into `found`; the pictures of its column, none if they are not all there."""
    from utils.report.figures import find_sam_pictures

    found.sam, reason = read_sam_scores(folder, found.source.dataset, dataset.class_names)
    pictures = find_sam_pictures(folder, dataset, ids) if found.sam else []
    if not pictures:
        reason = reason or f"{folder} does not hold pictures of all the images compared"
        found.miss("the column of SAM", reason, found.sam_command)
    return pictures


def show_errors(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`errors`: the worst and the best images of a run, and its confusion matrix."""
    from utils.report.charts import plot_confusion
    from utils.report.figures import analyse_errors, draw_errors, load_predictor

    if args.figure == "errors" and args.runs and len(args.runs) > 1:
        raise UserError(f"--runs: {len(args.runs)} given: errors looks at one run")
    run = max(runs_to_compare(found.runs), key=lambda run: run.best["miou"])
    dataset = build_dataset(DataSource.of(args), args.val_image_set)
    predictor = load_predictor(run, choose_device(args.device), args.precision)
    analysis = analyse_errors(dataset, args.val_image_set, predictor, args.limit)
    caption = f"{code(run.name)}: worst and best of {analysis.measured_on}, as whole images."
    text = f"shows where {code(run.name)} errs most and least."
    output.save(found, draw_errors(analysis, predictor), Picture("errors", caption, text))
    title = f"mIoU {100 * analysis.miou:.1f} on {analysis.measured_on}; % of each row"
    figure = plot_confusion(dataset.class_names, analysis.confusion.numpy(), title)
    caption = f"{code(run.name)}: confusion matrix of {analysis.measured_on}."
    text = "shows which class is taken for which."
    output.save(found, figure, Picture("confusion", caption, text))


def report(found: Findings, args: argparse.Namespace, output: Output) -> None:
    """`report`: everything; what cannot be made is named in it."""
    from utils.report.heads import draw_heads
    from utils.report.sections import build_report

    found.class_names = build_dataset(
        DataSource.of(args), args.image_set, masks_only=True
    ).class_names
    if not found.runs:
        what = "scores, curves, the comparison of predictions, and errors"
        reason = f"{args.runs_dir} holds no run on {args.dataset}"
        found.miss(what, reason, found.main_command)
    for name, show in SHOW.items():
        what, flags = FIGURES[name]
        try:
            if found.runs or "runs" not in flags:
                show(found, args, output)
        except UserError as error:
            found.miss(what, str(error), found.again)
    caption = "Both heads at output stride 16; what DeepLabV3+ adds is orange."
    output.save(found, draw_heads(), Picture("heads", caption, "shows both heads."))
    below = ", ".join(filter(None, (args.author, args.date)))
    title, parts = f"Semantic segmentation of {found.data_title} with DeepLab", build_report(found)
    blocks = [Heading(1, title), *filter(None, [below]), *chain(*parts.values())]
    files = {"report.md": to_markdown(blocks, args.format), **to_latex(title, below, parts)}
    (output.folder / "missing.tex").unlink(missing_ok=True)  # of an earlier report
    for name, text in files.items():
        write_text(output.folder / name, text)
    print(output.folder / "report.md", output.folder / "report.tex", sep="\n")


SHOW = {
    "classes": show_classes,
    "distribution": show_distribution,
    "curves": show_curves,
    "compare": show_comparison,
    "errors": show_errors,
}


def load_picks(found: Findings, args: argparse.Namespace) -> None:
    """The images to show, into `found`: those stored, unless the flags ask for others."""
    path = Path(args.output_dir) / "picks.json"
    fixed = None if args.pick is None else parse_wishes(args.pick)
    found.picks = load_or_make_picks(path, DataSource.of(args), args.image_set, args.seed, fixed)


def folder_flags(args: argparse.Namespace, **flags: str) -> list[str]:
    """The words for another script's folders; the name behind a flag there is that of it here."""
    values = {flag: (getattr(args, name, None), FLAGS[name]) for flag, name in flags.items()}
    return [f"--{n}={v}" for n, (v, flag) in values.items() if v not in (None, flag["default"])]


def main(argv: list[str] | None = None) -> None:
    """Make the figure that the command line names, or all."""
    args = parse_args(__doc__, argv)
    is_report = args.figure == "report"
    source = DataSource(args.dataset) if args.figure == "curves" else DataSource.of(args)
    folders = {"output_dir": "sam_dir", "report_dir": "output_dir", "runs_dir": "runs_dir"}
    sam_words = [*source.flags(), *folder_flags(args, **folders)]
    found = Findings(
        source,
        image_set=getattr(args, "image_set", "train"),
        val_image_set=getattr(args, "val_image_set", "val"),
        again=shlex.join(["python", "visualize.py", *(sys.argv[1:] if argv is None else argv)]),
        main_command=shlex.join(
            ["python", "main.py", *source.flags(), *folder_flags(args, runs_dir="runs_dir")]
        ),
        sam_command=shlex.join(["python", "sam_infer.py", *sam_words]),
    )
    formats = (args.format, "pdf") if is_report and args.format != "pdf" else (args.format,)
    output = Output(Path(args.output_dir), formats, args.dpi)
    if hasattr(args, "runs"):
        load_runs(found, args)
    if hasattr(args, "pick"):
        load_picks(found, args)
    (report if is_report else SHOW[args.figure])(found, args, output)
    for note in found.notes:
        print(f"note: {note}")
    for missing in found.missing:
        print(f"missing: {missing}")


if __name__ == "__main__":
    run_script(main)
