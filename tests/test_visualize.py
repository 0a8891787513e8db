"""`visualize.py` as a user runs it, on small data and runs that were never trained."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import visualize
from datasets.voc import CLASS_NAMES
from network.modeling import build_model
from tests.conftest import make_voc, save_sample
from tests.utils.report.test_figures import save_full_masks
from tests.utils.report.test_runs import write_run
from utils.checkpoint import describe_model
from utils.common.checkpoint_files import save_checkpoint
from visualize import main

MODEL = "deeplabv3plus_mobilenet"
FIGURES = ("classes", "distribution", "heads", "curves", "compare", "errors", "confusion")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    make_voc(root, num_train=12, num_val=5)
    return root


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, data):
    """Two runs, `ce` and `focal`, with random weights and invented logs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (loss, mious) in enumerate({"ce": (0.2, 0.6512), "focal": (0.3, 0.64)}.items()):
        torch.manual_seed(seed)
        args = {
            "model": MODEL, "output_stride": 16, "crop_size": [513], "lr": 0.01,
            "lr_policy": "step", "step_size": 1000, "total_itrs": 20, "batch_size": 8,
            "backbone_weights": "none", "device": "cpu", "focal_gamma": None,
        }  # fmt: skip
        run = write_run(folder / f"voc_{loss}", mious, loss=loss, data_root=str(data), **args)
        content = describe_model(build_model(MODEL), args, CLASS_NAMES)
        save_checkpoint(run / "best.pth", content)
    return folder


