"""What is written of a prediction reads back, and its legend can be read."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from datasets.voc import PALETTE
from tests.conftest import ROOT
from utils.common.errors import UserError
from utils.predict.overlay import classes_in, draw_legend, draw_overlay, find_font, save_pred


def test_saved_prediction_reads_back_as_indices_in_vocs_colours(tmp_path):
    pred = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save_pred(tmp_path / "a.png", pred)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.format == "PNG"
        assert np.array_equal(np.array(image), pred)
        assert np.array_equal(np.array(image.convert("RGB")), PALETTE[pred])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_overlay_is_half_image_half_colour_over_a_legend_of_the_classes_present():
    names = [f"name{index}" for index in range(21)]
    image = torch.full((3, 300, 400), 100, dtype=torch.uint8)  # more rows than one strip
    pred = np.zeros((300, 400), np.uint8)
    pred[280:, 200:] = 15
    overlay = np.asarray(draw_overlay(image, pred, names))
    assert classes_in(pred) == [0, 15]
    assert overlay.shape[1] == 400
    assert np.array_equal(overlay[:300], 50 + (PALETTE // 2)[pred])
    legend = overlay[300:].reshape(-1, 3).tolist()
    assert PALETTE[15].tolist() in legend and PALETTE[0].tolist() in legend
    assert PALETTE[14].tolist() not in legend


def test_overlay_takes_what_the_predictor_takes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    pred = np.zeros((9, 7), np.uint8)
    expected = pixels // 2  # background is black
    for image in (pixels, Image.fromarray(pixels), tmp_path / "photo.png"):
        overlay = np.asarray(draw_overlay(image, pred, ["background"]))
        assert np.array_equal(overlay[:9, :7], expected)


def test_legend_of_a_narrow_image_has_room_for_its_names():
    image = torch.zeros(3, 5, 2, dtype=torch.uint8)
    overlay = draw_overlay(image, np.ones((5, 2), np.uint8), ["", "a_rather_long_class_name"])
    assert overlay.width > 100 and overlay.height > 5 + 12
    assert overlay.getpixel((50, 2)) == (255, 255, 255)


def test_disk_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.png: cannot be written"):
        save_pred(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("name", ["небо", "δρόμος", "Straße", "đường"])
def test_letters_of_many_scripts_are_drawn_and_not_as_boxes(name):
    """A font draws one and the same box for each letter that it has not."""
    font = ImageFont.truetype(str(find_font()), 20)
    box = bytes(font.getmask("\ue123"))
    assert all(bytes(font.getmask(letter)) != box for letter in name)
    legend = np.asarray(draw_legend([(name, (255, 0, 0))], 200))
    other = np.asarray(draw_legend([("\ue123" * len(name), (255, 0, 0))], 200))
    assert legend.shape != other.shape or not np.array_equal(legend, other)


def test_overlays_do_not_wait_for_matplotlib():
    code = (
        "import sys, utils.predict.overlay as o; o.draw_legend([('a', (1, 2, 3))], 9); "
        "print('matplotlib' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.strip() == "False", ended.stderr
