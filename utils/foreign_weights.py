"""Other people's DeepLab weights: found in their files, cleaned, and recognised by their names."""

import re
from pathlib import Path
from typing import Any

import torch

from utils.common.errors import UserError

# Where files keep their weights, the averaged ones first; "model_state" is the public ancestor's.
EMA_KEYS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
PLAIN_KEYS = ("model_state", "model_state_dict", "state_dict", "model", "net", "weights")
MAX_NESTING = 3  # as in {"model": {"state_dict": ...}}

AUX_HEAD = "aux_classifier."  # a head that training alone uses; nothing that predicts has it
MAX_CLASSES = 255  # predictions are bytes, and 255 is void

# The names of a wrapper in front of each weight: DataParallel's, torch.compile's, a module's.
_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|model|net)\.)+")
# By one weight and its size that no other backbone has; ResNet-101 has ResNet-50's weights as well,
# and the longer EfficientNet-Lites have Lite0's.
_BACKBONES = (
    ("backbone.low_level_features.0.0.weight", 32, "mobilenet"),
    ("backbone._blocks.20._project_conv.weight", 352, "efficientnet_lite2"),
    ("backbone._blocks.20._project_conv.weight", 320, "efficientnet_lite1"),
    ("backbone._blocks.15._project_conv.weight", 320, "efficientnet_lite0"),
    ("backbone.layer3.22.conv1.weight", 256, "resnet101"),
    ("backbone.layer3.5.conv3.weight", 1024, "resnet50"),
)


def find_state_dict(path: Path, content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights in what was read from a file, without wrappers' prefixes and what is no weight.

    Returns:
        The state dict; and which of two was chosen, "" if there is one.

    Raises:
        UserError: there are no weights, or each is there twice.
    """
    weights, note = content, ""
    for _ in range(MAX_NESTING):
        held = [key for key in EMA_KEYS + PLAIN_KEYS if isinstance(weights.get(key), dict)]
        if not held:
            break
        if held[0] in EMA_KEYS and held[-1] in PLAIN_KEYS:
            note = f"takes the averaged weights ({held[0]}), not {held[-1]}"
        weights = weights[held[0]]
    kept = {key: value for key, value in weights.items() if _is_weight(key, value)}
    if not kept:
        raise UserError(f"{path}: holds no weights of a model: give another file")
    state_dict = {_PREFIXES.sub("", key): value for key, value in kept.items()}
    if len(state_dict) < len(kept):
        raise UserError(f"{path}: holds two sets of weights side by side: save one of them alone")
    return state_dict, note


def _is_weight(key: Any, value: Any) -> bool:
    """Not a number of an average (`n_averaged`), nor a counter that thop puts into a model."""
    is_tensor = isinstance(key, str) and isinstance(value, torch.Tensor)
    if not is_tensor or key.endswith(("total_ops", "total_params")):
        return False
    return value.dim() > 0 or key.endswith("num_batches_tracked")


def check_weights(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Refuse weights that compute nothing of use.

    Raises:
        UserError: some are integers, not finite, or variances below 0.
    """
    for key, value in state_dict.items():
        if key.endswith("num_batches_tracked"):
            continue
        is_sound = value.is_floating_point() and bool(value.isfinite().all())
        if not is_sound or (key.endswith("running_var") and (value < 0).any()):
            raise UserError(
                f"{path}: {key} is quantised, not finite, or a variance below 0 (did the training "
                "diverge?): give another checkpoint"
            )


def recognise(path: Path, state_dict: dict[str, torch.Tensor]) -> tuple[str, int]:
    """The name in `MODELS` and the number of classes, from the names of the weights.

    Raises:
        UserError: it is no DeepLab that is built here, or has too few or too many classes.
    """
    head, last_layer = "deeplabv3", "classifier.classifier.4.weight"
    if "classifier.project.0.weight" in state_dict:
        head, last_layer = "deeplabv3plus", "classifier.classifier.3.weight"
    backbone = next(
        (n for key, size, n in _BACKBONES if len(state_dict.get(key, ())) == size), None
    )
    num_classes = len(state_dict.get(last_layer, ()))
    if backbone is None or not 2 <= num_classes <= MAX_CLASSES:
        raise UserError(
            f"{path}: holds no DeepLabV3 or V3+ of 2 to {MAX_CLASSES} classes with a ResNet-50, "
            "ResNet-101, MobileNetV2 or EfficientNet-Lite: give another --ckpt (for ImageNet's "
            "weights of a backbone there is --backbone_weights)"
        )
    return f"{head}_{backbone}", num_classes
