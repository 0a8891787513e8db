"""One step of training, and what a resume brings back, on a network that is quick to step."""

import argparse
import math

import pytest
import torch
from torch import nn

from utils.common.errors import UserError
from utils.engine import NonFiniteLossError
from utils.loss import build_criterion
from utils.optim import build_average, build_optimizer, build_scheduler
from utils.training_state import TrainingState


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


def build(precision="fp32", names=("a", "b"), decay=0.0, model=None, lr=0.1):
    torch.manual_seed(0)
    model = model or Affine()
    optimizer = build_optimizer(model, lr, 1.0, precision, momentum=0.0, weight_decay=0.0)
    return TrainingState(
        argparse.Namespace(precision=precision, compile=False, seed=0),
        names,
        torch.device("cpu"),
        model,
        build_criterion("ce"),
        optimizer,
        build_scheduler(optimizer, "step", step_size=2, total_itrs=100),
        build_average(model, decay),
    )


def batches(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    targets = (images[:, :, 0] > 128).to(torch.uint8)
    return [(images[k], targets[k], torch.arange(2 * k, 2 * k + 2)) for k in range(count)]


def steps(state, count, first=0):
    for batch in batches(first + count)[first:]:
        state.step(batch)
    return state


def test_one_step_is_sgd_on_the_mean_cross_entropy():
    state = build()
    weight = state.model.conv.weight.detach().clone()
    images, targets, _ = batches(1)[0]
    logits = nn.functional.conv2d(images / 255, weight.requires_grad_(), state.model.conv.bias)
    loss = nn.functional.cross_entropy(logits, targets.long())
    (gradient,) = torch.autograd.grad(loss, weight)
    steps(state, 1)
    assert torch.allclose(state.model.conv.weight, weight - 0.1 * gradient, atol=1e-6)
    assert state.mean_loss() == pytest.approx(loss.item(), rel=1e-6)


def test_iterations_are_counted_and_lower_loss_and_learning_rate():
    state = steps(build(), 6)
    assert state.cur_itrs == 6
    assert state.losses.latest < state.mean_loss()
    assert state.lrs == pytest.approx([0.1 * 0.1**3] * 2)


def test_mean_of_the_loss_starts_anew_at_each_evaluation():
    state = steps(build(), 2)
    first = state.mean_loss()
    assert first == pytest.approx(state.losses.total / 2)
    state.evaluated(miou=0.5)
    steps(state, 1, first=2)
    assert state.mean_loss() == state.losses.latest != first


def test_best_score_is_the_highest():
    state = build()
    for miou, best in ((0.5, 0.5), (0.4, 0.5), (0.6, 0.6)):
        state.evaluated(miou)
        assert state.best_score == best


def test_void_targets_change_nothing():
    state = build()
    before = state.model.conv.weight.detach().clone()
    images, targets, indices = batches(1)[0]
    state.step((images, torch.full_like(targets, 255), indices))
    assert torch.equal(state.model.conv.weight, before)


def test_non_finite_loss_names_iteration_rate_and_samples():
    state = steps(build(), 2)
    with torch.no_grad():
        state.model.conv.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError) as caught:
        steps(state, 1, first=2)
    error = caught.value
    assert (error.iteration, error.indices) == (3, [4, 5])
    assert error.lrs == pytest.approx([0.01, 0.01]) and math.isnan(error.value)


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


def test_fp16_whose_first_step_is_skipped_does_not_start_from_garbage():
    # The scaler's first loss scale, 65536, overflows on purpose: that step is skipped.
    state = build("fp16")
    for group in state.optimizer.param_groups:
        group["momentum"] = 0.9
    before = state.model.conv.weight.detach().clone()
    images, targets, indices = batches(1)[0]
    state.scaler.step, step = lambda optimizer: _overflow(state, step), state.scaler.step
    state.step((images, targets, indices))
    state.scaler.step = step
    assert torch.equal(state.model.conv.weight, before)  # skipped
    buffers = [kept.get("momentum_buffer") for kept in state.optimizer.state.values()]
    assert all(buffer is None or not buffer.any() for buffer in buffers)
    # The next step is the first: its momentum is its gradient.
    steps(state, 1, first=1)
    for parameter in state.model.parameters():
        momentum = state.optimizer.state[parameter]["momentum_buffer"]
        assert torch.allclose(momentum, parameter.grad) and momentum.any()


def _overflow(state, step):
    for parameter in state.model.parameters():
        parameter.grad.fill_(math.inf)
    return step(state.optimizer)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_state_goes_on_from_its_file_bit_for_bit(tmp_path, decay):
    whole = steps(build(decay=decay), 3)
    whole.evaluated(0.7)
    steps(whole, 2, first=3)
    whole.save(tmp_path / "last.pth")
    resumed = build(decay=decay)
    resumed.load(tmp_path / "last.pth")
    assert (resumed.cur_itrs, resumed.evaluated_itrs, resumed.best_score) == (5, 3, 0.7)
    assert resumed.mean_loss() == whole.mean_loss() and resumed.lrs == whole.lrs
    for state in (whole, resumed):
        steps(state, 3, first=5)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (s.evaluated_model.conv.weight for s in (whole, resumed))
    assert torch.equal(one, other)
    assert torch.equal(one, whole.model.conv.weight) == (decay == 0)


def test_mean_and_std_come_back_with_the_weights(tmp_path):
    state = build(decay=0.5)
    for model in (state.model, state.evaluated_model):
        model.mean.fill_(51.0)
    state.save(tmp_path / "last.pth")
    resumed = build(decay=0.5)
    resumed.load(tmp_path / "last.pth")
    for model in (resumed.model, resumed.evaluated_model):
        assert torch.allclose(model.mean, torch.tensor(51.0))
        assert torch.allclose(model.std, torch.tensor(51.0))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "c"), "class 1 of the run is 'b', that of the data is 'c'"),
        (("a", "b", "c"), "class 2 of the run is 'no class', that of the data is 'c'"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, words):
    build().save(tmp_path / "last.pth")
    with pytest.raises(UserError, match=words):
        build(names=names).load(tmp_path / "last.pth")


def test_file_without_what_a_resume_needs_is_named(tmp_path):
    build().save_best(tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"best\.pth: cannot be resumed from"):
        build().load(tmp_path / "best.pth")
