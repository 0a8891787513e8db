"""What is written of a prediction reads back, and overlays show what was predicted."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.colours import PALETTE, default_colours
from datasets.image_files import save_png
from utils.common.fonts import dejavu
from utils.predict.overlay import draw_overlay, find_borders, palette_image

STREETS = ("sky", "building", "pole", "road")
OBJECTS = ("background", "cat", "dog", "cow")


@pytest.mark.parametrize("names", [OBJECTS, STREETS])
def test_saved_prediction_reads_back_as_indices_in_the_classes_colours(tmp_path, names):
    pred, colours = np.arange(256, dtype=np.uint8).reshape(8, 32), default_colours(names)
    save_png(tmp_path / "a.png", palette_image(pred, colours))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.format == "PNG"
        assert np.array_equal(np.array(image), pred)
        shown = np.array(image.convert("RGB")).reshape(-1, 3)
    assert np.array_equal(shown[:4], colours) and np.array_equal(shown[4:], PALETTE[4:])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_overlay_is_half_image_half_colour_within_white_borders_and_background_is_untouched():
    image = torch.full((3, 300, 400), 101, dtype=torch.uint8)
    pred = np.zeros((300, 400), np.uint8)
    pred[240:290, 200:] = 1
    pred[250:270, 250:300] = 2
    colours = np.array([(9, 60, 9), (200, 100, 0), (0, 0, 255), (90, 1, 1)], np.uint8)
    expected = np.full((300, 400, 3), 101)
    expected[240:290, 200:] = (150, 100, 50)
    expected[240, 200:] = expected[289, 200:] = expected[240:290, 200] = 255
    expected[250:270, 250:300] = 255
    expected[251:269, 251:299] = (50, 50, 178)
    overlay = np.asarray(draw_overlay(image, pred, OBJECTS, colours))
    assert overlay.shape[1] == 400
    assert np.array_equal(overlay[:300], expected)
    legend = overlay[300:].reshape(-1, 3).tolist()
    assert [colour.tolist() in legend for colour in colours] == [False, True, True, False]


def test_without_a_background_all_is_painted():
    pred = np.array([[0, 0, 0, 1, 1]], np.uint8)
    colours = np.array([(100, 0, 0), (0, 100, 0), (0, 0, 100), (7, 7, 7)], np.uint8)
    overlay = np.asarray(draw_overlay(torch.zeros(3, 1, 5).byte(), pred, STREETS, colours))
    assert overlay[0, :5].tolist() == [[50, 0, 0]] * 3 + [[255] * 3, [0, 50, 0]]


def test_borders_are_thicker_in_larger_images():
    pred = np.zeros((9, 9), np.uint8)
    pred[2:, 2:] = 3
    expected = np.zeros((9, 9), bool)
    expected[2:, 2:] = True
    expected[4:, 4:] = False
    assert np.array_equal(find_borders(pred, 2), expected)
    assert find_borders(pred, 1).sum() == 13


def test_a_class_of_a_few_stray_pixels_is_not_in_the_legend():
    pred = np.zeros((100, 100), np.uint8)
    pred[0, :9], pred[50, :10] = 1, 2
    overlay = draw_overlay(torch.zeros(3, 100, 100).byte(), pred, OBJECTS, PALETTE[:4])
    colours = np.asarray(overlay)[100:].reshape(-1, 3).tolist()
    assert PALETTE[2].tolist() in colours and PALETTE[1].tolist() not in colours


def test_legend_of_a_narrow_image_has_room_for_its_names():
    names = ["a", "a_rather_long_class_name"]
    overlay = draw_overlay(
        torch.zeros(3, 5, 2).byte(), np.ones((5, 2), np.uint8), names, PALETTE[:2]
    )
    assert overlay.width > 100 and overlay.height > 5 + 12
    assert overlay.getpixel((50, 2)) == (255, 255, 255)


def test_overlays_do_not_wait_for_matplotlib(monkeypatch):
    dejavu()  # where the package lies is asked once
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw_overlay(torch.zeros(3, 2, 2).byte(), np.ones((2, 2), np.uint8), OBJECTS, PALETTE[:4])
