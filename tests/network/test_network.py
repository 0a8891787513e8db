import io
import socket
from email.message import Message
from functools import cache
from unittest.mock import Mock
from urllib.error import HTTPError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.transforms.v2.functional import normalize

from datasets.transforms import MEAN_COLOR
from network import MODELS, build_model
from network._deeplab import ASPP, DeepLab, DeepLabHeadPlus, SeparableConv2d
from network.backbone import BACKBONES, build_backbone
from utils.common.errors import UserError
from utils.common.imagenet import MEAN, STD

MOBILENET_FILES = {
    "imagenet1k_v1": "mobilenet_v2-b0353104.pth",
    "imagenet1k_v2": "mobilenet_v2-7ebf99e0.pth",
}


@cache
def plain_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settle(get_model(name, weights=None))


def settle(module: nn.Module) -> nn.Module:
    """Give every batch norm values of its own, and running statistics that fit its input."""
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(2, 3, 65, 65))
    return module.eval()


@pytest.mark.parametrize(
    ("name", "separable_conv", "keys", "parameters"),
    [
        ("deeplabv3_resnet50", False, 362, 39_638_869),
        ("deeplabv3plus_resnet50", False, 368, 39_761_845),
        ("deeplabv3plus_resnet50", True, 372, 26_614_373),
        ("deeplabv3_resnet50", True, 366, 26_589_269),
        ("deeplabv3plus_mobilenet", False, 356, 5_225_717),
    ],
)
def test_published_numbers_of_keys_and_parameters(name, separable_conv, keys, parameters):
    with torch.device("meta"):
        model = build_model(name, separable_conv=separable_conv)
    assert len(model.state_dict()) == keys
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_mobilenets_features_are_split_after_the_fourth():
    expected = {}
    with torch.device("meta"):
        state = build_model("deeplabv3_mobilenet").state_dict()
        for key, value in get_model("mobilenet_v2").features[:18].state_dict().items():
            level = "low" if int(key.partition(".")[0]) < 4 else "high"
            expected[f"backbone.{level}_level_features.{key}"] = value.shape
    assert {k: v.shape for k, v in state.items() if k.startswith("backbone.")} == expected
    assert len(expected) == 306


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_size_of_the_image(name):
    output_stride = 8 if "plus" in name else 16
    with torch.device("meta"):
        model = build_model(name, 4, output_stride, separable_conv=output_stride == 8).eval()
        assert model(torch.empty(1, 3, 64, 47)).shape == (1, 4, 64, 47)


@pytest.mark.parametrize(
    ("name", "output_stride", "expected"),
    [
        ("resnet50", 16, [1] * 3 + [1] * 4 + [1] * 6 + [1, 2, 2]),
        ("resnet101", 16, [1] * 3 + [1] * 4 + [1] * 23 + [1, 2, 2]),
        # the stem, then 17 blocks, of which 7 and 14 have stride 2 in the strided network
        ("mobilenet_v2", 16, [1] * 14 + [1] + [2] * 3),
        ("mobilenet_v2", 8, [1] * 7 + [1] + [2] * 6 + [2] + [4] * 3),
    ],
)
def test_dilations_of_the_backbones_3x3_convolutions(name, output_stride, expected):
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride)
    convs = [m for m in backbone.modules() if getattr(m, "kernel_size", None) == (3, 3)]
    convs = [conv for conv in convs if isinstance(conv, nn.Conv2d)]
    assert [conv.dilation for conv in convs] == [(d, d) for d in expected]
    assert [conv.padding for conv in convs] == [(d, d) for d in expected]


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3plus_mobilenet"])
def test_atrous_rates_double_at_output_stride_8(name, output_stride, rates, separable):
    with torch.device("meta"):
        model = build_model(name, output_stride=output_stride, separable_conv=separable)
    (aspp,) = (module for module in model.modules() if isinstance(module, ASPP))
    found = [branch[0].body[0] if separable else branch[0] for branch in aspp.convs[1:4]]
    assert [conv.dilation[0] for conv in found] == rates
    assert [conv.padding[0] for conv in found] == rates


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_dilated_features_equal_the_strided_networks_where_it_has_any(name, output_stride):
    plain = plain_network(name)
    backbone = build_backbone(name, output_stride).eval()
    backbone.load_state_dict(backbone.from_published(plain.state_dict()))
    if name == "mobilenet_v2":
        low_level_part, out_part = plain.features[:4], plain.features[4:18]
    else:
        children = list(plain.children())
        low_level_part, out_part = nn.Sequential(*children[:5]), nn.Sequential(*children[5:8])
    image = torch.randn(2, 3, 97, 75)
    with torch.inference_mode():
        features = backbone(image)
        low_level = low_level_part(image)
        out = out_part(low_level)
    step = 32 // output_stride
    torch.testing.assert_close(features["low_level"], low_level)
    assert out.shape[-2:] == (4, 3)
    torch.testing.assert_close(features["out"][..., ::step, ::step], out, rtol=1e-4, atol=1e-4)


