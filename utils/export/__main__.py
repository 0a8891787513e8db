"""Write a model to a file that other programs can run without this project.

    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx          # ONNX
    python -m utils.export --ckpt runs/NAME/best.pth --output model.pt2           # torch.export
    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx --logits

Input "image": uint8 (N, 3, H, W), RGB. Output "classes": uint8 (N, H, W), or "logits": float32
(N, C, H, W). N, H and W are free. What else a program must know stands in the file's metadata.
"""

import datetime
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError, run_script
from utils.common.files import write_atomically
from utils.common.flags import Parser
from utils.export.formats import Program, choose_format
from utils.predictor import Predictor

# Sizes of images that a written file is tried with, and the least share of equal classes.
TRIED = ((1, 3, 1, 1), (2, 3, 97, 65), (1, 3, 131, 203))
EQUAL = 0.999


def describe(predictor: Predictor, program: Program) -> dict[str, Any]:
    """The metadata: what a program needs to use the file, and where it comes from."""
    checkpoint = predictor.checkpoint
    settings = checkpoint.content["args"] if checkpoint.kind == "own" else {}
    data = settings.get("dataset")
    floats = "float32 (N, 3, H, W), (x / 255 - mean) / std"
    return {
        "project": "DeepLab in PyTorch",
        "model": checkpoint.model,
        "dataset": Path(str(settings.get("data_root"))).name if data == "custom" else data,
        "date": datetime.date.today().isoformat(),
        "input": f"RGB, {floats if program.float_input else 'uint8 (N, 3, H, W)'}",
        "output": "logits float32 (N, C, H, W)" if program.logits else "classes uint8 (N, H, W)",
        "class_names": list(predictor.class_names),
        "palette": predictor.palette.tolist(),
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "resize": predictor.resize,  # factor by which images are to be resized before
        "output_stride": predictor.output_stride,
    }


@torch.inference_mode()
def compare(run: Callable[[Tensor], Tensor], program: Program) -> float:
    """The share of the classes that a file, a function of images, has as its program has them."""
    equal = []
    for size in TRIED:
        image = torch.randint(256, size, dtype=torch.uint8)
        result = run(program.takes(image))
        classes = result.argmax(1) if program.logits else result
        equal.append((classes == program.model(image).argmax(1)).flatten())
    return float(torch.cat(equal).float().mean())


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", required=True, help='a checkpoint, or "torchvision"')
    add("--output", required=True, help="the file: .onnx or .pt2")
    add("--output_stride", type=int, choices=[8, 16], help="if not what the checkpoint says")
    add("--logits", action="store_true", help="give logits in place of classes")
    add("--float_input", action="store_true", help="take normalised floats in place of bytes")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the file that the flags name, try it, and keep it if it is right."""
    args = build_parser().parse_args(argv)
    path = Path(args.output)
    write, load = choose_format(path)  # before any work: says what to install
    predictor = Predictor.from_checkpoint(args.ckpt, "cpu", "fp32", args.output_stride)
    program = Program(predictor.model, args.logits, args.float_input).eval()
    # A batch of 1 would be taken for a constant.
    image = program.takes(torch.zeros(2, 3, 97, 65, dtype=torch.uint8))
    with write_atomically(path) as unfinished, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters about themselves
        write(program, image, describe(predictor, program), unfinished)
        share = compare(load(unfinished), program)
        text = f"{share:.3%} of the classes equal the project's own"
        if share < EQUAL:
            raise UserError(f"{path}: not kept: only {text}")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): {text}", flush=True)


if __name__ == "__main__":
    run_script(main)
