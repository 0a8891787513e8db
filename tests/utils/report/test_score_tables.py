"""The comparison of the reported runs: means by hand, and settings that lead back to the runs."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.utils.report.test_runs import write_run
from utils.options import parse_args, settings_to_store
from utils.report.contents import spread
from utils.report.runs import group_runs
from utils.report.score_tables import main
from utils.run_records import load_run

CLASSES = ("sky", "road")


def add_run(folder, name, mious, *flags, class_names=CLASSES):
    """A run that `main.py` would have made with these flags."""
    argv = ["--dataset", "custom", "--data_root", "data/town", *map(str, flags)]
    settings = settings_to_store(parse_args("", argv))
    return write_run(folder / name, mious, class_names, **settings)


def add_scores(folder, name="scores.json", **scores):
    scores = {"image_set": "test", "scales": [1.0], "flip": False, **scores}
    (folder / name).write_text(json.dumps(scores))


@pytest.fixture
def results(tmp_path):
    """Two seeds of `town_ce`, one of `town_focal`."""
    folder = tmp_path / "results"
    add_run(folder, "town_ce_s0", (0.2, 0.4, 0.3))
    add_run(folder, "town_ce_s1", (0.41,), "--seed", 1, "--num_workers", 3, "--runs_dir", "other")
    add_run(folder, "town_focal_s0", (0.5,), "--loss", "focal")
    return folder


def rows_of(text, first=""):
    """The cells of the table whose header begins with `first`, by the first cells of its rows."""
    lines = text.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ([], "-"),
        ([None, float("nan")], "-"),
        ([0.5], "50.00"),
        ([0.5, 0.52, 0.58], "53.33 ± 4.00"),
        ([0.25, None, 0.75], "50.00 ± 25.00 (2 of 3)"),
    ],
)
def test_spread_is_the_mean_and_half_the_range(shares, text):
    assert spread(shares) == text


def test_a_row_is_the_mean_over_the_seeds(run, results):
    text = run(main, results).stdout
    header, _, ce, focal = rows_of(text)
    assert header == ["mIoU", "pixel acc.", "mean acc.", "fw IoU", "time", "memory"]
    # The best of town_ce_s0 is 40, of town_ce_s1 41; they took 300 s and 100 s.
    assert ce == [
        "R1", "40.50 ± 0.50", "90.00 ± 0.00", "50.00 ± 0.00", "80.00 ± 0.00", "3 min", "-"
    ]  # fmt: skip
    assert focal == ["R2", "50.00", "90.00", "50.00", "80.00", "100 s", "-"]
    what = "`deeplabv3plus_resnet50` on town, evaluated on `val`, whole images at native size"
    assert f"- R1: `town_ce_s{{0,1}}`, {what}; CPU, -\n" in text
    assert f"- R2: `town_focal_s0`, {what}; CPU, -\n" in text


def test_memory_is_the_peak_of_all_seeds(run, results):
    for name, memory in (("town_ce_s0", 4000.4), ("town_ce_s1", 5000.0)):
        path = results / name / "log.jsonl"
        path.write_text(
            path.read_text().replace('"max_memory_mb": null', f'"max_memory_mb": {memory}')
        )
    rows = rows_of(run(main, results).stdout)
    assert [row[-1] for row in rows[2:]] == ["5,000 MB", "-"]


def test_scores_of_the_best_weights_have_a_table_of_their_own(run, results):
    add_scores(results / "town_ce_s0", miou=0.3, images=233)
    add_scores(results / "town_ce_s1", miou=0.5, images=233)
    add_scores(results / "town_ce_s1", "scores_views.json", miou=0.6, scales=[0.5, 1.0], flip=True)
    _, _, *rows = rows_of(run(main, results).stdout, " | on")
    assert rows == [
        ["R1", "`test` (233 images)", "40.00 ± 10.00"],
        ["R1", "`test`, scales 0.5 1, flipped too", "60.00 (1 of 2)"],
    ]


def test_classes_stand_beside_each_other(run, results):
    path = results / "town_focal_s0" / "log.jsonl"
    path.write_text(path.read_text().replace('"road": 0.5', '"road": null'))
    add_run(results, "village", (0.2,), class_names=("sky", "cow"))
    text = run(main, results).stdout
    assert rows_of(text, "class") == [
        ["R1", "R2"],
        ["------", "-----:", "-----:"],
        ["`sky`", "40.50", "50.00"],
        ["`road`", "40.50", "-"],
        ["mIoU", "40.50", "50.00"],
    ]
    assert text.count("| class |") == 2 and "| `cow` | 20.00 |" in text


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(results):
    add_run(results, "town_ce_s2", (0.6,), "--seed", 2, "--lr", 0.02)
    add_run(results, "again", (0.6,))
    old = add_run(results, "town_ce_s3", (0.6,), "--seed", 3) / "args.json"
    stored = json.loads(old.read_text())
    del stored["args"]["deterministic"]  # a flag that came later: off, as by default
    old.write_text(json.dumps(stored))
    runs = [load_run(path) for path in sorted(results.iterdir())]
    assert [[run.name for run in group] for group in group_runs(runs)] == [
        ["again"],
        ["town_ce_s0", "town_ce_s1", "town_ce_s3"],
        ["town_ce_s2"],
        ["town_focal_s0"],
    ]


def test_bad_scores_are_named_and_several_are_told_apart(run, results):
    assert "nowhere: holds no run" in run(main, results / "nowhere").error
    add_scores(results / "town_ce_s0")
    assert "scores.json: holds no mIoU" in run(main, results).error
    add_scores(results / "town_ce_s0", miou=0.3)
    add_scores(results / "town_ce_s0", "scores_test_fp32.json", miou=0.4)
    assert [row[1:] for row in rows_of(run(main, results).stdout, " | on")[2:]] == [
        ["`test`", "30.00 (1 of 2)"],
        ["`test` (scores\\_test\\_fp32)", "40.00 (1 of 2)"],
    ]


def test_results_show_what_the_command_prints(run, monkeypatch):
    text = (ROOT / "results" / "scores.md").read_text(encoding="utf-8")
    command = re.search(r"`python -m utils\.report\.score_tables (.*?)`", text)
    monkeypatch.chdir(ROOT)
    assert run(main, *shlex.split(command[1])).stdout == text


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
