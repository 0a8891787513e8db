"""Work timed in turns, and torch's profiler."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

Work = Callable[[], object]


def timed(work: Work, device: torch.device) -> float:
    """Seconds until the device has done the work."""
    start = time.perf_counter()
    work()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - start


def measure(
    builders: Sequence[Callable[[], Work]], repeats: int, device: torch.device
) -> list[tuple[float, float]]:
    """Time several ways in turns, so that what else the machine does meets them alike.

    Each works twice before: the first time starts workers and lets cuDNN choose, the second shows
    the memory.

    Returns:
        Of each, the median of its seconds and the most MB that its tensors took on a CUDA GPU (0
        elsewhere).
    """
    works, peaks, is_cuda = [], [], device.type == "cuda"
    for build in builders:
        before = torch.cuda.memory_allocated(device) if is_cuda else 0
        works.append(build())
        works[-1]()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        timed(works[-1], device)
        peaks.append((torch.cuda.max_memory_allocated(device) - before) / 1e6 if is_cuda else 0.0)
    rounds = [[timed(work, device) for work in works] for _ in range(repeats)]
    return list(zip(map(statistics.median, zip(*rounds, strict=True)), peaks, strict=True))


def profile(work: Work, steps: int, device: torch.device) -> str:
    """Where the time of so many steps goes: how long the device computes, and at what.

    An operator's time is that of its own kernels, on a CPU its own; kernels know no shapes.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *is_cuda * [ProfilerActivity.CUDA]]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        wall = 1e6 * timed(work, device)  # microseconds
    key = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    rows = profiler.key_averages(group_by_input_shape=True)
    found = sorted(((getattr(row, key), row) for row in rows), key=lambda item: -item[0])
    operators = [item for item in found if item[1].device_type == DeviceType.CPU]
    kernels = [item for item in found if item[1].device_type != DeviceType.CPU]
    busy = sum(spent for spent, _ in kernels or operators)
    lines = [
        f"{steps} steps of {wall / steps / 1000:.1f} ms; {device} computes in {busy / wall:.0%}",
        "",
        "| operator or kernel | shapes | calls a step | ms a step | share |",
        "|---|---|---:|---:|---:|",
    ]
    for spent, row in operators[:15] + kernels[:15]:
        shapes = " ".join("x".join(map(str, shape)) for shape in row.input_shapes if shape)
        counts = f"{row.count / steps:g} | {spent / steps / 1000:.2f} | {spent / wall:.1%}"
        lines.append(f"| {row.key[:80]} | {shapes} | {counts} |")
    return "\n".join(lines)
