"""How fast this project is, beside the reference mode and the machine's own limits.

    python -m utils.benchmark                              # minutes on two cores
    python -m utils.benchmark --precision auto fp32        # this project in both precisions
    python -m utils.benchmark --steps                      # and what each step gains
    python -m utils.benchmark --quick                      # tiny sizes: does it run?

The reference mode (`utils/benchmark/ancestor.py`) does what the public ancestor does. Both take
turns in this process, on the same inputs and from the same weights; this project through the
functions that `main.py` and `predict.py` call. The limits are a large matrix product in the same
precision and on the same threads, and decoding the same files with the faster decoder at hand.
cuDNN's search for the fastest algorithm is on for both. Without `--data_root` the inputs are
drawn: photo-like JPEGs of 480 x 360 to train on, and of VOC's sizes to evaluate (3.8 to a batch of
one size, as VOC's val).

The steps from the reference mode to this project that were kept, in order, and the gain of each in
images/s over the one before it ("x below" in the table of `--steps`; `--steps NAME` tries one
alone), on two CPU cores with bf16 instructions (AMD EPYC, torch 2.15, --repeats 3). "." where a
step changes nothing. What is 1.00 there is for GPUs, where it is not measured yet.

    step              train    eval     predict  data
    crop_first        .        .        .        1.20    cut out what the crop shows, resize that
    uint8             1.00     1.00     1.02     2.05    bytes travel, the device normalises
    channels_last     1.10     1.30     1.29     .       NHWC weights and activations
    autocast          1.90     1.58     1.63     .       bf16 (fp16 on older GPUs)
    folded            .        1.13     1.10     .       batch norms in the convolutions
    size_batches      .        1.08     .        .       evaluate images of one size together
    device_confusion  .        1.10     .        .       count where the prediction lies
    no_waiting        1.00     1.03     .        .       CUDA: pinned memory, no loss.item()
    this project      2.07     2.77     2.40     2.72    over the reference mode
"""

import argparse
import datetime
import shlex
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.base import IGNORE_INDEX
from datasets.custom import CustomSegmentation
from datasets.loader import default_num_workers
from datasets.shapes import CLASS_NAMES, draw_background, draw_object, find_borders
from datasets.transforms import train_transform
from network.modeling import MODELS, build_model
from utils.benchmark.ancestor import STEPS
from utils.benchmark.contenders import WORKLOADS, Setup, repeat_samples
from utils.benchmark.timing import describe_machine, format_rows, measure, summarize
from utils.common.errors import UserError, run_script
from utils.common.files import write_json, write_text
from utils.precision import PRECISIONS, choose_device, choose_precision
from utils.predict.overlay import save_pred
from utils.run_folder import describe_environment

TRAIN_SIZE = (360, 480)  # (height, width)
# Common sizes in VOC and how often they come here: 23 images in 6 batches of at most 8.
VAL_SIZES = {
    (375, 500): 8, (333, 500): 5, (500, 375): 4, (500, 334): 3, (500, 333): 2, (281, 500): 1,
}  # fmt: skip
NUM_VAL = sum(VAL_SIZES.values())
NUM_PHOTOS = 8  # drawn; the inputs are cut out of them
VOC_TRAIN = 1464  # images: an epoch of the recipe

