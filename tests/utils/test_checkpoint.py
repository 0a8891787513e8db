"""Own checkpoints, everybody else's, and files that are none."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from datasets.colours import PALETTE, default_colours
from datasets.voc import CLASS_NAMES
from network.fusion import fuse_for_inference
from network.modeling import MODELS, build_model
from utils.checkpoint import (
    describe_checkpoint,
    describe_model,
    first_difference,
    load_checkpoint,
    model_from_checkpoint,
    start_from,
)
from utils.common.checkpoint_files import read_file, save_checkpoint
from utils.common.errors import UserError
from utils.foreign_weights import PLAIN_KEYS

NAME, LITE = "deeplabv3plus_mobilenet", "deeplabv3plus_efficientnet_lite0"
NAMES, COLOURS = list("abcde"), np.arange(15, dtype=np.uint8).reshape(5, 3)


def own(model, name=NAME, names=NAMES, output_stride=16):
    """What this project writes of a model."""
    settings = {"model": name, "output_stride": output_stride, "lr": 0.1}
    return describe_model(model, settings, names, COLOURS[: len(names)])


def randomize(model, seed=0):
    """Weights and running statistics that make every layer matter."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomize(build_model(NAME, num_classes=5))


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0))


def logits(model, image):
    with torch.inference_mode():
        return model.eval().segment(image)


def save(path, content):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def lite():
    torch.manual_seed(0)
    return randomize(build_model(LITE, num_classes=5))


@pytest.mark.parametrize("kind", ["own", "VainF-style", "bare state dict"])
def test_every_form_gives_the_same_logits(tmp_path, lite, image, kind):
    state = OrderedDict(("module." + key, value) for key, value in lite.state_dict().items())
    forms = {
        "own": own(lite, LITE),
        "VainF-style": {"cur_itrs": 3, "model_state": state, "best_score": np.float64(1)},
        "bare state dict": state,
    }
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", forms[kind]))
    assert (checkpoint.kind, checkpoint.model, checkpoint.num_classes) == (kind, LITE, 5)
    loaded = model_from_checkpoint(checkpoint, None if kind == "own" else 16)
    assert not loaded.training
    assert torch.equal(logits(loaded, image), logits(lite, image))
    assert checkpoint.class_names == (NAMES if kind == "own" else None)


def test_colours_are_the_files_own_or_else_the_default_ones(tmp_path, lite):
    content = own(lite, LITE)
    assert load_checkpoint(save(tmp_path / "a.pth", content)).palette.tolist() == COLOURS.tolist()
    del content["palette"]  # an older file
    for file in (content, lite.state_dict()):
        palette = load_checkpoint(save(tmp_path / "a.pth", file)).palette
        assert palette.dtype == np.uint8 and palette.tolist() == default_colours(NAMES).tolist()
    assert (default_colours(NAMES) != default_colours(CLASS_NAMES)[:5]).any()


@pytest.mark.parametrize(
    ("beside", "key", "prefix"),
    [
        *(({}, "", prefix) for prefix in ("module._orig_mod.", "_orig_mod.module.", "model.net.")),
        *(({"epoch": 3, "optimizer": {"state": {}}}, key, "") for key in PLAIN_KEYS),
        ({"epoch": 3}, "ema_state_dict", "module."),
    ],
)
def test_weights_are_found_in_every_usual_wrapper(tmp_path, lite, beside, key, prefix):
    state = lite.state_dict()
    wrapped = {prefix + name: value for name, value in state.items()}
    wrapped |= {"n_averaged": torch.tensor(7), "epoch": 3, "total_ops": torch.zeros(1)}
    content = {**beside, key: wrapped} if key else wrapped
    for nested in (content, {"model": content}):
        checkpoint = load_checkpoint(save(tmp_path / "a.pth", nested))
        assert checkpoint.model == LITE and list(checkpoint.state_dict) == list(state)


def test_averaged_weights_are_taken_where_there_are_both_and_that_is_said(tmp_path, lite, capsys):
    average = {key: value + 1 for key, value in lite.state_dict().items()}
    content = {"state_dict": lite.state_dict(), "ema_state_dict": average}
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", content))
    assert all(torch.equal(value, average[key]) for key, value in checkpoint.state_dict.items())
    assert "takes the averaged weights (ema_state_dict), not state_dict" in capsys.readouterr().err


