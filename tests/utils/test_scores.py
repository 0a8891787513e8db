"""The files of scores: their names, and what they say of an evaluation."""

import json
from pathlib import Path

import pytest

from utils.scores import scores_file

USUAL = {
    "checkpoint": "runs/a/best.pth",
    "data_root": "town",
    "image_set": "val",
    "ids": "0123",
    "crop_size": None,
    "precision": "bf16",
    "scales": [1.0],
    "flip": False,
    "overlap": 256,
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "scores_val.json"),
        ({"image_set": "test", "crop_size": 513}, "scores_test_crop513.json"),
        ({"scales": [0.5, 1.0, 1.5], "flip": True}, "scores_val_scales0.5-1-1.5_flip.json"),
        ({"checkpoint": "runs/a/last.pth"}, "scores_val_last.json"),
        ({"checkpoint": "torchvision"}, "scores_val_torchvision.json"),
    ],
)
def test_scores_are_named_after_split_weights_and_views_beside_the_checkpoint(changes, name):
    settings = {**USUAL, **changes}
    assert scores_file(settings) == Path(settings["checkpoint"]).with_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "others/a/best.pth"},
        {"data_root": "elsewhere/town"},
        {"ids": "4567"},
        {"precision": "fp32"},
        {"overlap": 0},
    ],
)
def test_evaluations_of_one_name_do_not_overwrite_each_other(tmp_path, change):
    file = tmp_path / "scores_val_a.json"  # tells the run
    assert scores_file(USUAL, tmp_path) == file
    file.write_text(json.dumps({**USUAL, "miou": 0.5}))
    assert scores_file(USUAL, tmp_path) == file  # scored again
    other = scores_file({**USUAL, **change}, tmp_path)
    assert other != file and other.name.startswith("scores_val_a_")
    other.write_text(json.dumps({**USUAL, **change, "miou": 0.4}))
    assert scores_file({**USUAL, **change}, tmp_path) == other
