"""Depthwise convolutions: quick to train on a CPU, and dilated in place of strided."""

from collections.abc import Iterable

import torch
from torch import nn


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
        output_stride: image size over size of what the last one shall give.
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
