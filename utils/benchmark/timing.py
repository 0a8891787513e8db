"""Work timed in turns, torch's profiler, and the machine's limit."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from utils.precision import DTYPES

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


def count_flops(model: nn.Module, image_shape: Sequence[int]) -> float:
    """FLOPs of a batch (N, 3, H, W): forward, and of a model in training mode backward too.

    Two for each multiplication and addition of convolutions; the rest is not counted. Runs on the
    meta device, which computes nothing.
    """
    model = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(model.training):
        logits = model(torch.empty(image_shape, device="meta"))
        if model.training:
            logits.sum().backward()
    return counter.get_total_flops()


def peak_flops(precision: str, device: torch.device) -> float:
    """The limit, FLOPs a second: a large matrix product or convolution, whichever is quicker."""
    dtype, (size, count) = DTYPES[precision], (8192, 20) if device.type == "cuda" else (4096, 1)
    channels, side = size // 8, 64
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    conv = conv.to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(4, side, side, channels, device=device, dtype=dtype).permute(0, 3, 1, 2)
    flops = {"mm": 2 * size**3, "conv": 2 * 4 * side**2 * 9 * channels**2}
    products = {"mm": partial(torch.mm, a, b.t()), "conv": partial(conv, x)}

    def seconds(name: str) -> float:
        return timed(lambda: [products[name]() for _ in range(count)], device) / count

    return max(flops[name] / min(seconds(name) for _ in range(4)) for name in flops)
