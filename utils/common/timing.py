"""Contenders timed in turns, the memory that each takes, and their table."""

import contextlib
import ctypes
import dataclasses
import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from utils.common.progress import progress

Run = Callable[[], object]


@dataclasses.dataclass
class Contender:
    """One way to do some work.

    Attributes:
        name: stands in the table.
        build: makes ready what is not to be timed, and returns what is.
        images: that one run handles.
        work: that one run does, as its limits count it: GFLOP or files.
        base: what this one is compared with, on as many images; None for a base or a limit.
        limits: the contenders that do this work and nothing else.
        seconds: that each round took.
        peak_mb: the most memory that it held; 0 if that cannot be told.
    """

    name: str
    build: Callable[[], Run]
    images: int = 1
    work: float = 0
    base: "Contender | None" = None
    limits: Sequence["Contender"] = ()
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_mb: float = 0

    @property
    def ms(self) -> float:
        """Milliseconds for an image: the median over the rounds."""
        return 1000 * statistics.median(self.seconds) / self.images

    def speedup(self, other: "Contender") -> float:
        """The other's seconds over this one's: the median over the rounds."""
        rounds = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in rounds)


def peak_memory(device: torch.device, reset: bool = False) -> float:
    """The most MB that were in use since the last reset; 0 where that cannot be told.

    CUDA: what tensors take. CPU, on Linux: the high-water mark of the process's resident memory.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s*(\d+)", status)
    return 1.024e-3 * int(found[1]) if found else 0.0


def timed(run: Run, device: torch.device) -> float:
    """Seconds until the device is done with a run."""
    start = time.perf_counter()
    run()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - start


def measure(contenders: Sequence[Contender], repeats: int, device: torch.device) -> None:
    """Time all contenders in turns, so that what else the machine does meets them alike.

    Each is built and run twice before: the first run starts workers and lets cuDNN choose, the
    second shows the memory. Every other round goes backwards.
    """
    turns = []
    for contender in progress(contenders, "warm up", leave=False):
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc: freed memory would be used again unseen
        before = peak_memory(device, reset=True)
        run = contender.build()
        run()
        peak_memory(device, reset=True)
        timed(run, device)
        contender.peak_mb = peak_memory(device) - before
        turns.append((contender, run))
    for repeat in progress(range(repeats), "measure", leave=False):
        for contender, run in turns if repeat % 2 == 0 else reversed(turns):
            contender.seconds.append(timed(run, device))


def table_row(one: Contender) -> str:
    """A contender beside its base, in Markdown.

    The columns are the name, milliseconds per image of both, the speedup, the share of the fastest
    limit's rate, and the most memory of both.
    """
    assert one.base is not None
    rates = (one.speedup(limit) * one.work / limit.work for limit in one.limits)
    share = min(rates, default=math.inf)
    # What is slower than the work itself is no limit of it.
    of_limit = f"{100 * share:.0f} %" if share <= 1 else "-"
    peak = f"{one.base.peak_mb:.0f} to {one.peak_mb:.0f} MB" if one.peak_mb >= 1 else "-"
    return (
        f"| {one.name} | {one.base.ms:.1f} ms | {one.ms:.1f} ms | {one.speedup(one.base):.2f} "
        f"| {of_limit} | {peak} |"
    )
