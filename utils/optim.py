"""SGD with a slower backbone, and the learning-rate schedules."""

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR, StepLR

LR_POLICIES = ("step", "poly")


def build_optimizer(
    model: nn.Module,
    lr: float,
    backbone_lr_factor: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> SGD:
    """SGD whose first group is `model.backbone` at `backbone_lr_factor * lr`, the second the rest.

    A pretrained backbone needs small steps, the head starts from nothing and needs large ones.
    """
    backbone = list(model.backbone.parameters())
    ids = {id(parameter) for parameter in backbone}
    head = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [
        {"params": backbone, "lr": backbone_lr_factor * lr},
        {"params": head, "lr": lr},
    ]
    # fused: one pass over each parameter in place of three.
    return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def build_scheduler(
    optimizer: Optimizer, policy: str, step_size: int, total_itrs: int
) -> LRScheduler:
    """A schedule that is stepped once an iteration.

    `step` multiplies by 0.1 every `step_size` iterations; `poly` is (1 - i / total_itrs)^0.9, the
    DeepLab papers' (arXiv:1706.05587, section 4).
    """
    if policy == "step":
        return StepLR(optimizer, step_size, gamma=0.1)
    if policy == "poly":
        return PolynomialLR(optimizer, total_itrs, power=0.9)
    raise ValueError(f"unknown policy {policy!r}: choose from {LR_POLICIES}")
