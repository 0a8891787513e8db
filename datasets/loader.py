"""Batches: which samples an iteration sees, and in what random form."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datasets.base import SegmentationDataset
from datasets.carrier import PREFETCH, Carrier
from utils.common.errors import UserError

MAX_WORKERS = 64


def derive_seed(*numbers: int) -> int:
    """A well-mixed 64-bit seed from non-negative numbers, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class InWork:
    """Which sample each worker is at, in memory that outlives the worker."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.indices = torch.full((MAX_WORKERS,), -1).share_memory_()

    def note(self, index: int) -> None:
        """The calling worker begins with this sample."""
        if worker := get_worker_info():
            self.indices[worker.id % MAX_WORKERS] = index

    def names(self) -> list[str]:
        """The ids of the samples that were begun last."""
        return [self.ids[index] for index in self.indices.tolist() if index >= 0]


class TrainSamples(Dataset):
    """Sample `(epoch, index)`, its random choices a function of (seed, epoch, index) alone.

    Transforms draw from torch's default CPU generator; it is seeded for each sample and given back
    as it was, so neither workers nor a resume change what a sample looks like, and dropout in
    the training process does not feel it.
    """

    def __init__(self, dataset: SegmentationDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.in_work = InWork(dataset.ids)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        epoch, index = key
        self.in_work.note(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            image, target = self.dataset[index]
        return image, target, index


class ValSamples(Dataset):
    """Samples with their index."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.in_work = InWork(dataset.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        self.in_work.note(index)
        image, target = self.dataset[index]
        return image, target, index


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of `(epoch, index)`; the last, incomplete one of an epoch is left out.

    Args:
        num_samples: size of the training set.
        batch_size: samples per iteration, over all processes.
        seed: with the epoch it decides the order.
        rank: this process takes every `world_size`-th sample of a batch, from `rank` on.
        world_size: number of processes.
        weights: (num_samples,), how often a sample is drawn, with replacement; None: once an epoch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: torch.Tensor | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.weights = weights
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches_per_epoch = num_samples // batch_size
        self.set_range(0)

    def set_range(self, epoch: int, first: int = 0, last: int | None = None) -> None:
        """The next iteration gives batches `first` to `last` (exclusive) of `epoch`."""
        self.epoch, self.first = epoch, first
        self.last = self.batches_per_epoch if last is None else min(last, self.batches_per_epoch)

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = self.weights.multinomial(self.num_samples, True, generator=generator)
        order = order.tolist()
        for batch in range(self.first, self.last):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in indices[self.rank :: self.world_size]]


class SizeBatchSampler(Sampler[list[int]]):
    """Batches of images of one size, so that no padding changes what the network sees.

    Args:
        sizes: (height, width) of each sample.
        batch_size: at most so many samples a batch.
        rank: this process takes every `world_size`-th batch, from `rank` on.
        world_size: number of processes.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            by_size[size].append(index)
        batches = [
            indices[start : start + batch_size]
            for _, indices in sorted(by_size.items())
            for start in range(0, len(indices), batch_size)
        ]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_num_workers() -> int:
    """One worker per core that is left beside the training process, at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return max(min(8, available_cores() // processes - 1), 0)


class Loader(DataLoader):
    """A DataLoader that names the samples if a worker dies (memory ran out, a decoder crashed)."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        try:
            for parcel in super().__iter__():
                yield self.collate_fn.unpack(parcel)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            samples = ", ".join(self.dataset.in_work.names())
            raise UserError(
                f"a data worker was killed while it read one of {samples}: look at these files, or "
                "give a smaller --num_workers if memory ran out"
            ) from None


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """A data set to evaluate on, and its batches, each of images of one size."""

    dataset: SegmentationDataset
    loader: DataLoader


def build_train_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    seed: int,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    weights: torch.Tensor | None = None,
) -> Loader:
    """Batches (images uint8 (N, 3, H, W), targets uint8 (N, H, W), indices int64 (N,)).

    Images are channels last in memory. Before each epoch call
    `loader.batch_sampler.set_range(epoch)`.

    Raises:
        UserError: the batch is smaller than 2 a process, or larger than the training set.
    """
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
    sampler = TrainBatchSampler(len(dataset), batch_size, seed, rank, world_size, weights)
    return _build_loader(TrainSamples(dataset, seed), sampler, num_workers, pin_memory)


def build_val_loader(
    dataset: SegmentationDataset,
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Batches of one size each; `sizes` are those after the data set's transform."""
    sampler = SizeBatchSampler(sizes, batch_size, rank, world_size)
    return _build_loader(ValSamples(dataset), sampler, num_workers, pin_memory)


def _init_worker(_: int) -> None:
    """Leave the terminal's group: Ctrl-C and torchrun signal all of it, but workers end last."""
    if hasattr(os, "setsid"):
        os.setsid()


def _build_loader(samples: Dataset, sampler: Sampler, num_workers: int, pin_memory: bool) -> Loader:
    return Loader(
        samples,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=Carrier(pin_memory),
        prefetch_factor=PREFETCH if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=_init_worker,
        # Its own generator: a DataLoader draws a seed from the default one for every epoch, which
        # would make dropout depend on how often a run was resumed.
        generator=torch.Generator(),
    )
