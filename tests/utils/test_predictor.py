"""Test-time augmentation and windows, against plain passes through the model."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from network._deeplab import DeepLab
from network.modeling import build_model
from tests.utils.test_checkpoint import randomize
from utils.common.errors import UserError
from utils.predictor import Predictor, place_windows, upsampled_argmax, window_weights


@pytest.fixture(scope="module", params=["deeplabv3plus_mobilenet", "deeplabv3_mobilenet"])
def model(request):
    torch.manual_seed(0)
    return randomize(build_model(request.param, num_classes=5))


def draw_image(height, width, seed=0):
    """Smooth blobs of colour: uint8 (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    return (255 * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)).byte()


class LocalModel(DeepLab):
    """A DeepLab whose logits depend on the pixels nearby alone, at stride 4."""

    def __init__(self, num_classes=4, seed=0):
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1)
        )
        super().__init__(backbone, nn.Conv2d(8, num_classes, 1))


def logits_of(model, image):
    with torch.inference_mode():
        return model(image)


@pytest.mark.parametrize("size", [(65, 49), (1, 1), (7, 90)])
def test_one_view_is_a_plain_pass_through_the_model(model, size):
    image = draw_image(*size)
    pred = Predictor(model, "fp32")(image)
    assert pred.dtype == torch.uint8
    assert torch.equal(pred, logits_of(model, image).argmax(1).byte())
    assert torch.equal(pred, Predictor(model, "fp32", scales=[1.0])(image))


def test_flipped_image_gives_the_flipped_result(model):
    image = draw_image(65, 90)
    plain, flipping = Predictor(model, "fp32"), Predictor(model, "fp32", flip=True)
    assert torch.equal(flipping(image.flip(-1)), flipping(image).flip(-1))
    assert not torch.equal(plain(image.flip(-1)), plain(image).flip(-1))


def test_views_are_averaged_as_probabilities_at_the_images_size(model):
    image = draw_image(64, 80)
    total = 0
    for scale in (0.5, 1.25):
        scaled = F.interpolate(
            image.float(),
            (round(64 * scale), round(80 * scale)),
            mode="bilinear",
            antialias=True,
        )
        for axis in ((), (-1,)):
            with torch.inference_mode():
                logits = model(scaled.flip(axis)).flip(axis)
            logits = F.interpolate(logits, (64, 80), mode="bilinear", align_corners=False)
            total = total + logits.softmax(1)
    pred = Predictor(model, "fp32", scales=[0.5, 1.25], flip=True)(image)
    assert torch.equal(pred, total.argmax(1).byte())


def test_batch_gives_what_single_images_give(model):
    images = torch.cat([draw_image(64, 64, seed) for seed in range(5)])
    predictor = Predictor(model, "fp32", window=64, overlap=16)  # four images at a time, then one
    single = torch.cat([predictor(image[None]) for image in images])
    assert torch.equal(predictor(images), single)


def test_image_of_two_windows_area_is_still_predicted_whole(model, monkeypatch):
    predictor = Predictor(model, "fp32", window=64, overlap=16)
    monkeypatch.setattr(predictor, "predict_in_windows", lambda image: torch.zeros(1))
    assert predictor(draw_image(64, 128)).shape == (1, 64, 128)
    assert predictor(draw_image(64, 129)).shape == (1, 1)


@pytest.mark.parametrize("size", [(64, 64), (61, 50), (37, 1)])
def test_one_window_gives_the_whole_images_prediction(model, size):
    image = draw_image(*size)
    pred = Predictor(model, "fp32", window=64, overlap=16).predict_in_windows(image[0])
    assert (pred == logits_of(model, image).argmax(1)[0]).float().mean() > 0.999


@pytest.mark.parametrize("size", [(300, 400), (257, 385), (203, 641), (600, 90)])
def test_windows_agree_with_the_whole_image(size):
    model = LocalModel()
    image = draw_image(*size)
    pred = Predictor(model, "fp32", window=129, overlap=48).predict_in_windows(image[0])
    whole = logits_of(model, image).argmax(1)[0]
    assert len(whole.unique()) > 1
    assert (pred == whole).float().mean() > 0.99


def test_flipped_large_image_gives_the_flipped_result():
    predictor = Predictor(LocalModel(), "fp32", flip=True, window=128, overlap=64)
    image = draw_image(256, 320)
    same = predictor(image.flip(-1)) == predictor(image).flip(-1)
    assert image[0, 0].numel() > predictor.whole_pixels and same.float().mean() > 0.999


def test_resize_multiplies_all_scales(model):
    image = draw_image(64, 96)
    halved = Predictor(model, "fp32", resize=0.5)(image)
    assert halved.shape == (1, 64, 96)
    assert torch.equal(halved, Predictor(model, "fp32", scales=[0.5])(image))
    assert not torch.equal(halved, Predictor(model, "fp32")(image))
    both = Predictor(model, "fp32", scales=[1.0, 2.0], resize=0.5)(image)
    assert torch.equal(both, Predictor(model, "fp32", scales=[0.5, 1.0])(image))


