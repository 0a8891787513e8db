import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import DataSource, add_data_args
from datasets.custom import CustomSegmentation, read_labelmap, split_ids
from tests.conftest import save_mask, save_sample, write_list
from utils.common.errors import UserError
from utils.common.flags import Parser

REAL_DATA = Path(os.environ.get("DEEPLAB_TEST_DATA", ""))
needs_real_data = pytest.mark.skipif(REAL_DATA == Path(), reason="needs DEEPLAB_TEST_DATA")


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


@pytest.mark.parametrize("there", ["val", "Train"])
def test_list_that_is_missing_beside_others_is_named_with_them(folder, there):
    write_list(folder, there, ["photo 3"])
    message = rf"Segmentation/train\.txt: there is no such list, but {there}\.txt: name"
    with pytest.raises(UserError, match=message):
        CustomSegmentation(folder, "train")


def test_without_lists_train_and_val_share_nothing_and_miss_nothing(folder):
    train = CustomSegmentation(folder, "train", val_fraction=0.3).ids
    val = CustomSegmentation(folder, "val", val_fraction=0.3).ids
    assert train and val
    assert sorted(train + val) == CustomSegmentation(folder, "trainval").ids


def test_split_is_the_same_on_every_machine_and_meets_its_share():
    names = [f"{number:04d}" for number in range(1000)]
    val = split_ids(names, "val", 0.25, seed=3)
    # A quarter of all hashes begins with one of four of the sixteen hexadecimal digits.
    expected = [name for name in names if sha256(f"3/{name}".encode()).hexdigest()[0] in "0123"]
    assert val == expected and 200 < len(val) < 300
    assert val != split_ids(names, "val", 0.25, seed=4)


@pytest.mark.parametrize("val_fraction", [0.0, 0.01, 0.99, 1.0])
def test_split_that_leaves_a_side_empty_names_the_flag(folder, val_fraction):
    with pytest.raises(UserError, match=r"--val_fraction.*(0|10) of 10 masks.*--split_seed"):
        CustomSegmentation(folder, "train", val_fraction=val_fraction)


def test_ignore_line_of_labelme_is_not_a_class(folder):
    (folder / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n\n")
    assert CustomSegmentation(folder, "train").class_names == ("_background_", "cat", "dog")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("class_names", "one\ntwo\n  \nthree", "line 3 is blank"),
        ("class_names", "one\n# animals\ntwo\n", "line 2 is blank, a comment"),
        ("class_names", "a\nb\na\n", "line 3 is blank, a comment or a name of a line before"),
        ("class_names", "", "0 classes, but from 2 to 254"),
        ("class_names", "\n".join(f"c{number}" for number in range(255)), "255 classes"),
        ("labelmap", "cat\ndog:1,2,3::\n", r"line 1 is not name:R,G,B::"),
        ("labelmap", "# x\n\ncat:1,2,256::\n", "line 3 is not"),
        ("labelmap", "cat:1,2,-3::\n", "line 1 is not"),
        ("labelmap", ":1,2,3::\n", "line 1 is not"),
        ("labelmap", "cat:1,2,3::\ncat:1,2,4::\n", "line 2 is not .*no line before it has"),
        ("labelmap", "cat:1,2,3::\ndog:1,2,3::\n", "line 2 is not .*no line before it has"),
        ("labelmap", "cat:1,2,3::\nvoid:1,2,4::\n", "1 classes, but from 2 to 254"),
    ],
)
def test_bad_class_files_are_explained(folder, file, text, message):
    (folder / f"{file}.txt").write_text(text)
    with pytest.raises(UserError, match=rf"{file}\.txt: {message}"):
        CustomSegmentation(folder, "train")


def test_missing_class_names_and_folder_are_named(folder):
    (folder / "class_names.txt").unlink()
    with pytest.raises(UserError, match=r"class_names\.txt"):
        CustomSegmentation(folder, "train")
    with pytest.raises(UserError, match=r"nowhere.*--data_root"):
        CustomSegmentation(folder / "nowhere", "train")


