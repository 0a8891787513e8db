"""Batches: which samples an iteration sees, and in what random form."""

import contextlib
import dataclasses
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.base import SegmentationDataset
from utils.common.errors import UserError
from utils.common.processes import get_rank, get_world_size

Key = tuple[int, int]  # the seed of a sample's random choices, and its index
Sample = tuple[torch.Tensor, torch.Tensor, int]  # image, target and index

# What torch and Python say of a worker that was killed, or of a /dev/shm that is full, too small or
# missing.
WORKER_FAULTS = (
    "DataLoader worker", "shared memory", "</torch_", "No space left on device",
    "Read-only file system",
)  # fmt: skip


def derive_seed(*numbers: int) -> int:
    """A well-mixed 64-bit seed from non-negative numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class WorkerError(UserError):
    """A data worker is gone; the main process may be in the middle of anything."""


class Samples(Dataset):
    """The sample of a `Key`, which alone decides what it looks like.

    Transforms draw from torch's default CPU generator; it is seeded for each sample and given back
    as it was, so neither workers nor a resume change what a sample looks like, and dropout in
    the training process does not feel it.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        seed, index = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, target = self.dataset[index]
        return image, target, index


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The shuffled batches of iterations `first` to `last`, epoch after epoch.

    They are counted from 0 at the start of the training; `last` is the first one left out. Of
    several processes, each takes every so many-th sample of a batch.
    """

    num_samples: int
    batch_size: int  # over all processes
    first: int
    last: int
    seed: int = 0  # with the epoch it decides the order, with epoch and index the augmentation

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.batch_size
        order: list[int] = []
        for iteration in range(self.first, self.last):
            epoch, position = divmod(iteration, self.num_samples // size)
            if position == 0 or not order:
                rng = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
                order = torch.randperm(self.num_samples, generator=rng).tolist()
            indices = order[position * size : (position + 1) * size]
            yield [
                (derive_seed(self.seed, epoch, index), index)
                for index in indices[get_rank() :: get_world_size()]
            ]


def size_batches(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[Key]]:
    """An evaluation's batches in this process, each of one size: nothing is padded.

    `sizes` are (height, width) of each sample, after the data set's transform.
    """
    by_size: dict[tuple[int, int], list[Key]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append((0, index))
    batches = [
        keys[start : start + batch_size]
        for _, keys in sorted(by_size.items())
        for start in range(0, len(keys), batch_size)
    ]
    return batches[get_rank() :: get_world_size()]


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_num_workers() -> int:
    """One worker per core that is left beside the training process, at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return max(min(8, available_cores() // processes - 1), 0)


def check_batch_size(dataset: SegmentationDataset, batch_size: int) -> None:
    """Raise a `UserError` if the batch is smaller than 2 a process, or larger than the set."""
    world_size = get_world_size()
    if batch_size < 2 * world_size or batch_size % world_size:
        raise UserError(
            f"--batch_size {batch_size}: at least 2 images for each process are needed, because "
            "ASPP's pooling branch normalises one value per image and channel over the batch, and "
            f"a multiple of the processes, of which there are {world_size}"
        )
    if len(dataset) < batch_size:
        raise UserError(
            f"--batch_size {batch_size}: the training set in {dataset.folder} has only "
            f"{len(dataset)} images: give a smaller --batch_size"
        )


def build_loader(
    dataset: SegmentationDataset,
    batches: Iterable[list[Key]],
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """One iterator over batches: of a training across all its epochs, or of an evaluation.

    A batch is images uint8 (N, 3, H, W), channels last in memory, targets uint8 (N, H, W) and
    indices int64 (N,). That of an iteration is the same wherever a run began.

    Args:
        dataset: the samples.
        batches: `TrainBatches`, or `size_batches`.
        num_workers: processes that read samples; 0: the calling process does.
        pin_memory: for a GPU.
    """
    return DataLoader(
        Samples(dataset),
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        persistent_workers=num_workers > 0,
        worker_init_fn=_init_worker,
        # Its own generator: a DataLoader draws a seed, and the default one is the caller's.
        generator=torch.Generator(),
    )


@contextlib.contextmanager
def worker_faults_explained() -> Iterator[None]:
    """Say in one line that a data worker is gone (`WorkerError`), or what one raised (`UserError`).

    torch raises the first wherever the main process is just then, and its message alone tells; it
    puts a traceback before the second.
    """
    try:
        yield
    except UserError as error:
        name = f"{type(error).__module__}.{type(error).__name__}: "
        raise type(error)(str(error).strip().rpartition(name)[-1]) from None
    except (RuntimeError, OSError, EOFError) as error:
        is_cut = isinstance(error, ConnectionResetError | EOFError)  # amid a batch
        if not is_cut and not any(sign in str(error) for sign in WORKER_FAULTS):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise WorkerError(
            f"a data worker was killed, or /dev/shm, through which workers pass batches, is full "
            f"or unusable ({said}): give a smaller --num_workers (0 needs neither), or make room"
        ) from None


def _collate(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Stack samples, in a worker into shared memory; torch's own way makes images contiguous."""
    images, targets, indices = default_collate(
        [(image.permute(1, 2, 0), target, index) for image, target, index in samples]
    )
    return [images.permute(0, 3, 1, 2), targets, indices]


def _init_worker(_: int) -> None:
    """Ctrl-C and torchrun signal all processes of a terminal or group, but workers end last."""
    if hasattr(os, "setsid"):
        os.setsid()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
