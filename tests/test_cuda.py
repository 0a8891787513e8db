"""What only a GPU can show: `python -m pytest -m cuda` on a machine that has one."""

import copy
import math
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import predict
import visualize
from datasets.loader import TrainBatches, build_loader, size_batches
from datasets.transforms import train_transform
from datasets.voc import VOCSegmentation
from main import main
from network.modeling import build_model
from tests.conftest import ROOT, make_voc
from utils.distributed import wrap_model
from utils.engine import evaluate, predict_batch, train_step
from utils.loss import build_criterion
from utils.optim import build_optimizer
from utils.precision import build_scaler
from utils.predictor import Predictor
from utils.run_folder import read_log

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FLAGS = (
    "--model", "deeplabv3plus_mobilenet", "--backbone_weights", "none", "--crop_size", "64",
    "--batch_size", "4", "--num_workers", "2", "--device", "cuda",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    make_voc(root, num_train=12, num_val=7)
    return root


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    """cuDNN rounds fp32 to TF32 unless told not to, and a search may find another algorithm."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def train(data, runs, *flags, launch=(sys.executable,)):
    """`main.py` in a process of its own; returns what it printed."""
    words = [*launch, "main.py", *FLAGS, "--data_root", data, "--runs_dir", runs, *flags]
    result = subprocess.run(
        [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def weights_of(runs):
    (path,) = runs.glob("*/last.pth")
    return torch.load(path, weights_only=True, map_location="cpu")["model_state"]


def log_of(runs):
    (path,) = runs.glob("*/log.jsonl")
    return read_log(path.parent)


def build_training(device, precision="fp32", compiled=False):
    """A ResNet-50 without dropout, whose random numbers are other ones on a GPU.

    With `precision` "fp64" it computes in that: from random weights a rounding error of fp32 grows
    ten-thousandfold in one step, and two machines part.
    """
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_resnet50", 21)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model = model.to(device).to(memory_format=torch.channels_last)
    if precision == "fp64":
        model, precision = model.double(), "fp32"
    network = wrap_model(model, device, compiled)
    optimizer = build_optimizer(model, 0.01, 1.0, precision)
    return [model, network, optimizer, build_scaler(precision, device), precision]


def batch_of(data, pin_memory=False):
    train_set = VOCSegmentation(data, "train", transform=train_transform((65, 65)))
    batches = TrainBatches(len(train_set), 4, 0, 1)
    return next(iter(build_loader(train_set, batches, 1, pin_memory)))


def losses(training, batch, count):
    _, network, optimizer, scaler, precision = training
    criterion = build_criterion("ce")
    return [
        train_step(network, batch, criterion, optimizer, scaler, precision).item()
        for _ in range(count)
    ]


@contextmanager
def memory_limit(extra_bytes):
    """No more than this above what is in use."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize(("precision", "steps"), [("fp32", 1), ("fp64", 5)])
def test_losses_are_the_cpus(data, precision, steps):
    batch = batch_of(data)
    expected = losses(build_training(CPU, precision), batch, steps)
    values = losses(build_training(CUDA, precision), batch, steps)
    assert values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_starts_where_fp32_does_and_learns(data, precision):
    batch = batch_of(data)
    expected = losses(build_training(CUDA), batch, 1)
    values = losses(build_training(CUDA, precision), batch, 20)
    assert values[:1] == pytest.approx(expected, rel=0.02) and values[-1] < values[0] / 2


@pytest.mark.filterwarnings("error")
def test_fp16_that_overflows_at_first_skips_the_step_and_goes_on(data):
    training, batch = build_training(CUDA, "fp16"), batch_of(data)
    scaler = training[3] = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    weight = training[0].classifier.classifier[3].weight
    before = copy.deepcopy(weight)
    losses(training, batch, 1)
    assert torch.equal(weight, before) and scaler.get_scale() == 2.0**23
    assert all(map(math.isfinite, losses(training, batch, 20)))
    assert not torch.equal(weight, before)


def test_compiled_network_gives_the_same_losses(data):
    batch = batch_of(data)
    expected = losses(build_training(CUDA, "fp64"), batch, 3)
    values = losses(build_training(CUDA, "fp64", compiled=True), batch, 3)
    assert values == pytest.approx(expected, rel=1e-4)


def test_loader_pins_batches_and_keeps_channels_last(data):
    images, targets, _ = batch_of(data, pin_memory=True)
    assert images.is_pinned() and targets.is_pinned()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_run_is_evaluated_logged_and_resumed(run, data, tmp_path, precision):
    flags = (*FLAGS, "--data_root", data, "--runs_dir", tmp_path, "--precision", precision)
    assert run(main, *flags, "--total_itrs", 4).status == 0
    finished = run(main, *flags, "--total_itrs", 7, "--resume")
    assert finished.status == 0 and "at iteration 4" in finished.stdout
    records = log_of(tmp_path)
    assert [record["iteration"] for record in records] == [3, 4, 6, 7]
    assert all(record["max_memory_mb"] > 0 for record in records)
    # Whoever has no GPU reads the weights too, and scores them all but alike.
    (best,) = tmp_path.glob("*/best.pth")
    assert run(main, "--test_only", "--ckpt", best, "--device", "cpu").status == 0


def test_deterministic_runs_end_in_the_same_weights_bit_for_bit_also_after_a_resume(data, tmp_path):
    flags = ("--deterministic", "--loss", "ce_lovasz")
    train(data, tmp_path / "one", *flags, "--total_itrs", 5)
    train(data, tmp_path / "two", *flags, "--total_itrs", 3)
    train(data, tmp_path / "two", *flags, "--total_itrs", 5, "--resume")
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_one_process_under_torchrun_computes_the_same(data, tmp_path):
    launch = (
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"
    )  # fmt: skip
    flags = ("--precision", "fp32", "--deterministic", "--total_itrs", 3)
    train(data, tmp_path / "plain", *flags)
    train(data, tmp_path / "torchrun", *flags, launch=launch)
    plain, distributed = (log_of(tmp_path / name)[-1] for name in ("plain", "torchrun"))
    assert distributed["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)


@pytest.fixture(scope="module")
def model(data):
    """Trained for a while, with norms and a last bias that are sure to predict several classes."""
    training, batch = build_training(CUDA, "bf16"), batch_of(data)
    losses(training, batch, 30)
    model, images = training[0], batch[0].to(CUDA)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # an average: the statistics of this batch
    with torch.no_grad():
        model.train()(images)
        model.classifier.classifier[3].bias -= model.eval()(images).mean((0, 2, 3))
    return model


def on_both(model, **options):
    """Predictors on the CPU and on the GPU."""
    copies = (copy.deepcopy(model).to(device) for device in (CPU, CUDA))
    return [
        Predictor(part.to(memory_format=torch.channels_last), "fp32", **options) for part in copies
    ]


def test_evaluation_counts_what_the_cpu_counts(data, model):
    val_set = VOCSegmentation(data, "val")
    counts = []
    for predictor in on_both(model):
        batches = size_batches(val_set.image_sizes(), 4)
        loader = build_loader(val_set, batches, 1, predictor.device == CUDA)
        counts.append(evaluate(predictor, val_set, loader).confusion.cpu())
    assert torch.equal(*counts) and (counts[0].sum(0) > 0).sum() > 1


@pytest.mark.parametrize("options", [{}, {"window": 128}, {"scales": (0.75, 1.25), "flip": True}])
def test_prediction_is_the_cpus(data, model, options):
    crops = batch_of(data)[0].permute(0, 2, 3, 1).numpy()
    image = np.concatenate([np.concatenate(list(crops), axis=1)] * 3)  # of several classes
    cpu, cuda = (predictor.predict_image(image) for predictor in on_both(model, **options))
    assert np.mean(cpu == cuda) > 0.9999 and len(np.unique(cpu)) > 1


def test_evaluation_out_of_memory_halves_the_batch(model, capsys):
    predictor = Predictor(model, "bf16")
    images = torch.randint(0, 256, (8, 3, 512, 512), dtype=torch.uint8, device=CUDA)
    expected = torch.cat([predictor(part) for part in images.split(2)])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    predictor(images[:2])
    with memory_limit(1.2 * (torch.cuda.max_memory_reserved() - before)):
        preds = predict_batch(predictor, images)
    assert "8 images in two halves" in capsys.readouterr().err
    assert (preds == expected).float().mean() > 0.999


def test_training_out_of_memory_is_one_line(run, data, tmp_path):
    flags = (*FLAGS, "--data_root", data, "--runs_dir", tmp_path, "--total_itrs", 3)
    with memory_limit(100e6):
        error = run(main, *flags, "--crop_size", 513).error
    assert "out of memory" in error and "--batch_size" in error


def test_scripts_run_on_a_gpu(run, data, tmp_path):
    flags = ("--data_root", data, "--runs_dir", tmp_path / "runs")
    assert run(main, *FLAGS, *flags, "--total_itrs", 3).status == 0
    (folder,) = (tmp_path / "runs").iterdir()
    photos = data / "VOCdevkit" / "VOC2012" / "JPEGImages"
    best = ("--ckpt", folder / "best.pth", "--device", "cuda")
    finished = run(predict.main, photos, *best, "--output_dir", tmp_path / "predictions")
    assert finished.status == 0, finished.stderr
    finished = run(predict.main, "--split", "val", *best, "--flip", "--data_root", data)
    assert finished.status == 0, finished.stderr
    report = ("--output_dir", tmp_path / "report", "--device", "cuda")
    finished = run(visualize.main, *flags, *report)
    assert finished.status == 0, finished.stderr
    assert (tmp_path / "report" / "report.md").exists()
