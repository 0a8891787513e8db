"""What the end of a training says of its run, and which runs are on the same data."""

import dataclasses
import os
from types import SimpleNamespace

import pytest

from datasets import DataSource
from tests.utils.report.test_runs import write_run as write_files
from utils.common.errors import UserError
from utils.run_records import default_checkpoint, find_runs, load_named_runs, load_run, summarise


def write_run(folder, mious=(0.5,), lists=None, **settings):
    """A run on two classes; `lists` are the hashes of its lists, `settings` those of `main.py`."""
    data = {part: {"images": 9, "ids": ids} for part, ids in (lists or {}).items()}
    args = {"dataset": "custom", "data_root": "town", "loss": "focal", **settings}
    write_files(folder, mious, ["sky", "road"], {"data": data}, **args)
    (folder / "best.pth").write_bytes(b"")
    return load_run(folder)


def test_summary_shows_the_best_evaluation_the_costs_and_the_next_commands(tmp_path):
    run = write_run(tmp_path / "my run", [0.25, 0.5, 0.4])
    run.best["class_iou"]["road"], run.log[-1]["seconds"] = None, 5550.0
    assert "GPU" not in summarise(run)
    run.log[-1]["max_memory_mb"] = 6861.2
    text = summarise(run)
    assert "  sky    50.00\n  road       -\n" in text
    assert "mIoU 50.00, pixel acc 90.00, mean acc 50.00, fw IoU 80.00" in text
    assert f"best of 3 evaluations: epoch 4, iteration 20, in {tmp_path / 'my run'}" in text
    assert "1:32:30 h, 6,861 MB of GPU memory" in text
    best = tmp_path / "my run" / "best.pth"
    assert f"next: python predict.py --ckpt '{best}' IMAGE_OR_FOLDER\n" in text
    data = "--dataset custom --data_root town"
    assert text.endswith(f"      python visualize.py --runs_dir {tmp_path} {data}")
    assert "main.py" not in text


def test_after_cross_entropy_the_second_loss_and_sam_are_next(tmp_path):
    run = write_run(tmp_path / "town_ce", loss="ce", dataset="voc", no_download=True)
    lines = [line.split("python ")[1] for line in summarise(run).splitlines()[-4:]]
    data = f"--runs_dir {tmp_path} --data_root town --no_download"
    assert lines == [
        f"predict.py --ckpt {tmp_path}/town_ce/best.pth IMAGE_OR_FOLDER",
        f"main.py --args {tmp_path}/town_ce/args.json --loss focal --runs_dir {tmp_path} "
        "--run_name town_focal",
        f"sam_infer.py {data}",
        f"visualize.py {data}",
    ]


@pytest.fixture
def towns(tmp_path):
    """Two data sets of the same classes and the same names of images, here on the disk."""
    towns = []
    for name in ("a", "b"):
        (tmp_path / name / "town").mkdir(parents=True)
        towns.append(
            SimpleNamespace(
                folder=tmp_path / name / "town", class_names=("sky", "road"), ids_hash="same"
            )
        )
    return towns


def test_equal_names_do_not_make_two_data_sets_one(tmp_path, towns):
    a, b = towns
    runs = tmp_path / "runs"
    write_run(runs / "on_a", [0.9], data_root=str(a.folder), lists={"val": "same"})
    write_run(runs / "on_b", [0.4], data_root=str(b.folder), lists={"val": "same"})
    found, notes = find_runs(runs, "custom", b)
    assert [run.name for run in found] == ["on_b"]
    reason = f"{runs / 'on_a'}: a run on other classes or images than those in {b.folder}: give "
    assert notes == [f"left out: {reason}its --data_root {a.folder}"]
    with pytest.raises(UserError, match=reason):
        load_named_runs(["on_a"], runs, "custom", b)
    assert default_checkpoint(runs, "custom", b)[0] == runs / "on_b" / "best.pth"
    assert default_checkpoint(runs, "custom", a)[0] == runs / "on_a" / "best.pth"
    os.utime(runs / "on_a" / "best.pth", (0, 0))  # the other is the newest
    path, reason = default_checkpoint(runs)
    assert path == runs / "on_b" / "best.pth"
    assert f"the best of 1 on custom data in {b.folder}" in reason and "1 on other data" in reason


@pytest.mark.parametrize(
    ("settings", "is_same"),
    [
        ({"data_root": "/elsewhere/town", "lists": {"train": "same", "val": "v"}}, True),
        ({"data_root": "/elsewhere/town", "lists": {"train": "t", "val": "v"}}, False),
        ({"data_root": "/elsewhere/town"}, False),  # an older run, which does not say
        ({"data_root": "/elsewhere/city", "dataset": "shapes"}, True),  # the same wherever it lies
    ],
)
def test_lists_tell_whether_data_that_were_moved_are_the_same(tmp_path, towns, settings, is_same):
    run = write_run(tmp_path / "run", **settings)
    town = DataSource(run.source.dataset, str(towns[0].folder))
    assert run.is_on(town, ("sky", "road"), ["same"]) is is_same
    assert not run.is_on(town, ("road", "sky"), ["same"])
    assert not run.is_on(dataclasses.replace(town, dataset="voc"), ("sky", "road"), ["same"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop_val": True}, "scored otherwise"),
        ({"lists": {"val": "v2"}}, "scored otherwise"),
        ({}, "the best of 2 on"),
    ],
)
def test_scores_of_another_protocol_or_list_do_not_decide(tmp_path, change, reason):
    write_run(tmp_path / "first", [0.9], **{"lists": {"val": "v"}, **change})
    os.utime(tmp_path / "first" / "best.pth", (0, 0))
    write_run(tmp_path / "second", [0.4], lists={"val": "v"})
    path, said = default_checkpoint(tmp_path)
    assert path.parent.name == ("second" if change else "first") and reason in said
