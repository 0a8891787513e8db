import numpy as np
import pytest
import torch

from datasets.class_counts import balanced_weights, class_statistics
from datasets.custom import CustomSegmentation
from tests.conftest import save_mask
from utils.common.errors import UserError


def test_counts_and_balanced_weights_by_hand(tmp_path):
    targets = {"a": [[0, 0, 1]], "b": [[0, 255, 255]], "c": [[2, 1, 2]], "d": [[255, 255, 255]]}
    for name, target in targets.items():
        save_mask(tmp_path / "SegmentationClass" / f"{name}.png", np.array(target))
    (tmp_path / "class_names.txt").write_text("sky\nroad\ncar\nnowhere\n")
    dataset = CustomSegmentation(tmp_path, "trainval", masks_only=True)
    statistics = class_statistics(dataset)
    assert statistics.pixel_counts.tolist() == [3, 2, 2, 0]
    assert statistics.image_counts.tolist() == [2, 2, 1, 0]
    assert statistics.image_pixels.tolist() == [4, 6, 3, 0] and statistics.void_pixels == 5
    # Sky and road are in two images each, car in one: a has 1/2 + 1/2, b 1/2, c 1/2 + 1, d none.
    expected = torch.tensor([1.0, 0.5, 1.5, 0.0]).double() * 4 / 3
    assert torch.allclose(balanced_weights(dataset), expected)


def test_balanced_sampling_of_nothing_is_refused(tmp_path):
    save_mask(tmp_path / "SegmentationClass" / "a.png", np.full((2, 2), 255))
    (tmp_path / "class_names.txt").write_text("sky\nroad\n")
    dataset = CustomSegmentation(tmp_path, "trainval", masks_only=True)
    with pytest.raises(UserError, match="--balanced_sampling: no target"):
        balanced_weights(dataset)
