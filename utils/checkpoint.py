"""Checkpoints: our own, whole or not at all, and everybody else's DeepLab weights.

Nothing here runs code from a file: `torch.load(..., weights_only=True)` throughout.
"""

import argparse
import dataclasses
import errno
import pickle
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from network.modeling import build_model
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.imagenet import MEAN, STD

# What foreign files hold beside tensors, none of which runs code: the public ancestor's best score
# is a NumPy scalar, which NumPy 1 and 2 pickle under different names; torchvision's reference
# script adds its arguments, a bag of values.
_PLAIN_VALUES = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd?"),
    argparse.Namespace,
]


AUX_HEAD = "aux_classifier."  # a head that training alone uses; nothing that predicts has it


@dataclasses.dataclass
class Checkpoint:
    """A DeepLab checkpoint, whatever wrote it.

    Attributes:
        path: the file.
        kind: "own", "VainF-style", "torchvision" or "bare state dict".
        state_dict: the weights under this project's names.
        model: the name in `network.modeling.MODELS` that fits them.
        num_classes: channels of the last layer.
        output_stride: what it was trained with; None if the file does not say.
        separable_conv: whether the head has separable convolutions.
        class_names: None if the file does not say.
        resize: factor by which it was trained to see images resized.
        mean: of the images that it was trained on, RGB in [0, 1].
        std: their standard deviation.
        content: everything in the file.
    """

    path: Path
    kind: str
    state_dict: dict[str, torch.Tensor]
    model: str
    num_classes: int
    output_stride: int | None
    separable_conv: bool
    class_names: list[str] | None
    resize: float
    mean: Sequence[float]
    std: Sequence[float]
    content: dict[str, Any]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with write_atomically(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # what torch's zip writer makes of a failed write
            raise OSError(errno.EIO, f"is the disk full? {error}".splitlines()[0]) from None


def read_file(path: str | Path, flag: str = "--ckpt") -> dict[str, Any]:
    """Read a file of tensors, numbers, strings and NumPy scalars; nothing in it runs.

    Args:
        path: the file.
        flag: what gave it, for the message if it is not there.

    Raises:
        UserError: it is not there, cut off, no checkpoint, or holds more than such values.
    """
    path = Path(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): see {flag}") from None
    try:
        with torch.serialization.safe_globals(_PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong with a file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no list of what a broken file raises
        raise UserError(f"{path}: {_explain_refusal(path, error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _explain_refusal(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a checkpoint: the download went wrong; get the file again"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return (
            "refused: it needs more than tensors, numbers and NumPy scalars, which could run code: "
            "save its state_dict alone"
        )
    reason = ""
    if type(error) is RuntimeError:  # others speak of torch's inner affairs
        reason = f" ({textwrap.shorten(str(error).partition(chr(10))[0], 80, placeholder=' ...')})"
    return f"not a readable checkpoint, perhaps cut off{reason}: get the file again"


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and recognise its kind and architecture.

    Known are this project's own files, the public ancestor's (`model_state`), torchvision's
    `deeplabv3_*` weights and its reference script's (`model`), and bare state dicts; each also with
    the `module.` prefix of DataParallel.

    Raises:
        UserError: see `read_file`; or the weights are of no model that is built here.
    """
    return describe_checkpoint(Path(path), read_file(path))


def describe_checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    """Recognise what was read from a file; see `load_checkpoint`."""
    args = content.get("args") if isinstance(content.get("args"), dict) else {}
    state_dict = next(
        (content[key] for key in ("model_state", "model", "state_dict") if key in content), content
    )
    if not _is_state_dict(state_dict):
        raise UserError(f"{path}: no model weights in it: is it a checkpoint of a DeepLab?")
    state_dict = {
        name: value
        for key, value in state_dict.items()
        if not (name := key.removeprefix("module.")).startswith(AUX_HEAD)
    }
    kind = "VainF-style" if "model_state" in content else "bare state dict"
    output_stride = None
    if "model_state" in content and "output_stride" in args:
        kind, output_stride = "own", args["output_stride"]
    elif "classifier.0.convs.0.0.weight" in state_dict:
        kind, output_stride = "torchvision", 8
        state_dict = _rename_torchvision(state_dict)
    model, num_classes = _recognise(path, state_dict)
    class_names = None
    if kind == "own":
        class_names = content.get("class_names")
        _check_own(path, content, num_classes)
    return Checkpoint(
        path=path,
        kind=kind,
        state_dict=state_dict,
        model=model,
        num_classes=num_classes,
        output_stride=output_stride,
        separable_conv=any(".body.0.weight" in key for key in state_dict),
        class_names=class_names,
        resize=args.get("resize", 1.0) if kind == "own" else 1.0,
        mean=content.get("mean", MEAN) if kind == "own" else MEAN,
        std=content.get("std", STD) if kind == "own" else STD,
        content=content,
    )


def _check_own(path: Path, content: dict[str, Any], num_classes: int) -> None:
    """What an own file says beside its weights must fit them and this code."""
    names = content.get("class_names")
    if names is not None and not (isinstance(names, list) and len(names) == num_classes):
        raise UserError(f"{path}: has {num_classes} classes, but its class_names are {names}")
    for key in ("mean", "std"):
        value = content.get(key)
        if value is not None and not (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(number, float) for number in value)
        ):
            raise UserError(f"{path}: its {key} is {value}: three numbers for red, green and blue")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) for key in value)
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )


def _rename_torchvision(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        f"classifier.{key}" if key.startswith("classifier.") else key: value
        for key, value in state_dict.items()
    }


def _recognise(path: Path, state_dict: dict[str, torch.Tensor]) -> tuple[str, int]:
    """The name in `MODELS` and the number of classes, from the names of the weights."""
    if "classifier.project.0.weight" in state_dict:
        head, last_layer = "deeplabv3plus", "classifier.classifier.3.weight"
    else:
        head, last_layer = "deeplabv3", "classifier.classifier.4.weight"
    if "backbone.low_level_features.0.0.weight" in state_dict:
        backbone = "mobilenet"
    elif "backbone._conv_stem.weight" in state_dict:
        backbone = "efficientnet_lite0"
    elif "backbone.layer3.22.conv1.weight" in state_dict:
        backbone = "resnet101"
    elif "backbone.layer3.5.conv3.weight" in state_dict:
        backbone = "resnet50"
    else:
        backbone = None
    if backbone is None or last_layer not in state_dict:
        raise UserError(
            f"{path}: holds another architecture than DeepLabV3 or V3+ with a ResNet-50, "
            "ResNet-101, MobileNetV2 or EfficientNet-Lite0: give another --ckpt"
        )
    return f"{head}_{backbone}", len(state_dict[last_layer])


def model_from_checkpoint(checkpoint: Checkpoint, output_stride: int | None = None) -> nn.Module:
    """Build the model that the checkpoint describes and load its weights.

    Args:
        checkpoint: from `load_checkpoint`.
        output_stride: 8 or 16, for a file that does not say. Weights of one stride load into a
            model of the other without complaint, and give wrong results.

    Raises:
        UserError: the output stride is unknown, or weights are missing or too many.
    """
    output_stride = output_stride or checkpoint.output_stride
    if output_stride is None:
        raise UserError(
            f"{checkpoint.path}: this {checkpoint.kind} does not say its output stride: give "
            "--output_stride 16 or 8, as it was trained (the public ancestor's default is 16)"
        )
    model = build_model(
        checkpoint.model,
        num_classes=checkpoint.num_classes,
        output_stride=output_stride,
        separable_conv=checkpoint.separable_conv,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )
    load_weights(model, checkpoint.state_dict, checkpoint.path)
    return model


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Load strictly; a mismatch becomes one line that names the file and the first weights."""
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        detail = textwrap.shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
        raise UserError(f"{path}: does not fit the model ({detail})") from None


def start_from(model: nn.Module, name: str, checkpoint: Checkpoint) -> str:
    """Start training from a checkpoint's weights; the last layer stays new if its classes differ.

    Args:
        model: changed in place.
        name: its name in `MODELS`.
        checkpoint: from `load_checkpoint`.

    Returns:
        One line that says what was done.

    Raises:
        UserError: it is of another architecture.
    """
    if checkpoint.model != name:
        raise UserError(
            f"{checkpoint.path}: holds a {checkpoint.model}, not a {name}: give --model "
            f"{checkpoint.model}"
        )
    own = model.state_dict()
    aux_head = {key: value for key, value in own.items() if key.startswith(AUX_HEAD)}  # stays new
    # Weight and bias of the convolution that gives the classes.
    last_layer = [key for key in own if key not in aux_head][-2:]
    num_classes = len(own[last_layer[0]])
    state_dict = {**checkpoint.state_dict, **aux_head}
    note = f"starts from {checkpoint.path} ({checkpoint.kind})"
    if checkpoint.num_classes != num_classes:
        state_dict.update({key: own[key] for key in last_layer})
        note += f"; the last layer is new: {num_classes} classes, not {checkpoint.num_classes}"
    load_weights(model, state_dict, checkpoint.path)
    return note
