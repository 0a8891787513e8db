"""The few lines that `torchrun` needs; without it everything here does nothing."""

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.common.errors import UserError
from utils.common.processes import get_rank, get_world_size, is_main
from utils.precision import choose_device

CHECK_EVERY = 10  # iterations between two waits for a GPU
TIMEOUT = datetime.timedelta(minutes=30)  # rank 0 may download VOC while the others wait


def init_distributed(name: str) -> torch.device:
    """The device that `--device` names, for this process; join the others that `torchrun` started.

    Each process takes the GPU of its own number, before it touches any.

    Raises:
        UserError: there is no such device, torchrun's variables are there in part, or there are
            more processes than GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return choose_device(name)
    names = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [variable for variable in names if variable not in os.environ]:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}: start with torchrun, or "
            "unset them (env -u RANK -u WORLD_SIZE python ...)"
        )
    if torch.cuda.is_available() and name.startswith(("auto", "cuda")):
        index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"--nproc_per_node: process {index} has no GPU: {count} are here")
        name = f"cuda:{index}"
        torch.cuda.set_device(index)
    device = choose_device(name)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    return device


@contextlib.contextmanager
def distributed(name: str) -> Iterator[torch.device]:
    """`init_distributed(name)`; at the end leave the group, where nothing failed all at once."""
    device = init_distributed(name)
    try:
        yield device
        if dist.is_initialized():  # who leaves early takes the others' connections along
            dist.barrier()
    finally:
        if dist.is_initialized():
            # DistributedDataParallel holds the group, in cycles: threads that live on into the end
            # of the interpreter would abort the process.
            gc.collect()
            dist.destroy_process_group()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 do something alone (a download), then the others (who find it done)."""
    if not is_main():
        dist.barrier()
    yield
    if is_main() and dist.is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def fewest(count: int, device: torch.device) -> int:
    """The least `count` of all processes."""
    if not dist.is_initialized():
        return count
    counts = torch.tensor(count, device=device)
    dist.all_reduce(counts, dist.ReduceOp.MIN)
    return int(counts)


def sync_buffers(model: nn.Module) -> None:
    """Give every process rank 0's running statistics, before an evaluation, in one piece."""
    if dist.is_initialized():
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, 0)
        parts = flat.split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def wrap_model(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """The network to train: gradients averaged, on GPUs batch norm over all processes; compiled."""
    network = model.train()
    if dist.is_initialized():
        options: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": not compiled}
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            options["device_ids"] = [device.index]
        network = DistributedDataParallel(network, **options)
        network.broadcast_buffers = False  # `sync_buffers()` does it where it matters
    return cast(nn.Module, torch.compile(network)) if compiled else network


def loss_of_all(
    criterion: nn.Module, logits: Tensor | tuple[Tensor, ...], target: Tensor
) -> Tensor:
    """The loss of this process, so that averaged gradients are those of one process.

    A loss that is a mean over pixels (it has a `divisor()`) divides by its own process's pixels:
    its share is weighted by their number. Others (ohem, dice, lovasz) see whole regions, or choose
    among all pixels, so they are computed over the logits of all processes.

    Returns:
        a scalar whose mean over the processes is the loss of the whole batch.
    """
    if not dist.is_initialized():
        return criterion(logits, target)
    if divisor := getattr(criterion, "divisor", None):
        own = divisor(target)
        mean = all_reduce_sum(own.clone()) / get_world_size()
        return criterion(logits, target) * own / mean.where(mean > 0, 1)
    parts = tuple(map(_gather, logits)) if isinstance(logits, tuple) else _gather(logits)
    loss = criterion(parts, _gather(target))
    # Only the own logits get a gradient, and the mean over the processes divides it.
    return loss + (get_world_size() - 1) * (loss - loss.detach())


def _gather(own: Tensor) -> Tensor:
    """The batches of all processes, one behind the other; the own part keeps its gradient."""
    own = (own.float() if own.is_floating_point() else own).contiguous()
    parts = [torch.empty_like(own) for _ in range(get_world_size())]
    dist.all_gather(parts, own.detach())
    parts[get_rank()] = own
    return torch.cat(parts)
