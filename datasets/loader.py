"""Batches: which samples an iteration sees, and in what random form."""

import contextlib
import copy
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from multiprocessing import Lock, RawArray, active_children
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from datasets.base import SegmentationDataset
from utils.common.errors import UserError

Key = tuple[int, int]  # epoch and index
Sample = tuple[torch.Tensor, torch.Tensor, int]  # image, target and index

# What torch and Python say if /dev/shm is full, too small, or missing.
SHARED_MEMORY_FAULTS = ("Bus error", "shared memory", "</torch_", "No space left on device")
BUS_ERROR = -getattr(signal, "SIGBUS", 7)  # exit code of a worker that writes where no room is
SHARED_MEMORY_ADVICE = (
    "/dev/shm: full, too small or unusable, but data workers pass batches through it: make it "
    "larger, or use --num_workers 0"
)


def derive_seed(*numbers: int) -> int:
    """A well-mixed 64-bit seed from non-negative numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """How batches are made."""

    batch_size: int  # samples; in training over all processes, in evaluation for each
    seed: int = 0  # with the epoch it decides the order, with epoch and index the augmentation
    num_workers: int = 0  # processes that read samples; 0: the calling process reads them
    pin_memory: bool = False


class Samples(Dataset):
    """Sample `(epoch, index)`, its random choices a function of (seed, epoch, index) alone.

    Transforms draw from torch's default CPU generator; it is seeded for each sample and given back
    as it was, so neither workers nor a resume change what a sample looks like, and dropout in
    the training process does not feel it.
    """

    def __init__(self, dataset: SegmentationDataset, seed: int, num_workers: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        # Which sample each worker is at, in memory that outlives the worker.
        self.in_work = RawArray("q", [-1] * num_workers) if num_workers else []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        if worker := get_worker_info():
            self.in_work[worker.id] = index
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            image, target = self.dataset[index]
        return image, target, index


def batches_per_epoch(dataset: Sized, batch_size: int) -> int:
    """Iterations of an epoch: the last, incomplete batch is left out."""
    return len(dataset) // batch_size


def process_share() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The shuffled batches of iterations `first` to `last`, epoch after epoch.

    They are counted from 0 at the start of the training; `last` is the first one left out. Of
    several processes, each takes every so many-th sample of a batch.
    """

    num_samples: int
    settings: LoaderSettings
    first: int
    last: int
    # (num_samples,): how often a sample is drawn, with replacement; None: once an epoch.
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world_size = process_share()
        size = self.settings.batch_size
        order: list[int] = []
        for iteration in range(self.first, self.last):
            epoch, position = divmod(iteration, self.num_samples // size)
            if position == 0 or not order:
                order = self.draw_order(epoch)
            indices = order[position * size : (position + 1) * size]
            yield [(epoch, index) for index in indices[rank::world_size]]

    def draw_order(self, epoch: int) -> list[int]:
        """The indices of an epoch's samples, shuffled."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, epoch))
        if self.weights is None:
            return torch.randperm(self.num_samples, generator=generator).tolist()
        return self.weights.multinomial(self.num_samples, True, generator=generator).tolist()


def size_batches(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[Key]]:
    """This process' batches of images of one size: no padding changes what the network sees.

    Args:
        sizes: (height, width) of each sample.
        batch_size: at most so many samples a batch.
    """
    by_size: dict[tuple[int, int], list[Key]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append((0, index))
    batches = [
        keys[start : start + batch_size]
        for _, keys in sorted(by_size.items())
        for start in range(0, len(keys), batch_size)
    ]
    rank, world_size = process_share()
    return batches[rank::world_size]


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_num_workers() -> int:
    """One worker per core that is left beside the training process, at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return max(min(8, available_cores() // processes - 1), 0)


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """A data set to evaluate on, and its batches, each of images of one size."""

    dataset: SegmentationDataset
    loader: DataLoader


def check_batch_size(dataset: SegmentationDataset, batch_size: int) -> None:
    """Raise a `UserError` if the batch is smaller than 2 a process, or larger than the set."""
    _, world_size = process_share()
    if batch_size < 2 * world_size:
        raise UserError(
            f"--batch_size {batch_size}: at least 2 images for each process are needed, because "
            "ASPP's pooling branch normalises one value per image and channel over the batch"
        )
    if batch_size % world_size:
        raise UserError(f"--batch_size {batch_size}: not a multiple of the {world_size} processes")
    if len(dataset) < batch_size:
        raise UserError(
            f"--batch_size {batch_size}: the training set in {dataset.folder} has only "
            f"{len(dataset)} images: give a smaller --batch_size"
        )


def build_train_loader(
    dataset: SegmentationDataset,
    settings: LoaderSettings,
    first: int,
    last: int,
    weights: torch.Tensor | None = None,
) -> DataLoader:
    """One iterator over the batches of iterations `first` to `last`, across all epochs.

    A batch is images uint8 (N, 3, H, W), channels last in memory, targets uint8 (N, H, W) and
    indices int64 (N,). That of an iteration is the same wherever a run began.

    Raises:
        UserError: the batch size does not fit (`check_batch_size`), or /dev/shm is too small.
    """
    check_batch_size(dataset, settings.batch_size)
    batches = TrainBatches(len(dataset), settings, first, last, weights)
    return _build_loader(dataset, batches, settings)


def build_val_loader(
    dataset: SegmentationDataset, sizes: Sequence[tuple[int, int]], settings: LoaderSettings
) -> DataLoader:
    """Batches of one size each; `sizes` are those after the data set's transform."""
    return _build_loader(dataset, size_batches(sizes, settings.batch_size), settings)


@contextlib.contextmanager
def child_signals_kept() -> Iterator[None]:
    """Undo that torch handles SIGCHLD: it would raise a worker's fault wherever training is then.

    Without it, asking for a batch that does not come says so, within five seconds. That holds for
    every DataLoader, so a handler that torch left for an earlier one goes as well.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "SIGCHLD"):  # torch leaves it alone there as well
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) == "torch.utils.data._utils.signal_handling":
        before = signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


class Flag:
    """What torch tells workers to end with, without a lock: a killed worker could not give it back.

    With Python's own `Event`, this process would wait for that lock forever.
    """

    def __init__(self) -> None:
        self.value = RawArray("b", 1)

    def set(self) -> None:
        """Say it, for good."""
        self.value[0] = 1

    def is_set(self) -> bool:
        """Whether it was said."""
        return bool(self.value[0])


def worker_context() -> BaseContext:
    """Python's way to start processes, with a `Flag` for an `Event`."""
    context = copy.copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Event = Flag  # type: ignore[assignment, method-assign]
    return context


class Loader(DataLoader):
    """A DataLoader that says in one line why its workers failed."""

    dataset: Samples
    workers: frozenset[BaseProcess] = frozenset()

    def __iter__(self) -> Any:
        others = set(active_children())
        try:
            with child_signals_kept():
                batches = super().__iter__()
            self.workers |= set(active_children()) - others
            yield from batches
        except (RuntimeError, OSError, EOFError) as error:
            is_killed = str(error).startswith("DataLoader worker")
            if isinstance(error, (ConnectionError, EOFError)):  # amid a batch
                is_killed = bool(wait([worker.sentinel for worker in self.workers], timeout=5))
            is_full = any(worker.exitcode == BUS_ERROR for worker in self.workers)
            is_full = is_full or any(text in str(error) for text in SHARED_MEMORY_FAULTS)
            if self.num_workers and is_full:
                raise UserError(SHARED_MEMORY_ADVICE) from None
            if not is_killed:
                raise
            ids = [self.dataset.dataset.ids[index] for index in self.dataset.in_work if index >= 0]
            raise UserError(
                f"a data worker was killed while it read one of {', '.join(ids)}: look at these "
                "files, or give a smaller --num_workers if memory ran out"
            ) from None


def _collate(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Stack samples, in a worker into shared memory.

    torch's own function would make the images contiguous, and share the indices where no error is
    caught.
    """
    images, targets, indices = default_collate(
        [(image.permute(1, 2, 0), target, torch.tensor(index)) for image, target, index in samples]
    )
    return [images.permute(0, 3, 1, 2), targets, indices]


def _init_worker(_: int) -> None:
    """Leave the terminal's group: Ctrl-C and torchrun signal all of it, but workers end last."""
    if hasattr(os, "setsid"):
        os.setsid()


def _build_loader(
    dataset: SegmentationDataset, batches: Iterable[list[Key]], settings: LoaderSettings
) -> DataLoader:
    try:
        samples = Samples(dataset, settings.seed, settings.num_workers)
        # Workers need locks, which lie there as well. torch would fail with two messages.
        _ = [Lock() for _ in range(10 * settings.num_workers)]
    except OSError:
        raise UserError(SHARED_MEMORY_ADVICE) from None
    return Loader(
        samples,
        batch_sampler=batches,
        num_workers=settings.num_workers,
        multiprocessing_context=worker_context() if settings.num_workers else None,
        pin_memory=settings.pin_memory,
        collate_fn=_collate,
        persistent_workers=settings.num_workers > 0,
        worker_init_fn=_init_worker,
        # Its own generator: a DataLoader draws a seed from the default one, which would make
        # dropout depend on how often a run was resumed.
        generator=torch.Generator(),
    )
