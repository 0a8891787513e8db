"""Checkpoints: our own, whole or not at all, and everybody else's DeepLab weights.

Nothing here runs code from a file: `torch.load(..., weights_only=True)` throughout.
"""

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets.colours import default_colours
from datasets.voc import CLASS_NAMES
from network._deeplab import DeepLab
from network.backbone import MobileNetV2Backbone, download_weights
from network.modeling import MODELS, build_model
from utils.common.checkpoint_files import read_file
from utils.common.errors import UserError
from utils.common.imagenet import MEAN, STD
from utils.common.progress import say_once
from utils.foreign_weights import AUX_HEAD, check_weights, find_state_dict, recognise

FORMAT = "deeplab 1"  # of own files, under the key "format"
TORCHVISION = "torchvision"  # in place of a file: the weights that torchvision publishes
TORCHVISION_WEIGHTS = ("deeplabv3_resnet50", "COCO_WITH_VOC_LABELS_V1")


@dataclasses.dataclass
class Checkpoint:
    """A DeepLab checkpoint, whatever wrote it."""

    path: Path
    kind: str  # "own", "VainF-style", "torchvision" or "bare state dict"
    state_dict: dict[str, torch.Tensor]  # the weights under this project's names
    model: str  # the name in `network.modeling.MODELS` that they belong to
    num_classes: int  # channels of the last layer
    output_stride: int | None  # what it was trained with; None if the file does not say
    separable_conv: bool  # whether the head has separable convolutions
    content: dict[str, Any]  # everything in the file
    class_names: list[str] | None = None  # None if the file does not say
    resize: float = 1.0  # factor by which it was trained to see images resized
    mean: Sequence[float] = MEAN  # of the images that it was trained on, RGB in [0, 1]
    std: Sequence[float] = STD  # their standard deviation
    colours: np.ndarray | None = None  # of the classes, as `palette`; None if the file does not say
    notes: list[str] = dataclasses.field(default_factory=list)  # guessed or left out, a line each

    @property
    def shown_names(self) -> list[str]:
        """A name for each class: the file's own; VOC's if there are 21; else numbers."""
        if self.class_names:
            return self.class_names
        if self.num_classes == len(CLASS_NAMES):
            return list(CLASS_NAMES)
        return [f"class {index}" for index in range(self.num_classes)]

    @property
    def palette(self) -> np.ndarray:
        """A colour for each class, uint8 (C, 3), RGB: the file's own, else the default."""
        return default_colours(self.shown_names) if self.colours is None else self.colours