BN = "classifier.project.1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{BN}.weight", torch.full((48,), float("nan"))),
        (f"{BN}.bias", torch.full((48,), float("inf"))),
        (f"{BN}.running_var", -torch.ones(48)),
        (f"{BN}.weight", torch.ones(48, dtype=torch.int8)),
    ],
)
def test_weights_that_compute_nothing_of_use_are_refused(lite, key, value):
    state = {**lite.state_dict(), key: value}
    message = rf"a\.pth: {key} is quantised, not finite, or a variance"
    for content in (state, {**own(lite, LITE), "model_state": state}):
        with pytest.raises(UserError, match=message):
            describe_checkpoint(Path("a.pth"), content)


@pytest.mark.parametrize("num_classes", [1, 256])
def test_class_counts_that_masks_cannot_hold_are_refused(lite, num_classes):
    last = {"classifier.classifier.3.weight": torch.zeros(num_classes, 256, 1, 1)}
    with pytest.raises(UserError, match=r"a\.pth: holds no DeepLabV3 or V3\+ of 2 to 255 classes"):
        describe_checkpoint(Path("a.pth"), lite.state_dict() | last)


def test_21_unnamed_classes_are_vocs_and_that_is_said(tmp_path, capsys):
    state = build_model(LITE, num_classes=21).state_dict()
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", state))
    assert checkpoint.class_names is None and checkpoint.shown_names == list(CLASS_NAMES)
    assert (checkpoint.palette == PALETTE[:21]).all()
    assert "its 21 are taken to be VOC's" in capsys.readouterr().err


def test_model_added_to_the_table_loads_its_own_best_file(tmp_path, image, monkeypatch):
    class Head(nn.Module):
        """A head of other names than every other."""

        def __init__(self, low_level_channels, in_channels, num_classes, rates, separable):
            super().__init__()
            self.only = nn.Conv2d(in_channels, num_classes, 1)
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def forward(self, features):
            return self.only(features["out"]) / self.temperature

    monkeypatch.setitem(MODELS, "mine", (Head, "mobilenet_v2"))
    model = randomize(build_model("mine", 3, output_stride=8, mean=(0.1, 0.2, 0.3)))
    settings = {"model": "mine", "output_stride": 8, "separable_conv": False, "resize": 0.5}
    path = tmp_path / "best.pth"
    content = describe_model(model, settings, ["a", "b", "c"], COLOURS[:3])
    save_checkpoint(path, {**content, "cur_itrs": 1})
    checkpoint = load_checkpoint(path)
    assert (checkpoint.kind, checkpoint.model, checkpoint.resize) == ("own", "mine", 0.5)
    assert checkpoint.class_names == ["a", "b", "c"]
    loaded = model_from_checkpoint(checkpoint)
    assert torch.equal(logits(loaded, image), logits(model, image))
    other = model_from_checkpoint(checkpoint, output_stride=16)
    assert not torch.allclose(logits(other, image), logits(model, image), atol=1e-3)
    assert torch.allclose(loaded.mean.flatten(), 255 * torch.tensor([0.1, 0.2, 0.3]))
    monkeypatch.delitem(MODELS, "mine")
    with pytest.raises(UserError, match=r"best\.pth: is a mine, .*MODELS"):
        load_checkpoint(path)


class AncestorBlock(nn.Module):
    """The public ancestor's inverted residual, which pads its input by zeros and nothing else."""

    def __init__(self, channels_in, channels_out, stride, dilation, expand):
        super().__init__()
        hidden = channels_in * expand
        self.shortcut = stride == 1 and channels_in == channels_out
        self.margin = dilation
        steps = [(channels_in, hidden, 1, 1, 1, 1)] if expand > 1 else []
        steps.append((hidden, hidden, 3, stride, dilation, hidden))
        layers = [ancestor_layer(*step) for step in steps]
        self.conv = nn.Sequential(
            *layers, nn.Conv2d(hidden, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x):
        wide = torch.zeros(*x.shape[:2], *(side + 2 * self.margin for side in x.shape[2:]))
        wide[:, :, self.margin : -self.margin, self.margin : -self.margin] = x
        return x + self.conv(wide) if self.shortcut else self.conv(wide)


def ancestor_layer(channels_in, channels_out, kernel, stride=1, dilation=1, groups=1):
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, 0, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())


