import itertools
import re

import pytest
import torch

from utils.sam.region_scores import RegionScores, format_comparison


def mask_of(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


# DeepLab is right but for the last column of the object; SAM's second mask is the object exactly.
TARGET = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 255], [0, 0, 0, 0, 0]])
PRED = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 2], [0, 0, 1, 1, 0], [0, 0, 0, 0, 2]])
WHOLE = mask_of("#####", "#####", "#####", ".....")
OBJECT = mask_of("..###", "..###", "..###", ".....")


def test_scores_of_a_hand_made_image():
    scores = RegionScores(3)
    scores.update(TARGET, [WHOLE, OBJECT], PRED)
    found = scores.compute(("a", "b", "c"))
    # DeepLab: 10 of the 11 pixels of a and one of b's, 6 of the 8 of b.
    assert found["deeplab"]["class_iou"] == {"a": 10 / 12, "b": 6 / 8, "c": 0.0}
    assert found["deeplab"]["miou"] == pytest.approx((10 / 12 + 6 / 8 + 0) / 3)
    # SAM + DeepLab: only the pixel that no mask covers is still wrong.
    assert found["sam_deeplab"]["class_iou"] == {"a": 10 / 11, "b": 1.0, "c": 0.0}
    # The oracle cannot mend it either. It takes WHOLE, most of which is b, for the a that is seen.
    assert found["oracle"] == found["sam_deeplab"]
    assert found["masks_per_image"] == 2
    assert found["masks_per_region"] == 2 / 2
    assert found["classes"] is None
    # A handful of images is scored over the classes of their ground truth.
    found = scores.compute(("a", "b", "c"), is_split=False)
    assert found["classes"] == 2  # c is in the prediction alone
    assert found["deeplab"]["miou"] == pytest.approx((10 / 12 + 6 / 8) / 2)
    assert found["sam_deeplab"]["miou"] == pytest.approx((10 / 11 + 1) / 2)
    table = format_comparison({**found, "seconds_per_image": 1.0})
    assert re.search(r"mIoU of 2 true classes, in percent +79\.17 +95\.45", table)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_of_classes_gets_more_pixels_right_than_the_oracle(seed):
    generator = torch.Generator().manual_seed(seed)
    target, pred = torch.randint(3, (2, 6, 7), generator=generator)
    masks = list(torch.rand(3, 6, 7, generator=generator) < 0.5)
    scores = RegionScores(3)
    scores.update(target, masks, pred)
    right = {key: int(one.confusion.diagonal().sum()) for key, one in scores.metrics.items()}
    others = []
    for choice in itertools.product(range(3), repeat=3):
        painted = pred.clone()
        for mask, index in zip(masks, choice, strict=True):
            painted[mask] = index
        others.append(int((painted == target).sum()))
    assert right["oracle", 0] == max(others)
    assert right["sam_deeplab", 0] in others


def test_border_scores_count_the_band_alone():
    target = torch.zeros(12, 40, dtype=torch.long)
    target[:, 20:] = 1
    pred = target.clone()
    pred[:, 0] = 1  # far from the border
    pred[:, 18:20] = 1  # two columns on the wrong side of it
    right = torch.zeros(12, 40, dtype=torch.bool)
    right[:, 20:] = True
    scores = RegionScores(2)
    scores.update(target, [~right, right], pred)
    found = scores.compute(("a", "b"))["borders"]
    assert list(found) == ["3", "5", "10"]
    for width in (3, 5, 10):
        expected = ((width - 2) / width + width / (width + 2)) / 2
        assert found[str(width)]["deeplab"] == pytest.approx(expected)
        assert found[str(width)]["sam_deeplab"] == 1.0


def test_masks_are_counted_per_region_of_the_target_over_all_images():
    scores = RegionScores(3)
    scores.update(torch.tensor([[0, 255, 0, 1]]), [torch.ones(1, 4, dtype=torch.bool)] * 4, None)
    scores.update(torch.tensor([[2, 2]]), [torch.ones(1, 2, dtype=torch.bool)] * 2, None)
    assert scores.compute("abc") == {"masks_per_image": 3.0, "masks_per_region": 6 / 4}
    scores = RegionScores(3)  # no region at all
    scores.update(torch.full((2, 2), 255), [], torch.zeros(2, 2, dtype=torch.long))
    assert scores.compute("abc") == {"masks_per_image": 0.0, "masks_per_region": None}
