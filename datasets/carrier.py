"""Batches from the workers to the training process, in shared memory that is used over again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

PREFETCH = 2  # batches that a worker makes ahead
SLOTS = PREFETCH + 1  # and one that is being read
HEADER = 64  # bytes of a slot before its batch, and the multiple at which its tensors begin


Sample = tuple[torch.Tensor, torch.Tensor, int]
Layout = list[tuple[torch.dtype, tuple[int, ...]]]


class Parcel(NamedTuple):
    """What a worker sends of a batch, whose pixels lie in a slot.

    Attributes:
        key: (worker, slot).
        number: counts the worker's batches; it stands in the slot's header, too.
        slot: shared memory; None if the receiver is known to have it.
        layout: of the tensors in it.
        indices: of the samples.
    """

    key: tuple[int, int]
    number: int
    slot: torch.Tensor | None
    layout: Layout
    indices: tuple[int, ...]


class Carrier:
    """Stacks samples, and carries them from the workers in shared memory that is used over again.

    Fresh shared memory costs a page fault every few KiB on both sides, and every tensor that
    travels a connection: more than a crop takes to be cut and resized. Here each worker has a few
    slots, which it fills in turn, and the training process copies a batch out when it arrives.
    Images are stacked channels last, as they are decoded and as the network takes them.

    Args:
        pin_memory: batches lie in pinned memory.
    """

    def __init__(self, pin_memory: bool = False) -> None:
        self.pin_memory = pin_memory
        self.number = 0
        self.slots: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, samples: Sequence[Sample]) -> Parcel | list[torch.Tensor]:
        """Stack samples: in a worker into its next slot, else into a batch as `unpack` gives it."""
        images, targets, indices = zip(*samples, strict=True)
        columns = [image.permute(1, 2, 0) for image in images], targets
        layout = [(column[0].dtype, (len(column), *column[0].shape)) for column in columns]
        worker = get_worker_info()
        if worker is None:
            memory = self._empty(layout)
        else:
            self.number += 1
            key = worker.id, self.number % SLOTS
            slot, is_known = self._prepare_slot(key, layout)
            memory = slot[HEADER:]
        for column, stacked in zip(columns, cut_memory(memory, layout), strict=True):
            torch.stack(tuple(column), out=stacked)
        if worker is None:
            return as_batch(memory, layout, indices)
        return Parcel(key, self.number, None if is_known else slot, layout, indices)

    def unpack(self, parcel: Parcel | list[torch.Tensor]) -> list[torch.Tensor]:
        """The batch (images, targets, indices), in memory of its own."""
        if not isinstance(parcel, Parcel):
            return parcel
        if parcel.slot is not None:
            self.slots[parcel.key] = parcel.slot
        slot = self.slots[parcel.key]
        memory = self._empty(parcel.layout)
        memory.copy_(slot[HEADER : HEADER + len(memory)])
        number_and_known = slot[:HEADER].view(torch.int64)
        assert number_and_known[0] == parcel.number, "a slot was filled again before it was read"
        # Said only now: an epoch that ends early throws away what its workers had sent.
        number_and_known[1] = 1
        return as_batch(memory, parcel.layout, parcel.indices)

    def _prepare_slot(self, key: tuple[int, int], layout: Layout) -> tuple[torch.Tensor, bool]:
        """A slot with room for `layout`, and whether the training process knows it."""
        slot, size = self.slots.get(key), HEADER + memory_size(layout)
        if slot is None or len(slot) < size:
            # Evaluation goes from small images to large ones: leave room to grow.
            size = size if slot is None else size * 5 // 4 // HEADER * HEADER
            slot = self.slots[key] = torch.zeros(size, dtype=torch.uint8).share_memory_()
        number_and_known = slot[:HEADER].view(torch.int64)
        number_and_known[0] = self.number
        return slot, bool(number_and_known[1])

    def _empty(self, layout: Layout) -> torch.Tensor:
        size = memory_size(layout)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.pin_memory)


def memory_size(layout: Layout) -> int:
    """Bytes that tensors of these types and shapes take, each rounded up to `HEADER`."""
    sizes = (dtype.itemsize * math.prod(shape) for dtype, shape in layout)
    return sum(-(-size // HEADER) * HEADER for size in sizes)


def cut_memory(memory: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """The tensors of `layout` in bytes, one behind the other."""
    tensors, start = [], 0
    for part in layout:
        dtype, shape = part
        stop = start + dtype.itemsize * math.prod(shape)
        tensors.append(memory[start:stop].view(dtype).view(shape))
        start += memory_size([part])
    return tensors


def as_batch(memory: torch.Tensor, layout: Layout, indices: Sequence[int]) -> list[torch.Tensor]:
    """Images (N, 3, H, W), channels last, targets (N, H, W) and indices (N,)."""
    images, targets = cut_memory(memory, layout)
    return [images.permute(0, 3, 1, 2), targets, torch.tensor(indices)]
