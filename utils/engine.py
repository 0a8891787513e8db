"""One step of training, the sum of its losses, and an evaluation."""

import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import worker_faults_explained
from utils.common.errors import UserError
from utils.common.processes import get_world_size
from utils.common.progress import progress
from utils.distributed import CHECK_EVERY, all_reduce_sum, fewest, loss_of_all
from utils.metrics import StreamSegMetrics
from utils.precision import autocast, is_out_of_memory
from utils.predictor import Predictor
from utils.signals import Stopped


class NonFiniteError(UserError):
    """The loss or the weights became infinite or NaN: the run cannot go on from there."""


def train_step(
    network: nn.Module,
    batch: Sequence[Tensor],
    criterion: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    precision: str,
) -> Tensor:
    """One step: forward and backward pass, and new weights.

    Args:
        network: as it is trained (`utils.distributed.wrap_model`); images to logits.
        batch: images uint8 (N, 3, H, W) and targets uint8 (N, H, W), on any device.
        criterion: the loss of logits and targets.
        optimizer: of the network's weights.
        scaler: of the loss, which does something in fp16 alone.
        precision: "bf16", "fp16" or "fp32".

    Returns:
        The loss, a scalar on the network's device, which is not waited for.
    """
    device = next(network.parameters()).device
    images, targets = (part.to(device, non_blocking=True) for part in batch[:2])
    with autocast(precision, device):
        loss = loss_of_all(criterion, network(images), targets)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)  # here, so that the next forward pass has their memory
    return loss.detach()


class LossMeter:
    """The sum of the losses since the last evaluation; one that is not finite ends the training.

    On a GPU the losses stay there until `check()`, so that training need not wait for each.
    """

    def __init__(self) -> None:
        self.total = 0.0  # set to 0 to start anew
        self.latest = math.nan  # the newest loss that was read
        self._pending: list[tuple[int, Tensor]] = []

    def add(self, loss: Tensor, iteration: int) -> None:
        """Add the loss of an iteration, counted from 1."""
        self._pending.append((iteration, loss))
        if loss.device.type == "cpu" or len(self._pending) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Read the losses that were added.

        Raises:
            NonFiniteError: one of them is infinite or NaN.
        """
        if not self._pending:
            return
        iterations, losses = zip(*self._pending, strict=True)
        self._pending.clear()
        values = (all_reduce_sum(torch.stack(losses)) / get_world_size()).tolist()
        for iteration, value in zip(iterations, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss is {value} at iteration {iteration}: lower --lr, or use "
                    "--precision fp32"
                )
            self.total += value
        self.latest = values[-1]


@worker_faults_explained()
def evaluate(
    predictor: Predictor,
    dataset: SegmentationDataset,
    loader: DataLoader,
    visit: Callable[[int, Tensor, Tensor], None] | None = None,
    should_stop: Callable[[int], bool] = lambda _: False,
) -> StreamSegMetrics:
    """Count the predictions for the images of `dataset`, against targets of their own size.

    Args:
        predictor: maps uint8 (N, 3, H, W) on its `device` to classes uint8 (N, H, W).
        dataset: images and targets.
        loader: its batches, each of images of one size (`size_batches`).
        visit: called with each sample's index, its target, and its prediction on the device, both
            uint8 (H, W).
        should_stop: asked before each batch, with its number; all processes ask equally often.

    Returns:
        The counts over all processes; `compute()` gives the scores.

    Raises:
        Stopped: `should_stop()` returned True.
    """
    device = predictor.device
    metrics = StreamSegMetrics(dataset.num_classes, IGNORE_INDEX, device)
    batches = progress(loader, "evaluate", leave=False)
    # Its search pays for one size of crops, and not for VOC's 258 of images: on an H200, 43 of them
    # took over a minute with it and 3 s without (DeepLabV3+ with a ResNet-50, 210 images).
    searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        asked = fewest(len(loader), device)
        for number, (images, targets, indices) in enumerate(batches):
            if number < asked and should_stop(number):
                raise Stopped
            preds = predict_batch(predictor, images.to(device, non_blocking=True))
            metrics.update(targets.to(device, non_blocking=True), preds)
            if visit:
                for sample in zip(indices.tolist(), targets, preds, strict=True):
                    visit(*sample)
    finally:
        torch.backends.cudnn.benchmark = searches
    all_reduce_sum(metrics.confusion)
    return metrics


def predict_batch(predictor: Predictor, images: Tensor) -> Tensor:
    """`predictor(images)`, in halves if memory runs out."""
    try:
        return predictor(images)
    except Exception as error:
        if not is_out_of_memory(error) or len(images) == 1:
            raise
    torch.cuda.empty_cache()
    tqdm.write(f"out of memory in evaluation: {len(images)} images in two halves", file=sys.stderr)
    return torch.cat([predict_batch(predictor, half) for half in images.chunk(2)])
