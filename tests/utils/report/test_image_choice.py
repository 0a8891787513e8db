"""The choice of images, on hand-made masks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from datasets import DataSource
from datasets.base import SegmentationDataset
from datasets.voc import CLASS_NAMES, VOCSegmentation
from tests.conftest import save_mask, write_list
from utils.common.errors import UserError
from utils.report.image_choice import load_or_make_picks, pick_five, pick_images

NAMES = ("background", "cat", "dog", "cow")


def box(value, top, left, height, width, canvas=None):
    mask = np.zeros((40, 40), np.uint8) if canvas is None else canvas.copy()
    mask[top : top + height, left : left + width] = value
    return mask


def make_set(folder, masks, names=NAMES):
    for sample, mask in masks.items():
        save_mask(folder / "SegmentationClass" / f"{sample}.png", mask)
    return SegmentationDataset(folder, list(masks), names, masks_only=True)


def test_pick_is_large_whole_and_alone(tmp_path):
    large = box(1, 5, 5, 30, 30)
    masks = {
        "small": box(1, 10, 10, 8, 8),
        "cut": box(1, 0, 0, 30, 30),
        "crowded": box(2, 5, 5, 30, 15, large),
        "good": large,
        "dog": box(2, 5, 5, 20, 20),
    }
    picks = pick_images(make_set(tmp_path, masks), {})
    assert picks["classes"] == {"cat": "good", "dog": "dog"}  # no image holds a cow


def test_each_image_is_used_once_and_the_rarest_class_chooses_first(tmp_path):
    both = box(2, 5, 22, 30, 12, box(1, 5, 5, 30, 16))
    masks = {"both": both, "cat": box(1, 15, 15, 5, 5)}
    picks = pick_images(make_set(tmp_path, masks), {})
    assert picks["classes"] == {"cat": "cat", "dog": "both"}


def test_a_class_for_which_no_image_is_left_is_left_out(tmp_path):
    both = box(2, 5, 22, 30, 12, box(1, 5, 5, 30, 16))
    picks = pick_images(make_set(tmp_path, {"both": both}), {})
    assert picks["classes"] == {"cat": "both"}


def test_without_background_class_0_is_an_object(tmp_path):
    masks = {"a": box(1, 5, 5, 9, 9), "b": box(0, 5, 5, 30, 30, np.ones((40, 40)))}
    for names, classes in ((("sky", "tree"), {"sky": "b", "tree": "a"}),
                           (("_Background_", "tree"), {"tree": "a"})):  # fmt: skip
        assert pick_images(make_set(tmp_path, masks, names), {})["classes"] == classes


def test_fixed_pick_wins_and_is_not_used_again(tmp_path):
    masks = {"a": box(1, 5, 5, 9, 9), "b": box(2, 5, 5, 20, 20, box(1, 30, 30, 4, 4))}
    dataset = make_set(tmp_path, masks)
    assert pick_images(dataset, {})["classes"] == {"cat": "a", "dog": "b"}
    assert pick_images(dataset, fixed={"cat": "b"})["classes"] == {"cat": "b"}


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"horse": "a"}, "--pick horse=a: no such object class: choose from cat, dog, cow"),
        ({"background": "a"}, "no such object class"),
        ({"cat": "zzz"}, "--pick cat=zzz: no such image in this set"),
        ({"cow": "a"}, "--pick cow=a: the image holds no cow"),
        ({"cat": "b", "dog": "b"}, "--pick dog=b: the image was picked for another class"),
    ],
)
def test_impossible_picks_are_named(tmp_path, fixed, words):
    masks = {"a": box(1, 5, 5, 9, 9), "b": box(2, 5, 5, 20, 20, box(1, 30, 30, 4, 4))}
    with pytest.raises(UserError, match=words):
        pick_images(make_set(tmp_path, masks), fixed=fixed)


def test_five_are_spread_over_the_classes():
    ids = {name: f"id_{name}" for name in CLASS_NAMES[1:]}
    assert pick_five(ids) == [
        f"id_{name}" for name in ("aeroplane", "bottle", "chair", "horse", "sheep")
    ]
    assert pick_five({"cat": "a", "dog": "b"}) == ["a", "b"] and pick_five({}) == []


def test_images_that_a_person_wants_are_among_the_five():
    ids = {name: f"id_{name}" for name in CLASS_NAMES[1:]}
    assert pick_five(ids, ["sofa", "cat"]) == [
        f"id_{name}" for name in ("aeroplane", "car", "cat", "motorbike", "sofa")
    ]  # of 18 others those at 0, 6 and 12
    assert pick_five(ids, CLASS_NAMES[3:8]) == [f"id_{name}" for name in CLASS_NAMES[3:8]]


def test_an_image_that_is_mostly_void_is_the_last_choice(tmp_path):
    void = box(1, 5, 5, 12, 12, np.full((40, 40), 255, np.uint8))  # all that is labelled is cat
    masks = {"void": void, "small": box(1, 15, 15, 3, 3), "dog": box(2, 0, 0, 9, 9)}
    picks = pick_images(make_set(tmp_path, masks), {})
    assert picks["classes"] == {"cat": "small", "dog": "dog"}
    del masks["small"]
    picks = pick_images(make_set(tmp_path, masks), {})
    assert picks["classes"] == {"cat": "void", "dog": "dog"}  # there is no other


def test_share_is_of_all_pixels(tmp_path):
    half = np.full((40, 40), 255, np.uint8)
    half[:, :31] = 0  # 22 % void
    masks = {"half": box(1, 5, 5, 20, 20, half), "whole": box(1, 5, 5, 20, 21)}
    assert pick_images(make_set(tmp_path, masks), {})["classes"] == {"cat": "whole"}


def test_landscape_images_of_a_cameras_proportions_are_preferred(tmp_path):
    masks = {
        name: box(1, 5, 5, 20, 20, np.zeros(size, np.uint8))
        for name, size in (("tall", (60, 40)), ("wide", (30, 80)), ("usual", (45, 60)))
    }
    assert pick_images(make_set(tmp_path, masks), {})["classes"] == {"cat": "usual"}


@pytest.mark.slow
@pytest.mark.skipif("DEEPLAB_TEST_DATA" not in os.environ, reason="needs real data")
@pytest.mark.parametrize("image_set", ["train", "val"])
def test_picks_of_voc_have_little_void_where_a_class_has_such_an_image(image_set):
    root = Path(os.environ["DEEPLAB_TEST_DATA"]) / "voc2012_masks"
    dataset = VOCSegmentation(root, image_set, masks_only=True)
    classes = pick_images(dataset, {})["classes"]
    assert len(classes) == 20
    void, present = {}, {}
    for index, sample in enumerate(dataset.ids):
        counts = np.bincount(dataset.read_target(index).numpy().ravel(), minlength=256)
        void[sample], present[sample] = counts[255] / counts.sum(), counts[:21] > 0
    for name, sample in classes.items():
        least = min(void[i] for i in void if present[i][CLASS_NAMES.index(name)])
        assert void[sample] < 0.25 or least >= 0.25, (name, sample)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "data"
    make_set(folder, {"a": box(1, 5, 5, 9, 9), "b": box(2, 5, 5, 9, 9), "c": box(1, 0, 0, 9, 9)})
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    write_list(folder, "train", ["a", "b", "c"])
    return DataSource("custom", str(folder))


def test_stored_picks_are_read_again_unless_there_is_a_wish(source, tmp_path):
    path = tmp_path / "report" / "picks.json"
    picks = load_or_make_picks(path, source)
    assert picks == {
        "dataset": "custom", "data_root": source.data_root, "image_set": "train",
        "classes": {"cat": "a", "dog": "b"}, "five": ["a", "b"],
    }  # fmt: skip
    assert json.loads(path.read_text()) == picks
    wanted = load_or_make_picks(path, source, fixed={"cat": "c"})
    assert wanted["classes"] == {"cat": "c", "dog": "b"} and wanted["five"] == ["c", "b"]
    assert load_or_make_picks(path, source) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "voc"}, {"data_root": "elsewhere"}, {"image_set": "val"}, {"five": ["zzz"]},
        {"classes": {"cat": "zzz"}}, {"classes": {"horse": "a"}},
    ],
)  # fmt: skip
def test_picks_of_other_images_are_made_anew_which_is_said(source, tmp_path, capsys, change):
    path = tmp_path / "picks.json"
    picks = load_or_make_picks(path, source, fixed={"cat": "c"})
    path.write_text(json.dumps({**picks, **change}))
    assert load_or_make_picks(path, source, "train")["classes"] == {"cat": "a", "dog": "b"}
    assert "picks.json: of other images than" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "picks.json: cannot be read as JSON"),
        ('{"classes": 3}', "picks.json: holds no choice of images: delete it"),
    ],
)
def test_a_file_that_holds_something_else_is_kept(source, tmp_path, text, words):
    path = tmp_path / "picks.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_or_make_picks(path, source)
    assert path.read_text() == text
