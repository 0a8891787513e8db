"""Depthwise convolutions in training on a CPU: in bf16, and as `DepthwiseConv2d` does it.

On a machine that others use, `OMP_NUM_THREADS=1` makes the ratios steadier.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from network.depthwise import DepthwiseConv2d
from network.modeling import build_model
from utils.benchmark.contenders import Setup, draw_batch, train_project
from utils.common.timing import Contender, Run
from utils.precision import autocast

# (channels, kernel size, stride, dilation, image size over size of what it gets), of each model.
CONVOLUTIONS = {
    "EfficientNet-Lite0": (
        (96, 3, 2, 1, 2), (144, 5, 2, 1, 4), (240, 5, 1, 1, 8), (480, 3, 1, 1, 16),
        (672, 5, 1, 1, 16), (1152, 5, 1, 2, 16), (1152, 3, 1, 2, 16),
    ),
    "MobileNetV2": (
        (32, 3, 1, 1, 2), (96, 3, 2, 1, 2), (144, 3, 1, 1, 4), (192, 3, 1, 1, 8),
        (384, 3, 1, 1, 16), (576, 3, 1, 1, 16), (960, 3, 1, 2, 16),
    ),
    "--separable_conv": (
        (2048, 3, 1, 6, 16), (2048, 3, 1, 12, 16), (2048, 3, 1, 18, 16),
        (304, 3, 1, 1, 4),
    ),
}  # fmt: skip
MODELS = {  # and whether the head is separable
    "deeplabv3plus_efficientnet_lite0": False,
    "deeplabv3plus_mobilenet": False,
    "deeplabv3plus_resnet50": True,
}


def compare_depthwise(setup: Setup) -> Iterator[list[Contender]]:
    """Forward and backward of single convolutions, then whole training steps."""
    for source, convolutions in CONVOLUTIONS.items():
        for channels, size, stride, dilation, reduction in convolutions:
            side = -(-setup.args.crop_size // reduction)
            name = f"{source}: {channels} channels, {size}x{size}, stride {stride}, dilation "
            name += f"{dilation}, {side}x{side}"
            conv = DepthwiseConv2d(
                channels, channels, size, stride, dilation * (size // 2), dilation,
                groups=channels, bias=False,
            )  # fmt: skip
            x = torch.randn(setup.args.batch_size, channels, side, side)
            yield in_both_ways(name, conv, partial(convolve, x))
    for name, separable in MODELS.items():
        model = build_model(name, separable_conv=separable)
        build = partial(train_project, setup, batch=draw_batch(setup), precision="bf16")
        yield in_both_ways(f"{name}{' --separable_conv' * separable}, training step", model, build)


def in_both_ways(
    name: str, module: nn.Module, build: Callable[[nn.Module], Run]
) -> list[Contender]:
    """What `build` makes of the module: with plain convolutions in bf16, and as it is."""
    module = module.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(module)
    for conv in plain.modules():
        if isinstance(conv, DepthwiseConv2d):
            conv.__class__ = nn.Conv2d  # type: ignore[assignment]
    base = Contender(f"{name}, plain", partial(build, plain))
    return [base, Contender(name, partial(build, module), base=base)]


def convolve(x: torch.Tensor, conv: nn.Conv2d) -> Run:
    """Forward and backward on what a network gives a convolution: bf16, channels last."""
    x = x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    with autocast("bf16", x.device):
        gradient = torch.ones_like(conv(x))

    def run() -> None:
        with autocast("bf16", x.device):
            out = conv(x)
        out.backward(gradient)

    return run
