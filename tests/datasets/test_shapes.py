import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from datasets import shapes
from datasets.class_counts import class_statistics
from datasets.shapes import ShapesSegmentation, install_shapes
from utils.common.errors import UserError


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def small_set(monkeypatch):
    """`ShapesSegmentation` draws 4 images in place of 600."""
    monkeypatch.setattr(shapes, "NUM_TRAIN", 3)
    monkeypatch.setattr(shapes, "NUM_VAL", 1)


# What is drawn.


@pytest.mark.slow
def test_full_set_is_as_unequal_as_voc(tmp_path):
    sets = {name: ShapesSegmentation(tmp_path, name) for name in ("train", "val", "trainval")}
    assert [len(dataset) for dataset in sets.values()] == [480, 120, 600]
    assert sets["trainval"].ids == sets["train"].ids + sets["val"].ids
    assert len(set(sets["trainval"].ids)) == 600
    train, val = (class_statistics(sets[name]) for name in ("train", "val"))
    counts = train.pixel_counts.numpy()
    labelled, objects = counts.sum(), counts[1:]
    assert 0.71 <= counts[0] / labelled <= 0.75
    assert 0.045 <= train.void_pixels / (labelled + train.void_pixels) <= 0.055
    assert 8 <= objects.max() / objects.min() <= 12
    assert np.all(np.abs(100 * objects / labelled / shapes.SHARES - 1) < 0.25)
    assert train.image_counts[1:].min() >= 32 and val.image_counts[1:].min() >= 8


def test_masks_hold_classes_that_void_separates_in_images_of_mixed_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_TRAIN", 40)
    monkeypatch.setattr(shapes, "NUM_VAL", 1)
    dataset = ShapesSegmentation(tmp_path, "train")
    targets = [dataset.read_target(index).numpy() for index in range(len(dataset))]
    assert {value for target in targets for value in np.unique(target)} == {*range(21), 255}
    assert {target.shape for target in targets} == set(shapes.SIZES)
    for target in targets:
        for one, other in ((target[1:], target[:-1]), (target[:, 1:], target[:, :-1])):
            assert not np.any((one != other) & (one != 255) & (other != 255))


def test_a_class_is_a_texture_on_a_shape_and_no_colour_tells_it():
    pairs = [tuple(name.split("_")) for name in shapes.OBJECTS]
    textures = ("checkered", "dotted", "plain", "striped")
    assert len(pairs) == 20 and set(pairs) == {(t, s) for t in textures for s in shapes.OUTLINES}
    looks = [(name.split("_")[0], *colours) for name, (*colours, _) in shapes.OBJECTS.items()]
    assert len(set(looks)) == 20
    for colour in {colour for _, *colours in looks for colour in colours}:
        assert sum(colour in look for look in looks) >= 2


# How it is drawn.


@pytest.mark.parametrize("shape", shapes.OUTLINES)
def test_shape_has_the_area_of_the_unit_disc(shape):
    points = 200 + 100 * shapes.OUTLINES[shape]
    picture = Image.new("L", (400, 400))
    ImageDraw.Draw(picture).polygon(points.ravel().tolist(), fill=1)
    assert np.asarray(picture).sum() == pytest.approx(math.pi * 100**2, rel=0.015)
    # However it is turned, it lies in the tile that it is drawn in.
    assert np.hypot(*shapes.OUTLINES[shape].T).max() < 1.8 * np.exp(-0.06)


@pytest.mark.parametrize("name", ["plain_disc", "dotted_square", "checkered_star"])
def test_object_lies_where_its_mask_says(name):
    picture = Image.new("RGB", (140, 100), (128, 128, 128))
    rng = np.random.default_rng(0)
    inside = shapes.draw_object(picture, name, np.array([30.0, 90.0]), 20.0, rng)
    image = np.asarray(picture)
    rows, columns = np.nonzero(inside)
    assert len(rows) == pytest.approx(math.pi * 20**2, rel=0.05)
    assert rows.mean() + 0.5 == pytest.approx(30, abs=0.8)
    assert columns.mean() + 0.5 == pytest.approx(90, abs=0.8)
    assert np.any(image[inside] != 128, axis=1).mean() > 0.99
    far = np.hypot(*(np.mgrid[:100, :140] - np.array([30, 90])[:, None, None])) > 45
    assert np.all(image[far] == 128)


