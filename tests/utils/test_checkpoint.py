import argparse
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from network.modeling import MODELS, build_model
from utils.checkpoint import (
    load_checkpoint,
    model_from_checkpoint,
    read_file,
    save_checkpoint,
    start_from,
)
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.imagenet import MEAN, STD


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
    return randomize(build_model("deeplabv3plus_mobilenet", num_classes=5))


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0))


def logits(model, image):
    with torch.inference_mode():
        return model.eval().segment(image)


def save(path, content):
    torch.save(content, path)
    return path


ARGS = {"output_stride": 16, "model": "deeplabv3plus_mobilenet"}
FORMS = {
    "own": lambda state: {"model_state": state, "args": ARGS, "class_names": list("abcde")},
    "VainF-style": lambda state: {"cur_itrs": 3, "model_state": state, "best_score": np.float64(1)},
    "bare state dict": lambda state: state,
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_form_gives_the_same_logits(tmp_path, model, image, kind, prefix):
    state = OrderedDict((prefix + key, value) for key, value in model.state_dict().items())
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", FORMS[kind](state)))
    assert checkpoint.kind == kind
    assert (checkpoint.model, checkpoint.num_classes) == ("deeplabv3plus_mobilenet", 5)
    loaded = model_from_checkpoint(checkpoint, None if kind == "own" else 16)
    assert torch.equal(logits(loaded, image), logits(model, image))
    assert checkpoint.class_names == (list("abcde") if kind == "own" else None)


def test_foreign_file_needs_its_output_stride_to_be_said(tmp_path, model):
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    with pytest.raises(UserError, match=r"a\.pth.*--output_stride"):
        model_from_checkpoint(checkpoint)


def test_own_output_stride_comes_from_the_file(tmp_path, image):
    model = randomize(build_model("deeplabv3_mobilenet", num_classes=3, output_stride=8))
    content = {"model_state": model.state_dict(), "args": {"output_stride": 8}}
    loaded = model_from_checkpoint(load_checkpoint(save(tmp_path / "a.pth", content)))
    assert torch.equal(logits(loaded, image), logits(model, image))
    other = model_from_checkpoint(load_checkpoint(tmp_path / "a.pth"), output_stride=16)
    assert not torch.allclose(logits(other, image), logits(model, image), atol=1e-3)


TORCHVISION_FORMS = [
    lambda state: state,
    lambda state: {f"module.{key}": value for key, value in state.items()},
    # torchvision's reference script stores its arguments too
    lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, aux_loss=True)},
]


@pytest.mark.parametrize(
    ("build", "wrap"),
    [
        *((deeplabv3_resnet50, wrap) for wrap in TORCHVISION_FORMS),
        (deeplabv3_resnet101, TORCHVISION_FORMS[0]),
    ],
)
def test_torchvision_weights_give_torchvisions_logits(tmp_path, build, wrap):
    torch.manual_seed(0)
    reference = build(weights=None, weights_backbone=None, aux_loss=True)
    randomize(reference)
    checkpoint = load_checkpoint(save(tmp_path / "tv.pth", wrap(reference.state_dict())))
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
def test_every_architecture_is_recognised(tmp_path, name, separable_conv):
    model = build_model(name, num_classes=4, separable_conv=separable_conv)
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    assert (checkpoint.model, checkpoint.num_classes) == (name, 4)
    assert checkpoint.separable_conv == separable_conv
    model_from_checkpoint(checkpoint, 16)


