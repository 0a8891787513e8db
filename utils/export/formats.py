"""What an exported file computes, and its formats: how each is written, and how it is run."""

import importlib.util
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from network._deeplab import DeepLab
from utils.common.errors import UserError

# Not so in torch 2.6, whose exporters fail at these models.
CAN_EXPORT = "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters
FREE = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}


class Program(nn.Module):
    """What the file computes, of bytes or of normalised floats: logits or classes."""

    def __init__(self, model: DeepLab, logits: bool, float_input: bool) -> None:
        super().__init__()
        self.model: DeepLab = model
        self.logits, self.float_input = logits, float_input

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 3, H, W) to classes uint8 (N, H, W), or to logits float32 (N, C, H, W)."""
        logits = self.model.segment(image) if self.float_input else self.model(image)
        assert isinstance(logits, Tensor)  # a pair comes in training alone
        return logits if self.logits else logits.argmax(1).to(torch.uint8)

    def takes(self, image: Tensor) -> Tensor:
        """A uint8 image as the file takes it."""
        return self.model.normalize(image) if self.float_input else image


def write_pt2(program: Program, image: Tensor, metadata: dict[str, Any], path: Path) -> None:
    """For programs that have torch alone; the metadata is the JSON text `metadata.json`."""
    exported = torch.export.export(program, (image,), dynamic_shapes=FREE)
    # Tracing takes sides for larger than the output stride, for the sake of memory layouts.
    for side, bounds in exported.range_constraints.items():
        exported.range_constraints[side] = type(bounds)(1, bounds.upper)
    for module in exported.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):  # paths, names
                node.meta.pop(key, None)
    with open(path, "wb") as file:
        torch.export.save(exported, file, extra_files={"metadata.json": json.dumps(metadata)})


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function."""
    with open(path, "rb") as file:
        return torch.export.load(file).module(check_guards=False)  # they are the bounds again


def write_onnx(program: Program, image: Tensor, metadata: dict[str, Any], path: Path) -> None:
    """For ONNX Runtime, browsers, phones; the metadata is ONNX's, what is no text as JSON."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    output = "logits" if program.logits else "classes"
    written = torch.onnx.export(
        program, (image,), input_names=["image"], output_names=[output], dynamic_shapes=FREE,
        dynamo=True, verbose=False,
    )  # fmt: skip
    assert written is not None  # with dynamo=True there is a program
    for graph in written.model.graphs():
        for node in graph:
            node.metadata_props.clear()  # stack traces: paths of this machine
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        written.model.metadata_props[key] = text
    written.save(path, external_data=False)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


FORMATS = {".onnx": (write_onnx, load_onnx), ".pt2": (write_pt2, load_pt2)}


def choose_format(path: Path) -> tuple[Callable, Callable]:
    """What writes, and what loads, the kind of file that a name asks for.

    Raises:
        UserError: there is none, or torch is too old for it, or a package is missing.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--output {path}: must end in {' or '.join(FORMATS)}")
    if not CAN_EXPORT:
        raise UserError(
            f"exporting needs a newer torch than {torch.__version__}: "
            "pip install --upgrade torch torchvision"
        )
    names = ("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ()
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(f"--output {path}: ONNX needs packages: pip install {' '.join(missing)}")
    return FORMATS[path.suffix]
