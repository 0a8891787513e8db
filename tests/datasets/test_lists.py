import unicodedata

import pytest
from PIL import Image

from datasets.base import SegmentationDataset
from datasets.custom import CustomSegmentation
from datasets.lists import find_files, list_files, read_ids
from tests.conftest import save_sample, write_list
from utils.common.errors import UserError

NAMES = ("background", "cat", "dog")


@pytest.fixture
def folder(tmp_path):
    """Three samples without lists."""
    for name in ("x", "y", "z"):
        save_sample(tmp_path, name, (20, 30), num_classes=3)
    (tmp_path / "class_names.txt").write_text("\n".join(NAMES))
    return tmp_path


def test_masks_count_in_any_case_with_and_without_lists(folder):
    masks = folder / "SegmentationClass"
    (masks / "y.png").rename(masks / "y.PNG")
    dataset = CustomSegmentation(folder, "trainval")
    assert dataset.ids == ["x", "y", "z"] and dataset[1][1].shape == (20, 30)
    write_list(folder, "train", ["y"])
    assert CustomSegmentation(folder, "train").target_paths == [masks / "y.PNG"]


def test_hidden_files_are_no_samples(folder):
    for part in ("SegmentationClass/._x.png", "SegmentationClass/.y.png", "JPEGImages/._x.jpg"):
        (folder / part).write_bytes(b"what a Mac leaves on a foreign disk")
    dataset = CustomSegmentation(folder, "trainval")
    assert dataset.ids == ["x", "y", "z"]
    assert dataset.image_paths[0] == folder / "JPEGImages" / "x.jpg"


def test_only_pictures_are_images(folder):
    images = folder / "JPEGImages"
    (images / "x.jpg").rename(images / "x.PNG")  # what Pillow reads by its content
    for name in ("x.HEIC", "x.json", "x.txt"):
        (images / name).write_text("{}")
    (images / "x").mkdir()
    (images / "x.bmp").mkdir()
    (images / "x.gif").symlink_to(images / "nowhere.gif")
    assert list_files(images, "image")["x"] == [images / "x.PNG"]
    assert CustomSegmentation(folder, "trainval")[0][0].shape == (3, 20, 30)


def test_one_of_several_images_is_taken_and_that_is_said_once(folder, capsys):
    images = folder / "JPEGImages"
    Image.new("RGB", (30, 20)).save(images / "x.png")
    for _ in range(2):
        assert SegmentationDataset(folder, ["x", "y"], NAMES).image_paths[0] == images / "x.jpg"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{images}: 1 ids" in said[0] and "x.jpg, and not x.png" in said[0]


@pytest.mark.parametrize("in_list", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_spellings_of_one_name_are_one_name(tmp_path, in_list, on_disk):
    save_sample(tmp_path, unicodedata.normalize(on_disk, "Käfer é"), (20, 30), num_classes=3)
    write_list(tmp_path, "train", [unicodedata.normalize(in_list, "Käfer é")])
    ids = read_ids(tmp_path / "ImageSets" / "Segmentation" / "train.txt")
    dataset = SegmentationDataset(tmp_path, ids, NAMES)
    assert dataset[0][0].shape == (3, 20, 30)
    composed = SegmentationDataset(tmp_path, [unicodedata.normalize("NFC", "Käfer é")], NAMES)
    assert dataset.ids == composed.ids and dataset.ids_hash == composed.ids_hash


def test_ids_hash_tells_sets_apart_in_any_order(folder):
    sets = [["x", "y"], ["y", "x"], ["x", "z"], ["x"], ["x", "y", "z"]]
    hashes = [SegmentationDataset(folder, ids, NAMES).ids_hash for ids in sets]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4
    # printf 'x\ny' | sha256sum
    assert hashes[0] == "9ab9de25768a"


def test_doubles_of_a_list_are_said_and_count_once(folder, capsys):
    dataset = SegmentationDataset(folder, ["x", *["y"] * 12, "x", "z"], NAMES)
    assert dataset.ids == ["x", "y", "z"] and len(dataset.image_paths) == 3
    assert capsys.readouterr().err == f"note: {folder}: ids are listed again: 3 of 15 are taken\n"


@pytest.mark.parametrize(
    ("kind", "listed", "file", "message"),
    [
        (
            "image",
            "x.jpg",
            None,
            r"x\.jpg.jpg: the image of an id is missing: .*'x' has a file, ta",
        ),
        ("image", "x -1", None, "'x' has a file, take off what follows it"),
        ("mask", "x\t1", None, "the mask of an id is missing: .*'x' has a file"),
        ("image", "new", "new.npy", r"there is new\.npy, but .*images such as Pillow reads"),
        ("image", "new", "city/new.jpg", r"there is city/new\.jpg, but .* in the folder itself"),
        ("mask", "new", "new.tif", r"there is new\.tif, but masks must be PNG files"),
        ("image", "new", None, r"missing: add it, or take the id out of the list"),
    ],
)
def test_missing_file_is_named_with_what_is_there_instead(folder, kind, listed, file, message):
    inside = folder / SegmentationDataset.folders[kind]
    if file:
        (inside / file).parent.mkdir(exist_ok=True)
        (inside / file).touch()
    with pytest.raises(UserError, match=message):
        find_files(inside, ["y", listed], kind, list_files(inside, kind))


def test_split_without_masks_has_images_alone(folder):
    masks = folder / "SegmentationClass"
    for name in ("x.png", "y.png", "z.png"):
        (masks / name).rename(folder / name)
    with pytest.raises(UserError, match="the mask of an id is missing"):
        SegmentationDataset(folder, ["x", "y"], NAMES)
    dataset = SegmentationDataset(folder, ["x", "y"], NAMES, masks_optional=True)
    assert dataset.target_paths == [] and len(dataset.image_paths) == 2
    (folder / "y.png").rename(masks / "y.png")
    with pytest.raises(UserError, match=r"x\.png: the mask of an id is missing"):  # of one alone
        SegmentationDataset(folder, ["x", "y"], NAMES, masks_optional=True)
    masks.rename(folder / "elsewhere")
    assert SegmentationDataset(folder, ["x"], NAMES, masks_optional=True).target_paths == []
