import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

from datasets.loader import EvaluationData, LoaderSettings, build_val_loader
from datasets.transforms import ShortSideCenterCrop
from datasets.voc import VOCSegmentation
from network.modeling import build_model
from tests.conftest import make_voc
from utils.engine import LossMeter, NonFiniteLossError, evaluate, train_one_epoch
from utils.loss import build_criterion
from utils.predictor import Predictor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_voc(root, num_val=9)
    return VOCSegmentation(root, "val")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus_mobilenet", num_classes=21)
    model.eval()
    return model.to(memory_format=torch.channels_last)


def confusion(model, dataset, sizes, batch_size, world_size=1):
    total = torch.zeros(21, 21, dtype=torch.int64)
    for rank in range(world_size):
        with patch("datasets.loader.process_share", return_value=(rank, world_size)):
            loader = build_val_loader(dataset, sizes, LoaderSettings(batch_size))
        predictor = Predictor(model, "fp32")
        total += evaluate(predictor, EvaluationData(dataset, loader)).confusion
    return total


def test_batched_evaluation_scores_exactly_what_batch_1_scores(model, val_set):
    one = confusion(model, val_set, val_set.image_sizes(), batch_size=1)
    assert int(one.sum()) > 10_000 and int((one.sum(0) > 0).sum()) > 1
    assert torch.equal(confusion(model, val_set, val_set.image_sizes(), batch_size=4), one)


def test_evaluation_split_over_processes_counts_the_same(model, val_set):
    one = confusion(model, val_set, val_set.image_sizes(), batch_size=2)
    parts = confusion(model, val_set, val_set.image_sizes(), batch_size=2, world_size=3)
    assert torch.equal(parts, one)


def test_evaluation_is_against_native_targets(model, val_set):
    expected = torch.zeros(21, 21, dtype=torch.int64)
    with torch.inference_mode():
        for image, target in (val_set[index] for index in range(len(val_set))):
            pred = model(image[None]).argmax(1)[0]
            for t, p in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
                if t != 255:
                    expected[t, p] += 1
    assert torch.equal(confusion(model, val_set, val_set.image_sizes(), 3), expected)


def test_crop_val_is_another_protocol(model, val_set):
    crops = VOCSegmentation(val_set.folder, "val", transform=ShortSideCenterCrop(65))
    counted = confusion(model, crops, [(65, 65)] * len(crops), batch_size=4)
    valid = sum(int((crops[index][1] != 255).sum()) for index in range(len(crops)))
    assert int(counted.sum()) == valid


def test_evaluation_that_runs_out_of_memory_halves_its_batch(model, val_set, capsys):
    class Small(Affine):
        def forward(self, images):
            if len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(images)

    sizes = val_set.image_sizes()
    expected = confusion(model, val_set, sizes, batch_size=1)
    assert torch.equal(confusion(Small(), val_set, sizes, batch_size=4), expected)
    assert "out of memory" in capsys.readouterr().err


class Affine(nn.Module):
    """A network of one 1x1 convolution, quick to step."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        return self.conv(image / 255)


def train(model, batches, precision="fp32", after_step=lambda: False, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = LossMeter()
    train_one_epoch(
        model, build_criterion("ce"), batches, optimizer, scheduler, scaler, precision, CPU,
        losses, after_step,
    )  # fmt: skip
    return losses, optimizer


def batches(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    targets = (images[:, :, 0] > 128).to(torch.uint8)
    return [(images[k], targets[k], torch.arange(2 * k, 2 * k + 2)) for k in range(count)]


def test_one_step_is_sgd_on_the_mean_cross_entropy():
    torch.manual_seed(0)
    model = Affine()
    weight = model.conv.weight.detach().clone()
    images, targets, _ = batches(1)[0]
    logits = nn.functional.conv2d(images / 255, weight.requires_grad_(), model.conv.bias)
    loss = nn.functional.cross_entropy(logits, targets.long())
    (gradient,) = torch.autograd.grad(loss, weight)
    losses, _ = train(model, batches(1))
    assert torch.allclose(model.conv.weight, weight - 0.1 * gradient, atol=1e-6)
    assert losses.mean() == pytest.approx(loss.item(), rel=1e-6)


def test_training_lowers_the_loss_and_steps_the_schedule_every_iteration():
    torch.manual_seed(0)
    losses, optimizer = train(Affine(), batches(6))
    assert losses.iteration == losses.count == 6
    assert losses.latest < losses.mean()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)


def test_training_stops_when_it_is_told_to():
    steps = []

    def after_step():
        steps.append(len(steps))
        return len(steps) == 3

    losses, _ = train(Affine(), batches(6), after_step=after_step)
    assert losses.count == len(steps) == 3


def test_void_targets_change_nothing():
    torch.manual_seed(0)
    model = Affine()
    before = model.conv.weight.detach().clone()
    images, targets, indices = batches(1)[0]
    train(model, [(images, torch.full_like(targets, 255), indices)])
    assert torch.equal(model.conv.weight, before)


def test_non_finite_loss_names_iteration_rate_and_samples():
    model = Affine()
    data = batches(4)

    class Poisoned(list):
        def __iter__(self):
            for number, batch in enumerate(data):
                if number == 2:
                    with torch.no_grad():
                        model.conv.bias.fill_(math.nan)
                yield batch

    with pytest.raises(NonFiniteLossError) as caught:
        train(model, Poisoned())
    error = caught.value
    assert (error.iteration, error.indices) == (3, [4, 5])
    assert error.lrs == pytest.approx([0.01]) and math.isnan(error.value)


def test_loss_meter_averages_since_its_reset():
    meter = LossMeter()
    for value in (1.0, 2.0):
        meter.add(torch.tensor(value), [0.1], torch.tensor([0]))
    assert meter.mean() == 1.5
    meter.reset()
    meter.add(torch.tensor(5.0), [0.1], torch.tensor([0]))
    assert (meter.mean(), meter.latest, meter.iteration) == (5.0, 5.0, 3)


def test_bf16_runs_the_convolutions_in_bf16():
    seen = []

    class Spy(Affine):
        def forward(self, image):
            logits = super().forward(image)
            seen.append(logits.dtype)
            return logits

    train(Spy(), batches(1), precision="bf16")
    assert seen == [torch.bfloat16]
