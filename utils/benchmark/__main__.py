"""How fast this project is, beside the public ancestor's way and the machine's own limit.

    python -m utils.benchmark                              # minutes on two cores
    python -m utils.benchmark --precision auto fp32        # this project in both precisions
    python -m utils.benchmark --profile                    # where the time of a training step goes
    python -m utils.benchmark --quick                      # tiny sizes: does it run?

Both (`ancestor.py`, and in `project.py` the functions that `main.py` calls) take turns in this
process, on the same inputs and from the same weights; numbers are medians of the rounds. The limit
is a large matrix product or convolution, whichever is quicker, in the same precision and on the
same threads. Images are drawn, in VOC's sizes.
"""

import argparse
import datetime
import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets.shapes import CLASS_NAMES
from network.modeling import MODELS, build_model
from utils.benchmark import ancestor, project
from utils.benchmark.inputs import draw_batch, draw_images
from utils.benchmark.timing import Work, count_flops, measure, peak_flops, profile
from utils.common.errors import run_script
from utils.common.flags import SIDE, Parser, refuse, whole
from utils.precision import PRECISIONS, choose_device, choose_precision, out_of_memory_explained

TRAIN = "training step: copy, forward, backward, SGD; without loader, log and average"
EVAL = "evaluation of whole images, from files to confusion matrix"
Way = Callable[..., Work]
WAYS: dict[str, tuple[Way, Way]] = {  # the ancestor's and this project's, by what they do
    TRAIN: (ancestor.training, project.training),
    EVAL: (ancestor.evaluation, project.evaluation),
}
# How much a round holds: training iterations, and images to evaluate.
AMOUNTS = {
    "cpu": {"batch_size": 2, "iterations": 2, "images": 64},
    "gpu": {"batch_size": 8, "iterations": 20, "images": 256},
}
QUICK = {"model": "deeplabv3plus_mobilenet", "crop_size": 65, "batch_size": 2, "repeats": 2,
         "iterations": 1, "images": 6}  # fmt: skip
PROFILED_STEPS = 10


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
    add("--repeats", type=whole(1, 10**4), default=5, help="rounds that are measured")
    add("--quick", action="store_true", help="tiny sizes; other flags still win")
    add("--profile", action="store_true", help="show where the time of ten training steps goes")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags, and complete what depends on the device or on `--quick`.

    Raises:
        UserError: a flag is out of range, or does nothing.
    """
    parser = build_parser()
    given = parser.given(argv)
    if "profile" in given:
        refuse(("only", "repeats"), given, "does nothing with --profile: leave one of them out")
    device = choose_device(given.get("device", "auto"))
    amounts = AMOUNTS["cpu" if device.type == "cpu" else "gpu"]
    quick = QUICK if "quick" in given else {}
    args = argparse.Namespace(**parser.defaults() | amounts | quick | given)
    names = [choose_precision(name, device) for name in args.precision]
    args.device, args.precision = device, list(dict.fromkeys(names))
    return args


def compare(
    title: str, inputs: tuple[Any, ...], images: int, flops: float, args: argparse.Namespace
) -> None:
    """Time both ways on the same inputs, and print their table, by what a round has and takes."""
    ancestors, ours = WAYS[title]
    builders = [partial(ancestors, *inputs)]
    builders += [partial(ours, *inputs, precision) for precision in args.precision]
    (base, base_mb), *found = measure(builders, args.repeats, args.device)
    print(f"\n| {title} | ancestor | here | ratio | of the limit | peak memory |")
    print("|---|---|---|---|---|---|")
    for precision, (seconds, mb) in zip(args.precision, found, strict=True):
        times = " | ".join(f"{1000 * value / images:.1f} ms" for value in (base, seconds))
        share = "-" if args.quick else f"{flops / peak_flops(precision, args.device) / seconds:.0%}"
        peak = f"{base_mb:.0f} to {mb:.0f} MB" if mb else "-"
        print(f"| {precision} | {times} | {base / seconds:.2f} | {share} | {peak} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure as the flags say."""
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else cpu
    command = shlex.join(["python", "-m", "utils.benchmark", *words])
    print(f"`{command}`: {machine}, torch {torch.__version__}, {datetime.date.today()}")
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions: for the limit alone
    torch.manual_seed(0)
    model = build_model(args.model, len(CLASS_NAMES)).to(args.device)
    batch = draw_batch(args.crop_size, args.batch_size, len(CLASS_NAMES))
    with out_of_memory_explained(args.device, "lower --batch_size or --crop_size"):
        for precision in args.precision if args.profile else ():
            work = project.training(model, batch, PROFILED_STEPS, precision)
            work()  # cuDNN chooses, memory is had
            print(f"\n{precision}: {profile(work, PROFILED_STEPS, args.device)}", flush=True)
        if not args.profile and args.only != "eval":
            flops = args.iterations * count_flops(model.train(), batch[0].shape)
            images = args.iterations * args.batch_size
            compare(TRAIN, (model, batch, args.iterations), images, flops, args)
        if not args.profile and args.only != "train":
            with tempfile.TemporaryDirectory() as folder:
                val_set = draw_images(Path(folder, "images"), args.images, 6 if args.quick else 1)
                # The work goes with the pixels.
                a_pixel = count_flops(model.eval(), (1, 3, 512, 512)) / 512**2
                flops = a_pixel * sum(height * width for height, width in val_set.image_sizes())
                compare(EVAL, (model, val_set), len(val_set), flops, args)


if __name__ == "__main__":
    run_script(main)
