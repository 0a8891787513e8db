import numpy as np
import pytest
import torchvision
from PIL import Image

from datasets import DataSource, build_dataset
from datasets.cityscapes import Cityscapes
from utils.common.errors import UserError

IDS = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "bremen_000000_000019"],
    "val": ["lindau_000000_000019"],
}


@pytest.fixture
def root(tmp_path):
    """A `--data_root` with four small images, and all that the archives hold for each."""
    rng = np.random.default_rng(0)
    for image_set, ids in IDS.items():
        for sample in ids:
            place = f"{image_set}/{sample.partition('_')[0]}/{sample}"
            stored = rng.permutation(np.arange(-1, 34)).astype(np.int8).view(np.uint8)
            files = {
                f"leftImg8bit/{place}_leftImg8bit": np.zeros((5, 7, 3), np.uint8),
                f"gtFine/{place}_gtFine_labelIds": stored.reshape(5, 7),
                f"gtFine/{place}_gtFine_instanceIds": np.zeros((5, 7), np.uint8),
                f"gtFine/{place}_gtFine_color": np.zeros((5, 7, 4), np.uint8),
            }
            for name, pixels in files.items():
                path = tmp_path / "cityscapes" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.mark.parametrize("image_set", IDS)
def test_classes_and_files_are_those_of_torchvision(root, image_set):
    dataset = build_dataset(DataSource("cityscapes", str(root)), image_set)
    other = torchvision.datasets.Cityscapes(
        str(root / "cityscapes"), image_set, target_type="semantic"
    )
    train_ids = {kind.id % 256: kind.train_id % 256 for kind in other.classes}  # -1 is void
    stored = {path: np.array(target) for path, (_, target) in zip(other.images, other, strict=True)}
    assert dataset.ids == IDS[image_set] and len(other) == len(dataset)
    for index, path in enumerate(dataset.image_paths):
        expected = np.vectorize(train_ids.get)(stored[str(path)])
        assert np.array_equal(dataset[index][1].numpy(), expected)
    kinds = sorted((kind.train_id, kind.name, kind.color) for kind in other.classes)
    kinds = [kind for kind in kinds if 0 <= kind[0] < 255]
    assert dataset.class_names == tuple(name for _, name, _ in kinds)
    assert dataset.colours.tolist() == [list(colour) for *_, colour in kinds]


def test_masks_alone_need_no_images(root):
    (root / "cityscapes" / "leftImg8bit").rename(root / "elsewhere")
    assert len(Cityscapes(root / "cityscapes", "val", masks_only=True)) == 1
    message = r"leftImg8bit/val: not there: unpack leftImg8bit_trainvaltest\.zip .*/cityscapes,"
    with pytest.raises(UserError, match=message):
        Cityscapes(root, "val")


def test_missing_masks_say_what_to_unpack_where(tmp_path):
    with pytest.raises(UserError, match=r"gtFine/train: not there: unpack gtFine_trainvaltest"):
        Cityscapes(tmp_path)
