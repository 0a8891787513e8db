import contextlib
import copy
import io
import mmap
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets.custom import CustomSegmentation
from datasets.loader import Samples
from datasets.transforms import RandomScaleCrop
from network.depthwise import DepthwiseConv2d
from network.modeling import build_model
from utils.benchmark import ancestor
from utils.benchmark.__main__ import build_setup, main, parse_args
from utils.benchmark.ancestor import AncestorSamples
from utils.benchmark.contenders import (
    Setup,
    compare_data,
    compare_evaluation,
    compare_prediction,
    count_gflop,
    draw_batch,
    first_samples,
    forward_gflop,
    train_ancestor,
    train_project,
)
from utils.benchmark.depthwise import CONVOLUTIONS, MODELS, compare_depthwise
from utils.benchmark.inputs import SIZES, draw_inputs
from utils.common.imagenet import MEAN, STD
from utils.common.timing import Contender, measure, peak_memory, table_row

CPU = torch.device("cpu")


def quick_setup(folder, *flags):
    args, device = parse_args(["--quick", "--device", "cpu", *flags])
    return build_setup(args, device, folder)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """What `--quick --precision fp32` measures."""
    return quick_setup(tmp_path_factory.mktemp("inputs"), "--precision", "fp32")


@pytest.fixture(scope="module")
def printed():
    """What a whole quick run prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(["--quick", "--device", "cpu", "--precision", "bf16", "fp32"])
    return text.getvalue()


def test_quick_run_measures_every_workload_in_every_precision(printed):
    first, *tables = printed.split("\n\n")
    command = "python -m utils.benchmark --quick --device cpu --precision bf16 fp32"
    assert first.startswith(f"`{command}`: ") and torch.__version__ in first
    titles = ["training step", "evaluation of whole images, from the files"]
    titles += ["prediction, one image at a time", "input pipeline, one worker"]
    for title, table in zip(titles, tables, strict=True):
        head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
        assert head == [title, "ancestor", "here", "ratio", "of the limit", "peak memory"]
        ours = ["one worker"] if title == titles[-1] else ["bf16", "fp32"]
        assert [row[0] for row in rows] == ours
        for _, base, here, ratio, *_ in rows:
            assert min(float(base.removesuffix(" ms")), float(here.removesuffix(" ms"))) > 0
            assert float(ratio) > 0


def test_quick_sizes_claim_no_share_of_a_product_too_small_to_be_a_limit(printed, setup):
    assert printed.count(" % |") == 1  # decoding the same files is one
    names = [one.name for one in next(compare_prediction(setup))]
    assert names == ["ancestor", "fp32"]


def test_large_product_is_the_limit_of_the_same_precision(setup):
    args = copy.copy(setup.args)
    args.matrix, args.precision = 16, ["bf16", "fp32"]
    setup = Setup(args, CPU, setup.model, setup.train_set, setup.val_set)
    contenders = {one.name: one for one in next(compare_prediction(setup))}
    for precision in ("bf16", "fp32"):
        names = [limit.name for limit in contenders[precision].limits]
        assert names == [f"product, {precision}", f"convolution, {precision}"]
    assert contenders["product, fp32"].work == pytest.approx(2 * 16**3 / 1e9)
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    gflop = count_gflop(conv, (4, 2, 64, 64), training=False)
    assert contenders["convolution, bf16"].work == pytest.approx(gflop)
    for name in ("product, fp32", "convolution, bf16"):
        (result,) = contenders[name].build()()
        assert result.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[name.split()[1]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats: must be a whole number, at least 1"),
        (["--batch_size", "1"], "--batch_size: must be a whole number, at least 2"),
        (["--crop_size", "0"], "--crop_size: must be a whole number, at least 1"),
        (["--compile"], "--compile: "),
        (["--data_root", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_flags_are_one_line(run, flags, message):
    assert message in run(main, "--quick", "--device", "cpu", *flags).error


def test_explicit_flags_win_over_quick():
    args, _ = parse_args(["--quick", "--device", "cpu", "--crop_size", "33"])
    assert (args.crop_size, args.batch_size) == (33, 2)


# The ancestor's way computes what this project computes.


def flat_weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_training_step_of_both_ends_in_the_same_weights(setup, monkeypatch):
    model = copy.deepcopy(setup.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it drops depends on the layout
    batch, models = draw_batch(setup), []

    def copy_model(_, layout=torch.channels_last):
        models.append(copy.deepcopy(model).to(memory_format=layout))
        return models[-1]

    monkeypatch.setattr(Setup, "copy_model", copy_model)
    train_project(setup, setup.copy_model(), batch, "fp32")()
    losses = train_ancestor(setup, batch)()
    assert losses == pytest.approx([np.log(21)], rel=0.5)
    ours, theirs = map(flat_weights, models)
    step = (ours - flat_weights(model)).abs().max()
    assert step > 1e-2
    # The image pooling's batch norm over two values enlarges rounding.
    assert (theirs - ours).abs().max() < 0.05 * step


def test_evaluation_of_both_counts_the_same_pixels(setup):
    ancestors, ours = (one.build()() for one in next(compare_evaluation(setup)))
    samples = map(setup.val_set.__getitem__, range(6))
    valid = sum(int((target != 255).sum()) for _, target in samples)
    assert ancestors.sum() == valid and (ancestors.sum(0) > 0).sum() > 1
    # fp32 in another layout may decide a tie of two classes the other way.
    assert np.abs(ancestors - ours.confusion.numpy()).sum() <= 1e-3 * valid


def test_prediction_of_both_is_the_same(setup):
    ancestors, ours = (one.build()() for one in next(compare_prediction(setup)))
    for pred, expected, path in zip(ancestors, ours, setup.val_set.image_paths[:2], strict=True):
        assert pred.shape == Image.open(path).size[::-1]
        assert (pred == expected).mean() > 0.999


def test_pipelines_give_as_many_images_as_are_counted(setup):
    for one in next(compare_data(setup)):
        result = one.build()()
        assert result in (None, 6) and one.images in (1, 6)


def test_confusion_of_one_image_by_hand():
    target = np.array([[0, 0, 1], [2, 255, 2]], np.uint8)
    pred = np.array([[0, 1, 1], [2, 2, 0]])
    assert ancestor.count_pairs(target, pred, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_ancestors_samples_are_normalised_floats_of_the_file(setup):
    image, target = AncestorSamples(setup.val_set)[0]
    array = np.asarray(Image.open(setup.val_set.image_paths[0]), np.float64)
    expected = (array / 255 - MEAN) / STD
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(target, setup.val_set.read_target(0))


def test_both_scale_a_sample_alike(setup):
    # A crop larger than any scaled image: what is not void is the scaled image's area.
    ours = CustomSegmentation(setup.train_set.folder, "trainval", RandomScaleCrop((200, 200)))
    scales = set()
    for index in range(4):
        valid = []
        for dataset in (ours, AncestorSamples(ours, 200)):
            image, target = Samples(dataset, seed=3)[(0, index)][:2]
            assert image.shape == (3, 200, 200) and target.shape == (200, 200)
            rows, columns = np.nonzero(target.numpy() != 255)
            valid.append((np.ptp(rows), np.ptp(columns)))
        assert valid[0] == pytest.approx(valid[1], abs=2)
        scales.add(valid[0])
    assert len(scales) == 4


def test_ancestor_crops_where_the_image_is_larger():
    torch.manual_seed(0)
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    target = Image.fromarray(np.full((40, 50), 7, np.uint8))
    for _ in range(5):
        crop, part = ancestor.resize_then_crop(image, target, 18)
        assert crop.size == part.size == (18, 18)
        assert set(np.unique(part)) == {7}  # at half the size there is still nothing to pad


# The inputs.


def test_drawn_images_come_in_batches_as_large_as_vocs(tmp_path):
    draw_inputs(tmp_path, 2 * len(SIZES))
    dataset = CustomSegmentation(tmp_path, "trainval")
    counts = np.unique(dataset.image_sizes(), axis=0, return_counts=True)[1]
    assert len(dataset) / sum(-(-counts // 8)) == pytest.approx(1449 / 383, abs=0.1)
    for index in range(3):
        image, target = dataset[index]
        assert image.shape[1:] == target.shape
        assert 255 in target.unique() and len(target.unique()) > 2
        size = dataset.image_paths[index].stat().st_size
        assert 0.4 < size / target.numel() < 0.8  # VOC 2012's JPEGs: 0.6 bytes a pixel


def test_first_samples_are_a_data_set_of_their_own(setup):
    part = first_samples(setup.val_set, 4)
    assert part.ids == setup.val_set.ids[:4] and len(setup.val_set) == 6
    assert [path.stem for path in part.image_paths] == part.ids
    assert torch.equal(part[3][0], setup.val_set[3][0])


# Depthwise convolutions.


def test_both_ways_of_a_depthwise_convolution_differ_in_what_computes(tmp_path):
    groups = list(compare_depthwise(quick_setup(tmp_path)))
    assert len(groups) == sum(map(len, CONVOLUTIONS.values())) + len(MODELS)
    for base, ours in groups:
        assert ours.base is base
        plain, own = (one.build.args[-1] for one in (base, ours))
        found = [isinstance(module, DepthwiseConv2d) for module in own.modules()]
        assert any(found)
        assert not any(isinstance(module, DepthwiseConv2d) for module in plain.modules())
        assert sum(map(torch.Tensor.numel, plain.parameters())) == sum(
            map(torch.Tensor.numel, own.parameters())
        )
    for one in groups[0]:
        one.build()()
        assert one.build.args[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("model", MODELS)
def test_listed_depthwise_convolutions_are_those_of_the_models(model):
    found = set()

    def note(conv, inputs):
        reduction = round(256 / inputs[0].shape[-1])
        found.add(
            (conv.in_channels, conv.kernel_size[0], conv.stride[0], conv.dilation[0], reduction)
        )

    network = build_model(model, separable_conv=MODELS[model]).to("meta")
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d):
            module.register_forward_pre_hook(note)
    network(torch.empty(2, 3, 256, 256, device="meta"))
    key = {"resnet50": "--separable_conv", "mobilenet": "MobileNetV2"}
    listed = CONVOLUTIONS[key.get(model.split("_")[1], "EfficientNet-Lite0")]
    assert set(listed) <= found


# The measuring itself.


def test_contenders_are_warmed_up_twice_and_then_take_turns():
    calls = []

    def build(name):
        calls.append(f"build {name}")
        return partial(calls.append, name)

    contenders = [Contender(name, partial(build, name)) for name in "ab"]
    measure(contenders, 3, CPU)
    assert calls == ["build a", "a", "a", "build b", "b", "b", *"ab", *"ba", *"ab"]
    assert [len(one.seconds) for one in contenders] == [3, 3]


def test_row_by_hand():
    limit = Contender("limit", None, work=10, seconds=[1.0, 1.0, 2.0])
    slower = Contender("slower", None, work=10, seconds=[2.0, 2.0, 4.0])
    base = Contender("base", None, 4, seconds=[8.0, 8.0, 20.0], peak_mb=100.0)
    fast = Contender("fast", None, 4, 10, base, [slower, limit], [2.0, 4.0, 4.0], 70.0)
    assert base.ms == 2000 and fast.ms == 1000
    # Rounds: 8 / 2, 8 / 4, 20 / 4; the ratio of the medians would be 2.
    # Of the faster limit: 1 / 2, 1 / 4, 2 / 4.
    assert table_row(fast) == "| fast | 2000.0 ms | 1000.0 ms | 4.00 | 50 % | 100 to 70 MB |"
    exceeded = Contender("one", None, 4, 40, base, [limit], [2.0, 2.0, 2.0])
    assert table_row(exceeded) == "| one | 2000.0 ms | 500.0 ms | 4.00 | - | - |"


def test_flops_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    first = 2 * (4 * 6 * 6) * 5 * 3 * 9  # a multiplication and an addition, per output and weight
    second = 2 * (4 * 6 * 6) * 2 * 5
    assert count_gflop(model, (4, 3, 8, 8), training=False) == pytest.approx((first + second) / 1e9)
    # Backward: the gradient of the weights for both, that of the input for the second alone.
    expected = 2 * first + 3 * second
    assert count_gflop(model, (4, 3, 8, 8), training=True) == pytest.approx(expected / 1e9)
    assert next(model.parameters()).device == CPU and model.training


def test_flops_of_several_sizes_go_with_the_pixels(setup):
    exact = sum(
        count_gflop(setup.model, (1, 3, *size), training=False)
        for size in setup.val_set.image_sizes()
    )
    assert forward_gflop(setup, setup.val_set) == pytest.approx(exact, rel=0.2)  # sizes are small


def take_pages(size):
    """Memory straight from the system, all of it touched."""
    pages = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        pages[start] = 1
    return pages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_was_held_at_the_same_time():
    def run():
        take_pages(40_000_000).close()
        kept.append(take_pages(20_000_000))

    kept = []
    before = peak_memory(CPU, reset=True)
    run()
    assert peak_memory(CPU) - before == pytest.approx(40, abs=2)
    assert peak_memory(CPU, reset=True) - before == pytest.approx(20, abs=2)
    one = Contender("one", lambda: partial(take_pages, 30_000_000))
    measure([one], 1, CPU)
    assert one.peak_mb == pytest.approx(30, abs=5)


def test_peak_memory_is_unknown_elsewhere(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: (_ for _ in ()).throw(OSError))
    assert peak_memory(CPU) == 0
