"""The images that are named are found; what is written reads back."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.voc import PALETTE
from utils.common.errors import UserError
from utils.predict.overlay import classes_in, draw_overlay, save_pred
from utils.predict.photos import find_images, name_outputs


def test_folder_gives_its_images_whatever_the_case_of_the_suffix(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper.png").mkdir(parents=True)
    for name in ("b.JPG", "a.Png", "c.tiff", "._c.jpg", "notes.txt", "video.mpg", "drawing.eps"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "no_suffix").write_bytes(b"x")
    found = find_images([tmp_path / "no_suffix", folder, folder / "b.JPG"])
    assert [path.name for path in found] == ["no_suffix", "a.Png", "b.JPG", "c.tiff"]


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file or folder"):
        find_images([tmp_path / "nowhere.jpg"])
    with pytest.raises(UserError, match=rf"{tmp_path}: no image in this folder"):
        find_images([tmp_path])


def test_outputs_overwrite_neither_each_other_nor_an_input(tmp_path):
    other = tmp_path / "other"
    paths = [other / "x.jpg", tmp_path / "x.bmp", other / "X.gif", other / "x_overlay.png"]
    assert name_outputs(paths, tmp_path / "out") == ["x", "x_2", "X_3", "x_overlay_2"]
    paths = [tmp_path / "x.png", tmp_path / "y.jpg", tmp_path / "y_overlay.png"]
    assert name_outputs(paths, tmp_path) == ["x_2", "y_2", "y_overlay_2"]


def test_input_behind_a_link_is_not_overwritten(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert name_outputs([tmp_path / "link" / "x.png"], tmp_path) == ["x_2"]


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


def test_legend_of_a_narrow_image_has_room_for_its_names():
    image = torch.zeros(3, 5, 2, dtype=torch.uint8)
    overlay = draw_overlay(image, np.ones((5, 2), np.uint8), ["", "a_rather_long_class_name"])
    assert overlay.width > 100 and overlay.height > 5 + 12
    assert overlay.getpixel((50, 2)) == (255, 255, 255)


def test_disk_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.png: cannot be written"):
        save_pred(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))
