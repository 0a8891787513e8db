"""How fast this project is, beside the public ancestor's way and the machine's own limit.

    python -m utils.benchmark                              # minutes on two cores
    python -m utils.benchmark --precision auto fp32        # this project in both precisions
    python -m utils.benchmark --profile                    # where the time of a training step goes
    python -m utils.benchmark --quick                      # tiny sizes: does it run?

Both (`utils/benchmark/ancestor.py`, and the functions that `main.py` calls) take turns in this
process, on the same inputs and from the same weights; numbers are medians of the rounds. The limit
is a large matrix product or convolution, whichever is quicker, in the same precision and on the
same threads. Images are drawn, in VOC's sizes.
"""

import argparse
import datetime
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.custom import CustomSegmentation
from datasets.shapes import CLASS_NAMES, draw_sample
from network.modeling import MODELS, build_model
from utils.benchmark.timing import measure, profile
from utils.benchmark.workloads import Workload, draw_batch, evaluation, peak_flops, training
from utils.common.errors import UserError, run_script
from utils.common.flags import SIDE, Parser, whole
from utils.precision import PRECISIONS, choose_device, choose_precision, out_of_memory_explained

WORKLOADS = {  # and what the table says that it measures
    "train": "training step: copy, forward, backward, SGD; without loader, log and average",
    "eval": "evaluation of whole images, from files to confusion matrix",
}
# How much a round holds: training iterations, and images to evaluate.
AMOUNTS = {
    "cpu": {"batch_size": 2, "iterations": 2, "images": 64},
    "gpu": {"batch_size": 8, "iterations": 20, "images": 256},
}
QUICK = {"model": "deeplabv3plus_mobilenet", "crop_size": 65, "batch_size": 2, "repeats": 2,
         "iterations": 1, "images": 6}  # fmt: skip
PROFILED_STEPS = 10
# (height, width): common sizes in VOC, as often as they come there.
VOC_SIZES = [(375, 500)] * 8 + [(333, 500)] * 5 + [(500, 375)] * 4 + [(500, 334)] * 3
VOC_SIZES += [(500, 333)] * 2 + [(281, 500)]


def build_parser() -> Parser:
    """All flags; what depends on the device has no default yet."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--only", choices=list(WORKLOADS), help="one workload (default: both)")
    add("--model", choices=list(MODELS), default="deeplabv3plus_resnet50", help="architecture")
    add("--crop_size", type=SIDE, default=513, help="side of a training crop")
    add("--batch_size", type=whole(2, 4096), help="of training (default: 8 on a GPU, else 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="of this project")
    add("--repeats", type=whole(1, 10**4), default=5, help="rounds that are measured")
    add("--quick", action="store_true", help="tiny sizes; other flags still win")
    add("--profile", action="store_true", help="show where the time of ten training steps goes")
    return parser


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, torch.device]:
    """Parse the flags, and complete what depends on the device or on `--quick`.

    Raises:
        UserError: a flag is out of range, or does nothing.
    """
    parser = build_parser()
    given = parser.given(argv)
    for flag in {"only", "repeats"} & set(given):
        if "profile" in given:
            raise UserError(f"--{flag}: does nothing with --profile: leave one of them out")
    device = choose_device({**parser.defaults(), **given}["device"])
    amounts = AMOUNTS["cpu" if device.type == "cpu" else "gpu"]
    quick = QUICK if "quick" in given else {}
    args = argparse.Namespace(**parser.defaults() | amounts | quick | given)
    names = [choose_precision(name, device) for name in args.precision]
    args.precision = list(dict.fromkeys(names))
    return args, device


def draw_inputs(folder: Path, number: int, shrink: int = 1) -> CustomSegmentation:
    """Draw a data set into a new folder, all sides those of VOC's divided by `shrink`."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    rng = np.random.default_rng(0)
    for index in range(number):
        height, width = VOC_SIZES[index % len(VOC_SIZES)]
        height -= index // len(VOC_SIZES)  # more images are more sizes, as in VOC
        objects = [(int(rng.integers(1, len(CLASS_NAMES))), height / shrink / 6) for _ in range(4)]
        image, target = draw_sample((height // shrink, width // shrink), objects, rng)
        # As many bytes a pixel as VOC's.
        Image.fromarray(image).save(folder / "JPEGImages" / f"{index:04d}.jpg", quality=95)
        Image.fromarray(target).save(folder / "SegmentationClass" / f"{index:04d}.png")
    return CustomSegmentation(folder, "trainval")


def compare(name: str, work: Workload, args: argparse.Namespace, device: torch.device) -> None:
    """Time both ways, and print their table."""
    limits = [0 if args.quick else work.flops / peak_flops(p, device) for p in args.precision]
    ours = [partial(work.build_project, precision) for precision in args.precision]
    (base, base_mb), *found = measure([work.build_ancestor, *ours], args.repeats, device)
    print(f"\n| {WORKLOADS[name]} | ancestor | here | ratio | of the limit | peak memory |")
    print("|---|---|---|---|---|---|")
    for precision, limit, (seconds, mb) in zip(args.precision, limits, found, strict=True):
        times = " | ".join(f"{1000 * value / work.images:.1f} ms" for value in (base, seconds))
        share = f"{limit / seconds:.0%}" if limit else "-"
        peak = f"{base_mb:.0f} to {mb:.0f} MB" if mb else "-"
        print(f"| {precision} | {times} | {base / seconds:.2f} | {share} | {peak} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure as the flags say."""
    args, device = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    command = shlex.join(["python", "-m", "utils.benchmark", *words])
    print(f"`{command}`: {machine}, torch {torch.__version__}, {datetime.date.today()}")
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions: for the limit alone
    torch.manual_seed(0)
    model = build_model(args.model, len(CLASS_NAMES))
    batch = draw_batch(args.crop_size, args.batch_size, len(CLASS_NAMES))
    with out_of_memory_explained(device, "lower --batch_size or --crop_size"):
        for precision in args.precision if args.profile else ():
            work = training(model, batch, PROFILED_STEPS, device).build_project(precision)
            work()  # cuDNN chooses, memory is had
            print(f"\n{precision}: {profile(work, PROFILED_STEPS, device)}", flush=True)
        if not args.profile and args.only != "eval":
            compare("train", training(model, batch, args.iterations, device), args, device)
        if not args.profile and args.only != "train":
            with tempfile.TemporaryDirectory() as folder:
                val_set = draw_inputs(Path(folder, "images"), args.images, 6 if args.quick else 1)
                compare("eval", evaluation(model, val_set, device), args, device)


if __name__ == "__main__":
    run_script(main)
