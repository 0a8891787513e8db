import contextlib
import copy
import io
import json
import math
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
from datasets.transforms import Compose, RandomHorizontalFlip, RandomScaleCrop
from utils.benchmark import ancestor as reference
from utils.benchmark.__main__ import NUM_VAL, build_setup, draw_inputs, main, parse_args
from utils.benchmark.ancestor import STEPS, ReferenceSamples
from utils.benchmark.contenders import (
    Setup,
    evaluate_project,
    evaluate_reference,
    host_batches,
    predict_project,
    predict_reference,
    repeat_samples,
    train_project,
    train_reference,
)
from utils.benchmark.timing import (
    Contender,
    Measured,
    PeakMemory,
    count_gflop,
    format_rows,
    measure,
    summarize,
)
from utils.common.imagenet import MEAN, STD

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """What `--quick --precision fp32` measures."""
    args, device = parse_args(["--quick", "--device", "cpu", "--precision", "fp32"])
    return build_setup(args, device, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The table and the JSON of a whole quick run."""
    path = tmp_path_factory.mktemp("report") / "benchmark.json"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(
            ["--quick", "--device", "cpu", "--precision", "bf16", "fp32", "--output", str(path)]
            + ["--only", "train", "eval", "predict", "data", "loader"]
            + ["--steps", "size_batches", "uint8", "crop_first"]
        )
    return json.loads(path.read_text()), printed.getvalue()


def test_quick_run_measures_every_workload_in_both_modes(report):
    workloads = report[0]["workloads"]
    for workload in ("train", "eval", "predict", "data"):
        rows = {row["name"]: row for row in workloads[workload]["rows"]}
        steps = ("crop_first", "uint8", "size_batches")  # in the order of STEPS
        steps = [step for step in steps if workload in STEPS[step]]
        ours = ["this project, bf16", "this project, fp32"]
        ours = ["this project"] if workload == "data" else ours
        compared = ["reference", *(f"+ {step}" for step in steps), *ours]
        assert list(rows)[-len(compared) :] == compared
        limits = list(rows)[: -len(compared)]
        for name in compared:
            row = rows[name]
            assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
            assert row["speedup"] > 0 and row["share"] > 0 and row["ceiling"] in limits
    rows = workloads["loader"]["rows"]
    assert [row["name"] for row in rows] == [
        "batches on the device, bf16",
        "batches from the loader, bf16",
    ]


def test_table_shows_what_the_json_holds(report):
    content, printed = report
    row = content["workloads"]["train"]["rows"][-1]
    line = next(line for line in printed.splitlines() if line.startswith("  this project, fp32"))
    assert f"{row['images_per_s']:.2f}" in line.split()
    assert f"{row['speedup']:.2f}" in line.split()
    assert content["command"] in printed and content["machine"] in printed
    assert "--quick" in content["command"] and content["settings"]["crop_size"] == 65


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats 0: at least 1"),
        (["--batch_size", "0"], "--batch_size 0: at least 2"),
        (["--loader_iterations", "0"], "--loader_iterations 0: at least 1"),
        (["--compile"], "--compile: "),
        (["--steps", "crop_first", "--only", "eval"], "--steps crop_first: needs --only data"),
        (["--data_root", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_flags_are_one_line(run, tmp_path, flags, message):
    finished = run(main, "--quick", "--device", "cpu", "--output", tmp_path / "b.json", *flags)
    assert message in finished.error
    assert not (tmp_path / "b.json").exists()


def test_explicit_flags_win_over_quick():
    args, _ = parse_args(["--quick", "--device", "cpu", "--crop_size", "33"])
    assert (args.crop_size, args.batch_size) == (33, 2)


# The reference mode computes what this project computes.


def flat_weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_training_with_all_steps_is_this_projects(setup, monkeypatch):
    batches, models = host_batches(setup, 1), []

    def copy_model(*args):
        models.append(Setup.copy_model(setup, *args))
        return models[-1]

    monkeypatch.setattr(setup, "copy_model", copy_model)
    runs = [
        train_project(setup, "fp32", batches),
        train_reference(setup, "fp32", tuple(STEPS), batches),
    ]
    for run in runs:
        torch.manual_seed(1)  # for dropout
        run()
    ours, theirs = map(flat_weights, models)
    assert (ours - flat_weights(setup.model)).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_steps_do_not_change_the_training_loss(setup, monkeypatch):
    model = copy.deepcopy(setup.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it drops depends on the layout
    monkeypatch.setattr(setup, "model", model)
    batches = host_batches(setup, 1)
    plain, *others = (
        train_reference(setup, "fp32", steps, batches)()
        for steps in ((), ("uint8",), ("channels_last",), ("no_waiting",))
    )
    assert plain == pytest.approx(math.log(21), rel=0.5)
    # The image pooling's batch norm over two values enlarges rounding.
    assert others == pytest.approx([plain] * 3, rel=1e-3)


@pytest.mark.parametrize("steps", [(), *((step,) for step in STEPS if "eval" in STEPS[step])])
def test_evaluation_in_the_reference_mode_counts_what_this_project_counts(setup, steps):
    ours = evaluate_project(setup, "fp32")().confusion.numpy()
    theirs = evaluate_reference(setup, "fp32", steps)()
    valid = sum(
        int((target != 255).sum()) for _, target in map(setup.val_set.__getitem__, range(6))
    )
    assert theirs.sum() == valid and (theirs.sum(0) > 0).sum() > 1
    # fp32 in another layout may decide a tie of two classes the other way.
    assert np.abs(theirs - ours).sum() <= 1e-3 * valid


@pytest.mark.parametrize("steps", [(), ("uint8",), ("channels_last",)])
def test_prediction_in_the_reference_mode_is_this_projects(setup, steps):
    paths = setup.val_set.image_paths[:2]
    ours = predict_project(setup, "fp32", paths)()
    theirs = predict_reference(setup, "fp32", steps, paths)()
    for pred, expected, path in zip(theirs, ours, paths, strict=True):
        assert pred.shape == Image.open(path).size[::-1]
        assert (pred == expected).mean() > 0.999


def test_confusion_of_one_image_by_hand():
    target = np.array([[0, 0, 1], [2, 255, 2]])
    pred = np.array([[0, 1, 1], [2, 2, 0]])
    assert reference.count_pairs(target, pred, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_reference_samples_are_normalised_floats_of_the_file(setup):
    image, target = ReferenceSamples(setup.val_set)[0]
    array = np.asarray(Image.open(setup.val_set.image_paths[0]), np.float64)
    expected = (array / 255 - MEAN) / STD
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(target, setup.val_set.read_target(0))


def test_both_modes_scale_a_sample_alike(setup):
    # A crop larger than any scaled image: what is not void is the scaled image's area.
    crop = (200, 200)
    ours = CustomSegmentation(setup.train_set.folder, "train", RandomScaleCrop(crop))
    scales = set()
    for index in range(4):
        valid = []
        for dataset in (ours, ReferenceSamples(ours, crop)):
            image, target = Samples(dataset, seed=3)[(0, index)][:2]
            assert image.shape == (3, *crop) and target.shape == crop
            rows, columns = np.nonzero(target.numpy() != 255)
            valid.append((np.ptp(rows), np.ptp(columns)))
        assert valid[0] == pytest.approx(valid[1], abs=2)
        scales.add(valid[0])
    assert len(scales) == 4


def test_reference_crops_where_the_image_is_larger():
    torch.manual_seed(0)
    values = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) % 251
    image = Image.fromarray(values.astype(np.uint8)).convert("RGB")
    target = Image.fromarray(np.full((40, 50), 7, np.uint8))
    for _ in range(5):
        crop, part = reference.ResizeThenCrop((16, 20))(image, target)
        assert crop.size == part.size == (20, 16)
        assert set(np.unique(part)) == {7}  # at half the size there is still nothing to pad


def test_steps_add_up_to_the_bytes_of_this_project(setup):
    transform = Compose(RandomScaleCrop((65, 65)), RandomHorizontalFlip())
    ours = CustomSegmentation(setup.train_set.folder, "train", transform)
    bytes_ = ReferenceSamples(ours, (65, 65), ("crop_first", "uint8"))
    floats = ReferenceSamples(ours, (65, 65), ("crop_first",))
    expected = Samples(ours, seed=0)[(0, 1)]
    image, target, _ = Samples(bytes_, seed=0)[(0, 1)]
    assert torch.equal(image, expected[0]) and torch.equal(target, expected[1])
    image = Samples(floats, seed=0)[(0, 1)][0]
    normalised = (expected[0] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    torch.testing.assert_close(image, normalised)


# The inputs.


def test_drawn_evaluation_images_come_in_batches_as_large_as_vocs(tmp_path):
    draw_inputs(tmp_path / "inputs", 2, 2 * NUM_VAL)
    val_set = CustomSegmentation(tmp_path / "inputs", "val")
    batches = sum(
        math.ceil(n / 8) for n in np.unique(val_set.image_sizes(), axis=0, return_counts=True)[1]
    )
    assert 2 * NUM_VAL / batches == pytest.approx(1449 / 383, abs=0.1)
    train_set = CustomSegmentation(tmp_path / "inputs", "train")
    assert train_set.image_sizes() == [(360, 480)] * 2
    for dataset in (train_set, val_set):
        image, target = dataset[0]
        assert image.shape[1:] == target.shape
        assert 255 in target.unique() and len(target.unique()) > 2
        size = dataset.image_paths[0].stat().st_size
        assert 0.4 < size / target.numel() < 0.8  # VOC 2012's JPEGs: 0.6 bytes a pixel


def test_samples_are_repeated_from_the_start(setup):
    ids = setup.val_set.ids
    repeated = repeat_samples(setup.val_set, 8)
    assert repeated.ids == [*ids, *ids[:2]] and len(ids) == 6
    assert [path.stem for path in repeated.image_paths] == repeated.ids
    assert len(setup.val_set) == 6 and len(repeated.target_paths) == 8


# The measuring itself.


def test_contenders_are_warmed_up_twice_and_then_take_turns():
    calls = []

    def build(name):
        calls.append(f"build {name}")
        return partial(calls.append, name)

    contenders = [Contender(name, partial(build, name), images=1) for name in "ab"]
    measured = measure(contenders, 3, CPU, with_memory=False)
    assert calls == ["build a", "a", "a", "build b", "b", "b", *"ab", *"ba", *"ab"]
    assert [len(item.seconds) for item in measured] == [3, 3]


def test_summary_by_hand():
    limit = Measured(Contender("limit", None, work=10), None, [1.0, 1.0, 2.0])
    slower = Measured(Contender("slower limit", None, work=10), None, [2.0, 2.0, 4.0])
    names = ("slower limit", "limit")
    base = Measured(Contender("base", None, 4, 10, names), 100.0, [8.0, 8.0, 20.0])
    fast = Measured(Contender("fast", None, 4, 10, names, below="base"), None, [2.0, 4.0, 4.0])
    rows = summarize([limit, slower, base, fast])
    assert rows[0]["work_per_s"] == 10 and "speedup" not in rows[0] and "share" not in rows[0]
    assert rows[2]["images_per_s"] == 0.5 and rows[2]["ms_per_image"] == 2000
    assert rows[2]["spread"] == 1.5 and rows[2]["speedup"] == 1 and rows[2]["peak_mb"] == 100
    # Rounds: 8 / 2, 8 / 4, 20 / 4; the ratio of the medians would be 2.
    assert rows[3]["speedup"] == rows[3]["gain"] == 4
    # The faster limit counts: 1 / 2, 1 / 4, 2 / 4 of it.
    assert rows[3]["share"] == 0.5 and rows[3]["ceiling"] == "limit"


def test_table_leaves_out_empty_columns():
    base = Measured(Contender("base", None, 2), None, [0.5])
    lines = format_rows(summarize([base])).splitlines()
    assert lines[0].split() == ["images/s", "ms/image", "spread", "x", "first"]
    assert lines[1].split() == ["base", "4.00", "250.0", "0", "%", "1.00"]


def test_flops_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    first = 2 * (4 * 6 * 6) * 5 * 3 * 9  # a multiplication and an addition, per output and weight
    second = 2 * (4 * 6 * 6) * 2 * 5
    assert count_gflop(model, (4, 3, 8, 8), training=False) == pytest.approx((first + second) / 1e9)
    # Backward: the gradient of the weights for both, that of the input for the second alone.
    expected = 2 * first + 3 * second
    assert count_gflop(model, (4, 3, 8, 8), training=True) == pytest.approx(expected / 1e9)
    assert next(model.parameters()).device == CPU and model.training


def take_pages(size):
    """Memory straight from the system, all of it touched."""
    pages = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        pages[start] = 1
    return pages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_was_held_at_the_same_time():
    memory = PeakMemory(CPU)
    take_pages(40_000_000).close()
    kept = take_pages(20_000_000)
    assert memory.megabytes() == pytest.approx(40, abs=2)
    memory.reset()
    assert memory.megabytes() == pytest.approx(20, abs=2)
    assert PeakMemory(CPU).megabytes() == pytest.approx(0, abs=2)
    kept.close()


def test_peak_memory_is_unknown_elsewhere():
    assert PeakMemory(torch.device("meta")).megabytes() is None
