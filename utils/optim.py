"""SGD with a slower backbone, the learning-rate schedules, and an average of the weights."""

import copy

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, PolynomialLR, StepLR

from network._deeplab import DeepLab
from utils.common.progress import say_once

LR_POLICIES = ("step", "poly")


def build_optimizer(
    model: DeepLab,
    lr: float,
    backbone_lr_factor: float,
    precision: str = "fp32",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> SGD:
    """SGD whose first group is `model.backbone` at `backbone_lr_factor * lr`, the second the rest.

    A pretrained backbone needs small steps, the head starts from nothing and needs large ones.
    """
    backbone = list(model.backbone.parameters())
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": backbone, "lr": backbone_lr_factor * lr}, {"params": head, "lr": lr}]
    # Fused: one pass over each parameter in place of three. Not where fp16 has a GradScaler: if it
    # skips the first step, torch's fused SGD goes on from a momentum that was never written.
    fused = precision != "fp16"
    return SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=fused)


def build_scheduler(
    optimizer: Optimizer, policy: str, step_size: int, total_itrs: int, warmup_itrs: int = 0
) -> LRScheduler:
    """A schedule that is stepped once an iteration.

    `step` multiplies by 0.1 every `step_size` iterations; `poly` is (1 - i / total_itrs)^0.9, the
    DeepLab papers' (arXiv:1706.05587, section 4). Over the first `warmup_itrs` iterations that is
    multiplied by a factor that rises linearly to 1 (arXiv:1706.02677, section 2.2). What it does
    not come to before the run ends is said.
    """
    end = f"the run ends after {total_itrs} iterations, and its learning rate"
    if warmup_itrs >= total_itrs:
        say_once(f"note: --warmup_itrs {warmup_itrs}: {end} never reaches --lr")
    if policy == "step" and step_size >= total_itrs:
        say_once(f"note: --step_size {step_size}: {end} is never lowered")
    if policy == "step":
        schedule: LRScheduler = StepLR(optimizer, step_size, gamma=0.1)
    else:
        schedule = PolynomialLR(optimizer, total_itrs, power=0.9)
    if warmup_itrs == 0:
        return schedule
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_itrs + 1), total_iters=warmup_itrs)
    return ChainedScheduler([schedule, warmup], optimizer=optimizer)


class WeightAverage:
    """An exponential moving average of weights and running statistics.

    The first update copies; from then on each adds its weights with a share of `1 - decay`.

    Attributes:
        model: with the averaged weights.
        updates: how many there were.
    """

    def __init__(self, trained: DeepLab, decay: float) -> None:
        self.model = copy.deepcopy(trained).requires_grad_(False)
        self.decay, self.updates = decay, 0
        own, new = self.model.state_dict().values(), trained.state_dict().values()
        # The integers, batch norm's counters, have no effect: they stay as they are.
        self._own, self._new = ([v for v in part if v.is_floating_point()] for part in (own, new))

    def update(self) -> None:
        """Add the weights that are trained."""
        torch._foreach_lerp_(self._own, self._new, 1 - self.decay if self.updates else 1.0)
        self.updates += 1
