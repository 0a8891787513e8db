"""Steps of training, and what a resume brings back, on a network that is quick to step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from utils.common.errors import UserError
from utils.engine import LossMeter, NonFiniteError, train_step
from utils.loss import build_criterion
from utils.optim import WeightAverage, build_optimizer, build_scheduler
from utils.precision import build_scaler
from utils.training_state import TrainingState

CPU = torch.device("cpu")


class Affine(nn.Module):
    """One 1x1 convolution, and what a DeepLab has beside its weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.backbone = nn.Identity()
        self.register_buffer("mean", torch.full((3, 1, 1), 127.5), persistent=False)
        self.register_buffer("std", torch.full((3, 1, 1), 51.0), persistent=False)

    def forward(self, image):
        return self.conv(image / 255)


def build(precision="fp32", decay=0.0, model=None, lr=0.1):
    torch.manual_seed(0)
    model = model or Affine()
    optimizer = build_optimizer(model, lr, 1.0, precision, momentum=0.0, weight_decay=0.0)
    return TrainingState(
        model,
        optimizer,
        build_scheduler(optimizer, "step", step_size=2, total_itrs=100),
        build_scaler(precision, CPU),
        WeightAverage(model, decay) if decay else None,
        LossMeter(),
        settings={"model": "deeplabv3_resnet50", "output_stride": 16, "precision": precision},
        class_names=("a", "b"),
        colours=np.zeros((2, 3), np.uint8),
    )


def batches(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    targets = (images[:, :, 0] > 128).to(torch.uint8)
    return [(images[k], targets[k]) for k in range(count)]


def step(state, batch):
    precision = state.settings["precision"]
    ce = build_criterion("ce")
    return train_step(state.model, batch, ce, state.optimizer, state.scaler, precision)


def steps(state, count, first=0):
    """What `main.train` does between two evaluations."""
    for batch in batches(first + count)[first:]:
        state.lrs = state.scheduler.get_last_lr()
        loss = step(state, batch)
        state.scheduler.step()
        if state.average is not None:
            state.average.update()
        state.cur_itrs += 1
        state.losses.add(loss, state.cur_itrs)
    return state


def test_one_step_is_sgd_on_the_mean_cross_entropy():
    state = build()
    weight = state.model.conv.weight.detach().clone()
    images, targets = batches(1)[0]
    logits = nn.functional.conv2d(images / 255, weight.requires_grad_(), state.model.conv.bias)
    expected = nn.functional.cross_entropy(logits, targets.long())
    (gradient,) = torch.autograd.grad(expected, weight)
    loss = step(state, (images, targets))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and not loss.requires_grad
    assert torch.allclose(state.model.conv.weight, weight - 0.1 * gradient, atol=1e-6)
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_network_runs_in_the_precision_of_the_run(precision, dtype):
    seen = []

    class Spy(Affine):
        def forward(self, image):
            logits = super().forward(image)
            seen.append(logits.dtype)
            return logits

    steps(build(precision, model=Spy()), 1)
    assert seen == [dtype]


def test_fp16_whose_first_step_is_skipped_does_not_start_from_garbage(monkeypatch):
    # The scaler's first loss scale, 65536, overflows on purpose: that step is skipped.
    state = build("fp16")
    gradients = []
    for group in state.optimizer.param_groups:
        group["momentum"] = 0.9
    before = state.model.conv.weight.detach().clone()
    real_step = state.scaler.step

    def overflow(optimizer):
        for parameter in state.model.parameters():
            parameter.grad.fill_(math.inf)
        real_step(optimizer)

    def note(optimizer):
        real_step(optimizer)
        gradients.extend(parameter.grad for parameter in state.model.parameters())

    monkeypatch.setattr(state.scaler, "step", overflow)
    step(state, batches(1)[0])
    assert torch.equal(state.model.conv.weight, before)  # skipped
    buffers = [kept.get("momentum_buffer") for kept in state.optimizer.state.values()]
    assert all(buffer is None or not buffer.any() for buffer in buffers)
    # The next step is the first: its momentum is its gradient.
    monkeypatch.setattr(state.scaler, "step", note)
    step(state, batches(1)[0])
    for parameter, gradient in zip(state.model.parameters(), gradients, strict=True):
        momentum = state.optimizer.state[parameter]["momentum_buffer"]
        assert torch.allclose(momentum, gradient) and momentum.any()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_state_goes_on_from_its_file_bit_for_bit(tmp_path, decay):
    whole = build(decay=decay)
    for model in (whole.model, whole.evaluated_model):
        model.mean.fill_(51.0)  # as --ckpt may bring them
    steps(whole, 3)
    whole.best_score, whole.evaluated_itrs, whole.seconds = 0.7, 3, 12.5
    steps(whole, 2, first=3)
    whole.save(tmp_path / "last.pth")
    resumed = build(decay=decay)
    resumed.load(tmp_path / "last.pth")
    for name in ("cur_itrs", "evaluated_itrs", "best_score", "seconds", "lrs"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert resumed.losses.total == whole.losses.total
    for model in (resumed.model, resumed.evaluated_model):
        assert torch.allclose(model.mean, torch.tensor(51.0))
    for state in (whole, resumed):
        steps(state, 3, first=5)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (s.evaluated_model.conv.weight for s in (whole, resumed))
    assert torch.equal(one, other)
    assert torch.equal(one, whole.model.conv.weight) == (decay == 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
    state = steps(build(), 1)
    state.save(tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()
    with torch.no_grad():
        state.model.conv.weight[1, 2, 0, 0] = value  # after a loss that was finite
    with pytest.raises(NonFiniteError, match="are not finite after iteration 1: lower --lr"):
        state.save(tmp_path / "last.pth")
    assert (tmp_path / "last.pth").read_bytes() == before


def test_file_without_what_a_resume_needs_is_named(tmp_path):
    build().save_best(tmp_path / "best.pth", 0.5)
    with pytest.raises(UserError, match=r"best\.pth: cannot be resumed from"):
        build().load(tmp_path / "best.pth")
