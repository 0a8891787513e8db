"""The files of scores: their names, and what they say of an evaluation."""

import json

import pytest

from utils.scores import protocol, scores_file

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
        ({"image_set": "test"}, "scores_test.json"),
        ({"crop_size": 513}, "scores_val_crop513.json"),
        ({"scales": [0.5, 1.0, 1.5], "flip": True}, "scores_val_scales0.5-1-1.5_flip.json"),
        ({"checkpoint": "runs/a/last.pth"}, "scores_val_last.json"),
        ({"checkpoint": "torchvision"}, "scores_val_torchvision.json"),
    ],
)
def test_scores_are_named_after_split_weights_and_views(changes, name):
    assert scores_file({**USUAL, **changes}).name == name


def test_scores_lie_beside_the_checkpoint_or_tell_the_run(tmp_path):
    assert str(scores_file(USUAL)) == "runs/a/scores_val.json"
    assert scores_file(USUAL, tmp_path) == tmp_path / "scores_val_a.json"


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
    file = tmp_path / "scores_val_a.json"
    file.write_text(json.dumps({**USUAL, "miou": 0.5}))
    assert scores_file(USUAL, tmp_path) == file  # scored again
    other = scores_file({**USUAL, **change}, tmp_path)
    assert other != file and other.name.startswith("scores_val_a_")
    other.write_text(json.dumps({**USUAL, **change, "miou": 0.4}))
    assert scores_file({**USUAL, **change}, tmp_path) == other


def test_protocol_says_what_was_looked_at():
    assert protocol(None) == "whole images at native size"
    assert protocol(513) == "centre crops: short side 513, centre square"