def ancestor_mobilenet(output_stride):
    """The 18 layers, from MobileNetV2's table (arXiv:1801.04381): expansion, channels, n, s."""
    layers, channels, stride, dilation = [ancestor_layer(3, 32, 3, 2)], 32, 2, 1
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    for expand, width, count, step in [*table, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        before = dilation
        if stride == output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        for number in range(count):
            how = (1, dilation) if number else (step, before)
            layers.append(AncestorBlock(channels, width, *how, expand))
            channels = width
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("name", "output_stride", "size"), [(NAME, 16, (65, 49)), ("deeplabv3_mobilenet", 8, (64, 48))]
)
def test_ancestors_mobilenet_gives_the_ancestors_logits(tmp_path, name, output_stride, size):
    torch.manual_seed(0)
    model = randomize(build_model(name, num_classes=4, output_stride=output_stride))
    ancestor = ancestor_mobilenet(output_stride).eval()
    ours = model.backbone.state_dict()
    ancestor.load_state_dict({key.partition("_level_features.")[2]: ours[key] for key in ours})
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        low_level = ancestor[:4](image)
        features = {"low_level": low_level, "out": ancestor[4:](low_level)}
        expected = F.interpolate(model.classifier(features), size, mode="bilinear")
    content = {"cur_itrs": 9, "model_state": model.state_dict(), "best_score": np.float64(0.7)}
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", content))
    rebuilt = model_from_checkpoint(checkpoint, output_stride)
    scale = float(expected.abs().max())
    assert (logits(rebuilt, image) - expected).abs().max() < 1e-5 * scale
    assert (logits(model, image) - expected).abs().max() > 1e-3 * scale
    fused = fuse_for_inference(rebuilt)
    assert (logits(fused, image) - expected).abs().max() < 1e-4 * scale


def test_what_a_bare_file_does_not_say_is_assumed_aloud_or_asked_for(tmp_path, model, capsys):
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    assert "a.pth: is taken to pad its MobileNetV2 as torchvision does" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a\.pth.*--output_stride"):
        model_from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "build", [deeplabv3_resnet50, pytest.param(deeplabv3_resnet101, marks=pytest.mark.slow)]
)
def test_torchvision_weights_give_torchvisions_logits(tmp_path, build):
    torch.manual_seed(0)
    reference = build(weights=None, weights_backbone=None, aux_loss=True)
    randomize(reference)
    state = {f"module.{key}": value for key, value in reference.state_dict().items()}
    # As torchvision's reference script writes it, its arguments beside the weights.
    content = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, aux_loss=True)}
    checkpoint = load_checkpoint(save(tmp_path / "tv.pth", content))
    assert (checkpoint.kind, checkpoint.output_stride) == ("torchvision", 8)
    assert (checkpoint.model, checkpoint.num_classes) == (build.__name__, 21)
    image = torch.randn(1, 3, 65, 81)
    with torch.inference_mode():
        expected = reference(image)["out"]
    actual = logits(model_from_checkpoint(checkpoint), image)
    largest = max(float(expected.abs().max()), 1)  # random weights may give thousands
    assert torch.allclose(actual / largest, expected / largest, atol=1e-5, rtol=0)


