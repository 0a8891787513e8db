"""Reading runs back: settings, logs, and what a kill or a NaN leaves in them."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from datasets import DataSource
from datasets.base import SegmentationDataset
from datasets.voc import CLASS_NAMES
from tests.conftest import ROOT
from utils.common.errors import UserError
from utils.options import parse_args, settings_to_store
from utils.report.runs import group_runs, measured_on, read_sam_scores, runs_to_compare
from utils.run_records import find_runs, load_named_runs, load_run, second_loss_command


def write_run(folder, mious=(0.2, 0.4, 0.3), class_names=CLASS_NAMES, stored=None, **args):
    """The text files of a run: evaluations every 10 iterations, which are 2 epochs.

    `stored` is what `args.json` holds beside the settings.
    """
    folder.mkdir(parents=True)
    args = {"dataset": "voc", "data_root": "data", "loss": "ce", "image_set": "train", **args}
    beside = {"class_names": list(class_names), "environment": {"gpu": None}, **(stored or {})}
    (folder / "args.json").write_text(json.dumps({"args": args, **beside}))
    records = [
        {
            "iteration": 10 * number, "epoch": 2 * number, "train_loss": 1 / number,
            "lr": 0.1**number, "backbone_lr": 0.01 * 0.1**number, "miou": miou, "pixel_acc": 0.9,
            "mean_acc": 0.5, "fw_iou": 0.8, "seconds": 100.0 * number, "val_seconds": 1.0,
            "class_iou": dict.fromkeys(class_names, miou), "max_memory_mb": None,
        }
        for number, miou in enumerate(mious, start=1)
    ]  # fmt: skip
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "log.jsonl").write_text(text)
    return folder


def make_run(folder, *args, **settings):
    """Write a run as `write_run` does, and read it."""
    return load_run(write_run(folder, *args, **settings))


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    return SegmentationDataset(tmp_path, [], CLASS_NAMES, masks_only=True)


def test_run_tells_settings_and_its_first_best_evaluation(tmp_path):
    run = make_run(tmp_path / "a", (0.2, 0.4, 0.4))
    assert (run.name, run.setting("loss"), run.setting("zzz")) == ("a", "ce", None)
    assert run.best["iteration"] == 20 and run.column("miou") == [0.2, 0.4, 0.4]
    assert run.best_checkpoint == tmp_path / "a" / "best.pth"
    # What is missing is no number, without a note.
    assert all(map(math.isnan, run.column("max_memory_mb"))) and run.notes == []


def test_a_run_that_is_not_finished_says_so(tmp_path):
    done = make_run(tmp_path / "done", (0.2, 0.4), total_itrs=20)
    stopped = make_run(tmp_path / "stopped", (0.2, 0.4), total_itrs=30)
    assert done.notes == []
    assert stopped.notes == [f"{stopped.folder}: is not finished: evaluated at 20 of 30 iterations"]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "a: has no evaluation yet"),
        ("{", "a: has no evaluation yet"),
        ('{"iteration": 1}\n{"itera\n{"iteration": 3}', r"log\.jsonl: line 2 is not a JSON object"),
    ],
)
def test_a_log_without_an_evaluation_or_with_a_broken_line_is_named(tmp_path, log, words):
    folder = write_run(tmp_path / "a")
    (folder / "log.jsonl").write_text(log)
    with pytest.raises(UserError, match=words):
        load_run(folder)


def test_find_runs_takes_those_of_the_data_set(tmp_path, dataset):
    runs = tmp_path / "runs"
    write_run(runs / "b")
    write_run(runs / "a", loss="focal")
    write_run(runs / "shapes", dataset="shapes")
    write_run(runs / "fewer", class_names=CLASS_NAMES[:4])
    (write_run(runs / "new") / "log.jsonl").unlink()
    found, notes = find_runs(runs, "voc", dataset)
    assert [run.name for run in found] == ["a", "b"]
    assert len(notes) == 2 and "new: has no evaluation yet" in notes[1]
    assert "fewer: a run on other classes or images than those in" in notes[0]
    assert find_runs(tmp_path / "nowhere", "voc", dataset) == ([], [])


def test_runs_are_named_by_name_or_path(tmp_path, dataset):
    write_run(tmp_path / "runs" / "a")
    other = write_run(tmp_path / "elsewhere" / "b")
    runs = load_named_runs(["a", str(other)], tmp_path / "runs", "voc", dataset)
    assert [run.name for run in runs] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "scores.json: not there"),
        ({"dataset": "shapes"}, "scores.json: not of voc with these classes"),
        ({"dataset": "voc", "oracle": {"class_iou": {"zebra": 1}}}, "not of voc with these"),
    ],
)
def test_scores_of_sam_are_of_this_data_set(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        read_sam_scores(tmp_path, "voc", CLASS_NAMES)
    scores = {"dataset": "voc", "oracle": None}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert read_sam_scores(tmp_path, "voc", CLASS_NAMES) == scores


def compared(folder, **runs):
    """The names of the runs that are compared, of runs given as (mIoU, settings)."""
    folder.mkdir()
    made = [make_run(folder / n, (miou,), **args) for n, (miou, args) in runs.items()]
    return [run.name for run in runs_to_compare(made)]


def test_the_best_run_of_the_two_best_losses_is_compared(tmp_path):
    names = compared(
        tmp_path / "runs",
        a=(0.50, {"loss": "focal"}), b=(0.60, {"loss": "ce"}), c=(0.61, {"loss": "ce", "seed": 1}),
        d=(0.70, {"loss": "ohem"}), e=(0.70, {"loss": "ohem", "seed": 1}),
    )  # fmt: skip
    assert names == ["c", "d"]
    assert compared(tmp_path / "one", a=(0.5, {"loss": "lovasz"})) == ["a"]
    assert runs_to_compare([]) == []


@pytest.mark.parametrize(
    "other",
    [
        {"crop_val": True}, {"resize": 0.5}, {"val_image_set": "test"}, {"dataset": "shapes"},
        {"class_names": ("sky", "road")}, {"stored": {"data": {"val": {"ids": "x"}}}},
    ],
)  # fmt: skip
def test_runs_of_two_protocols_or_lists_are_not_compared(tmp_path, other):
    better = {"c": (0.9, {"loss": "focal", **other})}
    plain = {"a": (0.6, {"loss": "ce"}), "b": (0.5, {"loss": "focal"})}
    assert compared(tmp_path / "three", **plain, **better) == ["a", "b"]
    del plain["b"]
    assert compared(tmp_path / "two", **plain, **better) == ["c"]  # one of each: the best alone


def test_scores_tell_split_number_of_images_and_protocol(tmp_path):
    old = make_run(tmp_path / "old", val_image_set="val")
    assert measured_on(old) == "`val`, whole images at native size"
    stored = {"data": {"val": {"images": 1449, "ids": "x"}}}
    new = make_run(tmp_path / "new", stored=stored, crop_val=True, crop_size=[513])
    assert measured_on(new) == "`val` (1,449 images), centre crops: short side 513, centre square"
    half = make_run(tmp_path / "half", resize=0.5)
    assert measured_on(half) == "`val`, whole images at native size, seen resized by 0.5"


@pytest.mark.parametrize("run_name", [None, "mine"])
def test_the_command_for_a_second_loss_trains_the_same_with_another(
    tmp_path, run_name, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "custom", "--data_root", "my town", "--model", "deeplabv3_mobilenet"]
    flags += ["--lr", "0.02", "--loss", "focal", "--focal_gamma", "1.5"]
    flags += ["--run_name", run_name] if run_name else []
    stored = parse_args("", flags)
    run = make_run(tmp_path / "runs" / stored.run_name, **settings_to_store(stored))
    python, script, *words = shlex.split(second_loss_command(run, DataSource.of(stored)))
    again = parse_args("", words)
    assert (python, script, again.loss, stored.loss) == ("python", "main.py", "ce", "focal")
    assert not (tmp_path / again.runs_dir / again.run_name).exists()
    changed = {"args", "loss", "focal_gamma", "run_name", "runs_dir"}
    assert {name for name, value in vars(again).items() if value != vars(stored)[name]} <= changed
    # From elsewhere, and the data are elsewhere.
    moved = shutil.move(tmp_path / "runs", tmp_path / "moved")
    run = load_run(Path(moved) / stored.run_name)
    source = DataSource("custom", "another place", val_fraction=0.3)
    again = parse_args("", shlex.split(second_loss_command(run, source))[2:])
    assert DataSource.of(again) == source and Path(again.runs_dir).resolve() == Path(moved)


def test_runs_that_differ_in_more_than_the_seed_are_no_group(tmp_path):
    def add(name, *flags):
        settings = settings_to_store(parse_args("", ["--dataset", "shapes", *flags]))
        return write_run(tmp_path / name, **settings)

    add("again")
    add("shapes_s0")
    add("shapes_s1", "--seed", "1", "--num_workers", "3", "--runs_dir", "other")
    add("shapes_s2", "--seed", "2", "--lr", "0.02")
    old = add("shapes_s3", "--seed", "3") / "args.json"
    stored = json.loads(old.read_text())
    del stored["args"]["deterministic"]  # a flag that came later: off, as by default
    old.write_text(json.dumps(stored))
    runs = [load_run(path) for path in sorted(tmp_path.iterdir(), reverse=True)]
    assert [[run.name for run in group] for group in group_runs(runs)] == [
        ["shapes_s0", "shapes_s1", "shapes_s3"], ["shapes_s2"], ["again"],
    ]  # fmt: skip


def test_results_can_be_run_again(monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = sorted(Path("results").rglob("args.json"))
    assert paths
    for path in paths:  # whatever the defaults and the recipes have become
        args = vars(parse_args("", ["--args", str(path)]))
        stored = json.loads(path.read_text())["args"]
        del stored["run_name"], stored["runs_dir"]
        gone = {key: stored.pop(key) for key in stored.keys() - args.keys()}
        gone.pop("cache", None)  # how fast it went
        assert not any(gone.values())
        chosen = {key: value for key, value in stored.items() if value is not None}
        assert {key: args[key] for key in chosen} == chosen
