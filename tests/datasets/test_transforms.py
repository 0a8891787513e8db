import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from datasets.base import IGNORE_INDEX
from datasets.transforms import (
    MEAN_COLOR,
    RandomScaleCrop,
    ShortSideCenterCrop,
    random_flip,
    resize,
    train_transform,
)


def paired_image(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A target of 8x8 blocks, and an image whose red is 10 times the target."""
    rows, columns = torch.arange(height)[:, None] // 8, torch.arange(width)[None] // 8
    target = ((rows * 3 + columns) % 20).to(torch.uint8)
    return torch.stack([target * 10, target, target]), target


@pytest.mark.parametrize("size", [(40, 200), (200, 40), (96, 96), (17, 23)])
def test_random_scale_crop_gives_its_size_and_keeps_types(size):
    torch.manual_seed(0)
    for _ in range(50):
        image, target = RandomScaleCrop((64, 48))(*paired_image(*size))
        assert image.shape == (3, 64, 48) and target.shape == (64, 48)
        assert image.dtype == target.dtype == torch.uint8


def test_random_crop_pads_image_with_mean_color_and_target_with_ignore_index():
    torch.manual_seed(0)
    image, target = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.ones(20, 30).byte()
    image, target = RandomScaleCrop((50, 50), scale=(1, 1))(image, target)
    inside = target == 1
    assert int(inside.sum()) == 20 * 30  # the whole image, once
    assert (target[~inside] == IGNORE_INDEX).all()
    assert (image[:, inside] == 0).all()
    assert (image[:, ~inside] == torch.tensor(MEAN_COLOR)[:, None]).all()


def test_image_and_target_stay_aligned():
    # Away from the blocks' edges, where bilinear mixes, red must still be 10 times the target.
    torch.manual_seed(1)
    transform = v2.Compose([RandomScaleCrop((64, 64)), random_flip])
    agree = []
    for _ in range(40):
        image, target = transform(*paired_image(100, 90))
        valid = target != IGNORE_INDEX
        difference = (image[0].int() - 10 * target.int()).abs()[valid]
        agree.append((difference <= 2).float().mean().item())
    assert np.mean(agree) > 0.7  # a shift of half a block would leave about one pixel in 20


@pytest.mark.parametrize("layout", ["channels first", "channels last", "a part"])
@pytest.mark.parametrize("size", [(37, 53), (64, 64), (91, 30), (150, 200)])
def test_resize_is_torchs_antialiased_bilinear_and_nearest_exact(layout, size):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    target = torch.randint(0, 256, (64, 64), dtype=torch.uint8)
    options = {"mode": "bilinear", "antialias": True}
    expected = torch.nn.functional.interpolate(image[None].double(), size, **options)[0]
    nearest = torch.nn.functional.interpolate(target[None, None], size, mode="nearest-exact")
    if layout == "channels last":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    elif layout == "a part":
        image = torch.nn.functional.pad(image, (3, 2, 4, 1))[:, 4:-1, 3:-2]
        target = torch.nn.functional.pad(target, (3, 2, 4, 1))[4:-1, 3:-2]
    image, target = resize(image, target, size)
    assert (image - expected).abs().max() <= 1.5  # each of two passes rounds to bytes
    assert torch.equal(target, nearest[0, 0])
    assert image[None].is_contiguous(memory_format=torch.channels_last)


def test_scale_one_is_a_plain_crop():
    torch.manual_seed(0)
    image, target = paired_image(60, 70)
    marked = image.clone()
    marked[1], marked[2] = torch.arange(60)[:, None].byte(), torch.arange(70)[None].byte()
    crop, crop_target = RandomScaleCrop((32, 40), scale=(1, 1))(marked, target)
    top, left = int(crop[1, 0, 0]), int(crop[2, 0, 0])
    assert torch.equal(crop, marked[:, top : top + 32, left : left + 40])
    assert torch.equal(crop_target, target[top : top + 32, left : left + 40])


def test_scales_cover_the_range():
    # A crop that shows the whole width reveals the scale: its valid width over the image's.
    torch.manual_seed(0)
    image, target = torch.zeros(3, 10, 20).byte(), torch.zeros(10, 20).byte()
    widths = []
    for _ in range(300):
        _, crop = RandomScaleCrop((100, 100), scale=(0.5, 2.0))(image, target)
        widths.append(int((crop == 0).any(0).sum()) / 20)
    assert min(widths) == pytest.approx(0.5, abs=0.06)
    assert max(widths) == pytest.approx(2.0, abs=0.06)
    assert np.mean(widths) == pytest.approx(1.25, abs=0.08)


def test_crops_reach_every_place():
    torch.manual_seed(0)
    image = torch.zeros(3, 30, 30).byte()
    target = torch.arange(30).repeat(30, 1).byte()  # the column's number
    seen = {
        column
        for _ in range(200)
        for column in RandomScaleCrop((8, 8), scale=(1, 1))(image, target)[1].unique().tolist()
    }
    assert seen == set(range(30))


def test_flip_mirrors_both_or_none():
    torch.manual_seed(0)
    image, target = paired_image(16, 40)
    flips = 0
    for _ in range(200):
        new_image, new_target = random_flip(image, target)
        flipped = torch.equal(new_target, target.flip(1))
        flips += flipped
        assert torch.equal(new_image, image.flip(2) if flipped else image)
    assert 70 < flips < 130


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (33, 33)])
def test_crop_val_takes_the_centre_square_of_the_scaled_image(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    target = torch.zeros(size, dtype=torch.uint8)
    middle = [slice(side // 2 - 4, side // 2 + 4) for side in size]
    target[middle[0], middle[1]] = 5
    image, target = ShortSideCenterCrop(64)(image, target)
    assert image.shape == (3, 64, 64) and target.shape == (64, 64)
    rows, columns = (target == 5).nonzero(as_tuple=True)
    side = 8 * 64 / min(size)
    assert rows.float().mean() == pytest.approx(31.5, abs=1.1)
    assert columns.float().mean() == pytest.approx(31.5, abs=1.1)
    assert len(rows) == pytest.approx(side**2, rel=0.15)


def test_color_jitter_changes_the_image_alone_after_the_crop():
    image, target = paired_image(70, 60)
    torch.manual_seed(4)
    plain, plain_target = train_transform((48, 48))(image, target)
    expected = v2.ColorJitter(0.4, 0.4, 0.4)(plain)  # goes on with the same random numbers
    torch.manual_seed(4)
    jittered, jittered_target = train_transform((48, 48), color_jitter=0.4)(image, target)
    assert torch.equal(jittered, expected) and not torch.equal(jittered, plain)
    assert torch.equal(jittered_target, plain_target)
