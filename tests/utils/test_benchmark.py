import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from network.modeling import build_model
from utils.benchmark import __main__ as benchmark
from utils.benchmark import ways
from utils.benchmark.__main__ import count_flops, main, measure, peak_flops, profile
from utils.benchmark.ways import VOC_SIZES, draw_batch, draw_images, read_as_ancestor
from utils.common.imagenet import MEAN, STD

CPU = torch.device("cpu")
SMALL = ("--model", "deeplabv3plus_mobilenet", "--crop_size", 65, "--repeats", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    with patch.object(ways, "VOC_SIZES", [(96, 128), (80, 96)]):
        return draw_images(tmp_path_factory.mktemp("inputs") / "images", 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenet")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it drops depends on the layout
    return model


def test_both_workloads_are_measured_in_every_precision(run, monkeypatch):
    monkeypatch.setattr(ways, "VOC_SIZES", [(96, 128)])
    monkeypatch.setitem(benchmark.AMOUNTS["cpu"], "images", 2)
    monkeypatch.setattr(benchmark, "peak_flops", lambda precision, device: 1e15)
    first, *tables = run(main, *SMALL, "--precision", "bf16", "fp32").stdout.split("\n\n")
    assert first.startswith("deeplabv3plus_mobilenet on ") and torch.__version__ in first
    titles = ["training step: copy, forward, backward, SGD; without loader, log and average"]
    titles += ["evaluation of whole images, from files to confusion matrix"]
    for title, table in zip(titles, tables, strict=True):
        head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        assert head == [title, "ancestor", "here", "ratio", "of the limit"]
        assert [row[0] for row in rows] == ["bf16", "fp32"]
        for _, base, here, ratio, _ in rows:
            base, here = (float(time.removesuffix(" ms")) for time in (base, here))
            assert base / here == pytest.approx(float(ratio), rel=0.1)


def test_share_of_the_limit_by_hand(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "peak_flops", lambda precision, device: 100.0)
    monkeypatch.setattr(benchmark, "measure", lambda works, repeats, device: [6.0, 2.0])
    args = benchmark.parse_args(["--device", "cpu", "--precision", "fp32"])
    benchmark.compare("title", [print, print], 4, 50.0, args)
    row = "| fp32 | 1500.0 ms | 500.0 ms | 3.00 | 25% |"
    assert row in capsys.readouterr().out  # 50 FLOPs in 2 s, of 100 in one


@pytest.mark.slow
def test_profile_shows_the_dearest_operators_of_a_training_step_with_their_shapes(run):
    table = run(main, *SMALL, "--profile", "--precision", "fp32", "--only", "train").stdout
    assert ", fp32: 1 rounds of " in table
    rows = [line for line in table.splitlines() if "aten::convolution_backward" in line]
    assert rows and all(row.count("[") >= 4 for row in rows)  # gradient, input, weight


def test_profile_counts_by_hand():
    x = torch.randn(64, 64)
    text = profile(lambda: [x.mm(x) for _ in range(6)], 3, CPU)
    row = next(line.split() for line in text.splitlines() if " aten::mm " in line)
    assert row[-5:] == ["18", "[[64,", "64],", "[64,", "64]]"] and text.startswith("3 rounds of ")
    assert 0 < float(re.search(r"; cpu computes in (\d+)%", text)[1]) <= 100


# The ancestor's way computes what this project computes.


def test_training_step_of_both_ends_in_the_same_weights(model):
    batch = draw_batch(65, 2)
    trained = [ways.ancestors_training(model, batch, 1)()]
    assert not torch.backends.cudnn.benchmark  # the ancestor's code never sets it
    trained.append(ways.training(model, batch, 1, "fp32")())
    assert torch.backends.cudnn.benchmark  # main.py does
    start, theirs, ours = (
        torch.cat([value.flatten().float() for value in one.state_dict().values()])
        for one in (model, *trained)
    )
    step = (ours - start).abs().max()
    assert step > 1e-3
    # The image pooling's batch norm over two values enlarges rounding.
    assert (theirs - ours).abs().max() < 0.05 * step


def test_evaluation_of_both_counts_the_same_pixels(model, val_set):
    ancestors = ways.ancestors_evaluation(model, val_set)()
    ours = ways.evaluation(model, val_set, "fp32")().confusion.numpy()
    valid = sum(int((val_set.read_target(index) != 255).sum()) for index in range(len(val_set)))
    assert ancestors.sum() == valid
    # fp32 in another layout may decide a tie of two classes the other way.
    assert np.abs(ancestors - ours).sum() <= 1e-3 * valid


def test_ancestors_samples_are_normalised_floats_of_the_file(val_set):
    image, target = read_as_ancestor([(val_set.image_paths[0], val_set.target_paths[0])])
    array = np.asarray(Image.open(val_set.image_paths[0]), np.float64)
    expected = (array / 255 - MEAN) / STD
    np.testing.assert_allclose(image[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(target[0], val_set.read_target(0))


@pytest.mark.slow
def test_drawn_images_come_in_batches_as_large_as_vocs_and_as_hard_to_decode(tmp_path):
    dataset = draw_images(tmp_path / "images", 2 * len(VOC_SIZES))
    counts = np.unique(dataset.image_sizes(), axis=0, return_counts=True)[1]
    assert len(dataset) / sum(-(-counts // 8)) == pytest.approx(1449 / 383, abs=0.1)
    for index in range(3):
        image, target = dataset[index]
        assert image.shape[1:] == target.shape
        assert 255 in target.unique() and len(target.unique()) > 2
        size = dataset.image_paths[index].stat().st_size
        assert 0.4 < size / target.numel() < 0.8  # VOC 2012's JPEGs: 0.6 bytes a pixel


# The measuring itself.


def test_ways_take_turns_after_a_round_that_does_not_count(monkeypatch):
    calls, seconds = [], iter([99, 99, 1, 10, 5, 30, 2, 20])
    monkeypatch.setattr(benchmark, "timed", lambda work, device: work() or next(seconds))
    works = [lambda: calls.append("a"), lambda: calls.append("b")]
    assert measure(works, 3, CPU) == [2, 20]
    assert calls == [*"abababab"]


def test_flops_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    first = 2 * (4 * 6 * 6) * 5 * 3 * 9  # a multiplication and an addition, per output and weight
    second = 2 * (4 * 6 * 6) * 2 * 5
    assert count_flops(model.eval(), (4, 3, 8, 8)) == first + second
    # Backward: the gradient of the weights for both, that of the input for the second alone.
    assert count_flops(model.train(), (4, 3, 8, 8)) == 2 * first + 3 * second
    assert next(model.parameters()).device == CPU


@pytest.mark.slow
def test_the_limit_is_at_least_the_rate_of_a_smaller_product():
    a = torch.ones(1024, 1024)
    (seconds,) = measure([lambda: a.mm(a)], 5, CPU)
    assert peak_flops("fp32", CPU) > 0.5 * 2 * 1024**3 / seconds
