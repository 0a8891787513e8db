"""How fast this project is, beside the public ancestor's way and the machine's own limits.

    python -m utils.benchmark                              # minutes on two cores
    python -m utils.benchmark --precision auto fp32        # this project in both precisions
    python -m utils.benchmark --only depthwise --crop_size 257 --batch_size 8
    python -m utils.benchmark --quick                      # tiny sizes: does it run?

Both (`utils/benchmark/ancestor.py`, and the functions that `main.py` and `predict.py` call) take
turns in this process, on the same inputs and from the same weights; numbers are medians of the
rounds. The limits are a large matrix product or convolution, whichever is quicker, in the same
precision and on the same threads, and decoding the same JPEGs. Without `--data_root` the inputs are
drawn: photo-like JPEGs of VOC's sizes.
"""

import argparse
import datetime
import shlex
import sys
import tempfile
from pathlib import Path

import torch

from datasets.custom import CustomSegmentation
from datasets.transforms import train_transform
from network.modeling import MODELS, build_model
from utils.benchmark.contenders import (
    Setup,
    compare_data,
    compare_evaluation,
    compare_prediction,
    compare_training,
    first_samples,
)
from utils.benchmark.depthwise import compare_depthwise
from utils.benchmark.inputs import draw_inputs
from utils.common.errors import UserError, run_script
from utils.common.flags import SIDE, Parser, whole
from utils.common.timing import measure, table_row
from utils.precision import PRECISIONS, choose_device, choose_precision, out_of_memory_explained

# Title, what this project is compared with, and what gives the contenders.
WORKLOADS = {
    "train": ("training step", "ancestor", compare_training),
    "eval": ("evaluation of whole images, from the files", "ancestor", compare_evaluation),
    "predict": ("prediction, one image at a time", "ancestor", compare_prediction),
    "data": ("input pipeline, one worker", "ancestor", compare_data),
    "depthwise": ("depthwise convolutions in training", "plain", compare_depthwise),
}
# How much a round holds: training iterations, images to read or evaluate, images to predict. A
# matrix product of the quick size would be no limit, and so there is none.
SIZES = {
    "cpu": {"batch_size": 2, "iterations": 2, "images": 64, "predict_images": 4, "matrix": 4096},
    "gpu": {"batch_size": 8, "iterations": 20, "images": 256, "predict_images": 24, "matrix": 8192},
}
QUICK = {"model": "deeplabv3plus_mobilenet", "crop_size": 65, "batch_size": 2, "repeats": 2,
         "iterations": 1, "images": 6, "predict_images": 2, "matrix": 0}  # fmt: skip


def build_parser() -> Parser:
    """All flags; what depends on the device has no default yet."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(WORKLOADS), help="(default: all but depthwise)")
    add("--model", choices=list(MODELS), default="deeplabv3plus_resnet50", help="architecture")
    add("--crop_size", type=SIDE, default=513, help="side of a training crop")
    add("--batch_size", type=whole(2, 4096), help="of training (default: 8 on a GPU, else 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="of this project")
    add("--compile", action="store_true", help="train this project with torch.compile; CUDA only")
    add("--data_root", help="a data set as for --dataset custom (default: inputs are drawn)")
    add("--repeats", type=whole(1, 10**4), default=5, help="rounds that are measured")
    add("--quick", action="store_true", help="tiny sizes; other flags still win")
    return parser


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, torch.device]:
    """Parse the flags, and complete what depends on the device or on `--quick`.

    Raises:
        UserError: a flag is out of range, or does not apply here.
    """
    parser = build_parser()
    given = parser.given(argv)
    defaults = parser.defaults() | {"only": [name for name in WORKLOADS if name != "depthwise"]}
    device = choose_device({**defaults, **given}["device"])
    sizes = SIZES["cpu" if device.type == "cpu" else "gpu"]
    args = argparse.Namespace(**defaults | sizes | (QUICK if "quick" in given else {}) | given)
    if args.compile and (device.type != "cuda" or "train" not in args.only):
        raise UserError("--compile: is for training on CUDA: leave it out")
    if "depthwise" in args.only and device.type != "cpu":
        raise UserError("--only depthwise: is about CPUs: give --device cpu")
    names = [choose_precision(name, device) for name in args.precision]
    args.precision = list(dict.fromkeys(names))
    return args, device


def build_setup(args: argparse.Namespace, device: torch.device, folder: Path) -> Setup:
    """Data, drawn into `folder` unless `--data_root` names another, and weights."""
    root, train, val = args.data_root, "train", "val"
    if not root:
        is_read = set(args.only) & {"eval", "predict", "data"}
        draw_inputs(folder, args.images if is_read else 1, shrink=6 if args.quick else 1)
        root, train, val = folder, "trainval", "trainval"  # there are no lists
    transform = train_transform((args.crop_size, args.crop_size))
    train_set = first_samples(CustomSegmentation(root, train, transform), args.images)
    val_set = first_samples(CustomSegmentation(root, val), args.images)
    torch.manual_seed(0)
    model = build_model(args.model, train_set.num_classes)
    return Setup(args, device, model, train_set, val_set)


def run_workloads(setup: Setup) -> None:
    """Measure and print one comparison after the other."""
    for name in setup.args.only:
        title, base, compare = WORKLOADS[name]
        torch.backends.cudnn.benchmark = name == "train"  # as main.py; the ancestor never does
        rows = []
        for contenders in compare(setup):
            measure(contenders, setup.args.repeats, setup.device)
            rows += [table_row(one) for one in contenders if one.base]
        head = f"| {title} | {base} | here | ratio | of the limit | peak memory |"
        print("\n".join(["", head, "|---|---|---|---|---|---|", *rows]), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure as the flags say."""
    args, device = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "utils.benchmark", *words])
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    print(
        f"`{command}`: {machine}, torch {torch.__version__}, {datetime.date.today()}; "
        f"medians of {args.repeats} rounds in which both take turns"
    )
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions: for the limit alone
    explained = out_of_memory_explained(device, "lower --batch_size or --crop_size")
    with explained, tempfile.TemporaryDirectory() as folder:
        run_workloads(build_setup(args, device, Path(folder) / "inputs"))


if __name__ == "__main__":
    run_script(main)
