"""One epoch of training, and an evaluation."""

import math
import sys
from collections.abc import Callable
from itertools import count

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.base import IGNORE_INDEX
from datasets.loader import EvaluationData
from utils.common.progress import progress
from utils.distributed import all_reduce_sum, get_world_size, loss_share
from utils.metrics import StreamSegMetrics
from utils.precision import autocast, is_out_of_memory
from utils.predictor import Predictor
from utils.signals import Stopped

# Sample index, image, target, prediction.
Visitor = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]

CHECK_EVERY = 10  # iterations between two looks at the loss; each look waits for the device


class NonFiniteLossError(Exception):
    """The loss became infinite or NaN.

    Attributes:
        value: the loss.
        iteration: the iteration, counted from 1.
        lrs: the learning rate of each parameter group then.
        indices: the samples of the batch.
    """

    def __init__(self, value: float, iteration: int, lrs: list[float], indices: list[int]) -> None:
        super().__init__(f"loss {value} at iteration {iteration}")
        self.value, self.iteration, self.lrs, self.indices = value, iteration, lrs, indices


class LossMeter:
    """The mean loss since the last evaluation, and the guard against a loss that is not finite.

    On a GPU the losses stay there until `check()`, so that training need not wait for each.

    Attributes:
        iteration: iterations added so far.
        total: sum of the losses since the last `reset()`.
        count: their number.
        latest: the newest loss that was read.
    """

    def __init__(self) -> None:
        self.iteration = 0
        self.total, self.count, self.latest = 0.0, 0, math.nan
        self._pending: list[tuple[torch.Tensor, list[float], torch.Tensor]] = []

    def add(self, loss: torch.Tensor, lrs: list[float], indices: torch.Tensor) -> None:
        """Add the loss of one iteration, its learning rates and the samples that it saw."""
        self.iteration += 1
        self._pending.append((loss.detach(), lrs, indices))
        if loss.device.type == "cpu" or len(self._pending) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Read the losses that were added.

        Raises:
            NonFiniteLossError: one of them is infinite or NaN.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([loss for loss, _, _ in pending])
        values = (all_reduce_sum(values) / get_world_size()).tolist()
        first = self.iteration - len(values) + 1
        for iteration, value, (_, lrs, indices) in zip(count(first), values, pending, strict=False):
            if not math.isfinite(value):
                raise NonFiniteLossError(value, iteration, lrs, indices.tolist())
            self.total += value
        self.count += len(values)
        self.latest = values[-1]

    def mean(self) -> float:
        """The mean since the last `reset()`; NaN before the first iteration."""
        self.check()
        return self.total / self.count if self.count else math.nan

    def reset(self) -> None:
        """Start a new mean."""
        self.check()
        self.total, self.count = 0.0, 0


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    precision: str,
    device: torch.device,
    losses: LossMeter,
    after_step: Callable[[], bool],
) -> bool:
    """Train on the batches of `loader`, until `after_step()` returns True; then return True."""
    model.train()
    for images, targets, indices in loader:
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        with autocast(precision, device):
            loss = criterion(model(images), targets) * loss_share(criterion, targets)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.add(loss, [group["lr"] for group in optimizer.param_groups], indices)
        scheduler.step()
        if after_step():
            return True
    return False


def evaluate(
    predictor: Predictor,
    data: EvaluationData,
    visit: Visitor | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> StreamSegMetrics:
    """Count the predictions for the images of `data`, against targets of their own size.

    Args:
        predictor: maps uint8 (N, 3, H, W) on its `device` to classes uint8 (N, H, W).
        data: images, targets, and batches of images of one size.
        visit: called with each sample's index, its image uint8 (3, H, W), its target and its
            prediction, both uint8 (H, W); the prediction is on the device, the others are not.
        should_stop: asked between two batches.

    Returns:
        The counts over all processes; `compute()` gives the scores.

    Raises:
        Stopped: `should_stop()` returned True.
    """
    device = predictor.device
    metrics = StreamSegMetrics(data.dataset.num_classes, IGNORE_INDEX, device)
    for images, targets, indices in progress(data.loader, "evaluate", leave=False):
        if should_stop():
            raise Stopped
        preds = predict_batch(predictor, images.to(device, non_blocking=True))
        metrics.update(targets.to(device, non_blocking=True), preds)
        if visit:
            for sample in zip(indices.tolist(), images, targets, preds, strict=True):
                visit(*sample)
    all_reduce_sum(metrics.confusion)
    return metrics


def predict_batch(predictor: Predictor, images: torch.Tensor) -> torch.Tensor:
    """`predictor(images)`, in halves if memory runs out."""
    try:
        return predictor(images)
    except Exception as error:
        if not is_out_of_memory(error) or len(images) == 1:
            raise
    torch.cuda.empty_cache()
    tqdm.write(f"out of memory in evaluation: {len(images)} images in two halves", file=sys.stderr)
    return torch.cat([predict_batch(predictor, half) for half in images.chunk(2)])
