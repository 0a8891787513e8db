"""SGD with a slower backbone, the learning-rate schedules, and an average of the weights."""

from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, PolynomialLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


def build_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and running statistics; None with `decay` 0.

    Call its `update_parameters(model)` after each iteration. The first call copies; from then on
    each iteration adds its weights with a share of `1 - decay`.
    """
    if decay == 0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
