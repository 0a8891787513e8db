"""What an exported file computes, and its formats: how each is written, and how it is run."""

import importlib.util
import inspect
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from network._deeplab import DeepLab
from utils.common.errors import UserError

Compute = Callable[[torch.Tensor], torch.Tensor]

# Not so in torch 2.6, whose exporters fail at these models.
CAN_EXPORT = "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters
FREE = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}


class Program(nn.Module):
    """What the file computes.

    Args:
        model: with folded batch norms.
        logits: give logits in place of classes.
        float_input: take normalised floats in place of bytes.
    """

    def __init__(self, model: DeepLab, logits: bool, float_input: bool) -> None:
        super().__init__()
        self.model: DeepLab = model
        self.logits = logits
        self.float_input = float_input

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (N, 3, H, W) to classes uint8 (N, H, W), or to logits float32 (N, C, H, W)."""
        logits = self.model.segment(image) if self.float_input else self.model(image)
        assert isinstance(logits, torch.Tensor)  # a pair comes in training alone
        return logits if self.logits else logits.argmax(1).to(torch.uint8)

    def takes(self, image: torch.Tensor) -> torch.Tensor:
        """A uint8 image as the file takes it."""
        return self.model.normalize(image) if self.float_input else image


class Pt2:
    """`torch.export`: for programs that have torch, and nothing else of this project."""

    def write(
        self, program: Program, image: torch.Tensor, metadata: dict[str, Any], path: Path
    ) -> None:
        """Write the file; its metadata is the JSON text `metadata.json`."""
        exported = torch.export.export(program, (image,), dynamic_shapes=FREE)
        # Tracing takes sides for larger than the output stride, for the sake of memory layouts.
        for side, bounds in exported.range_constraints.items():
            exported.range_constraints[side] = type(bounds)(1, bounds.upper)
        for module in exported.graph_module.modules():
            for node in getattr(getattr(module, "graph", None), "nodes", ()):
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):  # paths, names
                    node.meta.pop(key, None)
        with open(path, "wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the writer about itself
            extra = {"metadata.json": json.dumps(metadata)}
            torch.export.save(exported, file, extra_files=extra)

    def load(self, path: Path) -> Compute:
        """The file as a function."""
        with open(path, "rb") as file:
            # The guards are the same bounds again.
            return torch.export.load(file).module(check_guards=False)


class Onnx:
    """ONNX, for ONNX Runtime, browsers, phones."""

    def write(
        self, program: Program, image: torch.Tensor, metadata: dict[str, Any], path: Path
    ) -> None:
        """Write the file; its metadata are ONNX's, values that are no text as JSON."""
        output = "logits" if program.logits else "classes"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            written = torch.onnx.export(
                program, (image,), input_names=["image"], output_names=[output],
                dynamic_shapes=FREE, dynamo=True, verbose=False,
            )  # fmt: skip
        assert written is not None  # with dynamo=True there is a program
        model = written.model
        for graph in model.graphs():
            for node in graph:
                node.metadata_props.clear()  # stack traces: paths of this machine
        for key, value in metadata.items():
            model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
        written.save(path, external_data=False)

    def load(self, path: Path) -> Compute:
        """The file as a function."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


FORMATS: dict[str, Onnx | Pt2] = {".onnx": Onnx(), ".pt2": Pt2()}


def choose_format(path: Path) -> Onnx | Pt2:
    """The format that a file's name asks for.

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
