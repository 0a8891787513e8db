import numpy as np
import pytest

from datasets.base import SegmentationDataset
from datasets.colours import PALETTE, default_colours, has_background, lab
from tests.conftest import save_mask

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip


def differences(colours):
    """CIE76 of each pair, which people can tell apart from about 2.3 on; far from 0 to itself."""
    places = lab(colours)
    return np.linalg.norm(places[:, None] - places, axis=2) + 1e6 * np.eye(len(places))


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((10, 20, 10), (5.30, -5.23, 3.74)),  # on the straight part of the curve of L*
    ],
)
def test_lab_is_that_of_the_tables(colour, expected):
    assert lab(np.array(colour)) == pytest.approx(np.array(expected), abs=0.2)


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_classes_with_a_background_have_vocs_colours(name):
    names = [name, *(f"object {number}" for number in range(254))]
    assert has_background(names) and np.array_equal(default_colours(names), PALETTE[:255])


def test_classes_without_a_background_have_colours_that_are_unlike():
    assert not has_background(CAMVID)
    colours = default_colours(CAMVID)
    assert colours.dtype == np.uint8 and colours.shape == (11, 3)
    assert differences(colours).min() > 40  # VOC's: 12 (building's and car's maroons)
    many = default_colours([f"class {number}" for number in range(255)])
    assert np.array_equal(many[:11], colours) and len(np.unique(many, axis=0)) == 255
    assert differences(many[:20]).min() > 30  # VOC's: 9
    neighbours = [differences(many)[i, i + 1] for i in range(39)]
    assert min(neighbours) > 40 and differences(many).min() > 5
    for reserved in ((0, 0, 0), (255, 255, 255), PALETTE[255]):
        assert np.linalg.norm(lab(many[:40]) - lab(np.array(reserved)), axis=1).min() > 20


@pytest.mark.parametrize("names", [("background", "cat"), ("sky", "road")])
def test_data_sets_have_their_classes_colours(tmp_path, names):
    save_mask(tmp_path / "SegmentationClass" / "a.png", np.array([[0, 1]]))
    dataset = SegmentationDataset(tmp_path, ["a"], names, masks_only=True)
    assert np.array_equal(dataset.colours, default_colours(names))
