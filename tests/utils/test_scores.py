"""The files of scores: their names, and what they say of an evaluation."""

import json

import pytest

from utils.scores import protocol, scores_file

USUAL = {
    "checkpoint": "runs/a/best.pth",
    "dataset": "voc",
    "data_root": "data",
    "image_set": "val",
    "ids": "0123",
    "crop_size": None,
    "output_stride": 16,
    "trained": {"dataset": "voc", "data_root": "data", "output_stride": 16, "precision": "bf16"},
    "precision": "bf16",
    "scales": [1.0],
    "flip": False,
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "scores_val.json"),
        ({"image_set": "test"}, "scores_test.json"),
        ({"crop_size": 513}, "scores_val_crop513.json"),
        ({"precision": "fp32"}, "scores_val_fp32.json"),
        ({"output_stride": 8}, "scores_val_os8.json"),
        ({"scales": [0.5, 1.0, 1.5], "flip": True}, "scores_val_scales0.5-1-1.5_flip.json"),
        ({"checkpoint": "runs/a/last.pth"}, "scores_val_last.json"),
        ({"dataset": "custom", "data_root": "other/town"}, "scores_val_town.json"),
        ({"trained": dict.fromkeys(USUAL["trained"])}, "scores_val_voc_bf16_os16.json"),
    ],
)
def test_scores_are_named_after_what_is_unusual(tmp_path, changes, name):
    settings = {**USUAL, **changes}
    assert str(scores_file(settings)) == f"runs/a/{name}"
    others = scores_file(settings, tmp_path)  # beside those of other runs
    assert others == tmp_path / name.replace("scores_val", "scores_val_a", 1).replace(
        "scores_test", "scores_test_a", 1
    )


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "others/a/best.pth"},
        {"ids": "4567"},
        {"data_root": "elsewhere/town"},
        {"overlap": 0},
    ],
)
def test_evaluations_of_one_name_do_not_overwrite_each_other(tmp_path, change):
    settings = {**USUAL, "dataset": "custom", "data_root": "town", "overlap": 256}
    settings["trained"] = {**USUAL["trained"], "dataset": "custom", "data_root": "town"}
    file = scores_file(settings, tmp_path)
    file.write_text(json.dumps({**settings, "miou": 0.5}))
    assert scores_file(settings, tmp_path) == file  # scored again
    other = scores_file({**settings, **change}, tmp_path)
    assert other != file and other.name.startswith("scores_val_a")


def test_scores_of_before_are_those_of_the_same_evaluation(tmp_path):
    """They do not say data root and lists; beside the checkpoint, the folder may have moved."""
    settings = {**USUAL, "checkpoint": str(tmp_path / "best.pth")}
    old = {"checkpoint": "runs/a/best.pth", "dataset": "voc", "image_set": "val", "miou": 0.5}
    (tmp_path / "scores_val.json").write_text(json.dumps(old))
    assert scores_file(settings) == tmp_path / "scores_val.json"


def test_protocol_says_what_was_looked_at():
    assert protocol(None) == "whole images at native size"
    assert protocol(513) == "centre crops: short side 513, centre square"
