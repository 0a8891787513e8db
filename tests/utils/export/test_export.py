"""Exported files against the project's own predictions, and without the project."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from network.modeling import MODELS, build_model
from tests.conftest import ROOT
from utils.common.errors import UserError
from utils.export import __main__ as export
from utils.export.formats import CAN_EXPORT, FORMATS
from utils.predictor import Predictor

pytestmark = pytest.mark.skipif(not CAN_EXPORT, reason="torch is too old to export")
HAS_ONNX = all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="ONNX's packages are missing")
NAMES = ["background", "cat", "дом"]
SUFFIXES = [pytest.param(".onnx", marks=needs_onnx), ".pt2"]
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)


def save_checkpoint(folder, name="deeplabv3plus_efficientnet_lite0", **settings):
    torch.manual_seed(0)
    stride = settings.setdefault("output_stride", 16)
    model = build_model(name, num_classes=3, output_stride=stride)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    args = {"model": name, "separable_conv": False, "dataset": "custom", **settings}
    args["data_root"] = "/home/somebody/pets"
    content = {"model_state": model.state_dict(), "args": args, "class_names": NAMES}
    torch.save(content, folder / "best.pth")
    return folder / "best.pth"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"), resize=0.5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_the_predictors_classes_at_any_size(
    run, tmp_path, name, output_stride, suffix
):
    path = save_checkpoint(tmp_path, name, output_stride=output_stride)
    output = tmp_path / f"model{suffix}"
    ended = run(export.main, "--ckpt", path, "--output", output)
    assert ended.status == 0, ended.stderr
    assert float(re.search(r"([\d.]+) % of the classes equal", ended.stdout)[1]) > 99.9
    predictor = Predictor.from_checkpoint(path, torch.device("cpu"), "fp32")
    program = FORMATS[suffix]().load(output)
    for size in ((3, 50, 33), (1, 1, 40)):
        image = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8)
        classes = program(image)
        assert classes.dtype == torch.uint8
        assert (classes == predictor(image)).float().mean() > 0.999


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_logits_of_normalised_floats_are_the_models(run, tmp_path, ckpt, suffix):
    output = tmp_path / f"model{suffix}"
    ended = run(export.main, "--ckpt", ckpt, "--output", output, "--logits", "--float_input")
    assert ended.status == 0, ended.stderr
    predictor = Predictor.from_checkpoint(ckpt, torch.device("cpu"), "fp32")
    image = torch.randn(2, 3, 65, 33)
    with torch.inference_mode():
        expected = predictor.model.segment(image)
    assert torch.allclose(FORMATS[suffix]().load(output)(image), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fp16_weights_halve_the_file(run, tmp_path, ckpt, suffix):
    sizes = []
    for flags in ((), ("--fp16_weights",)):
        output = tmp_path / f"model{suffix}"
        ended = run(export.main, "--ckpt", ckpt, "--output", output, *flags)
        assert ended.status == 0, ended.stderr
        sizes.append(output.stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_metadata_names_classes_and_no_folder_of_this_machine(run, tmp_path, ckpt):
    output = tmp_path / "model.pt2"
    assert run(export.main, "--ckpt", ckpt, "--output", output).status == 0
    extra = {"metadata.json": ""}
    torch.export.load(output, extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["class_names"] == NAMES
    assert metadata["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert (metadata["output_stride"], metadata["resize"]) == (16, 0.5)
    assert (metadata["model"], metadata["dataset"]) == ("deeplabv3plus_efficientnet_lite0", "pets")
    assert_names_no_folder(output)


@needs_onnx
def test_an_onnx_file_names_no_folder_of_this_machine(run, tmp_path, ckpt):
    output = tmp_path / "model.onnx"
    assert run(export.main, "--ckpt", ckpt, "--output", output).status == 0
    assert_names_no_folder(output)


def assert_names_no_folder(path):
    content = path.read_bytes()
    for folder in (str(ROOT), str(path.parent), torch.__path__[0], "/home/somebody"):
        assert folder.encode() not in content


def example(number):
    """A code block of the page about other programs."""
    text = (ROOT / "results" / "export.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)[number]


WITHOUT_PROJECT = """
import sys
for name in {missing}:
    sys.modules[name] = None  # as if it were not installed
