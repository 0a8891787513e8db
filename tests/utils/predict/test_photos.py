"""The images that are named are found; what is written reads back."""

import time

import pytest

from utils.common.errors import UserError
from utils.predict.photos import AHEAD, THREADS, find_images, name_outputs, read_ahead


def test_folder_gives_its_images_whatever_the_case_of_the_suffix(tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "deeper.png").mkdir(parents=True)
    for name in ("b.JPG", "a.Png", "c.tiff", "._c.jpg", "notes.txt", "video.mpg", "drawing.eps"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "no_suffix").write_bytes(b"x")
    found = find_images([tmp_path / "no_suffix", folder, folder / "b.JPG"])
    assert [path.name for path in found] == ["no_suffix", "a.Png", "b.JPG", "c.tiff"]
    assert capsys.readouterr().err == ""  # what is no picture, or hidden, is not worth a line


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    for name in ("nowhere.jpg", "x" * 300, "a\0b", "*.gif"):
        with pytest.raises(UserError) as error:
            find_images([f"{tmp_path}/{name}"])
        assert str(error.value).startswith(f"{tmp_path}/{name}: no such file or folder: give the")
    with pytest.raises(UserError, match=rf"{tmp_path}: no image in this folder"):
        find_images([tmp_path])


def test_outputs_overwrite_neither_each_other_nor_an_input(tmp_path):
    other = tmp_path / "other"
    paths = [other / "x.jpg", tmp_path / "x.bmp", other / "X.gif", other / "x_overlay.png"]
    assert name_outputs(paths, tmp_path / "out") == ["x", "x_2", "X_3", "x_overlay_2"]
    paths = [tmp_path / "x.png", tmp_path / "y.jpg", tmp_path / "y_overlay.png"]
    assert name_outputs(paths, tmp_path) == ["x_2", "y_2", "y_overlay_2"]
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert name_outputs([tmp_path / "link" / "x.png"], tmp_path) == ["x_2"]


def test_pictures_that_are_not_read_are_counted_and_said(tmp_path, capsys):
    for name in ("a.png", "b.HEIC", "c.heic", "d.svg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert capsys.readouterr().err == f"{tmp_path}: leaves out 2 x .heic, 1 x .svg\n"


def test_results_in_the_output_folder_are_no_inputs(tmp_path, capsys):
    names = ["a.jpg", "a.png", "a_overlay.png", "b.png", "b_2.png", "b_2_overlay.png"]
    for name in [*names, "c_overlay.png"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, tmp_path / "link"):
        found = find_images([folder], tmp_path)
        assert [path.name for path in found] == ["a.jpg", "b.png", "c_overlay.png"]
        assert "leaves out 4 x result of an earlier run" in capsys.readouterr().err
    assert tmp_path / "a.png" in find_images([tmp_path / "a.png"], tmp_path)  # named by itself


def test_wildcards_that_no_shell_expanded_are(tmp_path):
    for name in ("b.jpg", "a.jpg", "c.png", "x[1].jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = find_images([tmp_path / "?.jpg", tmp_path / "x[1].jpg"])
    assert [path.name for path in found] == ["a.jpg", "b.jpg", "x[1].jpg"]


def test_sub_folders_that_hold_images_are_said(tmp_path, capsys):
    for name in ("a.png", "one/b.png", "two/deep/c.JPG", "notes/d.txt", "out/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_images([tmp_path], tmp_path / "out") == [tmp_path / "a.png"]
    assert capsys.readouterr().err == f"{tmp_path}: leaves out 2 x sub-folder with images\n"
    find_images([tmp_path], tmp_path / "elsewhere" / "out")
    assert capsys.readouterr().err == f"{tmp_path}: leaves out 3 x sub-folder with images\n"


def test_reading_ahead_is_in_order_and_bounded(monkeypatch):
    started = []
    monkeypatch.setattr("utils.predict.photos.read_image", lambda n: started.append(n) or -n)
    for item, future in read_ahead(range(20)):
        assert future.result() == -item
        time.sleep(0.001)
        assert max(started) <= item + AHEAD + THREADS
    assert sorted(started) == list(range(20))