def test_a_source_names_itself_on_a_command_line():
    parser = Parser()
    add_data_args(parser)
    own = DataSource("custom", "my data", no_download=True, split_seed=3, void_value=0)
    for source in (DataSource(), own):
        assert DataSource.of(parser.parse_args(source.flags())) == source


@needs_real_data
@pytest.mark.parametrize(
    ("name", "image_set", "size", "num_classes"),
    [("camvid", "train", 367, 11), ("camvid", "test", 233, 11), ("labelme_voc", "val", 1, 21)],
)
def test_real_data_sets_are_read_as_they_are(name, image_set, size, num_classes):
    dataset = CustomSegmentation(REAL_DATA / name, image_set, val_fraction=0.3)
    assert (len(dataset), dataset.num_classes) == (size, num_classes)
    for index in range(0, size, 50):
        image, target = dataset[index]
        assert image.shape[1:] == target.shape


@needs_real_data
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_camvids_masks_in_colours_are_its_masks(tmp_path, mode):
    dataset = CustomSegmentation(REAL_DATA / "camvid", "val")
    shown = np.full((256, 3), 9, np.uint8)
    shown[:11] = dataset.colours
    labels = [*zip(dataset.class_names, dataset.colours.tolist(), strict=True), ("void", [9] * 3)]
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in labels]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (tmp_path / "SegmentationClass").mkdir()
    for index, sample in enumerate(dataset.ids[:10]):
        image = Image.fromarray(shown[dataset.read_target(index)])
        image = image.quantize(256) if mode == "P" else image
        image.save(tmp_path / "SegmentationClass" / f"{sample}.png")
    coloured = CustomSegmentation(tmp_path, "trainval", masks_only=True)
    assert coloured.class_names == dataset.class_names and len(coloured) == 10
    assert np.array_equal(coloured.colours, dataset.colours)
    for index, sample in enumerate(coloured.ids):
        target = dataset.read_target(dataset.ids.index(sample))
        assert np.array_equal(coloured.read_target(index), target)


# Lists of other names, and masks that are not there.


def test_ids_of_other_lists_are_split_and_that_is_said(folder, capsys):
    listed = [f"photo {number}" for number in range(9)]
    write_list(folder, "default", [*listed, "without a mask"])
    sides = [CustomSegmentation(folder, s, val_fraction=0.3).ids for s in ("train", "val")]
    assert all(sides) and sorted(sum(sides, [])) == listed
    assert sides[1] == split_ids(listed, "val", 0.3, seed=0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "no train.txt or val.txt: the ids of default.txt are split" in said[0]
    assert said[1] == f"note: {folder}: 1 of 10 images are unused: no mask"


def test_images_without_a_mask_are_said(folder, capsys):
    for number in (1, 4, 8):
        (folder / "SegmentationClass" / f"photo {number}.png").unlink()
    for image_set in ("train", "val"):
        CustomSegmentation(folder, image_set, val_fraction=0.5)
    assert capsys.readouterr().err == f"note: {folder}: 3 of 10 images are unused: no mask\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("city/im000.png", "there is city \\(1 entries"),
        ("im000.tif", "there is im000.tif"),
        ("im000.npy", "there is im000.npy"),
        (".hidden.png", "it is empty"),
    ],
)
def test_folder_without_masks_says_what_is_there(tmp_path, name, message):
    (tmp_path / "SegmentationClass" / name).parent.mkdir(parents=True)
    (tmp_path / "SegmentationClass" / name).touch()
    with pytest.raises(UserError, match=rf"SegmentationClass: no masks, .*PNG.*, but {message}"):
        CustomSegmentation(tmp_path, "train")


# Values that stand for void or for the one object.


