import numpy as np
import pytest
import torch
from segment_anything.utils.amg import mask_to_rle_pytorch, rle_to_mask

from datasets.colours import distinct_colours
from utils.common.errors import UserError
from utils.sam.mask_files import Masks, draw_masks, is_done, load_masks, save_masks

LARGE = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0
SMALL = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0


def masks_of(masks: list[torch.Tensor], size=(4, 5), **settings) -> Masks:
    """Masks as they would come from SAM, in the order given."""
    count = len(masks)
    stack = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    return Masks(
        size=size,
        counts=[np.array(rle["counts"], np.int32) for rle in mask_to_rle_pytorch(stack)],
        boxes=np.arange(4 * count, dtype=np.int32).reshape(count, 4),
        predicted_iou=np.linspace(0.5, 1, count, dtype=np.float32),
        stability=np.linspace(0.6, 0.9, count, dtype=np.float32),
        points=np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        prompt_boxes=np.full((count, 4), np.nan, np.float32),
        classes=np.full(count, -1),
        settings=settings,
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_masks_come_back_from_their_file(tmp_path, count):
    generator = torch.Generator().manual_seed(count)
    tensors = list(torch.rand(count, 4, 5, generator=generator) < 0.5)
    masks = masks_of(tensors, note=[1, "a"])
    save_masks(tmp_path / "a.npz", masks)
    found = load_masks(tmp_path / "a.npz")
    assert found.size == (4, 5)
    assert found.settings == {"note": [1, "a"]}
    assert len(found) == count
    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))
    for name in ("boxes", "predicted_iou", "stability", "points", "prompt_boxes", "classes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(masks, name))
        assert getattr(found, name).dtype == getattr(masks, name).dtype


def test_run_lengths_in_the_file_are_the_packages_own(tmp_path):
    save_masks(tmp_path / "a.npz", masks_of([LARGE, SMALL]))
    with np.load(tmp_path / "a.npz") as file:
        start, stop = file["offsets"][1:3]
        rle = {"size": file["size"].tolist(), "counts": file["counts"][start:stop].tolist()}
    np.testing.assert_array_equal(rle_to_mask(rle), SMALL.numpy())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: path.write_text("masks"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, a=np.zeros(3)),
        lambda path: path.unlink(),
    ],
)
def test_broken_mask_file_is_named(tmp_path, spoil):
    path = tmp_path / "a.npz"
    save_masks(path, masks_of([LARGE, SMALL]))
    spoil(path)
    with pytest.raises(UserError, match=r"a\.npz: .*sam_infer\.py"):
        load_masks(path)


def test_what_older_masks_do_not_know_is_no_difference(tmp_path):
    path, made_with = tmp_path / "a.npz", {"points_per_side": 32, "given_up": 1}
    save_masks(path, masks_of([SMALL], made_with=made_with))
    assert not is_done(path, {"points_per_side": 32})  # there is no picture
    path.with_suffix(".png").touch()
    assert is_done(path, {"points_per_side": 32, "added": 2})
    with pytest.raises(UserError, match=r"a\.npz: .* another points_per_side: --overwrite"):
        is_done(path, {"points_per_side": 16})


def test_picture_has_colours_inside_borders_between_and_the_image_outside():
    image = torch.full((3, 20, 40), 100, dtype=torch.uint8)
    left, right = torch.zeros(2, 20, 40, dtype=torch.bool)
    left[:, :15], right[:, 15:30] = True, True
    picture = draw_masks(image, masks_of([left, right], size=(20, 40)))
    assert picture.size == (40, 20)
    pixels = np.asarray(picture).astype(float)
    first, second = (0.4 * 100 + 0.6 * distinct_colours()[:2]).round().tolist()
    assert pixels[10, 5].tolist() == first != second == pixels[10, 22].tolist()
    assert pixels[10, 14].tolist() == pixels[10, 15].tolist() == [255, 255, 255]
    assert pixels[10, 35].tolist() == [100, 100, 100]
    np.testing.assert_array_equal(draw_masks(image, masks_of([], (20, 40))), image.permute(1, 2, 0))
