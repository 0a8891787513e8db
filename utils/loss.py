"""Losses: logits (N, C, H, W) and target (N, H, W) to one number.

Every loss computes in float32 at least, whatever the precision of the logits, and gives 0 with zero
gradients where the batch has no valid pixel. A new loss is a class and a line in `LOSSES`.
"""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.common.errors import UserError


class SegmentationLoss(nn.Module, ABC):
    """Base of all losses: checks the shapes, and hands float32 and int64 to `compute()`.

    Args:
        ignore_index: target value of the pixels that do not count.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: floating point (N, C, H, W); channels last in memory they are not copied.
            target: any integer type, (N, H, W): class indices and `ignore_index`.

        Raises:
            ValueError: the shapes do not fit, or the target holds no integers.
        """
        fits = logits.ndim == 4 and target.shape == (len(logits), *logits.shape[2:])
        if not fits or target.is_floating_point():
            raise ValueError(
                "a loss needs logits (N, C, H, W) and an integer target (N, H, W), got "
                f"{tuple(logits.shape)} and {target.dtype} {tuple(target.shape)}"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays
        # Over dimension 1 of (N, C, H, W) torch's softmax would copy them to NCHW, and hand such a
        # gradient to the network, which is channels last.
        return self.compute(logits.permute(0, 2, 3, 1).flatten(0, 2), target.flatten().long())

    @abstractmethod
    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of float logits (P, C) and an int64 target (P,), one row for each pixel."""


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """-log p_y of logits (P, C) and a target (P,): float (P,), 0 where it is ignored."""
    if logits.device.type == "cpu" and logits.shape[1] < 16:
        # Rows that fill no vector (AVX-512: 16 floats) are slow in torch's own log_softmax there.
        logits = logits - logits.detach().amax(dim=1, keepdim=True)
        log_probs = logits - logits.exp().sum(dim=1, keepdim=True).log()
    else:
        log_probs = logits.log_softmax(dim=1)
    return F.nll_loss(log_probs, target, ignore_index=ignore_index, reduction="none")


class CrossEntropyLoss(SegmentationLoss):
    """Mean over the valid pixels of -w_y log p_y; the base of losses that are such means.

    As in `torch.nn.functional.cross_entropy`, the divisor is the sum of the pixels' weights.

    Args:
        ignore_index: target value of the pixels that do not count.
        class_weights: floating point (C,), or None for equal weights.
    """

    class_weights: Tensor | None

    def __init__(self, ignore_index: int = 255, class_weights: Tensor | None = None) -> None:
        super().__init__(ignore_index)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted mean of what each pixel contributes."""
        losses = cross_entropy(logits, target, self.ignore_index)
        weights = self.pixel_weights(target)
        divisor = weights.sum()
        return (weights * self.modulate(losses)).sum() / divisor.where(divisor > 0, 1)

    def modulate(self, losses: Tensor) -> Tensor:
        """What a pixel contributes, from its cross entropy (0 if ignored): float (P,)."""
        return losses

    def pixel_weights(self, target: Tensor) -> Tensor:
        """Weight of each pixel, 0 if ignored: as the target, bool without class weights."""
        valid = target != self.ignore_index
        if self.class_weights is None:
            return valid
        return self.class_weights[target.where(valid, 0)] * valid

    def divisor(self, target: Tensor) -> Tensor:
        """The sum of the weights, a float scalar: several processes weight their shares by it."""
        return self.pixel_weights(target.long()).sum().float()


class FocalLoss(CrossEntropyLoss):
    """Softmax focal loss: -w_y (1 - p_y)^gamma log p_y, averaged as cross entropy is.

    Lin et al., arXiv:1708.02002, section 3.2, with softmax in place of the sigmoid and class
    weights in place of alpha. The paper divides by the number of objects assigned; here it is the
    divisor of cross entropy, so that gamma 0 is cross entropy exactly. The larger gamma (at least
    0), the less is left to the pixels that are already right.
    """

    def __init__(
        self, ignore_index: int = 255, class_weights: Tensor | None = None, gamma: float = 2.0
    ) -> None:
        super().__init__(ignore_index, class_weights)
        if not 0 <= gamma < math.inf:
            raise UserError(f"--focal_gamma {gamma}: give a number that is not negative")
        self.gamma = gamma

    def modulate(self, losses: Tensor) -> Tensor:
        """(1 - p)^gamma times the cross entropy -log p."""
        # expm1 keeps the digits of 1 - p where p is close to 1. At p = 1 the slope of x^gamma is
        # infinite for gamma < 1, and infinity times a cross entropy of 0 is NaN: hence the clamp.
        miss = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        return miss.pow(self.gamma) * losses


class OhemCrossEntropyLoss(SegmentationLoss):
    """Mean cross entropy of the hard pixels alone (online hard example mining).

    The bootstrapped cross entropy of Wu et al., arXiv:1605.06885: the pixels whose class has a
    probability below `threshold`, in (0, 1], but never fewer than `min_fraction` of the valid
    pixels, rounded up, the hardest. (The paper's number of pixels would not fit every crop.)
    """

    def __init__(
        self, ignore_index: int = 255, threshold: float = 0.7, min_fraction: float = 1 / 16
    ) -> None:
        super().__init__(ignore_index)
        self.max_easy_loss = -math.log(threshold)
        self.min_fraction = min_fraction

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over the pixels that are kept."""
        losses = cross_entropy(logits, target, self.ignore_index)
        min_kept = (self.min_fraction * (target != self.ignore_index).sum()).ceil().long()
        num_kept = (losses > self.max_easy_loss).sum().maximum(min_kept)
        # How many these are is not known to the host of a GPU, and to ask would be to wait: instead
        # all are ranked, the ignored ones, whose loss is 0, at the end.
        ranked = losses.gather(0, falling_order(losses.detach()))
        is_kept = torch.arange(len(ranked), device=ranked.device) < num_kept
        return (ranked * is_kept).sum() / num_kept.clamp(min=1)


def falling_order(values: Tensor) -> Tensor:
    """Indices int64 (P,) that sort float values (P,), none below 0, the largest first."""
    # The bits of floats from 0 on rise with them, and torch sorts integers several times as fast on
    # a CPU; inverted, the largest comes first.
    return (~values.float().view(torch.int32)).argsort()


class Transposed(torch.autograd.Function):
    """(P, C) to (C, P), and the gradient back, both as copies: so it stays channels last.

    The softmax of the copy is twice as quick on a CPU as one of rows.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Float (P, C) to (C, P)."""
        return rows.t().contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Float (C, P) to (P, C)."""
        return grad.t().contiguous()


class RegionLoss(SegmentationLoss):
    """Base of losses that compare each class's region as a whole, over the pixels of the batch.

    The mean is over the classes in the target: one that is absent has no region to overlap with.
    """

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean of `class_loss()`."""
        valid = target != self.ignore_index
        probs = Transposed.apply(logits).softmax(dim=0)  # (C, P)
        inside = (target == torch.arange(len(probs), device=target.device)[:, None]) & valid
        present = inside.any(dim=1)
        if logits.device.type == "cpu":  # one class after the other takes little memory
            classes = zip(probs, inside, present, strict=True)
            losses = [self.class_loss(p, t, valid) for p, t, is_present in classes if is_present]
            total = torch.stack([probs[:0].sum(), *losses]).sum()
        else:  # to ask a GPU which classes are present is to wait for it: all, at once
            of_all = torch.vmap(self.class_loss, in_dims=(0, 0, None))
            total = (of_all(probs, inside, valid) * present).sum()
        return total / present.sum().clamp(min=1)

    @abstractmethod
    def class_loss(self, probs: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
        """The loss of one class; finite also where the class is absent.

        Args:
            probs: its probability at each pixel, float (P,).
            inside: where the target is the class, bool (P,).
            valid: where the target is not ignored, bool (P,).
        """


class DiceLoss(RegionLoss):
    """Multi-class soft Dice: 1 - 2 |p t| / (|p| + |t|), averaged over the classes present.

    After Milletari et al., arXiv:1606.04797, section 3, with |p| the sum of the probabilities and
    not of their squares: it is the expected size of the region. No smoothing term is needed, as a
    class that is present makes |t| at least 1.
    """

    def class_loss(self, probs: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
        """1 - the soft Dice coefficient."""
        sizes = (probs * valid).sum() + inside.sum()
        return 1 - 2 * (probs * inside).sum() / sizes.clamp(min=1)


class LovaszSoftmaxLoss(RegionLoss):
    """Lovász-Softmax: the convex extension of the Jaccard loss 1 - IoU to probabilities.

    Berman et al., arXiv:1705.08790, over the pixels of the batch and the classes present in it.
    """

    def class_loss(self, probs: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
        """The errors, the largest first, times their slopes of the Jaccard loss."""
        # Ignored pixels have no error, come last, and so change no other's slope.
        errors = torch.where(inside, 1 - probs, probs) * valid
        order = falling_order(errors.detach())
        return (errors.gather(0, order) * jaccard_slopes(inside[order])).sum()


def jaccard_slopes(inside: Tensor) -> Tensor:
    """How much each pixel adds to the Jaccard loss if one after the other turns wrong.

    The paper takes differences of neighbouring Jaccard losses, which in float32 cancel to noise
    in a batch of millions of pixels. A pixel inside the region takes one from the intersection
    I and leaves the union U, so its difference is 1/U; one outside adds one to the union, so it
    is I/(U - 1) - I/U = I/(U - 1)/U.

    Args:
        inside: bool (P,), where the target is the class; nowhere gives slopes of 0.

    Returns:
        float32 (P,).
    """
    seen_inside = inside.cumsum(0, dtype=torch.int32)
    seen = torch.arange(1, len(inside) + 1, device=inside.device, dtype=torch.int32)
    size = seen_inside[-1]
    intersection, union = size - seen_inside, size + seen - seen_inside
    return torch.where(inside, 1, intersection / (union - 1).clamp(min=1)) / union


class CrossEntropyLovaszLoss(SegmentationLoss):
    """Cross entropy, with class weights if given, plus Lovász-Softmax."""

    def __init__(self, ignore_index: int = 255, class_weights: Tensor | None = None) -> None:
        super().__init__(ignore_index)
        self.cross_entropy = CrossEntropyLoss(ignore_index, class_weights)
        self.lovasz = LovaszSoftmaxLoss(ignore_index)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """Each pixel right, and each region as a whole."""
        return self.cross_entropy.compute(logits, target) + self.lovasz.compute(logits, target)


class AuxiliaryLoss(nn.Module):
    """A loss of the logits, plus `weight` times that of an auxiliary head's logits."""

    def __init__(self, criterion: nn.Module, weight: float) -> None:
        super().__init__()
        self.criterion, self.weight = criterion, weight
        if hasattr(criterion, "divisor"):
            self.divisor = criterion.divisor

    def forward(self, logits: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar; `logits` are those of the head and the auxiliary head's."""
        main, aux = (self.criterion(part, target) for part in logits)
        return main + self.weight * aux


LOSSES: dict[str, type[nn.Module]] = {
    "ce": CrossEntropyLoss,
    "focal": FocalLoss,
    "ohem": OhemCrossEntropyLoss,
    "dice": DiceLoss,
    "lovasz": LovaszSoftmaxLoss,
    "ce_lovasz": CrossEntropyLovaszLoss,
}


def build_criterion(
    name: str,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    focal_gamma: float | None = None,
) -> nn.Module:
    """Build a loss of `LOSSES`; an option that is None was not asked for.

    Raises:
        UserError: an option was asked for that this loss cannot use.
    """
    options = {"class_weights": class_weights, "gamma": focal_gamma}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        users = [key for key in LOSSES if option in inspect.signature(LOSSES[key]).parameters]
        if name not in users:
            flag = "--focal_gamma" if option == "gamma" else f"--{option}"
            raise UserError(
                f"--loss {name} does not use {flag}: leave that out, or choose "
                + " or ".join(f"--loss {key}" for key in users)
            )
    return LOSSES[name](ignore_index=ignore_index, **given)


def median_frequency_weights(pixel_counts: Tensor, image_pixels: Tensor) -> Tensor:
    """Class weights that make rare classes count more; a class that never occurs gets 0.

    The median of all classes' frequencies, divided by the class's own (arXiv:1411.4734): its share
    of the pixels of the images that contain it.

    Args:
        pixel_counts: on the CPU (C,), pixels of each class in the training targets.
        image_pixels: on the CPU (C,), valid pixels of the images that contain the class.

    Returns:
        float32 (C,).

    Raises:
        UserError: no class occurs at all.
    """
    present = pixel_counts > 0
    if not present.any():
        raise UserError("--class_weights median_frequency: no training target holds a valid pixel")
    frequency = pixel_counts[present].double() / image_pixels[present]
    weights = torch.zeros(len(pixel_counts))
    weights[present] = (frequency.quantile(0.5) / frequency).float()
    return weights
