"""Contenders timed in turns, the memory that each takes, and their table."""

import contextlib
import ctypes
import dataclasses
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
        base: name of the contender that this one is compared with; None for a base or a limit.
        limits: names of the contenders that do this work and nothing else.
        seconds: that each round took.
        peak_mb: the most memory that it held; 0 if that cannot be told.
    """

    name: str
    build: Callable[[], Run]
    images: int = 1
    work: float = 0
    base: str | None = None
    limits: tuple[str, ...] = ()
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_mb: float = 0

    def rate_over(self, other: "Contender", unit: str) -> float:
        """This rate over the other's, counted in images or work: the median over the rounds."""
        rounds = zip(other.seconds, self.seconds, strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in rounds)
        return ratio * getattr(self, unit) / getattr(other, unit)


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


def summarize(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Medians over the rounds; a ratio is taken within each round, before the median.

    Returns:
        For each contender `name`, `seconds`, `ms` per image, `peak_mb`, and `spread` (largest less
        smallest time, over the median). With a base also `base` and the `ratio` of the rates; with
        limits `share` of the fastest.
    """
    by_name = {contender.name: contender for contender in contenders}
    rows = []
    for one in contenders:
        median = statistics.median(one.seconds)
        spread = (max(one.seconds) - min(one.seconds)) / median
        row = {"name": one.name, "seconds": one.seconds, "ms": 1000 * median / one.images}
        row |= {"peak_mb": one.peak_mb, "spread": spread}
        if one.base:
            row |= {"base": one.base, "ratio": one.rate_over(by_name[one.base], "images")}
        if one.limits:
            share = min(one.rate_over(by_name[name], "work") for name in one.limits)
            if share <= 1:  # what is slower than the work itself is no limit of it
                row["share"] = share
        rows.append(row)
    return rows


def format_table(title: str, heads: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of what was compared; `heads` name the base and what is beside it."""
    by_name = {row["name"]: row for row in rows}
    lines = [
        f"| {title} | {heads[0]} | {heads[1]} | ratio | of the limit | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "base" in row:
            base = by_name[row["base"]]
            share = f"{100 * row['share']:.0f} %" if "share" in row else "-"
            peak = (
                f"{base['peak_mb']:.0f} to {row['peak_mb']:.0f} MB" if row["peak_mb"] >= 1 else "-"
            )
            lines.append(
                f"| {row['name']} | {base['ms']:.1f} ms | {row['ms']:.1f} ms | {row['ratio']:.2f} "
                f"| {share} | {peak} |"
            )
    return "\n".join(lines)
