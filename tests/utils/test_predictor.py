"""Test-time augmentation and windows, against plain passes through the model."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from network._deeplab import DeepLab
from network.modeling import build_model
from tests.utils.test_checkpoint import randomize
from utils.checkpoint import describe_model
from utils.common.checkpoint_files import save_checkpoint
from utils.common.errors import UserError
from utils.predictor import Predictor
from utils.windows import place_windows, upsample_in_strips, window_weights

SLOW_TOO = pytest.param("deeplabv3_mobilenet", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["deeplabv3plus_mobilenet", SLOW_TOO])
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


@pytest.fixture(params=["fp32", "bf16"])
def precision(request):
    return request.param


def share(pred, expected):
    """Of the pixels that are equal; there must be several classes."""
    assert pred.dtype == torch.uint8 and pred.shape == expected.shape
    assert len(expected.unique()) > 1
    return float((pred == expected).float().mean())


# How much of a prediction is the reference's, which is computed in fp32 by the model itself.
LEAST = {"fp32": 1.0, "bf16": 0.97}


def logits_of(model, image):
    with torch.inference_mode():
        return model(image)


@pytest.mark.parametrize("size", [(65, 49), (7, 90), (128, 128)])
def test_one_view_is_a_plain_pass_through_the_model(model, size, precision):
    image = draw_image(*size)
    pred = Predictor(model, precision)(image)
    assert share(pred, logits_of(model, image).argmax(1).byte()) >= LEAST[precision]
    assert torch.equal(pred, Predictor(model, precision, scales=[1.0])(image))


def test_image_of_one_pixel_has_a_class(model, precision):
    assert Predictor(model, precision)(draw_image(1, 1)).shape == (1, 1, 1)


def mean_softmax(model, image, scales, flip):
    """Of each view, and at the image's size: (1, C, H, W)."""
    size, passes = image.shape[-2:], []
    for scale in scales:
        scaled = [round(length * scale) for length in size]
        view = F.interpolate(image.float(), scaled, mode="bilinear", antialias=True)
        for axis in ((), (-1,)) if flip else ((),):
            logits = logits_of(model, view.flip(axis)).flip(axis)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            passes.append(logits.softmax(1))
    return torch.stack(passes).mean(0)


def test_views_are_averaged_as_probabilities_at_the_images_size(model, precision):
    image, views = draw_image(64, 80), {"scales": [0.5, 1.25], "flip": True}
    expected = mean_softmax(model, image, **views).argmax(1).byte()
    assert share(Predictor(model, precision, **views)(image), expected) >= LEAST[precision]


def test_batch_gives_what_single_images_give(model, precision):
    images = torch.cat([draw_image(64, 64, seed) for seed in range(5)])
    predictor = Predictor(model, precision, window=64)  # four at a time, then one
    single = torch.cat([predictor(image[None]) for image in images])
    assert share(predictor(images), single) >= {"fp32": 1.0, "bf16": 0.99}[precision]


def test_image_of_two_windows_area_is_still_predicted_whole(model, monkeypatch):
    predictor = Predictor(model, "fp32", window=64)
    monkeypatch.setattr(predictor, "predict_in_windows", lambda image, decide: torch.zeros(1))
    assert predictor(draw_image(64, 128)).shape == (1, 64, 128)
    assert predictor(draw_image(64, 129)).shape == (1, 1)


@pytest.mark.parametrize("size", [(64, 64), (61, 50), (37, 5)])
def test_one_window_gives_the_whole_images_prediction(model, size, precision):
    image = draw_image(*size)
    pred = Predictor(model, precision, window=64).predict_in_windows(image[0])
    expected = logits_of(model, image).argmax(1)[0].byte()
    assert share(pred, expected) >= {"fp32": 0.999, "bf16": 0.95}[precision]


@pytest.mark.parametrize("size", [(300, 400), (257, 385), (203, 641), (1200, 90)])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": [0.5, 1.25]}, {"resize": 2.0}])
def test_windows_agree_with_the_whole_image(size, options, precision):
    model, image = LocalModel(), draw_image(*size)
    predictor = Predictor(model, precision, window=129, **options)
    whole = Predictor(model, "fp32", **options)(image)[0]
    assert share(predictor(image)[0], whole) > 0.98
    windows = place_windows(size, predictor.side, predictor.overlap)
    assert len(windows) > math.prod(size) / (2 * 129**2) > 1


