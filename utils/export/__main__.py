"""Write a model to a file that other programs can run without this project.

    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx   # ONNX
    python -m utils.export --ckpt runs/NAME/best.pth --output model.pt2    # torch.export
    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx --logits --fp16_weights
    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx --time 513  # how fast?

Input "image": uint8 (N, 3, H, W), RGB. Output "classes": uint8 (N, H, W), or "logits": float32
(N, C, H, W). N, H and W are free. What else a program must know stands in the file's metadata.
"""

import argparse
import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.common.errors import UserError, run_script
from utils.common.files import write_atomically
from utils.common.flags import SIDE, Parser
from utils.common.timing import Contender, measure
from utils.export.formats import CAN_EXPORT, FORMATS, Run
from utils.export.program import HalfWeightConv2d, Program
from utils.predictor import Predictor

# (N, H, W) that a written file is tried with.
SIZES = ((1, 1, 1), (2, 97, 65), (1, 131, 203))
# The least share of equal classes, by whether weights are rounded to fp16.
EQUAL = {False: 0.999, True: 0.98}
ROUNDS = 7  # of `--time`


def describe(predictor: Predictor, args: argparse.Namespace) -> dict[str, Any]:
    """The metadata: what a program needs to use the file, and where it comes from."""
    settings = predictor.checkpoint.content.get("args")
    settings = settings if isinstance(settings, dict) else {}
    data = settings.get("dataset")
    if data == "custom":
        data = Path(str(settings.get("data_root"))).name
    rgb = "RGB, float32 (N, 3, H, W), (x / 255 - mean) / std" if args.float_input else None
    return {
        "project": "DeepLab in PyTorch",
        "model": predictor.checkpoint.model,
        "dataset": data,
        "date": datetime.date.today().isoformat(),
        "input": rgb or "RGB, uint8 (N, 3, H, W)",
        "output": "logits float32 (N, C, H, W)" if args.logits else "classes uint8 (N, H, W)",
        "class_names": list(predictor.class_names),
        "palette": predictor.palette.tolist(),
        "mean": list(predictor.checkpoint.mean),
        "std": list(predictor.checkpoint.std),
        "resize": predictor.resize,  # factor by which images are to be resized before
        "output_stride": args.output_stride or predictor.checkpoint.output_stride,
    }


def draw_image(size: tuple[int, int, int]) -> torch.Tensor:
    """Smooth colours: uint8 (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    number, height, width = size
    coarse = torch.rand(number, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    image = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * image).round().byte()


@torch.inference_mode()
def compare(run: Run, program: Program, predictor: Predictor) -> tuple[float, float]:
    """How far a file's results are from the project's own.

    Args:
        run: the file: image to result.
        program: what was written.
        predictor: fp32, without `--resize`.

    Returns:
        The share of equal classes; and the largest difference: of the logits, or of the
        predictor's logits of the two classes where the file's is another.
    """
    equal, pixels, largest = 0, 0, 0.0
    for size in SIZES:
        image = draw_image(size)
        given = predictor.model.normalize(image) if program.float_input else image
        result, logits, classes = run(given), predictor.model(image), predictor(image)
        if program.logits:
            difference = (result - logits).abs()
            result = result.argmax(1)
        else:
            difference = logits.amax(1) - logits.gather(1, result.long()[:, None])[:, 0]
        equal += int((result == classes).sum())
        pixels += classes.numel()
        largest = max(largest, float(difference.max()))
    return equal / pixels, largest


@torch.inference_mode()
def compare_speed(run: Run, program: Program, predictor: Predictor, side: int) -> list[Contender]:
    """Time the file on the CPU, beside the project in three ways, on one square image.

    `side` is that of the image, in pixels; the others are as for `compare`.
    """
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    given = predictor.model.normalize(image) if program.float_input else image
    contenders = [
        Contender("the file, fp32", lambda: partial(run, given)),
        Contender("Predictor, fp32", lambda: partial(predictor, image)),
        Contender("Predictor, bf16", lambda: partial(Predictor(predictor.model, "bf16"), image)),
        Contender("torch.compile, fp32", lambda: partial(torch.compile(program), given)),
    ]
    measure(contenders, ROUNDS, predictor.device)
    return contenders


def export(args: argparse.Namespace) -> None:
    """Write the file, try it, keep it if it is right, and print how it compares.

    Raises:
        UserError: the checkpoint or the name cannot be used, a package is missing, or the file's
            results differ.
    """
    path = Path(args.output)
    if path.suffix not in FORMATS:
        raise UserError(f"--output {path}: must end in {' or '.join(FORMATS)}")
    if not CAN_EXPORT:
        raise UserError(
            f"exporting needs a newer torch than {torch.__version__}: "
            "pip install --upgrade torch torchvision"
        )
    file_format = FORMATS[path.suffix]()  # before any work: says what to install
    cpu = torch.device("cpu")
    predictor = Predictor.from_checkpoint(args.ckpt, cpu, "fp32", args.output_stride)
    metadata = describe(predictor, args)
    predictor.resize = 1.0  # left to the program that uses the file
    program = Program(predictor.model, args.logits, args.float_input).eval()
    if args.fp16_weights:
        program = HalfWeightConv2d.convert(program)
    image = draw_image((2, 97, 65))  # a batch of 1 would be taken for a constant
    if args.float_input:
        image = predictor.model.normalize(image)
    with write_atomically(path) as unfinished:
        file_format.write(program, image, metadata, unfinished)
        run = file_format.load(unfinished)
        equal, largest = compare(run, program, predictor)
        text = (
            f"{100 * equal:.3f} % of the classes equal the project's own, largest difference in "
            f"logits {largest:.2g}"
        )
        if equal < EQUAL[args.fp16_weights]:
            raise UserError(f"{path}: not kept: only {text}")
    print(f"{args.output} ({path.stat().st_size / 1e6:.1f} MB): {text}", flush=True)
    if args.time:
        for one in compare_speed(run, program, predictor, args.time):
            print(f"{one.name:20}{one.ms:8.1f} ms")


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", required=True, help='a checkpoint, or "torchvision"')
    add("--output", required=True, help="the file: .onnx or .pt2")
    add("--output_stride", type=int, choices=[8, 16], help="if not what the checkpoint says")
    add("--logits", action="store_true", help="give logits in place of classes")
    add("--float_input", action="store_true", help="take normalised floats in place of bytes")
    add("--fp16_weights", action="store_true", help="half the size; computes in fp32")
    add("--time", type=SIDE, help="time it on images of this side (pixels)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Export as the flags say."""
    export(build_parser().parse_args(argv))


if __name__ == "__main__":
    run_script(main)
