"""Contenders timed in turns, the memory that each takes, and the machine's own limits."""

import contextlib
import copy
import ctypes
import dataclasses
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

Run = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do some work.

    Attributes:
        name: stands in the table.
        build: makes ready what is not to be timed, and returns what is.
        images: that one run handles; 0 for a limit of the machine.
        work: that one run does, in `unit`, which is also that of its ceilings.
        ceilings: names of the limits; the fastest of them counts.
        below: name of the contender that this one adds one step to.
        unit: "GFLOP" or "files".
    """

    name: str
    build: Callable[[], Run]
    images: int = 0
    work: float = 0
    ceilings: tuple[str, ...] = ()
    below: str | None = None
    unit: str = "GFLOP"


@dataclasses.dataclass
class Measured:
    """What one contender took.

    Attributes:
        contender: which one.
        peak_mb: the most memory that it held, in MB; None if that cannot be told.
        seconds: of each round.
    """

    contender: Contender
    peak_mb: float | None
    seconds: list[float]


class PeakMemory:
    """The most memory that was in use at a time, over what was in use when this was made.

    CUDA: `torch.cuda.max_memory_allocated`, what tensors take. CPU, on Linux: the high-water mark
    of the process's resident memory (`VmHWM`, which writing 5 to `/proc/self/clear_refs` resets);
    memory that was freed before is first given back to the system (glibc's `malloc_trim`), or it
    would be used again unseen. Elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_known = device.type in ("cpu", "cuda")
        synchronize(device)
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.reset()
        self.before = self._peak()

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.is_known = False

    def megabytes(self) -> float | None:
        """The peak since the last reset, in MB; None if unknown."""
        return (self._peak() - self.before) / 1e6 if self.is_known else None

    def _peak(self) -> int:
        if not self.is_known:
            return 0
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(
    contenders: Sequence[Contender], repeats: int, device: torch.device, with_memory: bool = True
) -> list[Measured]:
    """Time all contenders in turns, so that what else the machine does meets them alike.

    Each is built and run twice before: the first run starts workers and lets cuDNN choose, the
    second shows the memory. Every other round goes backwards.

    Args:
        contenders: in the order of the table; all stay alive to the end.
        repeats: rounds.
        device: waited for at both ends of each run.
        with_memory: find the peak memory of those that handle images.
    """
    measured, runs = [], []
    bar = tqdm(total=len(contenders) * (repeats + 1), leave=False, disable=None)
    for contender in contenders:
        bar.set_description(f"warm up {contender.name}")
        memory = PeakMemory(device)
        run = contender.build()
        run()
        memory.reset()
        timed(run, device)
        peak = memory.megabytes() if with_memory and contender.images else None
        measured.append(Measured(contender, peak, []))
        runs.append(run)
        bar.update()
    turns = list(zip(measured, runs, strict=True))
    for repeat in range(repeats):
        for item, run in turns if repeat % 2 == 0 else reversed(turns):
            bar.set_description(item.contender.name)
            item.seconds.append(timed(run, device))
            bar.update()
    bar.close()
    return measured


def timed(run: Run, device: torch.device) -> float:
    """Seconds until the device is done with a run."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for all that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def summarize(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Medians over the rounds; what is a ratio is taken within each round, before the median.

    Returns:
        For each contender `name`, `seconds` and `spread` (largest less smallest time, over the
        median). With images also `images_per_s`, `ms_per_image`, `peak_mb` and `speedup` over the
        first that handles images. If they apply: `gain` over the contender below, `work_per_s` in
        `unit`, `share` of the fastest `ceiling`.
    """
    by_name = {item.contender.name: item for item in measured}
    first = next((item for item in measured if item.contender.images), None)
    rows = []
    for item in measured:
        contender, median = item.contender, statistics.median(item.seconds)
        spread = (max(item.seconds) - min(item.seconds)) / median
        row = {"name": contender.name, "seconds": item.seconds, "spread": spread}
        if contender.images:
            row["images_per_s"] = contender.images / median
            row["ms_per_image"] = 1000 * median / contender.images
            row["peak_mb"] = item.peak_mb
            row["speedup"] = relative_rate(item, first, "images")
        if contender.work:
            row["work_per_s"], row["unit"] = contender.work / median, contender.unit
        if contender.below:
            row["gain"] = relative_rate(item, by_name[contender.below], "images")
        shares = {name: relative_rate(item, by_name[name], "work") for name in contender.ceilings}
        if shares:
            row["ceiling"], row["share"] = min(shares.items(), key=lambda pair: pair[1])
        rows.append(row)
    return rows


def relative_rate(item: Measured, base: Measured, unit: str) -> float:
    """Rate of `item` over that of `base`, counted in images or work: the median over the rounds."""
    rounds = zip(base.seconds, item.seconds, strict=True)
    amounts = getattr(item.contender, unit) / getattr(base.contender, unit)
    return amounts * statistics.median(slow / fast for slow, fast in rounds)


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one workload, for people; columns that are empty are left out."""
    columns = {
        "images/s": lambda row: f"{row['images_per_s']:.2f}",
        "ms/image": lambda row: f"{row['ms_per_image']:.1f}",
        "spread": lambda row: f"{100 * row['spread']:.0f} %",
        "x first": lambda row: f"{row['speedup']:.2f}",
        "x below": lambda row: f"{row['gain']:.2f}",
        "work/s": lambda row: f"{row['work_per_s']:.0f} {row['unit']}",
        "of limit": lambda row: f"{100 * row['share']:.0f} %",
        "peak MB": lambda row: f"{row['peak_mb']:.0f}",
    }
    table = [["", *columns]]
    for row in rows:
        cells = [row["name"]]
        for write in columns.values():
            try:
                cells.append(write(row))
            except (KeyError, TypeError):  # does not apply, or is unknown
                cells.append("-")
        table.append(cells)
    used = [column for column in zip(*table, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(len(cell) for cell in column) for column in used]
    aligned = [
        [f"{cell:{'>' if number else '<'}{width}}" for cell in column]
        for number, (column, width) in enumerate(zip(used, widths, strict=True))
    ]
    return "\n".join("  " + "  ".join(cells) for cells in zip(*aligned, strict=True))


def matrix_product(precision: str, size: int, device: torch.device) -> Contender:
    """One large matrix product, of which a network's convolutions reach a share.

    The second matrix is transposed: what linear layers do is what libraries are tuned for. On CUDA
    fp32 means what cuDNN makes of it by default, TF32 where the hardware has it.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    count = 20 if device.type == "cuda" else 1  # one would be too short to time there

    def build() -> Run:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def run() -> None:
            before = torch.get_float32_matmul_precision()
            if device.type == "cuda":
                torch.set_float32_matmul_precision("high")
            for _ in range(count):
                torch.mm(a, b.t(), out=out)
            torch.set_float32_matmul_precision(before)

        return run

    return Contender(f"matrix product, {precision}", build, work=2e-9 * size**3 * count)


def decoders(paths: Sequence[Path]) -> list[Contender]:
    """Each decoder at hand reads the files, in this process and one thread, and no more."""
    decode_image = getattr(torchvision.io, "decode_image", None)  # deprecated

    def with_pillow() -> None:
        for path in paths:
            with Image.open(path) as image:
                image.convert("RGB")

    def with_torchvision() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for path in paths:
                decode_image(str(path), mode="RGB")

    found = [Contender("decode, Pillow", lambda: with_pillow, work=len(paths), unit="files")]
    if decode_image:
        found.append(
            Contender(
                "decode, torchvision", lambda: with_torchvision, work=len(paths), unit="files"
            )
        )
    return found


def count_gflop(model: nn.Module, image_shape: Sequence[int], training: bool) -> float:
    """10^9 FLOPs of a batch (N, 3, H, W): forward, and in training backward too.

    Two for each multiplication and addition of convolutions and matrix products; the rest is not
    counted. Runs on the meta device, which computes nothing.
    """
    model = copy.deepcopy(model).to("meta").train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        logits = model(torch.empty(*image_shape, device="meta"))
        if training:
            logits.sum().backward()
    return counter.get_total_flops() / 1e9


def describe_machine(device: torch.device) -> str:
    """The GPU, or the processor and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    name = name if device.type == "cpu" else f"{device.type}, {name}"
    return f"{name}, {torch.get_num_threads()} threads"