def test_resize_multiplies_all_scales(model, precision):
    image = draw_image(64, 96)
    halved = Predictor(model, precision, resize=0.5)(image)
    assert halved.shape == (1, 64, 96)
    assert torch.equal(halved, Predictor(model, precision, scales=0.5)(image))
    assert not torch.equal(halved, Predictor(model, precision)(image))
    both = Predictor(model, precision, scales=[1.0, 2.0], resize=0.5)(image)
    assert torch.equal(both, Predictor(model, precision, scales=[0.5, 1.0])(image))


def test_predictor_keeps_its_weights_while_training_goes_on(model, precision):
    image, model = draw_image(33, 33), copy.deepcopy(model)
    predictor = Predictor(model.train(), precision)
    assert model.training
    before = predictor(image)
    with torch.no_grad():
        model.classifier.classifier[-1].weight.zero_()
    assert torch.equal(predictor(image), before)
    assert not torch.equal(Predictor(model, precision)(image), before)


def test_every_form_of_an_image_gives_the_same_classes(tmp_path):
    predictor, image = Predictor(LocalModel(), "fp32"), draw_image(33, 50)[0]
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # and EXIF says to turn it back
    turned.getexif()[0x0112] = 6
    expected = predictor(image[None])[0].numpy()
    assert expected.shape == (33, 50) and len(np.unique(expected)) > 1
    read_only = np.asarray(picture)
    assert not read_only.flags.writeable
    name = str(tmp_path / "a.png")
    for form in (name, tmp_path / "a.png", picture, turned, array, read_only, image):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pred = predictor.predict_image(form)
        assert isinstance(pred, np.ndarray) and pred.dtype == np.uint8
        assert np.array_equal(pred, expected)
    grey = predictor.predict_image(picture.convert("L"))
    assert np.array_equal(grey, predictor.predict_image(picture.convert("L").convert("RGB")))


