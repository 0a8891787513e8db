"""Write a model to a file that other programs can run without this project.

    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx          # ONNX
    python -m utils.export --ckpt runs/NAME/best.pth --output model.pt2           # torch.export
    python -m utils.export --ckpt runs/NAME/best.pth --output model.onnx --logits

Input "image": uint8 (N, 3, H, W), RGB. Output "classes": uint8 (N, H, W), or "logits": float32
(N, C, H, W). N, H and W are free. What else a program must know stands in the file's metadata.
"""

import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.common.errors import UserError, run_script
from utils.common.files import write_atomically
from utils.common.flags import Parser
from utils.export.formats import Compute, Onnx, Program, Pt2, choose_format
from utils.predictor import Predictor

# (N, H, W) that a written file is tried with, and the least share of equal classes.
TRIED = ((1, 1, 1), (2, 97, 65), (1, 131, 203))
EQUAL = 0.999


def describe(predictor: Predictor, program: Program) -> dict[str, Any]:
    """The metadata: what a program needs to use the file, and where it comes from."""
    checkpoint = predictor.checkpoint
    settings = checkpoint.content["args"] if checkpoint.kind == "own" else {}
    data = settings.get("dataset")
    if data == "custom":
        data = Path(str(settings.get("data_root"))).name
    rgb = "RGB, float32 (N, 3, H, W), (x / 255 - mean) / std" if program.float_input else None
    return {
        "project": "DeepLab in PyTorch",
        "model": checkpoint.model,
        "dataset": data,
        "date": datetime.date.today().isoformat(),
        "input": rgb or "RGB, uint8 (N, 3, H, W)",
        "output": "logits float32 (N, C, H, W)" if program.logits else "classes uint8 (N, H, W)",
        "class_names": list(predictor.class_names),
        "palette": predictor.palette.tolist(),
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "resize": predictor.resize,  # factor by which images are to be resized before
        "output_stride": predictor.output_stride,
    }


def draw_image(size: tuple[int, int, int]) -> torch.Tensor:
    """Smooth colours: uint8 (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    number, height, width = size
    coarse = torch.rand(number, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    image = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * image).round().byte()


@torch.inference_mode()
def compare(run: Compute, program: Program) -> tuple[float, str]:
    """How far a file's results are from the project's own.

    Args:
        run: the file: image to result.
        program: what was written.

    Returns:
        The share of equal classes; and how the results compare, in words.
    """
    predictor = Predictor(program.model, "fp32")
    equal, pixels, largest = 0, 0, 0.0
    for size in TRIED:
        image = draw_image(size)
        result, classes = run(program.takes(image)), predictor(image)
        if program.logits:
            largest = max(largest, float((result - program.model(image)).abs().max()))
            result = result.argmax(1)
        equal += int((result == classes).sum())
        pixels += classes.numel()
    text = f"{100 * equal / pixels:.3f} % of the classes equal the project's own"
    return equal / pixels, text + f", largest difference in logits {largest:.2g}" * program.logits


def export(predictor: Predictor, program: Program, path: Path, file_format: Onnx | Pt2) -> str:
    """Write the file, try it, and keep it if it is right.

    Returns:
        One line: its size, and how its results compare.

    Raises:
        UserError: its results differ.
    """
    image = program.takes(draw_image((2, 97, 65)))  # a batch of 1 would be taken for a constant
    with write_atomically(path) as unfinished:
        file_format.write(program, image, describe(predictor, program), unfinished)
        equal, text = compare(file_format.load(unfinished), program)
        if equal < EQUAL:
            raise UserError(f"{path}: not kept: only {text}")
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB): {text}"


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
    """Export as the flags say."""
    args = build_parser().parse_args(argv)
    path = Path(args.output)
    file_format = choose_format(path)  # before any work: says what to install
    predictor = Predictor.from_checkpoint(args.ckpt, "cpu", "fp32", args.output_stride)
    program = Program(predictor.model, args.logits, args.float_input).eval()
    print(export(predictor, program, path, file_format), flush=True)


if __name__ == "__main__":
    run_script(main)
