"""SGD with a slower backbone, the learning-rate schedules, and an average of the weights."""

import copy
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, PolynomialLR, StepLR

from network._deeplab import DeepLab

LR_POLICIES = ("step", "poly")


def build_optimizer(
    model: DeepLab, lr: float, backbone_lr_factor: float, precision: str = "fp32", **options: Any
) -> SGD:
    """SGD whose first group is `model.backbone` at `backbone_lr_factor * lr`, the second the rest.

    A pretrained backbone needs small steps, the head starts from nothing and needs large ones.
    Momentum is 0.9 and weight decay 1e-4 unless `options` of SGD say otherwise.
    """
    backbone = list(model.backbone.parameters())
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": backbone, "lr": backbone_lr_factor * lr}, {"params": head, "lr": lr}]
    # Fused: one pass over each parameter in place of three. Not where fp16 has a GradScaler: if it
    # skips the first step, torch's fused SGD goes on from a momentum that was never written.
    options = {"momentum": 0.9, "weight_decay": 1e-4} | options
    return SGD(groups, lr=lr, fused=precision != "fp16", **options)


def build_scheduler(
    optimizer: Optimizer, policy: str, step_size: int, total_itrs: int, warmup_itrs: int = 0
) -> LRScheduler:
    """A schedule that is stepped once an iteration.

    `step` multiplies by 0.1 every `step_size` iterations; `poly` is (1 - i / total_itrs)^0.9, the
    DeepLab papers' (arXiv:1706.05587, section 4). Over the first `warmup_itrs` iterations that is
    multiplied by a factor that rises linearly to 1 (arXiv:1706.02677, section 2.2).
    """
    if policy == "step":
        schedule: LRScheduler = StepLR(optimizer, step_size, gamma=0.1)
    else:
        schedule = PolynomialLR(optimizer, total_itrs, power=0.9)
    if warmup_itrs == 0:
        return schedule
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_itrs + 1), total_iters=warmup_itrs)
    return ChainedScheduler([schedule, warmup], optimizer=optimizer)


def learning_rates(optimizer: Optimizer) -> list[float]:
    """Those of the next step, of backbone and head."""
    return [group["lr"] for group in optimizer.param_groups]


def schedule_notes(policy: str, step_size: int, total_itrs: int, warmup_itrs: int) -> list[str]:
    """What a schedule does not come to before the run ends, a line each."""
    notes = []
    if warmup_itrs >= total_itrs:
        notes.append(
            f"note: --warmup_itrs {warmup_itrs}: the run ends after {total_itrs} iterations, and "
            "its learning rate never reaches --lr"
        )
    if policy == "step" and step_size >= total_itrs:
        notes.append(
            f"note: --step_size {step_size}: the run ends after {total_itrs} iterations, and its "
            "learning rate is never lowered"
        )
    return notes


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