class Evil:
    """Runs code when it is unpickled by a careless reader."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_file_with_code_is_refused_and_nothing_runs(tmp_path, model, writer):
    path = tmp_path / "evil.pth"
    content = {"model_state": model.state_dict(), "extra": Evil()}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Evil()}))
    with pytest.raises(UserError, match=r"evil\.pth: (refused|not a readable)"):
        load_checkpoint(path)


def test_broken_files_are_named(tmp_path, model):
    whole = save(tmp_path / "whole.pth", model.state_dict()).read_bytes()
    cases = {
        "cut.pth": (whole[: len(whole) // 2], "cut off"),
        "short.pth": (whole[:5000], "cut off"),
        "empty.pth": (b"", "cut off"),
        "page.pth": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "noise.pth": (bytes(range(256)) * 9, "cut off"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: .*{message}"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere\.pth: .*No such file.*--ckpt"):
        load_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"fc.weight": torch.zeros(3, 3)},
        {"model_state": {}},
        {"best_score": 0.5},
        [torch.zeros(1)],
        torch.zeros(1),
    ],
)
def test_files_without_a_deeplab_are_named(tmp_path, content):
    with pytest.raises(UserError, match=r"other\.pth: "):
        load_checkpoint(save(tmp_path / "other.pth", content))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"class_names": ["a", "b"]}, "5 classes"),
        ({"class_names": 5}, "5 classes"),
        ({"mean": [0.5, 0.5]}, "mean is"),
        ({"std": 1.0}, "std is"),
    ],
)
def test_own_file_that_contradicts_itself_or_the_code_is_refused(tmp_path, model, extra, message):
    content = {"model_state": model.state_dict(), "args": ARGS}
    load_checkpoint(save(tmp_path / "a.pth", {**content, "mean": list(MEAN), "std": list(STD)}))
    with pytest.raises(UserError, match=rf"a\.pth: .*{message}"):
        load_checkpoint(save(tmp_path / "a.pth", {**content, **extra}))


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"]
)
def test_numpy_scalars_are_read(tmp_path, dtype):
    value = np.ones((), dtype)[()]
    content = read_file(save(tmp_path / "a.pth", {"best_score": value}))
    assert content["best_score"] == value and type(content["best_score"]) is type(value)


def test_missing_weight_is_named(tmp_path, model):
    state = model.state_dict()
    del state["classifier.aspp.project.0.weight"]
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", state))
    with pytest.raises(UserError, match=r"a\.pth: does not fit.*aspp\.project\.0\.weight"):
        model_from_checkpoint(checkpoint, 16)


def test_start_from_other_classes_keeps_all_but_the_last_layer(tmp_path, model):
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    other = build_model("deeplabv3plus_mobilenet", num_classes=3)
    last = {key: other.state_dict()[key].clone() for key in list(other.state_dict())[-2:]}
    note = start_from(other, "deeplabv3plus_mobilenet", checkpoint)
    assert "the last layer is new: 3 classes, not 5" in note
    for key, value in other.state_dict().items():
        assert torch.equal(value, last.get(key, model.state_dict()[key]))
    same = build_model("deeplabv3plus_mobilenet", num_classes=5)
    assert "last layer" not in start_from(same, "deeplabv3plus_mobilenet", checkpoint)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in same.state_dict().items())


def test_auxiliary_head_is_left_out_of_what_predicts_and_starts_anew(tmp_path, model, image):
    with_head = build_model("deeplabv3plus_mobilenet", num_classes=5, aux_head=True)
    state = with_head.state_dict() | model.state_dict()
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", state))
    rebuilt = model_from_checkpoint(checkpoint, 16).eval()
    assert torch.equal(rebuilt(image), model(image))
    other = build_model("deeplabv3plus_mobilenet", num_classes=3, aux_head=True)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert "3 classes, not 5" in start_from(other, "deeplabv3plus_mobilenet", checkpoint)
    for key, value in other.state_dict().items():
        is_new = key.startswith(("aux_classifier.", "classifier.classifier.3."))
        assert torch.equal(value, before[key] if is_new else model.state_dict()[key]), key


def test_start_from_another_architecture_is_refused(tmp_path, model):
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", model.state_dict()))
    with pytest.raises(UserError, match=r"a\.pth: .*deeplabv3plus_mobilenet.*deeplabv3_mobilenet"):
        start_from(
            build_model("deeplabv3_mobilenet", num_classes=5), "deeplabv3_mobilenet", checkpoint
        )


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"cur_itrs": 1})
    with pytest.raises(RuntimeError), write_atomically(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert read_file(path) == {"cur_itrs": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/last\.pth: cannot be written"):
        save_checkpoint(tmp_path / "file" / "last.pth", {})
