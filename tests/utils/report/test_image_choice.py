"""The choice of images, on hand-made masks."""

import dataclasses
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


BOTH = box(2, 5, 22, 30, 12, box(1, 5, 5, 30, 16))
DOG = box(2, 0, 0, 9, 9)
VOID = box(1, 5, 5, 12, 12, np.full((40, 40), 255, np.uint8))  # all that is labelled is cat
FIFTH_VOID = np.full((40, 40), 255, np.uint8)
FIFTH_VOID[:, :31] = 0
SIZES = {"tall": (60, 40), "wide": (30, 80), "usual": (45, 60)}


@pytest.mark.parametrize(
    ("masks", "classes"),
    [
        pytest.param(
            {
                "small": box(1, 10, 10, 8, 8), "cut": box(1, 0, 0, 30, 30),
                "crowded": box(2, 5, 5, 30, 15, box(1, 5, 5, 30, 30)),
                "good": box(1, 5, 5, 30, 30), "dog": box(2, 5, 5, 20, 20),
            },
            {"cat": "good", "dog": "dog"},
            id="large, whole and alone; no image holds a cow",
        ),
        pytest.param(
            {"both": BOTH, "cat": box(1, 15, 15, 5, 5)}, {"cat": "cat", "dog": "both"},
            id="each image once, and the rarest class chooses first",
        ),
        pytest.param({"both": BOTH}, {"cat": "both"}, id="no image is left for a class"),
        pytest.param(
            {"void": VOID, "small": box(1, 15, 15, 3, 3), "dog": DOG},
            {"cat": "small", "dog": "dog"}, id="mostly void is the last choice",
        ),
        pytest.param(
            {"void": VOID, "dog": DOG}, {"cat": "void", "dog": "dog"}, id="there is no other"
        ),
        pytest.param(
            {"fifth": box(1, 5, 5, 20, 20, FIFTH_VOID), "whole": box(1, 5, 5, 20, 21)},
            {"cat": "whole"}, id="the share is of all pixels",
        ),
        pytest.param(
            {name: box(1, 5, 5, 20, 20, np.zeros(size)) for name, size in SIZES.items()},
            {"cat": "usual"}, id="the proportions of a camera",
        ),
    ],
)  # fmt: skip
def test_the_image_of_a_class_is(tmp_path, masks, classes):
    assert pick_images(make_set(tmp_path, masks), {})["classes"] == classes


def test_without_background_class_0_is_an_object(tmp_path):
    masks = {"a": box(1, 5, 5, 9, 9), "b": box(0, 5, 5, 30, 30, np.ones((40, 40)))}
    for names, classes in ((("sky", "tree"), {"sky": "b", "tree": "a"}),
                           (("_Background_", "tree"), {"tree": "a"})):  # fmt: skip
        assert pick_images(make_set(tmp_path, masks, names), {})["classes"] == classes


WISHED = {"a": box(1, 5, 5, 9, 9), "b": box(2, 5, 5, 20, 20, box(1, 30, 30, 4, 4))}


def test_fixed_pick_wins_and_is_not_used_again(tmp_path):
    dataset = make_set(tmp_path, WISHED)
    assert pick_images(dataset, {})["classes"] == {"cat": "a", "dog": "b"}
    assert pick_images(dataset, {"cat": "b"})["classes"] == {"cat": "b"}


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
    with pytest.raises(UserError, match=words):
        pick_images(make_set(tmp_path, WISHED), fixed)


def test_five_are_those_that_a_person_wants_and_others_spread_over_the_classes():
    ids = {name: f"id_{name}" for name in CLASS_NAMES[1:]}
    for fixed, names in (
        ((), ("aeroplane", "bottle", "chair", "horse", "sheep")),
        # Of 18 others those at 0, 6 and 12.
        (["sofa", "cat"], ("aeroplane", "car", "cat", "motorbike", "sofa")),
        (CLASS_NAMES[3:8], CLASS_NAMES[3:8]),
    ):
        assert pick_five(ids, fixed) == [ids[name] for name in names]
    assert pick_five({"cat": "a", "dog": "b"}) == ["a", "b"] and pick_five({}) == []


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
    same = dataclasses.replace(source, data_root=f"{source.data_root}/../data")
    assert load_or_make_picks(path, same) == wanted


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