def test_predictor_keeps_its_weights_while_training_goes_on(model):
    image, model = draw_image(33, 33), copy.deepcopy(model)
    predictor = Predictor(model.train(), "fp32")
    assert model.training
    before = predictor(image)
    with torch.no_grad():
        model.classifier.classifier[-1].weight.zero_()
    assert torch.equal(predictor(image), before)
    assert not torch.equal(Predictor(model, "fp32")(image), before)


class CallNumber(nn.Module):
    """Logits (k, 10.5 - k) everywhere in the k-th window: neighbours differ as much as can be."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()
        self.scale = nn.Parameter(torch.ones(1))
        self.normalize = torch.Tensor.float
        self.calls = -1  # the first call looks at the grid

    def classifier(self, image):
        self.calls += 1
        logits = torch.tensor([self.calls, 10.5 - self.calls]).view(1, 2, 1, 1)
        return logits.expand(1, 2, image.shape[2] // 4, image.shape[3] // 4)


def test_overlap_goes_over_from_one_window_to_the_next_in_a_ramp(monkeypatch):
    kept = []
    monkeypatch.setattr(
        "utils.predictor.upsampled_argmax", lambda scores, size: kept.append(scores) or size
    )
    predictor = Predictor(CallNumber(), "fp32", window=128, overlap=64)
    predictor.predict_in_windows(torch.zeros(3, 16, 192, dtype=torch.uint8))
    assert predictor.model.calls == 2
    row = kept[0][0, 0]  # 48 columns: 16 of window 1 alone, 16 shared, 16 of window 2 alone
    assert torch.allclose(row[:16], torch.tensor(1.0))
    assert torch.allclose(row[32:], torch.tensor(2.0))
    assert torch.allclose(row[16:32], 1 + (torch.arange(16) + 0.5) / 16)


lengths = st.integers(1, 3000)
windows = st.integers(2, 40).map(lambda steps: 16 * steps)


@given(lengths, windows, st.floats(0, 1))
def test_windows_cover_an_axis_and_overlap_enough(length, window, share):
    overlap = int(share * (window - 32))
    placed = place_windows(length, window, overlap)
    assert placed[0].start == 0 and placed[-1].stop == length
    assert all(part.start % 16 == 0 and 0 < part.stop - part.start <= window for part in placed)
    for one, other in zip(placed, placed[1:], strict=False):
        assert one.start < other.start and one.stop - other.start >= overlap
        assert one.stop - one.start == window
    fewest = max(math.ceil((length - overlap) / (window - overlap)), 1)
    # Rounding to the 16 pixels of the stride may take smaller steps than asked for.
    steps = (window - overlap) // 16 * 16
    assert fewest <= len(placed) <= max(math.ceil((length - window) / steps) + 2, 1)


@given(st.integers(1, 80), st.floats(0, 60))
def test_weights_are_positive_symmetric_and_without_jumps(length, overlap):
    weights = window_weights((length, 3), overlap)[:, 1]
    assert weights.min() > 0 and weights.max() <= 1
    assert torch.equal(weights, weights.flip(0))
    if length > 1:
        assert weights.diff().abs().max() <= 1 / max(overlap, 1) + 1e-6


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 90), st.integers(1, 90))
def test_upsampling_in_strips_is_interpolates(height, width, new_height, new_width):
    scores = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    size = (new_height, new_width)
    whole = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.predictor.STRIP_PIXELS", 7 * new_width)
        pred = upsampled_argmax(scores, size)
    assert pred.dtype == torch.uint8
    best = whole.gather(0, pred.long()[None])[0]
    assert torch.allclose(best, whole.amax(0), atol=1e-5)


def test_logits_of_the_grid_bound_the_memory_of_large_images(monkeypatch):
    """Nothing of the size (C, H, W) is ever made: 100 classes at 4 million pixels are 1.6 GB."""
    model = LocalModel(num_classes=100)
    largest = 0

    def spy(scores, size):
        nonlocal largest
        largest = max(largest, scores.numel())
        return torch.zeros(size)

    monkeypatch.setattr("utils.predictor.upsampled_argmax", spy)
    monkeypatch.setattr(model, "forward", None)
    Predictor(model, "fp32", window=512, overlap=32)(draw_image(2000, 2000))
    assert largest == 100 * 500 * 500


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"scales": [1.0, 0.0]}, "--scales"),
        ({"scales": [float("nan")]}, "--scales"),
        ({"window": 16}, "--window"),
        ({"window": 128, "overlap": 128}, "--overlap"),
        ({"overlap": -1}, "--overlap"),
    ],
)
def test_values_out_of_range_name_their_flag(options, flag):
    with pytest.raises(UserError, match=flag):
        Predictor(LocalModel(), "fp32", **options)
