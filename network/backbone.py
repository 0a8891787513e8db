"""torchvision's ResNets and MobileNetV2 as feature extractors, and their ImageNet weights."""

import http.client
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from utils.errors import UserError

StateDict = dict[str, torch.Tensor]

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
        super().__init__()
        resnet = get_model(
            name, weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
        )
        for child_name, child in resnet.named_children():
            if child_name not in ("avgpool", "fc"):
                self.add_module(child_name, child)

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
    def from_torchvision(state: StateDict) -> StateDict:
        """Torchvision's state dict under this module's keys, the classifier left out."""
        return {key: value for key, value in state.items() if not key.startswith("fc.")}


class MobileNetV2Backbone(nn.Module):
    """torchvision's MobileNetV2 without its last 1x1 convolution and its classifier.

    Args:
        name: `mobilenet_v2`.
        output_stride: 8 or 16.
    """

    low_level_channels = 24
    aux_channels = 96
    out_channels = 320

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        features = get_model(name, weights=None).features
        self.low_level_features = features[:4]  # slices keep the names "0" to "17"
        self.high_level_features = features[4:18]
        self._dilate(output_stride)

    def _dilate(self, output_stride: int) -> None:
        """Replace strides beyond `output_stride` by dilation, as torchvision does for a ResNet.

        A block that loses its stride keeps the dilation before it; those after it double theirs.
        At every place that the strided network has, the features are the same.
        """
        stride, dilation = 4, 1
        for block in self.high_level_features:
            depthwise = block.conv[1][0]
            depthwise.dilation = depthwise.padding = (dilation, dilation)
            if stride == output_stride:
                dilation *= depthwise.stride[0]
                depthwise.stride = (1, 1)
            else:
                stride *= depthwise.stride[0]

    def forward(self, image: torch.Tensor) -> StateDict:
        """Image float (N, 3, H, W) to features.

        Returns:
            "low_level" (stride 4), "out" (the output stride), and "aux", what the last four blocks
            get.
        """
        low_level = self.low_level_features(image)
        aux = self.high_level_features[:10](low_level)
        return {"low_level": low_level, "aux": aux, "out": self.high_level_features[10:](aux)}

    @staticmethod
    def from_torchvision(state: StateDict) -> StateDict:
        """Torchvision's state dict under this module's keys, what is not used left out."""
        renamed = {}
        for key, value in state.items():
            if key.startswith(("classifier.", "features.18.")):
                continue
            low_level = key.startswith(("features.0.", "features.1.", "features.2.", "features.3."))
            prefix = "low_level_features." if low_level else "high_level_features."
            renamed[key.replace("features.", prefix, 1)] = value
        return renamed


BACKBONES = {
    "resnet50": ResNetBackbone,
    "resnet101": ResNetBackbone,
    "mobilenet_v2": MobileNetV2Backbone,
}


def build_backbone(
    name: str, output_stride: int = 16, weights: str = "none"
) -> ResNetBackbone | MobileNetV2Backbone:
    """Build a backbone; weights are read first, so that bad ones fail at once.

    Args:
        name: a key of `BACKBONES`.
        output_stride: 8 or 16.
        weights: `none`, `imagenet1k_v1`, `imagenet1k_v2`, or the path of torchvision's state dict.

    Raises:
        UserError: the weights cannot be had, read, or belong to another architecture.
    """
    state = None if weights == "none" else read_weights(name, weights)
    backbone = BACKBONES[name](name, output_stride)
    if state is not None:
        load_backbone_weights(backbone, name, state, weights)
    return backbone


def load_backbone_weights(
    backbone: ResNetBackbone | MobileNetV2Backbone, name: str, state: StateDict, source: str
) -> None:
    """Load torchvision's state dict strictly, but for what the backbone leaves out.

    Args:
        backbone: changed in place.
        name: torchvision's name of the architecture, for the message.
        state: torchvision's keys.
        source: where `state` comes from, for the message.

    Raises:
        UserError: keys or shapes differ.
    """
    try:
        backbone.load_state_dict(backbone.from_torchvision(state))
    except RuntimeError as error:
        detail = textwrap.shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
        raise UserError(
            f"{source}: not the weights of torchvision's {name}, which --backbone_weights needs "
            f"for this --model ({detail})"
        ) from None


def read_weights(name: str, weights: str) -> StateDict:
    """Torchvision's state dict of `name`, from the internet (or torch's cache) or from a file.

    Raises:
        UserError: the download fails, or the file is missing or unreadable.
    """
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
            f"torchvision's state dict of {name}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(
            f"{path}: holds no state dict: give --backbone_weights torchvision's of {name}"
        )
    return state


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
    weights: Any = get_model_weights(name)[version.upper()]
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        with socket_timeout(DOWNLOAD_TIMEOUT):
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


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let new sockets give up after `seconds` of silence; torch.hub sets no timeout itself."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
