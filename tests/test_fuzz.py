"""Damaged files of every kind: the outcome is a result or the documented one-line error.

`FUZZ_EXAMPLES` sets the number of cases per kind of file.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.custom import CustomSegmentation, read_labelmap
from network.modeling import build_model
from tests.conftest import save_sample, write_list
from utils.checkpoint import describe_model, load_checkpoint, model_from_checkpoint
from utils.common.errors import UserError
from utils.run_folder import read_log

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 15))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

damages = st.one_of(
    st.tuples(st.just("replace"), st.binary(max_size=300)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(
        st.just("overwrite"),
        st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=12),
    ),
)


def damage(content: bytes, how) -> bytes:
    """Apply one of `damages`; places are shares of the length."""
    kind, detail = how
    if kind == "replace":
        return detail
    if kind == "cut":
        return content[: int(detail * len(content))]
    changed = bytearray(content)
    for place, value in detail:
        changed[int(place * len(content))] = value
    return bytes(changed)


def outcome(action) -> object:
    """The result of `action()`, or None for a one-line `UserError`; anything else is a failure."""
    try:
        return action()
    except UserError as error:
        message = str(error)
        assert message and "\n" not in message and "Traceback" not in message
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    save_sample(root, "one", (24, 32), num_classes=3)
    write_list(root, "train", ["one"])
    (root / "class_names.txt").write_text("background\ncat\ndog\n")
    return root


def read_sample(folder: Path):
    image, target = CustomSegmentation(folder, "train")[0]
    assert image.dtype == target.dtype == torch.uint8 and image.shape[1:] == target.shape
    assert set(target.unique().tolist()) <= {0, 1, 2, 255}
    return image


def check(path: Path, how, action) -> None:
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole, how))
        outcome(action)
    finally:
        path.write_bytes(whole)


texts = st.one_of(damages, st.tuples(st.just("replace"), st.text(max_size=200).map(str.encode)))


@pytest.mark.parametrize(
    "name",
    [
        "JPEGImages/one.jpg",
        "SegmentationClass/one.png",
        "ImageSets/Segmentation/train.txt",
        "class_names.txt",
    ],
)
@fuzz
@given(texts)
def test_damaged_files_of_a_data_set(folder, name, how):
    check(folder / name, how, lambda: read_sample(folder))


@fuzz
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["1", "L", "P", "RGB", "I;16"]))
def test_masks_of_any_size_and_mode(folder, width, height, mode):
    values = np.random.default_rng(width * height).integers(0, 256, (height, width), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, format="PNG")
    path = folder / "SegmentationClass" / "one.png"
    check(path, ("replace", buffer.getvalue()), lambda: read_sample(folder))


@fuzz
@given(texts)
def test_damaged_labelmaps(tmp_path_factory, how):
    path = tmp_path_factory.getbasetemp() / "labelmap.txt"
    path.write_bytes(damage(b"# label:colour\nbackground:0,0,0::\ncat:1,2,3::\ndog:4,5,6::\n", how))
    labels = outcome(lambda: read_labelmap(path))
    assert labels is None or labels[1].shape == (len(labels[0]), 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "last.pth"
    model = build_model("deeplabv3plus_mobilenet", num_classes=3, separable_conv=True)
    settings = {"model": "deeplabv3plus_mobilenet", "output_stride": 16, "separable_conv": True}
    torch.save(describe_model(model, settings, "abc") | {"best_score": 0.5}, path)
    return path


@pytest.mark.slow
@fuzz
@given(damages)
def test_damaged_checkpoints(checkpoint, how):
    check(checkpoint, how, lambda: model_from_checkpoint(load_checkpoint(checkpoint)))


values = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=8), st.just(torch.zeros(2))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "format", "model_state", "args", "class_names", "model", "state_dict", "classifier.4.weight",
)  # fmt: skip


@fuzz
@given(st.one_of(values, st.dictionaries(st.sampled_from(KEYS), values, max_size=4)))
def test_checkpoints_of_any_content(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.pth"
    torch.save(content, path)
    assert outcome(lambda: model_from_checkpoint(load_checkpoint(path))) is None


@fuzz
@given(damages)
def test_damaged_logs(tmp_path_factory, how):
    folder = tmp_path_factory.getbasetemp()
    lines = [json.dumps({"iteration": k, "miou": 0.5, "class_iou": {"cat": None}}) for k in (1, 2)]
    (folder / "log.jsonl").write_bytes(damage(("\n".join(lines) + "\n").encode(), how))
    records = outcome(lambda: read_log(folder))
    assert records is None or all(isinstance(record, dict) for record in records)