QUICK_DEFAULTS = {
    "model": "deeplabv3plus_mobilenet", "crop_size": 65, "batch_size": 2, "repeats": 2,
    "iterations": 1, "eval_images": 6, "predict_images": 2, "data_images": 4,
    "loader_iterations": 2, "num_workers": 0, "matrix_size": 128,
}  # fmt: skip
DEFAULTS = {
    "model": "deeplabv3plus_resnet50", "crop_size": 513, "repeats": 5, "data_images": 64,
    "num_workers": default_num_workers(),
}  # fmt: skip
CPU_DEFAULTS = {
    "batch_size": 2, "iterations": 2, "eval_images": NUM_VAL, "predict_images": 4,
    "loader_iterations": 4, "matrix_size": 4096,
}  # fmt: skip
GPU_DEFAULTS = {
    "batch_size": 8, "iterations": 20, "eval_images": 10 * NUM_VAL, "predict_images": NUM_VAL,
    "matrix_size": 8192,
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """All flags; what depends on the device or on `--quick` has no default yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=list(WORKLOADS), help="(default: all; loader on a GPU only)")
    add("--steps", nargs="*", choices=list(STEPS), help="measure these one by one; no name: all")
    add("--model", choices=list(MODELS), help="architecture (default: deeplabv3plus_resnet50)")
    add("--crop_size", type=int, help="side of a training crop (default: 513)")
    add("--batch_size", type=int, help="of training (default: 8 on a GPU, else 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="of this project")
    add("--compile", action="store_true", help="train this project with torch.compile; CUDA only")
    add("--data_root", help="a data set as for --dataset custom (default: inputs are drawn)")
    add("--repeats", type=int, help="rounds that are measured (default: 5)")
    add("--iterations", type=int, help="of training in a round (default: 20 on a GPU, else 2)")
    add("--eval_images", type=int, help="in a round (default: 230 on a GPU, else 23)")
    add("--predict_images", type=int, help="in a round (default: 23 on a GPU, else 4)")
    add("--data_images", type=int, help="in a round of the pipeline (default: 64)")
    add("--loader_iterations", type=int, help="in a round (default: VOC's epoch on a GPU, else 4)")
    add("--num_workers", type=int, help="of eval and loader (default: the cores left, at most 8)")
    add("--matrix_size", type=int, help="of the product (default: 8192 on a GPU, else 4096)")
    add("--quick", action="store_true", help="tiny sizes; other flags still win")
    add("--output", default="benchmark.json", help="(default: benchmark.json)")
    return parser


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, torch.device]:
    """Parse the flags and complete them.

    Raises:
        UserError: a flag is out of range, or needs another one.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    is_cpu = device.type == "cpu"
    parser.set_defaults(
        only=[name for name in WORKLOADS if name != "loader" or not is_cpu],
        **(QUICK_DEFAULTS if args.quick else DEFAULTS | (CPU_DEFAULTS if is_cpu else GPU_DEFAULTS)),
    )
    args = parser.parse_args(argv)
    check_args(args, device)
    if args.loader_iterations is None:
        args.loader_iterations = max(VOC_TRAIN // args.batch_size, 1)
    wanted = list(STEPS) if args.steps == [] else args.steps or []
    args.steps = [step for step in STEPS if step in wanted]  # in their order
    return args, device


def check_args(args: argparse.Namespace, device: torch.device) -> None:
    """Refuse what cannot be measured."""
    for flag, value in vars(args).items():
        least = 0 if flag == "num_workers" else 2 if flag == "batch_size" else 1
        if type(value) is int and value < least:
            raise UserError(f"--{flag} {value}: at least {least}")
    for step in args.steps or ():
        if not set(STEPS[step]) & set(args.only):
            raise UserError(f"--steps {step}: needs --only {' or '.join(STEPS[step])}")
    if args.compile and (device.type != "cuda" or not {"train", "loader"} & set(args.only)):
        raise UserError("--compile: is for training on CUDA: leave it out")


def draw_inputs(folder: Path, num_train: int, num_val: int, shrink: int = 1) -> None:
    """Draw a data set for `CustomSegmentation`, with 21 classes and void borders.

    Args:
        folder: made here.
        num_train: images of 480 x 360.
        num_val: images of VOC's sizes. Every 23 of them are one pixel lower than the 23 before:
            more images are more sizes, as in VOC, and not larger batches.
        shrink: divides all sides.
    """
    rng = np.random.default_rng(0)
    side = max(max(size) for size in VAL_SIZES) // shrink
    photos = [draw_photo(side, rng) for _ in range(NUM_PHOTOS)]
    common = [size for size, number in VAL_SIZES.items() for _ in range(number)]
    sizes = {
        "train": [TRAIN_SIZE] * num_train,
        "val": [
            (common[k % NUM_VAL][0] - shrink * (k // NUM_VAL), common[k % NUM_VAL][1])
            for k in range(num_val)
        ],
    }
    write_text(folder / "class_names.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
    (folder / "JPEGImages").mkdir(parents=True)
    for image_set, set_sizes in sizes.items():
        ids = [f"{image_set}_{number:04d}" for number in range(len(set_sizes))]
        write_text(
            folder / "ImageSets" / "Segmentation" / f"{image_set}.txt",
            "".join(f"{name}\n" for name in ids),
        )
        for name, (height, width), (image, target) in zip(
            ids, set_sizes, cycle(photos), strict=False
        ):
            # Moved around, so that each is another picture.
            shift = rng.integers(0, side, 2)
            part = slice(height // shrink), slice(width // shrink)
            image, target = (np.roll(array, shift, (0, 1))[part] for array in (image, target))
            # As many bytes a pixel as VOC's.
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            save_pred(folder / "SegmentationClass" / f"{name}.png", target)


def draw_photo(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture with large objects and the noise of a camera.

    Returns:
        image uint8 (side, side, 3) and target uint8 (side, side).
    """
    image = draw_background((side, side), rng)
    target = np.zeros((side, side), np.uint8)
    for index in rng.integers(1, len(CLASS_NAMES), 4):
        radius = rng.uniform(0.1, 0.25) * side
        inside = draw_object(image, CLASS_NAMES[index], rng.uniform(0, side, 2), radius, rng)
        target[inside] = index
    target[find_borders(target)] = IGNORE_INDEX
    image += rng.normal(0, 8, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), target


def build_setup(args: argparse.Namespace, device: torch.device, folder: Path) -> Setup:
    """Data, drawn into `folder` unless `--data_root` names another, and weights."""
    root = folder / "inputs"
    if args.data_root:
        root = Path(args.data_root)
    else:
        draw_inputs(root, args.data_images, args.eval_images, shrink=6 if args.quick else 1)
    transform = train_transform((args.crop_size, args.crop_size))
    train_set = CustomSegmentation(root, "train", transform)
    val_set = CustomSegmentation(root, "val")
    torch.manual_seed(0)
    return Setup(
        args=args,
        device=device,
        precisions=list(dict.fromkeys(choose_precision(name, device) for name in args.precision)),
        model=build_model(args.model, train_set.num_classes),
        train_set=train_set,
        val_set=repeat_samples(val_set, min(args.eval_images, len(val_set))),
    )


def run_workloads(setup: Setup, report: dict[str, Any]) -> None:
    """Measure, print and write one comparison after the other."""
    args, device = setup.args, setup.device
    for name in args.only:
        title, compare = WORKLOADS[name]
        contenders = compare(setup)
        rows = summarize(measure(contenders, args.repeats, device, with_memory=name != "data"))
        report["workloads"][name] = {"title": title, "rows": rows}
        write_json(Path(args.output), report)
        print(f"\n{title}\n{format_rows(rows)}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure as the flags say; returns the exit status."""
    args, device = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    report = {
        "command": shlex.join(["python", "-m", "utils.benchmark", *words]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "environment": describe_environment(),
        "settings": vars(args),
        "workloads": {},
    }
    print(f"{report['command']}\n{report['machine']}, torch {torch.__version__}, {report['date']}")
    torch.backends.cudnn.benchmark = True  # as in main.py
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_workloads(build_setup(args, device, Path(folder)), report)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{device} is out of memory: lower --batch_size, --crop_size or --matrix_size"
        ) from None
    print(f"\nwritten to {args.output}")
    return 0


if __name__ == "__main__":
    run_script(main)
