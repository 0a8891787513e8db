"""Everything that a run needs to go on exactly where it stopped."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from datasets.loader import derive_seed
from utils.checkpoint import load_weights, read_file, save_checkpoint
from utils.common.errors import UserError
from utils.distributed import any_process, get_rank, get_world_size, is_main
from utils.engine import CHECK_EVERY, LossMeter
from utils.signals import StopSignals


@dataclasses.dataclass
class TrainingState:
    """The parts of a run that change, and the settings that rebuild the model.

    Attributes:
        model: what is trained.
        average: the moving average of its weights, if that is what is evaluated.
        cur_itrs: iterations done.
        epoch: epochs done.
        best_score: best mIoU so far, in [0, 1].
        started: `time.perf_counter()` at the start, earlier by what a resumed run had spent.
    """

    model: nn.Module
    average: AveragedModel | None
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    losses: LossMeter
    args: argparse.Namespace
    class_names: Sequence[str]
    cur_itrs: int = 0
    epoch: int = 0
    best_score: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def evaluated_model(self) -> nn.Module:
        """The average, or else the model that is trained: what is scored and handed on."""
        return self.model if self.average is None else self.average.module

    def seconds(self) -> float:
        """Time spent so far, over all resumes."""
        return time.perf_counter() - self.started

    def save(self, path: Path) -> None:
        """Write `best.pth` or `last.pth`: plain values and tensors alone."""
        self.losses.check()
        if not is_main():
            return
        save_checkpoint(
            path,
            {
                "model_state": self.evaluated_model.state_dict(),
                "average": self._average_state(),
                "optimizer_state": self.optimizer.state_dict(),
                "scheduler_state": self.scheduler.state_dict(),
                "scaler_state": self.scaler.state_dict(),
                "cur_itrs": self.cur_itrs,
                "epoch": self.epoch,
                "best_score": self.best_score,
                "seconds": self.seconds(),
                "train_loss": {"total": self.losses.total, "count": self.losses.count},
                "rng": _rng_state(),
                "args": vars(self.args),
                "class_names": list(self.class_names),
                "mean": (self.model.mean.flatten() / 255).tolist(),
                "std": (self.model.std.flatten() / 255).tolist(),
            },
        )

    def load(self, path: Path) -> None:
        """Go on from `last.pth`.

        Raises:
            UserError: the file cannot be read, or is of another model.
        """
        content = read_file(path)
        try:
            load_weights(self.evaluated_model, content["model_state"], path)
            if self.average is not None:
                load_weights(self.model, content["average"]["trained_state"], path)
                self.average.n_averaged.fill_(content["average"]["updates"])
            self.optimizer.load_state_dict(content["optimizer_state"])
            self.scheduler.load_state_dict(content["scheduler_state"])
            self.scaler.load_state_dict(content["scaler_state"])
            self.cur_itrs, self.epoch = content["cur_itrs"], content["epoch"]
            self.best_score = content["best_score"]
            self.started = time.perf_counter() - content["seconds"]
            self.losses.iteration = self.cur_itrs
            self.losses.total = content["train_loss"]["total"]
            self.losses.count = content["train_loss"]["count"]
            _set_rng_state(content["rng"], self)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be resumed from ({error!r}): use --ckpt for its weights alone"
            ) from None

    def _average_state(self) -> dict[str, Any] | None:
        """What a resume needs beside the average itself, which is the file's `model_state`."""
        if self.average is None:
            return None
        updates = int(self.average.n_averaged)
        return {"trained_state": self.model.state_dict(), "updates": updates}


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(rng: dict[str, Any], state: TrainingState) -> None:
    if not is_main():  # the file holds rank 0's: the others' dropout must not be the same
        torch.manual_seed(derive_seed(state.args.seed, get_rank(), state.cur_itrs))
        return
    torch.set_rng_state(rng["cpu"])
    if len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])


class AfterStep:
    """What happens between two iterations: count, show, save, and see whether to stop.

    Args:
        state: counted up.
        bar: shows loss and learning rate.
        path: where to save on the way.
        save_interval: iterations between two such saves; 0 for none.
        signals: a signal that came is a reason to stop, in whatever process it came.
    """

    def __init__(
        self, state: TrainingState, bar: tqdm, path: Path, save_interval: int, signals: StopSignals
    ) -> None:
        self.state = state
        self.bar = bar
        self.path = path
        self.save_interval = save_interval
        self.signals = signals

    def __call__(self) -> bool:
        """Return True when training is to stop."""
        state = self.state
        state.cur_itrs += 1
        if state.average is not None:
            state.average.update_parameters(state.model)
        lr = state.optimizer.param_groups[-1]["lr"]
        self.bar.set_postfix(loss=f"{state.losses.latest:.3f}", lr=f"{lr:.1e}", refresh=False)
        self.bar.update()
        if self.save_interval and state.cur_itrs % self.save_interval == 0:
            state.save(self.path)
        if get_world_size() == 1:
            return self.signals.received is not None
        # Processes agree on where to stop; on GPUs seldom, since asking waits for the device.
        device = next(state.model.parameters()).device
        if device.type == "cuda" and state.cur_itrs % CHECK_EVERY:
            return False
        return any_process(self.signals.received is not None, device)
