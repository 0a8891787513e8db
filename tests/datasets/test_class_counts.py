import numpy as np
import pytest

from datasets import check_training_data
from datasets.base import SegmentationDataset
from datasets.class_counts import class_statistics
from tests.conftest import save_mask
from utils.common.errors import UserError


def make_set(folder, targets, names=("sky", "road", "car")):
    """A data set of masks alone, one row each."""
    for name, target in targets.items():
        save_mask(folder / "SegmentationClass" / f"{name}.png", np.array([target]))
    return SegmentationDataset(folder, list(targets), names, masks_only=True)


def test_counts_by_hand(tmp_path):
    targets = {"a": [0, 0, 1], "b": [0, 255, 255], "c": [2, 1, 2], "d": [255, 255, 255]}
    names = ("sky", "road", "car", "nowhere")
    statistics = class_statistics(make_set(tmp_path, targets, names))
    assert statistics.pixel_counts.tolist() == [3, 2, 2, 0]
    assert statistics.image_counts.tolist() == [2, 2, 1, 0]
    assert statistics.image_pixels.tolist() == [4, 6, 3, 0] and statistics.void_pixels == 5


def test_masks_are_read_once_for_all_that_counts_them(tmp_path):
    dataset = make_set(tmp_path, {"a": [0, 1], "b": [1, 1]})
    assert class_statistics(dataset).pixel_counts.tolist() == [1, 3, 0]
    for path in dataset.target_paths:
        path.unlink()
    assert class_statistics(dataset).image_counts.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("row", "found"), [([1, 1], "road or void"), ([255, 255], "void"), ([0, 255], "sky or void")]
)
def test_set_of_one_class_is_refused(tmp_path, row, found):
    one, two = (make_set(tmp_path / n, {"a": r}) for n, r in (("one", row), ("two", [0, 1])))
    message = rf"one, {{}} set: every pixel is {found} \(255\).*two classes.*--object_value 255"
    with pytest.raises(UserError, match=message.format("validation")):
        check_training_data(two, one)
    with pytest.raises(UserError, match=message.format("training")):
        check_training_data(one, two)


def test_absent_classes_and_shared_images_are_said(tmp_path, capsys):
    train = make_set(tmp_path, {"a": [0, 1], "b": [1, 1], "e": [0, 2]})
    val = make_set(tmp_path, {"a": [0, 1], "b": [1, 1], "d": [0, 0]})
    check_training_data(train, val)
    said = capsys.readouterr().err
    assert "classes without a pixel in the validation set: car\n" in said
    assert "without a pixel in the training set" not in said
    assert "2 of 3 validation images, such as a, are in the training set" in said
    other = make_set(tmp_path / "other", {"a": [0, 1], "b": [2, 2]})
    check_training_data(train, other)
    assert "note" not in capsys.readouterr().err
