"""Masks are read as they are stored, by index or by colour."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.masks import UNKNOWN, ColourMasks, IndexMasks
from datasets.voc import PALETTE
from tests.datasets.test_image_files import chunk, png, save
from utils.common.errors import UserError


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_masks_of_few_bits_hold_the_stored_values(tmp_path, bit_depth, colour_type):
    values = [value % 2**bit_depth for value in (0, 1, 2, 3, 15, 7, 1)]
    colours = chunk(b"PLTE", bytes(range(3 * min(2**bit_depth, 16))))
    file = png(values, bit_depth, colour_type, *[colours] * (colour_type == 3))
    (tmp_path / "a.png").write_bytes(file)
    target = IndexMasks(16)(tmp_path / "a.png")
    assert target.tolist() == [values] and target.dtype == torch.uint8


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("RGB", "PNG"), ("I;16", "PNG")])
def test_what_is_no_mask_of_indices_is_refused(tmp_path, mode, kind):
    path = save(tmp_path / "a.png", Image.new(mode, (8, 8), 1), format=kind)
    message = rf"^{path}: the mask is stored as {mode} in a {kind} file.*PNG.*labelmap\.txt"
    with pytest.raises(UserError, match=message):
        IndexMasks(21)(path)


def save_with_palette(path, indices, palette):
    mask = Image.fromarray(np.uint8([indices]))
    mask.putpalette([int(value) for colour in palette for value in colour])
    return save(path, mask)


def test_vocs_colours_under_other_indices_are_refused(tmp_path):
    path = tmp_path / "a.png"
    quantized = [PALETTE[15], PALETTE[0], PALETTE[255], PALETTE[3]]  # as an editor sorts them
    save_with_palette(path, [0, 0, 1, 1, 2], quantized)
    with pytest.raises(UserError, match=rf"^{path}: .*that of 15 under 0.*VOC's palette"):
        IndexMasks(21)(path)
    save_with_palette(path, [0, 0, 0, 0], [PALETTE[15]])  # one class fills the mask
    with pytest.raises(UserError, match=r"that of 15 under 0"):
        IndexMasks(21)(path)


@pytest.mark.parametrize(
    ("indices", "palette"),
    [
        ([0, 1, 20, 255], PALETTE[:21]),  # nothing is stored for 255
        ([0, 1, 2, 255], [PALETTE[0], (255, 0, 0), PALETTE[1], *PALETTE[3:21]]),  # one is not
        ([0, 1, 1, 0], [(0, 0, 0), (64, 0, 128)]),  # VOC's colour 16, which is no class of three
        ([0, 1, 2, 0], [(0, 0, 0)] * 3),  # all black
        ([0, 1, 2, 255], [(i, i, i) for i in range(256)]),  # grey levels
        ([0, 0, 2, 2], [PALETTE[0], (9, 9, 9), PALETTE[2]]),  # an unused colour differs
    ],
)
def test_palettes_that_are_not_vocs_are_no_reason_to_refuse(tmp_path, indices, palette):
    path = save_with_palette(tmp_path / "a.png", indices, palette)
    num_classes = 21 if 20 in indices else 3
    assert IndexMasks(num_classes)(path).tolist() == [indices]


def test_indices_stand_for_what_is_said(tmp_path):
    masks = IndexMasks(3, {0: 255, 1: UNKNOWN, 11: 1}, "; mend it")
    path = tmp_path / "a.png"
    Image.fromarray(np.uint8([[0, 2, 11, 255]])).save(path)
    assert masks(path).tolist() == [[255, 2, 1, 255]]
    for wrong in (1, 3, 12, 254):
        Image.fromarray(np.uint8([[0, wrong, wrong]])).save(path)
        message = rf"2 pixels are neither .* value {wrong}: classes are 0 to 2, .* 255; mend it$"
        with pytest.raises(UserError, match=rf"^{path}: {message}"):
            masks(path)


# By colour.

COLOURS = np.uint8([(0, 0, 0), (250, 50, 83), (51, 221, 255), (224, 224, 192), (9, 9, 9)])
CLASSES = np.uint8([0, 1, 2, 255, 255])
CHOICE = np.random.default_rng(0).integers(0, 5, (13, 17))
MASKS = ColourMasks(COLOURS[:3], COLOURS[4:], Path("lists/labelmap.txt"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "adaptive"])
def test_colours_are_classes_whatever_the_indices(tmp_path, mode):
    image = Image.fromarray(COLOURS[CHOICE])
    image = image.quantize(5) if mode == "adaptive" else image.convert(mode)
    if mode == "P":  # indices that are no classes, and a palette that ends with the last one used
        image = Image.fromarray(np.uint8(CHOICE + 100))
        image.putpalette(bytes(300) + COLOURS.tobytes())
    target = MASKS(save(tmp_path / "a.png", image))
    assert target.dtype == torch.uint8 and np.array_equal(target.numpy(), CLASSES[CHOICE])


def test_grey_masks_have_colours_too(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.uint8([[0, 128, 255]])))
    grey = np.uint8([[255] * 3, [0] * 3, [128] * 3])
    assert ColourMasks(grey[:2], grey[2:], Path("x"))(path).tolist() == [[1, 255, 0]]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_without_a_name_is_one_line_with_its_pixels(tmp_path, mode):
    rgb = COLOURS[CHOICE]
    rgb[3, 4:9] = 1, 2, 3
    image = Image.fromarray(rgb)
    path = save(tmp_path / "a.png", image.quantize(8) if mode == "P" else image)
    message = rf"^{path}: 5 pixels are .* value 1,2,3: lists/labelmap.txt does not name this"
    with pytest.raises(UserError, match=message):
        MASKS(path)
