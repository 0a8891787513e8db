"""What this project does: the functions that `main.py` calls."""

import copy
from functools import partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from datasets.base import IGNORE_INDEX, SegmentationDataset
from datasets.loader import build_loader, default_num_workers, size_batches
from network._deeplab import DeepLab
from utils.benchmark.timing import Work
from utils.engine import LossMeter, evaluate, train_step
from utils.loss import build_criterion
from utils.optim import build_optimizer
from utils.precision import build_scaler
from utils.predictor import Predictor


def training(model: DeepLab, batch: list[Tensor], iterations: int, precision: str) -> Work:
    """Iterations of a copy of the model, which the work returns.

    Args:
        model: on the device that computes.
        batch: in the host's memory: images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices.
        iterations: how many steps the work takes.
        precision: "bf16", "fp16" or "fp32".
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, 0.01, 0.1, precision)
    criterion, scheduler = build_criterion("ce", IGNORE_INDEX), StepLR(optimizer, 1000)
    scaler, losses = build_scaler(precision, model.mean.device), LossMeter()

    def train() -> DeepLab:
        torch.backends.cudnn.benchmark = True  # as main.py
        for iteration in range(iterations):
            loss = train_step(model, batch, criterion, optimizer, scaler, precision)
            scheduler.step()
            losses.add(loss, iteration, [], batch[2])
        return model

    return train


def evaluation(model: DeepLab, val_set: SegmentationDataset, precision: str) -> Work:
    """Whole images of several sizes, from the files to the confusion matrix."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    predictor = Predictor(model, precision)
    is_cuda, batches = predictor.device.type == "cuda", size_batches(val_set.image_sizes(), 8)
    loader = build_loader(val_set, batches, default_num_workers(), pin_memory=is_cuda)
    return partial(evaluate, predictor, val_set, loader)
