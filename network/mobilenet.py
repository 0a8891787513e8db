"""torchvision's MobileNetV2 as a backbone, and the padding of the public ancestor's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from network.efficientnet_lite import StateDict, replace_stride_with_dilation


class MobileNetV2Backbone(nn.Module):
    """torchvision's MobileNetV2 without its last 1x1 convolution and its classifier.

    `name` is `mobilenet_v2`, `output_stride` 8 or 16.
    """

    low_level_channels = 24
    aux_channels = 96
    out_channels = 320

    def __init__(self, name: str, output_stride: int) -> None:
        from torchvision.models import get_model

        super().__init__()
        features = get_model(name, weights=None).features
        self.low_level_features = features[:4]  # slices keep the names "0" to "17"
        self.high_level_features = features[4:18]
        convs = [block.conv[1][0] for block in self.high_level_features]
        replace_stride_with_dilation(convs, input_stride=4, output_stride=output_stride)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image float (N, 3, H, W) to features.

        Returns:
            "low_level" (stride 4), "out" (the output stride), and "aux", what the last blocks get.
        """
        low_level = self.low_level_features(image)
        aux = self.high_level_features[:10](low_level)
        return {"low_level": low_level, "aux": aux, "out": self.high_level_features[10:](aux)}

    def pad_before_expansion(self) -> None:
        """Pad as the public ancestor does, for weights that were trained with its code.

        It pads each block's input by zeros, before the expansion, which makes other values of
        them, and does not pad the first convolution at all.
        """
        self.low_level_features[0][0].padding = (0, 0)
        for features in (self.low_level_features, self.high_level_features):
            for name, block in list(features.named_children()):
                if name != "0":
                    setattr(features, name, EarlyPaddedBlock(block))

    @staticmethod
    def from_published(state: StateDict) -> StateDict:
        """The published state dict under this module's keys, what is not used left out."""
        renamed = {}
        for key, value in state.items():
            if key.startswith(("classifier.", "features.18.")):
                continue
            low_level = key.startswith(("features.0.", "features.1.", "features.2.", "features.3."))
            prefix = "low_level_features." if low_level else "high_level_features."
            renamed[key.replace("features.", prefix, 1)] = value
        return renamed


class EarlyPaddedBlock(nn.Module):
    """An inverted residual whose input is padded, and not what its depthwise convolution gets."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv, self.use_res_connect = block.conv, block.use_res_connect
        self.conv[-3][0].padding = (0, 0)  # the depthwise one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, C, H, W) to (N, C', H', W'), of the sizes that torchvision's block gives."""
        (dilation, _) = self.conv[-3][0].dilation  # of a 3x3 kernel: as many pixels on each side
        out = self.conv(F.pad(x, [dilation] * 4))
        return x + out if self.use_res_connect else out
