import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from network.modeling import build_model
from utils.benchmark import ancestor, project
from utils.benchmark.__main__ import main, parse_args
from utils.benchmark.ancestor import AncestorSamples
from utils.benchmark.inputs import VOC_SIZES, draw_batch, draw_images
from utils.benchmark.timing import count_flops, measure, peak_flops, profile
from utils.common.imagenet import MEAN, STD

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("inputs") / "images", 6, shrink=6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenet")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it drops depends on the layout
    return model


def printed(*flags):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(["--quick", "--device", "cpu", *flags])
    return text.getvalue()


def test_quick_run_measures_both_workloads_in_every_precision():
    first, *tables = printed("--precision", "bf16", "fp32").split("\n\n")
    command = "python -m utils.benchmark --quick --device cpu --precision bf16 fp32"
    assert first.startswith(f"`{command}`: ") and torch.__version__ in first
    titles = ["training step: copy, forward, backward, SGD; without loader, log and average"]
    titles += ["evaluation of whole images, from files to confusion matrix"]
    for title, table in zip(titles, tables, strict=True):
        head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        assert head == [title, "ancestor", "here", "ratio", "of the limit", "peak memory"]
        assert [row[0] for row in rows] == ["bf16", "fp32"]
        for _, base, here, ratio, *_ in rows:
            base, here = (float(time.removesuffix(" ms")) for time in (base, here))
            assert base / here == pytest.approx(float(ratio), rel=0.1)


@pytest.mark.slow
def test_profile_tells_the_share_of_the_device_and_the_dearest_operators_with_their_shapes():
    _, head, table = printed("--profile", "--precision", "fp32", "--crop_size", "33").split("\n\n")
    assert head.startswith("fp32: 10 steps of ")
    share = int(head.rpartition(" cpu computes in ")[2].removesuffix("%"))
    assert 50 < share <= 100
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    convolutions = [row for row in rows if row[0] == "aten::convolution_backward"]
    for _, shapes, *_ in convolutions:  # gradient, input, weight
        assert [shape.count("x") for shape in shapes.split()] == [3, 3, 3]
    times = [float(row[3]) for row in rows]
    assert times == sorted(times, reverse=True) and len(times) == 15


def test_profile_counts_a_step_by_hand():
    x = torch.randn(64, 64)
    text = profile(lambda: [x.mm(x) for _ in range(6)], 3, CPU)
    assert "| aten::mm | 64x64 64x64 | 2 | " in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--batch_size", "1"], "--batch_size"),
        (["--profile", "--only", "train"], "--only: does nothing with --profile"),
    ],
)
def test_bad_flags_are_one_line(run, flags, message):
    assert message in run(main, "--quick", "--device", "cpu", *flags).error


def test_explicit_flags_win_over_quick():
    args = parse_args(["--quick", "--device", "cpu", "--crop_size", "33"])
    assert (args.crop_size, args.batch_size) == (33, 2)


# The ancestor's way computes what this project computes.


def test_training_step_of_both_ends_in_the_same_weights(model):
    batch = draw_batch(65, 2, 21)
    trained = [ancestor.training(model, batch, 1)()]
    assert not torch.backends.cudnn.benchmark  # the ancestor's code never sets it
    trained.append(project.training(model, batch, 1, "fp32")())
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
    ancestors = ancestor.evaluation(model, val_set)()
    ours = project.evaluation(model, val_set, "fp32")().confusion.numpy()
    valid = sum(int((target != 255).sum()) for _, target in map(val_set.__getitem__, range(6)))
    assert ancestors.sum() == valid
    # fp32 in another layout may decide a tie of two classes the other way.
    assert np.abs(ancestors - ours).sum() <= 1e-3 * valid


def test_ancestors_samples_are_normalised_floats_of_the_file(val_set):
    image, target = AncestorSamples(val_set)[0]
    array = np.asarray(Image.open(val_set.image_paths[0]), np.float64)
    expected = (array / 255 - MEAN) / STD
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(target, val_set.read_target(0))


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


def test_ways_are_warmed_up_twice_and_then_take_turns():
    calls = []

    def builder(name):
        def build():
            calls.append(f"build {name}")
            return lambda: calls.append(name)

        return build

    results = measure([builder("a"), builder("b")], 3, CPU)
    assert calls == ["build a", "a", "a", "build b", "b", "b", *"ab", *"ab", *"ab"]
    assert all(seconds > 0 and mb == 0 for seconds, mb in results) and len(results) == 2


def test_flops_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    first = 2 * (4 * 6 * 6) * 5 * 3 * 9  # a multiplication and an addition, per output and weight
    second = 2 * (4 * 6 * 6) * 2 * 5
    assert count_flops(model.eval(), (4, 3, 8, 8)) == first + second
    # Backward: the gradient of the weights for both, that of the input for the second alone.
    assert count_flops(model.train(), (4, 3, 8, 8)) == 2 * first + 3 * second
    assert next(model.parameters()).device == CPU


def test_flops_of_several_sizes_go_with_the_pixels(model):
    sizes = [(312, 416), (208, 416)]
    exact = sum(count_flops(model.eval(), (1, 3, *size)) for size in sizes)
    a_pixel = count_flops(model, (1, 3, 512, 512)) / 512**2
    assert a_pixel * sum(height * width for height, width in sizes) == pytest.approx(
        exact, rel=0.02
    )


@pytest.mark.slow
def test_the_limit_is_at_least_the_rate_of_a_smaller_product():
    a = torch.ones(1024, 1024)
    ((seconds, _),) = measure([lambda: lambda: a.mm(a)], 5, CPU)
    assert peak_flops("fp32", CPU) > 0.5 * 2 * 1024**3 / seconds