def test_void_is_every_pixel_beside_another_instance_and_no_other(monkeypatch):
    def draw(image, name, centre, radius, rng):  # two objects that touch
        inside = np.zeros((3, 5), bool)
        inside[1:, 1:3] = name == "plain_disc"
        inside[1:, 3:] = name == "plain_star"
        return inside

    monkeypatch.setattr(shapes, "draw_object", draw)
    objects = [(shapes.CLASS_NAMES.index(name), 1.0) for name in ("plain_disc", "plain_star")]
    _, target = shapes.draw_sample((3, 5), objects, np.random.default_rng(0))
    expected = [
        [0, 255, 255, 255, 255],
        [255, 255, 255, 255, 255],
        [255, 255, 255, 255, objects[1][0]],
    ]
    assert target.tolist() == expected


def test_plan_gives_every_image_one_to_four_objects_and_every_class_its_part():
    plan = shapes.plan_objects(400, np.random.default_rng(5))
    assert {len(classes) for classes in plan} == {1, 2, 3, 4}
    counts = np.bincount(np.concatenate(plan), minlength=21)
    assert counts[0] == 0
    roots = [math.sqrt(share) for *_, share in shapes.OBJECTS.values()]
    assert np.all(np.abs(counts[1:] - counts.sum() * np.array(roots) / sum(roots)) < 1)


# The files.


def test_files_are_the_same_bytes_every_time_and_numpys_state_is_left_alone(tmp_path, small_set):
    state = np.random.get_state()[1].copy()
    one, other = (read_files(install_shapes(tmp_path / name)) for name in ("one", "other"))
    assert len(one) == 4 + 4 + 3 + 1 and one == other
    images = [content for name, content in one.items() if name.endswith(".jpg")]
    assert len(set(images)) == 4
    assert np.array_equal(state, np.random.get_state()[1])


def test_files_are_those_of_a_voc_of_21_classes(tmp_path, small_set):
    dataset = ShapesSegmentation(tmp_path, "train")
    with Image.open(dataset.target_paths[0]) as mask:
        assert mask.mode == "P"
        palette = np.reshape(mask.getpalette(), (-1, 3))
    # The development kit's colours of aeroplane, bicycle, tvmonitor and void.
    assert palette[[1, 2, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [0, 64, 128]]
    assert palette[255].tolist() == [224, 224, 192]
    names = (dataset.folder / "class_names.txt").read_text().splitlines()
    assert tuple(names) == dataset.class_names
    assert dataset.class_names[0] == "background" and len(set(dataset.class_names)) == 21
    image, target = dataset[1]
    assert image.dtype == target.dtype == torch.uint8 and target.shape in shapes.SIZES
    assert ShapesSegmentation(tmp_path, "val", masks_only=True).image_paths == []


# Drawn once, complete, or not at all.


def test_first_construction_draws_and_says_so_and_the_second_only_reads(
    tmp_path, small_set, capsys
):
    ShapesSegmentation(tmp_path / "new" / "root")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and str(tmp_path / "new" / "root" / "shapes-v") in said[0]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ShapesSegmentation(tmp_path / "new" / "root", "val")
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_interrupted_drawing_leaves_nothing(tmp_path, small_set, monkeypatch):
    drawn = []

    def interrupt(size, objects, rng):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(objects)
        return real(size, objects, rng)

    real = shapes.draw_sample
    monkeypatch.setattr(shapes, "draw_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ShapesSegmentation(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".shapes.lock"]


def test_another_version_and_half_a_set_are_neither_read_nor_touched(
    tmp_path, small_set, monkeypatch
):
    (tmp_path / ".shapes-killed" / "set" / "JPEGImages").mkdir(parents=True)  # as after SIGKILL
    old = install_shapes(tmp_path)
    before = read_files(old)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    dataset = ShapesSegmentation(tmp_path)
    assert len(dataset) == 3 and dataset.folder != old and read_files(old) == before


def test_of_several_at_once_one_draws_and_the_others_wait(tmp_path, small_set, monkeypatch):
    drawn = []

    def draw_slowly(folder):
        drawn.append(folder)
        time.sleep(0.5)  # the others come meanwhile
        real(folder)

    real = shapes.draw_set
    monkeypatch.setattr(shapes, "draw_set", draw_slowly)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(install_shapes, [tmp_path] * 3))
    assert len(drawn) == 1 and set(folders) == {tmp_path / f"shapes-v{shapes.VERSION}"}
    assert len(ShapesSegmentation(tmp_path, "trainval")) == 4


# Bad input.


def test_root_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*: cannot be used .*a writable folder"):
        ShapesSegmentation(tmp_path / "file" / "data")
