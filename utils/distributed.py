"""The few lines that `torchrun` needs; without it everything here does nothing."""

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = datetime.timedelta(minutes=30)  # rank 0 may download VOC while the others wait


def init_distributed(device: torch.device) -> torch.device:
    """Join the other processes if `torchrun` started this one.

    Returns:
        The device of this process: its own GPU, or `device` as it is.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    return device


def wait_for_all() -> None:
    """Come to the end together: a process that leaves early takes the others' connections along."""
    if dist.is_initialized():
        dist.barrier()


def end_distributed() -> None:
    """Leave the group, so that no process waits for one that is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank() -> int:
    """Number of this process, 0 for the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return get_rank() == 0


def print_main(text: str) -> None:
    """Print in rank 0 alone."""
    if is_main():
        print(text, flush=True)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 do something alone (a download), then the others (who find it done)."""
    if not is_main():
        dist.barrier()
    yield
    if is_main() and dist.is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; all get the same answer."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)) > 0)


def sync_buffers(model: nn.Module) -> None:
    """Give every process rank 0's running statistics, before an evaluation."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model for training: gradients averaged, on GPUs batch norm over all processes."""
    if not dist.is_initialized():
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index])
    return DistributedDataParallel(model)


def loss_share(criterion: nn.Module, target: torch.Tensor) -> torch.Tensor | float:
    """What to multiply this process's loss with, so that averaged gradients are one process's.

    A loss that is a mean over pixels divides by its own process's pixels; the mean over all
    processes needs the number of all. Losses without a `divisor()` are averaged as they are.
    """
    if not dist.is_initialized() or not hasattr(criterion, "divisor"):
        return 1.0
    own = criterion.divisor(target)
    mean = all_reduce_sum(own.clone()) / get_world_size()
    return own / mean.where(mean > 0, 1)
