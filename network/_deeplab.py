"""The parts of DeepLabV3 (arXiv:1706.05587) and DeepLabV3+ (arXiv:1802.02611).

The attribute names and the order inside each Sequential are the state-dict keys of published
checkpoints: with another name or order they no longer load.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from utils.common.imagenet import MEAN, STD


class SeparableConv2d(nn.Module):
    """3x3 atrous separable convolution: depthwise, then pointwise (V3+, section 3.1).

    Has neither bias nor a batch norm between the two: what follows it brings its own.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(
                in_channels,
                in_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                groups=in_channels,
                bias=False,
            ),
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, in_channels, H, W) to (N, out_channels, H, W)."""
        return self.body(x)


def conv3x3(
    in_channels: int, out_channels: int, dilation: int = 1, separable: bool = False
) -> nn.Module:
    """3x3 convolution without bias that keeps the size; dense or separable."""
    if separable:
        return SeparableConv2d(in_channels, out_channels, dilation)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation, bias=False
    )


class ASPPConv(nn.Sequential):
    """One atrous branch of ASPP: 3x3 convolution at `dilation`, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int, separable: bool = False
    ) -> None:
        super().__init__(
            conv3x3(in_channels, out_channels, dilation, separable),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ASPPPooling(nn.Sequential):
    """ASPP's image-level features: global average, 1x1 convolution, batch norm, ReLU.

    Training needs a batch of at least 2: batch norm sees a single value per channel and image, and
    torch raises a ValueError where that is all there is.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, in_channels, H, W) to (N, out_channels, H, W), constant over H and W."""
        # The paper's bilinear upsampling is a copy from 1x1; `expand` has a plain sum as gradient,
        # which is the same from run to run on a GPU too. What is only expanded has no memory
        # layout, and what it is concatenated with would lose its own.
        pooled = super().forward(x).expand(-1, -1, *x.shape[-2:])
        return pooled.contiguous(memory_format=torch.channels_last)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (V3, section 3.3).

    One 1x1 convolution, a 3x3 convolution for each rate, and image pooling, with 256 filters each,
    are concatenated and projected to 256. The paper has no dropout; 0.1 is the public ancestor's.

    Args:
        in_channels: channels of the backbone's output.
        atrous_rates: dilations of the 3x3 branches.
        out_channels: filters of each branch and of the projection.
        separable: separable 3x3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        separable: bool = False,
    ) -> None:
        super().__init__()
        pointwise = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        atrous = [ASPPConv(in_channels, out_channels, rate, separable) for rate in atrous_rates]
        self.convs = nn.ModuleList([pointwise, *atrous, ASPPPooling(in_channels, out_channels)])
        self.project = nn.Sequential(
            nn.Conv2d(len(self.convs) * out_channels, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, in_channels, H, W) to (N, out_channels, H, W); N >= 2 in training."""
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class DeepLabHead(nn.Module):
    """DeepLabV3's head: ASPP, 3x3 convolution, 1x1 convolution to the classes (V3, section 3.3).

    The paper goes from ASPP straight to the 1x1 convolution; the 3x3 one between them is the public
    ancestor's and torchvision's, and their weights need it.

    Args:
        low_level_channels: channels of "low_level", which only V3+ uses.
        in_channels: channels of "out".
        num_classes: channels of the logits.
        atrous_rates: ASPP's dilations.
        separable: separable 3x3 convolutions.
    """

    def __init__(
        self,
        low_level_channels: int,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int],
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            ASPP(in_channels, atrous_rates, separable=separable),
            conv3x3(256, 256, separable=separable),
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, num_classes, kernel_size=1),
        )
        init_head(self)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features "out" (N, in_channels, h, w) to logits (N, num_classes, h, w)."""
        return self.classifier(features["out"])


class DeepLabHeadPlus(nn.Module):
    """DeepLabV3+'s head: ASPP, and a decoder at the low-level features' size (V3+, section 3.1).

    Low-level features are reduced to 48 channels (section 4.1) and joined with the upsampled output
    of ASPP. The paper refines with two 3x3 convolutions; here it is one, as in the public ancestor,
    whose weights are to load. The arguments are those of `DeepLabHead`.
    """

    def __init__(
        self,
        low_level_channels: int,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int],
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(low_level_channels, 48, kernel_size=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
        )
        self.aspp = ASPP(in_channels, atrous_rates, separable=separable)
        self.classifier = nn.Sequential(
            conv3x3(48 + 256, 256, separable=separable),
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, num_classes, kernel_size=1),
        )
        init_head(self)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features to logits at the low-level size.

        Args:
            features: "low_level" (N, low_level_channels, H/4, W/4), "out" (N, in_channels, h, w).

        Returns:
            logits (N, num_classes, H/4, W/4).
        """
        low_level = self.project(features["low_level"])
        out = F.interpolate(
            self.aspp(features["out"]),
            size=low_level.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        # Autocast upsamples in float32 on CUDA, and the concatenation of two types would be so too.
        # Low-level channels first: published weights have them in this order.
        return self.classifier(torch.cat([low_level, out.to(low_level.dtype)], dim=1))


class DeepLab(nn.Module):
    """Backbone, head, and bilinear upsampling to the size of the image (V3+, section 3.1).

    Args:
        backbone: image to {"low_level", "aux", "out"}.
        classifier: that dict to logits at any size.
        aux_classifier: "aux" to logits; a second head that only training uses.
        mean: of the images that the weights were trained on, RGB in [0, 1].
        std: their standard deviation.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        # Not in the state dict, whose keys are the ancestor's.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits of a batch of images: `segment(normalize(image))`.

        Args:
            image: uint8 (N, 3, H, W), RGB, or float in the same range, [0, 255].
        """
        return self.segment(self.normalize(image))

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """(image - mean) / std: float (N, 3, H, W), channels last in memory."""
        return (image.contiguous(memory_format=torch.channels_last) - self.mean).div_(self.std)

    def segment(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits of a batch; in training it must hold at least 2 images (see `ASPPPooling`).

        Args:
            image: normalised float (N, 3, H, W).

        Returns:
            logits (N, C, H, W), float32 (float64 for a float64 model); in training with an
            auxiliary head a pair of them, the auxiliary ones second.
        """
        features = self.backbone(image)
        logits = upsample(self.classifier(features), image.shape[-2:])
        if self.training and self.aux_classifier is not None:
            return logits, upsample(self.aux_classifier(features["aux"]), image.shape[-2:])
        return logits


def upsample(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Logits (N, C, h, w) to (N, C, *size), float32 at least, bilinearly."""
    # bf16 has 8 significant bits: interpolated in it, two classes tie at many pixels along their
    # border, and argmax takes the lower index.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def init_head(head: nn.Module) -> None:
    """He initialisation of the convolutions (batch norm starts at weight 1, bias 0 by itself)."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
