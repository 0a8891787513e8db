"""What `last.pth` holds, and how it is written and read."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datasets.loader import WorkerError
from network._deeplab import DeepLab
from utils.checkpoint import (
    describe_model,
    first_difference,
    load_checkpoint,
    load_weights,
    set_normalisation,
)
from utils.common.checkpoint_files import save_checkpoint
from utils.common.errors import UserError
from utils.common.processes import get_world_size, is_main
from utils.common.progress import say
from utils.engine import LossMeter, NonFiniteError
from utils.optim import WeightAverage
from utils.run_folder import RunFolder
from utils.signals import Stopped


@dataclasses.dataclass
class TrainingState:
    """Everything that a run needs to go on exactly where it stopped; `cur_itrs` alone counts."""

    model: DeepLab  # as it is trained
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    average: WeightAverage | None  # of the weights, if that is what is evaluated
    losses: LossMeter  # since the last evaluation
    settings: Mapping[str, Any]  # of the run; only kept
    class_names: Sequence[str]  # of the data
    colours: np.ndarray  # of the classes, uint8 (C, 3)
    lrs: list[float] = dataclasses.field(default_factory=list)  # in the last iteration, by group
    cur_itrs: int = 0  # iterations done
    evaluated_itrs: int = 0  # those that were done at the last evaluation
    best_score: float = 0.0  # best mIoU so far, in [0, 1]
    seconds: float = 0.0  # spent so far, over all resumes

    @property
    def evaluated_model(self) -> DeepLab:
        """The average, or else the model that is trained: what is scored and handed on."""
        return self.model if self.average is None else self.average.model

    def save_best(self, path: Path, score: float) -> None:
        """Write what predicts: weights, what rebuilds their model, and their mIoU in [0, 1]."""
        if is_main():
            save_checkpoint(path, {**self._weights_and_settings(), "best_score": score})
        self.best_score = score

    def save(self, path: Path) -> None:
        """Write everything that `load()` needs: plain values and tensors alone.

        Raises:
            NonFiniteError: a loss or a weight is not finite; the file stays as it was.
        """
        self.losses.check()
        self.check_weights()
        if not is_main():
            return
        average = None
        if self.average is not None:  # its weights are the file's `model_state`
            trained = self.model.state_dict()
            average = {"trained_state": trained, "updates": self.average.updates}
        content = {
            **self._weights_and_settings(),
            "average": average,
            "optimizer_state": self.optimizer.state_dict(),
            "scheduler_state": self.scheduler.state_dict(),
            "scaler_state": self.scaler.state_dict(),
            "evaluated_itrs": self.evaluated_itrs,
            "lrs": self.lrs,
            "loss_total": self.losses.total,
            "seconds": self.seconds,
        }
        save_checkpoint(path, content)

    def check_weights(self) -> None:
        """Raise a `NonFiniteError` if a weight or a running statistic is infinite or NaN.

        A finite loss may have had a gradient that was not.
        """
        values = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if not torch.stack(torch._foreach_norm(values)).isfinite().all():
            raise NonFiniteError(
                f"the weights are not finite after iteration {self.cur_itrs}: lower --lr, or use "
                "--precision fp32"
            )

    def load(self, path: Path) -> None:
        """Go on from `last.pth`.

        Raises:
            UserError: the file cannot be read, or is of another model or of other classes.
        """
        checkpoint = load_checkpoint(path)
        content = checkpoint.content
        if difference := first_difference(checkpoint, self.class_names):
            raise UserError(
                f"{path}: the data have other classes ({difference}): train on the run's classes, "
                f"or start anew with --run_name NAME --ckpt {path}"
            )
        try:
            load_weights(self.evaluated_model, content["model_state"], path)
            if self.average is not None:
                load_weights(self.model, content["average"]["trained_state"], path)
                self.average.updates = content["average"]["updates"]
            for model in (self.model, self.evaluated_model):  # --ckpt may have brought others
                set_normalisation(model, checkpoint.mean, checkpoint.std)
            self.optimizer.load_state_dict(content["optimizer_state"])
            self.scheduler.load_state_dict(content["scheduler_state"])
            self.scaler.load_state_dict(content["scaler_state"])
            self.cur_itrs, self.evaluated_itrs = content["cur_itrs"], content["evaluated_itrs"]
            self.best_score, self.seconds = content["best_score"], content["seconds"]
            self.lrs = content.get("lrs", self.scheduler.get_last_lr())  # older files have none
            self.losses.total = content["loss_total"]
            if "rng" in content:
                say(f"note: {path} is of older code: dropout draws other numbers from here on")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be resumed from ({error!r}): use --ckpt for its weights alone"
            ) from None

    def _weights_and_settings(self) -> dict[str, Any]:
        described = describe_model(
            self.evaluated_model, self.settings, self.class_names, self.colours
        )
        return {**described, "cur_itrs": self.cur_itrs, "best_score": self.best_score}


@contextlib.contextmanager
def kept_at_the_end(state: TrainingState, folder: RunFolder) -> Iterator[None]:
    """Whatever ends a training: keep what is done, and say how to go on.

    Raises:
        UserError: that of the training, and what is kept.
    """
    names = ["--runs_dir", str(folder.path.parent), "--run_name", folder.path.name]
    go_on = f"go on with {shlex.join(['python', 'main.py', '--resume', *names])}"
    try:
        yield
    except Stopped:
        state.save(folder.last)
        say(f"stopped at iteration {state.cur_itrs}: {go_on}")
    except NonFiniteError as error:
        good = f"{folder.last} holds good weights"
        kept = good if folder.last.exists() else "nothing was saved yet"
        raise UserError(f"{error}; {kept}") from None
    except UserError as error:
        # It came between two iterations, unless it was a worker's end. Several processes could not
        # agree on anything any more.
        if state.cur_itrs and get_world_size() == 1 and not isinstance(error, WorkerError):
            state.save(folder.last)
        raise UserError(f"{error}; {go_on}" if folder.last.exists() else str(error)) from None