def test_v3plus_decoder_equals_a_functional_one():
    torch.manual_seed(0)
    head = DeepLabHeadPlus(6, 10, 5, (1, 2, 3)).double()
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    head.eval()
    state = head.state_dict()
    low_level, out = torch.randn(2, 6, 17, 13).double(), torch.randn(2, 10, 5, 4).double()

    def norm_relu(x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{key}.{name}"] for name in names)))

    with torch.inference_mode():
        coarse = F.interpolate(head.aspp(out), (17, 13), mode="bilinear", align_corners=False)
        fine = norm_relu(F.conv2d(low_level, state["project.0.weight"]), "project.1")
        joined = torch.cat([fine, coarse], dim=1)
        x = F.conv2d(joined, state["classifier.0.weight"], padding=1)
        x = norm_relu(x, "classifier.1")
        expected = F.conv2d(x, state["classifier.3.weight"], state["classifier.3.bias"])
        logits = head({"low_level": low_level, "out": out})
    torch.testing.assert_close(logits, expected)


def test_separable_convolution_equals_the_dense_one_of_the_product_kernel():
    conv = SeparableConv2d(4, 6, dilation=3).double()
    depthwise, pointwise = conv.body[0].weight, conv.body[1].weight
    kernel = pointwise * depthwise.transpose(0, 1)  # (6, 4, 1, 1) * (1, 4, 3, 3)
    x = torch.randn(2, 4, 9, 11).double()
    torch.testing.assert_close(conv(x), F.conv2d(x, kernel, padding=3, dilation=3))


def test_dropout_after_aspp_is_a_tenth():
    assert [m.p for m in ASPP(4, (1, 2, 3)).modules() if isinstance(m, nn.Dropout)] == [0.1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_upsampled_in_float32_or_better(dtype):
    coarse = torch.tensor([[[[1.0, 1.0078125]]]], dtype=dtype)  # neighbours in bfloat16
    model = DeepLab(nn.Identity(), nn.Module())
    model.classifier.forward = lambda features: coarse
    logits = model(torch.zeros(1, 3, 1, 4))
    # align_corners=False samples at -0.25 (clamped), 0.25, 0.75 and 1.25 (clamped)
    step = 0.0078125
    expected = torch.tensor([1.0, 1 + 0.25 * step, 1 + 0.75 * step, 1 + step])
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits[0, 0, 0].float(), expected, rtol=0, atol=1e-6)


SLOW_RESNET = pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow)


@pytest.mark.slow
def test_model_compiles_without_a_graph_break():
    model = build_model("deeplabv3plus_mobilenet").eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    image = torch.randn(1, 3, 65, 49)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet", "deeplabv3plus_mobilenet", SLOW_RESNET])
def test_every_parameter_gets_a_finite_gradient(name):
    torch.manual_seed(0)
    model = build_model(name, separable_conv=True)
    model(torch.randn(2, 3, 65, 65)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["deeplabv3plus_mobilenet", SLOW_RESNET])
def test_auxiliary_head_gives_logits_in_training_alone(name):
    model = build_model(name, num_classes=4, aux_head=True)
    image = torch.randn(2, 3, 33, 49)
    logits, aux = model(image)
    assert logits.shape == aux.shape == (2, 4, 33, 49)
    assert aux.dtype == torch.float32
    aux.sum().backward()
    assert model.aux_classifier[0].weight.grad is not None
    assert next(model.backbone.parameters()).grad is not None
    assert all(parameter.grad is None for parameter in model.classifier.parameters())
    assert model.eval()(image).shape == (2, 4, 33, 49)


@pytest.mark.parametrize("name", ["deeplabv3plus_resnet50", "deeplabv3_mobilenet"])
@pytest.mark.parametrize(("given", "expected"), [(0.01, 0.01), (None, 0.1)])
def test_bn_momentum_is_set_on_the_backbone_alone(name, given, expected):
    with torch.device("meta"):
        model = build_model(name, bn_momentum=given)
    for part, momentum in ((model.backbone, expected), (model.classifier, 0.1)):
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.momentum for norm in norms} == {momentum}


