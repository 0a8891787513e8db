"""Everything that a run needs to go on exactly where it stopped, and one step of training."""

import argparse
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from datasets.loader import derive_seed
from network._deeplab import DeepLab
from utils.checkpoint import describe_model, load_weights
from utils.common.checkpoint_files import read_file, save_checkpoint
from utils.common.errors import UserError
from utils.common.processes import get_rank, is_main
from utils.distributed import loss_of_all, wrap_model
from utils.engine import LossMeter
from utils.precision import autocast


@dataclasses.dataclass
class TrainingState:
    """What a run is made of; `cur_itrs` alone counts.

    Attributes:
        started: `time.perf_counter()` at the start, earlier by what a resumed run had spent.
        saved: `time.perf_counter()` when `last.pth` was written, or read; at first long ago.
        network: the model as it is trained: wrapped for several processes, compiled.
    """

    args: argparse.Namespace  # the settings; `precision` is "bf16", "fp16" or "fp32"
    class_names: Sequence[str]  # of the data
    device: torch.device
    model: DeepLab
    criterion: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    average: AveragedModel | None = None  # of the weights, if that is what is evaluated
    colours: np.ndarray | None = None  # of the classes, uint8 (C, 3); None for the default ones
    cur_itrs: int = 0  # iterations done
    evaluated_itrs: int = 0  # those that were done at the last evaluation
    best_score: float = 0.0  # best mIoU so far, in [0, 1]

    def __post_init__(self) -> None:
        self.precision: str = self.args.precision
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        # The scaler skips a step that overflows, the first one too: the schedule counts iterations.
        warnings.filterwarnings("ignore", message=r"Detected call of .lr_scheduler\.step")
        self.losses = LossMeter()
        self.started, self.saved = time.perf_counter(), -math.inf
        network = wrap_model(self.model, self.device).train()
        self.network = torch.compile(network) if self.args.compile else network

    @property
    def evaluated_model(self) -> DeepLab:
        """The average, or else the model that is trained: what is scored and handed on."""
        return self.model if self.average is None else cast(DeepLab, self.average.module)

    @property
    def lrs(self) -> list[float]:
        """The learning rates of backbone and head in the next iteration."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @property
    def seconds(self) -> float:
        """Time spent so far, over all resumes."""
        return time.perf_counter() - self.started

    @property
    def max_memory_mb(self) -> float | None:
        """Peak memory of the GPU so far, in MB; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e6

    def mean_loss(self) -> float:
        """The mean over the iterations since the last evaluation; there must be one."""
        self.losses.check()
        return self.losses.total / (self.cur_itrs - self.evaluated_itrs)

    def step(self, batch: Sequence[Tensor]) -> None:
        """One iteration on images uint8 (N, 3, H, W), targets uint8 (N, H, W) and indices (N,).

        Raises:
            NonFiniteLossError: the loss, of this or of one of the last iterations, is not finite.
        """
        images, targets, indices = batch
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        with autocast(self.precision, self.device):
            loss = loss_of_all(self.criterion, self.network(images), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.cur_itrs += 1
        self.losses.add(loss, self.cur_itrs, self.lrs, indices)
        self.scheduler.step()

    def describe(self) -> str:
        """What a progress bar shows."""
        memory = self.max_memory_mb
        return (
            f"loss {self.losses.latest:.3f}, lr {self.lrs[-1]:.1e} (backbone {self.lrs[0]:.1e}), "
            f"best mIoU {100 * self.best_score:.2f}"
            + (f", {memory / 1e3:.1f} GB" if memory is not None else "")
        )

    def evaluated(self, miou: float) -> None:
        """Note an evaluation; the mean of the loss starts anew."""
        self.best_score = max(self.best_score, miou)
        self.evaluated_itrs, self.losses.total = self.cur_itrs, 0.0

    def save_best(self, path: Path) -> None:
        """Write what predicts: weights, and what rebuilds their model."""
        if is_main():
            save_checkpoint(path, self._weights_and_settings())

    def save(self, path: Path) -> None:
        """Write everything that `load()` needs: plain values and tensors alone."""
        self.losses.check()
        self.saved = time.perf_counter()
        if is_main():
            average = None
            if self.average is not None:  # its weights are the file's `model_state`
                updates = int(self.average.n_averaged)
                average = {"trained_state": self.model.state_dict(), "updates": updates}
            content = {
                **self._weights_and_settings(),
                "average": average,
                "optimizer_state": self.optimizer.state_dict(),
                "scheduler_state": self.scheduler.state_dict(),
                "scaler_state": self.scaler.state_dict(),
                "evaluated_itrs": self.evaluated_itrs,
                "loss_total": self.losses.total,
                "seconds": self.seconds,
                "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            }
            save_checkpoint(path, content)

    def load(self, path: Path) -> None:
        """Go on from `last.pth`.

        Raises:
            UserError: the file cannot be read, or is of another model or of other classes.
        """
        content = read_file(path)
        try:
            self._check_classes(path, content["class_names"])
            load_weights(self.evaluated_model, content["model_state"], path)
            if self.average is not None:
                load_weights(self.model, content["average"]["trained_state"], path)
                self.average.n_averaged.fill_(content["average"]["updates"])
            for model in (self.model, self.evaluated_model):  # --ckpt may have brought others
                for name in ("mean", "std"):
                    getattr(model, name).copy_(255 * torch.tensor(content[name]).view(3, 1, 1))
            self.optimizer.load_state_dict(content["optimizer_state"])
            self.scheduler.load_state_dict(content["scheduler_state"])
            self.scaler.load_state_dict(content["scaler_state"])
            self.cur_itrs, self.evaluated_itrs = content["cur_itrs"], content["evaluated_itrs"]
            self.best_score = content["best_score"]
            self.losses.total = content["loss_total"]
            self.saved = time.perf_counter()
            self.started = self.saved - content["seconds"]
            self._set_rng_state(content["rng"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be resumed from ({error!r}): use --ckpt for its weights alone"
            ) from None

    def _weights_and_settings(self) -> dict[str, Any]:
        described = describe_model(
            self.evaluated_model, vars(self.args), self.class_names, self.colours
        )
        return {**described, "cur_itrs": self.cur_itrs, "best_score": self.best_score}

    def _check_classes(self, path: Path, stored: Sequence[str]) -> None:
        """The same weights under other names would be another run."""
        own = list(self.class_names)
        if list(stored) != own:
            pairs = itertools.zip_longest(stored, own, fillvalue="no class")
            index, (old, new) = next(item for item in enumerate(pairs) if item[1][0] != item[1][1])
            raise UserError(
                f"{path}: class {index} of the run is {old!r}, that of the data is {new!r}: train "
                f"on the run's classes, or start anew with --run_name NAME --ckpt {path}"
            )

    def _set_rng_state(self, rng: dict[str, Any]) -> None:
        if not is_main():  # the file holds rank 0's: the others' dropout must not be the same
            torch.manual_seed(derive_seed(self.args.seed, get_rank(), self.cur_itrs))
            return
        torch.set_rng_state(rng["cpu"])
        if len(rng["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(rng["cuda"])
