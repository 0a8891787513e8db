import numpy as np
import pytest

from datasets.base import SegmentationDataset
from datasets.colours import PALETTE, default_colours, has_background
from tests.conftest import save_mask

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip


def lab(colours):
    """CIE L*a*b* (white D65) of sRGB colours in [0, 255]: float (..., 3)."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def differences(colours):
    """CIE76 of each pair, which people can tell apart from about 2.3 on; far from 0 to itself."""
    places = lab(colours)
    return np.linalg.norm(places[:, None] - places, axis=2) + 1e6 * np.eye(len(places))


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
    assert differences(many[:40]).min() > 20  # VOC's: 6
    assert min(differences(many)[i, i + 1] for i in range(39)) > 40
    for reserved in ((0, 0, 0), (255, 255, 255), PALETTE[255]):
        assert np.linalg.norm(lab(many[:40]) - lab(reserved), axis=1).min() > 20


@pytest.mark.parametrize("names", [("background", "cat"), ("sky", "road")])
def test_data_sets_have_their_classes_colours(tmp_path, names):
    save_mask(tmp_path / "SegmentationClass" / "a.png", np.array([[0, 1]]))
    dataset = SegmentationDataset(tmp_path, ["a"], names, masks_only=True)
    assert np.array_equal(dataset.colours, default_colours(names))
