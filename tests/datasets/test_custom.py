import argparse
import os
from hashlib import sha256
from pathlib import Path

import pytest

from datasets import DataSource, add_data_args
from datasets.custom import CustomSegmentation, read_class_names, split_ids
from tests.conftest import save_sample, write_list
from utils.common.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten samples of three classes, as labelme exports them: without lists."""
    for number in range(10):
        save_sample(tmp_path, f"photo {number}", (40, 60), num_classes=3)
    (tmp_path / "class_names.txt").write_text("_background_\ncat\ndog\n")
    return tmp_path


def test_lists_decide_where_there_are_lists(folder):
    write_list(folder, "train", ["photo 3", "photo 1"])
    dataset = CustomSegmentation(folder, "train")
    assert dataset.ids == ["photo 3", "photo 1"]
    assert dataset.class_names == ("_background_", "cat", "dog")
    with pytest.raises(UserError, match=r"val\.txt"):
        CustomSegmentation(folder, "val")


def test_without_lists_train_and_val_share_nothing_and_miss_nothing(folder):
    train = CustomSegmentation(folder, "train", val_fraction=0.3).ids
    val = CustomSegmentation(folder, "val", val_fraction=0.3).ids
    assert train and val
    assert sorted(train + val) == CustomSegmentation(folder, "trainval").ids


def make_masks(folder: Path, names: list[str]) -> None:
    (folder / "SegmentationClass").mkdir(exist_ok=True)
    for name in names:
        (folder / "SegmentationClass" / f"{name}.png").touch()


def test_new_images_move_no_other_between_train_and_val(tmp_path):
    make_masks(tmp_path, [f"old {number}" for number in range(50)])
    before = {side: set(split_ids(tmp_path, side, 0.2, seed=0)) for side in ("train", "val")}
    make_masks(tmp_path, [f"new {number}" for number in range(30)])
    for side, ids in before.items():
        after = split_ids(tmp_path, side, 0.2, seed=0)
        assert ids == {name for name in after if name.startswith("old")}


def test_split_is_the_same_on_every_machine_and_meets_its_share(tmp_path):
    names = [f"{number:04d}" for number in range(1000)]
    make_masks(tmp_path, names)
    val = split_ids(tmp_path, "val", 0.25, seed=3)
    # A quarter of all hashes begins with one of four of the sixteen hexadecimal digits.
    expected = [name for name in names if sha256(f"3/{name}".encode()).hexdigest()[0] in "0123"]
    assert val == expected and 200 < len(val) < 300
    assert val != split_ids(tmp_path, "val", 0.25, seed=4)


@pytest.mark.parametrize("val_fraction", [0.0, 0.01, 0.99, 1.0])
def test_split_that_leaves_a_side_empty_names_the_flag(folder, val_fraction):
    with pytest.raises(UserError, match=r"--val_fraction.*(0|10) of 10 masks.*--split_seed"):
        CustomSegmentation(folder, "train", val_fraction=val_fraction)


def test_ignore_line_of_labelme_is_not_a_class(folder):
    (folder / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n\n")
    assert read_class_names(folder / "class_names.txt") == ["_background_", "cat", "dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n\ntwo\n", "line 2 is blank"),
        ("\none\ntwo\n", "line 1 is blank"),
        ("one\ntwo\n  \nthree", "line 3 is blank"),
        ("one\n# animals\ntwo\n", "line 2 is a comment"),
    ],
)
def test_lines_that_would_shift_the_classes_are_named(folder, text, message):
    (folder / "class_names.txt").write_text(text)
    with pytest.raises(UserError, match=rf"class_names\.txt: {message}"):
        CustomSegmentation(folder, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 class names"),
        ("one\n", "1 class names"),
        ("a\nb\na\n", "'a' stands there twice"),
        ("\n".join(f"c{number}" for number in range(256)), "256 class names"),
    ],
)
def test_bad_class_names_are_explained(folder, text, message):
    (folder / "class_names.txt").write_text(text)
    with pytest.raises(UserError, match=rf"class_names\.txt.*{message}"):
        CustomSegmentation(folder, "train")


def test_missing_class_names_and_folder_are_named(folder):
    (folder / "class_names.txt").unlink()
    with pytest.raises(UserError, match=r"class_names\.txt"):
        CustomSegmentation(folder, "train")
    with pytest.raises(UserError, match=r"nowhere.*--data_root"):
        CustomSegmentation(folder / "nowhere", "train")


@pytest.mark.skipif("DEEPLAB_TEST_DATA" not in os.environ, reason="needs real data")
@pytest.mark.parametrize(
    ("name", "image_set", "size", "num_classes"),
    [("camvid", "train", 367, 11), ("camvid", "test", 233, 11), ("labelme_voc", "val", 1, 21)],
)
def test_real_data_sets_are_read_as_they_are(name, image_set, size, num_classes):
    root = Path(os.environ["DEEPLAB_TEST_DATA"]) / name
    dataset = CustomSegmentation(root, image_set, val_fraction=0.3)
    assert (len(dataset), dataset.num_classes) == (size, num_classes)
    for index in range(0, size, 50):
        image, target = dataset[index]
        assert image.shape[1:] == target.shape


def test_a_source_names_itself_on_a_command_line():
    parser = argparse.ArgumentParser()
    add_data_args(parser)
    for source in (DataSource(), DataSource("custom", "my data", no_download=True, split_seed=3)):
        assert DataSource.of(parser.parse_args(source.flags())) == source
