"""How fast this project is, beside the public ancestor's way and the machine's own limit.

    python -m utils.benchmark                              # minutes on two cores
    python -m utils.benchmark --precision auto fp32        # this project in both precisions
    python -m utils.benchmark --profile                    # where its time goes

Both (see `ways.py`) take turns in this process, on the same inputs and from the same weights;
numbers are medians of the rounds. The limit is a large matrix product or convolution, whichever is
quicker, in the same precision and on the same threads. Images are drawn, in VOC's sizes.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from datasets.shapes import CLASS_NAMES
from network._deeplab import DeepLab
from network.modeling import MODELS, build_model
from utils.benchmark import ways
from utils.benchmark.ways import Work
from utils.common.errors import run_script
from utils.common.flags import SIDE, Parser, whole
from utils.precision import PRECISIONS, choose_device, choose_precision, out_of_memory_explained

# How much a round holds: training iterations, and images to evaluate.
AMOUNTS = {
    "cpu": {"batch_size": 2, "iterations": 2, "images": 64},
    "gpu": {"batch_size": 8, "iterations": 20, "images": 256},
}


def build_parser() -> Parser:
    """All flags; what depends on the device has no default yet."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--only", choices=("train", "eval"), help="one workload (default: both)")
    add("--model", choices=list(MODELS), default="deeplabv3plus_resnet50", help="architecture")
    add("--crop_size", type=SIDE, default=513, help="side of a training crop")
    add("--batch_size", type=whole(2, 4096), help="of training (default: 8 on a GPU, else 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="of this project")
    add("--repeats", type=whole(1, 10**4), default=5, help="rounds that are timed")
    add("--profile", action="store_true", help="show where the time goes, by torch's profiler")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags, and complete what depends on the device."""
    parser = build_parser()
    given = parser.given(argv)
    device = choose_device(given.get("device", "auto"))
    amounts = AMOUNTS["cpu" if device.type == "cpu" else "gpu"]
    args = argparse.Namespace(**parser.defaults() | amounts | given)
    names = [choose_precision(name, device) for name in args.precision]
    args.device, args.precision = device, list(dict.fromkeys(names))
    return args


def compare_training(model: DeepLab, args: argparse.Namespace) -> None:
    """Time training steps."""
    batch = ways.draw_batch(args.crop_size, args.batch_size)
    works = [ways.ancestors_training(model, batch, args.iterations)]
    works += [ways.training(model, batch, args.iterations, name) for name in args.precision]
    flops = args.iterations * count_flops(model.train(), batch[0].shape)
    title = "training step: copy, forward, backward, SGD; without loader, log and average"
    compare(title, works, args.iterations * args.batch_size, flops, args)


def compare_evaluation(model: DeepLab, args: argparse.Namespace) -> None:
    """Time the evaluation of whole images."""
    with tempfile.TemporaryDirectory() as folder:
        val_set = ways.draw_images(Path(folder, "images"), args.images)
        works = [ways.ancestors_evaluation(model, val_set)]
        works += [ways.evaluation(model, val_set, name) for name in args.precision]
        sizes = Counter(val_set.image_sizes())
        flops = sum(n * count_flops(model.eval(), (1, 3, *size)) for size, n in sizes.items())
        title = "evaluation of whole images, from files to confusion matrix"
        compare(title, works, len(val_set), flops, args)


def compare(
    title: str, works: Sequence[Work], images: int, flops: float, args: argparse.Namespace
) -> None:
    """Print a table of the ancestor's work and ours in each precision; `images` are a round's."""
    if args.profile:
        for precision, work in zip(args.precision, works[1:], strict=True):
            print(f"\n{title}, {precision}: {profile(work, args.repeats, args.device)}")
        return
    base, *found = measure(works, args.repeats, args.device)
    print(f"\n| {title} | ancestor | here | ratio | of the limit |\n|---|---|---|---|---|")
    for precision, seconds in zip(args.precision, found, strict=True):
        times = " | ".join(f"{1000 * value / images:.1f} ms" for value in (base, seconds))
        share = flops / seconds / peak_flops(precision, args.device)
        print(f"| {precision} | {times} | {base / seconds:.2f} | {share:.0%} |", flush=True)


def measure(works: Sequence[Work], repeats: int, device: torch.device) -> list[float]:
    """The median of each one's seconds, in turns; a round before starts workers, cuDNN chooses."""
    rounds = [[timed(work, device) for work in works] for _ in range(1 + repeats)]
    return [statistics.median(seconds) for seconds in zip(*rounds[1:], strict=True)]


def profile(work: Work, repeats: int, device: torch.device) -> str:
    """How long a round takes, in which share the device computes, and at what: torch's table."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *is_cuda * [ProfilerActivity.CUDA]]
    work()  # as in `measure`
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        seconds = sum(timed(work, device) for _ in range(repeats))
    key = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    rows = profiler.key_averages(group_by_input_shape=True)
    busy = sum(getattr(row, key) for row in rows if (row.device_type == DeviceType.CPU) != is_cuda)
    text = f"rounds of {seconds / repeats:.3f} s; {device} computes in {busy / 1e6 / seconds:.0%}"
    return f"{repeats} {text}\n{rows.table(sort_by=key, row_limit=30)}"


def timed(work: Work, device: torch.device) -> float:
    """Seconds until the device has done the work."""
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def count_flops(model: nn.Module, image_shape: Sequence[int]) -> float:
    """FLOPs of a batch (N, 3, H, W) in convolutions; of a model in training mode backward too."""
    model = copy.deepcopy(model).to("meta")  # computes nothing
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(model.training):
        logits = model(torch.empty(image_shape, device="meta"))
        if model.training:
            logits.sum().backward()
    return counter.get_total_flops()


def peak_flops(precision: str, device: torch.device) -> float:
    """The machine's limit, FLOPs a second."""
    works = ways.limits(precision, device)
    return max(flops / min(timed(work, device) for _ in range(4)) for flops, work in works.items())


def main(argv: list[str] | None = None) -> None:
    """Measure as the flags say."""
    args = parse_args(argv)
    machine = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
    threads = f"{torch.get_num_threads()} threads"
    print(f"{args.model} on {machine}, {threads}, torch {torch.__version__}")
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions: for the limit alone
    torch.manual_seed(0)
    model = build_model(args.model, len(CLASS_NAMES)).to(args.device)
    with out_of_memory_explained("lower --batch_size or --crop_size"):
        for name, compare_ways in (("train", compare_training), ("eval", compare_evaluation)):
            if args.only in (None, name):
                compare_ways(model, args)


if __name__ == "__main__":
    run_script(main)