def test_what_is_no_image_of_bytes_is_refused():
    predictor = Predictor(LocalModel(), "fp32")
    for shape in ((3, 8, 8), (8, 8), (8, 8, 4), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"must be \(H, W, 3\)"):
            predictor.predict_image(np.zeros(shape, np.uint8))
    with pytest.raises(TypeError, match="list: give a path"):
        predictor.predict_image([[0]])
    for dtype in (torch.float32, torch.int64, torch.bool):
        image = torch.zeros(3, 8, 8, dtype=dtype)
        for form in (image, image.permute(1, 2, 0).numpy()):
            with pytest.raises(TypeError, match="uint8"):
                predictor.predict_image(form)
        with pytest.raises(TypeError, match="uint8"):
            predictor(image[None])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An own one, on the disk, with colours of its own."""
    path = tmp_path_factory.mktemp("run") / "best.pth"
    model = build_model("deeplabv3plus_mobilenet", num_classes=3)
    args = {"model": "deeplabv3plus_mobilenet", "output_stride": 16}
    colours = np.array([[1, 2, 3], [40, 50, 60], [255, 0, 9]])
    save_checkpoint(path, describe_model(model, args, ["sky", "road", "car"], colours))
    return path


def test_from_checkpoint_brings_names_and_colours(checkpoint):
    predictor = Predictor.from_checkpoint(str(checkpoint), "cpu", "fp32")
    assert predictor.class_names == ["sky", "road", "car"]
    assert predictor.palette.dtype == np.uint8
    assert predictor.palette.tolist() == [[1, 2, 3], [40, 50, 60], [255, 0, 9]]
    assert predictor.predict_image(np.zeros((9, 7, 3), np.uint8)).shape == (9, 7)


lengths = st.integers(1, 3000)


def area(windows):
    return sum((y.stop - y.start) * (x.stop - x.start) for y, x in windows)


@given(lengths, lengths, st.integers(2, 50), st.floats(0, 1))
def test_windows_cover_an_image_and_overlap_enough(height, width, sixteens, fraction):
    side = 16 * sixteens
    overlap = int(fraction * (side - 16))
    placed = place_windows((height, width), side, overlap)
    rows, columns = (
        sorted({(p.start, p.stop) for p in axis}) for axis in zip(*placed, strict=True)
    )
    assert len(placed) == len(rows) * len(columns)
    for parts, length in ((rows, height), (columns, width)):
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all(stop - start <= side for start, stop in parts)
        for (start, stop), (next_start, next_stop) in zip(parts, parts[1:], strict=False):
            assert next_start % 16 == 0 and start < next_start and stop < next_stop
            assert stop - next_start >= overlap


@pytest.mark.parametrize("size", [(3000, 4000), (3024, 4032), (6000, 8000), (5304, 7952)])
def test_photos_are_computed_in_few_more_pixels_than_could_be(size):
    """Tried: every even cover by parts of the same area, their sides of any length."""
    side = Predictor(LocalModel(), "fp32").side
    fewest = math.inf
    for counts in itertools.product(range(1, 20), repeat=2):
        sums = [length + (n - 1) * 256 for length, n in zip(size, counts, strict=True)]
        if math.prod(sums) / math.prod(counts) <= 2 * 1025**2:
            fewest = min(fewest, math.prod(sums))
    assert fewest <= area(place_windows(size, side, 256)) < 1.1 * fewest


def test_weights_of_neighbours_sum_to_one_where_they_overlap():
    weights = window_weights((9, 9), overlap=4)[:, 4]
    assert weights.tolist() == [0.125, 0.375, 0.625, 0.875, 1, 0.875, 0.625, 0.375, 0.125]
    assert torch.allclose(weights[-4:] + weights[:4], torch.ones(4))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 90), st.integers(1, 90))
def test_upsampling_in_strips_is_interpolates(height, width, new_height, new_width):
    scores = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    size = (new_height, new_width)
    whole = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.windows.STRIP_PIXELS", 7 * new_width)
        strips = list(upsample_in_strips(scores, size))
    assert max(strip.shape[2] for strip in strips) <= 7
    assert torch.allclose(torch.cat(strips, 2), whole, atol=1e-5)


@pytest.mark.parametrize("confidence", [False, True])
def test_logits_of_the_grid_bound_the_memory_of_large_images(monkeypatch, confidence):
    """Nothing of the size (C, H, W) is ever made: 100 classes at 4 megapixels are 1.6 GB."""
    model = LocalModel(num_classes=100)
    kept = []

    def spy(scores, size):
        kept.append(scores.numel())
        strip = torch.zeros(1, 100, 10, size[1])
        return [strip] * (size[0] // 10)

    monkeypatch.setattr("utils.predictor.upsample_in_strips", spy)
    monkeypatch.setattr(model, "forward", None)
    predictor = Predictor(model, "fp32", window=256)
    predict = predictor.predict_with_confidence if confidence else predictor.predict_image
    predict(draw_image(800, 800)[0])
    assert kept == [100 * 200 * 200]


@pytest.mark.parametrize("scales, flip", [([1.0], False), ([0.5, 1.0], True)])
def test_confidence_is_the_softmax_of_the_class_averaged_over_the_views(scales, flip):
    model, image = LocalModel(), draw_image(160, 224)
    predictor = Predictor(model, "fp32", scales, flip)
    pred, confidence = predictor.predict_with_confidence(image[0])
    assert np.array_equal(pred, predictor.predict_image(image[0])) and len(np.unique(pred)) > 1
    expected = 255 * mean_softmax(model, image, scales, flip).amax(1)[0].numpy()
    assert confidence.dtype == np.uint8 and np.abs(confidence - expected).max() < 0.51


@pytest.mark.parametrize("views", [{}, {"scales": [0.5, 1.0], "flip": True}])
def test_confidence_in_windows_is_that_of_the_whole_image(views):
    image = draw_image(300, 400)[0]
    predictor = Predictor(LocalModel(), "fp32", window=129, **views)
    pred, confidence = predictor.predict_with_confidence(image)
    assert np.array_equal(pred, predictor.predict_image(image))
    _, whole = Predictor(LocalModel(), "fp32", **views).predict_with_confidence(image)
    difference = np.abs(confidence.astype(int) - whole)
    assert np.ptp(whole) > 20 and difference.mean() < 1 and np.quantile(difference, 0.99) <= 5


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"scales": [1.0, 0.0]}, "--scales"),
        ({"scales": [float("nan")]}, "--scales"),
        ({"window": 31}, "--window 31: must be at least 32"),
        ({"precision": "fp64"}, "--precision fp64: unknown: choose from auto, bf16"),
    ],
)
def test_values_out_of_range_name_their_flag(checkpoint, options, flag):
    with pytest.raises(UserError, match=flag):
        Predictor.from_checkpoint(checkpoint, "cpu", **{"precision": "fp32", **options})


def test_resizing_does_without_an_antialiased_kernel_of_the_device(monkeypatch):
    """MPS has none in torch 2.6: there it raises NotImplementedError."""
    expected = Predictor(LocalModel(), "fp32", resize=0.5)(draw_image(40, 60))
    interpolate, refused = F.interpolate, []

    def lacking(images, *args, antialias=False, **options):
        if antialias and not refused:
            refused.append(images)
            raise NotImplementedError("aten::_upsample_bilinear2d_aa.out")
        return interpolate(images, *args, antialias=antialias, **options)

    monkeypatch.setattr(F, "interpolate", lacking)
    assert torch.equal(Predictor(LocalModel(), "fp32", resize=0.5)(draw_image(40, 60)), expected)
    assert len(refused) == 1