def test_head_starts_with_he_initialisation():
    torch.manual_seed(0)
    head = build_model("deeplabv3plus_mobilenet").classifier
    # 3x3 over 304 channels: standard deviation sqrt(2 / fan_in)
    assert head.classifier[0].weight.std().item() == pytest.approx((2 / (304 * 9)) ** 0.5, rel=0.02)
    assert head.classifier[3].bias.abs().max() == 0
    for norm in (m for m in head.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_unknown_model_names_the_flag_and_those_that_there_are():
    with pytest.raises(UserError, match="--model deeplabv4: .*deeplabv3plus_resnet50"):
        build_model("deeplabv4")


@pytest.mark.parametrize(
    ("model", "name"), [("resnet50", "resnet50"), ("mobilenet", "mobilenet_v2")]
)
def test_old_weights_file_of_torchvision_loads_into_the_models_backbone(tmp_path, model, name):
    # It has no num_batches_tracked, and is not a zip archive.
    state = plain_network(name).state_dict()
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    loaded = build_model(f"deeplabv3_{model}", backbone_weights=str(path)).backbone.state_dict()
    expected = BACKBONES[name].from_published(state)
    assert len(expected) > 200
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


def published(**changes):
    """MobileNetV2's published state dict with values in place of its own; None leaves one out."""
    state = plain_network("mobilenet_v2").state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


KEY = "features.5.conv.0.0.weight"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: [1, 2], "holds a list"),
        (lambda: published(**{KEY: None}), "not the published .*backbone_weights"),
        (lambda: published(more=torch.zeros(3)), "not the published weights of mobile"),
        (lambda: published(**{KEY: torch.zeros(3)}), "not the published weights"),
        (lambda: published(**{KEY: 1.0}), "not the published weights"),
    ],
)
def test_files_that_are_not_the_weights_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content(), path)
    with pytest.raises(UserError, match=rf"^{path}: {message}") as caught:
        build_backbone("mobilenet_v2", 16, str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("weights", ["imagenet1k_v3", "."])
def test_weights_that_are_no_file_name_the_flag(weights):
    with pytest.raises(UserError, match=rf"^{weights}: cannot be read .*--backbone_weights"):
        build_backbone("resnet50", 16, weights)


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty TORCH_HOME."""
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("version", MOBILENET_FILES)
def test_published_weights_are_taken_from_torchs_cache(cache_folder, monkeypatch, version):
    monkeypatch.setattr("torch.hub.urlopen", None)  # no download is needed
    torch.save(published(), cache_folder / MOBILENET_FILES[version])
    backbone = build_backbone("mobilenet_v2", 16, version)
    last = plain_network("mobilenet_v2").features[17].conv[3].running_var
    assert torch.equal(backbone.high_level_features[-1].conv[3].running_var, last)


def test_damaged_file_in_torchs_cache_is_to_be_deleted(cache_folder):
    path = cache_folder / MOBILENET_FILES["imagenet1k_v1"]
    path.write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(UserError, match=rf"or {path} is damaged \(.*delete that file") as caught:
        build_backbone("mobilenet_v2", 16, "imagenet1k_v1")
    assert "\n" not in str(caught.value)


class HtmlResponse(io.BytesIO):
    """What a captive portal answers: a page with status 200."""

    def info(self):
        return Message()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HTTPError("https://x", 403, "Forbidden", Message(), None), "Forbidden"),
        (TimeoutError("timed out"), "timed out"),
        (HtmlResponse(b"<html>log in first</html>"), "invalid hash value"),
    ],
)
def test_failed_download_names_the_ways_out(cache_folder, monkeypatch, answer, reason):
    urlopen = Mock(side_effect=[answer])
    monkeypatch.setattr("torch.hub.urlopen", lambda _: urlopen(socket.getdefaulttimeout()))
    file = cache_folder / "resnet50-11ad3fa6.pth"
    message = (
        rf"^https://download\.pytorch\.org/models/resnet50-11ad3fa6\.pth: cannot be downloaded, or "
        rf"{file} is damaged \(.*{reason}.*--backbone_weights none, or --backbone_weights FILE"
    )
    with pytest.raises(UserError, match=message) as caught:
        build_model("deeplabv3plus_resnet50", backbone_weights="imagenet1k_v2")
    assert "\n" not in str(caught.value)
    urlopen.assert_called_once_with(15)
    assert socket.getdefaulttimeout() is None
    assert list(cache_folder.iterdir()) == []


def test_a_model_takes_bytes_and_normalises_them_as_imagenets_images():
    images = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    model = build_model("deeplabv3plus_mobilenet", num_classes=3).eval()
    result = model.normalize(images)
    expected = normalize(images / 255, MEAN, STD)
    assert result.dtype == torch.float32 and torch.allclose(result, expected, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(model(images), model.segment(result))
        assert torch.equal(model(images.float()), model.segment(result))
    padding = torch.tensor(MEAN_COLOR, dtype=torch.uint8).view(1, 3, 1, 1)
    assert model.normalize(padding).abs().max() < 0.01


def test_a_model_has_the_mean_and_std_that_it_is_built_with_and_no_keys_for_them():
    model = build_model("deeplabv3plus_mobilenet", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5))
    image = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert torch.allclose(model.normalize(image).flatten(), torch.tensor([5.0, 3.0, 1.4]))
    assert not {"mean", "std"} & set(model.state_dict())