def describe_model(
    model: DeepLab,
    settings: Mapping[str, Any],
    class_names: Sequence[str],
    colours: np.ndarray | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of a model: enough to rebuild it, in plain values and tensors alone.

    Args:
        model: the weights to keep.
        settings: those of the run; `model`, `output_stride`, `separable_conv` and `resize` are
            read again.
        class_names: one name per channel of the last layer.
        colours: of the classes, uint8 (C, 3), RGB; None for the default ones.
    """
    colours = default_colours(class_names) if colours is None else colours
    return {
        "format": FORMAT,
        # A file names the device of each tensor, which another machine may not have.
        "model_state": {key: value.cpu() for key, value in model.state_dict().items()},
        "class_names": list(class_names),
        "palette": colours.tolist(),
        "mean": (model.mean.flatten() / 255).tolist(),
        "std": (model.std.flatten() / 255).tolist(),
        "args": dict(settings),
    }


def require_checkpoint(source: str | None) -> None:
    """Refuse a `--ckpt` that is not there, before anything slow is done."""
    if source and source != TORCHVISION and not Path(source).exists():
        raise UserError(f"--ckpt {source}: no such file")


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint, recognise whose it is, and say what had to be guessed.

    Own files are rebuilt from their settings. Others are recognised by the names of their weights:
    the public ancestor's (`model_state`), torchvision's `deeplabv3_*`, its reference script's
    (`model`), bare state dicts, each with the prefixes of DataParallel and others.

    Args:
        source: a file, or "torchvision" for its weights of VOC's classes, downloaded once.

    Raises:
        UserError: see `read_file`; or the weights are of no model that is built here.
    """
    if str(source) == TORCHVISION:
        content = download_weights(*TORCHVISION_WEIGHTS, instead="--ckpt FILE, or train a run")
        checkpoint = describe_checkpoint(Path(TORCHVISION), content)
        checkpoint.class_names = list(CLASS_NAMES)  # published with them
        return checkpoint
    checkpoint = describe_checkpoint(Path(source), read_file(source))
    for note in checkpoint.notes:
        say_once(f"{source}: {note}")
    return checkpoint


def describe_checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    """Recognise what was read from a file; see `load_checkpoint`."""
    describe = _describe_own if isinstance(content.get("format"), str) else _describe_foreign
    checkpoint = describe(path, content)
    weights = checkpoint.state_dict.items()
    checkpoint.state_dict = {k: value for k, value in weights if not k.startswith(AUX_HEAD)}
    check_weights(path, checkpoint.state_dict)
    return checkpoint


def _describe_own(path: Path, content: dict[str, Any]) -> Checkpoint:
    """A file of this project's, as its settings say."""
    if content["format"] != FORMAT:
        raise UserError(
            f"{path}: is of format {content['format']!r}, and this code knows {FORMAT!r} alone: "
            "take the version of this project that wrote it"
        )
    try:
        args, names = content["args"], content["class_names"]
        colours = content.get("palette")  # older files have none
        checkpoint = Checkpoint(
            path,
            "own",
            content["model_state"],
            args["model"],
            num_classes=len(names),
            output_stride=args["output_stride"],
            separable_conv=args.get("separable_conv", False),
            content=content,
            class_names=names,
            resize=args.get("resize", 1.0),
            mean=content["mean"],
            std=content["std"],
            colours=None if colours is None else np.array(colours, np.uint8),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not as this project writes checkpoints ({error!r:.80}): give another"
        ) from None
    if checkpoint.model not in MODELS:
        raise UserError(
            f"{path}: is a {checkpoint.model}, which is not in the table MODELS "
            "(network/modeling.py): add it"
        )
    return checkpoint


def _describe_foreign(path: Path, content: dict[str, Any]) -> Checkpoint:
    """Somebody else's file, by the names of its weights."""
    state_dict, note = find_state_dict(path, content)
    kind = "VainF-style" if "model_state" in content else "bare state dict"
    if "classifier.0.convs.0.0.weight" in state_dict:
        kind = "torchvision"
        state_dict = {  # under the public ancestor's names
            re.sub("^classifier", "classifier.classifier", k): state_dict[k] for k in state_dict
        }
    model, num_classes = recognise(path, state_dict)
    notes = [note] if note else []
    if num_classes == len(CLASS_NAMES):
        notes.append("names no classes: its 21 are taken to be VOC's")
    if kind == "bare state dict" and "mobilenet" in model:
        notes.append(
            "is taken to pad its MobileNetV2 as torchvision does; weights of VainF's code need its "
            "whole file, with model_state"
        )
    return Checkpoint(
        path,
        kind,
        state_dict,
        model,
        num_classes,
        output_stride=8 if kind == "torchvision" else None,
        separable_conv=any(".body.0.weight" in key for key in state_dict),
        content=content,
        notes=notes,
    )


def model_from_checkpoint(checkpoint: Checkpoint, output_stride: int | None = None) -> DeepLab:
    """Build the model that the checkpoint describes, with its weights, in evaluation mode.

    `output_stride` is 8 or 16, for a file that does not say: weights of one stride load into a
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
    if checkpoint.kind == "VainF-style" and isinstance(model.backbone, MobileNetV2Backbone):
        model.backbone.pad_before_expansion()
    return model.eval()


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Load strictly; a mismatch becomes one line that names the file and the first weights."""
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        detail = textwrap.shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
        raise UserError(f"{path}: does not fit the model ({detail})") from None


def start_from(
    model: DeepLab, name: str, checkpoint: Checkpoint, class_names: Sequence[str]
) -> str:
    """Start training from a checkpoint's weights, with its mean and std.

    The last layer stays new if the data set has other classes.

    Returns:
        One line that says what was done.

    Raises:
        UserError: it is of another architecture, or lacks weights.
    """
    if checkpoint.model != name:
        raise UserError(
            f"{checkpoint.path}: holds a {checkpoint.model}, not a {name}: give --model "
            f"{checkpoint.model}"
        )
    own = model.state_dict()
    is_new = {key for key in own if key.startswith(AUX_HEAD)}  # of training alone
    note = f"starts from {checkpoint.path} ({checkpoint.kind})"
    if difference := first_difference(checkpoint, class_names):
        # Weight and bias of the convolution that gives the classes.
        is_new |= set([key for key in own if key not in is_new][-2:])
        note += f"; the last layer is new: {difference}"
    elif not checkpoint.class_names:
        note += f"; it names no classes: its {len(class_names)} are taken to be the data set's"
    load_weights(model, checkpoint.state_dict | {key: own[key] for key in is_new}, checkpoint.path)
    set_normalisation(model, checkpoint.mean, checkpoint.std)
    return note


def set_normalisation(model: DeepLab, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a model the mean and standard deviation of other images, RGB in [0, 1]."""
    model.mean.copy_(255 * torch.tensor(mean).view(3, 1, 1))
    model.std.copy_(255 * torch.tensor(std).view(3, 1, 1))


def first_difference(checkpoint: Checkpoint, class_names: Sequence[str]) -> str:
    """In what a data set's classes differ from a checkpoint's; "" if they are the same."""
    if checkpoint.num_classes != len(class_names):
        return f"{len(class_names)} classes, not {checkpoint.num_classes}"
    for name, before in zip(class_names, checkpoint.class_names or class_names, strict=True):
        if name != before:
            return f"class {name!r}, where it was {before!r}"
    return ""