def read_row(folder, names, row, **options):
    """What a data set of one mask of one row reads; `names` are letters, or words."""
    save_mask(folder / "SegmentationClass" / "a.png", np.array([row]))
    (folder / "class_names.txt").write_text("\n".join(names))
    dataset = CustomSegmentation(folder, "trainval", masks_only=True, **options)
    assert dataset.class_names == tuple(names)
    return dataset.read_target(0)[0].tolist()


@pytest.mark.parametrize(("names", "void"), [("abc", 11), ("abc", 3), (["void", "b", "c"], 0)])
def test_void_value_counts_as_void_and_nothing_else_moves(tmp_path, names, void):
    row = read_row(tmp_path, names, [1, void, 2, 255], void_value=void)
    assert row == [1, 255, 2, 255]


def test_object_value_is_class_1(tmp_path):
    row = read_row(tmp_path, "ab", [0, 255, 128], object_value=255, void_value=128)
    assert row == [0, 1, 255]


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (
            "abc",
            {"void_value": 2},
            r"^--void_value 2: is the class 'c', line 3 of class_names\.txt",
        ),
        ("ab", {}, r"a\.png: 1 pixels are neither .* value 4: .*--void_value"),
        ("ab", {"object_value": 4}, r"a\.png: 1 pixels are neither .* value 1: "),
        ("ab", {"object_value": 1}, "^--object_value 1: "),
        ("ab", {"object_value": 9, "void_value": 9}, "^--object_value 9: .*void are taken"),
        ("abc", {"object_value": 255}, "^--object_value 255: .*there are 3"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path, names, values, message):
    with pytest.raises(UserError, match=message):
        read_row(tmp_path, names, [0, 1, 4], **values)


# CVAT's "Segmentation mask 1.1".

LABELMAP = """# label:color_rgb:parts:actions
cat:250,50,83::
background:0,0,0::
dog:51,221,255::
__ignore__:10,10,10::
"""


@pytest.fixture
def cvat(tmp_path):
    """An export as it is unpacked: twelve images in colours, all in one list."""
    colours = np.uint8([(0, 0, 0), (250, 50, 83), (51, 221, 255), (10, 10, 10)])
    ids = [f"frame_{number:06d}" for number in range(12)]
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (tmp_path / folder).mkdir()
    for number, sample in enumerate(ids):
        image = Image.fromarray(colours[np.full((2, 3), number % 4)])
        image.save(tmp_path / "SegmentationClass" / f"{sample}.png")
        image.save(tmp_path / "JPEGImages" / f"{sample}.jpg")
    write_list(tmp_path, "default", ids)
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    return tmp_path


def test_cvats_export_is_read_as_it_is_unpacked(cvat):
    train, val = (CustomSegmentation(cvat, s, val_fraction=0.4) for s in ("train", "val"))
    assert len(train) + len(val) == 12
    assert train.class_names == ("background", "cat", "dog")
    assert train.colours.tolist() == [[0, 0, 0], [250, 50, 83], [51, 221, 255]]
    for dataset in (train, val):
        for index, sample in enumerate(dataset.ids):
            expected = [0, 1, 2, 255][int(sample[-2:]) % 4]
            assert dataset[index][1].tolist() == [[expected] * 3] * 2


def test_labelmap_comes_before_class_names_which_is_said(cvat, capsys):
    (cvat / "class_names.txt").write_text("x\ny\n")
    assert CustomSegmentation(cvat, "trainval").num_classes == 3
    assert f"{cvat / 'class_names.txt'} is not read" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--void_value and --obj.*do nothing.*labelmap\.txt"):
        CustomSegmentation(cvat, "trainval", void_value=4)


def test_labelmap_may_have_spaces_and_no_end(tmp_path):
    (tmp_path / "labelmap.txt").write_text("a b : 1, 2 ,3\nVoid: 0,0,0 : x : y\nc:4,5,6:")
    names, colours, void = read_labelmap(tmp_path / "labelmap.txt")
    assert names == ["a b", "c"]
    assert colours.tolist() == [[1, 2, 3], [4, 5, 6]] and void.tolist() == [[0, 0, 0]]
