import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import IGNORE_INDEX
from datasets.voc import CLASS_NAMES, PALETTE, VOCSegmentation, decode_target
from tests.conftest import save_mask, write_list
from utils.common.errors import UserError


def test_names_and_palette_are_vocs():
    # From the table of the VOC development kit.
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (64, 0, 0), (192, 128, 128)]
    assert PALETTE[[0, 1, 2, 3, 8, 15]].tolist() == [list(colour) for colour in expected]
    assert PALETTE[[20, 255]].tolist() == [[0, 64, 128], [224, 224, 192]]
    assert len({tuple(color) for color in PALETTE}) == 256
    assert len(CLASS_NAMES) == 21 and CLASS_NAMES[0] == "background"
    assert CLASS_NAMES[1:] == tuple(sorted(CLASS_NAMES[1:]))
    assert CLASS_NAMES[11::4] == ("diningtable", "person", "train")


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_decode_target_draws_void_in_cream(make):
    target = make([[0, 1], [15, IGNORE_INDEX]])
    rgb = decode_target(target)
    assert rgb.dtype == np.uint8
    assert rgb.tolist() == [[[0, 0, 0], [128, 0, 0]], [[192, 128, 128], [224, 224, 192]]]
    assert VOCSegmentation.decode_target(target).tolist() == rgb.tolist()


def test_samples_are_what_the_files_hold(voc_root):
    dataset = VOCSegmentation(voc_root, "val")
    assert dataset.ids == [f"2008_{number:06d}" for number in range(5)]
    assert dataset.image_sizes() == [(48, 64), (64, 48), (48, 64), (50, 50), (48, 64)]
    for index, name in enumerate(dataset.ids):
        image, target = dataset[index]
        folder = voc_root / "VOCdevkit" / "VOC2012"
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as file:
            expected = np.asarray(file.convert("RGB"))
        assert image.dtype == target.dtype == torch.uint8
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as file:
            assert np.array_equal(target.numpy(), np.asarray(file))


def test_names_of_other_classes_are_not_read_which_is_said(voc_root, capsys):
    path = voc_root / "VOCdevkit" / "VOC2012" / "class_names.txt"
    path.write_text("sky\nroad\n")
    assert VOCSegmentation(voc_root, "train").num_classes == 21
    said = capsys.readouterr().err
    assert said.startswith(f"note: {path}: not read") and "--dataset custom" in said


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_may_be_any_folder_of_the_tree(voc_root, inside):
    assert len(VOCSegmentation(voc_root / inside, "train")) == 6


def test_trainaug_is_every_augmented_mask_that_is_not_in_val(voc_root):
    folder = voc_root / "VOCdevkit" / "VOC2012"
    for path in (folder / "SegmentationClass").glob("*.png"):
        save_mask(folder / "SegmentationClassAug" / path.name, np.full((48, 64), 7))
    dataset = VOCSegmentation(voc_root, "trainaug", masks_only=True)
    assert dataset.ids == [f"2007_{number:06d}" for number in range(6)]
    assert dataset.read_target(0).unique().tolist() == [7]


def test_trainaug_without_its_folder_names_it(voc_root):
    with pytest.raises(UserError, match=r"SegmentationClassAug: cannot be read .*holds the masks"):
        VOCSegmentation(voc_root, "trainaug")


def test_missing_data_set_names_the_ways_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"--data_root.*--voc_archive.*--dataset shapes"):
        VOCSegmentation(tmp_path, "train")


@pytest.mark.parametrize("line", ["../../etc/passwd", "a\\b"])
def test_list_cannot_lead_out_of_the_folder(voc_root, line):
    write_list(voc_root / "VOCdevkit" / "VOC2012", "train", [line])
    with pytest.raises(UserError, match=r"train\.txt"):
        VOCSegmentation(voc_root, "train")