"""


def run_alone(code, folder, missing):
    code = WITHOUT_PROJECT.format(missing=missing) + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )


@needs_onnx
def test_the_example_without_torch_gives_the_projects_mask(run, tmp_path):
    path = save_checkpoint(tmp_path)
    assert run(export.main, "--ckpt", path, "--output", tmp_path / "model.onnx").status == 0
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg")
    ended = run_alone(example(0), tmp_path, ["torch", "torchvision", "utils", "network"])
    assert ended.returncode == 0, ended.stderr
    image = torch.from_numpy(np.array(Image.open(tmp_path / "photo.jpg"))).permute(2, 0, 1)
    pred = Predictor.from_checkpoint(path, torch.device("cpu"), "fp32")(image[None])[0]
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    assert (np.asarray(mask) == pred.numpy()).mean() > 0.999
    assert "background" in ended.stdout or "cat" in ended.stdout
    assert len(example(0).splitlines()) <= 20


def test_the_example_with_torch_alone_runs(run, tmp_path, ckpt):
    assert run(export.main, "--ckpt", ckpt, "--output", tmp_path / "model.pt2").status == 0
    code = example(1) + "print(tuple(classes.shape), classes.dtype)"
    ended = run_alone(code, tmp_path, ["utils", "network", "datasets"])
    assert ended.stdout.strip() == "(1, 360, 480) torch.uint8", ended.stderr
    assert len(example(1).splitlines()) <= 5


def test_the_file_stays_where_timing_fails(run, tmp_path, ckpt, monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(export, "compare_speed", fail)
    with pytest.raises(RuntimeError, match="no compiler"):
        export.main(["--ckpt", str(ckpt), "--output", str(tmp_path / "a.pt2"), "--time", "65"])
    assert (tmp_path / "a.pt2").exists()


def test_the_file_is_timed_beside_the_project(run, tmp_path, ckpt, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda program: program)  # minutes, and a compiler
    output = tmp_path / "model.pt2"
    ended = run(export.main, "--ckpt", ckpt, "--output", output, "--time", "65", "--float_input")
    assert ended.status == 0, ended.stderr
    names = re.findall(r"^(.*?) +[\d.]+ ms$", ended.stdout, re.M)
    expected = ["the file, fp32", "Predictor, fp32", "Predictor, bf16", "torch.compile, fp32"]
    assert names == expected


def test_a_file_that_differs_is_not_kept(run, tmp_path, ckpt, monkeypatch):
    class Shifted(FORMATS[".pt2"]):
        def load(self, path):
            program = super().load(path)
            return lambda image: (program(image) + 1) % 3

    monkeypatch.setitem(FORMATS, ".pt2", Shifted)
    ended = run(export.main, "--ckpt", ckpt, "--output", tmp_path / "model.pt2")
    assert ended.status == 2
    assert "model.pt2: not kept: only 0.000 % of the classes equal" in ended.stderr
    assert not list(tmp_path.glob("*model*"))


def test_missing_packages_and_unknown_suffixes_are_one_line(ckpt, tmp_path, monkeypatch):
    def arguments(name):
        words = ["--ckpt", str(ckpt), "--output", str(tmp_path / name)]
        return export.build_parser().parse_args(words)

    with pytest.raises(UserError, match=r"must end in \.onnx or \.pt2"):
        export.export(arguments("model.tflite"))
    with monkeypatch.context() as context:
        context.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
            export.export(arguments("model.onnx"))
    monkeypatch.setattr(export, "CAN_EXPORT", False)
    with pytest.raises(UserError, match="needs a newer torch than"):
        export.export(arguments("model.pt2"))