@pytest.mark.parametrize("separable_conv", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_recognised_by_its_weights(name, separable_conv):
    with torch.device("meta"):  # their names and sizes alone
        model = build_model(name, num_classes=4, separable_conv=separable_conv)
    state = {key: torch.ones(()).expand(v.shape) for key, v in model.state_dict().items()}
    checkpoint = describe_checkpoint(Path("a.pth"), state)
    assert (checkpoint.model, checkpoint.num_classes) == (name, 4)
    assert checkpoint.separable_conv == separable_conv


class Evil:
    """Runs code when it is unpickled by a careless reader."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_file_with_code_is_refused_and_nothing_runs(tmp_path, model, writer):
    path = tmp_path / "evil.pth"
    if writer == "torch":
        torch.save({"model_state": model.state_dict(), "extra": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Evil()}))
    with pytest.raises(UserError, match=r"evil\.pth: (refused: it needs \S*exec|is damaged)"):
        load_checkpoint(path)


def test_what_is_no_checkpoint_of_a_deeplab_is_one_line(tmp_path, lite):
    whole = save(tmp_path / "whole.pth", lite.state_dict()).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\n<!DOCTYPE html><html>404</html>"):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pth: is damaged, or no checkpoint"):
            load_checkpoint(tmp_path / "a.pth")
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read .*--ckpt"):
            load_checkpoint(path)
    # A classifier of whole images, nothing, and a list.
    for other in ({"fc.weight": torch.zeros(3, 3)}, {"model_state": {}}, [torch.zeros(1)]):
        with pytest.raises(UserError, match=r"a\.pth: "):
            load_checkpoint(save(tmp_path / "a.pth", other))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"format": "deeplab 2"}, "is of format 'deeplab 2'"),
        ({"class_names": ["a", "b"], "palette": [[0] * 3] * 2}, "does not fit .*size mismatch"),
        ({"args": {"model": NAME}}, r"is not as this project writes .*KeyError\('output_stride'"),
        ({"args": {"model": NAME, "output_stride": 7}}, "--output_stride 7: must be 8 or 16"),
        ({"args": None}, "is not as this project writes"),
        ({"model_state": {"a": torch.ones(1)}}, r"a\.pth: does not fit .*Missing key.*low_level"),
    ],
)
def test_own_file_that_contradicts_itself_or_the_code_is_refused(tmp_path, model, extra, message):
    path = save(tmp_path / "a.pth", {**own(model), **extra})
    with pytest.raises(UserError, match=message):
        model_from_checkpoint(load_checkpoint(path))


def test_numpy_scalars_are_read(tmp_path):
    values = {
        name: np.ones((), name)[()] for name in ("float16", "float64", "int8", "uint8", "bool")
    }
    content = read_file(save(tmp_path / "a.pth", values))
    assert content == values and all(type(content[name]) is type(values[name]) for name in values)


def checkpoint_of(model, names):
    content = own(model, names=names) if names else model.state_dict()
    return describe_checkpoint(Path("a.pth"), content)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, ["a", "b", "c"], "3 classes, not 5"),
        (NAMES, ["a", "b", "c"], "3 classes, not 5"),
        (NAMES, ["a", "b", "cat", "d", "dog"], "class 'cat', where it was 'c'"),
        (NAMES, list("abced"), "class 'e', where it was 'd'"),
        (None, NAMES, ""),
        (NAMES, NAMES, ""),
    ],
)
def test_classes_that_differ_are_named(model, before, after, message):
    assert first_difference(checkpoint_of(model, before), after) == message


@pytest.mark.parametrize("names", [list("abced"), NAMES])
def test_start_from_keeps_all_but_a_last_layer_of_other_classes(model, names):
    new = build_model(NAME, num_classes=5)
    last = {key: new.state_dict()[key].clone() for key in list(new.state_dict())[-2:]}
    note = start_from(new, NAME, checkpoint_of(model, NAMES), names)
    assert ("the last layer is new: class 'e'" in note) == (names != NAMES)
    expected = model.state_dict() | (last if names != NAMES else {})
    assert all(torch.equal(value, expected[key]) for key, value in new.state_dict().items())


def test_start_from_takes_the_normalisation_over_and_says_what_it_cannot(model):
    before = build_model(NAME, 5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    after = build_model(NAME, 5)
    assert "taken to be" not in start_from(after, NAME, checkpoint_of(before, NAMES), NAMES)
    assert torch.equal(after.mean, before.mean) and torch.equal(after.std, before.std)
    note = start_from(after, NAME, checkpoint_of(model, None), NAMES)
    assert "its 5 are taken to be the data set's" in note


def test_auxiliary_head_is_left_out_of_what_predicts_and_starts_anew(tmp_path, model, image):
    with_head = build_model(NAME, num_classes=5, aux_head=True)
    state = with_head.state_dict() | model.state_dict()
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", state))
    rebuilt = model_from_checkpoint(checkpoint, 16).eval()
    assert torch.equal(rebuilt(image), model(image))
    other = build_model(NAME, num_classes=3, aux_head=True)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert "3 classes, not 5" in start_from(other, NAME, checkpoint, "abc")
    for key, value in other.state_dict().items():
        is_new = key.startswith(("aux_classifier.", "classifier.classifier.3."))
        assert torch.equal(value, before[key] if is_new else model.state_dict()[key]), key


@pytest.mark.parametrize("part", ["backbone.high_level_features.9", "classifier.aspp.project.0"])
@pytest.mark.parametrize("names", [NAMES, list("abc")])
def test_start_from_weights_that_lack_some_is_refused(tmp_path, model, names, part):
    state = {key: v for key, v in model.state_dict().items() if not key.startswith(part)}
    checkpoint = load_checkpoint(save(tmp_path / "partial.pth", state))
    with pytest.raises(UserError, match=rf"partial\.pth: does not fit.*Missing key.*{part}"):
        start_from(build_model(NAME, num_classes=len(names)), NAME, checkpoint, names)


def test_start_from_another_architecture_is_refused(tmp_path, model):
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    with pytest.raises(UserError, match=r"a\.pth: .*deeplabv3plus_mobilenet.*deeplabv3_mobilenet"):
        other = build_model("deeplabv3_mobilenet", num_classes=5)
        start_from(other, "deeplabv3_mobilenet", checkpoint, NAMES)


def test_weights_to_share_name_no_gpu(model):
    with FakeTensorMode():
        weights = {"a.weight": torch.ones(3, device="cuda")}
    on_gpu = SimpleNamespace(state_dict=lambda: weights, mean=model.mean, std=model.std)
    described = describe_model(on_gpu, {}, NAMES, COLOURS)
    assert described["model_state"]["a.weight"].device.type == "cpu"