@pytest.fixture
def show(run, data, runs_dir, tmp_path):
    """Run `visualize.py FIGURE` on the data and the runs, into tmp_path/report."""

    def show_figure(figure, *flags):
        argv = [*figure.split(), "--output_dir", tmp_path / "report"]
        if figure != "curves":  # are drawn without the data set
            argv += ["--data_root", data]
        if figure in ("", "curves", "compare", "errors", "report"):
            argv += ["--runs_dir", runs_dir]
        if figure in ("", "compare", "errors", "report"):
            argv += ["--device", "cpu", "--precision", "fp32"]
        return run(main, *argv, "--dpi", 40, *flags)

    return show_figure


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are empty and quick; what is drawn from is in the list."""
    drawn = []

    def draw(*given):
        drawn.append(given)
        return Figure((1, 1))

    for place in (
        "figures.draw_classes", "figures.draw_comparison", "figures.draw_errors",
        "heads.draw_heads", "charts.plot_confusion", "charts.plot_distribution",
        "curves.plot_curves",
    ):  # fmt: skip
        monkeypatch.setattr(f"utils.report.{place}", draw)
    return drawn


@pytest.fixture
def sam_dir(show, data, tmp_path):
    """SAM's results on the five images."""
    assert show("classes").status == 0
    five = json.loads((tmp_path / "report" / "picks.json").read_text())["five"]
    folder = tmp_path / "sam"
    folder.mkdir()
    for sample in five:
        image = Image.open(data / "VOCdevkit/VOC2012/JPEGImages" / f"{sample}.jpg")
        Image.new("RGB", image.size, "red").save(folder / f"{sample}.png")
        save_full_masks(folder / f"{sample}.npz", image.size[::-1], 3)
    scores = {
        "dataset": "voc", "image_set": "train", "images": five, "deeplab": {"miou": 0.5},
        "sam_deeplab": {"miou": 0.55}, "oracle": {"miou": 0.8}, "masks_per_image": 40.0,
        "borders": {"3": {"deeplab": 0.31}},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def test_report_is_the_default_and_has_everything(show, undrawn, sam_dir, tmp_path):
    ended = show("", "--sam_dir", sam_dir)
    assert ended.status == 0, ended.stderr
    assert "missing" not in ended.stdout
    folder = tmp_path / "report"
    report = (folder / "report.md").read_text()
    tex = "".join((folder / f"problem{number}.tex").read_text() for number in (1, 2, 3, 4))
    for name in FIGURES:
        assert f"]({name}.png)" in report and f"{{{name}.pdf}}" in tex
    assert "- R1: `voc_ce`, " in report and "whole images at native size" in report
    assert "| R1 | 65.12 | 90.00 | 50.00 | 80.00 |" in report
    assert "| `loss` | ce | focal |" in report
    assert "| SAM's masks, classes from the ground truth | 80.00 |" in report
    assert "SAM's masks, classes from DeepLab & 55.00" in tex
    assert "What is missing" not in report
    picked = json.loads((folder / "picks.json").read_text())["classes"]
    left_out = [name for name in CLASS_NAMES[1:] if name not in picked]
    assert f"note: no image of train is left for: {', '.join(left_out)}\n" in ended.stdout
    names = ", ".join(f"`{name}`" for name in left_out)
    assert f"No image is left for {names}." in report.partition("1.4")[2].partition("2.2")[0]


@pytest.mark.slow
def test_report_is_the_same_every_time(show, sam_dir, tmp_path):
    contents = []
    for _ in range(2):
        assert show("", "--sam_dir", sam_dir, "--limit", 2).status == 0
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "report").iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {
        *(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
        "picks.json", "report.md", "report.tex",
        *(f"problem{number}.tex" for number in (1, 2, 3, 4)),
    }  # fmt: skip


def test_report_without_runs_has_the_data_and_names_the_rest(show, undrawn, tmp_path):
    ended = show("", "--runs_dir", tmp_path / "none")
    assert ended.status == 0, ended.stderr
    report = (tmp_path / "report" / "report.md").read_text()
    assert "](classes.png)" in report and "](curves.png)" not in report
    missing = report.partition("## What is missing")[2]
    assert "holds no run on voc" in missing and "`python main.py --data_root" in missing
    assert not (tmp_path / "report" / "curves.png").exists()


def test_report_names_a_missing_loss_and_checkpoint(run, show, undrawn, runs_dir, tmp_path):
    shutil.copytree(runs_dir / "voc_focal", tmp_path / "runs" / "voc_focal")
    ended = show("compare", "--runs_dir", tmp_path / "runs")
    assert "missing: a model trained with another loss: no such run beside" in ended.stdout
    (tmp_path / "runs" / "voc_focal" / "best.pth").unlink()
    ended = show("", "--runs_dir", tmp_path / "runs")
    assert ended.status == 0, ended.stderr
    report = (tmp_path / "report" / "report.md").read_text()
    assert "best.pth: not there" in report and "](curves.png)" in report
    assert "voc_focal/args.json --loss ce" in report
    again = re.findall("To make it: `python visualize.py (.*)`", report)
    assert run(main, *shlex.split(again[0])).status == 0


def test_report_without_images_still_has_the_distribution(run, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages")
    argv = ("--data_root", tmp_path / "data", "--output_dir", tmp_path, "--runs_dir", tmp_path)
    assert run(main, *argv).status == 0
    report = (tmp_path / "report.md").read_text()
    assert "](distribution.png)" in report and "](classes.png)" not in report
    assert "JPEGImages: cannot be read" in report


def test_distribution_equals_an_independent_count(show, undrawn, data):
    ended = show("distribution")
    folder = data / "VOCdevkit" / "VOC2012"
    counts = {}
    for image_set in ("train", "val"):
        ids = (folder / "ImageSets" / "Segmentation" / f"{image_set}.txt").read_text().split()
        masks = [np.asarray(Image.open(folder / "SegmentationClass" / f"{i}.png")) for i in ids]
        values = np.concatenate([mask.ravel() for mask in masks])
        counts[image_set] = {value: int((values == value).sum()) for value in (*range(21), 255)}
    ((title, names, _, counted),) = undrawn
    assert (title, names) == ("PASCAL VOC 2012 train (12 images)", CLASS_NAMES)
    pixels = [*counted.pixel_counts.tolist(), counted.void_pixels]
    assert pixels == list(counts["train"].values())
    labelled = {key: value for key, value in counts["val"].items() if key != 255}
    accuracy = 100 * labelled[0] / sum(labelled.values())
    classes = sum(value > 0 for value in labelled.values())
    assert f"accuracy {accuracy:.2f} %, mIoU {accuracy / classes:.2f} %" in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif("DEEPLAB_TEST_DATA" not in os.environ, reason="needs real data")
def test_distribution_of_voc(run, tmp_path):
    root = Path(os.environ["DEEPLAB_TEST_DATA"]) / "voc2012_masks"
    ended = run(main, "distribution", "--data_root", root, "--output_dir", tmp_path)
    assert "background has 73.36 % of the labelled pixels" in ended.stdout
    assert "void 5.46 % of all pixels" in ended.stdout


@pytest.mark.parametrize("file_format", ["pdf", "svg"])
def test_figures_come_in_the_format_asked_for(show, tmp_path, file_format):
    assert show("curves", "--format", file_format, "--x", "epochs").status == 0
    assert [path.name for path in (tmp_path / "report").iterdir()] == [f"curves.{file_format}"]


def test_curves_need_neither_data_nor_weights(run, runs_dir, tmp_path, monkeypatch):
    results = tmp_path / "results"
    shutil.copytree(runs_dir, results, ignore=shutil.ignore_patterns("*.pth"))
    write_run(results / "own", dataset="custom", data_root="gone", class_names=("sky", "road"))
    monkeypatch.chdir(tmp_path)
    argv = ("curves", "--runs_dir", results, "--dpi", 40)
    for runs in (("voc_ce", "voc_focal"), ("own",)):
        assert run(main, *argv, "--runs", *runs).status == 0
    assert run(main, *argv, "--dataset", "voc").status == 0
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["curves.png"]
    for choice in ((), ("--runs", "own", "voc_ce")):
        assert "not on the same data set" in run(main, *argv, *choice).error


def test_the_five_images_of_a_comparison_can_be_picked_and_stay(show, undrawn, tmp_path):
    show("classes")
    stored = json.loads((tmp_path / "report" / "picks.json").read_text())
    name, sample = next(pick for pick in stored["classes"].items() if pick[1] not in stored["five"])
    for flags in (("--pick", f"{name}={sample}"), ()):
        assert show("compare", *flags).status == 0
        five = undrawn[-1][1]
        assert len(five) == 5 and sample in five


def test_errors_shows_worst_and_best(show, tmp_path):
    ended = show("errors", "--runs", "voc_focal", "--limit", 3)
    assert ended.status == 0, ended.stderr
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"errors.png", "confusion.png"}


@pytest.mark.parametrize(
    ("gone", "reason"),
    [("scores.json", "scores.json: not there"), ("*.npz", "does not hold masks of all the images")],
)
def test_a_column_of_sam_is_there_as_a_whole_or_missing(show, undrawn, sam_dir, gone, reason):
    next(sam_dir.glob(gone)).unlink()
    ended = show("compare", "--sam_dir", sam_dir)
    assert undrawn[-1][3] == [] and reason in ended.stdout
    assert "missing: the column of SAM: " in ended.stdout


def test_a_report_shows_no_run_of_other_data_with_equal_class_names(run, undrawn, tmp_path):
    for town in ("a", "b"):
        for number in range(4):
            save_sample(tmp_path / town, f"{town}{number}", (48, 64), num_classes=3)
        (tmp_path / town / "class_names.txt").write_text("background\ncat\ndog\n")
    custom = {"dataset": "custom", "class_names": ("background", "cat", "dog")}
    write_run(tmp_path / "runs" / "of_a", (0.7654,), data_root=str(tmp_path / "a"), **custom)
    flags = ("--dataset", "custom", "--data_root", tmp_path / "b", "--runs_dir", tmp_path / "runs")
    ended = run(main, *flags, "--output_dir", tmp_path / "report")
    assert ended.status == 0 and "of_a: a run on other classes or images" in ended.stdout
    report = (tmp_path / "report" / "report.md").read_text()
    assert "No run yet:" in report and "76.54" not in report


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["curves", "--runs", "zzz"], "--runs zzz: no such run; in .* voc_ce, voc_focal"),
        (["errors", "--runs", "voc_ce", "voc_focal"], "errors looks at one run"),
        (["curves", "--runs_dir", "nowhere"], "nowhere: no run there: python main.py"),
        (["curves", "--dataset", "shapes"], "no run on shapes there: python main.py --dataset sha"),
        (
            ["curves", "--dataset", "shapes", "--runs", "voc_ce"],
            "voc_ce: a run on voc, not on shapes",
        ),
        (["classes", "--pick", "cat"], "--pick cat: give CLASS=ID"),
        (["classes", "--pick", "cat=a", "cat=b"], "--pick cat=b: give CLASS=ID, each class once"),
        (["", "--pick", "unicorn=2007_000000"], "--pick unicorn=2007_000000: no such object"),
        (["classes", "--image_set", "zzz"], "zzz.txt"),
        (["errors", "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_bad_input_is_named(show, argv, words):
    figure, *flags = argv
    error = show(figure, *flags).error
    assert re.search(words, error), error


def test_too_many_runs_to_compare(show, monkeypatch):
    monkeypatch.setattr(visualize, "MAX_COMPARED", 2)
    names = ("voc_ce", "voc_focal", "voc_ce")
    error = show("compare", "--runs", *names).error
    assert "--runs: 3 given: compare has room for 2" in error
    # A report has other parts for them, and chooses by itself.
    assert "missing: predictions of one to four" not in show("report", "--runs", *names).stdout


def test_runs_evaluated_otherwise_are_not_compared(show, undrawn, runs_dir, tmp_path):
    shutil.copytree(runs_dir, tmp_path / "runs")
    path = tmp_path / "runs" / "voc_focal" / "args.json"
    stored = json.loads(path.read_text())
    stored["args"]["crop_val"] = True
    path.write_text(json.dumps(stored))
    flags = ("--runs_dir", tmp_path / "runs")
    error = show("compare", *flags, "--runs", "voc_ce", "voc_focal").error
    assert "evaluated otherwise than voc_ce (images, --crop_val, --resize): voc_focal" in error
    ended = show("compare", *flags)
    assert "note: not compared, since evaluated otherwise: voc_focal" in ended.stdout
    assert f"args.json --loss focal --runs_dir {tmp_path / 'runs'}" in ended.stdout
