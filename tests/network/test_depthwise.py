"""Depthwise convolutions: what they compute in training on a CPU, and dilated ones."""

import copy

import pytest
import torch
from torch import nn

from network.backbone import build_backbone
from network.depthwise import DepthwiseConv2d, replace_stride_with_dilation


def depthwise(**options):
    torch.manual_seed(0)
    options = {"kernel_size": 5, "padding": 2, **options}
    return DepthwiseConv2d(6, 6, groups=6, bias=False, **options)


def kernel_types(conv, x):
    """The type that the convolution computes in, and the type of its result."""
    seen = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.conv2d:
                with torch._C.DisableTorchFunction():
                    is_cast = torch.is_autocast_enabled("cpu")
                seen.append(torch.bfloat16 if is_cast else args[0].dtype)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Spy():
        result = conv(x)
    return seen, result.dtype


def test_training_on_a_cpu_computes_in_fp32_and_rounds_to_what_autocast_gives():
    conv, x = depthwise(), torch.randn(2, 6, 9, 9)
    assert kernel_types(conv.train(), x) == ([torch.float32], torch.bfloat16)
    expected = nn.functional.conv2d(x, conv.weight, padding=2, groups=6).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), expected)
    assert torch.equal(conv(x), expected.float()) is False  # without autocast nothing is rounded


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kernel_size": 3, "padding": 1}, torch.bfloat16),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, torch.float32),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, torch.float32),
    ],
)
def test_small_kernels_stay_in_bf16_where_that_is_quicker(options, expected):
    conv = depthwise(**options).train()
    assert kernel_types(conv, torch.randn(2, 6, 9, 9)) == ([expected], torch.bfloat16)


def test_evaluation_computes_as_autocast_says():
    assert kernel_types(depthwise().eval(), torch.randn(2, 6, 9, 9))[0] == [torch.bfloat16]


def test_gradients_under_autocast_are_those_of_fp32():
    conv, x = depthwise().train(), torch.randn(2, 6, 9, 9)
    plain = copy.deepcopy(conv)
    plain(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).float().sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad)


def test_every_depthwise_convolution_of_an_efficientnet_lite_is_one():
    with torch.device("meta"):
        backbone = build_backbone("efficientnet_lite0", 16)
    grouped = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(grouped) == 16
    assert all(isinstance(conv, DepthwiseConv2d) for conv in grouped)


def test_a_convolution_that_loses_its_stride_keeps_the_dilation_before_it():
    convs = [nn.Conv2d(1, 1, size, stride) for size, stride in [(3, 2), (5, 2), (3, 1), (5, 2)]]
    convs += [nn.Conv2d(1, 1, 3, 1)]
    replace_stride_with_dilation(convs, input_stride=2, output_stride=4)
    assert [conv.stride[0] for conv in convs] == [2, 1, 1, 1, 1]
    assert [conv.dilation[0] for conv in convs] == [1, 1, 2, 2, 4]
    assert [conv.padding[0] for conv in convs] == [0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [(16, [1] * 11 + [1] + [2] * 4), (8, [1] * 5 + [1] + [2] * 5 + [2] + [4] * 4)],
)
def test_dilations_of_efficientnet_lites_blocks(output_stride, dilations):
    with torch.device("meta"):
        backbone = build_backbone("efficientnet_lite0", output_stride)
    convs = [block._depthwise_conv for block in backbone._blocks]
    assert [conv.dilation[0] for conv in convs] == dilations
    sizes = [conv.kernel_size[0] for conv in convs]
    assert sizes == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    for conv in convs:
        expected = 0 if conv.stride[0] == 2 else conv.dilation[0] * (conv.kernel_size[0] // 2)
        assert conv.padding == (expected, expected)
